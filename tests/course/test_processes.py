"""How the processes of a test run share the machine is settled before a framework is loaded."""

import os

import torch


def test_pytorch_has_the_threads_that_were_settled():
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])

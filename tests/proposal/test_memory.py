"""A module that holds and takes the same as before does not run again."""

from parity.padding import Conv2dSame
from parity.proposal.memory import OutputMemory

import pytest
import torch
from torch import nn


class Doubled(nn.Linear):
    """A module of the user's own."""

    def forward(self, x):
        """Return twice as much."""
        return 2 * super().forward(x)


def attached(module, contents=None):
    memory = OutputMemory()
    memory.attach("m", module, {"m": None} if contents is None else contents)
    return memory


def run(memory, module, *tensors, **kwargs):
    memory.begin()
    return module(*tensors, **kwargs)


def test_it_runs_again_only_if_it_holds_or_takes_something_else(monkeypatch):
    counted, linear = [], torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *args: counted.append(1) or linear(*args))
    module, contents, x = nn.Linear(3, 2), {"m": None}, torch.ones(1, 3)
    memory = attached(module, contents)
    outputs = [run(memory, module, x) for _ in range(4)]
    assert len(counted) == 2  # the first run is not remembered: there may be no other
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    run(memory, module, 2 * x)
    assert len(counted) == 3
    contents["m"] = ("part", None)
    module.weight.data.add_(1)
    assert not torch.equal(run(memory, module, 2 * x), 2 * outputs[0])
    assert len(counted) == 4


def test_what_is_remembered_is_not_overwritten():
    module, x = nn.Linear(3, 2), torch.ones(1, 3)
    memory = attached(module)
    due = module(x).detach()
    for _ in range(4):
        with torch.no_grad():
            assert torch.equal(run(memory, module, x).mul_(1), due)
            run(memory, module, x).zero_()


@pytest.mark.parametrize("module", [Doubled(3, 2), nn.Sequential(nn.Linear(3, 2)), nn.LSTM(3, 2)])
def test_modules_of_the_users_own_those_with_modules_and_those_with_several_outputs_always_run(module):
    memory = attached(module)
    for _ in range(3):
        run(memory, module, torch.ones(2, 3))
    assert memory.kept == {}


def test_the_projects_own_layers_are_remembered_and_so_is_each_call():
    module = Conv2dSame(3, 2, 3)
    memory = attached(module)
    for _ in range(2):
        memory.begin()
        for factor in (1, 2):
            module(factor * torch.ones(1, 3, 5, 5))
    assert memory.kept.keys() == {("m", 1), ("m", 2)}


def test_no_more_is_stored_than_the_limit(monkeypatch):
    monkeypatch.setattr("parity.proposal.memory._MOST", 4)
    module = nn.Linear(3, 2)
    memory = attached(module)
    for _ in range(3):
        run(memory, module, torch.ones(1, 3))
    assert (memory.kept, memory.size) == ({}, 0)

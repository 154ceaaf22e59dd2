"""Mistakes that are made with the weights and settings of any nn.RNN, nn.LSTM or nn.GRU."""

from collections.abc import Sequence

from course.mutants.tools import exchange, put

import torch
from torch import nn


def bias_twice(rnn: nn.RNNBase) -> None:
    """Put the sum of both biases of each direction and level into both places."""
    tensors = dict(rnn.named_parameters())
    for name, bias in tensors.items():
        if name.startswith("bias_ih"):
            other = tensors[name.replace("_ih", "_hh")]
            both = (bias + other).detach()
            put(bias, both)
            put(other, both)


def gates_in_order(rnn: nn.RNNBase, order: Sequence[int]) -> None:
    """Put the gates of all tensors into another order, given as numbers of the gates in the right one."""
    for tensor in rnn.parameters():
        gates = tensor.detach().chunk(len(order))
        put(tensor, torch.cat([gates[gate] for gate in order]))


def no_batch_first(rnn: nn.RNNBase) -> None:
    """Let the module take (time, batch, features)."""
    rnn.batch_first = False


def transposed_recurrent(rnn: nn.RNNBase) -> None:
    """Transpose the recurrent kernel of each gate, as after a reshape in place of a transposition."""
    for name, tensor in rnn.named_parameters():
        if name.startswith("weight_hh"):
            put(tensor, torch.cat([gate.T for gate in tensor.detach().split(rnn.hidden_size)]))


def exchanged_directions(rnn: nn.RNNBase) -> None:
    """Exchange the weights of the two directions of each level."""
    tensors = dict(rnn.named_parameters())
    for name, tensor in tensors.items():
        if not name.endswith("_reverse"):
            exchange(tensor, tensors[f"{name}_reverse"])

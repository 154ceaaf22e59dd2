"""A WaveNet of seven blocks: dilated causal convolutions with gates, a residual and a skip each."""

import functools
from collections.abc import Callable

from course.mutants.tools import put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, convolution, drawn, randomized, under

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor, nn

BLOCKS = 7


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of two series. The last block has no residual: nothing would read it."""
    start = keras.Input((150, 2), name="wave")
    x = L.Conv1D(8, 1, name="start")(start)
    skips = []
    for block in range(BLOCKS):
        settings = {"padding": "causal", "dilation_rate": 2**block}
        tanh = L.Conv1D(8, 2, activation="tanh", name=f"filter_{block}", **settings)(x)
        gate = L.Conv1D(8, 2, activation="sigmoid", name=f"gate_{block}", **settings)(x)
        z = L.Multiply(name=f"gated_{block}")([tanh, gate])
        skips.append(L.Conv1D(12, 1, name=f"skip_{block}")(z))
        if block < BLOCKS - 1:
            x = L.Add(name=f"add_{block}")([x, L.Conv1D(8, 1, name=f"residual_{block}")(z)])
    x = L.ReLU(name="relu")(L.Add(name="skips")(skips))
    x = L.Conv1D(12, 1, activation="relu", name="post")(x)
    x = L.Conv1D(6, 1, activation="softmax", name="classes")(x)
    return randomized(keras.Model(start, x, name="wavenet"), 3), [drawn(2, 150, 2, seed=1)]


class Block(nn.Module):
    """One block: it returns what the next one takes, and what is summed at the end."""

    def __init__(self, dilation: int, last: bool) -> None:
        super().__init__()
        self.filter = nn.Conv1d(8, 8, 2, dilation=dilation)
        self.gate = nn.Conv1d(8, 8, 2, dilation=dilation)
        self.skip = nn.Conv1d(8, 12, 1)
        self.residual = None if last else nn.Conv1d(8, 8, 1)
        self.pad = (dilation, 0)

    def gated(self, x: Tensor) -> Tensor:
        """Return the product of the filter and its gate."""
        x = F.pad(x, self.pad)
        return torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, 8, t) to (b, 8, t) and (b, 12, t)."""
        z = self.gated(x)
        return (x if self.residual is None else x + self.residual(z)), self.skip(z)


class Twin(nn.Module):
    """The twin."""

    def __init__(self, spare: bool = False) -> None:
        super().__init__()
        self.start = nn.Conv1d(2, 8, 1)
        self.blocks = nn.ModuleList(Block(2**block, last=block == BLOCKS - 1 and not spare) for block in range(BLOCKS))
        self.post = nn.Conv1d(12, 12, 1)
        self.classes = nn.Conv1d(12, 6, 1)

    def summed(self, skips: list[Tensor]) -> Tensor:
        """Return the sum of what the blocks contribute."""
        return sum(skips)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 2, t) to (b, 6, t)."""
        x, skips = self.start(x), []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        x = F.relu(self.post(F.relu(self.summed(skips))))
        return F.softmax(self.classes(x), dim=1)


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    names = {name: name for name in ("start", "post", "classes")}
    for block in range(BLOCKS):
        names |= {f"{part}_{block}": f"blocks.{block}.{part}" for part in ("filter", "gate", "skip", "residual")}
    del names[f"residual_{BLOCKS - 1}"]
    tensors: Tensors = {}
    for layer, module in names.items():
        tensors |= under(module, convolution(model.get_layer(layer)))
    return tensors


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


def gate_by(block: nn.Module, way: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Let a block join its filter and its gate in another way."""

    def gated(self, x):
        x = F.pad(x, self.pad)
        return way(self.filter(x), self.gate(x))

    block.__class__ = type("Block", (Block,), {"gated": gated})


def sum_by(twin: nn.Module, way: Callable[[list[Tensor]], Tensor]) -> None:
    """Let the twin sum in another way."""
    twin.__class__ = type("Twin", (Twin,), {"summed": lambda self, skips: way(skips)})


@mistaken("block 2: padded on both sides", {"filter_2", "gate_2"}, "padding")
def _(twin):
    twin.blocks[2].pad = (2, 2)


@mistaken("block 3: dilation forgotten", {"filter_3", "gate_3"}, "stride or dilation")
def _(twin):
    block = twin.blocks[3]
    block.filter.dilation = block.gate.dilation = (1,)
    block.pad = (1, 0)


@mistaken("block 1: tanh and sigmoid exchanged", {"filter_1", "gate_1"}, "another activation")
def _(twin):
    gate_by(twin.blocks[1], lambda a, b: torch.sigmoid(a) * torch.tanh(b))


@mistaken("block 4: the gate is added", {"gated_4"}, "another operation")
def _(twin):
    gate_by(twin.blocks[4], lambda a, b: torch.tanh(a) + torch.sigmoid(b))


@mistaken("block 5: kernel flipped", {"gate_5"}, "kernel flipped")
def _(twin):
    put(twin.blocks[5].gate.weight, twin.blocks[5].gate.weight.flip(2))


@mistaken("block 0: the skip is left out", {"add_0", "filter_1", "gate_1"}, "another skip")
def _(twin):
    def forward(self, x):
        z = self.gated(x)
        return self.residual(z), self.skip(z)

    twin.blocks[0].__class__ = type("Block", (Block,), {"forward": forward})


@mistaken("filter and gate of block 6 exchanged", {"filter_6", "gate_6"}, "weights of another layer")
def _(twin):
    block = twin.blocks[6]
    block.filter, block.gate = block.gate, block.filter


@mistaken("the mean for the sum", {"skips", "relu"}, "input scaled")  # the division comes behind the sum
def _(twin):
    sum_by(twin, lambda skips: sum(skips) / len(skips))


@mistaken("the sum without the last", {"skips"}, "another skip")
def _(twin):
    sum_by(twin, lambda skips: sum(skips[:-1]))


NETWORK = Network("WaveNet", keras_model, Twin, tuple(MISTAKES), fill_by_hand=fill_by_hand)

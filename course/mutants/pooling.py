"""Pooling, and a twin that puts the channels last before it flattens: the network, its twin and its mutants."""

import functools
from collections.abc import Callable

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, small_network
from course.mutants.tools import another_forward, before, halves, like, put
from parity.padding import AvgPool2dSame, Conv2dSame, MaxPool2dSame, pad_same

import keras
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _keras_model(height: int, width: int) -> keras.Model:
    start = keras_input(height, width, 2)
    x = keras_layer("MaxPooling2D", 3, strides=2, padding="same", name="largest")(start)
    x = keras_layer("Conv2D", 4, (2, 3), padding="same", name="conv")(x)
    x = keras_layer("AveragePooling2D", (3, 2), strides=2, padding="same", name="mean")(x)
    x = keras_layer("Flatten", name="flatten")(x)
    x = keras_layer("Dense", 7, activation="relu", name="hidden")(x)
    return keras.Model(start, keras_layer("Dense", 3, name="head")(x), name="pooling")


class Pooling(nn.Module):
    """The twin of the pooling network: it puts the channels last before it flattens."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = MaxPool2dSame(3, 2)
        self.conv = Conv2dSame(2, 4, (2, 3))
        self.mean = AvgPool2dSame((3, 2), 2)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(4 * 3 * 4, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 2, h, w) with 13 <= h <= 16 and 9 <= w <= 12 to (batch, 3)."""
        x = self.mean(self.conv(self.largest(x)))
        x = self.flatten(x.permute(0, 2, 3, 1))
        return self.head(torch.relu(self.hidden(x)))


_MODULES = {name: name for name in ("conv", "hidden", "head")}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(2, 13, 9), (3, 14, 10), (2, 16, 11)], Pooling(), _MODULES)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "pooling")


@mutant("largest: padded with zeros", {"largest"}, "padding value", shows="negative inputs", in_forward=True)
def _(twin):
    assert isinstance(twin.largest, MaxPool2dSame)
    another_forward(twin.largest, lambda self, x: F.max_pool2d(pad_same(x, (3, 3), (2, 2), (1, 1)), 3, 2))


@mutant("largest: padding=1", {"largest"}, "padding", shows="other size")
def _(twin):
    twin.largest = nn.MaxPool2d(3, 2, padding=1)


@mutant("conv: the odd element of padding before the data", {"conv"}, "padding", in_forward=True)
def _(twin):
    twin.conv = like(twin.conv, nn.Conv2d)
    before(twin.conv, lambda x: F.pad(x, (1, 1, 1, 0)))


@mutant("conv: kernel flipped", {"conv"}, "kernel flipped")
def _(twin):
    put(twin.conv.weight, twin.conv.weight.flip(2, 3))


@mutant("mean: padding counted", {"mean"}, "padding counted", in_forward=True)
def _(twin):
    another_forward(twin.mean, lambda self, x: F.avg_pool2d(pad_same(x, (3, 2), (2, 2), (1, 1)), (3, 2), 2))


def pooling_forward(twin: nn.Module, order: tuple[int, ...] = (0, 2, 3, 1), relu: Callable = torch.relu) -> None:
    """Give the pooling twin another order of axes before its flatten, or another activation."""

    def forward(self, x):
        x = self.flatten(self.mean(self.conv(self.largest(x))).permute(order))
        return self.head(relu(self.hidden(x)))

    another_forward(twin, forward)


@mutant("flattened channels first", {"flatten", "hidden"}, "flatten order", in_forward=True)
def _(twin):
    pooling_forward(twin, (0, 1, 2, 3))


@mutant("flattened by columns", {"flatten", "hidden"}, "flatten order", in_forward=True)
def _(twin):
    pooling_forward(twin, (0, 3, 2, 1))


@mutant("hidden: the kernel's rows by columns", {"hidden"}, "flatten order")
def _(twin):
    put(twin.hidden.weight, twin.hidden.weight.unflatten(1, (4, 3, 4)).transpose(1, 2).flatten(1))


@mutant("hidden: ReLU missing", {"hidden", "head"}, "activation missing", in_forward=True)
def _(twin):
    pooling_forward(twin, relu=lambda x: x)


@mutant("head: through float16", {"head"}, "precision")
def _(twin):
    halves(twin.head, "weight", "bias")


@mutant("height and width of the images exchanged", {"input", "largest"}, "input axes exchanged", in_forward=True)
def _(twin):
    before(twin, lambda x: x.transpose(2, 3))

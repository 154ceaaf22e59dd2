"""A Keras model whose layers have the channels first: the network, its twin and its mutants.

Its convolutions are those that Keras runs channels first on any processor: depthwise and separable ones. No image is as
wide as it has channels: there Keras 3.15 on TensorFlow adds a bias along the wrong axis.
"""

import functools
from collections.abc import Callable

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, small_network
from course.mutants.tools import another_forward, before, exchange, like, put
from parity.padding import Conv2dSame, MaxPool2dSame, pad_same

import keras
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FIRST = {"data_format": "channels_first"}


def _keras_model(height: int, width: int) -> keras.Model:
    start = keras_input(height, width, 2)
    x = keras_layer("Permute", (3, 1, 2), name="first")(start)
    x = keras_layer("DepthwiseConv2D", (3, 2), strides=2, depth_multiplier=2, padding="same", name="depth", **_FIRST)(x)
    x = keras_layer("BatchNormalization", axis=1, name="norm")(x)
    trunk = keras_layer("PReLU", shared_axes=[2, 3], name="slopes")(x)
    x = keras_layer("SeparableConv2D", 8, 3, padding="same", name="separable", **_FIRST)(trunk)
    x = keras_layer("GroupNormalization", 2, axis=1, name="group")(x)
    x = keras_layer("Concatenate", axis=1, name="join")([trunk, x])
    x = keras_layer("MaxPooling2D", 3, strides=2, padding="same", name="pool", **_FIRST)(x)
    x = keras_layer("SeparableConv2D", 5, 1, name="mix", **_FIRST)(x)
    x = keras_layer("Softmax", axis=1, name="shares")(x)
    x = keras_layer("Flatten", name="flatten")(x)  # in the order that they lie in: channels first
    x = keras_layer("Dense", 6, activation="tanh", name="hidden")(x)
    return keras.Model(start, keras_layer("Dense", 3, name="head")(x), name="channels_first")


def _separable(channels: int, filters: int, kernel: int, padding: int = 0) -> nn.Sequential:
    parts = nn.Sequential()
    parts.depthwise = nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=False)
    parts.pointwise = nn.Conv2d(channels, filters, 1)
    return parts


class ChannelsFirst(nn.Module):
    """The twin: it needs no permutation, and nothing is reordered behind its flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = Conv2dSame(2, 4, (3, 2), stride=2, groups=2)
        self.norm = nn.BatchNorm2d(4, eps=1e-3, momentum=0.01)
        self.slopes = nn.PReLU(4)
        self.separable = _separable(4, 8, 3, padding=1)
        self.group = nn.GroupNorm(2, 8, eps=1e-3)
        self.pool = MaxPool2dSame(3, 2)
        self.mix = _separable(12, 5, 1)
        self.hidden = nn.Linear(5 * 4 * 3, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 2, h, w) with 13 <= h <= 16 and 9 <= w <= 12 to (batch, 3)."""
        trunk = self.slopes(self.norm(self.depth(x)))
        x = torch.cat([trunk, self.group(self.separable(trunk))], 1)
        x = self.mix(self.pool(x)).softmax(1)
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


_MODULES = {name: name for name in ("depth", "norm", "slopes", "separable", "group", "mix", "hidden", "head")}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(2, 13, 9), (3, 14, 10), (2, 16, 11)], ChannelsFirst(), _MODULES)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "channels_first")


def first_forward(
    twin: nn.Module,
    join: Callable[[Tensor, Tensor], Tensor] = lambda a, b: torch.cat([a, b], 1),
    shares: Callable[[Tensor], Tensor] = lambda x: x.softmax(1),
    flatten: Callable[[Tensor], Tensor] = lambda x: x.flatten(1),
) -> None:
    """Give the twin another way to join its branches, to weigh its channels or to flatten."""

    def forward(self, x):
        trunk = self.slopes(self.norm(self.depth(x)))
        x = shares(self.mix(self.pool(join(trunk, self.group(self.separable(trunk))))))
        return self.head(torch.tanh(self.hidden(flatten(x))))

    another_forward(twin, forward)


@mutant("height and width of the images exchanged", {"first", "depth"}, "input axes exchanged", in_forward=True)
def _(twin):
    before(twin, lambda x: x.transpose(2, 3).reshape(x.shape[0], x.shape[1], x.shape[3], x.shape[2]))


@mutant("depth: the odd element of padding before the data", {"depth"}, "padding", in_forward=True)
def _(twin):
    twin.depth = like(twin.depth, nn.Conv2d)
    before(twin.depth, lambda x: F.pad(x, (x.shape[3] % 2, 0, 1, x.shape[2] % 2)))


@mutant("depth: height and width of the kernel exchanged", {"depth"}, "kernel axes permuted")
def _(twin):
    put(twin.depth.weight, twin.depth.weight.transpose(2, 3))


@mutant("norm: eps=1e-5", {"norm"}, "epsilon")
def _(twin):
    twin.norm.eps = 1e-5


@mutant("norm: gamma and beta exchanged", {"norm"}, "BatchNormalization vectors exchanged")
def _(twin):
    exchange(twin.norm.weight, twin.norm.bias)


@mutant("norm: momentum 0.99", {"norm"}, "momentum", shows="training")
def _(twin):
    twin.norm.momentum = 0.99


@mutant("slopes: those of nn.PReLU's beginning", {"slopes"}, "weights hold other numbers")
def _(twin):
    put(twin.slopes.weight, 0.25)


@mutant("depth: channels and multiplier in the other order", {"depth"}, "depthwise order")
def _(twin):
    put(twin.depth.weight, twin.depth.weight.unflatten(0, (2, 2)).transpose(0, 1).flatten(0, 1))


@mutant("depth: no bias", {"depth"}, "bias missing")
def _(twin):
    put(twin.depth.bias, 0.0)


@mutant("group: four groups", {"group"}, "groups")
def _(twin):
    twin.group.num_groups = 4


@mutant("join: the branches in the other order", {"join"}, "another skip", in_forward=True)
def _(twin):
    first_forward(twin, join=lambda a, b: torch.cat([b, a], 1))


@mutant("pool: padded with zeros", {"pool"}, "padding value", in_forward=True)
def _(twin):
    another_forward(twin.pool, lambda self, x: F.max_pool2d(pad_same(x, (3, 3), (2, 2), (1, 1)), 3, 2))


@mutant("shares: along the rows", {"shares"}, "axis", in_forward=True)
def _(twin):
    first_forward(twin, shares=lambda x: x.softmax(2))


@mutant("shares: a sigmoid", {"shares"}, "another activation", in_forward=True)
def _(twin):
    first_forward(twin, shares=torch.sigmoid)


@mutant("flattened channels last", {"flatten", "hidden"}, "flatten order", in_forward=True)
def _(twin):
    first_forward(twin, flatten=lambda x: x.permute(0, 2, 3, 1).flatten(1))


@mutant("hidden: rows put in order as if Keras had the channels last", {"hidden"}, "flatten order")
def _(twin):
    put(twin.hidden.weight, twin.hidden.weight.unflatten(1, (4, 3, 5)).movedim(3, 1).flatten(1))

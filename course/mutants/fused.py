"""Modules that do more than one layer's work: the network, its twin and its mutants.

Activations are inside the modules that hold the weights, a chain of layers is one block, and two heads are one module.
"""

import functools

from course.mutants.base import Mutant, Network, Probe, enter
from course.mutants.building import keras_input, keras_layer, ported
from course.mutants.tools import another_forward, exchange, halves, put
from course.small_models import draw, fill_scaled, table

import keras
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _keras_model(height: int, width: int) -> keras.Model:
    start = keras_input(height, width, 3)
    x = keras_layer("Conv2D", 6, 3, padding="same", use_bias=False, name="stem")(start)
    x = keras_layer("BatchNormalization", name="stem_norm")(x)
    x = keras_layer("ReLU", name="stem_relu")(x)
    y = keras_layer("DepthwiseConv2D", 3, padding="same", activation="relu", name="deep")(x)
    y = keras_layer("BatchNormalization", name="deep_norm")(y)
    y = keras_layer("LeakyReLU", negative_slope=0.1, name="deep_leaky")(y)
    x = keras_layer("Add", name="add")([x, y])
    x = keras_layer("GlobalAveragePooling2D", name="mean")(x)
    x = keras_layer("Dense", 5, activation="tanh", name="first")(x)
    x = keras_layer("Dense", 4, activation="sigmoid", name="second")(x)
    left = keras_layer("Dense", 3, name="left")(x)
    right = keras_layer("Dense", 2, activation="softmax", name="right")(x)
    return keras.Model(start, [left, right], name="fused")


class NormReLU(nn.BatchNorm2d):
    """A BatchNorm with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and rectify."""
        return F.relu(super().forward(x))


class NormLeaky(nn.BatchNorm2d):
    """A BatchNorm with another activation."""

    slope = 0.1

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, and make negative numbers smaller."""
        return F.leaky_relu(super().forward(x), self.slope)


class ConvReLU(nn.Conv2d):
    """A convolution with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and rectify."""
        return F.relu(super().forward(x))


class TanhLinear(nn.Linear):
    """A linear layer with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, and squash to numbers between -1 and 1."""
        return torch.tanh(super().forward(x))


class SigmoidLinear(nn.Linear):
    """A linear layer with another activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, and squash to numbers between 0 and 1."""
        return torch.sigmoid(super().forward(x))


class Fused(nn.Module):
    """The twin of the fused network: nearly all activations are inside modules, and both heads are one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.stem_norm = NormReLU(6, eps=1e-3, momentum=0.01)
        self.deep = ConvReLU(6, 6, 3, padding=1, groups=6)
        self.deep_norm = NormLeaky(6, eps=1e-3, momentum=0.01)
        self.first = TanhLinear(6, 5)
        self.second = SigmoidLinear(5, 4)
        self.heads = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, 3, h, w) to (batch, 3) and (batch, 2)."""
        x = self.stem_norm(self.stem(x))
        x = x + self.deep_norm(self.deep(x))
        left, right = self.heads(self.second(self.first(x.mean((2, 3))))).split([3, 2], 1)
        return left, right.softmax(1)


_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_LINEAR = {"kernel": "weight", "bias": "bias"}
_TENSORS = {
    "stem": ("stem", {"kernel": "weight"}),
    "stem_norm": ("stem_norm", _NORM),
    "deep": ("deep", _LINEAR),
    "deep_norm": ("deep_norm", _NORM),
    "first": ("first", _LINEAR),
    "second": ("second", _LINEAR),
    "left": ("heads", _LINEAR),
    "right": ("heads", _LINEAR),
}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    sizes = [(2, 8, 7), (3, 9, 6), (2, 11, 8)]
    probes = []
    for seed, (batch, height, width) in enumerate(sizes, 1):
        model = fill_scaled(_keras_model(height, width))
        probes.append(Probe(model, [draw(batch, height, width, 3, seed=seed)]))
    rows = [(f"{layer}/{a}", f"{module}.{b}") for layer, (module, names) in _TENSORS.items() for a, b in names.items()]
    counts = [("", f"{name}.num_batches_tracked") for name in ("stem_norm", "deep_norm")]
    return ported("fused", tuple(probes), Fused().double(), table(*rows, *counts))


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "fused")


@mutant("stem_norm: epsilon left at 1e-5", {"stem_norm"}, "epsilon")
def _(twin):
    twin.stem_norm.eps = 1e-5


@mutant("stem_norm: gamma and beta exchanged", {"stem_norm"}, "BatchNormalization vectors exchanged")
def _(twin):
    exchange(twin.stem_norm.weight, twin.stem_norm.bias)


@mutant("stem_norm: no activation inside", {"stem_norm", "stem_relu"}, "activation missing", in_forward=True)
def _(twin):
    another_forward(twin.stem_norm, nn.BatchNorm2d.forward)


@mutant("stem: also rectifies", {"stem"}, "another activation", in_forward=True)
def _(twin):
    another_forward(twin.stem, lambda self, x: F.relu(nn.Conv2d.forward(self, x)))


@mutant("deep: SiLU inside", {"deep"}, "another activation", in_forward=True)
def _(twin):
    another_forward(twin.deep, lambda self, x: F.silu(nn.Conv2d.forward(self, x)))


@mutant("deep: padded with copies of the border", {"deep"}, "padding value")
def _(twin):
    twin.deep.padding_mode, twin.deep._reversed_padding_repeated_twice = "replicate", [1, 1, 1, 1]


@mutant("deep: kernel flipped", {"deep"}, "kernel flipped")
def _(twin):
    put(twin.deep.weight, twin.deep.weight.flip(2, 3))


@mutant("deep_norm: slope left at 0.01", {"deep_leaky"}, "another slope")
def _(twin):
    twin.deep_norm.slope = 0.01


@mutant("deep_norm: in training mode", {"deep_norm"}, "train mode")
def _(twin):
    twin.deep_norm.train()


@mutant("first: bias missing", {"first"}, "bias missing")
def _(twin):
    put(twin.first.bias, 0.0)


@mutant("first: sigmoid inside", {"first"}, "another activation", in_forward=True)
def _(twin):
    another_forward(twin.first, lambda self, x: torch.sigmoid(nn.Linear.forward(self, x)))


@mutant("second: weights in float16", {"second"}, "precision")
def _(twin):
    halves(twin.second, "weight", "bias")


@mutant("right: softmax along the examples", {"right"}, "axis", in_forward=True)
def _(twin):
    def forward(self: Fused, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem_norm(self.stem(x))
        x = x + self.deep_norm(self.deep(x))
        left, right = self.heads(self.second(self.first(x.mean((2, 3))))).split([3, 2], 1)
        return left, right.softmax(0)

    another_forward(twin, forward)

"""Functions without weights on images: the network, its twin and its mutants."""

import functools
from collections.abc import Callable
from typing import Any

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, named, small_network
from course.mutants.tools import another_forward, another_method, like, put, reset
from parity.padding import Conv2dSame

import keras
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Keras keeps them in float32.
_MEAN, _VARIANCE = (0.125, 0.25, -0.375), (0.25, 0.5625, 2.25)
_RADIUS, _ALPHA, _BETA = 2, 0.3, 0.75


def _to_depth(x: Any) -> Any:
    """Return (batch, h, w, c) as (batch, h / 2, w / 2, 4 c), as TensorFlow's ``space_to_depth`` does."""
    height, width, channels = x.shape[1:]
    x = keras.ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
    x = keras.ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return keras.ops.reshape(x, (-1, height // 2, width // 2, 4 * channels))


def _local_response(x: Any) -> Any:
    """Normalize by neighbouring channels, as TensorFlow's ``local_response_normalization`` does."""
    channels = x.shape[-1]
    square = keras.ops.pad(keras.ops.square(x), ((0, 0), (0, 0), (0, 0), (_RADIUS, _RADIUS)))
    sums = sum(square[..., start : start + channels] for start in range(2 * _RADIUS + 1))
    return x / (1 + _ALPHA * sums) ** _BETA


def _keras_model(height: int, width: int) -> keras.Model:
    start = keras_input(height, width, 3)
    x = keras_layer("Rescaling", 0.5, offset=-1.0, name="rescale")(start)
    x = keras_layer("Normalization", mean=_MEAN, variance=_VARIANCE, name="standardize")(x)
    x = keras_layer("Conv2D", 6, 3, padding="same", name="stem")(x)
    x = keras_layer("ZeroPadding2D", 1, name="border")(x)
    x = keras_layer("MaxPooling2D", 3, strides=2, name="largest")(x)
    x = named(keras.ops.relu(keras_layer("Conv2D", 6, 1, name="mix")(x)), "relu")
    x = keras_layer("Conv2D", 6, 1, name="narrow")(x)
    x = keras_layer("Lambda", _to_depth, name="to_depth")(x)
    x = keras_layer("Conv2D", 5, 1, name="blocks")(x)
    # MobileNetV3 has its hard sigmoid like this.
    gate = named(keras.ops.relu6(named(x + 3.0, "plus_three")), "relu6")
    x = keras_layer("Multiply", name="gated")([x, named(gate * (1 / 6), "sixth")])
    x = keras_layer("LayerNormalization", name="layer_norm")(x)
    x = keras_layer("Lambda", _local_response, name="response")(x)
    x = keras_layer("UpSampling2D", 2, interpolation="bilinear", name="up")(x)
    x = keras_layer("SeparableConv2D", 7, 3, strides=2, padding="same", depth_multiplier=2, name="separable")(x)
    x = keras_layer("MaxPooling2D", 1, strides=2, name="every_second")(x)
    x = keras_layer("GlobalAveragePooling2D", name="pool")(x)
    x = keras_layer("UnitNormalization", name="unit")(x)
    return keras.Model(start, keras_layer("Dense", 3, name="head")(x), name="functions")


class Separable(nn.Module):
    """The two convolutions of a SeparableConv2D."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = Conv2dSame(5, 10, 3, stride=2, groups=5, bias=False)
        self.pointwise = nn.Conv2d(10, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 5, h, w) to (batch, 7, h / 2, w / 2)."""
        return self.pointwise(self.depthwise(x))


class ChannelNorm(nn.LayerNorm):
    """A LayerNorm over the channels of (batch, channels, h, w), as people write it."""

    def normal(self, x: Tensor) -> Tensor:
        """Return x less its mean, divided by its standard deviation."""
        mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(variance + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to the same shape."""
        return self.normal(x) * self.weight[:, None, None] + self.bias[:, None, None]


class Functions(nn.Module):
    """The twin: one method for each function, so that a mutant is another method."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.mix = nn.Conv2d(6, 6, 1)
        self.narrow = nn.Conv2d(6, 6, 1)
        self.blocks = nn.Conv2d(24, 5, 1)
        self.layer_norm = ChannelNorm(5, eps=1e-3)
        self.separable = Separable()
        self.head = nn.Linear(7, 3)

    def prepare(self, x: Tensor) -> Tensor:
        """Scale images."""
        mean, variance = (x.new_tensor(numbers)[:, None, None] for numbers in (_MEAN, _VARIANCE))
        return (0.5 * x - 1 - mean) / variance.sqrt()

    def largest(self, x: Tensor) -> Tensor:
        """Pool with a border of zeros."""
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)

    def relu(self, x: Tensor) -> Tensor:
        """Activate."""
        return torch.relu(x)

    def to_depth(self, x: Tensor) -> Tensor:
        """Make channels of blocks of 2 x 2 pixels."""
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # batch, channels, h, rows, w, columns
        return x.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)

    def gate(self, x: Tensor) -> Tensor:
        """Return what x is multiplied by."""
        return F.hardsigmoid(x)

    def response(self, x: Tensor) -> Tensor:
        """Normalize by neighbouring channels."""
        size = 2 * _RADIUS + 1
        return F.local_response_norm(x, size, _ALPHA * size, _BETA, 1.0)

    def up(self, x: Tensor) -> Tensor:
        """Double height and width."""
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    def every_second(self, x: Tensor) -> Tensor:
        """Take every second pixel."""
        return F.max_pool2d(x, 1, 2)

    def unit(self, x: Tensor) -> Tensor:
        """Give each example the length 1."""
        return F.normalize(x, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w), h and w multiples of 4, to (batch, 3)."""
        x = self.relu(self.mix(self.largest(self.stem(self.prepare(x)))))
        x = self.blocks(self.to_depth(self.narrow(x)))
        x = self.layer_norm(x * self.gate(x))
        x = self.separable(self.up(self.response(x)))
        return self.head(self.unit(self.every_second(x).mean((2, 3))))


_MODULES = {name: name for name in ("stem", "mix", "narrow", "blocks", "layer_norm", "separable", "head")}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(3, 16, 24), (2, 20, 16), (4, 24, 28)], Functions(), _MODULES)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "functions")


def prepared(twin: nn.Module, change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Let the twin scale images in another way; ``change`` takes them, the mean and the variance."""

    def prepare(self, x):
        mean, variance = (x.new_tensor(numbers)[:, None, None] for numbers in (_MEAN, _VARIANCE))
        return change(x, mean, variance)

    another_method(twin, "prepare", prepare)


@mutant("rescale: the offset forgotten", {"rescale"}, "input scaled", in_forward=True)
def _(twin):
    prepared(twin, lambda x, mean, variance: (0.5 * x - mean) / variance.sqrt())


@mutant("rescale: as for bytes, 1 / 127.5", {"rescale"}, "input scaled", in_forward=True)
def _(twin):
    prepared(twin, lambda x, mean, variance: (x / 127.5 - 1 - mean) / variance.sqrt())


@mutant("standardize: divided by the variance", {"standardize"}, "input scaled", in_forward=True)
def _(twin):
    prepared(twin, lambda x, mean, variance: (0.5 * x - 1 - mean) / variance)


@mutant("standardize: left out", {"standardize"}, "input scaled", in_forward=True)
def _(twin):
    prepared(twin, lambda x, mean, variance: 0.5 * x - 1)


@mutant("standardize: the numbers of blue for red", {"standardize"}, "channels reversed", in_forward=True)
def _(twin):
    prepared(twin, lambda x, mean, variance: (0.5 * x - 1 - mean.flip(0)) / variance.flip(0).sqrt())


@mutant("stem: never filled", {"stem"}, "weights hold other numbers")
def _(twin):
    reset(twin.stem)


@mutant("layer_norm: never filled", {"layer_norm"}, "weights hold other numbers")
def _(twin):
    put(twin.layer_norm.weight, 1.0)
    put(twin.layer_norm.bias, 0.0)


@mutant("largest: the border is minus infinity", {"border", "largest"}, "padding value", in_forward=True)
def _(twin):
    another_method(twin, "largest", lambda self, x: F.max_pool2d(x, 3, 2, padding=1))


@mutant("largest: no border before, one behind", {"border", "largest"}, "padding", in_forward=True)
def _(twin):
    another_method(twin, "largest", lambda self, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2))


@mutant("largest: the average", {"border", "largest"}, "another pooling", in_forward=True)
def _(twin):
    another_method(twin, "largest", lambda self, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2))


@mutant("relu: ELU", {"relu"}, "another activation", in_forward=True)
def _(twin):
    another_method(twin, "relu", lambda self, x: F.elu(x))


@mutant("relu: forgotten", {"relu"}, "activation missing", in_forward=True)
def _(twin):
    another_method(twin, "relu", lambda self, x: x)


@mutant("relu: at most 1", {"relu"}, "another activation", in_forward=True)
def _(twin):
    another_method(twin, "relu", lambda self, x: x.clamp(0, 1))


@mutant("to_depth: pixel_unshuffle", {"to_depth"}, "order of pixel blocks", in_forward=True)
def _(twin):
    another_method(twin, "to_depth", lambda self, x: F.pixel_unshuffle(x, 2))


@mutant("to_depth: columns before rows", {"to_depth"}, "order of pixel blocks", in_forward=True)
def _(twin):
    def to_depth(self, x):
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        return x.permute(0, 5, 3, 1, 2, 4).flatten(1, 3)

    another_method(twin, "to_depth", to_depth)


@mutant("gate: a sigmoid", {"sixth"}, "another activation", in_forward=True)
def _(twin):
    another_method(twin, "gate", lambda self, x: torch.sigmoid(x))


@mutant("gate: the hard sigmoid of Keras 2", {"sixth"}, "another activation", in_forward=True)
def _(twin):
    another_method(twin, "gate", lambda self, x: (0.2 * x + 0.5).clamp(0, 1))


@mutant("layer_norm: the variance is unbiased", {"layer_norm"}, "unbiased variance", in_forward=True)
def _(twin):
    def normal(self, x):
        return (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True) + self.eps)

    another_method(twin.layer_norm, "normal", normal)


@mutant("layer_norm: epsilon is added to the deviation", {"layer_norm"}, "epsilon", in_forward=True)
def _(twin):
    def normal(self, x):
        return (x - x.mean(1, keepdim=True)) / (x.std(1, correction=0, keepdim=True) + self.eps)

    another_method(twin.layer_norm, "normal", normal)


@mutant("layer_norm: by the mean square", {"layer_norm"}, "another normalization", in_forward=True)
def _(twin):
    another_method(twin.layer_norm, "normal", lambda self, x: x / (x.square().mean(1, keepdim=True) + self.eps).sqrt())


@mutant("layer_norm: along height and width", {"layer_norm"}, "axis", in_forward=True)
def _(twin):
    def normal(self, x):
        variance = x.var((2, 3), correction=0, keepdim=True)
        return (x - x.mean((2, 3), keepdim=True)) / torch.sqrt(variance + self.eps)

    another_method(twin.layer_norm, "normal", normal)


@mutant("response: radius and alpha copied", {"response"}, "local response normalization", in_forward=True)
def _(twin):
    another_method(twin, "response", lambda self, x: F.local_response_norm(x, _RADIUS, _ALPHA, _BETA, 1.0))


@mutant("response: alpha not times the size", {"response"}, "local response normalization", in_forward=True)
def _(twin):
    another_method(twin, "response", lambda self, x: F.local_response_norm(x, 2 * _RADIUS + 1, _ALPHA, _BETA, 1.0))


@mutant("up: the corners aligned", {"up"}, "interpolation", in_forward=True)
def _(twin):
    another_method(twin, "up", lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))


@mutant("up: nearest", {"up"}, "interpolation", in_forward=True)
def _(twin):
    another_method(twin, "up", lambda self, x: F.interpolate(x, scale_factor=2))


@mutant("up: bicubic", {"up"}, "interpolation", in_forward=True)
def _(twin):
    another_method(twin, "up", lambda self, x: F.interpolate(x, scale_factor=2, mode="bicubic"))


@mutant("separable: padding=1", {"separable"}, "padding")
def _(twin):
    twin.separable.depthwise = like(twin.separable.depthwise, nn.Conv2d, padding=1)


@mutant("separable: the second convolution strides", {"separable"}, "stride or dilation", in_forward=True)
def _(twin):
    convs = twin.separable
    convs.depthwise = like(convs.depthwise, nn.Conv2d, stride=1, padding=1)
    convs.pointwise = like(convs.pointwise, nn.Conv2d, stride=2)
    another_forward(convs, lambda self, x: self.pointwise(self.depthwise(x)))


@mutant("every_second: the average of four", {"every_second"}, "another pooling", in_forward=True)
def _(twin):
    another_method(twin, "every_second", lambda self, x: F.avg_pool2d(x, 2))


@mutant("unit: forgotten", {"unit"}, "normalization missing", in_forward=True)
def _(twin):
    another_method(twin, "unit", lambda self, x: x)


@mutant("unit: the norm of the whole batch", {"unit"}, "axis", in_forward=True)
def _(twin):
    another_method(twin, "unit", lambda self, x: x / torch.norm(x))


@mutant("unit: the sum of the sizes", {"unit"}, "another normalization", in_forward=True)
def _(twin):
    another_method(twin, "unit", lambda self, x: F.normalize(x, p=1, dim=1))

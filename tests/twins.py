"""Correct ports: DroNet, and eight small networks that have what DroNet lacks.

The small networks compute in float64, where rounding makes a difference of about 1e-15 and a mistake a much larger one.
Keras rounds some numbers to float32 all the same: the slope of LeakyReLU, a constant of GELU, all of UpSampling2D with
bilinear interpolation. This makes differences of up to 5e-7. Kernels are scaled so that every layer's output is of the
order of 1. Each network is looked at through several probes: Keras models of one architecture, with the same names and
weights, for inputs of different sizes.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from keras_model import resnet8
from parity import channels_last, load_keras_weights, read_mapping, transfer
from parity.axes import torch_input
from parity.padding import (
    AvgPool1dSame,
    AvgPool2dSame,
    Conv1dSame,
    Conv2dSame,
    ConvTranspose1dSame,
    ConvTranspose2dSame,
    MaxPool2dSame,
    pad_same,
)
from parity.scenes import scenes
from torch_model import ResNet8

import keras
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from networks import TENSORS, draw, fill, table
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent


class Probe(NamedTuple):
    """A Keras model for inputs of one size, and such inputs.

    Attributes:
        keras_model: The model.
        x: An array for each of its inputs, channels last.
    """

    keras_model: keras.Model
    x: list[np.ndarray]


class Network(NamedTuple):
    """A Keras model at several sizes, and its PyTorch twin.

    Attributes:
        name: What to call it.
        probes: The Keras model at several sizes, with one set of names and weights, and inputs.
        build: Returns a new correct twin, with its weights, in eval mode.
        mapping: Which Keras weight fills which PyTorch tensor.
        flatten: What ``transfer`` was told of a twin that flattens channels first.
        within: The largest difference between two outputs that rounding explains.
    """

    name: str
    probes: tuple[Probe, ...]
    build: Callable[[], nn.Module]
    mapping: pd.DataFrame
    flatten: dict[str, tuple[int, ...]] | None
    within: float


def run_keras(probe: Probe) -> list[np.ndarray]:
    """Return the outputs of a Keras model, channels last, as at inference."""
    y = probe.keras_model(probe.x if len(probe.x) > 1 else probe.x[0], training=False)
    return [output.numpy() for output in (y if isinstance(y, list | tuple) else [y])]


def run_twin(twin: nn.Module, x: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a twin for channels-last inputs, channels last, without gradients."""
    with torch.no_grad():
        y = twin(*map(torch_input, x))
    return [channels_last(output).numpy() for output in (y if isinstance(y, tuple) else (y,))]


def pair_up(keras_model: keras.Model, twin: nn.Module, modules: Mapping[str, str]) -> pd.DataFrame:
    """Return the mapping of a Keras model to its twin, given the module of each layer with weights.

    Args:
        keras_model: The Keras model.
        twin: Its twin. A SeparableConv is a module with the children ``depthwise`` and ``pointwise``.
        modules: The name of the twin's module for each name of a Keras layer, at whatever depth.
    """
    keys, rows = list(twin.state_dict()), []
    for variable in keras_model.weights:
        module, tensor = modules[variable.path.split("/")[-2]], TENSORS[variable.name]
        key = f"{module}.{tensor}"
        rows.append((variable.path, key if key in keys else f"{module}.pointwise.{tensor}"))
    filled = {key for _, key in rows}
    return table(*rows, *(("", key) for key in keys if key not in filled))


def fill_scaled(model: keras.Model, seed: int = 0) -> keras.Model:
    """Give a Keras model random weights of both signs under which its layers' outputs are of the order of 1."""
    fill(model, seed)
    for variable in model.weights:
        if variable.name.endswith("kernel"):
            fan_in = math.prod(variable.shape[:-2]) * (1 if variable.name == "depthwise_kernel" else variable.shape[-2])
            variable.assign(variable.numpy() / math.sqrt(max(fan_in, 1)))
    return model


def _layer(kind: str, *args: Any, **kwargs: Any) -> keras.Layer:
    return getattr(keras.layers, kind)(*args, **({"dtype": "float64"} | kwargs))


def _input(*shape: int, name: str = "input", dtype: str = "float64") -> keras.KerasTensor:
    return keras.Input(shape, name=name, dtype=dtype)


# --- A signal: one dimension ----------------------------------------------------------------------------------------


def _signal(length: int) -> keras.Model:
    start = _input(length, 3)
    x = _layer("Conv1D", 6, 5, strides=2, padding="same", name="first")(start)
    x = _layer("BatchNormalization", name="norm")(x)
    x = _layer("Activation", "relu", name="norm_relu")(x)
    x = _layer("Conv1D", 6, 3, dilation_rate=2, padding="causal", name="causal")(x)
    x = _layer("AveragePooling1D", 3, strides=2, padding="same", name="pool")(x)
    x = _layer("LayerNormalization", name="layer_norm")(x)
    x = _layer("Conv1D", 6, 3, padding="same", groups=2, activation="elu", name="grouped")(x)
    x = _layer("Conv1DTranspose", 4, 3, strides=2, padding="same", name="up")(x)
    x = _layer("LeakyReLU", name="leaky")(x)
    x = _layer("GlobalAveragePooling1D", name="average")(x)
    return keras.Model(start, _layer("Dense", 4, name="head")(x), name="signal")


class Signal(nn.Module):
    """The twin of the signal network, written with functions where it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv1dSame(3, 6, 5, stride=2)
        self.bn = nn.BatchNorm1d(6, eps=1e-3, momentum=0.01)
        self.causal = nn.Conv1d(6, 6, 3, dilation=2)
        self.pool = AvgPool1dSame(3, 2)
        self.ln = nn.LayerNorm(6, eps=1e-3)
        self.grouped = nn.Conv1d(6, 6, 3, padding=1, groups=2)
        self.up = ConvTranspose1dSame(6, 4, 3, stride=2)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, length) to (batch, 4)."""
        x = F.relu(self.bn(self.conv(x)))
        x = self.pool(self.causal(F.pad(x, (4, 0))))
        x = self.ln(x.transpose(1, 2)).transpose(1, 2)
        x = self.up(F.elu(self.grouped(x)))
        x = F.leaky_relu(x, 0.3)
        return self.head(x.mean(2))


_SIGNAL = {
    "first": "conv",
    "norm": "bn",
    "causal": "causal",
    "layer_norm": "ln",
    "grouped": "grouped",
    "up": "up",
    "head": "head",
}


# --- An encoder and a decoder ---------------------------------------------------------------------------------------


def _encoder(height: int, width: int) -> keras.Model:
    start = _input(height, width, 3)
    stem = _layer("Conv2D", 4, (3, 3), padding="same", activation="relu", name="stem")(start)
    x = _layer("Conv2D", 6, (3, 5), strides=2, padding="same", name="down")(stem)
    x = _layer("BatchNormalization", momentum=0.9, name="norm")(x)
    x = _layer("Activation", "gelu", name="gelu")(x)
    x = _layer("Conv2D", 6, 3, padding="same", dilation_rate=2, name="dilated")(x)
    x = _layer("DepthwiseConv2D", 3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = _layer("PReLU", shared_axes=[1, 2], name="slopes")(x)
    x = _layer("SeparableConv2D", 4, (3, 2), padding="same", depth_multiplier=2, name="separable")(x)
    x = _layer("Conv2DTranspose", 4, 3, strides=2, padding="same", activation="tanh", name="up")(x)
    x = _layer("Concatenate", name="skip")([stem, x])
    x = _layer("Conv2D", 5, 1, name="classes")(x)
    return keras.Model(start, _layer("Softmax", name="softmax")(x), name="encoder")


class Separable(nn.Module):
    """The two convolutions of a SeparableConv2D."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = Conv2dSame(12, 24, (3, 2), groups=12, bias=False)
        self.pointwise = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 12, h, w) to (batch, 4, h, w)."""
        return self.pointwise(self.depthwise(x))


class Encoder(nn.Module):
    """The twin of the encoder and decoder, written with modules."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=1)
        self.classes = nn.Conv2d(8, 5, 1)
        self.up = ConvTranspose2dSame(4, 4, 3, stride=2)
        self.tanh = nn.Tanh()
        self.separable = Separable()
        self.slopes = nn.PReLU(12)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.dilated = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.gelu = nn.GELU()
        self.bn = nn.BatchNorm2d(6, eps=1e-3, momentum=0.1)
        self.down = Conv2dSame(4, 6, (3, 5), stride=2)
        self.relu = nn.ReLU()
        self.stem = nn.Conv2d(3, 4, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w), h and w even, to (batch, 5, h, w)."""
        stem = self.relu(self.stem(x))
        x = self.dilated(self.gelu(self.bn(self.down(stem))))
        x = self.separable(self.slopes(self.depthwise(x)))
        x = self.tanh(self.up(x))
        return self.softmax(self.classes(torch.cat([stem, x], 1)))


_ENCODER = {name: name for name in ("stem", "down", "dilated", "depthwise", "slopes", "separable", "up", "classes")}
_ENCODER |= {"norm": "bn"}


# --- Dense after dense ----------------------------------------------------------------------------------------------


def _dense() -> keras.Model:
    start = _input(8)
    x = _layer("Dense", 8, activation="relu", name="dense_a")(start)
    x = _layer("Dense", 8, activation="tanh", name="dense_b")(x)
    x = _layer("Dense", 8, name="dense_c")(x)
    x = _layer("PReLU", name="slopes")(x)
    x = _layer("LayerNormalization", epsilon=1e-6, name="layer_norm")(x)
    x = _layer("Dropout", 0.4, name="dropout")(x)
    x = _layer("Dense", 8, use_bias=False, name="dense_d")(x)
    x = _layer("BatchNormalization", scale=False, name="norm")(x)
    x = _layer("Dense", 5, activation="softmax", name="head")(x)
    return keras.Model(start, x, name="dense")


def dense_twin() -> nn.Module:
    """Return the twin of the dense network, a Sequential."""
    return nn.Sequential(
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.PReLU(8),
        nn.LayerNorm(8, eps=1e-6),
        nn.Dropout(0.4),
        nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8, eps=1e-3, momentum=0.01),
        nn.Linear(8, 5),
        nn.Softmax(dim=-1),
    )


_DENSE = {
    "dense_a": "0",
    "dense_b": "2",
    "dense_c": "4",
    "slopes": "5",
    "layer_norm": "6",
    "dense_d": "8",
    "norm": "9",
    "head": "10",
}


# --- A residual network with explicit padding -----------------------------------------------------------------------


def _residual(height: int, width: int) -> keras.Model:
    start = _input(height, width, 3)
    x = _layer("ZeroPadding2D", ((1, 2), (2, 1)), name="stem_pad")(start)
    x = _layer("Conv2D", 8, (5, 3), strides=2, use_bias=False, name="stem")(x)
    x = _layer("BatchNormalization", epsilon=1.001e-5, name="stem_norm")(x)
    x = _layer("ZeroPadding2D", 1, name="pool_pad")(x)
    x = _layer("MaxPooling2D", 3, strides=2, name="pool")(x)
    y = _layer("GroupNormalization", 4, name="group_norm")(x)
    y = _layer("Activation", "relu", name="block_relu")(y)
    y = _layer("Conv2D", 8, 3, padding="same", name="block_a")(y)
    y = _layer("LeakyReLU", negative_slope=0.1, name="block_leaky")(y)
    y = _layer("Conv2D", 8, 3, padding="same", name="block_b")(y)
    x = _layer("Add", name="add")([x, y])
    x = _layer("Activation", "silu", name="last")(x)
    x = _layer("GlobalAveragePooling2D", name="average")(x)
    x = _layer("Dense", 6, name="logits")(x)
    return keras.Model(start, _layer("Activation", "softmax", name="classes")(x), name="residual")


class Residual(nn.Module):
    """The twin of the residual network: modules, padding by function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_pad = nn.ZeroPad2d((2, 1, 1, 2))
        self.stem = nn.Conv2d(3, 8, (5, 3), stride=2, bias=False)
        self.stem_bn = nn.BatchNorm2d(8, eps=1.001e-5, momentum=0.01)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.gn = nn.GroupNorm(4, 8, eps=1e-3)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.LeakyReLU(0.1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to (batch, 6)."""
        x = self.stem_bn(self.stem(self.stem_pad(x)))
        x = self.pool(F.pad(x, (1, 1, 1, 1)))
        y = self.conv2(self.act(self.conv1(torch.relu(self.gn(x)))))
        x = F.silu(x + y)
        return F.softmax(self.fc(x.mean((2, 3))), dim=1)


_RESIDUAL = {
    "stem": "stem",
    "stem_norm": "stem_bn",
    "group_norm": "gn",
    "block_a": "conv1",
    "block_b": "conv2",
    "logits": "fc",
}


# --- Pooling, and a flatten that permutes ---------------------------------------------------------------------------


def _pooling(height: int, width: int) -> keras.Model:
    start = _input(height, width, 2)
    x = _layer("MaxPooling2D", 3, strides=2, padding="same", name="largest")(start)
    x = _layer("Conv2D", 4, (2, 3), padding="same", name="conv")(x)
    x = _layer("AveragePooling2D", (3, 2), strides=2, padding="same", name="mean")(x)
    x = _layer("Flatten", name="flatten")(x)
    x = _layer("Dense", 7, activation="relu", name="hidden")(x)
    return keras.Model(start, _layer("Dense", 3, name="head")(x), name="pooling")


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


_POOLING = {name: name for name in ("conv", "hidden", "head")}


# --- A flatten channels first ---------------------------------------------------------------------------------------


def _flat(height: int, width: int) -> keras.Model:
    start = _input(height, width, 3)
    x = _layer("LeakyReLU", name="leaky")(start)
    x = _layer("Conv2D", 3, 3, strides=(2, 2), padding="same", name="conv")(x)
    x = _layer("Activation", "relu", name="relu")(x)
    x = _layer("MaxPooling2D", (2, 3), strides=(2, 3), padding="same", name="pool")(x)
    x = _layer("Flatten", name="flatten")(x)
    x = _layer("BatchNormalization", name="norm")(x)
    x = _layer("Dense", 4, name="hidden")(x)
    x = _layer("Activation", "sigmoid", name="sigmoid")(x)
    return keras.Model(start, _layer("Dense", 4, name="head")(x), name="flat")


class Flat(nn.Module):
    """The twin that flattens channels first: ``transfer`` has reordered what stands behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Linear(4, 4)
        self.fc1 = nn.Linear(2 * 2 * 3, 4)
        self.bn = nn.BatchNorm1d(2 * 2 * 3, eps=1e-3, momentum=0.01)
        self.conv = nn.Conv2d(3, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) with 5 <= h <= 8 and 7 <= w <= 12 to (batch, 4)."""
        x = pad_same(F.leaky_relu(x, 0.3), (3, 3), (2, 2), (1, 1))
        x = self.conv(x).relu()
        x = F.max_pool2d(pad_same(x, (2, 3), (2, 3), (1, 1), float("-inf")), (2, 3))
        return self.fc2(torch.sigmoid(self.fc1(self.bn(x.flatten(1)))))


_FLAT = {"conv": "conv", "norm": "bn", "hidden": "fc1", "head": "fc2"}
_FLAT_SHAPE = (2, 2, 3)


# --- Two inputs and two heads ---------------------------------------------------------------------------------------


def _heads(height: int, width: int, words: int) -> keras.Model:
    image, text = _input(height, width, 3, name="image"), _input(words, name="text", dtype="int32")
    x = _layer("Conv2D", 6, 3, padding="same", activation="relu", name="image_conv")(image)
    x = _layer("Conv2D", 6, 3, padding="same", name="image_conv_2")(x)
    x = _layer("GlobalAveragePooling2D", name="image_average")(x)
    y = _layer("Embedding", 11, 6, name="embedding")(text)
    y = _layer("Conv1D", 6, 3, padding="same", activation="tanh", name="text_conv")(y)
    y = _layer("GlobalAveragePooling1D", name="text_average")(y)
    both = _layer("Concatenate", name="both")([x, y])
    both = _layer("Dense", 8, name="shared")(both)
    both = _layer("ReLU", name="shared_relu")(both)
    left, right = _layer("Dense", 4, name="left")(both), _layer("Dense", 4, name="right")(both)
    return keras.Model([image, text], [left, right], name="heads")


class Heads(nn.Module):
    """The twin with two inputs and two heads of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.conv1d = nn.Conv1d(6, 6, 3, padding=1)
        self.image = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.right = nn.Linear(8, 4)
        self.shared = nn.Linear(12, 8)
        self.left = nn.Linear(8, 4)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, 3, h, w) and (batch, words) to two of (batch, 4)."""
        x = self.pool(self.image(image)).flatten(1)
        y = torch.tanh(self.conv1d(self.words(text).transpose(1, 2))).mean(-1)
        both = torch.relu(self.shared(torch.cat([x, y], -1)))
        return self.left(both), self.right(both)


_HEADS = {
    "image_conv": "image.0",
    "image_conv_2": "image.2",
    "embedding": "words",
    "text_conv": "conv1d",
    "shared": "shared",
    "left": "left",
    "right": "right",
}


# --- A model within a model, and a layer called twice ---------------------------------------------------------------


def _nested(height: int, width: int) -> keras.Model:
    start = _input(None, None, 4, name="inner_input")
    y = _layer("Conv2D", 4, (3, 1), padding="same", name="inner_conv")(start)
    y = _layer("BatchNormalization", name="inner_norm")(y)
    inner = keras.Model(start, _layer("Activation", "relu", name="inner_relu")(y), name="inner")
    start = _input(height, width, 4)
    twice = _layer("Conv2D", 4, 3, padding="same", name="twice")
    x = _layer("Activation", "swish", name="swish")(twice(start))
    x = twice(x)
    y = inner(_layer("ReLU", name="first_relu")(x))
    x = _layer("Subtract", name="minus")([y, x])
    x = _layer("UpSampling2D", 2, interpolation="bilinear", name="larger")(x)
    x = _layer("SpatialDropout2D", 0.25, name="dropout")(x)
    x = _layer("GlobalMaxPooling2D", name="largest")(x)
    return keras.Model(start, _layer("Dense", 3, name="head")(x), name="nested")


class Nested(nn.Module):
    """The twin with a submodule for the inner model and one convolution that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.BatchNorm2d(4, eps=1e-3, momentum=0.01), nn.ReLU()
        )
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.swish = nn.SiLU()
        self.relu = nn.ReLU()
        self.larger = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.dropout = nn.Dropout2d(0.25)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 4, h, w) to (batch, 3)."""
        x = self.twice(self.swish(self.twice(x)))
        x = self.dropout(self.larger(self.inner(self.relu(x)) - x))
        return self.head(x.amax((2, 3)))


_NESTED = {"twice": "twice", "inner_conv": "inner.0", "inner_norm": "inner.1", "head": "head"}


# --- All of them ----------------------------------------------------------------------------------------------------


def _dronet_probes() -> tuple[Probe, ...]:
    probes = []
    for number, (height, width) in enumerate(((200, 200), (224, 208), (207, 218))):
        model = resnet8(width, height, 1, 1)
        load_keras_weights(model, ROOT / "weights" / "dronet_scenes.h5")
        images, *_ = scenes(2, seed=number + 3, height=height, width=width)
        probes.append(Probe(model, [np.asarray(images, dtype=np.float32)]))
    return tuple(probes)


def _probe(model: keras.Model, batch: int, seed: int) -> Probe:
    x = []
    for number, start in enumerate(fill_scaled(model).inputs):
        values = draw(batch, *start.shape[1:], seed=(seed, number))
        x.append(values if start.dtype == "float64" else (np.abs(values) * 100 % 11).astype(start.dtype))
    return Probe(model, x)


def _network(
    probes: tuple[Probe, ...],
    twin: nn.Module,
    mapping: pd.DataFrame | Mapping[str, str],
    flatten: dict[str, tuple[int, ...]] | None = None,
    within: float = 2e-6,
    name: str | None = None,
) -> Network:
    model = probes[0].keras_model
    if not isinstance(mapping, pd.DataFrame):
        mapping = pair_up(model, twin, mapping)
    transfer(model, twin.eval(), mapping, flatten)
    return Network(name or model.name, probes, functools.partial(copy.deepcopy, twin), mapping, flatten, within)


def _small(
    make: Callable[..., keras.Model],
    sizes: list[tuple[int, ...]],
    twin: nn.Module,
    modules: Mapping[str, str],
    flatten: dict[str, tuple[int, ...]] | None = None,
) -> Network:
    probes = tuple(_probe(make(*size), batch, seed) for seed, (batch, *size) in enumerate(sizes, 1))
    return _network(probes, twin.double(), modules, flatten)


def _dronet() -> Network:
    return _network(_dronet_probes(), ResNet8(), read_mapping(ROOT / "keras_torch_mapping.csv"), None, 5e-6, "dronet")


_BEHIND_FLATTEN = {"norm": _FLAT_SHAPE, "hidden": _FLAT_SHAPE}
_MAKE: dict[str, Callable[[], Network]] = {
    "dronet": _dronet,
    "signal": lambda: _small(_signal, [(2, 17), (3, 16), (2, 14)], Signal(), _SIGNAL),
    "encoder": lambda: _small(_encoder, [(2, 10, 14), (3, 12, 8), (2, 6, 12)], Encoder(), _ENCODER),
    "dense": lambda: _small(_dense, [(3,), (2,)], dense_twin(), _DENSE),
    "residual": lambda: _small(_residual, [(2, 13, 11), (3, 12, 15), (2, 14, 10)], Residual(), _RESIDUAL),
    "pooling": lambda: _small(_pooling, [(2, 13, 9), (3, 14, 10), (2, 16, 11)], Pooling(), _POOLING),
    "flat": lambda: _small(_flat, [(2, 7, 9), (3, 8, 10), (2, 6, 12)], Flat(), _FLAT, _BEHIND_FLATTEN),
    "heads": lambda: _small(_heads, [(2, 5, 6, 5), (3, 6, 4, 8), (2, 4, 4, 6)], Heads(), _HEADS),
    "nested": lambda: _small(_nested, [(2, 5, 4), (3, 4, 7), (2, 4, 4)], Nested(), _NESTED),
}
NETWORKS = tuple(_MAKE)
"""The names of all networks."""


@functools.cache
def load_network(name: str) -> Network:
    """Return one of ``NETWORKS``; it is built once."""
    return _MAKE[name]()

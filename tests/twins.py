"""Correct ports: DroNet, eight small networks that have what DroNet lacks, and random ones.

The small networks compute in float64, where rounding makes a difference of about 1e-15 and a mistake a much larger one.
Keras rounds some numbers to float32 all the same: the slope of LeakyReLU, a constant of GELU, all of UpSampling2D with
bilinear interpolation. This makes differences of up to 5e-7. Kernels are scaled so that every layer's output is of the
order of 1. Each network is looked at through several probes: Keras models of one architecture, with the same names and
weights, for inputs of different sizes.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import parity.padding as padding  # the package settles the Keras backend before Keras is imported
from keras_model import resnet8
from parity.layouts import channels_last, torch_input
from parity.mapping import read_mapping
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
from parity.transfer import load_keras_weights, transfer
from torch_model import ResNet8

import keras
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from networks import TENSORS, draw, fill, table
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
PORTS = 200  # how many right ports are drawn at random


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


@functools.cache
def networks() -> dict[str, Network]:
    """Return DroNet and the small networks, by name."""

    def small(make, sizes, twin, modules, flatten=None):
        probes = tuple(_probe(make(*size), batch, seed) for seed, (batch, *size) in enumerate(sizes, 1))
        return _network(probes, twin.double(), modules, flatten)

    flatten = {"norm": _FLAT_SHAPE, "hidden": _FLAT_SHAPE}
    made = [
        _network(_dronet_probes(), ResNet8(), read_mapping(ROOT / "keras_torch_mapping.csv"), None, 5e-6, "dronet"),
        small(_signal, [(2, 17), (3, 16), (2, 14)], Signal(), _SIGNAL),
        small(_encoder, [(2, 10, 14), (3, 12, 8), (2, 6, 12)], Encoder(), _ENCODER),
        small(_dense, [(3,), (2,)], dense_twin(), _DENSE),
        small(_residual, [(2, 13, 11), (3, 12, 15), (2, 14, 10)], Residual(), _RESIDUAL),
        small(_pooling, [(2, 13, 9), (3, 14, 10), (2, 16, 11)], Pooling(), _POOLING),
        small(_flat, [(2, 7, 9), (3, 8, 10), (2, 6, 12)], Flat(), _FLAT, flatten),
        small(_heads, [(2, 5, 6, 5), (3, 6, 4, 8), (2, 4, 4, 6)], Heads(), _HEADS),
        small(_nested, [(2, 5, 4), (3, 4, 7), (2, 4, 4)], Nested(), _NESTED),
    ]
    return {network.name: network for network in made}


# --- Random ports ---------------------------------------------------------------------------------------------------


class Port(NamedTuple):
    """A random Keras model, inputs for it, and a correct twin.

    Attributes:
        keras_model: The model.
        x: An array for each of its inputs, channels last.
        twin: Its twin, filled by ``transfer``, in eval mode.
        mapping: Which Keras weight fills which PyTorch tensor.
        flatten: What ``transfer`` was told of a twin that flattens channels first.
        within: The largest difference that rounding explains, relative to the largest output if that exceeds 1.
    """

    keras_model: keras.Model
    x: list[np.ndarray]
    twin: nn.Module
    mapping: pd.DataFrame
    flatten: dict[str, tuple[int, ...]] | None
    within: float


class Step(NamedTuple):
    """One step of a random twin: a function of the twin and of values computed before."""

    run: Callable[..., Tensor]
    takes: tuple[int, ...]


class Steps(nn.Module):
    """A twin that runs a list of steps; its modules are registered in a random order."""

    def __init__(self, modules: dict[str, nn.Module], steps: list[Step], returns: tuple[int, ...]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.steps, self.returns = steps, returns

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the steps on the inputs; each step adds a value to those that later steps may take."""
        values = list(inputs)
        for step in self.steps:
            values.append(step.run(self, *(values[index] for index in step.takes)))
        outputs = tuple(values[index] for index in self.returns)
        return outputs if len(outputs) > 1 else outputs[0]


class Value(NamedTuple):
    """One value of a random port: the symbolic Keras tensor, and its place in the twin's list of values."""

    keras: keras.KerasTensor
    index: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the spatial sizes."""
        return self.keras.shape[1:-1]

    @property
    def channels(self) -> int:
        """Return the number of channels or features."""
        return self.keras.shape[-1]


_ACTIVATIONS = {
    "relu": (nn.ReLU, F.relu),
    "elu": (nn.ELU, F.elu),
    "tanh": (nn.Tanh, torch.tanh),
    "sigmoid": (nn.Sigmoid, torch.sigmoid),
    "silu": (nn.SiLU, F.silu),
    "gelu": (nn.GELU, F.gelu),
    "softplus": (nn.Softplus, F.softplus),
    "leaky_relu": (functools.partial(nn.LeakyReLU, 0.2), functools.partial(F.leaky_relu, negative_slope=0.2)),
    "softmax": (functools.partial(nn.Softmax, dim=1), functools.partial(F.softmax, dim=1)),
}
_MERGES = {"Add": lambda _, a, b: a + b, "Multiply": lambda _, a, b: a * b, "Subtract": lambda _, a, b: a - b}
_MERGES |= {"Maximum": lambda _, a, b: torch.maximum(a, b), "Average": lambda _, a, b: (a + b) / 2}
_MERGES_OF_THREE: list[tuple[str, Callable[..., Tensor]]] = [
    ("Add", lambda a, b, c: a + b + c),
    ("Add", lambda a, b, c: a + (b + c)),
    ("Add", lambda a, b, c: torch.stack([a, b, c]).sum(0)),
    ("Maximum", lambda a, b, c: torch.maximum(torch.maximum(a, b), c)),
    ("Average", lambda a, b, c: (a + b + c) / 3),
]


def _activations(channels: int) -> list[str]:
    return [name for name in _ACTIVATIONS if name != "softmax" or channels > 1]


class _Recipe:
    """Builds a Keras model and its twin side by side, one drawn layer after the other."""

    def __init__(self, draw_: Callable, dtype: str, rank: int, names: Iterable[int]) -> None:
        self.draw, self.dtype, self.rank = draw_, dtype, rank
        self.names = names  # an iterator, which recipes of nested models share
        self.modules: dict[str, nn.Module] = {}
        self.steps: list[Step] = []
        self.inputs: list[keras.KerasTensor] = []
        self.homes: dict[str, str] = {}  # the module of each Keras layer with weights
        self.flatten: dict[str, tuple[int, ...]] = {}

    # What all layers need.

    def one_of(self, *choices: Any) -> Any:
        """Draw one of some choices."""
        return self.draw(st.sampled_from(choices))

    def each_axis(self, largest: int) -> tuple[int, ...]:
        """Draw a number from 1 on for each spatial axis."""
        return tuple(self.draw(st.integers(1, largest)) for _ in range(self.rank))

    def input(self, *shape: int | None) -> Value:
        """Begin with an input."""
        assert not self.steps
        self.inputs.append(keras.Input(shape, dtype=self.dtype, name=f"input_{next(self.names)}"))
        return Value(self.inputs[-1], len(self.inputs) - 1)

    def layer(self, kind: str, *args: Any, **kwargs: Any) -> keras.Layer:
        """Make a Keras layer with a name that no other has."""
        name = f"{kind.lower()}_{next(self.names)}"
        # Initial values come to nothing here, and Keras would draw seeds for them.
        if kind == "Dropout":
            kwargs["seed"] = 0
        elif kind.startswith(("Depthwise", "Separable")):
            kwargs["depthwise_initializer"] = "zeros"
        if kind.startswith("Separable"):
            kwargs["pointwise_initializer"] = "zeros"
        elif kind.startswith(("Conv", "Dense")):
            kwargs["kernel_initializer"] = "zeros"
        return getattr(keras.layers, kind)(*args, dtype=self.dtype, name=name, **kwargs)

    def step(self, run: Callable, *takes: Value | int) -> int:
        """Add a step to the twin and return the index of its value."""
        self.steps.append(Step(run, tuple(v.index if isinstance(v, Value) else v for v in takes)))
        return len(self.inputs) + len(self.steps) - 1

    def module(self, module: nn.Module, layer: keras.Layer | None = None) -> Callable[..., Tensor]:
        """Register a module, the twin of a layer if that has weights, and return what runs it."""
        name = self.draw(st.sampled_from("abcxyz")) + str(next(self.names))
        self.modules[name] = module
        if layer is not None:
            self.homes[layer.name] = name
        return lambda twin, *x: getattr(twin, name)(*x)

    def torch(self, name: str) -> Any:
        """Return the class of ``torch.nn`` or ``parity.padding`` for this number of dimensions."""
        name = name.replace("?", str(self.rank))
        return getattr(padding if name.endswith("Same") else nn, name)

    # Layers.

    def activate(self, name: str, index: int) -> int:
        """Add an activation to the twin, by a module or by a function."""
        module, function = _ACTIVATIONS[name]
        run = self.module(module()) if self.draw(st.booleans()) else lambda _, x: function(x)
        return self.step(run, index)

    def activation(self, x: Value) -> Value:
        """Add an activation layer."""
        name = self.one_of(*_activations(x.channels))
        return Value(self.layer("Activation", name)(x.keras), self.activate(name, x.index))

    def leaky(self, x: Value) -> Value:
        """Add a LeakyReLU layer."""
        slope = self.one_of(0.3, 0.125)
        by_module = self.draw(st.booleans())
        run = self.module(nn.LeakyReLU(slope)) if by_module else lambda _, x: F.leaky_relu(x, slope)
        return Value(self.layer("LeakyReLU", slope)(x.keras), self.step(run, x))

    def convolved(self, layer: keras.Layer, x: Value, index: int, fused: str | None) -> Value:
        """Close a convolution or Dense layer: run the Keras layer, and add its own activation to the twin."""
        if fused == "relu" and self.draw(st.booleans()):
            index = self.step(self.module(nn.ReLU(inplace=True)), index)  # nobody else reads the convolution's output
        elif fused is not None:
            index = self.activate(fused, index)
        return Value(layer(x.keras), index)

    def fused(self, channels: int) -> str | None:
        """Draw the activation of a layer that may have one of its own."""
        return self.one_of(None, None, *_activations(channels))

    def convolution(self, x: Value, keep: bool = False, bare: bool = False) -> Value:
        """Add a convolution of any kind, or one that keeps the shape, or one that is bare of an activation."""
        groups = self.one_of(*(g for g in (1, 1, 2, 3) if x.channels % g == 0))
        filters = x.channels if keep else groups * self.draw(st.integers(1, 6 // groups))
        kernel, stride, dilation = self.each_axis(5), (1,) * self.rank, (1,) * self.rank
        if not keep and self.draw(st.booleans()):
            stride = self.each_axis(3)
        elif self.draw(st.booleans()):
            dilation = self.each_axis(2)
        fits = all(n > (k - 1) * d for n, k, d in zip(x.sizes, kernel, dilation, strict=True))
        ways = ["same", "same", *(["causal"] * (self.rank == 1)), *(["valid"] * (fits and not keep))]
        way, bias = self.one_of(*ways), self.draw(st.booleans())
        fused = None if bare else self.fused(filters)
        layer = self.layer(
            f"Conv{self.rank}D",
            filters,
            kernel,
            strides=stride,
            dilation_rate=dilation,
            padding=way,
            groups=groups,
            use_bias=bias,
            activation=fused,
        )
        settings = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias}
        index, kind = x.index, "Conv?d"
        if way == "causal":
            before = (kernel[0] - 1) * dilation[0]
            index = self.step(lambda _, x: F.pad(x, (before, 0)), index)
        elif way == "same":
            odd = all(k % 2 for k in kernel)
            style = self.one_of("class", "function", *(["torch"] if odd and max(stride) == 1 else []))
            if style == "class":
                kind = "Conv?dSame"
            elif style == "torch":
                settings["padding"] = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
            else:
                index = self.step(lambda _, x: pad_same(x, kernel, stride, dilation), index)
        module = self.torch(kind)(x.channels, filters, kernel, **settings)
        return self.convolved(layer, x, self.step(self.module(module, layer), index), fused)

    def depthwise(self, x: Value) -> Value:
        """Add a depthwise convolution."""
        kernel, stride, multiplier = (
            self.each_axis(4),
            (self.draw(st.integers(1, 2)),) * self.rank,
            self.one_of(1, 2, 3),
        )
        fused = self.fused(x.channels * multiplier)
        layer = self.layer(
            f"DepthwiseConv{self.rank}D",
            kernel,
            strides=stride,
            depth_multiplier=multiplier,
            padding="same",
            activation=fused,
        )
        module = self.torch("Conv?dSame")(x.channels, x.channels * multiplier, kernel, stride=stride, groups=x.channels)
        return self.convolved(layer, x, self.step(self.module(module, layer), x), fused)

    def separable(self, x: Value) -> Value:
        """Add a separable convolution."""
        kernel, multiplier, filters = self.each_axis(3), self.one_of(1, 2), self.draw(st.integers(1, 5))
        fused = self.fused(filters)
        layer = self.layer(
            f"SeparableConv{self.rank}D",
            filters,
            kernel,
            depth_multiplier=multiplier,
            padding="same",
            activation=fused,
        )
        inner = x.channels * multiplier
        module = nn.Sequential()
        module.add_module(
            "depthwise", self.torch("Conv?dSame")(x.channels, inner, kernel, groups=x.channels, bias=False)
        )
        module.add_module("pointwise", self.torch("Conv?d")(inner, filters, 1))
        return self.convolved(layer, x, self.step(self.module(module, layer), x), fused)

    def transposed(self, x: Value) -> Value:
        """Add a transposed convolution."""
        kernel, stride, filters = self.each_axis(4), self.each_axis(2), self.draw(st.integers(1, 5))
        fused = self.fused(filters)
        way = self.one_of("same", *(["valid"] if all(k >= s for k, s in zip(kernel, stride, strict=True)) else []))
        layer = self.layer(f"Conv{self.rank}DTranspose", filters, kernel, strides=stride, padding=way, activation=fused)
        kind = "ConvTranspose?dSame" if way == "same" else "ConvTranspose?d"
        module = self.torch(kind)(x.channels, filters, kernel, stride=stride)
        return self.convolved(layer, x, self.step(self.module(module, layer), x), fused)

    def pooling(self, x: Value) -> Value:
        """Add max or average pooling, by a module or by a function."""
        window = self.each_axis(3)
        stride = self.one_of(window, self.each_axis(3))
        fits = all(n >= k for n, k in zip(x.sizes, window, strict=True))
        kind, way = self.one_of("Max", "Average"), self.one_of("same", *(["valid"] if fits else []))
        layer = self.layer(f"{kind}Pooling{self.rank}D", window, strides=stride, padding=way)
        short = {"Max": "Max", "Average": "Avg"}[kind]
        if way == "same":
            run = self.module(self.torch(f"{short}Pool?dSame")(window, stride))
        elif self.draw(st.booleans()):
            run = self.module(self.torch(f"{short}Pool?d")(window, stride))
        else:
            function = getattr(F, f"{short.lower()}_pool{self.rank}d")
            run = lambda _, x: function(x, window, stride)  # noqa: E731
        return Value(layer(x.keras), self.step(run, x))

    def normalization(self, x: Value) -> Value:
        """Add a normalization."""
        epsilon, channels = self.one_of(1e-3, 1e-2, 1e-5), x.channels
        kind = self.one_of("Batch", "Batch", *(["Layer", "Group"] if channels > 1 else []))
        if kind == "Batch":
            momentum = self.one_of(0.99, 0.9)
            scale, center = self.draw(st.booleans()), self.draw(st.booleans())
            layer = self.layer("BatchNormalization", epsilon=epsilon, momentum=momentum, scale=scale, center=center)
            rank = self.rank if len(x.sizes) else 1
            module = getattr(nn, f"BatchNorm{rank}d")(channels, epsilon, 1 - momentum)
            return Value(layer(x.keras), self.step(self.module(module, layer), x))
        epsilon = max(epsilon, 1e-3)
        if kind == "Group":
            groups = self.one_of(*(g for g in (1, 2) if channels % (2 * g) == 0 or g == 1))
            layer = self.layer("GroupNormalization", groups, epsilon=epsilon)
            return Value(layer(x.keras), self.step(self.module(nn.GroupNorm(groups, channels, epsilon), layer), x))
        layer = self.layer("LayerNormalization", epsilon=epsilon)
        run = self.module(nn.LayerNorm(channels, epsilon), layer)
        return Value(layer(x.keras), self.step(lambda twin, x: run(twin, x.movedim(1, -1)).movedim(-1, 1), x))

    def slopes(self, x: Value) -> Value:
        """Add a PReLU with a slope for each channel."""
        layer = self.layer("PReLU", shared_axes=list(range(1, self.rank + 1)) if x.sizes else None)
        return Value(layer(x.keras), self.step(self.module(nn.PReLU(x.channels), layer), x))

    def dropout(self, x: Value) -> Value:
        """Add dropout, by a module or by a function."""
        run = self.module(nn.Dropout(0.4)) if self.draw(st.booleans()) else lambda t, x: F.dropout(x, 0.4, t.training)
        return Value(self.layer("Dropout", 0.4)(x.keras), self.step(run, x))

    def zero_padding(self, x: Value) -> Value:
        """Add zeros on each side, by a module or by a function."""
        amounts = [(self.draw(st.integers(0, 2)), self.draw(st.integers(0, 2))) for _ in range(self.rank)]
        layer = self.layer(f"ZeroPadding{self.rank}D", tuple(amounts) if self.rank > 1 else amounts[0])
        flat = tuple(itertools.chain.from_iterable(reversed(amounts)))
        run = self.module(self.torch("ZeroPad?d")(flat)) if self.draw(st.booleans()) else lambda _, x: F.pad(x, flat)
        return Value(layer(x.keras), self.step(run, x))

    # Pieces of several layers.

    def keeping(self, x: Value) -> Value:
        """Add a layer that keeps the shape."""
        make = self.one_of(
            functools.partial(self.convolution, keep=True),
            functools.partial(self.convolution, keep=True),
            self.normalization,
            self.activation,
            self.leaky,
            self.slopes,
            self.dropout,
        )
        return make(x)

    def rectified(self, x: Value) -> Value:
        """Add a convolution and a ReLU that overwrites its output, which nobody else reads."""
        x = self.convolution(x, bare=True)
        layer = self.one_of(self.layer("ReLU"), self.layer("Activation", "relu"))
        run = self.module(nn.ReLU(inplace=True)) if self.draw(st.booleans()) else lambda _, x: F.relu(x, inplace=True)
        return Value(layer(x.keras), self.step(run, x))

    def residual(self, x: Value) -> Value:
        """Add one or two layers beside a shortcut, or two branches beside one."""
        y = self.keeping(x)
        y = self.keeping(y) if self.draw(st.booleans()) else y
        if self.draw(st.integers(0, 3)) == 0:
            kind, way = self.one_of(*_MERGES_OF_THREE)
            several = self.draw(st.permutations([x, y, self.keeping(self.one_of(x, y))]))
            return Value(self.layer(kind)([v.keras for v in several]), self.step(lambda _, *v: way(*v), *several))
        kind = self.one_of(*_MERGES)
        a, b = (x, y) if self.draw(st.booleans()) else (y, x)
        return Value(self.layer(kind)([a.keras, b.keras]), self.step(_MERGES[kind], a, b))

    def branches(self, x: Value) -> Value:
        """Add two branches whose channels are joined."""
        a, b = self.convolution(x, keep=True), self.one_of(self.keeping, lambda x: x)(x)
        a, b = (a, b) if self.draw(st.booleans()) else (b, a)
        return Value(
            self.layer("Concatenate")([a.keras, b.keras]), self.step(lambda _, a, b: torch.cat([a, b], 1), a, b)
        )

    def shared(self, x: Value) -> Value:
        """Add a convolution that is called twice."""
        kernel = self.each_axis(3)
        layer = self.layer(f"Conv{self.rank}D", x.channels, kernel, padding="same")
        run = self.module(self.torch("Conv?dSame")(x.channels, x.channels, kernel), layer)
        x = Value(layer(x.keras), self.step(run, x))
        x = self.keeping(x)
        return Value(layer(x.keras), self.step(run, x))

    def nested(self, x: Value) -> Value:
        """Add a model of one to three layers."""
        inner = _Recipe(self.draw, self.dtype, self.rank, self.names)
        y = inner.input(*x.keras.shape[1:])
        for _ in range(self.draw(st.integers(1, 3))):
            y = inner.one_of(inner.keeping, inner.convolution, inner.residual)(y)
        model, twin = inner.close(f"model_{next(self.names)}", [y])
        run = self.module(twin)
        name = next(reversed(self.modules))
        self.homes |= {layer: f"{name}.{home}" for layer, home in inner.homes.items()}
        return Value(model(x.keras), self.step(run, x))

    def to_features(self, x: Value) -> Value:
        """Flatten in either way, or pool over all pixels."""
        way = self.one_of("average", "largest", "permuted", "channels first", "channels first")
        axes = tuple(range(2, 2 + self.rank))
        if way in ("average", "largest"):
            kind = f"Global{'Average' if way == 'average' else 'Max'}Pooling{self.rank}D"
            run = (lambda _, x: x.mean(axes)) if way == "average" else (lambda _, x: x.amax(axes))
            return Value(self.layer(kind)(x.keras), self.step(run, x))
        index = self.step(lambda _, x: x.movedim(1, -1), x) if way == "permuted" else x.index
        run = self.module(nn.Flatten()) if self.draw(st.booleans()) else lambda _, x: x.flatten(1)
        y = Value(self.layer("Flatten")(x.keras), self.step(run, index))
        if way == "channels first":
            shape = (*x.sizes, x.channels)
            start = len(self.homes)
            if self.draw(st.booleans()):
                y = self.one_of(self.activation_of_features, self.normalization_of_features, self.dropout)(y)
            y = self.dense(y)
            self.flatten |= dict.fromkeys(list(self.homes)[start:], shape)
        return y

    def activation_of_features(self, x: Value) -> Value:
        """Add an activation for which the order of features is of no account."""
        return Value(self.layer("Activation", "relu")(x.keras), self.activate("relu", x.index))

    def normalization_of_features(self, x: Value) -> Value:
        """Add a normalization with vectors that have a number for each feature."""
        layer = self.layer("BatchNormalization")
        return Value(layer(x.keras), self.step(self.module(nn.BatchNorm1d(x.channels, 1e-3, 0.01), layer), x))

    def dense(self, x: Value, units: int | None = None) -> Value:
        """Add a Dense layer, often a square one."""
        units = units or (x.channels if x.channels < 9 and self.draw(st.booleans()) else self.draw(st.integers(1, 8)))
        fused, bias = self.fused(units), self.draw(st.booleans())
        layer = self.layer("Dense", units, activation=fused, use_bias=bias)
        run = self.module(nn.Linear(x.channels, units, bias=bias), layer)
        return self.convolved(layer, x, self.step(run, x), fused)

    def trunk(self, x: Value) -> list[Callable[[Value], Value]]:
        """Return what may be added before the features: no more transposed convolutions where the image is large."""
        return [
            self.convolution,
            self.rectified,
            self.pooling,
            self.normalization,
            *([self.transposed] if math.prod(x.sizes) < 200 else []),
            self.depthwise,
            self.separable,
            self.activation,
            self.keeping,
            self.zero_padding,
            self.residual,
            self.branches,
            self.shared,
            self.nested,
        ]

    def heads(self, x: Value, vector: Value | None) -> list[Value]:
        """Add one or two Dense heads, at times after a hidden layer, and another input."""
        if self.draw(st.booleans()):
            x = self.dense(x)
            x = self.one_of(lambda x: x, self.slopes, self.normalization, self.dropout)(x)
        if vector is not None:
            join = self.step(lambda _, a, b: torch.cat([a, b], 1), x, vector)
            x = Value(self.layer("Concatenate")([x.keras, vector.keras]), join)
        units = self.draw(st.integers(1, 4))
        return [self.dense(x, units) for _ in range(self.draw(st.integers(1, 2)))]

    def close(self, name: str, outputs: list[Value]) -> tuple[keras.Model, Steps]:
        """Return the Keras model and its twin, not yet filled."""
        inputs = self.inputs if len(self.inputs) > 1 else self.inputs[0]
        results = [y.keras for y in outputs]
        model = keras.Model(inputs, results if len(results) > 1 else results[0], name=name)
        order = self.draw(st.permutations(list(self.modules)))
        modules = {name: self.modules[name] for name in order}
        return model, Steps(modules, self.steps, tuple(y.index for y in outputs))


@st.composite
def right_ports(draw_: Callable) -> Port:
    """Draw correct ports: random networks in one or two dimensions, of random sizes, each with its twin."""
    rank, dtype = draw_(st.integers(1, 2)), draw_(st.sampled_from(["float32", "float64"]))
    recipe = _Recipe(draw_, dtype, rank, itertools.count())
    with_heads = draw_(st.integers(0, 3)) > 0
    x = recipe.input(*(draw_(st.integers(3, 12)) for _ in range(rank)), draw_(st.integers(1, 5)))
    vector = recipe.input(draw_(st.integers(1, 5))) if with_heads and draw_(st.integers(0, 3)) == 0 else None
    for _ in range(draw_(st.integers(2, 7))):
        x = draw_(st.sampled_from(recipe.trunk(x)))(x)
    if with_heads:
        outputs = recipe.heads(recipe.to_features(x), vector)
    else:
        outputs = [x if recipe.homes else recipe.convolution(x)]  # a model without weights has nothing to move
    model, twin = recipe.close("drawn", outputs)
    seed = draw_(st.integers(0, 2**16))
    fill_scaled(model, seed)
    twin = twin.to(getattr(torch, dtype)).eval()
    mapping, flatten = pair_up(model, twin, recipe.homes), recipe.flatten or None
    transfer(model, twin, mapping, flatten)
    batch = draw_(st.integers(1, 3))
    inputs = [draw(batch, *start.shape[1:], seed=(seed, k)).astype(dtype) for k, start in enumerate(model.inputs)]
    return Port(model, inputs, twin, mapping, flatten, 1e-6 if dtype == "float64" else 1e-4)

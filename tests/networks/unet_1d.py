"""A U-Net over series, with a summary of the whole series in the middle."""

import functools

from course.mutants.tools import another_forward
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, convolution, dense, drawn, norm, randomized, under

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor, nn


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of three series."""
    start = keras.Input((30, 3), name="series")
    first = L.Conv1D(8, 5, padding="same", activation="relu", name="first")(start)
    x = L.MaxPooling1D(2, name="pool")(first)  # 15
    x = L.ZeroPadding1D((2, 0), name="pad")(x)
    x = L.Conv1D(12, 3, use_bias=False, name="middle")(x)
    x = L.BatchNormalization(name="middle_norm")(x)
    x = L.LeakyReLU(negative_slope=0.3, name="middle_act")(x)
    summary = L.Dense(4, activation="tanh", name="summary")(L.GlobalAveragePooling1D(name="average")(x))
    x = L.Concatenate(name="join_summary")([x, L.RepeatVector(15, name="repeat")(summary)])
    x = L.Conv1D(8, 3, padding="same", name="down")(x)
    x = L.UpSampling1D(2, name="up")(x)
    x = L.Conv1D(8, 3, activation="relu", name="after")(x)  # 28
    x = L.Concatenate(name="skip")([x, L.Cropping1D((2, 0), name="crop")(first)])
    x = L.Conv1D(2, 1, activation="sigmoid", name="out")(x)
    return randomized(keras.Model(start, x, name="unet_1d"), 12), [drawn(3, 30, 3, seed=1)]


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 5, padding="same")
        self.pool = nn.MaxPool1d(2)
        self.pad = nn.ConstantPad1d((2, 0), 0.0)
        self.middle = nn.Conv1d(8, 12, 3, bias=False)
        self.bn = nn.BatchNorm1d(12, eps=1e-3, momentum=0.01)
        self.act = nn.LeakyReLU(0.3)
        self.summary = nn.Linear(12, 4)
        self.down = nn.Conv1d(16, 8, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.after = nn.Conv1d(8, 8, 3)
        self.out = nn.Conv1d(16, 2, 1)

    def with_summary(self, x: Tensor) -> Tensor:
        """Map (b, 12, t) to (b, 16, t)."""
        summary = torch.tanh(self.summary(x.mean(2)))
        return torch.cat([x, summary.unsqueeze(2).repeat(1, 1, x.shape[2])], dim=1)

    def skip(self, x: Tensor, first: Tensor) -> Tensor:
        """Join (b, 8, t - 2) and (b, 8, t)."""
        return torch.cat([x, first[..., 2:]], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, t) to (b, 2, t - 2)."""
        first = F.relu(self.first(x))
        x = self.act(self.bn(self.middle(self.pad(self.pool(first)))))
        x = F.relu(self.after(self.up(self.down(self.with_summary(x)))))
        return torch.sigmoid(self.out(self.skip(x, first)))


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    get = model.get_layer
    tensors = {**under("bn", norm(get("middle_norm"))), **under("summary", dense(get("summary")))}
    for name in ("first", "middle", "down", "after", "out"):
        tensors |= under(name, convolution(get(name)))
    return tensors


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("up: linear", {"up"}, "interpolation")
def _(twin):
    twin.up = nn.Upsample(scale_factor=2, mode="linear")


@mistaken("pad: on both sides", {"pad"}, "padding")
def _(twin):
    twin.pad = nn.ConstantPad1d((1, 1), 0.0)


@mistaken("pad: with the last value", {"pad"}, "padding value")
def _(twin):
    twin.pad = nn.ReplicationPad1d((2, 0))


@mistaken("act: slope left at 0.01", {"middle_act"}, "another slope")
def _(twin):
    twin.act.negative_slope = 0.01


@mistaken("the skip is cropped at the other end", {"crop", "skip"}, "padding")
def _(twin):
    twin.__class__ = type("Twin", (Twin,), {"skip": lambda self, x, first: torch.cat([x, first[..., :-2]], 1)})


@mistaken("the skip comes first", {"skip", "out"}, "another skip")
def _(twin):
    twin.__class__ = type("Twin", (Twin,), {"skip": lambda self, x, first: torch.cat([first[..., 2:], x], 1)})


@mistaken("summary of the largest values", {"average"}, "another pooling")
def _(twin):
    def with_summary(self, x):
        summary = torch.tanh(self.summary(x.amax(2)))
        return torch.cat([x, summary.unsqueeze(2).repeat(1, 1, x.shape[2])], dim=1)

    twin.__class__ = type("Twin", (Twin,), {"with_summary": with_summary})


@mistaken("first: ReLU missing", {"first"}, "activation missing")
def _(twin):
    def forward(self, x):
        first = self.first(x)
        x = self.act(self.bn(self.middle(self.pad(self.pool(first)))))
        x = F.relu(self.after(self.up(self.down(self.with_summary(x)))))
        return torch.sigmoid(self.out(self.skip(x, first)))

    another_forward(twin, forward)


@mistaken("bn: epsilon left at 1e-5", {"middle_norm"}, "epsilon")
def _(twin):
    twin.bn.eps = 1e-5


NETWORK = Network(
    name="U-Net over series",
    keras_model=keras_model,
    twin=Twin,
    mistakes=tuple(MISTAKES),
    fill_by_hand=fill_by_hand,
    within_float64=1e-7,  # Keras rounds the slope of LeakyReLU to float32
)

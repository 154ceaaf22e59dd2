"""GRUs as Keras had them before TensorFlow 2, over series of different lengths that are padded in front."""

import functools

from course.mutants.tools import put
from parity.recurrent import GRU
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, dense, drawn, randomized, recurrent, under
from tests.networks.recurrent_mistakes import gates_in_order, transposed_recurrent

import keras
import numpy as np
import torch
from keras import layers as L
from torch import Tensor, nn

LENGTHS = (11, 6, 9)
OLD = {"reset_after": False, "recurrent_activation": "hard_sigmoid"}


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of three series; steps of zeros stand before the start of a series."""
    start = keras.Input((11, 4), name="series")
    x = L.Masking(name="masking")(start)
    x = L.GRU(8, return_sequences=True, name="forwards", **OLD)(x)
    x = L.GRU(6, go_backwards=True, name="backwards", **OLD)(x)
    trend = L.GRU(5, reset_after=False, name="trend")(L.AveragePooling1D(2, name="coarse")(start))
    x = L.Dense(3, name="level")(L.Concatenate(name="join")([x, trend]))
    series = drawn(3, 11, 4, seed=1)
    series[np.arange(11) < 11 - np.array(LENGTHS)[:, None]] = 0
    return randomized(keras.Model(start, x, name="old_gru"), 13), [series]


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = GRU(4, 8, recurrent_activation="hard_sigmoid")
        self.backwards = GRU(8, 6, recurrent_activation="hard_sigmoid")
        self.trend = GRU(4, 5)
        self.coarse = nn.AvgPool1d(2)
        self.fc = nn.Linear(11, 3)

    def mask(self, x: Tensor) -> Tensor | None:
        """Return True where there is a step, (b, t)."""
        return (x != 0).any(-1)

    def backwards_over(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the last output of the GRU that begins at the end."""
        return self.backwards(x.flip(1), mask=None if mask is None else mask.flip(1))[0][:, -1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, t, 4) to (b, 3)."""
        trend = self.trend(self.coarse(x.transpose(1, 2)).transpose(1, 2))[0][:, -1]
        mask = self.mask(x)
        x = self.backwards_over(self.forwards(x, mask=mask)[0], mask)
        return self.fc(torch.cat([x, trend], 1))


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin. Its GRUs have one bias each."""
    tensors = under("fc", dense(model.get_layer("level")))
    for name in ("forwards", "backwards", "trend"):
        tensors |= under(name, recurrent(model.get_layer(name)))
        del tensors[f"{name}.bias_hh_l0"]
    return tensors


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


def masked_by(twin: nn.Module, way) -> None:
    """Give the twin another mask."""
    twin.__class__ = type("Twin", (Twin,), {"mask": lambda self, x: way((x != 0).any(-1))})


@mistaken("trend: an nn.GRU, which resets after the product", {"trend"}, "reset_after")
def _(twin):
    gru = nn.GRU(4, 5, batch_first=True).to(twin.trend.weight_ih_l0.dtype)
    put(gru.bias_hh_l0, 0.0)
    gru.load_state_dict(twin.trend.state_dict(), strict=False)
    twin.trend = gru


@mistaken("forwards: reset_after=True", {"forwards"}, "reset_after")
def _(twin):
    twin.forwards.reset_after = True


@mistaken("backwards: sigmoid for hard_sigmoid", {"backwards"}, "recurrent activation")
def _(twin):
    twin.backwards.recurrent_activation = "sigmoid"


@mistaken("forwards: gates z, r, h as in Keras", {"forwards"}, "gate order")
def _(twin):
    gates_in_order(twin.forwards, (1, 0, 2))


@mistaken("mask forgotten", {"forwards"}, "mask ignored")
def _(twin):
    masked_by(twin, lambda mask: None)


@mistaken("mask is True for padding, as in PyTorch", {"forwards"}, "mask inverted")
def _(twin):
    masked_by(twin, lambda mask: ~mask)


@mistaken("backwards: reads forwards", {"backwards"}, "direction")
def _(twin):
    def forwards_over(self, x, mask):
        return self.backwards(x, mask=mask)[0][:, -1]

    twin.__class__ = type("Twin", (Twin,), {"backwards_over": forwards_over})


@mistaken("forwards: recurrent kernels not transposed", {"forwards"}, "kernel not transposed")
def _(twin):
    transposed_recurrent(twin.forwards)


NETWORK = Network("old GRU", keras_model, Twin, tuple(MISTAKES), fill_by_hand=fill_by_hand)

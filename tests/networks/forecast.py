"""A forecast as DeepAR makes it: two GRUs over a series and a category, then a mean and a deviation for each step."""

import functools

from course.mutants.tools import another_forward, exchange
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, dense, drawn, embedding, randomized, recurrent, under, words
from tests.networks.recurrent_mistakes import bias_twice, gates_in_order, no_batch_first, transposed_recurrent

import keras
import numpy as np
import torch
from keras import layers as L
from torch import Tensor, nn

STEPS = 14


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of four series, each with its category."""
    series, category = keras.Input((STEPS, 3), name="series"), keras.Input((), name="category", dtype="int32")
    kind = L.Embedding(6, 4, name="kinds")(category)
    x = L.Concatenate(name="join")([series, L.RepeatVector(STEPS, name="repeat")(kind)])
    x = L.GRU(12, return_sequences=True, name="gru_1")(x)
    x = L.GRU(12, return_sequences=True, name="gru_2")(x)
    mean = L.Dense(1, name="mean")(x)
    deviation = L.Dense(1, activation="softplus", name="deviation")(x)
    model = keras.Model([series, category], [mean, deviation], name="forecast")
    return randomized(model, 8), [drawn(4, STEPS, 3, seed=1), words(4, size=6, seed=2)]


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.gru = nn.GRU(7, 12, num_layers=2, batch_first=True)
        self.mu, self.presigma = nn.Linear(12, 1), nn.Linear(12, 1)
        self.sigma = nn.Softplus()

    def joined(self, series: Tensor, category: Tensor) -> Tensor:
        """Map (b, t, 3) and (b) to (b, t, 7)."""
        kind = self.embedding(category).unsqueeze(1).expand(-1, series.shape[1], -1)
        return torch.cat([series, kind], dim=2)

    def forward(self, series: Tensor, category: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, t, 3) and (b) to two times (b, t, 1)."""
        x, _ = self.gru(self.joined(series, category))
        return self.mu(x), self.sigma(self.presigma(x))


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    get = model.get_layer
    return {
        **under("embedding", embedding(get("kinds"))),
        **under("gru", recurrent(get("gru_1"), get("gru_2"))),
        **under("mu", dense(get("mean"))),
        **under("presigma", dense(get("deviation"))),
    }


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)
LEVELS = {"gru_1", "gru_2"}  # one module is the twin of both, and returns the second's output only


@mistaken("gru: gates z, r, h as in Keras", LEVELS, "gate order")
def _(twin):
    gates_in_order(twin.gru, (1, 0, 2))


@mistaken("gru: both biases in both places", LEVELS, "bias added twice")
def _(twin):
    bias_twice(twin.gru)


@mistaken("gru: batch_first forgotten", LEVELS, "time and batch exchanged")
def _(twin):
    no_batch_first(twin.gru)


@mistaken("gru: recurrent kernels not transposed", LEVELS, "kernel not transposed")
def _(twin):
    transposed_recurrent(twin.gru)


@mistaken("gru: recurrent kernels of the levels exchanged", LEVELS, "weights of another layer")
def _(twin):
    exchange(twin.gru.weight_hh_l0, twin.gru.weight_hh_l1)


@mistaken("the category before the series", {"join", "gru_1"}, "another skip")
def _(twin):
    def joined(self, series, category):
        return torch.cat([Twin.joined(self, series, category)[..., 3:], series], 2)

    twin.__class__ = type("Twin", (Twin,), {"joined": joined})


@mistaken("exp for softplus", {"deviation"}, "another activation")
def _(twin):
    def forward(self, series, category):
        x, _ = self.gru(self.joined(series, category))
        return self.mu(x), torch.exp(self.presigma(x))

    another_forward(twin, forward)


@mistaken("softplus missing", {"deviation"}, "activation missing")
def _(twin):
    twin.sigma = nn.Identity()


NAMES = {"mean": "mu"}  # both heads take the same
NETWORK = Network("forecast", keras_model, Twin, tuple(MISTAKES), names=NAMES, fill_by_hand=fill_by_hand)

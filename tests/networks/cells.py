"""A classifier of series: a simple RNN that runs backwards, then an RNN of two LSTM cells."""

import functools

from course.mutants.tools import put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, dense, drawn, randomized, recurrent, under
from tests.networks.recurrent_mistakes import bias_twice, gates_in_order, no_batch_first, transposed_recurrent

import keras
import numpy as np
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor, nn


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of three series."""
    start = keras.Input((9, 5), name="series")
    x = L.SimpleRNN(10, go_backwards=True, return_sequences=True, name="backwards")(start)
    x = L.RNN([L.LSTMCell(8, name="cell_1"), L.LSTMCell(8, name="cell_2")], name="cells")(x)
    x = L.Dense(4, activation="softmax", name="classes")(x)
    return randomized(keras.Model(start, x, name="cells"), 11), [drawn(3, 9, 5, seed=1)]


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 10, batch_first=True)
        self.lstm = nn.LSTM(10, 8, num_layers=2, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def backwards(self, x: Tensor) -> Tensor:
        """Read (b, t, 5) from the end; the last step comes first, as in Keras."""
        return self.rnn(x.flip(1))[0]

    def last(self, y: Tensor) -> Tensor:
        """Return the last step."""
        return y[:, -1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, t, 5) to (b, 4)."""
        return F.softmax(self.fc(self.last(self.lstm(self.backwards(x))[0])), dim=-1)


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    return {
        **under("rnn", recurrent(model.get_layer("backwards"))),
        **under("lstm", recurrent(*model.get_layer("cells").cell.cells)),
        **under("fc", dense(model.get_layer("classes"))),
    }


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


def read_by(twin: nn.Module, way) -> None:
    """Let the first RNN read in another way."""
    twin.__class__ = type("Twin", (Twin,), {"backwards": lambda self, x: way(self.rnn, x)})


@mistaken("rnn: the output put back into the order of time", {"backwards", "cells"}, "reversed output")
def _(twin):
    read_by(twin, lambda rnn, x: rnn(x.flip(1))[0].flip(1))


@mistaken("rnn: reads forwards", {"series", "backwards"}, "direction")
def _(twin):
    read_by(twin, lambda rnn, x: rnn(x)[0])


@mistaken("rnn: the bias in both places", {"backwards"}, "bias added twice")
def _(twin):
    bias_twice(twin.rnn)


@mistaken("rnn: recurrent kernel not transposed", {"backwards"}, "kernel not transposed")
def _(twin):
    transposed_recurrent(twin.rnn)


@mistaken("rnn: ReLU for tanh", {"backwards"}, "another activation")
def _(twin):
    twin.rnn.nonlinearity, twin.rnn.mode = "relu", "RNN_RELU"


@mistaken("lstm: gates i, o, f, c as in ONNX", {"cells"}, "gate order")
def _(twin):
    gates_in_order(twin.lstm, (0, 3, 1, 2))


@mistaken("lstm: batch_first forgotten", {"cells"}, "time and batch exchanged")
def _(twin):
    no_batch_first(twin.lstm)


@mistaken("fc: one weight left at 0", {"classes"}, "weights hold other numbers")
def _(twin):
    put(twin.fc.weight[0, 3], 0.0)


NETWORK = Network("cells", keras_model, Twin, tuple(MISTAKES), fill_by_hand=fill_by_hand)

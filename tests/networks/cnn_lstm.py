"""A reader of lines: convolutions, then two bidirectional LSTMs over the columns of the picture."""

import functools

from course.mutants.tools import another_forward
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, convolution, dense, drawn, norm, randomized, recurrent, under
from tests.networks.recurrent_mistakes import (
    bias_twice,
    exchanged_directions,
    gates_in_order,
    no_batch_first,
    transposed_recurrent,
)

import keras
import numpy as np
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor, nn


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of three pictures."""
    start = keras.Input((16, 40, 1), name="line")
    x = L.Conv2D(8, 3, padding="same", activation="relu", name="conv_1")(start)
    x = L.MaxPooling2D(2, name="pool_1")(x)
    x = L.Conv2D(12, 3, padding="same", use_bias=False, name="conv_2")(x)
    x = L.ReLU(name="relu_2")(L.BatchNormalization(name="norm_2")(x))
    x = L.MaxPooling2D((2, 1), name="pool_2")(x)  # (4, 20, 12)
    x = L.Permute((2, 1, 3), name="columns")(x)
    x = L.Reshape((20, 48), name="steps")(x)
    x = L.TimeDistributed(L.Dense(24, activation="relu", name="dense"), name="per_step")(x)
    x = L.Bidirectional(L.LSTM(10, return_sequences=True, name="lstm"), name="reader_1")(x)
    x = L.Bidirectional(L.LSTM(10, return_sequences=True, name="lstm"), name="reader_2")(x)
    x = L.TimeDistributed(L.Dense(11, activation="softmax", name="dense"), name="letters")(x)
    return randomized(keras.Model(start, x, name="cnn_lstm"), 4), [drawn(3, 16, 40, 1, seed=1)]


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12, eps=1e-3, momentum=0.01),
            nn.ReLU(),
            nn.MaxPool2d((2, 1)),
        )
        self.map_to_steps = nn.Linear(48, 24)
        self.rnn = nn.LSTM(24, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(20, 11)

    def steps(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, w, h c): a column for each step."""
        return x.permute(0, 3, 2, 1).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 1, h, w) to (b, w / 2, 11)."""
        x = F.relu(self.map_to_steps(self.steps(self.cnn(x))))
        return F.softmax(self.fc(self.rnn(x)[0]), dim=-1)


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    get = model.get_layer
    return {
        **under("cnn.0", convolution(get("conv_1"))),
        **under("cnn.3", convolution(get("conv_2"))),
        **under("cnn.4", norm(get("norm_2"))),
        **under("map_to_steps", dense(get("per_step").layer)),
        **under("rnn", recurrent(get("reader_1"), get("reader_2"))),
        **under("fc", dense(get("letters").layer)),
    }


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)
READERS = {"reader_1", "reader_2"}  # one module is the twin of both, and returns the second's output only


@mistaken("columns with the channels before the rows", {"columns", "steps", "per_step"}, "flatten order")
def _(twin):
    twin.__class__ = type("Twin", (Twin,), {"steps": lambda self, x: x.permute(0, 3, 1, 2).flatten(2)})


@mistaken("rnn: the bias in both places", READERS, "bias added twice")
def _(twin):
    bias_twice(twin.rnn)


@mistaken("rnn: gates i, o, f, c as in ONNX", READERS, "gate order")
def _(twin):
    gates_in_order(twin.rnn, (0, 3, 1, 2))


@mistaken("rnn: batch_first forgotten", READERS, "time and batch exchanged")
def _(twin):
    no_batch_first(twin.rnn)


@mistaken("rnn: recurrent kernels not transposed", READERS, "kernel not transposed")
def _(twin):
    transposed_recurrent(twin.rnn)


@mistaken("rnn: forward and backward weights exchanged", READERS, "direction")
def _(twin):
    exchanged_directions(twin.rnn)


@mistaken("norm: epsilon left at 1e-5", {"norm_2"}, "epsilon")
def _(twin):
    twin.cnn[4].eps = 1e-5


@mistaken("softmax over time", {"letters"}, "axis")
def _(twin):
    def forward(self, x):
        x = F.relu(self.map_to_steps(self.steps(self.cnn(x))))
        return F.softmax(self.fc(self.rnn(x)[0]), dim=1)

    another_forward(twin, forward)


NETWORK = Network("CNN and LSTM", keras_model, Twin, tuple(MISTAKES), fill_by_hand=fill_by_hand)

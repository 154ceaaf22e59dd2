"""A translation: an LSTM hands its states to a second one, which also looks back by additive attention."""

import functools

from course.mutants.tools import another_forward, put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, dense, embedding, randomized, recurrent, under, values, words
from tests.networks.recurrent_mistakes import bias_twice, gates_in_order, transposed_recurrent

import keras
import numpy as np
import torch
from keras import layers as L
from torch import Tensor, nn

WIDTH = 12


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of three pairs of sentences."""
    source = keras.Input((9,), name="source", dtype="int32")
    target = keras.Input((7,), name="target", dtype="int32")
    x = L.Embedding(30, 10, name="source_words")(source)
    read, h, c = L.LSTM(WIDTH, return_sequences=True, return_state=True, name="encoder")(x)
    y = L.Embedding(25, 8, name="target_words")(target)
    y = L.LSTM(WIDTH, return_sequences=True, name="decoder")(y, initial_state=[h, c])
    context = L.AdditiveAttention(name="attention")([y, read])
    y = L.Concatenate(name="join")([y, context])
    y = L.Dense(WIDTH, activation="tanh", name="mix")(y)
    y = L.Dense(25, activation="softmax", name="next_word")(y)
    model = randomized(keras.Model([source, target], y, name="translation"), 9)
    return model, [words(3, 9, size=30, seed=1), words(3, 7, size=25, seed=2)]


class AdditiveAttention(nn.Module):
    """Attention whose scores are v . tanh(query + key)."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.rand(WIDTH))

    def weights(self, scores: Tensor) -> Tensor:
        """Map scores (b, queries, keys) to weights."""
        return scores.softmax(dim=-1)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Map (b, t, width) and (b, s, width) to (b, t, width)."""
        scores = (self.v * torch.tanh(query.unsqueeze(2) + keys.unsqueeze(1))).sum(-1)
        return self.weights(scores) @ keys


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.source_embedding, self.target_embedding = nn.Embedding(30, 10), nn.Embedding(25, 8)
        self.encoder = nn.LSTM(10, WIDTH, batch_first=True)
        self.decoder = nn.LSTM(8, WIDTH, batch_first=True)
        self.attention = AdditiveAttention()
        self.mix = nn.Linear(2 * WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 25)

    def handed(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the states that the decoder begins with."""
        return h, c

    def joined(self, y: Tensor, context: Tensor) -> Tensor:
        """Join each step with what it has looked at."""
        return torch.cat([y, context], dim=-1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map (b, s) and (b, t) to (b, t, 25)."""
        read, states = self.encoder(self.source_embedding(source))
        y, _ = self.decoder(self.target_embedding(target), self.handed(*states))
        y = torch.tanh(self.mix(self.joined(y, self.attention(y, read))))
        return self.out(y).softmax(dim=-1)


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    get = model.get_layer
    return {
        **under("source_embedding", embedding(get("source_words"))),
        **under("target_embedding", embedding(get("target_words"))),
        **under("encoder", recurrent(get("encoder"))),
        **under("decoder", recurrent(get("decoder"))),
        "attention.v": values(get("attention"))["scale"],
        **under("mix", dense(get("mix"))),
        **under("out", dense(get("next_word"))),
    }


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


def hand_over(twin: nn.Module, way) -> None:
    """Let the decoder begin with other states."""
    twin.__class__ = type("Twin", (Twin,), {"handed": lambda self, h, c: way(h, c)})


@mistaken("encoder: gates i, c, f, o as in TensorFlow 1", {"encoder"}, "gate order")
def _(twin):
    gates_in_order(twin.encoder, (0, 2, 1, 3))


@mistaken("decoder: the bias in both places", {"decoder"}, "bias added twice")
def _(twin):
    bias_twice(twin.decoder)


@mistaken("encoder: recurrent kernels not transposed", {"encoder"}, "kernel not transposed")
def _(twin):
    transposed_recurrent(twin.encoder)


@mistaken("the states are not handed over", {"decoder"}, "another skip")
def _(twin):
    hand_over(twin, lambda h, c: None)


@mistaken("the two states exchanged", {"decoder"}, "another skip")
def _(twin):
    hand_over(twin, lambda h, c: (c, h))


@mistaken("attention: softmax over the queries", {"attention"}, "axis")
def _(twin):
    twin.attention.__class__ = type(
        "AdditiveAttention", (AdditiveAttention,), {"weights": lambda self, scores: scores.softmax(dim=1)}
    )


@mistaken("attention: v left at 1", {"attention"}, "weights hold other numbers")
def _(twin):
    put(twin.attention.v, 1.0)


@mistaken("what is looked at comes before the step", {"join", "mix"}, "another skip")
def _(twin):
    twin.__class__ = type("Twin", (Twin,), {"joined": lambda self, y, context: torch.cat([context, y], -1)})


@mistaken("mix: ReLU for tanh", {"mix"}, "another activation")
def _(twin):
    def forward(self, source, target):
        read, states = self.encoder(self.source_embedding(source))
        y, _ = self.decoder(self.target_embedding(target), states)
        return self.out(torch.relu(self.mix(self.joined(y, self.attention(y, read))))).softmax(dim=-1)

    another_forward(twin, forward)


NETWORK = Network(
    name="translation",
    keras_model=keras_model,
    twin=Twin,
    mistakes=tuple(MISTAKES),
    fill_by_hand=fill_by_hand,
)

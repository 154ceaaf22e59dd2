"""A tagger of texts of different lengths: a masked embedding, then two bidirectional GRUs."""

import functools

from course.mutants.tools import put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, dense, embedding, randomized, recurrent, under, words
from tests.networks.recurrent_mistakes import bias_twice, exchanged_directions, gates_in_order, transposed_recurrent

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

LENGTHS = (9, 12, 5, 1)


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of four texts; 0 stands behind the end of a text."""
    start = keras.Input((12,), name="text", dtype="int32")
    x = L.Embedding(30, 16, mask_zero=True, name="words")(start)
    x = L.Bidirectional(L.GRU(10, return_sequences=True, name="gru"), name="tagger")(x)
    tags = L.TimeDistributed(L.Dense(5, activation="softmax", name="dense"), name="tags")(x)
    topic = L.Bidirectional(L.GRU(6, name="gru"), name="summary")(x)
    topic = L.Dense(4, name="topic")(topic)
    text = words(4, 12, size=30, seed=1)
    text[np.arange(12) >= np.array(LENGTHS)[:, None]] = 0
    return randomized(keras.Model(start, [tags, topic], name="tagger"), 5), [text]


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16, padding_idx=0)
        self.gru = nn.GRU(16, 10, batch_first=True, bidirectional=True)
        self.summary = nn.GRU(20, 6, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(20, 5)
        self.topic = nn.Linear(12, 4)

    def packed(self, gru: nn.GRU, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of a GRU, 0 behind each text's end, and its states at each text's end."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, h = gru(packed)
        return pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], h

    def last(self, y: Tensor, h: Tensor) -> Tensor:
        """Return the last step of each direction."""
        return torch.cat([h[0], h[1]], 1)

    def tags(self, x: Tensor) -> Tensor:
        """Return the probabilities of the tags of each word."""
        return F.softmax(self.tag(x), dim=2)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, words) to (b, words, 5) and (b, 4)."""
        lengths = (text != 0).sum(1)
        x, _ = self.packed(self.gru, self.embedding(text), lengths)
        return self.tags(x), self.topic(self.last(*self.packed(self.summary, x, lengths)))


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    get = model.get_layer
    return {
        **under("embedding", embedding(get("words"))),
        **under("gru", recurrent(get("tagger"))),
        **under("summary", recurrent(get("summary"))),
        **under("tag", dense(get("tags").layer)),
        **under("topic", dense(get("topic"))),
    }


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("gru: gates z, r, h as in Keras", {"tagger"}, "gate order")
def _(twin):
    gates_in_order(twin.gru, (1, 0, 2))


@mistaken("summary: both biases in both places", {"summary"}, "bias added twice")
def _(twin):
    bias_twice(twin.summary)


@mistaken("not packed", {"tagger"}, "mask ignored")
def _(twin):
    twin.__class__ = type("Twin", (Twin,), {"packed": lambda self, gru, x, lengths: gru(x)})


@mistaken("summary: not packed", {"summary"}, "mask ignored")
def _(twin):
    def packed(self, gru, x, lengths):
        return Twin.packed(self, gru, x, lengths) if gru is self.gru else gru(x)

    twin.__class__ = type("Twin", (Twin,), {"packed": packed})


@mistaken("summary: the last output in place of the last states", {"summary", "topic"}, "another step")
def _(twin):
    twin.__class__ = type("Twin", (Twin,), {"last": lambda self, y, h: y[:, -1]})


@mistaken("summary: the states of the two directions exchanged", {"summary", "topic"}, "direction")
def _(twin):
    twin.__class__ = type("Twin", (Twin,), {"last": lambda self, y, h: torch.cat([h[1], h[0]], 1)})


@mistaken("gru: forward and backward weights exchanged", {"tagger"}, "direction")
def _(twin):
    exchanged_directions(twin.gru)


@mistaken("gru: recurrent kernels not transposed", {"tagger"}, "kernel not transposed")
def _(twin):
    transposed_recurrent(twin.gru)


@mistaken("softmax over the words", {"tags"}, "axis")
def _(twin):
    twin.__class__ = type("Twin", (Twin,), {"tags": lambda self, x: F.softmax(self.tag(x), dim=1)})


@mistaken("embedding: initial vectors left", {"words"}, "weights hold other numbers")
def _(twin):
    put(twin.embedding.weight, torch.from_numpy(np.random.default_rng(5).standard_normal((30, 16))))


NETWORK = Network("tagger", keras_model, Twin, tuple(MISTAKES), fill_by_hand=fill_by_hand)

"""Three inputs of different kinds, and three outputs in a dictionary."""

import functools

from course.mutants.tools import another_forward, before, exchange_tensors, put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, convolution, dense, drawn, embedding, norm, randomized, under, words

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor, nn


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of three pictures, texts and rows of numbers."""
    picture = keras.Input((9, 12, 3), name="picture")
    text = keras.Input((11,), name="text", dtype="int32")
    numbers = keras.Input((5,), name="numbers")
    a = L.Conv2D(6, 3, padding="same", activation="relu", name="picture_conv")(picture)
    a = L.GlobalAveragePooling2D(name="picture_pool")(a)
    b = L.Embedding(20, 8, name="words")(text)
    b = L.Conv1D(8, 3, activation="relu", name="text_conv")(b)
    b = L.GlobalMaxPooling1D(name="text_pool")(b)
    c = L.Dense(6, activation="tanh", name="numbers_dense")(numbers)
    c = L.BatchNormalization(name="numbers_norm")(c)
    x = L.Concatenate(name="join")([a, b, c])
    x = L.Dense(20, activation="relu", name="hidden")(x)
    x = L.Dropout(0.3, name="dropout")(x)
    outputs = {
        "kind": L.Dense(4, activation="softmax", name="kind")(x),
        "price": L.Dense(1, name="price")(x),
        "risk": L.Dense(1, activation="sigmoid", name="risk")(x),
    }
    model = randomized(keras.Model([picture, text, numbers], outputs, name="three_inputs"), 1)
    return model, [drawn(3, 9, 12, 3, seed=1), words(3, 11, size=20, seed=2), drawn(3, 5, seed=3)]


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Conv2d(3, 6, 3, padding=1)
        self.words = nn.Embedding(20, 8)
        self.text = nn.Conv1d(8, 8, 3)
        self.numbers = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.BatchNorm1d(6, eps=1e-3, momentum=0.01))
        self.hidden = nn.Linear(20, 20)
        self.dropout = nn.Dropout(0.3)
        self.fc_kind, self.fc_price, self.fc_risk = nn.Linear(20, 4), nn.Linear(20, 1), nn.Linear(20, 1)

    def read(self, picture: Tensor, text: Tensor, numbers: Tensor) -> list[Tensor]:
        """Return a vector for each input."""
        a = F.relu(self.picture(picture)).mean((2, 3))
        b = F.relu(self.text(self.words(text).transpose(1, 2))).amax(2)
        return [a, b, self.numbers(numbers)]

    def answer(self, x: Tensor) -> dict[str, Tensor]:
        """Return the three outputs."""
        x = self.dropout(F.relu(self.hidden(x)))
        return {
            "kind": F.softmax(self.fc_kind(x), dim=1),
            "price": self.fc_price(x),
            "risk": torch.sigmoid(self.fc_risk(x)),
        }

    def forward(self, picture: Tensor, text: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        """Map (b, 3, h, w), (b, words) and (b, 5) to three outputs."""
        return self.answer(torch.cat(self.read(picture, text, numbers), 1))


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    get = model.get_layer
    return {
        **under("picture", convolution(get("picture_conv"))),
        **under("words", embedding(get("words"))),
        **under("text", convolution(get("text_conv"))),
        **under("numbers.0", dense(get("numbers_dense"))),
        **under("numbers.2", norm(get("numbers_norm"))),
        **under("hidden", dense(get("hidden"))),
        **under("fc_kind", dense(get("kind"))),
        **under("fc_price", dense(get("price"))),
        **under("fc_risk", dense(get("risk"))),
    }


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("colours in the order blue, green, red", {"picture", "picture_conv"}, "channels reversed")
def _(twin):
    before(twin, lambda x: x.flip(1))


@mistaken("picture: without padding", {"picture_conv"}, "padding")
def _(twin):
    twin.picture.padding = (0, 0)


@mistaken("the largest pixel for the average", {"picture_pool"}, "another pooling")
def _(twin):
    def read(self, picture, text, numbers):
        b = F.relu(self.text(self.words(text).transpose(1, 2))).amax(2)
        return [F.relu(self.picture(picture)).amax((2, 3)), b, self.numbers(numbers)]

    twin.__class__ = type("Twin", (Twin,), {"read": read})


@mistaken("numbers: epsilon left at 1e-5", {"numbers_norm"}, "epsilon")
def _(twin):
    twin.numbers[2].eps = 1e-5


@mistaken("numbers: tanh missing", {"numbers_dense"}, "activation missing")
def _(twin):
    twin.numbers[1] = nn.Identity()


@mistaken("joined in another order", {"join", "hidden"}, "another skip")
def _(twin):
    def forward(self, *x):
        a, b, c = self.read(*x)
        return self.answer(torch.cat([b, a, c], 1))

    another_forward(twin, forward)


@mistaken("hidden: not transposed", {"hidden"}, "kernel not transposed")
def _(twin):
    put(twin.hidden.weight, twin.hidden.weight.T)


@mistaken("softmax over the batch", {"kind"}, "axis")
def _(twin):
    def answer(self, x):
        x = self.dropout(F.relu(self.hidden(x)))
        kind = F.softmax(self.fc_kind(x), dim=0)
        return {"kind": kind, "price": self.fc_price(x), "risk": torch.sigmoid(self.fc_risk(x))}

    twin.__class__ = type("Twin", (Twin,), {"answer": answer})


@mistaken("price and risk exchanged", {"price", "risk"}, "heads exchanged")
def _(twin):
    exchange_tensors(twin.fc_price, twin.fc_risk)


NETWORK = Network(
    name="three inputs",
    keras_model=keras_model,
    twin=Twin,
    mistakes=tuple(MISTAKES),
    names={"price": "fc_price", "risk": "fc_risk"},
    fill_by_hand=fill_by_hand,
)

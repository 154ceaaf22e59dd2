"""A siamese network: one nested tower for two pictures, whose vectors are compared."""

import functools

from course.mutants.tools import put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, convolution, dense, drawn, randomized, under

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor, nn


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and two batches of pictures."""
    x = start = keras.Input((12, 14, 3), name="picture")
    x = L.Conv2D(8, (3, 5), padding="same", activation="relu", name="conv")(x)
    x = L.MaxPooling2D(2, name="pool")(x)
    x = L.Conv2D(8, 3, activation="relu", name="conv_2")(x)
    x = L.GlobalAveragePooling2D(name="average")(x)
    x = L.Dense(12, name="embed")(x)
    tower = keras.Model(start, L.UnitNormalization(name="unit")(x), name="tower")
    first, second = keras.Input((12, 14, 3), name="first"), keras.Input((12, 14, 3), name="second")
    x = L.Subtract(name="difference")([tower(first), tower(second)])
    x = L.Dense(10, activation="relu", name="compare")(keras.ops.abs(x))
    model = keras.Model([first, second], L.Dense(1, activation="sigmoid", name="same")(x), name="siamese")
    sizes = np.array([0.3, 1, 3], "float32").reshape(3, 1, 1, 1)
    return randomized(model, 2), [drawn(3, 12, 14, 3, seed=1) * sizes, drawn(3, 12, 14, 3, seed=2)]


class Tower(nn.Module):
    """The vector of a picture, of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, (3, 5), padding=(1, 2)),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 12)."""
        return F.normalize(self.fc(self.features(x)), dim=1)


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()
        self.head = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 1), nn.Sigmoid())

    def compared(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare two vectors."""
        return torch.abs(a - b)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map two batches of pictures to (b, 1)."""
        return self.head(self.compared(self.tower(first), self.tower(second)))


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    tower = model.get_layer("tower")
    return {
        **under("tower.features.0", convolution(tower.get_layer("conv"))),
        **under("tower.features.3", convolution(tower.get_layer("conv_2"))),
        **under("tower.fc", dense(tower.get_layer("embed"))),
        **under("head.0", dense(model.get_layer("compare"))),
        **under("head.2", dense(model.get_layer("same"))),
    }


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


def compare_by(twin: nn.Module, way) -> None:
    """Compare the two vectors in another way."""
    twin.__class__ = type("Twin", (Twin,), {"compared": lambda self, a, b: way(a, b)})


@mistaken("conv_2: in and out of the kernel exchanged", {"conv_2"}, "kernel axes permuted")
def _(twin):
    put(twin.tower.features[3].weight, twin.tower.features[3].weight.transpose(0, 1))


@mistaken("padding of height and width exchanged", {"conv"}, "padding")
def _(twin):
    twin.tower.features[0].padding = (2, 1)


@mistaken("average for the largest", {"pool"}, "another pooling")
def _(twin):
    twin.tower.features[2] = nn.AvgPool2d(2)


@mistaken("normalized over the batch", {"unit"}, "axis")
def _(twin):
    def forward(self, x):
        return F.normalize(self.fc(self.features(x)), dim=0)

    twin.tower.__class__ = type("Tower", (Tower,), {"forward": forward})


@mistaken("not normalized", {"unit"}, "normalization missing")
def _(twin):
    def forward(self, x):
        return self.fc(self.features(x))

    twin.tower.__class__ = type("Tower", (Tower,), {"forward": forward})


@mistaken("the first picture twice", {"second", "conv"}, "another skip")
def _(twin):
    def forward(self, first, second):
        return self.head(self.compared(self.tower(first), self.tower(first * 1)))

    twin.__class__ = type("Twin", (Twin,), {"forward": forward})


@mistaken("the sum for the difference", {"difference"}, "another operation")
def _(twin):
    compare_by(twin, lambda a, b: torch.abs(a + b))


@mistaken("the square for the absolute value", {"absolute"}, "another operation")
def _(twin):
    compare_by(twin, lambda a, b: (a - b) ** 2)


@mistaken("sigmoid missing", {"same"}, "activation missing")
def _(twin):
    twin.head[3] = nn.Identity()


NETWORK = Network("siamese", keras_model, Twin, tuple(MISTAKES), fill_by_hand=fill_by_hand)

"""A model within a model, and a layer called twice: the network, its twin and its mutants."""

import functools
from collections.abc import Callable

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, small_network
from course.mutants.tools import another_forward, exchange, like, put, reset

import keras
import torch
from torch import Tensor, nn


def _keras_model(height: int, width: int) -> keras.Model:
    start = keras_input(None, None, 4, name="inner_input")
    y = keras_layer("Conv2D", 4, (3, 1), padding="same", name="inner_conv")(start)
    y = keras_layer("BatchNormalization", name="inner_norm")(y)
    inner = keras.Model(start, keras_layer("Activation", "relu", name="inner_relu")(y), name="inner")
    start = keras_input(height, width, 4)
    twice = keras_layer("Conv2D", 4, 3, padding="same", name="twice")
    x = keras_layer("Activation", "swish", name="swish")(twice(start))
    x = twice(x)
    y = inner(keras_layer("ReLU", name="first_relu")(x))
    x = keras_layer("Subtract", name="minus")([y, x])
    x = keras_layer("UpSampling2D", 2, interpolation="bilinear", name="larger")(x)
    x = keras_layer("SpatialDropout2D", 0.25, name="dropout")(x)
    x = keras_layer("GlobalMaxPooling2D", name="largest")(x)
    return keras.Model(start, keras_layer("Dense", 3, name="head")(x), name="nested")


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


_MODULES = {"twice": "twice", "inner_conv": "inner.0", "inner_norm": "inner.1", "head": "head"}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(2, 5, 4), (3, 4, 7), (2, 4, 4)], Nested(), _MODULES)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "nested")


@mutant("inner.0: kernel flipped", {"inner_conv"}, "kernel flipped")
def _(twin):
    put(twin.inner[0].weight, twin.inner[0].weight.flip(2))


@mutant("inner.1: eps left at 1e-5", {"inner_norm"}, "epsilon")
def _(twin):
    twin.inner[1].eps = 1e-5


@mutant("inner.1: in train mode", {"inner_norm"}, "train mode")
def _(twin):
    twin.inner[1].train()


@mutant("inner.1: scale and offset exchanged", {"inner_norm"}, "BatchNormalization vectors exchanged")
def _(twin):
    exchange(twin.inner[1].weight, twin.inner[1].bias)


@mutant("inner.2: ReLU missing", {"inner_relu"}, "activation missing")
def _(twin):
    twin.inner[2] = nn.Identity()


@mutant("relu: in place, before the skip reads", {"minus", "first_relu"}, "overwritten in place")
def _(twin):
    twin.relu.inplace = True


def nested_forward(
    twin: nn.Module, second: str = "twice", minus: Callable[[Tensor, Tensor], Tensor] = torch.sub
) -> None:
    """Give the nested twin another module for the second call, or another subtraction."""

    def forward(self, x):
        x = self.get_submodule(second)(self.swish(self.twice(x)))
        x = self.dropout(self.larger(minus(self.inner(self.relu(x)), x)))
        return self.head(x.amax((2, 3)))

    another_forward(twin, forward)


@mutant("twice: another module for the second call", {"twice"}, "weights hold other numbers", in_forward=True)
def _(twin):
    twin.again = like(twin.twice, nn.Conv2d, padding=1)
    reset(twin.again)
    nested_forward(twin, second="again")


@mutant("twice: height and width exchanged", {"twice"}, "height and width exchanged")
def _(twin):
    put(twin.twice.weight, twin.twice.weight.transpose(2, 3))


@mutant("swish: ReLU", {"swish"}, "another activation")
def _(twin):
    twin.swish = nn.ReLU()


@mutant("subtracted the other way round", {"minus"}, "another skip", in_forward=True)
def _(twin):
    nested_forward(twin, minus=lambda y, x: x - y)


@mutant("dropout: rate 0.5", {"dropout"}, "dropout rate", shows="training")
def _(twin):
    twin.dropout.p = 0.5


@mutant("inner.1: momentum left at 0.1", {"inner_norm"}, "momentum", shows="training")
def _(twin):
    twin.inner[1].momentum = 0.1

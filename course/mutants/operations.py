"""What is made of several tensors, and of their axes: the network, its twin and its mutants."""

import functools
from typing import Any

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, named, small_network
from course.mutants.tools import another_method

import keras
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HEIGHT, _WIDTH = 4, 6


def _keras_model(height: int, width: int) -> keras.Model:
    starts = [keras_input(height, width, 3, name=name) for name in ("left", "right")]
    shared = keras_layer("Conv2D", 5, 3, padding="same", name="shared")
    a, b = (shared(start) for start in starts)
    apart = keras_layer("Lambda", lambda both: keras.ops.abs(both[0] - both[1]), name="apart")([a, b])
    product = keras_layer("Multiply", name="product")([a, b])
    added = keras_layer("Add", name="sum")([a, keras_layer("Conv2D", 5, 1, name="residual")(b)])
    added = keras_layer("ReLU", name="relu")(added)
    x = keras_layer("Concatenate", name="features")([apart, product, added])
    x = _responses(keras_layer("Conv2D", 6, 1, name="mix")(x))
    x = keras_layer("Conv2D", 4, 3, padding="same", activation="tanh", name="last")(x)
    x = keras_layer("Resizing", _HEIGHT, _WIDTH, name="resize")(x)
    steps = keras_layer("Permute", (2, 1, 3), name="time_first")(keras_layer("Conv2D", 3, 1, name="narrow")(x))
    steps = keras_layer("Reshape", (_WIDTH, 3 * _HEIGHT), name="steps")(steps)
    steps = keras_layer("Dense", 5, name="per_step")(steps)
    flat = keras_layer("Flatten", name="flat")(x)
    x = keras_layer("Concatenate", name="joined")([named(steps[:, 0], "first"), flat])
    return keras.Model(starts, keras_layer("Dense", 3, name="head")(x), name="operations")


def _responses(x: Any) -> Any:
    """Normalize globally, as ConvNeXt V2 does, in single operations."""
    energy = named(keras.ops.sum(named(x * x, "squared"), axis=(1, 2), keepdims=True), "energy")
    size = named(keras.ops.sqrt(energy), "size")
    mean = named(keras.ops.mean(size, axis=-1, keepdims=True), "mean_size")
    scaled = named(x * named(size / named(mean + 0.1, "safe"), "relative"), "scaled")
    return named(scaled + x, "with_x")


class Operations(nn.Module):
    """The twin: one method for each operation, so that a mutant is another method."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 5, 3, padding=1)
        self.residual = nn.Conv2d(5, 5, 1)
        self.mix = nn.Conv2d(15, 6, 1)
        self.last = nn.Conv2d(6, 4, 3, padding=1)
        self.narrow = nn.Conv2d(4, 3, 1)
        self.per_step = nn.Linear(3 * _HEIGHT, 5)
        self.head = nn.Linear(5 + 4 * _HEIGHT * _WIDTH, 3)

    def apart(self, a: Tensor, b: Tensor) -> Tensor:
        """Return how far two tensors are apart."""
        return (a - b).abs()

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply two tensors."""
        return a * b

    def added(self, a: Tensor, b: Tensor) -> Tensor:
        """Add two tensors, and activate the sum."""
        return F.relu(a + b)

    def responses(self, x: Tensor) -> Tensor:
        """Normalize globally."""
        size = torch.norm(x, dim=(2, 3), keepdim=True)
        return x * (size / (size.mean(1, keepdim=True) + 0.1)) + x

    def resize(self, x: Tensor) -> Tensor:
        """Give images another size."""
        return F.interpolate(x, size=(_HEIGHT, _WIDTH), mode="bilinear")

    def steps(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to (batch, w, h * channels)."""
        return x.permute(0, 3, 2, 1).flatten(2)

    def first(self, x: Tensor) -> Tensor:
        """Take one of the steps (batch, steps, features)."""
        return x[:, 0]

    def flat(self, x: Tensor) -> Tensor:
        """Flatten images."""
        return x.permute(0, 2, 3, 1).flatten(1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Map two of (batch, 3, h, w) to (batch, 3)."""
        a, b = self.shared(a), self.shared(b)
        x = torch.cat([self.apart(a, b), self.product(a, b), self.added(a, self.residual(b))], 1)
        x = self.resize(torch.tanh(self.last(self.responses(self.mix(x)))))
        first = self.first(self.per_step(self.steps(self.narrow(x))))
        return self.head(torch.cat([first, self.flat(x)], 1))


_MODULES = {name: name for name in ("shared", "residual", "mix", "last", "narrow", "per_step", "head")}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(3, 7, 9), (2, 10, 8), (4, 6, 11)], Operations(), _MODULES)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "operations")


@mutant("apart: squared", {"apart"}, "another operation", in_forward=True)
def _(twin):
    another_method(twin, "apart", lambda self, a, b: (a - b) ** 2)


@mutant("apart: with its sign", {"apart"}, "another operation", in_forward=True)
def _(twin):
    another_method(twin, "apart", lambda self, a, b: a - b)


@mutant("product: the sum", {"product"}, "another operation", in_forward=True)
def _(twin):
    another_method(twin, "product", lambda self, a, b: a + b)


@mutant("product: the larger of both", {"product"}, "another operation", in_forward=True)
def _(twin):
    another_method(twin, "product", lambda self, a, b: torch.maximum(a, b))


@mutant("product: divided by the number of channels", {"product", "features"}, "input scaled", in_forward=True)
def _(twin):
    another_method(twin, "product", lambda self, a, b: a * b / a.shape[1])


@mutant("product: half of it", {"product"}, "output scaled", in_forward=True)
def _(twin):
    another_method(twin, "product", lambda self, a, b: torch.addcmul(torch.zeros_like(a), a, b, value=0.5))


@mutant("sum: the mean", {"sum", "relu"}, "another operation", in_forward=True)
def _(twin):
    another_method(twin, "added", lambda self, a, b: F.relu(torch.stack([a, b]).mean(0)))


@mutant("sum: a tenth of the residual", {"sum"}, "input scaled", in_forward=True)
def _(twin):
    another_method(twin, "added", lambda self, a, b: F.relu(a + 0.1 * b))


@mutant("sum: the first alone", {"sum", "relu"}, "another skip", in_forward=True)
def _(twin):
    another_method(twin, "added", lambda self, a, b: F.relu(a))


@mutant("relu: of both before they are added", {"relu", "sum"}, "activation in another place", in_forward=True)
def _(twin):
    another_method(twin, "added", lambda self, a, b: F.relu(a) + F.relu(b))


@mutant("relu: of the residual before it is added", {"relu", "sum"}, "activation in another place", in_forward=True)
def _(twin):
    another_method(twin, "added", lambda self, a, b: a + F.relu(b))


@mutant("relu: ELU", {"relu"}, "another activation", in_forward=True)
def _(twin):
    another_method(twin, "added", lambda self, a, b: F.elu(a + b))


@mutant("energy: along width and channels", {"energy"}, "axis", in_forward=True)
def _(twin):
    def responses(self, x):
        size = torch.norm(x, dim=(1, 3), keepdim=True)
        return x * (size / (size.mean(1, keepdim=True) + 0.1)) + x

    another_method(twin, "responses", responses)


@mutant("energy: the norm of the whole batch", {"energy"}, "axis", in_forward=True)
def _(twin):
    def responses(self, x):
        size = x.square().sum((0, 2, 3), keepdim=True).sqrt()
        return x * (size / (size.mean(1, keepdim=True) + 0.1)) + x

    another_method(twin, "responses", responses)


@mutant("size: without the root", {"size"}, "another operation", in_forward=True)
def _(twin):
    def responses(self, x):
        size = x.square().sum((2, 3), keepdim=True)
        return x * (size / (size.mean(1, keepdim=True) + 0.1)) + x

    another_method(twin, "responses", responses)


@mutant("mean_size: of the batch", {"mean_size"}, "axis", in_forward=True)
def _(twin):
    def responses(self, x):
        size = torch.norm(x, dim=(2, 3), keepdim=True)
        return x * (size / (size.mean(0, keepdim=True) + 0.1)) + x

    another_method(twin, "responses", responses)


@mutant("mean_size: the largest", {"mean_size"}, "another operation", in_forward=True)
def _(twin):
    def responses(self, x):
        size = torch.norm(x, dim=(2, 3), keepdim=True)
        return x * (size / (size.amax(1, keepdim=True) + 0.1)) + x

    another_method(twin, "responses", responses)


@mutant("resize: nearest", {"resize"}, "interpolation", in_forward=True)
def _(twin):
    another_method(twin, "resize", lambda self, x: F.interpolate(x, size=(_HEIGHT, _WIDTH)))


@mutant("resize: with antialias", {"resize"}, "interpolation", in_forward=True)
def _(twin):
    another_method(
        twin, "resize", lambda self, x: F.interpolate(x, size=(_HEIGHT, _WIDTH), mode="bilinear", antialias=True)
    )


@mutant("resize: the corners aligned", {"resize"}, "interpolation", in_forward=True)
def _(twin):
    another_method(
        twin, "resize", lambda self, x: F.interpolate(x, size=(_HEIGHT, _WIDTH), mode="bilinear", align_corners=True)
    )


@mutant("steps: channels before rows", {"time_first", "steps"}, "flatten order", in_forward=True)
def _(twin):
    another_method(twin, "steps", lambda self, x: x.permute(0, 3, 1, 2).flatten(2))


@mutant("first: the last step", {"first"}, "another operation", in_forward=True)
def _(twin):
    another_method(twin, "first", lambda self, x: x[:, -1])


@mutant("first: the mean of the steps", {"first"}, "another operation", in_forward=True)
def _(twin):
    another_method(twin, "first", lambda self, x: x.mean(1))


@mutant("flat: channels first", {"flat", "joined"}, "flatten order", in_forward=True)
def _(twin):
    another_method(twin, "flat", lambda self, x: x.flatten(1))


@mutant("flat: by columns", {"flat", "joined"}, "flatten order", in_forward=True)
def _(twin):
    another_method(twin, "flat", lambda self, x: x.permute(0, 3, 2, 1).flatten(1))

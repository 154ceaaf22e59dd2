"""Two inputs and two heads: the network, its twin and its mutants."""

import functools
from collections.abc import Callable

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, small_network
from course.mutants.tools import another_forward, before, exchange_tensors, halves, put, reset

import keras
import torch
from torch import Tensor, nn


def _keras_model(height: int, width: int, words: int) -> keras.Model:
    image, text = keras_input(height, width, 3, name="image"), keras_input(words, name="text", dtype="int32")
    x = keras_layer("Conv2D", 6, 3, padding="same", activation="relu", name="image_conv")(image)
    x = keras_layer("Conv2D", 6, 3, padding="same", name="image_conv_2")(x)
    x = keras_layer("GlobalAveragePooling2D", name="image_average")(x)
    y = keras_layer("Embedding", 11, 6, name="embedding")(text)
    y = keras_layer("Conv1D", 6, 3, padding="same", activation="tanh", name="text_conv")(y)
    y = keras_layer("GlobalAveragePooling1D", name="text_average")(y)
    both = keras_layer("Concatenate", name="both")([x, y])
    both = keras_layer("Dense", 8, name="shared")(both)
    both = keras_layer("ReLU", name="shared_relu")(both)
    left, right = keras_layer("Dense", 4, name="left")(both), keras_layer("Dense", 4, name="right")(both)
    return keras.Model([image, text], [left, right], name="heads")


class Heads(nn.Module):
    """The twin with two inputs and two heads of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.conv1d = nn.Conv1d(6, 6, 3, padding=1)
        self.image = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.right = nn.Linear(8, 4)
        self.shared = nn.Linear(12, 8)
        self.left = nn.Linear(8, 4)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, 3, h, w) and (batch, words) to two of (batch, 4)."""
        x = self.pool(self.image(image)).flatten(1)
        y = torch.tanh(self.conv1d(self.words(text).transpose(1, 2))).mean(-1)
        both = torch.relu(self.shared(torch.cat([x, y], -1)))
        return self.left(both), self.right(both)


_MODULES = {
    "image_conv": "image.0",
    "image_conv_2": "image.2",
    "embedding": "words",
    "text_conv": "conv1d",
    "shared": "shared",
    "left": "left",
    "right": "right",
}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(2, 5, 6, 5), (3, 6, 4, 8), (2, 4, 4, 6)], Heads(), _MODULES)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "heads")


def heads_forward(
    twin: nn.Module,
    join: Callable[[Tensor, Tensor], list[Tensor]] = lambda x, y: [x, y],
    heads: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda left, right: (left, right),
) -> None:
    """Give the twin with two heads another way to join its branches, or to return its outputs."""

    def forward(self, image, text):
        x = self.pool(self.image(image)).flatten(1)
        y = torch.tanh(self.conv1d(self.words(text).transpose(1, 2))).mean(-1)
        both = torch.relu(self.shared(torch.cat(join(x, y), -1)))
        return heads(self.left(both), self.right(both))

    another_forward(twin, forward)


@mutant("weights of the heads exchanged", {"left", "right"}, "heads exchanged")
def _(twin):
    exchange_tensors(twin.left, twin.right)


@mutant("outputs in the other order", {"left", "right"}, "heads exchanged", in_forward=True)
def _(twin):
    heads_forward(twin, heads=lambda left, right: (right, left))


@mutant("right: the weights of left", {"right"}, "weights of another layer")
def _(twin):
    twin.right.load_state_dict(twin.left.state_dict())


@mutant("branches joined in the other order", {"both", "shared"}, "another skip", in_forward=True)
def _(twin):
    heads_forward(twin, join=lambda x, y: [y, x])


@mutant("height and width of the image exchanged", {"image", "image_conv"}, "input axes exchanged", in_forward=True)
def _(twin):
    before(twin, lambda x: x.transpose(2, 3))


@mutant("image: colours in the order blue, green, red", {"image", "image_conv"}, "channels reversed", in_forward=True)
def _(twin):
    before(twin, lambda x: x.flip(1))


@mutant("image.0: ReLU missing", {"image_conv"}, "activation missing")
def _(twin):
    twin.image[1] = nn.Identity()


@mutant("image.2: initial values left", {"image_conv_2"}, "weights hold other numbers")
def _(twin):
    reset(twin.image[2])


@mutant("conv1d: in and out of the kernel exchanged", {"text_conv"}, "kernel axes permuted")
def _(twin):
    put(twin.conv1d.weight, twin.conv1d.weight.transpose(0, 1))


@mutant("words: vectors through float16", {"embedding"}, "precision")
def _(twin):
    halves(twin.words, "weight")


@mutant("words: initial vectors left", {"embedding"}, "weights hold other numbers")
def _(twin):
    reset(twin.words)


@mutant("shared: bias missing", {"shared"}, "bias missing")
def _(twin):
    put(twin.shared.bias, 0.0)


@mutant(
    "the image branch is detached",
    {"both", "image_average", "image_conv_2"},
    "gradient stopped",
    shows="training",
    in_forward=True,
)
def _(twin):
    heads_forward(twin, join=lambda x, y: [x.detach(), y])


@mutant("words: frozen", {"embedding"}, "layer frozen", shows="training")
def _(twin):
    twin.words.requires_grad_(False)

"""An encoder and a decoder: the network, its twin and its mutants."""

import functools
from collections.abc import Callable

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, small_network
from course.mutants.tools import another_forward, before, halves, like, put
from parity.padding import Conv2dSame, ConvTranspose2dSame

import keras
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _keras_model(height: int, width: int) -> keras.Model:
    start = keras_input(height, width, 3)
    stem = keras_layer("Conv2D", 4, (3, 3), padding="same", activation="relu", name="stem")(start)
    x = keras_layer("Conv2D", 6, (3, 5), strides=2, padding="same", name="down")(stem)
    x = keras_layer("BatchNormalization", momentum=0.9, name="norm")(x)
    x = keras_layer("Activation", "gelu", name="gelu")(x)
    x = keras_layer("Conv2D", 6, 3, padding="same", dilation_rate=2, name="dilated")(x)
    x = keras_layer("DepthwiseConv2D", 3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = keras_layer("PReLU", shared_axes=[1, 2], name="slopes")(x)
    x = keras_layer("SeparableConv2D", 4, (3, 2), padding="same", depth_multiplier=2, name="separable")(x)
    x = keras_layer("Conv2DTranspose", 4, 3, strides=2, padding="same", activation="tanh", name="up")(x)
    x = keras_layer("Concatenate", name="skip")([stem, x])
    x = keras_layer("Conv2D", 5, 1, name="classes")(x)
    return keras.Model(start, keras_layer("Softmax", name="softmax")(x), name="encoder")


class Separable(nn.Module):
    """The two convolutions of a SeparableConv2D."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = Conv2dSame(12, 24, (3, 2), groups=12, bias=False)
        self.pointwise = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 12, h, w) to (batch, 4, h, w)."""
        return self.pointwise(self.depthwise(x))


class Encoder(nn.Module):
    """The twin of the encoder and decoder, written with modules."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=1)
        self.classes = nn.Conv2d(8, 5, 1)
        self.up = ConvTranspose2dSame(4, 4, 3, stride=2)
        self.tanh = nn.Tanh()
        self.separable = Separable()
        self.slopes = nn.PReLU(12)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.dilated = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.gelu = nn.GELU()
        self.bn = nn.BatchNorm2d(6, eps=1e-3, momentum=0.1)
        self.down = Conv2dSame(4, 6, (3, 5), stride=2)
        self.relu = nn.ReLU()
        self.stem = nn.Conv2d(3, 4, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w), h and w even, to (batch, 5, h, w)."""
        stem = self.relu(self.stem(x))
        x = self.dilated(self.gelu(self.bn(self.down(stem))))
        x = self.separable(self.slopes(self.depthwise(x)))
        x = self.tanh(self.up(x))
        return self.softmax(self.classes(torch.cat([stem, x], 1)))


_MODULES = {name: name for name in ("stem", "down", "dilated", "depthwise", "slopes", "separable", "up", "classes")}
_MODULES |= {"norm": "bn"}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(2, 10, 14), (3, 12, 8), (2, 6, 12)], Encoder(), _MODULES)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "encoder")


def encoder_forward(
    twin: nn.Module,
    skip: Callable[[Tensor, Tensor], Tensor] = lambda before, after: after,
    join: Callable[[Tensor, Tensor], list[Tensor]] = lambda stem, x: [stem, x],
) -> None:
    """Give the encoder's twin another skip: which tensor it takes, and in which order they are joined."""

    def forward(self, x):
        linear = self.stem(x)
        stem = self.relu(linear)
        x = self.separable(self.slopes(self.depthwise(self.dilated(self.gelu(self.bn(self.down(stem)))))))
        x = self.tanh(self.up(x))
        return self.softmax(self.classes(torch.cat(join(skip(linear, stem), x), 1)))

    another_forward(twin, forward)


@mutant("colours in the order blue, green, red", {"input", "stem"}, "channels reversed", in_forward=True)
def _(twin):
    before(twin, lambda x: x.flip(1))


@mutant("stem: reads blue, green, red", {"stem"}, "channels reversed")
def _(twin):
    put(twin.stem.weight, twin.stem.weight.flip(1))


@mutant("stem: reflects at the edges", {"stem"}, "padding value")
def _(twin):
    twin.stem = like(twin.stem, nn.Conv2d, padding=1, padding_mode="reflect")


@mutant("stem: kernel through float16", {"stem"}, "precision")
def _(twin):
    halves(twin.stem, "weight")


@mutant("down: padding=(1, 2)", {"down"}, "padding")
def _(twin):
    twin.down = like(twin.down, nn.Conv2d, padding=(1, 2))


@mutant("gelu: by tanh", {"gelu"}, "another activation")
def _(twin):
    twin.gelu = nn.GELU("tanh")


@mutant("dilated: dilation forgotten", {"dilated"}, "stride or dilation")
def _(twin):
    twin.dilated = like(twin.dilated, nn.Conv2d, dilation=1, padding=1)


@mutant("depthwise: multiplier before channel", {"depthwise"}, "depthwise order")
def _(twin):
    weight = twin.depthwise.weight
    put(weight, weight.unflatten(0, (6, 2)).transpose(0, 1).flatten(0, 1))


@mutant("depthwise: height and width exchanged", {"depthwise"}, "height and width exchanged")
def _(twin):
    put(twin.depthwise.weight, twin.depthwise.weight.transpose(2, 3))


@mutant("separable: multiplier before channel", {"separable"}, "depthwise order")
def _(twin):
    weight = twin.separable.depthwise.weight
    put(weight, weight.unflatten(0, (12, 2)).transpose(0, 1).flatten(0, 1))


@mutant("slopes: left at 0.25", {"slopes"}, "weights hold other numbers")
def _(twin):
    put(twin.slopes.weight, 0.25)


@mutant("slopes: one LeakyReLU for all channels", {"slopes"}, "another slope", in_forward=True)
def _(twin):
    slope = twin.slopes.weight.mean().item()
    another_forward(twin.slopes, lambda self, x: F.leaky_relu(x, slope))


@mutant("up: in and out of the kernel exchanged", {"up"}, "kernel axes permuted")
def _(twin):
    put(twin.up.weight, twin.up.weight.transpose(0, 1))


@mutant("up: padding=1, output_padding=1", {"up"}, "padding")
def _(twin):
    twin.up = like(twin.up, nn.ConvTranspose2d, padding=1, output_padding=1)


@mutant("up: sigmoid in place of tanh", {"up"}, "another activation")
def _(twin):
    twin.tanh = nn.Sigmoid()


@mutant("skip: joined in the other order", {"skip", "classes"}, "another skip", in_forward=True)
def _(twin):
    encoder_forward(twin, join=lambda stem, x: [x, stem])


@mutant("skip: taken before the ReLU", {"skip", "classes"}, "another skip", in_forward=True)
def _(twin):
    encoder_forward(twin, skip=lambda before, after: before)


@mutant("softmax: over the width", {"softmax"}, "axis")
def _(twin):
    twin.softmax.dim = -1


@mutant("bn: momentum 0.01, the complement of Keras's default", {"norm"}, "momentum", shows="training")
def _(twin):
    twin.bn.momentum = 0.01


@mutant("skip: detached", {"skip", "stem"}, "gradient stopped", shows="training", in_forward=True)
def _(twin):
    encoder_forward(twin, skip=lambda before, after: after.detach())

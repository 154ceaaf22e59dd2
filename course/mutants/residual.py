"""A residual network with explicit padding: the network, its twin and its mutants."""

import functools
from collections.abc import Callable

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, small_network
from course.mutants.tools import another_forward, exchange_tensors, halves, put

import keras
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _keras_model(height: int, width: int) -> keras.Model:
    start = keras_input(height, width, 3)
    x = keras_layer("ZeroPadding2D", ((1, 2), (2, 1)), name="stem_pad")(start)
    x = keras_layer("Conv2D", 8, (5, 3), strides=2, use_bias=False, name="stem")(x)
    x = keras_layer("BatchNormalization", epsilon=1.001e-5, name="stem_norm")(x)
    x = keras_layer("ZeroPadding2D", 1, name="pool_pad")(x)
    x = keras_layer("MaxPooling2D", 3, strides=2, name="pool")(x)
    y = keras_layer("GroupNormalization", 4, name="group_norm")(x)
    y = keras_layer("Activation", "relu", name="block_relu")(y)
    y = keras_layer("Conv2D", 8, 3, padding="same", name="block_a")(y)
    y = keras_layer("LeakyReLU", negative_slope=0.1, name="block_leaky")(y)
    y = keras_layer("Conv2D", 8, 3, padding="same", name="block_b")(y)
    x = keras_layer("Add", name="add")([x, y])
    x = keras_layer("Activation", "silu", name="last")(x)
    x = keras_layer("GlobalAveragePooling2D", name="average")(x)
    x = keras_layer("Dense", 6, name="logits")(x)
    return keras.Model(start, keras_layer("Activation", "softmax", name="classes")(x), name="residual")


class Residual(nn.Module):
    """The twin of the residual network: modules, padding by function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_pad = nn.ZeroPad2d((2, 1, 1, 2))
        self.stem = nn.Conv2d(3, 8, (5, 3), stride=2, bias=False)
        self.stem_bn = nn.BatchNorm2d(8, eps=1.001e-5, momentum=0.01)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.gn = nn.GroupNorm(4, 8, eps=1e-3)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.LeakyReLU(0.1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to (batch, 6)."""
        x = self.stem_bn(self.stem(self.stem_pad(x)))
        x = self.pool(F.pad(x, (1, 1, 1, 1)))
        y = self.conv2(self.act(self.conv1(torch.relu(self.gn(x)))))
        x = F.silu(x + y)
        return F.softmax(self.fc(x.mean((2, 3))), dim=1)


_MODULES = {
    "stem": "stem",
    "stem_norm": "stem_bn",
    "group_norm": "gn",
    "block_a": "conv1",
    "block_b": "conv2",
    "logits": "fc",
}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(2, 13, 11), (3, 12, 15), (2, 14, 10)], Residual(), _MODULES)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "residual")


def residual_forward(
    twin: nn.Module,
    pad: Callable[[Tensor], Tensor] = lambda x: F.pad(x, (1, 1, 1, 1)),
    add: Callable[[Tensor, Tensor], Tensor] = torch.add,
    last: Callable[[Tensor], Tensor] = F.silu,
    classes: Callable[[Tensor], Tensor] = lambda x: F.softmax(x, dim=1),
) -> None:
    """Give the residual twin another padding, addition, last activation or softmax."""

    def forward(self, x):
        x = self.pool(pad(self.stem_bn(self.stem(self.stem_pad(x)))))
        y = self.conv2(self.act(self.conv1(torch.relu(self.gn(x)))))
        return classes(self.fc(last(add(x, y)).mean((2, 3))))

    another_forward(twin, forward)


@mutant("stem_pad: height before width", {"stem_pad"}, "padding")
def _(twin):
    twin.stem_pad = nn.ZeroPad2d((1, 2, 2, 1))


@mutant("stem: one kernel with height and width flipped", {"stem"}, "kernel flipped")
def _(twin):
    put(twin.stem.weight[2], twin.stem.weight[2].flip(1, 2))


@mutant("stem_bn: eps 1e-3, Keras's default", {"stem_norm"}, "epsilon")
def _(twin):
    twin.stem_bn.eps = 1e-3


@mutant("pool: padded with minus infinity", {"pool_pad", "pool"}, "padding value", in_forward=True)
def _(twin):
    residual_forward(twin, pad=lambda x: F.pad(x, (1, 1, 1, 1), value=float("-inf")))


@mutant("gn: two groups", {"group_norm"}, "groups")
def _(twin):
    twin.gn.num_groups = 2


@mutant("gn: eps left at 1e-5", {"group_norm"}, "epsilon")
def _(twin):
    twin.gn.eps = 1e-5


@mutant("conv1 and conv2 exchanged", {"block_a"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.conv1, twin.conv2)


@mutant("act: slope left at 0.01", {"block_leaky"}, "another slope")
def _(twin):
    twin.act.negative_slope = 0.01


@mutant("conv2: kernel through float16", {"block_b"}, "precision")
def _(twin):
    halves(twin.conv2, "weight")


@mutant("the skip is left out", {"add", "last"}, "another skip", in_forward=True)
def _(twin):
    residual_forward(twin, add=lambda x, y: y)


@mutant("the last activation is missing", {"last", "average"}, "activation missing", in_forward=True)
def _(twin):
    residual_forward(twin, last=lambda x: x)


@mutant("ReLU in place of the last SiLU", {"last", "average"}, "another activation", in_forward=True)
def _(twin):
    residual_forward(twin, last=F.relu)


@mutant("fc: bias missing", {"logits"}, "bias missing")
def _(twin):
    put(twin.fc.bias, 0.0)


@mutant("softmax over the batch", {"classes"}, "axis", in_forward=True)
def _(twin):
    residual_forward(twin, classes=lambda x: F.softmax(x, dim=0))


@mutant("gn: frozen", {"group_norm"}, "layer frozen", shows="training")
def _(twin):
    twin.gn.requires_grad_(False)


@mutant("the skip is detached", {"add", "pool"}, "gradient stopped", shows="training", in_forward=True)
def _(twin):
    residual_forward(twin, add=lambda x, y: x.detach() + y)

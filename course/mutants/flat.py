"""A twin that flattens channels first: the network, its twin and its mutants."""

import functools
from collections.abc import Callable

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, small_network
from course.mutants.tools import another_forward, put
from parity import transfer
from parity.padding import pad_same

import keras
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _keras_model(height: int, width: int) -> keras.Model:
    start = keras_input(height, width, 3)
    x = keras_layer("LeakyReLU", name="leaky")(start)
    x = keras_layer("Conv2D", 3, 3, strides=(2, 2), padding="same", name="conv")(x)
    x = keras_layer("Activation", "relu", name="relu")(x)
    x = keras_layer("MaxPooling2D", (2, 3), strides=(2, 3), padding="same", name="pool")(x)
    x = keras_layer("Flatten", name="flatten")(x)
    x = keras_layer("BatchNormalization", name="norm")(x)
    x = keras_layer("Dense", 4, name="hidden")(x)
    x = keras_layer("Activation", "sigmoid", name="sigmoid")(x)
    return keras.Model(start, keras_layer("Dense", 4, name="head")(x), name="flat")


class Flat(nn.Module):
    """The twin that flattens channels first: ``transfer`` has reordered what stands behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Linear(4, 4)
        self.fc1 = nn.Linear(2 * 2 * 3, 4)
        self.bn = nn.BatchNorm1d(2 * 2 * 3, eps=1e-3, momentum=0.01)
        self.conv = nn.Conv2d(3, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) with 5 <= h <= 8 and 7 <= w <= 12 to (batch, 4)."""
        x = pad_same(F.leaky_relu(x, 0.3), (3, 3), (2, 2), (1, 1))
        x = self.conv(x).relu()
        x = F.max_pool2d(pad_same(x, (2, 3), (2, 3), (1, 1), float("-inf")), (2, 3))
        return self.fc2(torch.sigmoid(self.fc1(self.bn(x.flatten(1)))))


_MODULES = {"conv": "conv", "norm": "bn", "hidden": "fc1", "head": "fc2"}
_FLATTEN = {"norm": (2, 2, 3), "hidden": (2, 2, 3)}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(2, 7, 9), (3, 8, 10), (2, 6, 12)], Flat(), _MODULES, _FLATTEN)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "flat")


def flat_forward(
    twin: nn.Module,
    start: Callable[[Tensor], Tensor] = lambda x: F.leaky_relu(x, 0.3),
    pad: Callable[[Tensor], Tensor] = lambda x: pad_same(x, (3, 3), (2, 2), (1, 1)),
    sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> None:
    """Give the flat twin another activation at its start or before its head, or another padding."""

    def forward(self, x):
        x = self.conv(pad(start(x))).relu()
        x = F.max_pool2d(pad_same(x, (2, 3), (2, 3), (1, 1), float("-inf")), (2, 3))
        return self.fc2(sigmoid(self.fc1(self.bn(x.flatten(1)))))

    another_forward(twin, forward)


@mutant(
    "the first LeakyReLU is missing", {"leaky", "conv"}, "activation missing", shows="negative inputs", in_forward=True
)
def _(twin):
    flat_forward(twin, start=lambda x: x)


@mutant("the first LeakyReLU: slope 0.01", {"leaky", "conv"}, "another slope", shows="negative inputs", in_forward=True)
def _(twin):
    flat_forward(twin, start=F.leaky_relu)


@mutant("ReLU in place of LeakyReLU", {"leaky", "conv"}, "another activation", shows="negative inputs", in_forward=True)
def _(twin):
    flat_forward(twin, start=F.relu)


@mutant("conv: padding=1", {"conv"}, "padding", shows="other size", in_forward=True)
def _(twin):
    flat_forward(twin, pad=lambda x: F.pad(x, (1, 1, 1, 1)))


@mutant("conv: kernel not permuted at all", {"conv"}, "kernel axes permuted")
def _(twin):
    put(twin.conv.weight, twin.conv.weight.permute(2, 3, 1, 0))


@mutant("conv: kernel with its axes reversed", {"conv"}, "height and width exchanged")
def _(twin):
    put(twin.conv.weight, twin.conv.weight.transpose(2, 3))


def transfer_without(twin: nn.Module, layer: str) -> None:
    """Fill the module of one layer anew, as if ``flatten`` did not have this layer."""
    flat = network()
    other, module = flat.build(), _MODULES[layer]
    flatten = {name: shape for name, shape in flat.flatten.items() if name != layer}
    transfer(flat.probes[0].keras_model, other, flat.mapping, flatten)
    twin.get_submodule(module).load_state_dict(other.get_submodule(module).state_dict())


@mutant("bn: vectors in Keras's order of features", {"norm"}, "flatten order")
def _(twin):
    transfer_without(twin, "norm")


@mutant("fc1: rows in Keras's order of features", {"hidden"}, "flatten order")
def _(twin):
    transfer_without(twin, "hidden")


@mutant("bn: statistics left at 0 and 1", {"norm"}, "statistics left at 0 and 1")
def _(twin):
    twin.bn.reset_running_stats()


@mutant("hard sigmoid in place of sigmoid", {"sigmoid", "head"}, "another activation", in_forward=True)
def _(twin):
    flat_forward(twin, sigmoid=F.hardsigmoid)


@mutant("fc2: not transposed", {"head"}, "kernel not transposed")
def _(twin):
    put(twin.fc2.weight, twin.fc2.weight.T)


@mutant("bn: in train mode", {"norm"}, "train mode")
def _(twin):
    twin.bn.train()

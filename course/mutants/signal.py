"""A signal, one dimension: the network, its twin and its mutants."""

import functools

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, small_network
from course.mutants.tools import another_forward, before, like, put
from parity.padding import AvgPool1dSame, Conv1dSame, ConvTranspose1dSame

import keras
import torch.nn.functional as F
from torch import Tensor, nn


def _keras_model(length: int) -> keras.Model:
    start = keras_input(length, 3)
    x = keras_layer("Conv1D", 6, 5, strides=2, padding="same", name="first")(start)
    x = keras_layer("BatchNormalization", name="norm")(x)
    x = keras_layer("Activation", "relu", name="norm_relu")(x)
    x = keras_layer("Conv1D", 6, 3, dilation_rate=2, padding="causal", name="causal")(x)
    x = keras_layer("AveragePooling1D", 3, strides=2, padding="same", name="pool")(x)
    x = keras_layer("LayerNormalization", name="layer_norm")(x)
    x = keras_layer("Conv1D", 6, 3, padding="same", groups=2, activation="elu", name="grouped")(x)
    x = keras_layer("Conv1DTranspose", 4, 3, strides=2, padding="same", name="up")(x)
    x = keras_layer("LeakyReLU", name="leaky")(x)
    x = keras_layer("GlobalAveragePooling1D", name="average")(x)
    return keras.Model(start, keras_layer("Dense", 4, name="head")(x), name="signal")


class Signal(nn.Module):
    """The twin of the signal network, written with functions where it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv1dSame(3, 6, 5, stride=2)
        self.bn = nn.BatchNorm1d(6, eps=1e-3, momentum=0.01)
        self.causal = nn.Conv1d(6, 6, 3, dilation=2)
        self.pool = AvgPool1dSame(3, 2)
        self.ln = nn.LayerNorm(6, eps=1e-3)
        self.grouped = nn.Conv1d(6, 6, 3, padding=1, groups=2)
        self.up = ConvTranspose1dSame(6, 4, 3, stride=2)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, length) to (batch, 4)."""
        x = F.relu(self.bn(self.conv(x)))
        x = self.pool(self.causal(F.pad(x, (4, 0))))
        x = self.ln(x.transpose(1, 2)).transpose(1, 2)
        x = self.up(F.elu(self.grouped(x)))
        x = F.leaky_relu(x, 0.3)
        return self.head(x.mean(2))


_MODULES = {
    "first": "conv",
    "norm": "bn",
    "causal": "causal",
    "layer_norm": "ln",
    "grouped": "grouped",
    "up": "up",
    "head": "head",
}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(2, 17), (3, 16), (2, 14)], Signal(), _MODULES)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "signal")


@mutant("conv: padding=2", {"first"}, "padding", shows="other size")
def _(twin):
    twin.conv = like(twin.conv, nn.Conv1d, padding=2)


@mutant("causal: in and out of the kernel exchanged", {"causal"}, "kernel axes permuted")
def _(twin):
    put(twin.causal.weight, twin.causal.weight.transpose(0, 1))


@mutant("causal: padded on both sides", {"causal"}, "padding", in_forward=True)
def _(twin):
    before(twin.causal, lambda x: F.pad(x[..., 4:], (2, 2)))


@mutant("causal: dilation forgotten", {"causal"}, "stride or dilation", in_forward=True)
def _(twin):
    twin.causal = like(twin.causal, nn.Conv1d, dilation=1)
    before(twin.causal, lambda x: x[..., 2:])


@mutant("pool: padding counted", {"pool"}, "padding counted")
def _(twin):
    twin.pool = nn.AvgPool1d(3, 2, padding=1)


@mutant("pool: padding=1, not counted", {"pool"}, "padding", shows="other size")
def _(twin):
    twin.pool = nn.AvgPool1d(3, 2, padding=1, count_include_pad=False)


@mutant("ln: eps left at 1e-5", {"layer_norm"}, "epsilon")
def _(twin):
    twin.ln.eps = 1e-5


@mutant("ln: normalized over time", {"layer_norm"}, "axis", in_forward=True)
def _(twin):
    def forward(self, x):
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + self.eps).sqrt()
        return x * self.weight + self.bias

    another_forward(twin.ln, forward)


@mutant("grouped: groups take every second channel", {"grouped"}, "groups", in_forward=True)
def _(twin):
    before(twin.grouped, lambda x: x.unflatten(1, (3, 2)).transpose(1, 2).flatten(1, 2))


@mutant("grouped: ELU missing", {"grouped", "up"}, "activation missing", in_forward=True)
def _(twin):
    def forward(self, x):
        x = self.pool(self.causal(F.pad(F.relu(self.bn(self.conv(x))), (4, 0))))
        x = self.up(self.grouped(self.ln(x.transpose(1, 2)).transpose(1, 2)))
        return self.head(F.leaky_relu(x, 0.3).mean(2))

    another_forward(twin, forward)


@mutant("slope of the LeakyReLU left at 0.01", {"leaky", "average"}, "another slope", in_forward=True)
def _(twin):
    def forward(self, x):
        x = self.pool(self.causal(F.pad(F.relu(self.bn(self.conv(x))), (4, 0))))
        x = self.up(F.elu(self.grouped(self.ln(x.transpose(1, 2)).transpose(1, 2))))
        return self.head(F.leaky_relu(x).mean(2))

    another_forward(twin, forward)


@mutant("up: kernel flipped", {"up"}, "kernel flipped")
def _(twin):
    put(twin.up.weight, twin.up.weight.flip(2))


@mutant("up: padding=1, output_padding=1", {"up"}, "padding")
def _(twin):
    assert isinstance(twin.up, ConvTranspose1dSame)
    twin.up = like(twin.up, nn.ConvTranspose1d, padding=1, output_padding=1)


@mutant("head: not transposed", {"head"}, "kernel not transposed")
def _(twin):
    put(twin.head.weight, twin.head.weight.T)


@mutant("bn: Keras's momentum copied", {"norm"}, "momentum", shows="training")
def _(twin):
    twin.bn.momentum = 0.99

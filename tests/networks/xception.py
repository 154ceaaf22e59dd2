"""Xception of ``keras.applications``, its twin in the style of Cadene's port, whose poolings pad as Keras's do."""

import functools
import itertools

from course.mutants.tools import another_forward, exchange_tensors
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import SIZE, calibrated, images, pad_same

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and two images."""
    model = keras.applications.Xception(
        weights=None, input_shape=(*SIZE, 3), classes=10, classifier_activation=None, name="xception"
    )
    return calibrated(model, images(), 7)


def norm(channels: int) -> nn.BatchNorm2d:
    """Return a normalization as Keras's Xception has it."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class SeparableConv2d(nn.Module):
    """A convolution of each channel, then one of each pixel."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, filters, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, filters, h, w)."""
        return self.pointwise(self.conv1(x))


class MaxPoolSame(nn.Module):
    """Every other pixel: the largest of 3 x 3, padded by the size of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c, h / 2, w / 2), rounded up."""
        return F.max_pool2d(pad_same(x, 3, 2, value=float("-inf")), 3, 2)


class Block(nn.Module):
    """Separable convolutions, and the skip."""

    def __init__(
        self, channels: int, filters: int, reps: int, stride: int, relu: bool = True, grow: bool = True
    ) -> None:
        super().__init__()
        self.skip = None
        if filters != channels or stride != 1:
            self.skip, self.skipbn = nn.Conv2d(channels, filters, 1, stride, bias=False), norm(filters)
        widths = [channels] + ([filters] * reps if grow else [channels] * (reps - 1) + [filters])
        rep: list[nn.Module] = []
        for here, there in itertools.pairwise(widths):
            rep += [nn.ReLU(inplace=True), SeparableConv2d(here, there), norm(there)]
        # In place, the first ReLU would overwrite what the skip takes.
        rep[0] = nn.ReLU(inplace=False)
        if stride != 1:
            rep.append(MaxPoolSame())
        self.rep = nn.Sequential(*rep[0 if relu else 1 :])

    def forward(self, inp: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, filters, h / stride, w / stride), rounded up."""
        x = self.rep(inp)
        x += self.skipbn(self.skip(inp)) if self.skip is not None else inp
        return x


class Xception(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 32, 3, 2, bias=False), norm(32), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, bias=False), norm(64)
        self.block1 = Block(64, 128, 2, 2, relu=False)
        self.block2, self.block3 = Block(128, 256, 2, 2), Block(256, 728, 2, 2)
        for number in range(4, 12):
            setattr(self, f"block{number}", Block(728, 728, 3, 1))
        self.block12 = Block(728, 1024, 2, 2, grow=False)
        self.conv3, self.bn3 = SeparableConv2d(1024, 1536), norm(1536)
        self.conv4, self.bn4 = SeparableConv2d(1536, 2048), norm(2048)
        self.last_linear = nn.Linear(2048, 10)

    def features(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 2048, h / 32, w / 32), rounded."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        for number in range(1, 13):
            x = getattr(self, f"block{number}")(x)
        x = self.relu(self.bn3(self.conv3(x)))
        return self.bn4(self.conv4(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        x = self.relu(self.features(x))
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.last_linear(x.view(x.size(0), -1))


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("conv2: padding=1, as in other networks", {"block1_conv2"}, "padding")
def _(twin):
    twin.conv2.padding = (1, 1)


@mistaken("block2: the skip begins behind the ReLU", {"conv2d_1"}, "another skip")
def _(twin):
    another_forward(twin.block2, lambda self, inp: Block.forward(self, F.relu(inp)))


@mistaken("block3: pooling pads alike on both sides", {"block4_pool"}, "padding")
def _(twin):
    twin.block3.rep[-1] = nn.MaxPool2d(3, 2, padding=1)


@mistaken("block4: a ReLU in place overwrites the skip", {"add_3"}, "overwritten in place")
def _(twin):
    twin.block4.rep[0] = nn.ReLU(inplace=True)


@mistaken("block5: the first ReLU is missing", {"block6_sepconv1_act"}, "activation missing")
def _(twin):
    twin.block5.rep[0] = nn.Identity()


@mistaken("block6: a ReLU between the two parts of a separable convolution", {"block7_sepconv2"}, "another activation")
def _(twin):
    another_forward(twin.block6.rep[4], lambda self, x: self.pointwise(F.relu(self.conv1(x))))


@mistaken("block7: normalizations exchanged", {"block8_sepconv1_bn", "block8_sepconv2_bn"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.block7.rep[2], twin.block7.rep[5])


@mistaken("block8: eps left at 1e-5", {"block9_sepconv3_bn"}, "epsilon")
def _(twin):
    twin.block8.rep[8].eps = 1e-5


@mistaken("block9: a separable convolution without padding, padded behind", {"block10_sepconv1"}, "padding")
def _(twin):
    conv = twin.block9.rep[1].conv1
    conv.padding = (0, 0)
    another_forward(conv, lambda self, x: nn.Conv2d.forward(self, F.pad(x, (2, 0, 2, 0))))


@mistaken("the last ReLU is missing", {"block14_sepconv2_act"}, "activation missing")
def _(twin):
    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.last_linear(torch.flatten(x, 1))

    another_forward(twin, forward)


NETWORK = Network(
    name="Xception", keras_model=keras_model, twin=Xception, mistakes=tuple(MISTAKES), within_float64=1e-9, slow=True
)

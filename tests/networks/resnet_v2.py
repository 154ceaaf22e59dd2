"""ResNet50V2 of ``keras.applications``, and a plain twin of it.

The last block of a stack has the stride, in its second convolution, and a skip that takes every other pixel.
"""

import functools

from course.mutants.tools import another_forward, exchange_tensors
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import SIZE, calibrated, images
from tests.networks.resnet import norm

import keras
import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

STACKS = ((64, 3, 2), (128, 4, 2), (256, 6, 2), (512, 3, 1))
"""Width, number of blocks, and stride of the last block of each stack."""


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and two images."""
    model = keras.applications.ResNet50V2(
        weights=None, input_shape=(*SIZE, 3), classes=10, classifier_activation=None, name="resnet50v2"
    )
    return calibrated(model, images(), 2)


class Block(nn.Module):
    """A block that normalizes before it convolves."""

    def __init__(self, channels: int, width: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.preact = norm(channels)
        self.shortcut = nn.Conv2d(channels, 4 * width, 1) if shortcut else None
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False), norm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)

    def skip(self, x: Tensor, active: Tensor) -> Tensor:
        """Return what is added to the branch."""
        if self.shortcut is not None:
            return self.shortcut(active)
        return F.max_pool2d(x, 1, self.stride) if self.stride > 1 else x

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, 4 width, h / stride, w / stride)."""
        active = F.relu(self.preact(x))
        skip = self.skip(x, active)
        x = F.relu(self.bn1(self.conv1(active)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.conv3(x) + skip


class ResNetV2(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3)
        self.stacks = nn.ModuleList()
        channels = 64
        for width, blocks, stride in STACKS:
            stack = nn.Sequential()
            for number in range(blocks):
                last = number == blocks - 1
                stack.append(Block(channels, width, stride if last else 1, shortcut=number == 0))
                channels = 4 * width
            self.stacks.append(stack)
        self.bn = norm(channels)
        self.fc = nn.Linear(channels, 10)

    def stem(self, x: Tensor) -> Tensor:
        """Convolve and pool the image; what is pooled may be negative, and Keras pads it with zeros."""
        return F.max_pool2d(F.pad(self.conv1(x), (1, 1, 1, 1)), 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        x = self.stem(x)
        for stack in self.stacks:
            x = stack(x)
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("stem: pooling pads with minus infinity", {"pool1_pad", "pool1_pool"}, "padding value")
def _(twin):
    stem = {"stem": lambda self, x: F.max_pool2d(self.conv1(x), 3, 2, padding=1)}
    twin.__class__ = type("ResNetV2", (ResNetV2,), stem)


@mistaken("stacks.0.0: the skip begins before normalization", {"conv2_block1_0_conv"}, "another skip")
def _(twin):
    skip = {"skip": lambda self, x, active: self.shortcut(x)}
    twin.stacks[0][0].__class__ = type("Block", (Block,), skip)


@mistaken("stacks.0.2: the skip pools averages of 2 x 2", {"max_pooling2d"}, "another pooling")
def _(twin):
    skip = {"skip": lambda self, x, active: F.avg_pool2d(x, 2, ceil_mode=True)}
    twin.stacks[0][2].__class__ = type("Block", (Block,), skip)


@mistaken("stacks.1.1: the skip begins behind normalization and ReLU", {"conv3_block2_out"}, "another skip")
def _(twin):
    skip = {"skip": lambda self, x, active: active}
    twin.stacks[1][1].__class__ = type("Block", (Block,), skip)


@mistaken("stacks.1.3: padded as SAME, (0, 1)", {"conv3_block4_2_pad", "conv3_block4_2_conv"}, "padding")
def _(twin):
    twin.stacks[1][3].conv2.padding = (0, 0)
    another_forward(twin.stacks[1][3].conv2, lambda self, x: nn.Conv2d.forward(self, F.pad(x, (0, 1, 0, 1))))


@mistaken("stacks.2.2: ReLU before the normalization", {"conv4_block3_preact_bn"}, "another activation")
def _(twin):
    def forward(self, x):
        active = self.preact(F.relu(x))
        return self.conv3(F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(active))))))) + x

    another_forward(twin.stacks[2][2], forward)


@mistaken("stacks.2.3: bn1 and bn2 exchanged", {"conv4_block4_1_bn", "conv4_block4_2_bn"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.stacks[2][3].bn1, twin.stacks[2][3].bn2)


@mistaken("the last normalization is missing its ReLU", {"post_relu"}, "activation missing")
def _(twin):
    def forward(self, x):
        x = self.stem(x)
        for stack in self.stacks:
            x = stack(x)
        return self.fc(self.bn(x).mean((2, 3)))

    another_forward(twin, forward)


@mistaken("stacks.3.1: eps left at 1e-3", {"conv5_block2_preact_bn"}, "epsilon")
def _(twin):
    twin.stacks[3][1].preact.eps = 1e-3


NETWORK = Network(
    name="ResNet50V2",
    keras_model=keras_model,
    twin=ResNetV2,
    mistakes=tuple(MISTAKES),
    within_float64=1e-9,
    slow=True,
)

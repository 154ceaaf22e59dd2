"""ResNet50V2 of ``keras.applications``, and a twin in timm's style: a normalization has its ReLU within it."""

import functools

from course.mutants.tools import another_forward, exchange
from tests.networks.base import Mistake, Network, mistake
from tests.networks.resnet_v2 import STACKS, keras_model

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNormAct2d(nn.BatchNorm2d):
    """A normalization, then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1.001e-5, momentum=0.01)
        self.drop = nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to the same."""
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return self.act(self.drop(x))


class DownsampleConv(nn.Module):
    """The skip of a stack's first block."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 1)
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, filters, h, w)."""
        return self.norm(self.conv(x))


class PreActBottleneck(nn.Module):
    """A block that normalizes before it convolves."""

    def __init__(self, channels: int, width: int, stride: int, first: bool) -> None:
        super().__init__()
        self.norm1 = BatchNormAct2d(channels)
        self.downsample = None
        if first:
            self.downsample = DownsampleConv(channels, 4 * width)
        elif stride > 1:
            self.downsample = nn.MaxPool2d(1, stride)
        self.first = first
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2 = BatchNormAct2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm3 = BatchNormAct2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, 4 width, h / stride, w / stride)."""
        active = self.norm1(x)
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(active if self.first else x)
        x = self.conv1(active)
        x = self.conv2(self.norm2(x))
        x = self.drop_path(self.conv3(self.norm3(x)))
        return x + shortcut


class ResNetStage(nn.Module):
    """A stack of blocks."""

    def __init__(self, channels: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        for number in range(blocks):
            last = stride if number == blocks - 1 else 1
            self.blocks.append(PreActBottleneck(channels if number == 0 else 4 * width, width, last, number == 0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, 4 width, h / stride, w / stride)."""
        return self.blocks(x)


class ResNetV2(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, 64, 7, 2, padding=3))
        self.stem.add_module("pad", nn.ConstantPad2d(1, 0.0))
        self.stem.add_module("pool", nn.MaxPool2d(3, 2))
        channels = [64, *(4 * width for width, _, _ in STACKS)]
        self.stages = nn.Sequential(
            *(ResNetStage(c, *stack) for c, stack in zip(channels[:-1], STACKS, strict=True)),
        )
        self.norm = BatchNormAct2d(channels[-1])
        self.head = nn.Sequential()
        self.head.add_module("global_pool", nn.AdaptiveAvgPool2d(1))
        self.head.add_module("fc", nn.Conv2d(channels[-1], 10, 1))
        self.head.add_module("flatten", nn.Flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        return self.head(self.norm(self.stages(self.stem(x))))


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("stem.pad: padded with minus infinity", {"pool1_pad", "pool1_pool"}, "padding value")
def _(twin):
    twin.stem.pad = nn.ConstantPad2d(1, float("-inf"))


@mistaken("stages.0.0: norm2 without its ReLU", {"conv2_block1_1_relu"}, "activation missing")
def _(twin):
    twin.stages[0].blocks[0].norm2.act = nn.Identity()


@mistaken("stages.0.1: eps of norm3 left at 1e-3", {"conv2_block2_2_bn"}, "epsilon")
def _(twin):
    twin.stages[0].blocks[1].norm3.eps = 1e-3


@mistaken("stages.1.0: SiLU in norm1", {"conv3_block1_preact_bn", "conv3_block1_preact_relu"}, "another activation")
def _(twin):
    twin.stages[1].blocks[0].norm1.act = nn.SiLU()


@mistaken(
    "stages.1.2: mean and variance of norm2 exchanged", {"conv3_block3_1_bn"}, "BatchNormalization vectors exchanged"
)
def _(twin):
    norm = twin.stages[1].blocks[2].norm2
    exchange(norm.running_mean, norm.running_var)


@mistaken("stages.1.3: the skip of a stride takes what is active", {"max_pooling2d_1"}, "another skip")
def _(twin):
    twin.stages[1].blocks[3].first = True


@mistaken("stages.2.0: the skip is normalized, too", {"conv4_block1_0_conv", "conv4_block1_out"}, "another activation")
def _(twin):
    twin.stages[2].blocks[0].downsample.norm = nn.ReLU()


@mistaken("stages.2.2: conv2 without padding on the left", {"conv4_block3_2_pad", "conv4_block3_2_conv"}, "padding")
def _(twin):
    conv = twin.stages[2].blocks[2].conv2
    conv.padding = (1, 0)
    another_forward(conv, lambda self, x: nn.Conv2d.forward(self, F.pad(x, (0, 2))))


@mistaken("stages.2.4: the skip begins behind norm1", {"conv4_block5_out"}, "another skip")
def _(twin):
    def forward(self, x):
        x = self.norm1(x)
        return self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(x))))) + x

    another_forward(twin.stages[2].blocks[4], forward)


@mistaken("norm: in train mode", {"post_bn"}, "train mode")
def _(twin):
    twin.norm.training = True


NETWORK = Network(
    name="ResNet50V2 in timm's style",
    keras_model=keras_model,
    twin=ResNetV2,
    mistakes=tuple(MISTAKES),
    within_float64=1e-9,
    slow=True,
)

"""InceptionV3 of ``keras.applications``, its twin in torchvision's style. Averages leave out the padding."""

import functools

from course.mutants.tools import another_forward, exchange_tensors
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import calibrated, images

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and two images."""
    model = keras.applications.InceptionV3(
        weights=None, input_shape=(107, 91, 3), classes=10, classifier_activation=None, name="inception_v3"
    )
    return calibrated(model, images(107, 91), 8)


class BasicConv2d(nn.Module):
    """A convolution, a normalization whose scale is 1, and ReLU."""

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(filters, eps=0.001, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, filters, ...)."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def average(x: Tensor) -> Tensor:
    """Return the averages of 3 x 3 pixels; at the border, of those that are there."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def largest(x: Tensor) -> Tensor:
    """Return the largest of 3 x 3 pixels, of every other pixel."""
    return F.max_pool2d(x, kernel_size=3, stride=2)


class InceptionA(nn.Module):
    """Four branches at the first size."""

    def __init__(self, channels: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(channels, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = BasicConv2d(channels, 48, 1), BasicConv2d(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(channels, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, padding=1)
        self.branch_pool = BasicConv2d(channels, pool, 1)

    pool = staticmethod(average)

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(self.pool(x)),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, 224 + pool, h, w)."""
        return torch.cat(self._forward(x), 1)


class InceptionB(nn.Module):
    """Three branches to the second size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(channels, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, stride=2)

    pool = staticmethod(largest)

    def _forward(self, x: Tensor) -> list[Tensor]:
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch3x3(x), branch3x3dbl, self.pool(x)]

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c + 480, h / 2, w / 2)."""
        return torch.cat(self._forward(x), 1)


class InceptionC(nn.Module):
    """Four branches at the second size, with kernels of one row or one column."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(768, 192, 1)
        self.branch7x7_1 = BasicConv2d(768, width, 1)
        self.branch7x7_2 = BasicConv2d(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = BasicConv2d(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = BasicConv2d(768, width, 1)
        self.branch7x7dbl_2 = BasicConv2d(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = BasicConv2d(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = BasicConv2d(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = BasicConv2d(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = BasicConv2d(768, 192, 1)

    pool = staticmethod(average)

    def _forward(self, x: Tensor) -> list[Tensor]:
        branch7x7dbl = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(branch7x7dbl)),
            self.branch_pool(self.pool(x)),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 768, h, w) to the same."""
        return torch.cat(self._forward(x), 1)


class InceptionD(nn.Module):
    """Three branches to the third size."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = BasicConv2d(768, 192, 1), BasicConv2d(192, 320, 3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(768, 192, 1)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 768, h, w) to (b, 1280, h / 2, w / 2)."""
        branch7x7x3 = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        branches = [self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(branch7x7x3)]
        return torch.cat([*branches, F.max_pool2d(x, kernel_size=3, stride=2)], 1)


class InceptionE(nn.Module):
    """Four branches at the third size, two of which part once more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(channels, 320, 1)
        self.branch3x3_1 = BasicConv2d(channels, 384, 1)
        self.branch3x3_2a = BasicConv2d(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv2d(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = BasicConv2d(channels, 448, 1)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = BasicConv2d(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = BasicConv2d(channels, 192, 1)

    pool = staticmethod(average)

    def _forward(self, x: Tensor) -> list[Tensor]:
        branch3x3 = self.branch3x3_1(x)
        branch3x3 = torch.cat([self.branch3x3_2a(branch3x3), self.branch3x3_2b(branch3x3)], 1)
        branch3x3dbl = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch3x3dbl = torch.cat([self.branch3x3dbl_3a(branch3x3dbl), self.branch3x3dbl_3b(branch3x3dbl)], 1)
        return [self.branch1x1(x), branch3x3, branch3x3dbl, self.branch_pool(self.pool(x))]

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, 2048, h, w)."""
        return torch.cat(self._forward(x), 1)


class InceptionV3(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b, self.Mixed_6c = InceptionC(128), InceptionC(160)
        self.Mixed_6d, self.Mixed_6e = InceptionC(160), InceptionC(192)
        self.Mixed_7a = InceptionD()
        self.Mixed_7b, self.Mixed_7c = InceptionE(1280), InceptionE(2048)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        for module in list(self.children())[:-1]:
            x = module(x)
        return self.fc(torch.flatten(x, 1))


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("Conv2d_2b_3x3: without padding", {"conv2d_2"}, "padding")
def _(twin):
    twin.Conv2d_2b_3x3.conv.padding = (0, 0)


@mistaken("maxpool1: padding=1", {"max_pooling2d"}, "padding")
def _(twin):
    twin.maxpool1.padding = 1


@mistaken("Mixed_5b: the average counts the padding", {"average_pooling2d"}, "padding counted")
def _(twin):
    twin.Mixed_5b.pool = lambda x: F.avg_pool2d(x, 3, stride=1, padding=1)


@mistaken("Mixed_5c: branches joined in another order", {"mixed1"}, "another skip")
def _(twin):
    def forward(self, x):
        one, five, three, pool = self._forward(x)
        return torch.cat([one, three, five, pool], 1)

    another_forward(twin.Mixed_5c, forward)


@mistaken("Mixed_5d: eps left at 1e-5", {"batch_normalization_22"}, "epsilon")
def _(twin):
    twin.Mixed_5d.branch3x3dbl_1.bn.eps = 1e-5


@mistaken("Mixed_6a: average for the maximum", {"max_pooling2d_2"}, "another pooling")
def _(twin):
    twin.Mixed_6a.pool = lambda x: F.avg_pool2d(x, 3, 2)


@mistaken("Mixed_6b: the average before the convolution is missing", {"average_pooling2d_3"}, "another skip")
def _(twin):
    twin.Mixed_6b.pool = lambda x: x


@mistaken("Mixed_6c: weights of two branches exchanged", {"conv2d_40", "conv2d_49"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.Mixed_6c.branch1x1, twin.Mixed_6c.branch_pool)


@mistaken("Mixed_6e: a branch is missing a ReLU", {"activation_66"}, "activation missing")
def _(twin):
    another_forward(twin.Mixed_6e.branch7x7dbl_3, lambda self, x: self.bn(self.conv(x)))


@mistaken("Mixed_7b: two halves of a branch in the other order", {"mixed9_0", "mixed9"}, "another skip")
def _(twin):
    def branches(self, x):
        one, three, *rest = InceptionE._forward(self, x)
        return [one, three.roll(384, 1), *rest]

    twin.Mixed_7b.__class__ = type("InceptionE", (InceptionE,), {"_forward": branches})


NETWORK = Network(
    name="InceptionV3",
    keras_model=keras_model,
    twin=InceptionV3,
    mistakes=tuple(MISTAKES),
    within_float64=1e-9,
    slow=True,
)

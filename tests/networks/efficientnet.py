"""EfficientNetB0 of ``keras.applications`` as it is, with its preprocessing, and a twin in timm's style."""

import functools

from course.mutants.tools import another_forward, exchange_tensors, put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import SIZE, Conv2dSame, calibrated, pixels

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (
    (16, 1, 3, 1, 1),
    (24, 2, 3, 2, 6),
    (40, 2, 5, 2, 6),
    (80, 3, 3, 2, 6),
    (112, 3, 5, 1, 6),
    (192, 4, 5, 2, 6),
    (320, 1, 3, 1, 6),
)
"""Channels, number of blocks, kernel, stride of the first block, and expansion of each stage."""


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, whose Normalization knows images, and two images."""
    model = keras.applications.EfficientNetB0(
        weights=None, input_shape=(*SIZE, 3), classes=10, classifier_activation=None, name="efficientnet"
    )
    x = pixels()
    model.get_layer("normalization").adapt(x / 255 * np.float32([1.0, 0.8, 0.6]))
    return calibrated(model, x, 5, keep={"normalization"})


def norm(channels: int) -> nn.BatchNorm2d:
    """Return a normalization as Keras's EfficientNet has it."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class SqueezeExcite(nn.Module):
    """A factor for each channel, computed from the averages of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.act1 = nn.SiLU(inplace=True)
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to the same."""
        se = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(se))))


class DepthwiseSeparableConv(nn.Module):
    """Convolve each channel, squeeze and excite, project."""

    def __init__(self, channels: int, filters: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = Conv2dSame(channels, channels, kernel, stride, groups=channels, bias=False)
        self.bn1, self.act1 = norm(channels), nn.SiLU(inplace=True)
        self.se = SqueezeExcite(channels, channels // 4)
        self.conv_pw = nn.Conv2d(channels, filters, 1, bias=False)
        self.bn2 = norm(filters)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, filters, h / stride, w / stride)."""
        x = self.act1(self.bn1(self.conv_dw(x)))
        return self.bn2(self.conv_pw(self.se(x)))


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, squeeze and excite, project; and the skip."""

    def __init__(self, channels: int, filters: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = 6 * channels
        self.has_skip = channels == filters and stride == 1
        self.conv_pw, self.bn1 = nn.Conv2d(channels, hidden, 1, bias=False), norm(hidden)
        self.act1, self.act2 = nn.SiLU(inplace=True), nn.SiLU(inplace=True)
        self.conv_dw = Conv2dSame(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self.bn2 = norm(hidden)
        self.se = SqueezeExcite(hidden, max(1, channels // 4))
        self.conv_pwl, self.bn3 = nn.Conv2d(hidden, filters, 1, bias=False), norm(filters)
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, filters, h / stride, w / stride)."""
        shortcut = x
        x = self.act1(self.bn1(self.conv_pw(x)))
        x = self.act2(self.bn2(self.conv_dw(x)))
        x = self.bn3(self.conv_pwl(self.se(x)))
        return self.drop_path(x) + shortcut if self.has_skip else x


class EfficientNet(nn.Module):
    """The twin without preprocessing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = Conv2dSame(3, 32, 3, 2, bias=False), norm(32)
        self.act1 = nn.SiLU(inplace=True)
        self.blocks = nn.Sequential()
        channels = 32
        for filters, blocks, kernel, stride, expansion in STAGES:
            stage = nn.Sequential()
            for number in range(blocks):
                kind = InvertedResidual if expansion > 1 else DepthwiseSeparableConv
                stage.append(kind(channels, filters, kernel, stride if number == 0 else 1))
                channels = filters
            self.blocks.append(stage)
        self.conv_head, self.bn2 = nn.Conv2d(channels, 1280, 1, bias=False), norm(1280)
        self.act2 = nn.SiLU(inplace=True)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, 10)

    def preprocess(self, x: Tensor) -> Tensor:
        """Leave the images as they are."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        x = self.act1(self.bn1(self.conv_stem(self.preprocess(x))))
        x = self.act2(self.bn2(self.conv_head(self.blocks(x))))
        return self.classifier(self.global_pool(x).flatten(1))


class Normalize(nn.Module):
    """Normalize each channel by the mean and the variance that it was given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to the same."""
        return (x - self.mean[:, None, None]) / self.variance[:, None, None].sqrt()


class EfficientNetOfPixels(EfficientNet):
    """The twin, which takes pixels from 0 to 255."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize(3)

    def preprocess(self, x: Tensor) -> Tensor:
        """Scale pixels to 0 ... 1, and normalize each channel."""
        return self.normalize(x / 255)


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("conv_stem: padding=1", {"stem_conv_pad", "stem_conv"}, "padding")
def _(twin):
    another_forward(twin.conv_stem, lambda self, x: F.conv2d(x, self.weight, None, 2, 1))


@mistaken("blocks.0.0: squeeze takes the largest pixel", {"block1a_se_squeeze"}, "another pooling")
def _(twin):
    def forward(self, x):
        se = x.amax((2, 3), keepdim=True)
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(se))))

    another_forward(twin.blocks[0][0].se, forward)


@mistaken("blocks.1.0: ReLU in the squeeze", {"block2a_se_reduce"}, "another activation")
def _(twin):
    twin.blocks[1][0].se.act1 = nn.ReLU()


@mistaken("blocks.1.1: hard sigmoid as gate", {"block2b_se_expand"}, "another activation")
def _(twin):
    twin.blocks[1][1].se.gate = nn.Hardsigmoid()


@mistaken("blocks.2.0: padding=2 in the convolution with a stride", {"block3a_dwconv_pad", "block3a_dwconv"}, "padding")
def _(twin):
    conv = twin.blocks[2][0].conv_dw
    another_forward(conv, lambda self, x: F.conv2d(x, self.weight, None, 2, 2, 1, self.groups))


@mistaken("blocks.2.1: the gate is missing", {"block3b_se_excite"}, "another skip")
def _(twin):
    another_forward(twin.blocks[2][1].se, lambda self, x: x)


@mistaken("blocks.3.1: the skip is missing", {"block4b_add"}, "another skip")
def _(twin):
    twin.blocks[3][1].has_skip = False


@mistaken("blocks.4.1: hard swish for swish", {"block5b_activation"}, "another activation")
def _(twin):
    twin.blocks[4][1].act2 = nn.Hardswish()


@mistaken(
    "blocks.5.1: normalizations of two layers exchanged",
    {"block6b_expand_bn", "block6b_bn"},
    "weights of another layer",
)
def _(twin):
    exchange_tensors(twin.blocks[5][1].bn1, twin.blocks[5][1].bn2)


@mistaken("blocks.5.2: eps left at 1e-5", {"block6c_project_bn"}, "epsilon")
def _(twin):
    twin.blocks[5][2].bn3.eps = 1e-5


@mistaken("blocks.6.0: bias of the gate missing", {"block7a_se_expand"}, "bias missing")
def _(twin):
    put(twin.blocks[6][0].se.conv_expand.bias, 0.0)


SHARED = tuple(MISTAKES)


@mistaken("divided by the variance", {"normalization"}, "input scaled")
def _(twin):
    def forward(self, x):
        return (x - self.mean[:, None, None]) / self.variance[:, None, None]

    another_forward(twin.normalize, forward)


@mistaken("pixels are not divided by 255", {"rescaling", "normalization"}, "input scaled")
def _(twin):
    twin.__class__ = type("EfficientNet", (EfficientNetOfPixels,), {"preprocess": lambda self, x: self.normalize(x)})


@mistaken("colours in the order blue, green, red", {"rescaling", "normalization"}, "channels reversed")
def _(twin):
    another = {"preprocess": lambda self, x: self.normalize(x.flip(1) / 255)}
    twin.__class__ = type("EfficientNet", (EfficientNetOfPixels,), another)


NETWORK = Network(
    name="EfficientNetB0 as Keras has it",
    keras_model=keras_model,
    twin=EfficientNetOfPixels,
    mistakes=tuple(MISTAKES[len(SHARED) :] + MISTAKES[:4]),
    slow=True,
)

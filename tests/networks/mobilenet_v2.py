"""MobileNetV2 of ``keras.applications``, its twin in torchvision's style, padded by the size of what it takes."""

import functools

from course.mutants.tools import another_forward, exchange, put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import Conv2dSame, calibrated, images, replaced

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, number of blocks, and stride of the first block of each part."""


def mobilenet(alpha: float, height: int, width: int) -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model with a factor for its widths, and two images."""
    model = keras.applications.MobileNetV2(
        weights=None,
        input_shape=(height, width, 3),
        alpha=alpha,
        classes=10,
        classifier_activation=None,
        name="mobilenet_v2",
    )
    return calibrated(model, images(height, width), 3)


def rounded(channels: float) -> int:
    """Return the multiple of 8 that is nearest to a number of channels, and not much smaller."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found


class Conv2dNormActivation(nn.Sequential):
    """A convolution, its normalization, and an activation."""

    def __init__(self, channels: int, filters: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        kind = Conv2dSame if stride > 1 else nn.Conv2d
        padding = 0 if stride > 1 else kernel // 2
        super().__init__(
            kind(channels, filters, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(filters, eps=1e-3, momentum=0.001),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project; and the skip, if input and output have one shape."""

    def __init__(self, channels: int, filters: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.use_res_connect = stride == 1 and channels == filters
        layers = [Conv2dNormActivation(channels, hidden, 1)] if expansion > 1 else []
        layers += [
            Conv2dNormActivation(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, filters, 1, bias=False),
            nn.BatchNorm2d(filters, eps=1e-3, momentum=0.001),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, filters, h / stride, w / stride)."""
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """The twin."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        channels = rounded(32 * alpha)
        layers: list[nn.Module] = [Conv2dNormActivation(3, channels, 3, 2)]
        for expansion, width, blocks, stride in SETTINGS:
            for number in range(blocks):
                filters = rounded(int(width * alpha))
                layers.append(InvertedResidual(channels, filters, stride if number == 0 else 1, expansion))
                channels = filters
        layers.append(Conv2dNormActivation(channels, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(torch.flatten(x, 1))


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


def padded_alike(twin: nn.Module, path: str) -> None:
    """Put a convolution that pads all sides by 1 in the place of one that pads as SAME."""
    old = twin.get_submodule(path)
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, 2, 1, groups=old.groups, bias=False).to(old.weight.dtype)
    new.load_state_dict(old.state_dict())
    replaced(twin, path, new)


@mistaken("features.0: padding=1, as torchvision has it", {"Conv1"}, "padding")
def _(twin):
    padded_alike(twin, "features.0.0")


@mistaken("features.2: padding=1 in the convolution with a stride", {"block_1_pad", "block_1_depthwise"}, "padding")
def _(twin):
    padded_alike(twin, "features.2.conv.1.0")


@mistaken("features.3: ReLU for ReLU6", {"block_2_expand_relu"}, "another activation")
def _(twin):
    twin.features[3].conv[0][2] = nn.ReLU(inplace=True)


@mistaken(
    "features.4: an activation behind the projection, too",
    {"block_4_expand", "block_3_project_BN"},
    "another activation",
)
def _(twin):
    twin.features[4].conv.append(nn.ReLU6())


@mistaken("features.5: a skip is missing", {"block_4_add"}, "another skip")
def _(twin):
    twin.features[5].use_res_connect = False


@mistaken("features.6: the skip takes what is expanded from the block before", {"block_5_add"}, "another skip")
def _(twin):
    def fifth(self, x):
        self.taken = x
        return x + self.conv(x)

    another_forward(twin.features[5], fifth)
    before = twin.features[5]
    another_forward(twin.features[6], lambda self, x: before.taken + self.conv(x))


@mistaken("features.8: eps left at 1e-5", {"block_7_depthwise_BN"}, "epsilon")
def _(twin):
    twin.features[8].conv[1][1].eps = 1e-5


@mistaken("features.9: kernel of the depthwise convolution turned", {"block_8_depthwise"}, "height and width exchanged")
def _(twin):
    weight = twin.features[9].conv[1][0].weight
    put(weight, weight.transpose(2, 3))


@mistaken("features.10: mean and variance exchanged", {"block_9_project_BN"}, "BatchNormalization vectors exchanged")
def _(twin):
    exchange(twin.features[10].conv[3].running_mean, twin.features[10].conv[3].running_var)


@mistaken("features.14: the stride is missing", {"block_13_pad", "block_13_depthwise"}, "stride or dilation")
def _(twin):
    twin.features[14].conv[1][0].stride = (1, 1)


@mistaken("classifier: the largest pixel for the average", {"global_average_pooling2d"}, "another pooling")
def _(twin):
    def forward(self, x):
        return self.classifier(F.adaptive_max_pool2d(self.features(x), 1).flatten(1))

    another_forward(twin, forward)


@mistaken("images scaled to 0 ... 1, not to -1 ... 1", {"Conv1", "input_layer"}, "input scaled")
def _(twin):
    def forward(self, x):
        x = self.features((x + 1) / 2)
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))

    another_forward(twin, forward)


NETWORK = Network(
    name="MobileNetV2",
    keras_model=functools.partial(mobilenet, 1.0, 96, 80),
    twin=MobileNetV2,
    mistakes=tuple(MISTAKES),
    slow=True,
)

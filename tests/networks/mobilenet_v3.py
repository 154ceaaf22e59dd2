"""MobileNetV3Small of ``keras.applications``, its twin in torchvision's style.

Keras writes the hard sigmoid of a squeeze and excitation as relu6(x + 3) / 6, and the two last layers as convolutions.
"""

import functools

from course.mutants.tools import another_forward
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import SIZE, Conv2dSame, calibrated, pixels, replaced
from tests.networks.mobilenet_v2 import rounded

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = (
    (3, 16, 16, True, "RE", 2),
    (3, 72, 24, False, "RE", 2),
    (3, 88, 24, False, "RE", 1),
    (5, 96, 40, True, "HS", 2),
    (5, 240, 40, True, "HS", 1),
    (5, 240, 40, True, "HS", 1),
    (5, 120, 48, True, "HS", 1),
    (5, 144, 48, True, "HS", 1),
    (5, 288, 96, True, "HS", 2),
    (5, 576, 96, True, "HS", 1),
    (5, 576, 96, True, "HS", 1),
)
"""Kernel, expanded channels, channels, squeeze, activation (ReLU or hard swish), and stride of each block."""


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and two images."""
    model = keras.applications.MobileNetV3Small(
        weights=None, input_shape=(*SIZE, 3), classes=10, classifier_activation="softmax", name="mobilenet_v3"
    )
    return calibrated(model, pixels(), 4)


class Conv2dNormActivation(nn.Sequential):
    """A convolution, its normalization, and an activation or none."""

    def __init__(
        self, channels: int, filters: int, kernel: int, stride: int, groups: int, activation: type[nn.Module] | None
    ) -> None:
        kind = Conv2dSame if stride > 1 else nn.Conv2d
        padding = 0 if stride > 1 else kernel // 2
        layers = [
            kind(channels, filters, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(filters, eps=1e-3, momentum=0.001),
        ]
        super().__init__(*layers, *([activation(inplace=True)] if activation else []))


class SqueezeExcitation(nn.Module):
    """A factor for each channel, computed from the averages of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to the same."""
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(scale) * x


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, squeeze and excite, project; and the skip."""

    def __init__(self, channels: int, block: tuple[int, int, int, bool, str, int]) -> None:
        super().__init__()
        kernel, hidden, filters, squeeze, activation, stride = block
        act = nn.Hardswish if activation == "HS" else nn.ReLU
        self.use_res_connect = stride == 1 and channels == filters
        layers: list[nn.Module] = []
        if hidden != channels:
            layers.append(Conv2dNormActivation(channels, hidden, 1, 1, 1, act))
        layers.append(Conv2dNormActivation(hidden, hidden, kernel, stride, hidden, act))
        if squeeze:
            layers.append(SqueezeExcitation(hidden, rounded(hidden / 4)))
        layers.append(Conv2dNormActivation(hidden, filters, 1, 1, 1, None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, filters, h / stride, w / stride)."""
        return x + self.block(x) if self.use_res_connect else self.block(x)


class MobileNetV3(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv2dNormActivation(3, 16, 3, 2, 1, nn.Hardswish)]
        channels = 16
        for block in BLOCKS:
            layers.append(InvertedResidual(channels, block))
            channels = block[2]
        layers.append(Conv2dNormActivation(channels, 576, 1, 1, 1, nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(576, 1024), nn.Hardswish(inplace=True), nn.Dropout(0.2, inplace=True), nn.Linear(1024, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w), pixels from 0 to 255, to (b, 10)."""
        x = self.features(x / 127.5 - 1)
        return F.softmax(self.classifier(torch.flatten(self.avgpool(x), 1)), dim=1)


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("images are divided by 255, not by 127.5", {"rescaling", "conv"}, "input scaled")
def _(twin):
    def forward(self, x):
        x = self.features(x / 255 - 1)
        return F.softmax(self.classifier(torch.flatten(self.avgpool(x), 1)), dim=1)

    another_forward(twin, forward)


@mistaken("features.0: ReLU6 for hard swish", {"activation"}, "another activation")
def _(twin):
    twin.features[0][2] = nn.ReLU6()


@mistaken(
    "features.1: sigmoid for hard sigmoid",
    {"add", "re_lu_1", "multiply"},
    "another activation",
)
def _(twin):
    twin.features[1].block[1].scale_activation = nn.Sigmoid()


@mistaken("features.2: hard swish where ReLU is due", {"re_lu_2"}, "another activation")
def _(twin):
    twin.features[2].block[0][2] = nn.Hardswish()


@mistaken(
    "features.4: padded alike on all sides", {"expanded_conv_3_depthwise_pad", "expanded_conv_3_depthwise"}, "padding"
)
def _(twin):
    old = twin.features[4].block[1][0]
    new = nn.Conv2d(96, 96, 5, 2, 2, groups=96, bias=False).to(old.weight.dtype)
    new.load_state_dict(old.state_dict())
    replaced(twin, "features.4.block.1.0", new)


@mistaken("features.5: squeeze takes the largest pixel", {"expanded_conv_4_squeeze_excite_avg_pool"}, "another pooling")
def _(twin):
    twin.features[5].block[2].avgpool = nn.AdaptiveMaxPool2d(1)


@mistaken("features.6: no ReLU in the squeeze", {"expanded_conv_5_squeeze_excite_relu"}, "activation missing")
def _(twin):
    twin.features[6].block[2].activation = nn.Identity()


@mistaken(
    "features.7: squeeze before the convolution of each channel",
    {"expanded_conv_6_depthwise"},
    "another skip",
    named=False,
)
def _(twin):
    def forward(self, x):
        expand, depthwise, squeeze, project = self
        x = expand(x)
        return project(depthwise(squeeze(x)))

    another_forward(twin.features[7].block, forward)


@mistaken("features.8: the skip is missing", {"expanded_conv_7_add"}, "another skip")
def _(twin):
    twin.features[8].use_res_connect = False


@mistaken("features.10: eps left at 1e-5", {"expanded_conv_9_project_bn"}, "epsilon")
def _(twin):
    twin.features[10].block[3][1].eps = 1e-5


@mistaken(
    "features.10: hard swish behind the projection, too",
    {"expanded_conv_10_expand", "expanded_conv_9_add"},
    "another activation",
)
def _(twin):
    twin.features[10].block[3].append(nn.Hardswish())


@mistaken("classifier: sigmoid for softmax", {"predictions"}, "another activation")
def _(twin):
    def forward(self, x):
        x = self.features(x / 127.5 - 1)
        return torch.sigmoid(self.classifier(torch.flatten(self.avgpool(x), 1)))

    another_forward(twin, forward)


# Keras rounds 1 / 6 to float32, whatever the dtype.
NETWORK = Network(
    name="MobileNetV3Small",
    keras_model=keras_model,
    twin=MobileNetV3,
    mistakes=tuple(MISTAKES),
    within_float64=1e-6,
    slow=True,
)

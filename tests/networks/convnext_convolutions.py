"""ConvNeXtTiny of ``keras.applications``, its twin in convolutions: Keras's Dense layers are 1 x 1 kernels.

The twin normalizes with a LayerNorm2d, and has LayerScale as (channels, 1, 1).
"""

import functools

from course.mutants.tools import another_forward, exchange_tensors, put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.convnext import DEPTHS, WIDTHS, convnext
from tests.networks.images import images

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """A normalization of each pixel's channels, at axis 1."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to the same."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class CNBlock(nn.Module):
    """Convolve each channel, then two convolutions of each pixel; and the skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim, bias=True),
            LayerNorm2d(dim),
            nn.Conv2d(dim, 4 * dim, kernel_size=1),
            nn.GELU(),
            nn.Conv2d(4 * dim, dim, kernel_size=1),
        )
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1) * 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to the same."""
        return self.layer_scale * self.block(x) + x


class ConvNeXt(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for number, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
            if number == 0:
                self.features.append(nn.Sequential(nn.Conv2d(3, width, kernel_size=4, stride=4), LayerNorm2d(width)))
            else:
                before = WIDTHS[number - 1]
                self.features.append(
                    nn.Sequential(LayerNorm2d(before), nn.Conv2d(before, width, kernel_size=2, stride=2))
                )
            self.features.append(nn.Sequential(*(CNBlock(width) for _ in range(depth))))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(LayerNorm2d(WIDTHS[-1]), nn.Flatten(1), nn.Linear(WIDTHS[-1], 10))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        return self.classifier(self.avgpool(self.features(x)))


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("features.0: eps left at 1e-3", {"convnext_tiny_stem_layernorm"}, "epsilon")
def _(twin):
    twin.features[0][1].eps = 1e-3


@mistaken("features.1.0: GELU by tanh", {"convnext_tiny_stage_0_block_0_gelu"}, "another activation")
def _(twin):
    twin.features[1][0].block[3] = nn.GELU(approximate="tanh")


@mistaken(
    "features.1.1: LayerScale is missing",
    {"convnext_tiny_stage_0_block_1_layer_scale", "convnext_tiny_stage_0_block_1_identity"},
    "another skip",
)
def _(twin):
    another_forward(twin.features[1][1], lambda self, x: self.block(x) + x)


@mistaken("features.2: a 2 x 2 convolution padded", {"convnext_tiny_downsampling_conv_0"}, "padding")
def _(twin):
    twin.features[2][1].padding = (1, 1)


@mistaken(
    "features.3.0: kernel of a 1 x 1 convolution reshaped, not transposed",
    {"convnext_tiny_stage_1_block_0_pointwise_conv_1"},
    "kernel not transposed",
)
def _(twin):
    weight = twin.features[3][0].block[2].weight
    put(weight, weight.flatten(1).T.reshape(weight.shape))


@mistaken("features.3.1: ReLU for GELU", {"convnext_tiny_stage_1_block_1_gelu"}, "another activation")
def _(twin):
    twin.features[3][1].block[3] = nn.ReLU()


@mistaken("features.3.2: normalized over pixels, too", {"convnext_tiny_stage_1_block_2_layernorm"}, "axis")
def _(twin):
    def forward(self, x):
        x = F.layer_norm(x, x.shape[1:], eps=self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]

    another_forward(twin.features[3][2].block[1], forward)


@mistaken("features.5.2: LayerScale applied to the skip, too", {"add_8"}, "input scaled", named=False)
def _(twin):
    another_forward(twin.features[5][2], lambda self, x: self.layer_scale * (self.block(x) + x))


@mistaken(
    "features.5.3 and 5.4: depthwise convolutions exchanged",
    {"convnext_tiny_stage_2_block_3_depthwise_conv", "convnext_tiny_stage_2_block_4_depthwise_conv"},
    "weights of another layer",
)
def _(twin):
    exchange_tensors(twin.features[5][3].block[0], twin.features[5][4].block[0])


@mistaken(
    "features.7.2: bias of the second 1 x 1 convolution missing",
    {"convnext_tiny_stage_3_block_2_pointwise_conv_2"},
    "bias missing",
)
def _(twin):
    put(twin.features[7][2].block[4].bias, 0.0)


@mistaken("avgpool: the largest pixel", {"convnext_tiny_head_gap"}, "another pooling")
def _(twin):
    twin.avgpool = nn.AdaptiveMaxPool2d(1)


NETWORK = Network(
    name="ConvNeXtTiny in convolutions",
    keras_model=functools.partial(convnext, False, images(64, 96)),
    twin=ConvNeXt,
    mistakes=tuple(MISTAKES),
    slow=True,
)

"""ConvNeXtTiny of ``keras.applications`` with its preprocessing, its twin in the style of the authors' own code.

LayerScale is a layer of Keras's ConvNeXt with one weight, a factor for each channel; the twin has an ``nn.Parameter``.
"""

import functools
import itertools

from course.mutants.tools import another_forward, exchange, put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import calibrated, pixels

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS, WIDTHS = (3, 3, 9, 3), (96, 192, 384, 768)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convnext(preprocessing: bool, x: np.ndarray) -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model for the inputs, and the inputs."""
    model = keras.applications.ConvNeXtTiny(
        weights=None,
        include_preprocessing=preprocessing,
        input_shape=x.shape[1:],
        classes=10,
        classifier_activation=None,
        name="convnext_tiny",
    )
    return calibrated(model, x, 11)


class LayerNorm(nn.Module):
    """A normalization of each pixel's channels, which are last, or at axis 1."""

    def __init__(self, channels: int, eps: float = 1e-6, data_format: str = "channels_last") -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps, self.data_format = eps, data_format
        self.normalized_shape = (channels,)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, c), or (b, c, h, w), to the same."""
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Block(nn.Module):
    """Convolve each channel, then two layers for each pixel; and the skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm(dim)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to the same."""
        skip = x
        x = self.dwconv(x).permute(0, 2, 3, 1)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        x = (self.gamma * x).permute(0, 3, 1, 2)
        return skip + self.drop_path(x)


class ConvNeXt(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList()
        stem = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], kernel_size=4, stride=4), LayerNorm(WIDTHS[0], data_format="channels_first")
        )
        self.downsample_layers.append(stem)
        for here, there in itertools.pairwise(WIDTHS):
            layer = nn.Sequential(
                LayerNorm(here, data_format="channels_first"), nn.Conv2d(here, there, kernel_size=2, stride=2)
            )
            self.downsample_layers.append(layer)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(depth))) for depth, width in zip(DEPTHS, WIDTHS, strict=True)
        )
        self.norm = nn.LayerNorm(WIDTHS[-1], eps=1e-6)
        self.head = nn.Linear(WIDTHS[-1], 10)

    def preprocess(self, x: Tensor) -> Tensor:
        """Normalize the three colours of pixels from 0 to 255."""
        mean, deviation = (255 * x.new_tensor(numbers).view(3, 1, 1) for numbers in (MEAN, DEVIATION))
        return (x - mean) / deviation

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        x = self.preprocess(x)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean([-2, -1])))


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("images are not normalized, only divided by 255", {"convnext_tiny_prestem_normalization"}, "input scaled")
def _(twin):
    twin.__class__ = type("ConvNeXt", (ConvNeXt,), {"preprocess": lambda self, x: x / 255})


@mistaken("the stem pads by 2", {"convnext_tiny_stem_conv"}, "padding")
def _(twin):
    twin.downsample_layers[0][0].padding = (2, 2)


@mistaken("the stem's norm: epsilon outside the root", {"convnext_tiny_stem_layernorm"}, "epsilon", named=False)
def _(twin):
    def forward(self, x):
        u = x.mean(1, keepdim=True)
        x = (x - u) / ((x - u).pow(2).mean(1, keepdim=True).sqrt() + 0.01)
        return self.weight[:, None, None] * x + self.bias[:, None, None]

    another_forward(twin.downsample_layers[0][1], forward)


@mistaken("stages.0.1: epsilon is 1e-3", {"convnext_tiny_stage_0_block_1_layernorm"}, "epsilon")
def _(twin):
    twin.stages[0][1].norm.eps = 1e-3


@mistaken("stages.0.2: GELU by tanh", {"convnext_tiny_stage_0_block_2_gelu"}, "another activation")
def _(twin):
    twin.stages[0][2].act = nn.GELU(approximate="tanh")


@mistaken(
    "stages.1.0: LayerScale is missing",
    {"convnext_tiny_stage_1_block_0_layer_scale", "convnext_tiny_stage_1_block_0_identity"},
    "another skip",
)
def _(twin):
    def forward(self, x):
        y = self.dwconv(x).permute(0, 2, 3, 1)
        return x + self.pwconv2(self.act(self.pwconv1(self.norm(y)))).permute(0, 3, 1, 2)

    another_forward(twin.stages[1][0], forward)


@mistaken(
    "stages.1.1: LayerScale left at its first value",
    {"convnext_tiny_stage_1_block_1_layer_scale"},
    "weights hold other numbers",
)
def _(twin):
    put(twin.stages[1][1].gamma, 1e-6)


@mistaken(
    "stages.1.2: the kernel of each channel turned",
    {"convnext_tiny_stage_1_block_2_depthwise_conv"},
    "height and width exchanged",
)
def _(twin):
    put(twin.stages[1][2].dwconv.weight, twin.stages[1][2].dwconv.weight.transpose(2, 3))


@mistaken(
    "stages.2.0: the normalization is missing", {"convnext_tiny_stage_2_block_0_layernorm"}, "normalization missing"
)
def _(twin):
    def forward(self, x):
        y = self.pwconv2(self.act(self.pwconv1(self.dwconv(x).permute(0, 2, 3, 1))))
        return x + (self.gamma * y).permute(0, 3, 1, 2)

    another_forward(twin.stages[2][0], forward)


@mistaken("stages.2.3: GELU behind the second layer", {"convnext_tiny_stage_2_block_3_gelu"}, "activation missing")
def _(twin):
    def forward(self, x):
        y = self.act(self.pwconv2(self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))))
        return x + (self.gamma * y).permute(0, 3, 1, 2)

    another_forward(twin.stages[2][3], forward)


@mistaken("stages.2.5: the skip is missing", {"add_11"}, "another skip")
def _(twin):
    def forward(self, x):
        y = self.pwconv2(self.act(self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))))
        return (self.gamma * y).permute(0, 3, 1, 2)

    another_forward(twin.stages[2][5], forward)


@mistaken(
    "stages.3.0 and 3.1 hold each other's LayerScale",
    {"convnext_tiny_stage_3_block_0_layer_scale"},
    "weights of another layer",
)
def _(twin):
    exchange(twin.stages[3][0].gamma, twin.stages[3][1].gamma)


@mistaken(
    "the head: normalized before the pixels are averaged",
    {"convnext_tiny_head_gap", "convnext_tiny_head_layernorm"},
    "another skip",
    named=False,
)
def _(twin):
    def forward(self, x):
        x = self.preprocess(x)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.permute(0, 2, 3, 1)).mean((1, 2)))

    another_forward(twin, forward)


NETWORK = Network(
    name="ConvNeXtTiny",
    keras_model=functools.partial(convnext, True, pixels(64, 96)),
    twin=ConvNeXt,
    mistakes=tuple(MISTAKES),
    slow=True,
)

"""DenseNet121 of ``keras.applications``, its twin in torchvision's style: each layer joins all features anew."""

import functools
from collections import OrderedDict

from course.mutants.tools import another_forward, exchange_tensors
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import calibrated, images
from tests.networks.resnet import norm

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = (6, 12, 24, 16)
GROWTH = 32


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and two images."""
    model = keras.applications.DenseNet121(
        weights=None, input_shape=(64, 72, 3), classes=10, classifier_activation=None, name="densenet121"
    )
    return calibrated(model, images(64, 72), 9)


class DenseLayer(nn.Module):
    """A layer of a dense block: 32 more features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = norm(channels), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 4 * GROWTH, 1, bias=False)
        self.norm2, self.relu2 = norm(4 * GROWTH), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map several (b, c, h, w) to (b, 32, h, w)."""
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    """Layers, each of which takes the features of all before it."""

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        for number in range(layers):
            self.add_module(f"denselayer{number + 1}", DenseLayer(channels + number * GROWTH))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c + 32 layers, h, w)."""
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class Transition(nn.Sequential):
    """Half the features, half the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.relu = norm(channels), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2, stride=2)


class DenseNet(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            norm0=norm(64),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        channels = 64
        for number, count in enumerate(BLOCKS, 1):
            layers[f"denseblock{number}"] = DenseBlock(count, channels)
            channels += count * GROWTH
            if number < len(BLOCKS):
                layers[f"transition{number}"] = Transition(channels)
                channels //= 2
        layers["norm5"] = norm(channels)
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("conv0: padding=2", {"zero_padding2d", "conv1_conv"}, "padding")
def _(twin):
    twin.features.conv0.padding = (2, 2)


@mistaken("pool0: without padding", {"zero_padding2d_1", "pool1"}, "padding")
def _(twin):
    twin.features.pool0.padding = 0


@mistaken("denseblock1: new features before the old", {"conv2_block1_concat"}, "another skip")
def _(twin):
    def forward(self, x):
        features = [x]
        for layer in self.values():
            features.insert(0, layer(features))
        return torch.cat(features, 1)

    another_forward(twin.features.denseblock1, forward)


@mistaken("denseblock2.denselayer3: without its second ReLU", {"conv3_block3_1_relu"}, "activation missing")
def _(twin):
    twin.features.denseblock2.denselayer3.relu2 = nn.Identity()


@mistaken("denseblock2: a layer takes the features of one before twice", {"conv3_block4_concat"}, "another skip")
def _(twin):
    def forward(self, features):
        return DenseLayer.forward(self, [*features[:-1], features[-2]])

    another_forward(twin.features.denseblock2.denselayer5, forward)


@mistaken("transition2: largest for average", {"pool3_pool"}, "another pooling")
def _(twin):
    twin.features.transition2.pool = nn.MaxPool2d(2, 2)


@mistaken("transition3: pooled before ReLU and convolution", {"pool4_relu"}, "another skip", named=False)
def _(twin):
    def forward(self, x):
        return self.conv(self.pool(self.norm(x)).relu())

    another_forward(twin.features.transition3, forward)


@mistaken("denseblock3.denselayer7: eps left at 1e-3", {"conv4_block7_0_bn"}, "epsilon")
def _(twin):
    twin.features.denseblock3.denselayer7.norm1.eps = 1e-3


@mistaken(
    "denseblock3: two layers exchanged a convolution",
    {"conv4_block9_2_conv", "conv4_block10_2_conv"},
    "weights of another layer",
)
def _(twin):
    block = twin.features.denseblock3
    exchange_tensors(block.denselayer9.conv2, block.denselayer10.conv2)


@mistaken("the last ReLU is missing", {"relu"}, "activation missing")
def _(twin):
    def forward(self, x):
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), (1, 1)).flatten(1))

    another_forward(twin, forward)


NETWORK = Network(
    name="DenseNet121", keras_model=keras_model, twin=DenseNet, mistakes=tuple(MISTAKES), within_float64=1e-9, slow=True
)

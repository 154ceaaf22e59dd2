"""ResNet50 of ``keras.applications``, its twin in torchvision's style; the stride is in the first convolution."""

import functools

from course.mutants.tools import another_forward, exchange_tensors, put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import SIZE, calibrated, images

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and two images."""
    model = keras.applications.ResNet50(
        weights=None, input_shape=(*SIZE, 3), classes=10, classifier_activation=None, name="resnet50"
    )
    return calibrated(model, images(), 1)


def norm(channels: int) -> nn.BatchNorm2d:
    """Return a normalization as Keras's ResNets have it."""
    return nn.BatchNorm2d(channels, eps=1.001e-5, momentum=0.01)


class Bottleneck(nn.Module):
    """Three convolutions, and the skip."""

    def __init__(self, channels: int, width: int, stride: int = 1, downsample: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, stride), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1), norm(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if downsample:
            self.downsample = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride), norm(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, 4 width, h / stride, w / stride)."""
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def _layer(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels, width, stride, downsample=True)
    return nn.Sequential(first, *(Bottleneck(4 * width, width) for _ in range(blocks - 1)))


class ResNet(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3), norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2 = _layer(64, 64, 3, 1), _layer(256, 128, 4, 2)
        self.layer3, self.layer4 = _layer(512, 256, 6, 2), _layer(1024, 512, 3, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2048, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("conv1: padded as SAME, (2, 3)", {"conv1_pad", "conv1_conv"}, "padding")
def _(twin):
    twin.conv1.padding = (0, 0)
    another_forward(twin.conv1, lambda self, x: nn.Conv2d.forward(self, F.pad(x, (2, 3, 2, 3))))


@mistaken("maxpool: one more window at the end (ceil_mode)", {"pool1_pad", "pool1_pool"}, "padding")
def _(twin):
    twin.maxpool.ceil_mode = True


@mistaken(
    "layer2.0: the stride in the 3 x 3 convolution, as in version 1.5", {"conv3_block1_1_conv"}, "stride or dilation"
)
def _(twin):
    twin.layer2[0].conv1.stride, twin.layer2[0].conv2.stride = (1, 1), (2, 2)


@mistaken(
    "layer1.0: normalizations of the branch and of the skip exchanged",
    {"conv2_block1_0_bn", "conv2_block1_3_bn"},
    "weights of another layer",
)
def _(twin):
    exchange_tensors(twin.layer1[0].bn3, twin.layer1[0].downsample[1])


@mistaken("layer1.1: bias of conv2 lost, as torchvision has none", {"conv2_block2_2_conv"}, "bias missing")
def _(twin):
    put(twin.layer1[1].conv2.bias, 0.0)


@mistaken("layer2.1: a ReLU before the addition, too", {"conv3_block2_add"}, "another activation")
def _(twin):
    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.relu(self.bn3(self.conv3(out)))
        return self.relu(out + x)

    another_forward(twin.layer2[1], forward)


@mistaken("layer2.3: no ReLU behind the addition", {"conv3_block4_out"}, "activation missing")
def _(twin):
    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + x

    another_forward(twin.layer2[3], forward)


@mistaken("layer3.1: the skip begins before the ReLU", {"conv4_block2_add"}, "another skip")
def _(twin):
    def first(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.downsample(x)

    another_forward(twin.layer3[0], first)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(F.relu(x))))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + x)

    another_forward(twin.layer3[1], forward)


@mistaken("layer3.2: eps left at 1e-3", {"conv4_block3_2_bn"}, "epsilon")
def _(twin):
    twin.layer3[2].bn2.eps = 1e-3


@mistaken("layer4: in train mode", {"conv5_block1_0_bn", "conv5_block1_1_bn"}, "train mode")
def _(twin):
    twin.layer4.train()


@mistaken(
    "layer4.1: the ReLU before the addition, not behind",
    {"conv5_block2_add", "conv5_block2_out"},
    "activation in another place",
)
def _(twin):
    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out))) + x

    another_forward(twin.layer4[1], forward)


@mistaken("fc: the largest pixel for the average", {"avg_pool"}, "another pooling")
def _(twin):
    twin.avgpool = nn.AdaptiveMaxPool2d((1, 1))


@mistaken("layer1.0: momentum left at 0.1", {"conv2_block1_1_bn"}, "momentum", training=True)
def _(twin):
    twin.layer1[0].bn1.momentum = 0.1


NETWORK = Network(
    name="ResNet50", keras_model=keras_model, twin=ResNet, mistakes=tuple(MISTAKES), within_float64=1e-9, slow=True
)

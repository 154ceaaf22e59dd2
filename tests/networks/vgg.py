"""VGG16 with small Dense layers, its twin in torchvision's style: it flattens channels first, and drops features."""

import functools

from course.mutants.tools import another_forward, exchange_tensors, put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import calibrated, images

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor, nn

CONFIGURATION = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
"""The numbers of filters, and where pixels are pooled."""


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and two images."""
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(64, 96, 3))
    x = L.Flatten(name="flatten")(base.output)
    x = L.Dense(48, activation="relu", name="fc1")(x)
    x = L.Dropout(0.5, name="drop1")(x)
    x = L.Dense(32, activation="relu", name="fc2")(x)
    x = L.Dropout(0.5, name="drop2")(x)
    x = L.Dense(10, activation="softmax", name="predictions")(x)
    return calibrated(keras.Model(base.input, x, name="vgg16"), images(64, 96), 10)


class VGG(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in CONFIGURATION:
            if width == "M":
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            else:
                layers += [nn.Conv2d(channels, int(width), 3, padding=1), nn.ReLU(inplace=True)]
                channels = int(width)
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 3))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 2 * 3, 48),
            nn.ReLU(True),
            nn.Dropout(0.5),
            nn.Linear(48, 32),
            nn.ReLU(True),
            nn.Dropout(0.5),
            nn.Linear(32, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 10)."""
        x = self.avgpool(self.features(x))
        return F.softmax(self.classifier(torch.flatten(x, 1)), dim=1)


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("colours in the order blue, green, red", {"input_layer", "block1_conv1"}, "channels reversed")
def _(twin):
    original = VGG.forward
    another_forward(twin, lambda self, x: original(self, x.flip(1)))


@mistaken("features.5: a convolution padded on the wrong side", {"block2_conv1"}, "padding")
def _(twin):
    twin.features[5].padding = (0, 0)
    another_forward(twin.features[5], lambda self, x: nn.Conv2d.forward(self, F.pad(x, (2, 0, 2, 0))))


@mistaken("features.7: kernels turned", {"block2_conv2"}, "height and width exchanged")
def _(twin):
    put(twin.features[7].weight, twin.features[7].weight.transpose(2, 3))


@mistaken("features.9: average for the maximum", {"block2_pool"}, "another pooling")
def _(twin):
    twin.features[9] = nn.AvgPool2d(2, 2)


@mistaken("features.13: a ReLU is missing", {"block3_conv2"}, "activation missing")
def _(twin):
    twin.features[13] = nn.Identity()


@mistaken("features.16: pooling overlaps", {"block3_pool"}, "stride or dilation")
def _(twin):
    twin.features[16] = nn.MaxPool2d(3, 2, padding=1)


@mistaken("features.17 and 19 hold each other's bias", {"block4_conv1"}, "weights of another layer")
def _(twin):
    bias = twin.features[17].bias.detach().clone()
    put(twin.features[17].bias, twin.features[19].bias)
    put(twin.features[19].bias, bias)


@mistaken("features.26: two convolutions exchanged", {"block5_conv2", "block5_conv3"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.features[26], twin.features[28])


@mistaken("classifier.0: rows as Keras flattens them", {"fc1"}, "flatten order")
def _(twin):
    weight = twin.classifier[0].weight
    put(weight, weight.reshape(48, 512, 2, 3).permute(0, 2, 3, 1))


@mistaken("classifier: dropout is active", {"drop1", "fc2"}, "train mode")
def _(twin):
    twin.classifier[2].train()


@mistaken("softmax over the batch", {"predictions"}, "axis")
def _(twin):
    def forward(self, x):
        return F.softmax(self.classifier(torch.flatten(self.avgpool(self.features(x)), 1)), dim=0)

    another_forward(twin, forward)


NETWORK = Network(name="VGG16", keras_model=keras_model, twin=VGG, mistakes=tuple(MISTAKES), slow=True)

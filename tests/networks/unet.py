"""U-Net: two convolutions at each of four sizes on the way down and up, with skips, in the usual hand-written style."""

import functools

from course.mutants.tools import another_forward, exchange_tensors
from tests.networks.base import Mistake, Network, mistake
from tests.networks.images import calibrated, images

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor, nn

WIDTHS = (8, 12, 16, 24)


def _double(x: keras.KerasTensor, width: int, name: str) -> keras.KerasTensor:
    for number in (1, 2):
        x = L.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_conv{number}")(x)
        x = L.BatchNormalization(name=f"{name}_bn{number}")(x)
        x = L.Activation("relu", name=f"{name}_relu{number}")(x)
    return x


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and two images."""
    start = x = keras.Input((40, 48, 3))
    skips = []
    for number, width in enumerate(WIDTHS[:-1]):
        x = _double(x, width, f"enc{number}")
        skips.append(x)
        x = L.MaxPooling2D(2, name=f"pool{number}")(x)
    x = _double(x, WIDTHS[-1], "middle")
    for number, width in reversed(list(enumerate(WIDTHS[:-1]))):
        if number == 1:  # the usual three ways up
            x = L.UpSampling2D(2, interpolation="bilinear", name=f"up{number}")(x)
        elif number == 2:
            x = L.UpSampling2D(2, name=f"up{number}")(x)
        else:
            x = L.Conv2DTranspose(width, 2, strides=2, padding="same", name=f"up{number}")(x)
        x = L.Concatenate(name=f"cat{number}")([skips[number], x])
        x = _double(x, width, f"dec{number}")
    y = L.Conv2D(2, 1, activation="sigmoid", name="mask")(x)
    return calibrated(keras.Model(start, y, name="unet"), images(40, 48), 1)


class DoubleConv(nn.Module):
    """Two convolutions, each with its normalization and ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, eps=1e-3, momentum=0.01),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, eps=1e-3, momentum=0.01),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, width, h, w)."""
        return self.double_conv(x)


class Down(nn.Module):
    """Half the size, then two convolutions."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(channels, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, width, h / 2, w / 2)."""
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Twice the size, the skip beside it, then two convolutions."""

    def __init__(self, up: nn.Module, channels: int, width: int) -> None:
        super().__init__()
        self.up = up
        self.conv = DoubleConv(channels, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (b, c, h, w) and (b, width, 2 h, 2 w) to (b, width, 2 h, 2 w)."""
        x = self.up(x)
        height, width = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.inc = DoubleConv(3, a)
        self.down1, self.down2, self.down3 = Down(a, b), Down(b, c), Down(c, d)
        self.up1 = Up(nn.Upsample(scale_factor=2, mode="nearest"), c + d, c)
        self.up2 = Up(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), b + c, b)
        self.up3 = Up(nn.ConvTranspose2d(b, a, 2, stride=2), 2 * a, a)
        self.outc = nn.Conv2d(a, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, 2, h, w)."""
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.up1(self.down3(x3), x3)
        return torch.sigmoid(self.outc(self.up3(self.up2(x, x2), x1)))


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("inc: the second ReLU missing", {"enc0_relu2"}, "activation missing")
def _(twin):
    twin.inc.double_conv[5] = nn.Identity()


@mistaken("down1: eps of the first norm left at 1e-5", {"enc1_bn1"}, "epsilon")
def _(twin):
    twin.down1.maxpool_conv[1].double_conv[1].eps = 1e-5


@mistaken("down2: average for the maximum", {"pool1"}, "another pooling")
def _(twin):
    twin.down2.maxpool_conv[0] = nn.AvgPool2d(2)


@mistaken("down3: a convolution without padding, which up1 makes good", {"middle_conv1"}, "padding")
def _(twin):
    twin.down3.maxpool_conv[1].double_conv[0].padding = (0, 0)


@mistaken("down3: its convolution reflects the border", {"middle_conv2"}, "padding value")
def _(twin):
    old = twin.down3.maxpool_conv[1].double_conv[3]
    new = nn.Conv2d(24, 24, 3, padding=1, bias=False, padding_mode="reflect").to(old.weight.dtype)
    new.load_state_dict(old.state_dict())
    twin.down3.maxpool_conv[1].double_conv[3] = new


@mistaken("up1: bilinear for nearest", {"up2"}, "interpolation")
def _(twin):
    twin.up1.up = nn.Upsample(scale_factor=2, mode="bilinear")


@mistaken("up2: the corners aligned", {"up1"}, "interpolation")
def _(twin):
    twin.up2.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)


@mistaken("up2: the skip behind, not before", {"cat1"}, "another skip")
def _(twin):
    another_forward(twin.up2, lambda self, x, skip: self.conv(torch.cat([self.up(x), skip], dim=1)))


@mistaken("up1: the norms of the two convolutions exchanged", {"dec2_bn1", "dec2_bn2"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.up1.conv.double_conv[1], twin.up1.conv.double_conv[4])


@mistaken("up3: kernel of the transposed convolution as of a convolution", {"up0"}, "kernel flipped")
def _(twin):
    twin.up3.up.weight.data = twin.up3.up.weight.data.flip(2, 3)


@mistaken("up3: the skip goes in before its ReLU", {"cat0"}, "another skip")
def _(twin):
    def forward(self, x):
        x1 = self.inc.double_conv[:5](x)
        x2 = self.down1(F.relu(x1))
        x3 = self.down2(x2)
        x = self.up1(self.down3(x3), x3)
        return torch.sigmoid(self.outc(self.up3(self.up2(x, x2), x1)))

    another_forward(twin, forward)


@mistaken("softmax for sigmoid", {"mask"}, "another activation")
def _(twin):
    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.up1(self.down3(x3), x3)
        return torch.softmax(self.outc(self.up3(self.up2(x, x2), x1)), dim=1)

    another_forward(twin, forward)


# TensorFlow resizes in float32, whatever the dtype.
NETWORK = Network(name="U-Net", keras_model=keras_model, twin=UNet, mistakes=tuple(MISTAKES), within_float64=1e-6)

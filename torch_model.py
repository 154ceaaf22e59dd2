"""DroNet in PyTorch: the twin of ``keras_model.resnet8``, right at every input size."""

import math

from parity.padding import Conv2dSame

import torch
from torch import Tensor, nn

# Keras's defaults. PyTorch's are 1e-5 and 0.1, and its momentum is the complement of Keras's.
_EPSILON = 1e-3
_MOMENTUM = 1 - 0.99


class ResidualBlock(nn.Module):
    """Two normalized 3 x 3 convolutions beside a 1 x 1 convolution; it halves height and width.

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels, eps=_EPSILON, momentum=_MOMENTUM)
        self.conv1 = Conv2dSame(in_channels, out_channels, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=_EPSILON, momentum=_MOMENTUM)
        self.conv2 = Conv2dSame(out_channels, out_channels, 3)
        self.downsample = Conv2dSame(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, h, w) to (batch, out_channels, ceil(h / 2), ceil(w / 2))."""
        main = self.conv1(torch.relu(self.bn1(x)))
        main = self.conv2(torch.relu(self.bn2(main)))
        return self.downsample(x) + main


class ResNet8(nn.Module):
    """DroNet: a ResNet-8 with one head for the steering angle and one for the probability of a collision.

    Args:
        img_width: Width of the images, in pixels.
        img_height: Height of the images, in pixels.
        img_channels: Number of channels of the images.
        output_dim: Number of values of each head.

    Raises:
        ValueError: If the images are smaller than 5 x 5 pixels, the least that the Keras model accepts.
    """

    def __init__(self, img_width: int = 200, img_height: int = 200, img_channels: int = 1, output_dim: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv2dSame(img_channels, 32, 5, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2)
        self.block1 = ResidualBlock(32, 32)
        self.block2 = ResidualBlock(32, 64)
        self.block3 = ResidualBlock(64, 128)
        self.dropout = nn.Dropout(0.5)
        features = 128 * _trunk_size(img_height) * _trunk_size(img_width)
        self.steer = nn.Linear(features, output_dim)
        self.coll = nn.Linear(features, output_dim)

    def forward(self, x: Tensor, logits: bool = False) -> tuple[Tensor, Tensor]:
        """Predict steering and collision.

        Args:
            x: Images of shape (batch, img_channels, img_height, img_width), with values in [0, 1].
            logits: Return the collision before the sigmoid instead of its probability.

        Returns:
            Steering and collision, each of shape (batch, output_dim).
        """
        x = self.maxpool(self.conv1(x))
        x = self.block3(self.block2(self.block1(x)))
        # The heads' weights are in Keras's order of features: rows, columns, channels.
        x = torch.relu(x.permute(0, 2, 3, 1).flatten(1))
        x = self.dropout(x)
        steering, collision = self.steer(x), self.coll(x)
        return steering, collision if logits else torch.sigmoid(collision)


def _trunk_size(size: int) -> int:
    """Return the number of rows (or columns) that reach the heads, of an image of ``size`` rows (or columns)."""
    if size < 5:
        raise ValueError(f"ResNet8: images must be at least 5 x 5 pixels; got {size}")
    pooled = (math.ceil(size / 2) - 3) // 2 + 1
    return math.ceil(pooled / 8)

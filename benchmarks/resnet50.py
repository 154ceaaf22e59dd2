"""ResNet50 as ``keras.applications`` builds it, and its twin."""

from parity import transfer

import keras
import pandas as pd
import torch
from torch import Tensor, nn

# Keras's ResNet50: the width of each stage and the number of its blocks.
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
EPSILON = 1.001e-5


class Bottleneck(nn.Module):
    """A block of ResNet50, with the stride in its first convolution, as Keras has it."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleDict(
            {"1": nn.Conv2d(in_channels, width, 1, stride), "2": nn.Conv2d(width, width, 3, padding=1)}
        )
        self.convs["3"] = nn.Conv2d(width, 4 * width, 1)
        if shortcut:
            self.convs["0"] = nn.Conv2d(in_channels, 4 * width, 1, stride)
        self.bns = nn.ModuleDict({name: normalization(conv.out_channels) for name, conv in self.convs.items()})

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, h, w) to (batch, 4 width, h / stride, w / stride)."""
        y = x
        for name in ("1", "2", "3"):
            y = self.bns[name](self.convs[name](y))
            y = y if name == "3" else torch.relu(y)
        return torch.relu((self.bns["0"](self.convs["0"](x)) if "0" in self.convs else x) + y)


class ResNet50(nn.Module):
    """The twin of ``keras.applications.ResNet50``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d(3), nn.Conv2d(3, 64, 7, 2), normalization(64), nn.ReLU())
        self.pool = nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2))
        self.blocks = nn.ModuleDict()
        channels = 64
        for stage, (width, count) in enumerate(STAGES, 2):
            for block in range(1, count + 1):
                stride = 2 if block == 1 and stage > 2 else 1
                self.blocks[f"conv{stage}_block{block}"] = Bottleneck(channels, width, stride, block == 1)
                channels = 4 * width
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to probabilities (batch, 1000)."""
        x = self.pool(self.stem(x))
        for block in self.blocks.values():
            x = block(x)
        return self.fc(x.mean((2, 3))).softmax(1)


def normalization(channels: int) -> nn.BatchNorm2d:
    """Return BatchNormalization as Keras's ResNet50 has it."""
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=1 - 0.99)


def twin_key(path: str) -> str:
    """Return the key in the twin's state dict of a weight of Keras's ResNet50."""
    layer, weight = path.split("/")
    tensors = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
    tensor = tensors.get(weight, weight.replace("moving", "running").replace("variance", "var"))
    if layer == "predictions":
        return f"fc.{tensor}"
    if layer.startswith("conv1_"):
        return f"stem.{1 if layer.endswith('conv') else 2}.{tensor}"
    block, number, kind = layer.rsplit("_", 2)
    return f"blocks.{block}.{kind}s.{number}.{tensor}"


def resnet50(size: int = 224) -> tuple[keras.Model, nn.Module, pd.DataFrame]:
    """Return ResNet50 in both frameworks, with the same weights, and the mapping between them.

    Args:
        size: Height and width of the images.
    """
    keras.utils.set_random_seed(0)
    keras_model = keras.applications.ResNet50(weights=None, input_shape=(size, size, 3), classes=1000)
    torch_model = ResNet50().eval()
    rows = [(weight.path, twin_key(weight.path)) for weight in keras_model.weights]
    rows += [("", key) for key in torch_model.state_dict() if key.endswith("num_batches_tracked")]
    mapping = pd.DataFrame(rows, columns=["keras", "torch"])
    transfer(keras_model, torch_model, mapping)
    return keras_model, torch_model, mapping

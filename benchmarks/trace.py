"""What does a trace cost? ``python benchmarks/trace.py``.

Traces DroNet on 8 images of 200 x 200, and ResNet50 (He et al., 2015, https://arxiv.org/abs/1512.03385) as
``keras.applications`` builds it, with random weights, on 4 images of 224 x 224. Prints the time beside that of one
forward pass of both models, and how much more memory a trace takes than forward passes do that came before, beside the
size of all layers' outputs together, which a trace that kept them would need. It takes about two minutes and 3 GB.
"""

import course  # noqa: F401, I001  settles the Keras backend before Keras is imported
from pathlib import Path

from parity.axes import torch_input
from parity import first_divergence, load_keras_weights, read_mapping, trace, transfer

import keras
import numpy as np
import pandas as pd
import torch
from keras_model import resnet8
from measure import best_times, peak_memory
from torch import Tensor, nn
from torch_model import ResNet8

PROJECT = Path(__file__).parents[1]
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


def resnet50() -> tuple[keras.Model, nn.Module, pd.DataFrame]:
    """Return ResNet50 in both frameworks, with the same weights, and the mapping between them."""
    keras.utils.set_random_seed(0)
    keras_model = keras.applications.ResNet50(weights=None)
    torch_model = ResNet50().eval()
    rows = [(weight.path, twin_key(weight.path)) for weight in keras_model.weights]
    rows += [("", key) for key in torch_model.state_dict() if key.endswith("num_batches_tracked")]
    mapping = pd.DataFrame(rows, columns=["keras", "torch"])
    transfer(keras_model, torch_model, mapping)
    return keras_model, torch_model, mapping


def dronet() -> tuple[keras.Model, nn.Module, pd.DataFrame]:
    """Return DroNet in both frameworks, with the project's weights, and the mapping between them."""
    keras_model, torch_model = resnet8(200, 200, 1, 1), ResNet8().eval()
    load_keras_weights(keras_model, PROJECT / "course" / "weights" / "dronet_scenes.h5")
    mapping = read_mapping(PROJECT / "keras_torch_mapping.csv")
    transfer(keras_model, torch_model, mapping)
    return keras_model, torch_model, mapping


def outputs_size(keras_model: keras.Model, batch: int) -> int:
    """Return the size of the outputs of all layers together, in bytes."""
    shapes = [layer.output.shape[1:] for layer in keras_model.layers]
    return sum(4 * batch * int(np.prod(shape)) for shape in shapes)


def main() -> None:
    """Measure and print."""
    print(f"{torch.get_num_threads()} threads, the best of several runs")
    for name, build, shape in (("DroNet", dronet, (8, 200, 200, 1)), ("ResNet50", resnet50, (4, 224, 224, 3))):
        keras_model, torch_model, mapping = build()
        x = np.random.default_rng(0).random(shape, dtype=np.float32)
        tensor = torch_input(x)

        def keras_forward(model: keras.Model = keras_model, x: np.ndarray = x) -> None:
            model(x)

        def torch_forward(model: nn.Module = torch_model, tensor: Tensor = tensor) -> None:
            with torch.no_grad():
                model(tensor)

        def traced(models: tuple = (keras_model, torch_model), x: np.ndarray = x, mapping: pd.DataFrame = mapping):
            return trace(*models, x, mapping)

        peaks = []
        for action in (keras_forward, torch_forward, traced):
            with peak_memory() as growth:
                action()
            peaks.append(growth[0] / 1e6)
        assert first_divergence(traced()) is None
        times = best_times({"Keras": keras_forward, "PyTorch": torch_forward, "trace": traced})
        both = times["Keras"] + times["PyTorch"]
        everything = outputs_size(keras_model, shape[0]) / 1e6
        print(f"{name}: one forward pass in Keras {times['Keras']:.3f} s, in PyTorch {times['PyTorch']:.3f} s")
        print(f"  a trace {times['trace']:.3f} s: {times['trace'] / both:.1f} forward passes of both models")
        print("  memory at the peak, more than before: ", end="")
        print(f"{peaks[0]:.0f} MB in Keras, {peaks[1]:.0f} MB in PyTorch, {peaks[2]:.0f} MB in a trace")
        print(f"  the outputs of all layers in both frameworks: {2 * everything:.0f} MB")


if __name__ == "__main__":
    main()

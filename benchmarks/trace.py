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
from resnet50 import resnet50
from torch import Tensor, nn
from torch_model import ResNet8

PROJECT = Path(__file__).parents[1]


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

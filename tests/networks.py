"""What several tests need: models with random weights, mappings, and every byte of a model."""

from course.small_models import TENSORS, draw, fill, table
from parity import transfer

import keras
import numpy as np
import torch
from torch import nn

__all__ = [
    "ROUNDING",
    "TENSORS",
    "draw",
    "fill",
    "in_float64",
    "moved",
    "rows_for",
    "sequential",
    "snapshot",
    "spoil",
    "table",
    "twin_output",
]

ROUNDING = 1e-12


def spoil(module):
    """Give every tensor of a PyTorch model a value that no test wants."""
    for tensor in module.state_dict().values():
        tensor.fill_(7)
    return module.eval()


def sequential(shape, *layers, dtype="float64"):
    """Return a Keras model of these layers with random weights."""
    return fill(keras.Sequential([keras.Input(shape, dtype=dtype), *layers]))


def rows_for(model, module):
    """Return the right mapping of a model with one layer to a module: (Keras path, PyTorch key) for each tensor."""
    keys = list(module.state_dict())
    rows = []
    for variable in model.weights:
        key = TENSORS[variable.name]
        rows.append((variable.path, key if key in keys else f"pointwise.{key}"))
    filled = {key for _, key in rows}
    return rows + [("", key) for key in keys if key not in filled]


def moved(layer, module, shape):
    """Give a Keras layer for inputs of a shape (without batch) random weights, and move them into its twin."""
    model = sequential(shape, layer, dtype=layer.dtype)
    transfer(model, spoil(module), table(*rows_for(model, module)))
    return module


def twin_output(module, x):
    """Return what a PyTorch module makes of channels-last input, channels last."""
    with torch.no_grad():
        y = module(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
    return np.moveaxis(y.numpy(), 1, -1)


def snapshot(model):
    """Return every byte of a Keras or PyTorch model's tensors, by name; a meta tensor has none."""
    if isinstance(model, nn.Module):
        tensors = {k: None if v.is_meta else v.detach() for k, v in model.state_dict().items()}
    else:
        tensors = {variable.path: torch.tensor(variable.numpy()) for variable in model.weights}
    return {
        name: None if t is None else (t.dtype, t.shape, t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


def in_float64(model):
    """Return a Keras model of the same architecture and names that computes in float64."""
    return keras.models.clone_model(
        model,
        input_tensors=keras.Input(model.input_shape[1:], dtype="float64"),
        clone_function=lambda layer: type(layer).from_config(layer.get_config() | {"dtype": "float64"}),
    )

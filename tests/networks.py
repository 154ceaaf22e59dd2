"""What several tests need: random weights, mappings, and every byte of a model.

Every number is drawn from a normal distribution, so that it may be negative and no two are alike, and in float64, where
rounding makes a difference of about 1e-14 and a mistake one of about 1.
"""

import parity  # noqa: F401, I001  settles the Keras backend before Keras is imported
import keras
import numpy as np
import pandas as pd
import torch
from torch import nn

from parity.weights.mapping import COLUMNS
from parity import transfer

ROUNDING = 1e-12

# Written out here, not taken from parity.layouts, which is what is tested.
TENSORS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "alpha": "weight",
    "embeddings": "weight",
    "depthwise_kernel": "depthwise.weight",
    "pointwise_kernel": "pointwise.weight",
}


def draw(*shape, seed=0):
    """Return numbers that float32 holds exactly, as float64."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(np.float64)


def fill(model, seed=0):
    """Give a Keras layer or model random weights, and positive variances of which none is near 1."""
    for number, variable in enumerate(model.weights):
        values = draw(*variable.shape, seed=(seed, number))
        variable.assign(2 + np.abs(values) if variable.name == "moving_variance" else values)
    return model


def spoil(module):
    """Give every tensor of a PyTorch model a value that no test wants."""
    for tensor in module.state_dict().values():
        tensor.fill_(7)
    return module.eval()


def sequential(shape, *layers, dtype="float64"):
    """Return a Keras model of these layers with random weights."""
    return fill(keras.Sequential([keras.Input(shape, dtype=dtype), *layers]))


def table(*rows):
    """Return a mapping as read_mapping would, had it read these rows from line 2 on."""
    lines = pd.RangeIndex(2, 2 + len(rows), name="line")
    return pd.DataFrame(rows, index=lines, columns=COLUMNS, dtype=str)


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

"""What small Keras models and their twins are given: random weights, and a mapping from the one to the other.

Every number is drawn from a normal distribution, so that it may be negative and no two are alike, and is float64, where
rounding makes a difference of about 1e-14 and a mistake one of about 1.
"""

import math
from collections.abc import Mapping

from parity.weights.mapping import COLUMNS

import keras
import numpy as np
import pandas as pd
from torch import nn

# Written out here, not taken from parity, so that the tests of parity can use it.
TENSORS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "alpha": "weight",
    "scale": "weight",
    "embeddings": "weight",
    "depthwise_kernel": "depthwise.weight",
    "pointwise_kernel": "pointwise.weight",
}
"""By name of a Keras weight, the tensor of the PyTorch module that it fills."""


def draw(*shape: int, seed: int | tuple[int, ...] = 0) -> np.ndarray:
    """Return an array of random numbers that float32 holds exactly, as float64."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(np.float64)


def fill(model: keras.Model | keras.Layer, seed: int = 0) -> keras.Model | keras.Layer:
    """Give a Keras layer or model random weights, and positive variances of which none is near 1; return it."""
    for number, variable in enumerate(model.weights):
        values = draw(*variable.shape, seed=(seed, number))
        variable.assign(2 + np.abs(values) if variable.name == "moving_variance" else values)
    return model


def fill_scaled(model: keras.Model, seed: int = 0) -> keras.Model:
    """Give a Keras model random weights under which its layers' outputs are about 1 in size; return it."""
    fill(model, seed)
    for variable in model.weights:
        if variable.name.endswith("kernel"):
            fan_in = math.prod(variable.shape[:-2]) * (1 if variable.name == "depthwise_kernel" else variable.shape[-2])
            variable.assign(variable.numpy() / math.sqrt(max(fan_in, 1)))
    return model


def table(*rows: tuple[str, str]) -> pd.DataFrame:
    """Return a mapping as ``read_mapping`` would, had it read these rows (Keras path, PyTorch key) from line 2 on."""
    lines = pd.RangeIndex(2, 2 + len(rows), name="line")
    return pd.DataFrame(rows, index=lines, columns=COLUMNS, dtype=str)


def pair_up(keras_model: keras.Model, twin: nn.Module, modules: Mapping[str, str]) -> pd.DataFrame:
    """Return the mapping of a Keras model to its twin, given the module of each layer with weights.

    Args:
        keras_model: The Keras model.
        twin: Its twin. A SeparableConv is a module with the children ``depthwise`` and ``pointwise``.
        modules: The name of the twin's module for each name of a Keras layer, at whatever depth.
    """
    keys, rows = list(twin.state_dict()), []
    for variable in keras_model.weights:
        module, tensor = modules[variable.path.split("/")[-2]], TENSORS[variable.name]
        key = f"{module}.{tensor}"
        rows.append((variable.path, key if key in keys else f"{module}.pointwise.{tensor}"))
    filled = {key for _, key in rows}
    return table(*rows, *(("", key) for key in keys if key not in filled))

"""How the networks are built: a Keras model at several sizes, and a twin that was given its weights.

The small networks compute in float64, where rounding makes a difference of about 1e-15 and a mistake a much larger one.
Keras rounds some numbers to float32 all the same: the slope of LeakyReLU, a constant of GELU, all of UpSampling2D with
bilinear interpolation. This makes differences of up to 5e-7. Kernels are scaled so that every layer's output is of the
order of 1.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from course.mutants.base import Network, Probe
from course.small_models import draw, fill_scaled, pair_up
from parity import transfer

import keras
import numpy as np
import pandas as pd
from torch import nn


def keras_layer(kind: str, *args: Any, **kwargs: Any) -> keras.Layer:
    """Return a Keras layer that computes in float64, unless told otherwise."""
    return getattr(keras.layers, kind)(*args, **({"dtype": "float64"} | kwargs))


def keras_input(*shape: int | None, name: str = "input", dtype: str = "float64") -> keras.KerasTensor:
    """Return the input of a Keras model, of a shape without the batch."""
    return keras.Input(shape, name=name, dtype=dtype)


def named(tensor: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Give the operation that returns a Keras tensor a name that is the same in each model; return the tensor."""
    tensor._keras_history.operation.name = name
    return tensor


def ported(
    name: str,
    probes: tuple[Probe, ...],
    twin: nn.Module,
    mapping: pd.DataFrame,
    flatten: dict[str, tuple[int, ...]] | None = None,
) -> Network:
    """Give a twin the weights of its Keras model, and return both as a network; see ``Network``."""
    transfer(probes[0].keras_model, twin.eval(), mapping, flatten)
    return Network(name, probes, functools.partial(copy.deepcopy, twin), mapping, flatten, within=2e-6)


def small_network(
    make: Callable[..., keras.Model],
    sizes: list[tuple[int, ...]],
    twin: nn.Module,
    modules: Mapping[str, str],
    flatten: dict[str, tuple[int, ...]] | None = None,
) -> Network:
    """Return a network that computes in float64, with random weights and inputs.

    Args:
        make: Returns the Keras model for inputs of a size.
        sizes: For each probe, the number of inputs in its batch and the arguments of ``make``.
        twin: The twin, whose tensors have any values.
        modules: The name of the twin's module for each name of a Keras layer with weights.
        flatten: What to tell ``transfer`` of a twin that flattens channels first.
    """
    probes = probes_of(make, sizes)
    model = probes[0].keras_model
    return ported(model.name, probes, twin.double(), pair_up(model, twin, modules), flatten)


def probes_of(make: Callable[..., keras.Model], sizes: list[tuple[int, ...]]) -> tuple[Probe, ...]:
    """Return a Keras model at several sizes, with random weights and inputs; see ``small_network``."""
    return tuple(_probe(make(*size), batch, seed) for seed, (batch, *size) in enumerate(sizes, 1))


def _probe(model: keras.Model, batch: int, seed: int) -> Probe:
    """Give a Keras model random weights, the same for each size, and draw inputs: integers are from 0 to 10."""
    x = []
    for number, start in enumerate(fill_scaled(model).inputs):
        values = draw(batch, *start.shape[1:], seed=(seed, number))
        x.append(values if start.dtype == "float64" else (np.abs(values) * 100 % 11).astype(start.dtype))
    return Probe(model, x)

"""A Keras model turned into one that has the channels first. Its twin, and the mapping, stay the same."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as L

_WITH_AXIS = (L.BatchNormalization, L.LayerNormalization, L.GroupNormalization, L.Concatenate, L.Softmax)


def turned(model: keras.Model) -> keras.Model:
    """Return a model whose layers have the channels first, with the names and the weights of another.

    ``Flatten`` moves the channels to the end, so that features keep their order.
    """
    new = _turned(model, {})
    for old, weight in zip(model.weights, new.weights, strict=True):
        weight.assign(old.numpy().reshape(weight.shape))
    return new


def turned_input(x: np.ndarray) -> np.ndarray:
    """Return an input of the turned model."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim > 2 else x


def can_be_turned(model: keras.Model) -> bool:
    """Tell whether a turned model computes the same.

    A softmax that is an activation is of the last axis. And where an image is as wide as it has channels, Keras 3.15 on
    TensorFlow adds a bias along the wrong axis.
    """
    for layer in _flat(model):
        shape = layer.output.shape
        activation = getattr(getattr(layer, "activation", None), "__name__", "")
        adds = getattr(layer, "bias", None) is not None
        if len(shape) > 2 and ("softmax" in activation or (adds and shape[-2] == shape[-1])):
            return False
    return True


def _flat(model: keras.Model) -> list[keras.Layer]:
    return [inner for layer in model.layers for inner in (_flat(layer) if isinstance(layer, keras.Model) else [layer])]


def _turned(model: keras.Model, made: dict[int, Any]) -> keras.Model:
    inputs = [keras.Input(_moved(x.shape[1:]), dtype=x.dtype, name=x.name) for x in model.inputs]

    def of(layer: keras.Layer) -> keras.Layer:
        if id(layer) not in made:
            nested = isinstance(layer, keras.Model)
            made[id(layer)] = _turned(layer, made) if nested else type(layer).from_config(_config(layer))
        return made[id(layer)]

    given = inputs if isinstance(model.input, list) else inputs[0]
    return _cloned(model, given, of)


def _cloned(model: keras.Model, inputs: Any, clone: Callable) -> keras.Model:
    return keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)


def _moved(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return (shape[-1], *shape[:-1]) if len(shape) > 1 else shape


def _config(layer: keras.Layer) -> dict[str, Any]:
    config, rank = layer.get_config(), len(layer.input[0].shape if isinstance(layer.input, list) else layer.input.shape)
    if rank > 2 and "data_format" in config:
        config["data_format"] = "channels_first"
    if rank > 2 and isinstance(layer, _WITH_AXIS):
        config["axis"] = 1
    if rank > 2 and isinstance(layer, L.PReLU):
        config["shared_axes"] = list(range(2, rank))
    return config

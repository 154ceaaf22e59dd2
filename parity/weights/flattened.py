"""Features after a ``Flatten``: Keras has them in the order (*spatial, channels), a twin may have channels first."""

from collections.abc import Sequence
from math import prod

import keras
from torch import Tensor

ON_FEATURES = (
    keras.layers.Dense,
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.PReLU,
)
"""Layers that may follow a Flatten, and whose weights can be brought into another order of features."""


def counts_features(layer: keras.Layer, weight: str) -> bool:
    """Tell whether a weight of a layer has one number, or one row, for each feature of the layer's input.

    Args:
        layer: The layer.
        weight: The name of the weight, such as "kernel".
    """
    return weight == "kernel" if isinstance(layer, keras.layers.Dense) else isinstance(layer, ON_FEATURES)


def is_shape_of(shape: Sequence[int], features: int) -> bool:
    """Tell whether a shape (*spatial, channels) flattens to so many features."""
    return min(shape, default=0) > 0 and prod(shape) == features


def unflattened_channels_first(x: Tensor, shape: Sequence[int]) -> Tensor:
    """View the last axis of a tensor, features in Keras's order, as axes (channels, *spatial).

    Args:
        x: Shape (..., features).
        shape: The shape (*spatial, channels) that Keras flattens.

    Returns:
        A view of shape (..., channels, *spatial).
    """
    return x.unflatten(-1, tuple(shape)).movedim(-1, -len(shape))


def channels_first_features(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor (..., features) with its features in the order of a twin that flattens channels first.

    Args:
        x: Shape (..., features), the features in Keras's order.
        shape: The shape (*spatial, channels) that Keras flattens.
    """
    return unflattened_channels_first(x, shape).flatten(-len(shape))

"""Kinds of Keras layers: which have an activation of their own, and which are random in training."""

from typing import Any

import keras

# Layers that may have an activation of their own.
_WITH_ACTIVATION = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


# Layers whose output is random in training, so that two frameworks cannot agree on it.
RANDOM_IN_TRAINING = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    *(kind for name, kind in vars(keras.layers).items() if name.startswith("Random")),
)

WITH_HEADS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
"""The attentions that have heads, and layers within them: of the query, the key, the value and the output."""

CELLS = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
"""The cells of Keras's recurrent layers: what these do at each step."""


def inner_layers(layer: Any) -> list[keras.Layer]:
    """Return a layer and all layers within it, at any depth. For an operation without weights the list is empty."""
    return list(getattr(layer, "_flatten_layers", list)())


def layers_of_attention(layer: Any) -> tuple[keras.Layer, ...]:
    """Return the layers of the query, the key, the value and the output of an attention with heads, if it is built."""
    within = {inner.name: inner for inner in inner_layers(layer) if inner.weights}
    names = ("query", "key", "value", "attention_output")
    return tuple(within[name] for name in names) if within.keys() >= {*names} else ()


def sub_layers(layer: Any) -> list[keras.Layer]:
    """Return the layers that a layer itself has, not those within these."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def activation_owner(layer: Any) -> Any:
    """Return the layer that has the activation: the layer itself, or the one that a TimeDistributed repeats."""
    while isinstance(layer, keras.layers.TimeDistributed):
        layer = layer.layer
    return layer


def activation_name(layer: Any) -> str:
    """Return the name of a layer's activation, "linear" if it has none."""
    activation = getattr(activation_owner(layer), "activation", None)
    return "linear" if activation is None else getattr(activation, "__name__", type(activation).__name__)


def has_activation(layer: Any) -> bool:
    """Tell whether a layer has an activation of its own, other than "linear"."""
    return isinstance(activation_owner(layer), _WITH_ACTIVATION) and activation_name(layer) != "linear"

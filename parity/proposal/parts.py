"""The parts of a Keras model: what becomes one module each, and what it takes."""

from typing import NamedTuple

from parity.models.keras_layers import sub_layers
from parity.tensors import as_tensor
from parity.weights.fills import Weight
from parity.weights.flattened import channels_first_features, counts_features
from parity.weights.places import Place

import keras
from torch import Tensor

LAYER, RECURRENT, ATTENTION, JOINED, OWN = "layer", "recurrent", "attention", "joined", "own"
"""How the layers of a part lie in a module: one alone, levels and directions, an attention, several side by side, or a
layer of the user's own, whose weights keep their shapes."""


class PartInput(NamedTuple):
    """The input of a part in one of its calls.

    Attributes:
        value: The tensor (batch, *spatial, channels), wherever Keras has its channels.
        tolerance: The largest difference that rounding explains.
        flattened: The shape (*spatial, channels) that its features were flattened from, if any.
        before: The labels of the parts before it: the tensor depends on their weights.
    """

    value: Tensor
    tolerance: float
    flattened: tuple[int, ...] | None
    before: frozenset[str]


class Part(NamedTuple):
    """What becomes one module: a Keras layer with weights, a part of one, or several layers.

    Attributes:
        label: The path of its weights, less the last part; for a SeparableConv, with the name of the convolution. That
            of several layers has the names of all, with a plus between.
        layer: The layer that has the weights, the first of several.
        weights: The Keras weight that fills each tensor of the module, and its place, by the name of the tensor. Empty
            if ``kind`` is not ``LAYER``.
        inputs: Its input in each of its calls.
        kind: How its layers lie in the module: ``LAYER``, ``RECURRENT``, ``ATTENTION``, ``JOINED`` or ``OWN``.
        owners: The layers that have its weights. Those of recurrent layers are cells: a tuple for each level, of one or
            two directions. Those of an attention are query, key, value and output.
        top: The layer of the Keras model that it belongs to.
        inside: Whether ``layer`` is called within that one, with an input of its own.
    """

    label: str
    layer: keras.Layer
    weights: dict[str, tuple[keras.Variable, Place]]
    inputs: list[PartInput]
    kind: str = LAYER
    owners: tuple[tuple[keras.Layer, ...], ...] = ()
    top: keras.Layer | None = None
    inside: bool = False

    @property
    def before(self) -> frozenset[str]:
        """Return the labels of the parts before any of its calls."""
        return frozenset[str]().union(*(part_input.before for part_input in self.inputs))

    @property
    def is_last(self) -> bool:
        """Tell whether it is the output of an attention, which lies behind query, key and value."""
        return self.kind == JOINED and self.layer.name == "attention_output"

    @property
    def is_covered(self) -> bool:
        """Tell whether it has weights that can be moved."""
        return bool(self.weights) or self.kind != LAYER

    @property
    def held(self) -> dict[str, Weight]:
        """Return its weights by path."""
        if self.kind == LAYER:
            return {variable.path: Weight(self.layer, variable) for variable, _ in self.weights.values()}
        if self.kind == OWN:
            return {variable.path: Weight(self.layer, variable) for variable in own_weights(self.layer)}
        owners = [owner for level in self.owners for owner in level]
        return {variable.path: Weight(owner, variable) for owner in owners for variable in owner.weights}

    def value(self, name: str, flattened: tuple[int, ...] | None = None) -> Tensor:
        """Return the weight for a PyTorch tensor, in PyTorch's layout and the twin's order of features.

        Args:
            name: Name of the PyTorch tensor.
            flattened: The shape (*spatial, channels) of the features, if the twin flattens them channels first.
        """
        variable, place = self.weights[name]
        value = place.view(as_tensor(variable))
        if flattened and counts_features(self.layer, variable.name):
            value = channels_first_features(value, flattened)
        return value


def own_weights(layer: keras.Layer) -> list[keras.Variable]:
    """Return the weights of a layer that are in no layer within it."""
    within = {id(variable) for one in sub_layers(layer) for variable in one.weights}
    return [variable for variable in layer.weights if id(variable) not in within]

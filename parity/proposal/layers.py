"""The Keras layers that become modules, and their inputs."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

from parity.errors import ParityError
from parity.models.keras_channels import channels_of, with_channels_last
from parity.models.keras_graph import Graph, TensorId
from parity.models.keras_layers import inner_layers
from parity.models.keras_values import Value, follow_order, walk
from parity.models.rounding import TIMES_NOISE, noise_of
from parity.tensors import as_tensor
from parity.weights.flattened import ON_FEATURES, channels_first_features, counts_features
from parity.weights.layouts import covered_layers, find_layout
from parity.weights.places import Place

import keras
import torch
from torch import Tensor


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
    """What becomes one module: a Keras layer with weights, or one of the two convolutions of a SeparableConv.

    Attributes:
        label: The path of its weights, less the last part; for a SeparableConv, with the name of the convolution.
        layer: The layer that has the weights.
        weights: The Keras weight that fills each tensor of the module, and its place, by the name of the tensor.
        inputs: Its input in each of its calls.
    """

    label: str
    layer: keras.Layer
    weights: dict[str, tuple[keras.Variable, Place]]
    inputs: list[PartInput]

    @property
    def before(self) -> frozenset[str]:
        """Return the labels of the parts before any of its calls."""
        return frozenset[str]().union(*(part_input.before for part_input in self.inputs))

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


def keras_parts(graph: Graph, arrays: Sequence[Any]) -> tuple[dict[str, Part], list[str]]:
    """Run the Keras model; return its parts by label, in the order of the data flow, and faults.

    A layer of a kind that is not covered is a part without weights. Each fault begins with the label of a part.

    Raises:
        ParityError: If no part can be told by its label, or there are none.
    """
    parts: dict[str, Part] = {}
    faults: dict[str, None] = {}
    twice: dict[str, None] = {}
    channels = channels_of(graph)
    # The parts before each tensor, and the shape before flattening of each tensor that has flattened features.
    before: dict[TensorId, frozenset[str]] = dict.fromkeys(graph.inputs, frozenset())
    flattened: dict[TensorId, tuple[int, ...]] = {}
    for step, inputs, outputs in walk(graph, arrays):
        if step is None:
            continue
        parts_before = frozenset[str]().union(*(before[number] for number in step.inputs))
        if step.weights:
            parts_of_layer, faults_of_layer = _parts_of(step.layer)
            faults |= dict.fromkeys(faults_of_layer)
            for new in parts_of_layer or [_uncovered(step.layer, faults_of_layer)]:
                part = parts.setdefault(new.label, new)
                if part.layer is not new.layer:
                    twice[f"{new.label}: two layers of the Keras model have this path; rename one"] = None
                features = channels.features(step.inputs[0], flattened)
                shape = features if isinstance(new.layer, ON_FEATURES) else None
                found = _part_input(new, inputs[0], shape, parts_before)
                axis = channels.axis(step.inputs[0], step, found.value.ndim)
                part.inputs.append(found._replace(value=with_channels_last(found.value, axis)))
                parts_before |= {new.label}
        before |= dict.fromkeys(step.outputs, parts_before)
        follow_order(step, inputs, outputs, flattened, channels)
    if twice or not parts:
        raise ParityError("proposal", [*twice] or ["the Keras model has no weights"])
    return parts, list(faults)


def _parts_of(layer: keras.Layer) -> tuple[list[Part], list[str]]:
    """Return the parts of a layer with weights, still without inputs, and faults."""
    owners = {id(variable): inner for inner in inner_layers(layer) for variable in inner.weights}
    inner = {id(owner): owner for owner in owners.values()}
    owner = next(iter(inner.values())) if len(inner) == 1 else layer  # the layer in a TimeDistributed
    path, kind = owner.weights[0].path.rpartition("/")[0], type(owner).__name__
    layout = find_layout(owner)
    if layout is None or any(not place.modules or place.names for place in layout.values()):
        return [], [f"{path}: the kind {kind} is not covered; covered are {', '.join(covered_layers())}"]
    parts: dict[str, Part] = {}
    faults = []
    for variable in owner.weights:
        place = layout.get(variable.name)
        if place is None:
            faults.append(f"{path}: a {kind} has no weight {variable.name} that can be moved")
            continue
        label = f"{path}/{place.part}" if place.part else path
        part = parts.setdefault(label, Part(label, owner, {}, []))
        part.weights[place.tensor] = (variable, place)
    return list(parts.values()), faults


def _uncovered(layer: keras.Layer, faults: Sequence[str]) -> Part:
    """Return the part of a layer of a kind that is not covered, by its faults."""
    return Part(faults[0].partition(": ")[0], layer, {}, [])


def labels_of(layer: keras.Layer) -> list[str]:
    """Return the labels of the parts of a layer with weights."""
    parts, faults = _parts_of(layer)
    return [part.label for part in parts or [_uncovered(layer, faults)]]


def _part_input(part: Part, value: Value, flattened: tuple[int, ...] | None, before: frozenset[str]) -> PartInput:
    if any(place.part == "pointwise" for _, place in part.weights.values()):
        value = Value(_depthwise(part.layer, value.exact), _depthwise(part.layer, value.perturbed))
    exact, tolerance = tolerated(value)
    return PartInput(exact, tolerance, flattened if exact.is_floating_point() else None, before)


def tolerated(value: Value) -> tuple[Tensor, float]:
    """Return a Keras tensor as one of PyTorch, and the largest difference from it that rounding explains."""
    exact, perturbed = as_tensor(value.exact), as_tensor(value.perturbed)
    tolerance = TIMES_NOISE * noise_of(exact, perturbed)
    return exact, tolerance if isfinite(tolerance) else 0.0


def _depthwise(layer: keras.Layer, x: Any) -> Any:
    """Return the output of the first convolution of a SeparableConv, which convolves channel by channel."""
    return keras.ops.depthwise_conv(
        x, layer.depthwise_kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate
    )


def keras_dtype(model: keras.Model) -> torch.dtype:
    """Return the floating-point dtype of a Keras model's weights."""
    kinds = [keras.backend.standardize_dtype(variable.dtype) for variable in model.weights]
    return getattr(torch, next((kind for kind in kinds if "float" in kind), "float32"))

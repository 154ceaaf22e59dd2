"""The Keras layers that become modules, and their inputs."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from parity.errors import ParityError
from parity.models.keras_channels import channels_of, with_channels_last
from parity.models.keras_graph import Graph, TensorId
from parity.models.keras_inner import inputs_within
from parity.models.keras_values import Value, follow_order, walk
from parity.models.rounding import TIMES_NOISE, noise_of
from parity.proposal.parts import JOINED, LAYER, RECURRENT, Part, PartInput
from parity.proposal.splits import splits_of
from parity.tensors import as_tensor
from parity.weights.flattened import ON_FEATURES

import keras
import torch
from torch import Tensor


def keras_parts(
    graph: Graph, arrays: Sequence[Any], splits: Mapping[int, Sequence[Part]] | None = None
) -> tuple[dict[str, Part], list[str]]:
    """Run the Keras model; return its parts by label, in the order of the data flow, and faults.

    A layer of a kind that is not covered is a part without weights. Each fault begins with the label of a part.

    Args:
        graph: The model.
        arrays: An array for each input.
        splits: The parts of layers, by their identity, where they are not the usual ones. A layer may have none, if it
            belongs to the part of another.

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
            known, after = splits_of(step.layer), frozenset[str]()
            if known.ways or id(step.layer) not in (splits or {}):
                faults |= dict.fromkeys(known.faults)
            usual = known.ways[0] if known.ways else [_uncovered(step.layer, known.faults)]
            chosen = [part._replace(inputs=[]) for part in (splits or {}).get(id(step.layer), usual)]
            within = inputs_within(step, inputs, outputs, [part.layer for part in chosen if part.inside])
            order = [*within]
            features = channels.features(step.inputs[0], flattened)
            for new in sorted(chosen, key=lambda part: order.index(id(part.layer)) if id(part.layer) in within else -1):
                part = parts.setdefault(new.label, new)
                if part.layer is not new.layer:
                    twice[f"{new.label}: two layers of the Keras model have this path; rename one"] = None
                known_before = parts_before if _is_beside_others(part) else parts_before | after
                if part.inside:
                    values = within.get(id(part.layer), [])
                    part.inputs.extend(_part_input(part, value, None, known_before) for value in values)
                else:
                    shape = features if isinstance(new.layer, ON_FEATURES) else None
                    found = _part_input(new, inputs[0], shape, known_before)
                    axis = channels.axis(step.inputs[0], step, found.value.ndim)
                    part.inputs.append(found._replace(value=with_channels_last(found.value, axis)))
                after |= {new.label}
            parts_before |= after
        before |= dict.fromkeys(step.outputs, parts_before)
        follow_order(step, inputs, outputs, flattened, channels)
    if twice or not parts:
        raise ParityError("proposal", [*twice] or ["the Keras model has no weights"])
    return parts, list(faults)


def _uncovered(layer: keras.Layer, faults: Sequence[str]) -> Part:
    """Return the part of a layer of a kind that is not covered, by its faults."""
    return Part(faults[0].partition(": ")[0], layer, {}, [], LAYER, (), layer)


def _is_beside_others(part: Part) -> bool:
    """Tell whether a part is one of query, key and value, which depend on no other of these."""
    return part.kind == JOINED and not part.is_last


def _part_input(part: Part, value: Value, flattened: tuple[int, ...] | None, before: frozenset[str]) -> PartInput:
    if any(place.part == "pointwise" for _, place in part.weights.values()):
        value = Value(_depthwise(part.layer, value.exact), _depthwise(part.layer, value.perturbed))
    exact, tolerance = tolerated(value)
    if part.kind == RECURRENT and getattr(part.layer, "go_backwards", False):
        exact = exact.flip(1)
    if part.is_last:
        exact = exact.flatten(-2)  # the heads and their features
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

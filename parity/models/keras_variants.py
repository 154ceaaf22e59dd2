"""What a Keras layer would return with other weights, settings or inputs. The layer itself is not changed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

from parity.models.keras_graph import Step
from parity.models.keras_layers import inner_layers
from parity.tensors import as_tensor

import keras
import torch
from keras import tree
from torch import Tensor


class Variant(NamedTuple):
    """What is different.

    Attributes:
        inputs: Other inputs, by slot.
        weights: Other weights, by path.
        settings: Other settings, by name: of the layer and of all layers within it that have them.
        arguments: Other arguments of the call, by name; None takes one away.
        twin_of: Takes the outputs and returns what is compared in their place.
    """

    inputs: Mapping[int, Tensor] = {}
    weights: Mapping[str, Tensor] = {}
    settings: Mapping[str, Any] = {}
    arguments: Mapping[str, Any] = {}
    twin_of: Callable[[Tensor], Tensor] | None = None


def output_of(step: Step, values: Sequence[Tensor], variant: Variant) -> Tensor | None:
    """Return the first output of a step under a variant; None if the layer cannot be run so.

    Args:
        step: The step.
        values: A tensor for each of its inputs.
        variant: What is different.
    """
    taken = [variant.inputs.get(slot, value) for slot, value in enumerate(values)]
    tensors = [keras.ops.convert_to_tensor(value.numpy()) for value in taken]
    by_identity = {id(tensor): value for tensor, value in zip(step.node.input_tensors, tensors, strict=True)}
    args, kwargs = step.node.arguments.fill_in(by_identity)
    # The same tensor may stand in several slots, and only one of them have another value.
    args, kwargs = _in_slots(step, (args, kwargs), tensors)
    kwargs = {name: value for name, value in {**kwargs, **variant.arguments}.items() if value is not None}
    try:
        with ExitStack() as stack:
            for inner in inner_layers(step.layer):
                for name, value in variant.settings.items():
                    if hasattr(inner, name) and not isinstance(getattr(type(inner), name, None), property):
                        stack.enter_context(mock.patch.object(inner, name, value))
            state = [
                (variable, keras.ops.convert_to_tensor(variant.weights[variable.path].numpy(), variable.dtype))
                for variable in step.layer.weights
                if variable.path in variant.weights
            ]
            stack.enter_context(keras.StatelessScope(state_mapping=state))
            if step.has_activation:
                stack.enter_context(mock.patch.object(step.layer, "activation", None))
            output = as_tensor(tree.flatten(step.layer(*args, **kwargs))[0])
    except Exception:
        # Whatever Keras says of a variant that cannot be: it explains nothing.
        return None
    return output if variant.twin_of is None else variant.twin_of(output)


def _in_slots(step: Step, arguments: Any, tensors: Sequence[Any]) -> Any:
    """Return the arguments of a call with a tensor of its own in each slot."""
    symbolic = (step.node.arguments.args, step.node.arguments.kwargs)
    slots = iter(tensors)
    return tree.map_structure(
        lambda one, found: next(slots) if isinstance(one, keras.KerasTensor) else found, symbolic, arguments
    )


def activation_settings(name: str, functions: Iterable[str]) -> list[tuple[str, Variant]]:
    """Return the variants of a layer whose setting is another of Keras's activations, with their names."""
    return [(one, Variant(settings={name: keras.activations.get(one)})) for one in functions]


def two_ways(step: Step, values: Sequence[Tensor]) -> list[Tensor]:
    """Return the sequences (batch, time, units) of a recurrent layer, of each direction in the order of the input.

    Args:
        step: The step of a recurrent layer.
        values: A tensor for each of its inputs.
    """
    layer = step.layer
    both = isinstance(layer, keras.layers.Bidirectional)
    layers = [layer.forward_layer, layer.backward_layer] if both else [layer]
    x, kwargs = _sequence_and_mask(step, values)
    found = []
    for one in layers:
        with mock.patch.object(one, "return_sequences", True), mock.patch.object(one, "return_state", False):
            sequence = as_tensor(one(x, **kwargs)).clone()
        found.append(sequence.flip(1) if one.go_backwards else sequence)
    return found


def last_cells(step: Step, values: Sequence[Tensor]) -> Tensor | None:
    """Return the last cell (batch, units) of an LSTM in one direction; None for any other layer."""
    if not isinstance(step.layer, keras.layers.LSTM):
        return None
    x, kwargs = _sequence_and_mask(step, values)
    with mock.patch.object(step.layer, "return_state", True):
        return as_tensor(step.layer(x, **kwargs)[2]).clone()


def mask_of(step: Step, values: Sequence[Tensor]) -> Tensor | None:
    """Return the mask (batch, time) that a recurrent layer takes, None if it takes none.

    Args:
        step: The step of the layer.
        values: A tensor for each of its inputs.
    """
    return next((values[slot] for slot in step.masks), None)


def _sequence_and_mask(step: Step, values: Sequence[Tensor]) -> tuple[Any, dict[str, Any]]:
    """Return what a recurrent layer takes, in Keras: the sequence, and its mask as a keyword if it has one."""
    mask = mask_of(step, values)
    kwargs = {} if mask is None else {"mask": keras.ops.convert_to_tensor(mask.numpy())}
    return keras.ops.convert_to_tensor(values[0].numpy()), kwargs


def scale_settings(layer: Any) -> dict[str, float]:
    """Return the factor by which an attention scales its scores, by the name of the setting that has it."""
    names = ("_inverse_sqrt_key_dim", "_inverse_sqrt_head_dim")
    return {name: getattr(layer, name) for name in names if hasattr(layer, name)}


def steps_reversed(tensor: Tensor) -> Tensor:
    """Return a sequence (batch, time, ...) with its steps in the other order."""
    return torch.flip(tensor, (1,))

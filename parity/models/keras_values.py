"""The tensors of a Keras model, computed step by step: once as they are, once with other rounding errors."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from math import isfinite, prod
from typing import Any, NamedTuple

from parity.errors import ParityError
from parity.models.alignment import largest
from parity.models.keras_channels import CHANNELS_LAST, Channels
from parity.models.keras_graph import Graph, Step, TensorId, activates, run_step
from parity.models.rounding import Errors, errors_of, is_float, perturbed_tensor, unit_of, usual_move
from parity.tensors import as_tensor

import keras
import numpy as np

# With so few numbers, one draw of rounding errors may by chance hardly move any of them.
_FEW = 8

# Layers that Keras on TensorFlow compiles anew at each call if they have groups, which takes longer than to run them.
_COMPILED_WITH_GROUPS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


class Value(NamedTuple):
    """A tensor of the Keras model, and the same tensor computed with other rounding errors."""

    exact: Any
    perturbed: Any


def walk(
    graph: Graph, x: Sequence[np.ndarray], training: bool = False, perturb: Callable[..., Any] | None = perturbed_tensor
) -> Iterator[tuple[Step | None, list[Value], list[Value]]]:
    """Compute a Keras model step by step. A tensor is deleted as soon as no later step takes it.

    Every floating-point tensor is computed twice: exactly as Keras does, and perturbed. For the perturbed one, each
    element of every tensor before it was moved at random, by up to one unit of rounding of that tensor's largest
    element. The distance between the two is the noise to expect. It grows with the depth and with the weights, as the
    noise of real rounding does. The model's inputs only move away from 0, and a 0 stays 0, so that masks stay masks.

    Args:
        graph: The model.
        x: An array for each input.
        training: Run it in training mode; BatchNormalization then also updates its statistics.
        perturb: The function that moves the perturbed values, called as ``perturbed_tensor`` is. If None, there are no
            perturbed values: the exact ones stand in their place.

    Yields:
        The step, its inputs and its outputs. The first item is for the model's inputs: None, the inputs, the inputs.
    """
    last_use = {number: index for index, step in enumerate(graph.steps) for number in step.inputs}
    seeds = count()

    def value_of(exact: Any, perturbed: Any, errors: Errors) -> Value:
        return Value(exact, perturb(perturbed, next(seeds), errors) if perturb else exact)

    values: dict[TensorId, Value] = {}
    for number, array in zip(graph.inputs, x, strict=True):
        exact = keras.ops.convert_to_tensor(array)
        values[number] = value_of(exact, exact, Errors())
        if perturb and is_float(exact):
            move = keras.ops.abs(values[number].perturbed - exact)
            values[number] = Value(exact, exact + keras.ops.sign(exact) * move)
    yield None, list(values.values()), list(values.values())
    for index, step in enumerate(graph.steps):
        inputs = [values[number] for number in step.inputs]
        try:
            exact, perturbed = _run_twice(step, inputs, training) if perturb else _run_once(step, inputs, training)
        except Exception as error:
            raise ParityError(step.name, [f"the Keras model stops there: {_in_one_line(error)}"]) from error
        errors = errors_of(step, [value.exact for value in inputs], exact, training) if perturb else Errors()
        outputs = [value_of(*pair, errors) for pair in zip(exact, perturbed, strict=True)]
        if perturb and 0 < sum(prod(value.exact.shape) for value in outputs) <= _FEW:
            outputs = [_moved(step, inputs, value, errors.least) for value in outputs]
        for number in step.inputs:
            if last_use[number] == index:
                values.pop(number, None)
        values.update(zip(step.outputs, outputs, strict=True))
        yield step, inputs, outputs
        for number in step.outputs:
            if number not in last_use:
                del values[number]


def _in_one_line(error: Exception) -> str:
    """Return an exception's kind and what it says. Keras puts a line of its own before that, and colours."""
    lines = [re.sub(r"\x1b\[\d+m|{{.*?}}", "", line).strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return f"{type(error).__name__}: {said[0] if said else 'no message'}"


def _moved(step: Step, inputs: Sequence[Value], output: Value, size: float) -> Value:
    """Return an output of few numbers, moved at least as far as rounding errors usually move it.

    Args:
        step: The step.
        inputs: Its inputs.
        output: The output.
        size: The errors are at least those of a number of this size.
    """
    if not is_float(output.exact) or not prod(output.exact.shape):
        return output
    moves, move = [float(np.abs(_move(value)).max(initial=0)) for value in inputs], _move(output)
    # On average a draw is half as large as it may be.
    own = unit_of(output.exact) * max(size, largest(as_tensor(output.exact))) / 2
    usual = usual_move(step, moves, [value.exact for value in inputs], output.exact)
    least = max(usual, _slope_times(step, inputs, moves), own if isfinite(own) else 0.0)
    if not np.abs(move).max() < least:
        return output
    further = keras.ops.convert_to_tensor(np.copysign(least, move), output.perturbed.dtype)
    return output._replace(perturbed=output.perturbed + further)


def _slope_times(step: Step, inputs: Sequence[Value], moves: Sequence[float]) -> float:
    """Return half of how far an activation moves if all its inputs move as far as one of them has; 0 for other steps.

    By chance those may have moved most at which its slope is small.
    """
    if not activates(step) or len(inputs) != 1 or not is_float(inputs[0].exact):
        return 0.0
    exact = inputs[0].exact
    further = [
        run_step(step, [exact + keras.ops.convert_to_tensor(moves[0] * sign, exact.dtype)])[0] for sign in (-1, 1)
    ]
    return float(np.abs(_move(Value(*further))).max(initial=0)) / 4


def _move(value: Value) -> np.ndarray:
    exact, perturbed = (keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64")) for tensor in value)
    return perturbed - exact


def _exact(step: Step, inputs: Sequence[Value], training: bool) -> list[Any]:
    return run_step(step, [value.exact for value in inputs], training)


def _run_once(step: Step, inputs: Sequence[Value], training: bool) -> tuple[list[Any], list[Any]]:
    """Return the outputs of a step twice: the exact ones also stand in the place of the perturbed ones."""
    stateful = getattr(step.layer, "stateful", False)  # it keeps the state that it has
    outputs = _run_unnoticed(step, [value.exact for value in inputs], training) if stateful else None
    outputs = _exact(step, inputs, training) if outputs is None else outputs
    return outputs, outputs


def _run_twice(step: Step, inputs: Sequence[Value], training: bool) -> tuple[list[Any], list[Any]]:
    """Return the exact and the perturbed outputs of a step."""
    if isinstance(step.layer, _COMPILED_WITH_GROUPS) and step.layer.groups > 1 and not step.is_activation:
        (output,) = run_step(step, [keras.ops.concatenate(inputs[0])], training)
        exact, perturbed = keras.ops.split(output, 2)
        return [exact], [perturbed]
    if getattr(step.layer, "stateful", False):  # both start from the state that the layer has
        exact = _run_unnoticed(step, [value.exact for value in inputs], training)
        return exact, _run_unnoticed(step, [value.perturbed for value in inputs], training)
    return _exact(step, inputs, training), _run_unnoticed(step, [value.perturbed for value in inputs], training)


def _run_unnoticed(step: Step, values: Sequence[Any], training: bool) -> list[Any]:
    """Run a step, and undo what it did to the layer's statistics."""
    changes = training or getattr(step.layer, "stateful", False)
    state = getattr(step.layer, "non_trainable_variables", []) if changes else []
    before = [variable.numpy() for variable in state]
    outputs = run_step(step, values, training)
    for variable, value in zip(state, before, strict=True):
        variable.assign(value)
    return outputs


def follow_order(
    step: Step,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    flattened: dict[TensorId, tuple[int, ...]],
    channels: Channels = CHANNELS_LAST,
) -> None:
    """Add to ``flattened`` the output of a step, if it holds flattened features.

    Args:
        step: The step. Features keep their order up to the first Dense layer, which mixes them.
        inputs: The step's inputs.
        outputs: The step's outputs.
        flattened: For each tensor with flattened features: the shape (*spatial, channels) that they had before; of
            features that lie channels first, the shape (channels, *spatial).
        channels: Where the tensors have their channels.
    """
    if len(step.inputs) != 1 or len(step.outputs) != 1:
        return
    shape, result = tuple(inputs[0].exact.shape)[1:], tuple(outputs[0].exact.shape)[1:]
    mixes = isinstance(step.layer, keras.layers.Dense) and not step.is_activation
    if isinstance(step.layer, keras.layers.Flatten):
        if len(shape) > 1:
            if step.outputs[0] not in channels.features_first:
                axis = channels.axis(step.inputs[0], step, 1 + len(shape)) - 1
                shape = (*shape[:axis], *shape[axis + 1 :], shape[axis])
            flattened[step.outputs[0]] = shape
    elif step.inputs[0] in flattened and not mixes and result == (prod(flattened[step.inputs[0]]),):
        flattened[step.outputs[0]] = flattened[step.inputs[0]]

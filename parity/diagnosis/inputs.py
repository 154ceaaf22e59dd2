"""Other inputs than the right ones that a layer's twin may take."""

from collections.abc import Iterator, Sequence
from itertools import permutations
from math import prod

from parity.diagnosis.activations import activations
from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence
from parity.diagnosis.order import other_channels
from parity.diagnosis.settings import dropped
from parity.models.alignment import alignments, largest
from parity.models.keras_graph import run_step
from parity.models.torch_calls import Call
from parity.tensors import as_tensor
from parity.tracing.pairing import Spot

import keras
import torch
from torch import Tensor


def by_merging(evidence: Evidence) -> Iterator[Cause]:
    """Yield other inputs, or another order of them, with which a merging layer gives what the twin has."""
    if evidence.step is None or len(evidence.inputs) < 2:
        return
    for order in permutations(range(len(evidence.inputs))):
        if list(order) != sorted(order) and evidence.explains(_merged(evidence, [evidence.inputs[i] for i in order])):
            yield known_cause("another skip", f"its inputs are in the order {tuple(i + 1 for i in order)}")
            return
    for number, x in enumerate(evidence.inputs):
        if evidence.explains(x):
            yield known_cause("another skip", f"only its input {number + 1} is used")
            return
        for name, other in evidence.others.items():
            changed = [*evidence.inputs[:number], other, *evidence.inputs[number + 1 :]]
            if other.shape == x.shape and evidence.explains(_merged(evidence, changed)):
                yield known_cause("another skip", f"its input {number + 1} is the output of {name}")
                return
    for axis in range(1, evidence.value.ndim):
        if all(x.shape == evidence.inputs[0].shape for x in evidence.inputs):
            y = torch.cat(evidence.inputs, axis)
            if y.shape == evidence.value.shape and evidence.explains(y):
                yield known_cause("axis", f"joined along axis {axis}")
                return


def _merged(evidence: Evidence, values: Sequence[Tensor]) -> Tensor | None:
    """Return what the Keras layer makes of other inputs, None if it does not take them."""
    try:
        return as_tensor(run_step(evidence.step, [keras.ops.convert_to_tensor(value.numpy()) for value in values])[0])
    except (ValueError, TypeError):
        return None


def by_scaling(evidence: Evidence, by_channel: bool) -> Iterator[Cause]:
    """Yield with what factor and offset the twin has the tensor, all of it or, if asked for, each channel."""
    for view, twin, _ in alignments(evidence.value, evidence.twin):
        for axes in (None, tuple(range(view.ndim - 1))) if by_channel else (None,):
            fitted = _line(view.double(), twin.double(), axes, evidence.tolerance)
            if fitted is None:
                continue
            factor, offset = fitted
            words = (
                f"{float(factor):.4g} times it" if axes is None else "each channel by a factor and an offset of its own"
            )
            if axes is None and abs(float(offset)) > evidence.tolerance:
                words += f" plus {float(offset):.4g}"
            yield known_cause("input scaled", words)
            return


def _line(x: Tensor, y: Tensor, axes: tuple[int, ...] | None, tolerance: float) -> tuple[Tensor, Tensor] | None:
    """Return factor and offset with which one tensor gives another, along some axes or all; None if they do not."""
    axes = tuple(range(x.ndim)) if axes is None else axes
    if not axes or not bool(y.isfinite().all()) or prod(x.shape[axis] for axis in axes) < 3:
        return None
    from_mean, other = x - x.mean(axes, keepdim=True), y - y.mean(axes, keepdim=True)
    spread = from_mean.square().sum(axes, keepdim=True)
    if not bool((spread > 0).all()):
        return None
    factor = (from_mean * other).sum(axes, keepdim=True) / spread
    offset = y.mean(axes, keepdim=True) - factor * x.mean(axes, keepdim=True)
    bound = max(tolerance, 1e-6 * largest(y))
    same = largest(factor - 1) < 1e-6 and largest(offset) <= bound
    fits = largest(factor * x + offset - y) <= bound
    return (factor, offset) if fits and not same and bool((factor != 0).all()) else None


def by_numbers(evidence: Evidence) -> Iterator[Cause]:
    """Yield another scale or order of channels of a layer that only scales."""
    if evidence.step is None or not isinstance(
        evidence.step.layer, keras.layers.Rescaling | keras.layers.Normalization
    ):
        return
    reordered = other_channels(evidence)
    if reordered:
        yield reordered
    else:
        yield from by_scaling(evidence, by_channel=True)


def by_other_input(evidence: Evidence) -> Iterator[Cause]:
    """Yield another tensor with which the layer gives what the twin has, where the twin's input was not seen."""
    if evidence.step is None or evidence.twin_inputs or len(evidence.inputs) != 1:
        return
    for name, other in evidence.others.items():
        if other.shape != evidence.inputs[0].shape:
            continue
        value = run_step(evidence.step, [keras.ops.convert_to_tensor(other.numpy())])[0]
        if evidence.explains(as_tensor(value)):
            yield known_cause("another skip", f"it takes the output of {name}")
            return


def by_dropping(evidence: Evidence) -> Iterator[Cause]:
    """Yield that dropout is at work before the layer's twin."""
    if dropped(evidence):
        yield known_cause("train mode", "some elements are 0, the others larger, as dropout makes them")


def by_overwriting(evidence: Evidence) -> Iterator[Cause]:
    """Yield that a call has overwritten what the twin takes."""
    run, index = evidence.run, evidence.index
    spots = [spot for (step, _), spot in run.pairing.inputs.items() if step == index]
    if (index, 0) in run.pairing.inputs and (evidence.step is None or len(evidence.step.inputs) == 1):
        spots = [run.pairing.inputs[index, 0]]
    names = [_overwriting(run.calls, spot) for spot in spots if spot.call < len(run.calls)]
    name = next(filter(None, names), None)
    if name:
        yield known_cause("overwritten in place", f"by {name}")


def _overwriting(calls: Sequence[Call], spot: Spot) -> str:
    """Return the name of the last call that has overwritten a tensor which another call takes, or nothing."""
    made_by = {number: call for call in calls for number in call.outputs}
    number = calls[spot.call].inputs[spot.position]
    while number in made_by and made_by[number].overwrites:
        call = made_by[number]
        names = type(call.module).__name__.lower() if call.module is not None else call.name
        # What these return in place are the numbers that were there.
        if "dropout" not in names and "identity" not in names:
            return call.name
        number = call.inputs[0]
    return ""


def by_another_tensor(evidence: Evidence) -> Iterator[Cause]:
    """Yield another tensor of the Keras model that the twin takes."""
    names = [name for name, other in evidence.others.items() if evidence.explains(other)]
    if names:
        yield known_cause("another skip", f"it takes the output of {' or '.join(names)}")


def by_activation_before(evidence: Evidence) -> Iterator[Cause]:
    """Yield an activation that the twin has before it and Keras has not."""
    for name, function in activations(evidence.value):
        if evidence.explains(function(evidence.value)):
            yield known_cause("another activation", f"{name}, which Keras has not")
            return


def by_precision(evidence: Evidence) -> Iterator[Cause]:
    """Yield that the twin computes with fewer digits."""
    value, dtype = evidence.value, evidence.twin.dtype
    if dtype != value.dtype and evidence.explains(value.to(dtype)):
        yield known_cause("precision", f"the twin computes in {str(dtype).removeprefix('torch.')}")


def by_scaled_input(evidence: Evidence) -> Iterator[Cause]:
    """Yield another scale of what the twin takes; of the model's input, also channel by channel."""
    first = evidence.step is not None and set(evidence.step.inputs) <= set(evidence.run.graph.inputs)
    yield from by_scaling(evidence, by_channel=first)

"""Causes in the inputs of a layer's twin: another tensor, another scale, fewer digits, overwritten numbers."""

from collections.abc import Iterator, Sequence
from math import prod

from parity.diagnosis.activations import activations
from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, agree_within
from parity.diagnosis.merging import output_of
from parity.diagnosis.order import other_channels
from parity.diagnosis.settings import dropped
from parity.models.alignment import alignments, largest
from parity.models.keras_graph import activates
from parity.models.keras_layers import activation_name
from parity.models.rounding import TIMES_NOISE
from parity.models.torch_calls import Call
from parity.tracing.pairing import Spot

import keras
from torch import Tensor


def by_scaling(evidence: Evidence, by_channel: bool) -> Iterator[Cause]:
    """Yield the factor and the offset with which the Keras tensor gives the twin's.

    Args:
        evidence: The layer that diverges.
        by_channel: Whether each channel may have a factor and an offset of its own.
    """
    for value, twin, _ in alignments(evidence.value, evidence.twin):
        x, y = value.double(), twin.double()
        fitted = line(x, y, tuple(range(x.ndim)), evidence.tolerance)
        if fitted is not None:
            factor, offset = (float(number) for number in fitted)
            detail = f"{factor:.4g} times it"
            if abs(offset) > evidence.tolerance:
                detail += f" plus {offset:.4g}"
            yield known_cause("input scaled", detail)
            return
        if by_channel and line(x, y, tuple(range(x.ndim - 1)), evidence.tolerance) is not None:
            yield known_cause("input scaled", "each channel by a factor and an offset of its own")
            return


def line(x: Tensor, y: Tensor, axes: tuple[int, ...], tolerance: float) -> tuple[Tensor, Tensor] | None:
    """Return the factor and the offset with which one tensor gives another; None if there are none, or 1 and 0.

    Args:
        x: One tensor.
        y: The other.
        axes: The axes along which factor and offset are the same.
        tolerance: The largest difference that rounding explains.
    """
    if not axes or not bool(y.isfinite().all()) or prod(x.shape[axis] for axis in axes) < 3:
        return None
    x_from_mean, y_from_mean = x - x.mean(axes, keepdim=True), y - y.mean(axes, keepdim=True)
    spread = x_from_mean.square().sum(axes, keepdim=True)
    if not bool((spread > 0).all()):
        return None
    factor = (x_from_mean * y_from_mean).sum(axes, keepdim=True) / spread
    offset = y.mean(axes, keepdim=True) - factor * x.mean(axes, keepdim=True)
    tolerance = max(tolerance, 1e-6 * largest(y))
    same = largest(factor - 1) < 1e-6 and largest(offset) <= tolerance
    fits = largest(factor * x + offset - y) <= tolerance
    return (factor, offset) if fits and not same and bool((factor != 0).all()) else None


def by_numbers(evidence: Evidence) -> Iterator[Cause]:
    """Yield another scale, or another order of channels, of a layer that only scales."""
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
    """Yield another input with which the layer gives what the twin has, if the twin's input was not seen."""
    if evidence.step is None or evidence.twin_inputs or len(evidence.inputs) != 1:
        return
    for name, other in evidence.others.items():
        if other.shape != evidence.inputs[0].shape:
            continue
        if evidence.explains(output_of(evidence, [other])):
            yield known_cause("another skip", f"it takes the output of {name}")._replace(takes_other=True)
            return


def by_dropping(evidence: Evidence) -> Iterator[Cause]:
    """Yield that dropout is active before the layer's twin."""
    if dropped(evidence):
        yield known_cause("train mode", "some elements are 0, the others larger, as dropout makes them")


def by_overwriting(evidence: Evidence) -> Iterator[Cause]:
    """Yield that a call has overwritten the twin's input.

    Of several inputs, only those that differ are looked at. The call must be another layer's twin, or another call must
    read what was there before: else it is no overwriting that went wrong, but a function too many.
    """
    run, index = evidence.run, evidence.at_step
    wrong = [
        spot
        for (step, slot), spot in run.pairing.inputs.items()
        if step == index and not ((index, slot) in run.inputs and run.inputs[index, slot].agrees)
    ]
    for call in (_overwriting(run.calls, spot) for spot in wrong if spot.call < len(run.calls)):
        if call is None:
            continue
        is_twin = any(first <= call <= last for first, last in run.pairing.twins.values())
        before = run.calls[call].inputs[0]
        if is_twin or any(before in other.inputs for index, other in enumerate(run.calls) if index != call):
            yield known_cause("overwritten in place", f"by {run.calls[call].name}")
            return


def _overwriting(calls: Sequence[Call], spot: Spot) -> int | None:
    """Return the last call that has overwritten a tensor, None if none has.

    Args:
        calls: The twin's calls.
        spot: Where the tensor is seen, as an input of a call.
    """
    call_of = {number: index for index, call in enumerate(calls) for number in call.outputs}
    number = calls[spot.call].inputs[spot.position]
    while number in call_of and calls[call_of[number]].overwrites:
        call = calls[call_of[number]]
        kind = type(call.module).__name__.lower() if call.module is not None else call.name
        # Dropout in evaluation mode and Identity return the same tensor with the same numbers.
        if "dropout" not in kind and "identity" not in kind:
            return call_of[number]
        number = call.inputs[0]
    return None


def by_another_tensor(evidence: Evidence) -> Iterator[Cause]:
    """Yield the other tensors of the Keras model that the twin's input may be; of each input, if several are wrong."""
    several = dict(_other_tensors(evidence))
    if len(several) > 1:
        said = [f"its input {slot + 1} is the output of {name}" for slot, name in several.items()]
        yield known_cause("another skip", "; ".join(said))
        return
    names = [name for name, other in evidence.others.items() if evidence.explains(other)]
    if names:
        yield known_cause("another skip", f"it takes the output of {' or '.join(names)}")


def _other_tensors(evidence: Evidence) -> Iterator[tuple[int, str]]:
    """Yield the slot of each wrong input of a layer that takes several, and the tensor that the twin has there."""
    run, step, index = evidence.run, evidence.step, evidence.at_step
    if step is None or len(step.inputs) < 2:
        return
    steps, producers = run.graph.steps, run.graph.producers()
    slots = sorted(slot for at, slot in run.pairing.inputs if at == index)
    for slot, twin in zip(slots, evidence.twin_inputs, strict=True):
        compared = run.inputs.get((index, slot))
        if compared is None or compared.agrees:
            continue
        tolerance = TIMES_NOISE * run.noise[step.inputs[slot]]
        names = [name for name, other in evidence.others.items() if agree_within(other, twin, tolerance)]
        right = producers.get(step.inputs[slot])
        if names and right is not None and steps[right].name not in names:
            before = [steps[producers[number]].name for number in steps[right].inputs if number in producers]
            left_out = f", without {steps[right].name}" if before == names[:1] and activates(steps[right]) else ""
            yield slot, f"{' or '.join(names)}{left_out}"


def by_activation_before(evidence: Evidence) -> Iterator[Cause]:
    """Yield an activation that the twin has before the layer and the Keras model does not have."""
    for name, function in activations(evidence.value, evidence.axes_of_value()):
        if evidence.explains(function(evidence.value)):
            behind = _same_behind(evidence, name)
            if behind:
                found = f"{name} is applied to what {behind[0]} takes, not to what it returns, as {behind[1]} does"
                yield known_cause("activation in another place", found)
            else:
                yield known_cause("another activation", f"{name}, which the Keras model does not have")
            return


def _same_behind(evidence: Evidence, name: str) -> tuple[str, str] | None:
    """Return the name of a layer that merges, and of the activation of this name behind it; None if there is none."""
    step, steps = evidence.step, evidence.run.graph.steps
    if step is None or len(step.inputs) < 2:
        return None
    # If the twin has the activation behind, too, the one before is one more.
    unpaired = [other for index, other in enumerate(steps) if index not in evidence.run.pairing.twins]
    following = [other for other in unpaired if set(step.outputs) & set(other.inputs)]
    names = [other.name for other in following if activates(other) and activation_name(other.layer) == name]
    names += [other.name for other in following if type(other.layer).__name__.lower() == name]
    return (step.name, names[0]) if names else None


def by_precision(evidence: Evidence) -> Iterator[Cause]:
    """Yield that the twin computes with fewer digits."""
    value, dtype = evidence.value, evidence.twin.dtype
    if dtype != value.dtype and evidence.explains(value.to(dtype)):
        yield known_cause("precision", f"the twin computes in {str(dtype).removeprefix('torch.')}")


def by_scaled_input(evidence: Evidence) -> Iterator[Cause]:
    """Yield another scale of the twin's input. If it is the model's input, each channel may have its own scale."""
    first = evidence.step is not None and set(evidence.step.inputs) <= set(evidence.run.graph.inputs)
    yield from by_scaling(evidence, by_channel=first)

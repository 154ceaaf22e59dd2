"""Causes in a layer that merges several tensors: their order, one of them alone, another tensor, another axis.

The work grows with the number of inputs and of other tensors, not with the number of their orders: where it does not
matter in which order they are merged, none is tried; joined tensors are looked for one by one in what the twin has; and
what is merged element by element is compared at some elements first.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations

from parity.diagnosis.causes import Cause, Untried, known_cause
from parity.diagnosis.evidence import Evidence, agree_within, computed
from parity.models.alignment import alignments
from parity.models.keras_channels import with_channels_last
from parity.models.keras_graph import Step

import keras
import torch
from torch import Tensor

_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "Add": lambda stacked: stacked.sum(0),
    "Average": lambda stacked: stacked.mean(0),
    "Maximum": lambda stacked: stacked.amax(0),
    "Minimum": lambda stacked: stacked.amin(0),
    "Multiply": lambda stacked: stacked.prod(0),
}
"""What layers and operations do with any number of tensors of one shape, whatever their order."""

# How often a layer is run on other inputs, each time on whole tensors.
_TRIES = 200
# At how many elements tensors are compared before that, and how much more may lie between them there: PyTorch merges
# these, and Keras rounds otherwise.
_SAMPLED, _TIMES_TOLERANCE = 256, 8
# With more inputs than this, not every order is tried, but every exchange of two, and the reverse.
_FEW = 4


def by_merging(evidence: Evidence) -> Iterator[Cause | Untried]:
    """Yield other inputs, or another order of them, with which a merging layer gives what the twin has."""
    step, inputs = evidence.step, evidence.inputs
    if step is None or len(inputs) < 2:
        return
    attempts: tuple[Callable[[Evidence, Step], Iterator[Cause | Untried]], ...]
    if isinstance(step.layer, keras.layers.Concatenate):
        attempts = (_another_axis, _one_alone, _another_order_joined, _another_joined)
    elif step.kind in _ELEMENTWISE and len({x.shape for x in (*inputs, evidence.value)}) == 1:
        attempts = (_one_alone, _another_element_by_element)
    else:
        attempts = (_another_axis, _one_alone, _others_tried)
    for attempt in attempts:
        found = next(attempt(evidence, step), None)
        if found is not None:
            yield found
            return


def by_merging_before(evidence: Evidence) -> Iterator[Cause | Untried]:
    """Yield the same of the layer before, if the twin takes what that layer returns with other inputs."""
    step = evidence.before
    if step is None or len(evidence.inputs_before) < 2:
        return
    before = evidence._replace(step=step, inputs=list(evidence.inputs_before), axes=evidence.axes_before, behind=())
    for found in by_merging(before):
        yield found._replace(detail=f"of {step.name}: {found.detail}") if isinstance(found, Cause) else found


def _one_alone(evidence: Evidence, step: Step) -> Iterator[Cause]:
    for slot, x in enumerate(evidence.inputs):
        if evidence.explains(x):
            yield known_cause("another skip", f"only its input {slot + 1} is used")


def _another_axis(evidence: Evidence, step: Step) -> Iterator[Cause]:
    inputs = evidence.inputs
    joins = isinstance(step.layer, keras.layers.Concatenate) or step.kind == "Concatenate"
    if not joins or any(x.shape != inputs[0].shape for x in inputs):
        return
    due = step.layer.axis % evidence.value.ndim
    for axis, in_keras in enumerate(evidence.axes_of_input()):
        if axis == 0 or in_keras == due:
            continue
        if evidence.explains(torch.cat(inputs, axis)):
            yield known_cause("axis", f"joined along axis {in_keras}, not {due}")


def _in_order(order: Sequence[int]) -> Cause:
    return known_cause("another skip", f"its inputs are in the order {tuple(slot + 1 for slot in order)}")


def _is_another(slot: int, name: str) -> Cause:
    return known_cause("another skip", f"its input {slot + 1} is the output of {name}")


def _axis_of(evidence: Evidence, step: Step) -> int:
    """Return along which axis of (batch, *spatial, channels) a layer joins its inputs."""
    return evidence.axes_of_value().index(step.layer.axis % evidence.value.ndim)


def _candidates(evidence: Evidence, step: Step) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and the values of tensors that may be in the place of an input: others, and the other inputs."""
    yield from evidence.others.items()
    names = {number: other.name for other in evidence.run.graph.steps for number in other.outputs}
    for number, x in zip(step.inputs, evidence.inputs, strict=True):
        yield names.get(number, "the input"), x


def _twins(evidence: Evidence) -> Iterator[Tensor]:
    """Yield what the twin has, in the order of axes of the Keras tensor, for each way to align them."""
    for value, twin, _ in alignments(evidence.value, evidence.twin):
        if value.shape == evidence.value.shape == twin.shape:
            yield twin


def _another_order_joined(evidence: Evidence, step: Step) -> Iterator[Cause]:
    """Look for each input in what the twin has joined, from the first element of the axis on."""
    axis, inputs = _axis_of(evidence, step), evidence.inputs
    for twin in _twins(evidence):
        order: list[int] = []
        start = 0
        for _ in inputs:
            slot = next(
                (
                    slot
                    for slot, x in enumerate(inputs)
                    if slot not in order
                    and start + x.shape[axis] <= twin.shape[axis]
                    and agree_within(x, twin.narrow(axis, start, x.shape[axis]), evidence.tolerance)
                ),
                None,
            )
            if slot is None:
                break
            order.append(slot)
            start += inputs[slot].shape[axis]
        if len(order) == len(inputs) and order != sorted(order):
            yield _in_order(order)


def _another_joined(evidence: Evidence, step: Step) -> Iterator[Cause]:
    """Look for another tensor where one of the inputs should be, if the others are there."""
    axis, inputs = _axis_of(evidence, step), evidence.inputs
    for twin in _twins(evidence):
        parts = twin.split([x.shape[axis] for x in inputs], axis)
        wrong = [
            slot
            for slot, (x, part) in enumerate(zip(inputs, parts, strict=True))
            if not agree_within(x, part, evidence.tolerance)
        ]
        if len(wrong) != 1:
            continue
        for name, other in _candidates(evidence, step):
            part = parts[wrong[0]]
            if other.shape == part.shape and agree_within(other, part, evidence.tolerance):
                yield _is_another(wrong[0], name)


def _another_element_by_element(evidence: Evidence, step: Step) -> Iterator[Cause | Untried]:
    """Put another tensor in the place of each input: of all at some elements, and whole where these agree."""
    inputs = evidence.inputs
    fitting = {name: other for name, other in _candidates(evidence, step) if other.shape == evidence.value.shape}
    elements = torch.linspace(0, evidence.value.numel() - 1, min(_SAMPLED, evidence.value.numel())).long()
    ours = torch.stack([x.flatten()[elements] for x in inputs])
    theirs = torch.stack([other.flatten()[elements] for other in fitting.values()])
    merge, tries = _ELEMENTWISE[step.kind], 0
    for twin in _twins(evidence):
        there = twin.flatten()[elements]
        for slot, x in enumerate(inputs):
            rest = torch.cat([ours[:slot], ours[slot + 1 :]])[:, None].expand(-1, len(theirs), -1)
            apart = (merge(torch.cat([rest, theirs[None]])) - there).abs().amax(1)
            names = []
            for (name, other), far in zip(fitting.items(), apart, strict=True):
                if other is x or far > _TIMES_TOLERANCE * evidence.tolerance:
                    continue
                if tries == _TRIES:
                    yield _not_all(step, evidence)
                    return
                tries += 1
                if evidence.explains(output_of(evidence, [*inputs[:slot], other, *inputs[slot + 1 :]])):
                    names.append(name)
            if names:
                yield _is_another(slot, " or ".join(names))


def _others_tried(evidence: Evidence, step: Step) -> Iterator[Cause | Untried]:
    """Run the layer on its inputs in other orders, and on other tensors in the place of each."""
    for tries, (changed, cause) in enumerate(_other_inputs(evidence, step)):
        if tries == _TRIES:
            yield _not_all(step, evidence)
            return
        if evidence.explains(output_of(evidence, changed)):
            yield cause


def _other_inputs(evidence: Evidence, step: Step) -> Iterator[tuple[list[Tensor], Cause]]:
    inputs = evidence.inputs
    for order in _orders(len(inputs)) if step.kind not in _ELEMENTWISE else ():
        yield [inputs[slot] for slot in order], _in_order(order)
    for slot, x in enumerate(inputs):
        for name, other in _candidates(evidence, step):
            if other.shape == x.shape and other is not x:
                yield [*inputs[:slot], other, *inputs[slot + 1 :]], _is_another(slot, name)


def _orders(count: int) -> Iterator[tuple[int, ...]]:
    """Yield other orders of so many inputs."""
    usual = tuple(range(count))
    if count <= _FEW:
        yield from (order for order in permutations(usual) if order != usual)
        return
    yield usual[::-1]
    for a, b in combinations(usual, 2):
        order = list(usual)
        order[a], order[b] = b, a
        yield tuple(order)


def _not_all(step: Step, evidence: Evidence) -> Untried:
    return Untried(
        f"{step.name} has {len(evidence.inputs)} inputs; other orders of them, and other tensors in their place, were "
        f"tried {_TRIES} times"
    )


def output_of(evidence: Evidence, inputs: Sequence[Tensor]) -> Tensor | None:
    """Return the first output of the Keras layer with other inputs, both (batch, *spatial, channels).

    It is None if the layer does not take them.
    """
    if evidence.step is None:
        return None
    try:
        return with_channels_last(computed(evidence.step, evidence.inputs_in_keras(inputs)), evidence.axis)
    except (ValueError, IndexError):  # also tensors of another rank
        return None

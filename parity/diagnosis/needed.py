"""Which tensors the evidence of a layer that diverges needs."""

from collections.abc import Callable, Collection
from itertools import islice, takewhile
from math import prod

from parity.models.keras_graph import Step, StepIndex, TensorId
from parity.tracing.op_families import IDENTITIES, names_of_step
from parity.tracing.runs import Run
from parity.tracing.side_by_side import STORED_NUMBERS, Tensors
from parity.tracing.verdicts import Kind, Verdict

import numpy as np

# At most so many steps behind a layer are tried together with it.
_MOST_BEHIND = 4

# Returns the tensors around a step, and other Keras tensors; see ``tensors_at``.
Look = Callable[[StepIndex, Collection[TensorId]], Tensors]


def others_of(run: Run, verdict: Verdict) -> dict[TensorId, str]:
    """Return the Keras tensors that a layer may have taken in place of the right ones, and their names.

    There are none if the layer takes one tensor, and that agrees.

    Args:
        run: The record of the models' run.
        verdict: The verdict on the layer.
    """
    diverges, steps = verdict.kind == Kind.DIVERGES, run.graph.steps
    if diverges and len(steps[verdict.step].inputs) == 1 and (verdict.step, 0) in run.inputs:
        return {}
    return _others(run, verdict.step, differing(run, verdict)[0], diverges)


def wanted_for(run: Run, verdict: Verdict) -> set[TensorId]:
    """Return the Keras tensors that the evidence needs beyond those that the layer takes and returns.

    Args:
        run: The record of the models' run.
        verdict: The verdict on the layer.
    """
    behind = steps_behind(run, verdict.step) if verdict.kind == Kind.DIVERGES else ()
    wanted = {tensor for later in behind for tensor in (*later.inputs, *later.outputs)}
    before = step_before(run, verdict)
    return wanted | {*others_of(run, verdict), *(before.inputs if before is not None else ())}


def step_before(run: Run, verdict: Verdict) -> Step | None:
    """Return the step before a layer that may be the wrong one, if its own output was not seen, or another was taken.

    Args:
        run: The record of the models' run.
        verdict: The verdict on the layer.
    """
    if verdict.kind == Kind.DIVERGES:
        return _unseen_before(run, verdict.step)
    return _producer(run, differing(run, verdict)[0])


def _producer(run: Run, number: TensorId) -> Step | None:
    """Return the step that computes a tensor, past layers that change nothing in evaluation."""
    producers = run.graph.producers()
    while number in producers:
        step = run.graph.steps[producers[number]]
        if not names_of_step(step) & IDENTITIES or not step.inputs:
            return step
        number = step.inputs[0]
    return None


def _unseen_before(run: Run, index: StepIndex) -> Step | None:
    """Return the step before a step that takes one tensor, of which nothing was seen; None if there is no such step."""
    numbers = run.graph.steps[index].inputs
    seen = run.inputs_of(index) != [None] or numbers[0] in run.pairing.outputs
    return None if len(numbers) != 1 or seen else _producer(run, numbers[0])


def steps_behind(run: Run, index: StepIndex) -> list[Step]:
    """Return the steps behind a step that its twin may do as well: those it does in any case, and more.

    Args:
        run: The record of the models' run.
        index: The step.
    """
    numbers = run.outputs_of(index) if index < len(run.graph.steps) else ()
    work = next((run.pairing.work[number] for number in numbers if number in run.pairing.work), None)
    if work is None:
        return []
    more = takewhile(lambda step: step not in run.pairing.twins, work.more)
    return [run.graph.steps[later] for later in (*work.least, *islice(more, _MOST_BEHIND))]


def differing(run: Run, verdict: Verdict) -> tuple[TensorId, int]:
    """Return the Keras tensor that differs first, and its slot; the slot of an output is 0.

    Args:
        run: The record of the models' run.
        verdict: The verdict on the layer.
    """
    index = verdict.step
    if index == len(run.graph.steps):
        return run.graph.outputs[verdict.output], verdict.output
    step = run.graph.steps[index]
    if verdict.kind == Kind.DIVERGES:
        # A fault that shows in training only is in none of the outputs.
        wrong = [number for number in run.outputs_of(index) if number in run.outputs and not run.outputs[number].agrees]
        return (wrong or list(run.outputs_of(index)))[0], 0
    compared = [(slot, run.inputs[index, slot]) for slot in range(len(step.inputs)) if (index, slot) in run.inputs]
    slot = next(slot for slot, found in compared if not found.agrees)
    return step.inputs[slot], slot


def _others(run: Run, index: StepIndex, number: TensorId, diverges: bool) -> dict[TensorId, str]:
    """Return other tensors with the shape of a layer's input, or of the tensor that differs, and their names.

    In a large model, only the nearest are returned.

    Args:
        run: The record of both models' run.
        index: The layer's step.
        number: The tensor that differs.
        diverges: Whether the twin takes the right input. If not, it may take another of the layer's inputs.
    """
    steps = run.graph.steps
    inputs = steps[index].inputs if index < len(steps) else ()
    outputs = steps[index].outputs if index < len(steps) else ()
    shapes = {run.shapes[own] for own in (*inputs, number)}
    excluded = {number, *outputs, *(inputs if diverges else ())}
    fitting = [other for other, shape in run.shapes.items() if shape in shapes and other not in excluded]
    fitting.sort(key=lambda other: abs(other - number))
    sizes = np.cumsum([prod(run.shapes[other]) for other in fitting])
    starts = run.graph.inputs
    names = {start: f"input {count}" if len(starts) > 1 else "the input" for count, start in enumerate(starts, 1)}
    names |= {output: step.name for step in steps for output in step.outputs}
    return {other: names[other] for other, size in sorted(zip(fitting, sizes, strict=True)) if size <= STORED_NUMBERS}

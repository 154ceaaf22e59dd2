"""A verdict on each layer, and the table of all verdicts."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from parity.models.alignment import alignments
from parity.models.keras_graph import StepIndex, TensorId
from parity.tracing.runs import MISFIT, Comparison, Run
from parity.tracing.training import Fault, TrainingFault

import numpy as np
import pandas as pd
from torch import Tensor

TRACE_COLUMNS = [
    *("layer", "kind", "twin", "keras_shape", "torch_shape", "inputs", "outputs", "noise", "verdict", "note", "at"),
]
EXCHANGED = "exchanged with "
OR_AT = "or at "
NOT_SEEN = "its inputs were not seen"
ONLY_OUTPUTS = "nothing before it was compared"
OTHER_SHAPE = "its shape is "
# If a twin may diverge at many other layers as well, this many of them are named.
_NEAREST = 5


class Kind(StrEnum):
    """The five verdicts."""

    AGREES = "agree"
    DIVERGES = "DIVERGES HERE"
    TAKES_OTHER = "TAKES OTHER INPUT"
    DIFFERENT_BEFORE = "different before"
    NOT_PAIRED = "not paired"


# The verdicts that start a divergence: the first layer with one of them is where the twin parts from its Keras model.
STARTS = (Kind.DIVERGES, Kind.TAKES_OTHER)


class Verdict(NamedTuple):
    """What is found of one step of the Keras model, or of one of the model's outputs.

    Attributes:
        kind: One of the five verdicts.
        step: The step. For an output of the model, the step after the last.
        output: The number of the model's output, from 0. For a step always 0.
        exchanged_with: Other steps, or other outputs of the model, whose output the twin exchanges with this one's.
        perhaps_at: Steps before it whose outputs could not be seen: the twin may diverge at one of these.
        alignments: Notes on how its outputs were aligned, if it took more than moving the axis of the channels.
        training: What is wrong in training although the outputs agree.
    """

    kind: Kind
    step: StepIndex
    output: int = 0
    exchanged_with: tuple[int, ...] = ()
    perhaps_at: tuple[StepIndex, ...] = ()
    alignments: tuple[str, ...] = ()
    training: TrainingFault | None = None


def verdicts_of(run: Run, faults: Mapping[StepIndex, TrainingFault]) -> list[Verdict]:
    """Return a verdict on each step in the order of the data flow, then one on each output of the model.

    Args:
        run: The record of both models' run.
        faults: What is wrong with steps in training.
    """
    verdicts = _of_steps(run)
    for index, fault in faults.items():
        # Every dropout rate in the twin is known, so a layer that is not paired can have a wrong rate, too.
        may_have_fault = (Kind.AGREES, Kind.NOT_PAIRED) if fault.kind == Fault.RATE else (Kind.AGREES,)
        if verdicts[index].kind in may_have_fault:
            verdicts[index] = Verdict(Kind.DIVERGES, index, training=fault)
    return verdicts + [_of_output(run, output) for output in range(len(run.graph.outputs))]


def table(run: Run, verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return the table that ``parity.trace`` returns.

    Args:
        run: The record of both models' run.
        verdicts: What ``verdicts_of`` returned.
    """
    rows = [_row(run, verdict) for verdict in verdicts]
    paired = {call for first, last in run.pairing.twins.values() for call in range(first, last + 1)}
    for number, call in enumerate(run.calls):
        if call.module is not None and number not in paired:
            name, shape = f"{call.name} ({type(call.module).__name__})", next(iter(call.shapes), None)
            rows.append(("-", "-", name, None, shape, np.nan, np.nan, np.nan, str(Kind.NOT_PAIRED), "", call.at))
    return pd.DataFrame(rows, columns=TRACE_COLUMNS)


def layer_name(run: Run, verdict: Verdict) -> str:
    """Return the name of a step, or of an output of the model and the step that it comes from."""
    steps = run.graph.steps
    if verdict.step < len(steps):
        return steps[verdict.step].name
    producer = run.graph.producers().get(run.graph.outputs[verdict.output])
    return f"output {verdict.output + 1}" + ("" if producer is None else f", of {steps[producer].name}")


def twin_name(run: Run, verdict: Verdict) -> str:
    """Return the name of a step's twin: modules, functions with brackets, or "-" if it has none."""
    if verdict.step == len(run.graph.steps):
        return f"return value {verdict.output + 1}"
    step = run.covered_by.get(verdict.step, verdict.step)
    if step not in run.pairing.twins:
        return "-"
    calls = [run.calls[number] for number in dict.fromkeys(run.pairing.twins[step])]
    return ", ".join(call.name if call.module is not None else f"{call.name}()" for call in calls) or "the model"


def line_of(run: Run, verdict: Verdict) -> str:
    """Return the file and the line in which a step's twin is called; nothing if that is not known."""
    last = run.pairing.twins.get(run.covered_by.get(verdict.step, verdict.step), (None, None))[1]
    return "" if last is None else run.calls[last].at


def note_of(run: Run, verdict: Verdict) -> str:
    """Return in words what is known besides the verdict's kind; may be empty."""
    steps = run.graph.steps
    if verdict.training is not None:
        return str(verdict.training)
    if verdict.exchanged_with:
        if verdict.step < len(steps):
            names = [steps[index].name for index in verdict.exchanged_with]
        else:
            names = [f"output {output + 1}" for output in verdict.exchanged_with]
        return EXCHANGED + " and ".join(names)
    if verdict.perhaps_at:
        nearest = ", ".join(steps[index].name for index in verdict.perhaps_at[-_NEAREST:])
        return f"{OR_AT}{nearest}" + (" or before" if len(verdict.perhaps_at) > _NEAREST else "")
    together = _done_together(run, verdict.step)
    if together:
        return together
    if verdict.kind in STARTS and (other := _other_shape(run, verdict)):
        return other
    if verdict.step == len(steps) and verdict.kind == Kind.AGREES and only_outputs(run):
        return ONLY_OUTPUTS
    if verdict.kind == Kind.DIVERGES and _inputs_not_seen(run, verdict.step):
        return NOT_SEEN
    return ", ".join(verdict.alignments)


def _inputs_not_seen(run: Run, step: StepIndex) -> bool:
    masks = run.graph.steps[step].masks
    return any(found is None and slot not in masks for slot, found in enumerate(run.inputs_of(step)))


def only_outputs(run: Run) -> bool:
    """Tell whether nothing but the model's outputs was compared."""
    return not (run.outputs.keys() - set(run.graph.outputs)) and not run.pairing.twins


def _other_shape(run: Run, verdict: Verdict) -> str:
    """Return in words that the twin's tensor has a shape that does not fit; nothing if it fits."""
    if verdict.kind == Kind.DIVERGES:
        compared = [(number, run.outputs.get(number)) for number in run.outputs_of(verdict.step)]
    elif verdict.step == len(run.graph.steps):
        compared = [(run.graph.outputs[verdict.output], run.inputs.get((verdict.step, verdict.output)))]
    else:
        compared = list(zip(run.graph.steps[verdict.step].inputs, run.inputs_of(verdict.step), strict=True))
    for number, found in compared:
        if found is not None and found.note == MISFIT:
            return f"{OTHER_SHAPE}{found.shape}, not {_as_in_twin(run, number, found.shape)}"
    return ""


def _as_in_twin(run: Run, number: TensorId, twin: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a Keras tensor with the channels where the twin's tensor, of another shape, has them."""
    shape = run.shapes[number]
    if len(shape) < 3 or len(shape) != len(twin):
        return shape
    axis = run.channels.axis(number, None, len(shape))
    batch, *rest = (size for other, size in enumerate(shape) if other != axis)
    ways = ((batch, shape[axis], *rest), (batch, *rest, shape[axis]))
    return max(ways, key=lambda way: sum(a == b for a, b in zip(way, twin, strict=True)))


def _done_together(run: Run, step: StepIndex) -> str:
    """Return in words what one module of the twin does together; nothing of a step that has a twin of its own."""
    steps, covered_by = run.graph.steps, run.covered_by
    if step in covered_by:
        return f"in the twin of {steps[covered_by[step]].name}"
    return "together with " + ", ".join(steps[index].name for index in run.covers[step]) if step in run.covers else ""


def _row(run: Run, verdict: Verdict) -> tuple:
    if verdict.step == len(run.graph.steps):
        kind, number = "-", run.graph.outputs[verdict.output]
        inputs, outputs = [run.outputs.get(number)], [run.inputs.get((verdict.step, verdict.output))]
    else:
        step = run.graph.steps[verdict.step]
        kind, number = step.kind, step.outputs[0]
        inputs = run.inputs_of(verdict.step)
        outputs = [run.outputs.get(output) for output in run.outputs_of(verdict.step)]
    first = outputs[0]
    return (
        layer_name(run, verdict),
        kind,
        twin_name(run, verdict),
        run.shapes[number],
        None if first is None else first.shape,
        _largest(inputs),
        _largest(outputs),
        run.noise[number],
        str(verdict.kind),
        note_of(run, verdict),
        line_of(run, verdict),
    )


def _largest(comparisons: Sequence[Comparison | None]) -> float:
    return max((found.difference for found in comparisons if found is not None), default=np.nan)


def _of_steps(run: Run) -> list[Verdict]:
    # Whether each tensor agrees. For a tensor that was not compared: whether the tensors before it agree.
    right: dict[TensorId, bool] = dict.fromkeys(run.graph.inputs, True)
    # For each tensor that was not seen: its step, and the steps before it whose outputs were not seen either.
    unseen: dict[TensorId, tuple[StepIndex, ...]] = {}
    verdicts: list[Verdict] = []
    masks = run.graph.masks()  # a twin may do without them, or have them in another form
    covered_by = run.covered_by
    for index, step in enumerate(run.graph.steps):
        if index in covered_by:
            whole = verdicts[covered_by[index]].kind
            right.update(dict.fromkeys(step.outputs, whole == Kind.AGREES))
            verdicts.append(Verdict(whole if whole in (Kind.AGREES, Kind.NOT_PAIRED) else Kind.DIFFERENT_BEFORE, index))
            continue
        unseen_before = tuple(dict.fromkeys(hidden for number in step.inputs for hidden in unseen.get(number, ())))
        right_before = all(right[number] for number in step.inputs)
        compared = zip(step.inputs, run.inputs_of(index), strict=True)
        inputs_agree = all(found.agrees if found else right[number] for number, found in compared)
        for number, returned in zip(step.outputs, run.outputs_of(index), strict=False):
            found = run.outputs.get(returned)
            right[number] = returned in run.forced or (found.agrees if found else right_before)
            if found is None and number not in masks:
                unseen[number] = (*unseen_before, index)
        verdicts.append(_of_step(run, index, inputs_agree, right_before, unseen_before))
    stored = {}
    for index, verdict in enumerate(verdicts):
        number = run.outputs_of(index)[0]
        if verdict.kind == Kind.DIVERGES and number in run.stored:
            stored[index] = (run.outputs[number].tolerance, *run.stored[number])
    for index, others in _exchanged(stored).items():
        verdicts[index] = Verdict(Kind.DIVERGES, index, exchanged_with=others)
    return verdicts


def _of_step(
    run: Run, index: StepIndex, inputs_agree: bool, right_before: bool, unseen_before: tuple[StepIndex, ...]
) -> Verdict:
    """Return the verdict on one step.

    Args:
        run: The record of both models' run.
        index: The step.
        inputs_agree: Whether its twin takes what it should.
        right_before: Whether the layers before it return what they should.
        unseen_before: Steps before it whose outputs were not seen.
    """
    compared = [run.outputs[number] for number in run.outputs_of(index) if number in run.outputs]
    if not compared:
        return Verdict(Kind.NOT_PAIRED, index)
    if all(found.agrees for found in compared):
        return Verdict(Kind.AGREES, index, alignments=tuple(sorted({found.note for found in compared if found.note})))
    if inputs_agree:
        return Verdict(Kind.DIVERGES, index, perhaps_at=unseen_before)
    if right_before:
        return Verdict(Kind.TAKES_OTHER, index, perhaps_at=unseen_before)
    return Verdict(Kind.DIFFERENT_BEFORE, index)


def _of_output(run: Run, output: int) -> Verdict:
    end, number = len(run.graph.steps), run.graph.outputs[output]
    returned, computed = run.inputs.get((end, output)), run.outputs.get(number)
    if returned is None:
        return Verdict(Kind.NOT_PAIRED, end, output)
    if returned.agrees:
        return Verdict(Kind.AGREES, end, output)
    if computed is not None and not computed.agrees and number not in run.forced:
        return Verdict(Kind.DIFFERENT_BEFORE, end, output)
    tensors = {slot: (run.inputs[end, slot].tolerance, *both) for slot, both in run.returned.items()}
    return Verdict(Kind.TAKES_OTHER, end, output, exchanged_with=_exchanged(tensors).get(output, ()))


def _exchanged(values: Mapping[int, tuple[float, Tensor, Tensor]]) -> dict[int, tuple[int, ...]]:
    """Return for each exchanged tensor the others with which the twin exchanges it.

    Args:
        values: Numbered tensors: the largest difference that is agreement, the Keras tensor, and the twin's tensor.
    """

    def is_that_of(a: int, b: int) -> bool:
        tolerance, value, _ = values[b]
        aligned = alignments(value, values[a][2])
        return any(bool(((keras_value - twin).abs() <= tolerance).all()) for keras_value, twin, _ in aligned)

    found = {}
    for a in values:
        others = tuple(b for b in values if a != b and is_that_of(a, b) and is_that_of(b, a))
        if others:
            found[a] = others
    return found

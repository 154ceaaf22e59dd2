"""What is to be said of each layer: typed verdicts, and the table that is made of them."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from parity.models.alignment import alignments
from parity.models.keras_graph import StepIndex, TensorId
from parity.tracing.runs import Comparison, Run
from parity.tracing.training import Fault, TrainingFault

import numpy as np
import pandas as pd
from torch import Tensor

TRACE_COLUMNS = ["layer", "kind", "twin", "keras_shape", "torch_shape", "inputs", "outputs", "noise", "verdict", "note"]
EXCHANGED = "exchanged with "
# Of many layers at which it may diverge as well, so many are named.
_NEAREST = 5


class Kind(StrEnum):
    """The five verdicts."""

    AGREES = "agree"
    DIVERGES = "DIVERGES HERE"
    TAKES_OTHER = "TAKES OTHER INPUT"
    DIFFERENT_BEFORE = "different before"
    NOT_PAIRED = "not paired"


# The verdicts on a layer at which a twin may part from its Keras model: the first such layer is where it does.
STARTS = (Kind.DIVERGES, Kind.TAKES_OTHER)


class Verdict(NamedTuple):
    """What is found of one step of the Keras model, or of one of the model's outputs.

    Attributes:
        kind: One of the five verdicts.
        step: The step; for an output of the model, the one after the last.
        output: Which output of the model it is, from 0; for a step always 0.
        exchanged_with: Steps, or other outputs of the model, that have its output as it has theirs.
        perhaps_at: Steps before it whose outputs could not be seen: it may be they that diverge.
        alignments: How its outputs were aligned, if it took more than moving the axis of the channels.
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
        run: Both models as they ran.
        faults: What is wrong with steps in training.
    """
    verdicts = _of_steps(run)
    for index, fault in faults.items():
        # Every dropout rate in the twin is known, that of a layer which is not paired, too.
        known = (Kind.AGREES, Kind.NOT_PAIRED) if fault.kind == Fault.RATE else (Kind.AGREES,)
        if verdicts[index].kind in known:
            verdicts[index] = Verdict(Kind.DIVERGES, index, training=fault)
    return verdicts + [_of_output(run, output) for output in range(len(run.graph.outputs))]


def table(run: Run, verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return the table that ``parity.trace`` returns.

    Args:
        run: Both models as they ran.
        verdicts: What ``verdicts_of`` returned.
    """
    rows = [_row(run, verdict) for verdict in verdicts]
    paired = {call for first, last in run.pairing.twins.values() for call in range(first, last + 1)}
    for number, call in enumerate(run.calls):
        if call.module is not None and number not in paired:
            name, shape = f"{call.name} ({type(call.module).__name__})", next(iter(call.shapes), None)
            rows.append(("-", "-", name, None, shape, np.nan, np.nan, np.nan, str(Kind.NOT_PAIRED), ""))
    return pd.DataFrame(rows, columns=TRACE_COLUMNS)


def layer_name(run: Run, verdict: Verdict) -> str:
    """Return the name of a step, or of an output of the model and the step that it comes from."""
    steps = run.graph.steps
    if verdict.step < len(steps):
        return steps[verdict.step].name
    producer = run.graph.producers().get(run.graph.outputs[verdict.output])
    return f"output {verdict.output + 1}" + ("" if producer is None else f", of {steps[producer].name}")


def twin_name(run: Run, verdict: Verdict) -> str:
    """Return the name of the twin of a step: modules, functions with brackets, or "-" if there is none."""
    if verdict.step == len(run.graph.steps):
        return f"return value {verdict.output + 1}"
    if verdict.step not in run.pairing.twins:
        return "-"
    calls = [run.calls[number] for number in dict.fromkeys(run.pairing.twins[verdict.step])]
    return ", ".join(call.name if call.module is not None else f"{call.name}()" for call in calls) or "the model"


def note_of(run: Run, verdict: Verdict) -> str:
    """Return what is known beside the verdict's kind, in words; may be empty."""
    steps = run.graph.steps
    if verdict.training is not None:
        return str(verdict.training)
    if verdict.exchanged_with:
        of_steps = verdict.step < len(steps)
        names = [steps[other].name if of_steps else f"output {other + 1}" for other in verdict.exchanged_with]
        return EXCHANGED + ", ".join(names)
    if verdict.perhaps_at:
        nearest = ", ".join(steps[index].name for index in verdict.perhaps_at[-_NEAREST:])
        return f"or at {nearest}" + (" or before" if len(verdict.perhaps_at) > _NEAREST else "")
    return ", ".join(verdict.alignments)


def _row(run: Run, verdict: Verdict) -> tuple:
    if verdict.step == len(run.graph.steps):
        kind, number = "-", run.graph.outputs[verdict.output]
        own, found = run.outputs.get(number), run.inputs.get((verdict.step, verdict.output))
        inputs, outputs, shape = [own], [found], None if found is None else found.shape
    else:
        step = run.graph.steps[verdict.step]
        kind, number = step.kind, step.outputs[0]
        inputs, outputs = run.inputs_of(verdict.step), [run.outputs.get(n) for n in step.outputs]
        shape = None if outputs[0] is None else outputs[0].shape
    return (
        layer_name(run, verdict),
        kind,
        twin_name(run, verdict),
        run.shapes[number],
        shape,
        _largest(inputs),
        _largest(outputs),
        run.noise[number],
        str(verdict.kind),
        note_of(run, verdict),
    )


def _largest(compared: Sequence[Comparison | None]) -> float:
    return max((one.difference for one in compared if one is not None), default=np.nan)


def _of_steps(run: Run) -> list[Verdict]:
    # Whether each tensor agrees; of one that was not compared, whether those before it do.
    right: dict[TensorId, bool] = dict.fromkeys(run.graph.inputs, True)
    unseen: dict[TensorId, tuple[StepIndex, ...]] = {}
    verdicts = []
    for index, step in enumerate(run.graph.steps):
        hidden = tuple(dict.fromkeys(one for number in step.inputs for one in unseen.get(number, ())))
        before = all(right[number] for number in step.inputs)
        compared = zip(step.inputs, run.inputs_of(index), strict=True)
        inputs_agree = all(found.agrees if found else right[number] for number, found in compared)
        for number in step.outputs:
            found = run.outputs.get(number)
            right[number] = found.agrees if found else before
            if found is None:
                unseen[number] = (*hidden, index)
        verdicts.append(_of_step(run, index, inputs_agree, before, hidden))
    starts = {i: run.graph.steps[i].outputs[0] for i, verdict in enumerate(verdicts) if verdict.kind == Kind.DIVERGES}
    stored = {i: (run.outputs[n].tolerance, *run.stored[n]) for i, n in starts.items() if n in run.stored}
    for index, others in _exchanged(stored).items():
        verdicts[index] = Verdict(Kind.DIVERGES, index, exchanged_with=others)
    return verdicts


def _of_step(run: Run, index: StepIndex, inputs_agree: bool, before: bool, hidden: tuple[StepIndex, ...]) -> Verdict:
    """Return the verdict on one step.

    Args:
        run: Both models as they ran.
        index: The step.
        inputs_agree: Whether its twin takes what it should.
        before: Whether the layers before it return what they should.
        hidden: Steps before it whose outputs were not seen.
    """
    found = [run.outputs[number] for number in run.graph.steps[index].outputs if number in run.outputs]
    if not found:
        return Verdict(Kind.NOT_PAIRED, index)
    if all(one.agrees for one in found):
        return Verdict(Kind.AGREES, index, alignments=tuple(sorted({one.note for one in found if one.note})))
    if inputs_agree:
        return Verdict(Kind.DIVERGES, index, perhaps_at=hidden)
    return Verdict(Kind.TAKES_OTHER, index, perhaps_at=hidden) if before else Verdict(Kind.DIFFERENT_BEFORE, index)


def _of_output(run: Run, output: int) -> Verdict:
    end, number = len(run.graph.steps), run.graph.outputs[output]
    found, own = run.inputs.get((end, output)), run.outputs.get(number)
    if found is None:
        return Verdict(Kind.NOT_PAIRED, end, output)
    if found.agrees:
        return Verdict(Kind.AGREES, end, output)
    if own is not None and not own.agrees:
        return Verdict(Kind.DIFFERENT_BEFORE, end, output)
    returned = {at: (run.inputs[end, at].tolerance, *both) for at, both in run.returned.items()}
    return Verdict(Kind.TAKES_OTHER, end, output, exchanged_with=_exchanged(returned).get(output, ()))


def _exchanged(values: Mapping[int, tuple[float, Tensor, Tensor]]) -> dict[int, tuple[int, ...]]:
    """Return which of some tensors are each other's.

    Args:
        values: By number: the largest difference that is agreement, the Keras tensor, and the twin's.
    """

    def is_that_of(a: int, b: int) -> bool:
        tolerance, value, _ = values[b]
        aligned = alignments(value, values[a][2])
        return any(bool(((view - twin).abs() <= tolerance).all()) for view, twin, _ in aligned)

    found = {}
    for a in values:
        others = tuple(b for b in values if a != b and is_that_of(a, b) and is_that_of(b, a))
        if others:
            found[a] = others
    return found

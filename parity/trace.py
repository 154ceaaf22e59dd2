"""Where does a twin part from its Keras model? A table of all layers, and the first that diverges."""

from collections.abc import Sequence
from typing import NamedTuple

from parity.alongside import Inputs, Run, Seen, run_both, views
from parity.in_training import training_faults

import keras
import numpy as np
import pandas as pd
from torch import Tensor, nn

AGREE = "agree"
HERE = "DIVERGES HERE"
BEFORE = "TAKES OTHER INPUT"
AFTER = "different before"
UNSEEN = "not paired"

TRACE_COLUMNS = ["layer", "kind", "twin", "keras_shape", "torch_shape", "inputs", "outputs", "noise", "verdict"]


class Divergence(NamedTuple):
    """The layer at which a twin parts from its Keras model.

    Attributes:
        layer: Name of the Keras layer.
        twin: Name of its twin in the PyTorch model.
        verdict: HERE if its inputs agree and its outputs do not; BEFORE if the twin takes another input than what the
            layers before it return.
        others: Layers that have this one's output, as this one has theirs.
    """

    layer: str
    twin: str
    verdict: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.others:
            return f"{' and '.join([self.layer, *self.others])} are each other's: each has the output of the other"
        if self.verdict == BEFORE:
            return f"{self.layer} ({self.twin}) takes another input than what the layers before it return"
        return f"{self.layer} ({self.twin}): its inputs agree, its outputs do not"


def trace(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    torch_x: Sequence[Tensor] | None = None,
    training: bool = False,
) -> pd.DataFrame:
    """Compare a twin with its Keras model layer by layer. Neither is changed.

    Args:
        keras_model: A Functional or a built Sequential model.
        torch_model: The twin; it runs in the mode that it is in.
        x: An input of the Keras model: an array (batch, *spatial, channels), or one for each of several inputs.
        mapping: Which Keras weight fills which PyTorch tensor, as ``parity.mapping.read_mapping`` returns it.
        torch_x: The twin's inputs, if they are not ``x`` with the channels moved to axis 1.
        training: Run both in training mode, without dropout, and compare running statistics, dropout rates and
            gradients, too. Gradients need all of both models in memory, and TensorFlow as Keras's backend.

    Returns:
        One row for each call of a Keras layer in the order of the data flow (two for a layer with an activation of its
        own), then one for each output of the model, then one for each module of the twin that no layer was found for.
        The columns: ``layer``; ``kind``; ``twin``, a module, or a function with brackets; ``keras_shape`` and
        ``torch_shape`` of the output, each with its framework's order of axes; ``inputs`` and ``outputs``, the largest
        absolute difference after the change of layout, NaN where it could not be seen; ``noise``, the difference that
        rounding makes there, as measured by rounding otherwise; and ``verdict``:

        - "agree": inputs and outputs agree.
        - "DIVERGES HERE": the inputs agree, the outputs do not.
        - "TAKES OTHER INPUT": the layers before agree, and the twin takes something else than their output.
        - "different before": the inputs do not agree, because a layer before diverges.
        - "not paired": nothing in the twin was found for it.

        What else is known follows the verdict, after a colon.

    Raises:
        ParityError: If the Keras model has no graph, the mapping does not fit the models, or the inputs do not.
    """
    run = run_both(keras_model, torch_model, x, mapping, torch_x, training)
    return table(run, training_faults(run, keras_model, torch_model, x, mapping, torch_x) if training else {})


def table(run: Run, faults: dict[int, str]) -> pd.DataFrame:
    """Return the table that ``trace`` returns, of models that have run.

    Args:
        run: Both models as they ran.
        faults: By number of a step: what is wrong with it in training.
    """
    verdicts = _verdicts(run)
    for index, fault in faults.items():
        if verdicts[index].startswith(AGREE):
            verdicts[index] = f"{HERE}: {fault}"
    rows = [_row(run, index, verdict) for index, verdict in enumerate(verdicts)]
    rows += [_output_row(run, slot) for slot in range(len(run.graph.outputs))]
    paired = {call for both in run.pairing.twins.values() for call in range(both[0], both[1] + 1)}
    for number, call in enumerate(run.calls):
        if call.module is not None and number not in paired:
            kind = type(call.module).__name__
            rows.append(("-", "-", f"{call.name} ({kind})", None, _shape(call.shapes), np.nan, np.nan, np.nan, UNSEEN))
    return pd.DataFrame(rows, columns=TRACE_COLUMNS)


def first_divergence(traced: pd.DataFrame) -> Divergence | None:
    """Return the first layer whose inputs agree and whose outputs do not; None if there is none.

    Args:
        traced: What ``trace`` returned.
    """
    for row in traced.itertuples():
        verdict, _, more = row.verdict.partition(": ")
        if verdict in (HERE, BEFORE):
            others = tuple(more.removeprefix(_EXCHANGED).split(", ")) if more.startswith(_EXCHANGED) else ()
            return Divergence(row.layer, row.twin, verdict, others)
    return None


_EXCHANGED = "exchanged with "


def _row(run: Run, index: int, verdict: str) -> tuple:
    step = run.graph.steps[index]
    number = step.outputs[0]
    made = run.made.get(number)
    inputs = [seen.difference for seen in _inputs(run, index) if seen is not None]
    return (
        step.name,
        step.kind,
        _twin_name(run, index),
        run.shapes[number],
        None if made is None else made.shape,
        max(inputs, default=np.nan),
        max((run.made[n].difference for n in step.outputs if n in run.made), default=np.nan),
        run.noise[number],
        verdict,
    )


def _output_row(run: Run, slot: int) -> tuple:
    number = run.graph.outputs[slot]
    step = run.graph.producers().get(number)
    seen = run.taken.get((len(run.graph.steps), slot))
    made = run.made.get(number)
    verdict = UNSEEN
    if seen is not None:
        verdict = AGREE if seen.agrees else BEFORE if made is None or made.agrees else AFTER
        if verdict == BEFORE:
            outputs = {at: (run.taken[len(run.graph.steps), at].within, *both) for at, both in run.returned.items()}
            others = [f"output {other + 1}" for other in _exchanged(outputs).get(slot, [])]
            verdict += f": {_EXCHANGED}{', '.join(others)}" if others else ""
    name = f"output {slot + 1}" + (f", of {step.name}" if step else "")
    return (
        name,
        "-",
        f"return value {slot + 1}",
        run.shapes[number],
        None if seen is None else seen.shape,
        np.nan if made is None else made.difference,
        np.nan if seen is None else seen.difference,
        run.noise[number],
        verdict,
    )


def _twin_name(run: Run, index: int) -> str:
    if index not in run.pairing.twins:
        return "-"
    calls = [run.calls[number] for number in dict.fromkeys(run.pairing.twins[index])]
    return ", ".join(call.name if call.module is not None else f"{call.name}()" for call in calls) or "the model"


def _shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    return shapes[0] if shapes else None


def _inputs(run: Run, index: int) -> list[Seen | None]:
    """Return what was seen of a step's inputs: as its twin takes them, else as the twin's other calls return them."""
    numbers = run.graph.steps[index].inputs
    return [run.taken.get((index, slot)) or run.made.get(number) for slot, number in enumerate(numbers)]


def _verdicts(run: Run) -> list[str]:
    """Return the verdict on each step."""
    # By number of a tensor: whether it agrees; that of a tensor which nobody saw, whether those before it do.
    right = dict.fromkeys(run.graph.inputs, True)
    unseen: dict[int, list[str]] = {}
    verdicts = []
    for index, step in enumerate(run.graph.steps):
        inputs = _inputs(run, index)
        hidden = [name for n, seen in zip(step.inputs, inputs, strict=True) for name in unseen.get(n, [])]
        before = all(right[number] for number in step.inputs)
        taken = all(seen.agrees if seen else right[n] for n, seen in zip(step.inputs, inputs, strict=True))
        made = [run.made[number] for number in step.outputs if number in run.made]
        for number in step.outputs:
            seen = run.made.get(number)
            right[number] = seen.agrees if seen else before
            if seen is None:
                unseen[number] = [*hidden, step.name]
        verdicts.append(_verdict(made, taken, before, hidden))
    candidates = {i: run.graph.steps[i].outputs[0] for i, verdict in enumerate(verdicts) if verdict.startswith(HERE)}
    values = {i: (run.made[n].within, *run.kept[n]) for i, n in candidates.items() if n in run.kept}
    for index, others in _exchanged(values).items():
        verdicts[index] = f"{HERE}: {_EXCHANGED}{', '.join(run.graph.steps[other].name for other in others)}"
    return verdicts


def _verdict(made: list[Seen], taken: bool, before: bool, hidden: list[str]) -> str:
    if not made:
        return UNSEEN
    perhaps = f": or at {', '.join(hidden)}" if hidden else ""
    if all(seen.agrees for seen in made):
        ways = ", ".join(sorted({seen.way for seen in made if seen.way}))
        return AGREE + (f": {ways}" if ways else "")
    if taken:
        return HERE + perhaps
    return BEFORE + perhaps if before else AFTER


def _exchanged(values: dict[int, tuple[float, Tensor, Tensor]]) -> dict[int, list[int]]:
    """Return which of some tensors are each other's.

    Args:
        values: By number: the largest difference that is agreement, the Keras tensor, and the twin's.
    """

    def is_that_of(a: int, b: int) -> bool:
        within, value, _ = values[b]
        ways = views(value, values[a][2], None, None)
        return any(bool(((view - twin).abs() <= within).all()) for view, twin, _ in ways)

    found: dict[int, list[int]] = {}
    for a in values:
        others = [b for b in values if a != b and is_that_of(a, b) and is_that_of(b, a)]
        if others:
            found[a] = others
    return found

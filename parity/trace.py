"""Where does a twin part from its Keras model? A table of all layers, and the first that diverges."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from parity.alongside import KEPT, Run, Seen, run_both
from parity.arguments import Inputs, TwinInputs
from parity.case import Case, Cause, known_cause
from parity.causes import causes_before, causes_here
from parity.causes_of_settings import other_settings
from parity.graph import Step
from parity.in_training import FROZEN, GRADIENT, RATE, STATISTICS, training_faults
from parity.layouts import find_layout
from parity.overlay import CHANNELS_FIRST_FEATURES, TIMES_NOISE, views

import keras
import numpy as np
import pandas as pd
import torch
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
        in_training: What is wrong although the outputs agree, and after a colon, what is known of it.
    """

    layer: str
    twin: str
    verdict: str
    others: tuple[str, ...] = ()
    in_training: str = ""

    def __str__(self) -> str:
        if self.others:
            return f"{' and '.join([self.layer, *self.others])} are each other's: each has the output of the other"
        if self.verdict == BEFORE:
            return f"{self.layer} ({self.twin}) takes another input than what the layers before it return"
        fault = self.in_training.partition(": ")[0] or "its inputs agree, its outputs do not"
        return f"{self.layer} ({self.twin if self.twin != '-' else 'not found in the twin'}): {fault}"


def trace(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    torch_x: TwinInputs = None,
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
    return _traced(keras_model, torch_model, x, mapping, torch_x, training)[1]


def _traced(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    torch_x: TwinInputs,
    training: bool,
) -> tuple[Run, pd.DataFrame]:
    run = run_both(keras_model, torch_model, x, mapping, torch_x, training)
    faults = training_faults(run, keras_model, torch_model, x, mapping, torch_x) if training else {}
    return run, table(run, faults)


def readable(traced: pd.DataFrame) -> pd.DataFrame:
    """Return what matters of a trace, the same on every machine: differences with two digits, agreement as a word.

    Args:
        traced: What ``trace`` returned.

    Returns:
        The columns ``layer``, ``twin``, ``inputs``, ``outputs`` and ``verdict``, as text.
    """
    table = traced[["layer", "twin", "inputs", "outputs", "verdict"]].copy()
    within = traced.noise.fillna(0) * TIMES_NOISE
    for column in ("inputs", "outputs"):
        # The noise of an input is that of another tensor; what follows from it is in the verdict.
        agrees = (traced[column] <= within) | traced.verdict.str.startswith(AGREE)
        if column == "inputs":
            agrees |= traced.verdict.str.startswith(HERE)
        words = [f"{difference:.2g}" for difference in traced[column]]
        words = ["agree" if same else word for same, word in zip(agrees, words, strict=True)]
        table[column] = ["-" if np.isnan(d) else w for d, w in zip(traced[column], words, strict=True)]
    return table


def table(run: Run, faults: dict[int, str]) -> pd.DataFrame:
    """Return the table that ``trace`` returns, of models that have run.

    Args:
        run: Both models as they ran.
        faults: By number of a step: what is wrong with it in training.
    """
    verdicts = _verdicts(run)
    for index, fault in faults.items():
        # Every rate in the twin is known, that of a layer which is not paired, too.
        if verdicts[index].startswith((AGREE, UNSEEN) if fault.startswith(RATE) else AGREE):
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
            in_training = more if more.startswith((STATISTICS, RATE, FROZEN, GRADIENT)) else ""
            return Divergence(row.layer, row.twin, verdict, others, in_training)
    return None


class Diagnosis(NamedTuple):
    """Where a twin diverges, and why.

    Attributes:
        divergence: The first layer that diverges, None if none does.
        causes: The known causes that explain it; none if it is another.
        traced: What ``trace`` returns.
    """

    divergence: Divergence | None
    causes: list[Cause]
    traced: pd.DataFrame

    def __str__(self) -> str:
        if self.divergence is None:
            return "no layer diverges"
        lines = [f"{c.cause}{f' ({c.detail})' if c.detail else ''}: notebook {c.notebook}" for c in self.causes]
        return "\n  ".join([str(self.divergence), *(lines or ["none of the known causes explains it"])])


def diagnose(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    torch_x: TwinInputs = None,
    training: bool = False,
) -> Diagnosis:
    """Find the first layer that diverges, and try the known causes on it. Neither model is changed.

    The arguments, and what is raised, are those of ``trace``.

    Returns:
        The layer, and each cause that makes it agree: undone, the twin's layer returns what Keras's does; or done to
        Keras's numbers, it gives the twin's. ``parity.case.CAUSES`` lists the causes that are known. With them, the
        table that ``trace`` returns.
    """
    run, traced = _traced(keras_model, torch_model, x, mapping, torch_x, training)
    divergence = first_divergence(traced)
    if divergence is None:
        return Diagnosis(None, [], traced)
    names = [step.name for step in run.graph.steps]
    index = names.index(divergence.layer) if divergence.layer in names else len(names)
    if divergence.others:
        heads = index == len(names) or _leads_out(run, index)
        weights = index < len(names) and run.graph.steps[index].weights
        cause = "heads exchanged" if heads else "weights of another layer" if weights else "another skip"
        detail = f"{', '.join([divergence.layer, *divergence.others])}"
        return Diagnosis(divergence, [known_cause(cause, detail)], traced)
    for fault, cause in ((RATE, "dropout rate"), (FROZEN, "layer frozen"), (GRADIENT, "gradient stopped")):
        if divergence.in_training.startswith(fault):
            return Diagnosis(divergence, [known_cause(cause, divergence.in_training.partition(": ")[2])], traced)
    number, slot = _differing(run, index, divergence)
    others = _others(run, index, number, divergence.verdict)
    own = run.graph.steps[index].inputs if index < len(run.graph.steps) else ()
    wanted = {*others, *own}
    run = run_both(
        keras_model, torch_model, x, mapping, torch_x, training, before=run, keep=divergence.layer, others=wanted
    )
    case = _case(run, index, number, slot, divergence.verdict, others, torch_model, mapping)
    if divergence.in_training:
        settings = other_settings(case)
        details = ["momentum is {1:g}, not {0:g}".format(*settings["momentum"])] if "momentum" in settings else []
        return Diagnosis(divergence, [known_cause("momentum", detail) for detail in details], traced)
    causes = causes_here(case) if divergence.verdict == HERE else causes_before(case)
    return Diagnosis(divergence, list(causes), traced)


def _leads_out(run: Run, index: int) -> bool:
    """Tell whether a step's output becomes one of the model's through layers without weights only."""
    numbers = set(run.graph.steps[index].outputs)
    for step in run.graph.steps[index + 1 :]:
        if numbers & set(step.inputs) and not step.weights:
            numbers |= set(step.outputs)
    return bool(numbers & set(run.graph.outputs))


def _differing(run: Run, index: int, divergence: Divergence) -> tuple[int, int]:
    """Return the number of the Keras tensor that differs first, and which input of the step or output it is."""
    if index == len(run.graph.steps):
        slot = int(divergence.layer.split(",")[0].split()[1]) - 1
        return run.graph.outputs[slot], slot
    step = run.graph.steps[index]
    if divergence.verdict == HERE:
        return step.outputs[0], 0
    slot = next(s for s in range(len(step.inputs)) if (t := run.taken.get((index, s))) and not t.agrees)
    return step.inputs[slot], slot


def _case(
    run: Run,
    index: int,
    number: int,
    slot: int,
    verdict: str,
    others: dict[int, str],
    torch_model: nn.Module,
    mapping: pd.DataFrame,
) -> Case:
    """Gather what is known of the layer that diverges.

    Args:
        run: Both models as they ran the second time.
        index: Number of the layer's step.
        number: The tensor that differs.
        slot: Which input of the step, or output of the model, it is.
        verdict: What the trace says of the layer.
        others: Names of other tensors that may have been taken in place of the right one.
        torch_model: The twin.
        mapping: Which Keras weight fills which PyTorch tensor.
    """
    step = run.graph.steps[index] if index < len(run.graph.steps) else None
    if step is None:
        value, twin = run.returned[slot]
    elif verdict == HERE:
        value, twin = run.kept[number]
    else:
        value, twin = run.inputs[slot]
    taken = number if step is None or verdict == BEFORE else step.inputs[0]
    seen = run.taken.get((index, 0)) or run.made.get(taken)
    weights, actual = _weights(run, step, torch_model, mapping)
    calls = [run.calls[call] for call in dict.fromkeys(run.pairing.twins.get(index, ()))]
    modules = list({id(call.module): call.module for call in calls if call.module is not None}.values())
    return Case(
        run=run,
        index=index,
        step=step,
        modules=modules,
        inputs=[run.others[at] for at in step.inputs] if step is not None else [],
        twin_inputs=[twin for _, (_, twin) in sorted(run.inputs.items())],
        value=value,
        twin=twin,
        within=TIMES_NOISE * run.noise[number],
        flattened=run.flattened.get(taken),
        channels_first=seen is not None and seen.way == CHANNELS_FIRST_FEATURES,
        weights=weights,
        actual=actual,
        others={name: run.others[at] for at, name in others.items()},
    )


def _weights(
    run: Run, step: Step | None, torch_model: nn.Module, mapping: pd.DataFrame
) -> tuple[dict[str, Tensor], dict[str, tuple[nn.Module, str]]]:
    """Return every weight in PyTorch's layout, and where in the twin those of one step are."""
    names = dict(mapping.fillna("").astype(str).values)
    modules = dict(torch_model.named_modules(remove_duplicate=False))
    weights, actual = {}, {}
    for other in run.graph.steps:
        layout = find_layout(other.layer) or {}
        for variable in other.weights:
            if variable.name not in layout or variable.path not in names:
                continue
            value = torch.from_numpy(variable.numpy().copy())
            weights[variable.path] = layout[variable.name].view(value)
            if step is not None and not step.is_activation and other.layer is step.layer:
                module, _, tensor = names[variable.path].rpartition(".")
                actual[variable.path] = (modules[module], tensor)
    return weights, actual


def _others(run: Run, index: int, number: int, verdict: str) -> dict[int, str]:
    """Return the names of other tensors with the shape of what a Keras layer takes, or of another tensor, by number.

    Of a large model, these are the nearest.

    Args:
        run: Both models as they ran.
        index: Number of the layer's step.
        number: The tensor whose shape is wanted, too.
        verdict: What the trace says of the layer; if it takes another input, that may be one of its other inputs.
    """
    steps = run.graph.steps
    own = steps[index].inputs if index < len(steps) else ()
    shapes = {run.shapes[n] for n in (*own, number)}
    outputs = steps[index].outputs if index < len(steps) else ()
    not_others = {number, *outputs, *(own if verdict == HERE else ())}
    fitting = [at for at, shape in run.shapes.items() if shape in shapes and at not in not_others]
    fitting.sort(key=lambda at: abs(at - number))
    sizes = np.cumsum([prod(run.shapes[at]) for at in fitting])
    starts = run.graph.inputs
    names = {at: f"input {place}" if len(starts) > 1 else "the input" for place, at in enumerate(starts, 1)}
    names |= {at: step.name for step in steps for at in step.outputs}
    return {at: names[at] for at, size in sorted(zip(fitting, sizes, strict=True)) if size <= KEPT}


_EXCHANGED = "exchanged with "
_NEAREST = 5


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
        hidden = list(dict.fromkeys(name for number in step.inputs for name in unseen.get(number, [])))
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
    # Of many, the nearest.
    perhaps = f": or at {', '.join(hidden[-_NEAREST:])}{' or before' * (len(hidden) > _NEAREST)}" if hidden else ""
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

"""Why does a twin part from its Keras model? The known causes, tried on the first layer that diverges."""

from math import prod
from typing import NamedTuple

from parity.arguments import Inputs, TwinInputs
from parity.case import Cause, Evidence, known_cause
from parity.causes import causes_before, causes_here
from parity.causes_of_settings import other_settings
from parity.graph import Step, StepIndex, TensorId
from parity.in_training import Fault
from parity.layouts import find_layout
from parity.overlay import CHANNELS_FIRST_FEATURES, TIMES_NOISE
from parity.port import Port, make_port
from parity.runs import Run
from parity.side_by_side import STORED_NUMBERS, tensors_at
from parity.trace import Divergence, divergence_of, run_and_judge
from parity.verdicts import STARTS, Kind, Verdict, table

import keras
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

_CAUSES_IN_TRAINING = {
    Fault.RATE: "dropout rate",
    Fault.FROZEN: "layer frozen",
    Fault.GRADIENT: "gradient stopped",
}


class Diagnosis(NamedTuple):
    """Where a twin diverges, and why.

    Attributes:
        divergence: The first layer that diverges, None if none does.
        causes: The known causes that explain it; none if it is another.
        traced: What ``parity.trace.trace`` returns.
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
    *,
    torch_x: TwinInputs = None,
    training: bool = False,
) -> Diagnosis:
    """Find the first layer that diverges, and try the known causes on it. Neither model is changed.

    The arguments, and what is raised, are those of ``parity.trace.trace``.

    Returns:
        The layer, and each cause that makes it agree: undone, the twin's layer returns what Keras's does; or done to
        Keras's numbers, it gives the twin's. ``parity.case.CAUSES`` lists the causes that are known. With them, the
        table that ``trace`` returns.
    """
    port = make_port(keras_model, torch_model, x, mapping, torch_x)
    run, verdicts = run_and_judge(port, training)
    traced = table(run, verdicts)
    first = next((verdict for verdict in verdicts if verdict.kind in STARTS), None)
    if first is None:
        return Diagnosis(None, [], traced)
    return Diagnosis(divergence_of(run, first), _causes(port, run, first), traced)


def _causes(port: Port, run: Run, verdict: Verdict) -> list[Cause]:
    """Return what explains the first divergence."""
    if verdict.exchanged_with:
        return [_exchange(run, verdict)]
    fault = verdict.training
    if fault is not None and fault.kind in _CAUSES_IN_TRAINING:
        return [known_cause(_CAUSES_IN_TRAINING[fault.kind], fault.detail)]
    evidence = _gather(port, run, verdict)
    if fault is not None:
        settings = other_settings(evidence)
        details = ["momentum is {1:g}, not {0:g}".format(*settings["momentum"])] if "momentum" in settings else []
        return [known_cause("momentum", detail) for detail in details]
    return list(causes_here(evidence) if verdict.kind == Kind.DIVERGES else causes_before(evidence))


def _exchange(run: Run, verdict: Verdict) -> Cause:
    steps = run.graph.steps
    if verdict.step == len(steps):
        names = [f"output {output + 1}" for output in verdict.exchanged_with]
        return known_cause("heads exchanged", ", ".join([divergence_of(run, verdict).layer, *names]))
    names = [steps[index].name for index in (verdict.step, *verdict.exchanged_with)]
    if _leads_out(run, verdict.step):
        cause = "heads exchanged"
    else:
        cause = "weights of another layer" if steps[verdict.step].weights else "another skip"
    return known_cause(cause, ", ".join(names))


def _leads_out(run: Run, index: StepIndex) -> bool:
    """Tell whether a step's output becomes one of the model's through layers without weights only."""
    numbers = set(run.graph.steps[index].outputs)
    for step in run.graph.steps[index + 1 :]:
        if numbers & set(step.inputs) and not step.weights:
            numbers |= set(step.outputs)
    return bool(numbers & set(run.graph.outputs))


def _gather(port: Port, run: Run, verdict: Verdict) -> Evidence:
    """Gather what is known of the layer that diverges; both models run again as far as that layer."""
    index, here = verdict.step, verdict.kind == Kind.DIVERGES
    step = run.graph.steps[index] if index < len(run.graph.steps) else None
    number, slot = _differing(run, verdict)
    others = _others(run, index, number, here)
    tensors = tensors_at(port, run, index, others)
    taken = number if step is None or not here else step.inputs[0]
    seen = run.inputs.get((index, 0)) or run.outputs.get(taken)
    weights, actual = _weights(port, step)
    calls = [run.calls[call] for call in dict.fromkeys(run.pairing.twins.get(index, ()))]
    modules = list({id(call.module): call.module for call in calls if call.module is not None}.values())
    return Evidence(
        run=run,
        index=index,
        step=step,
        modules=modules,
        inputs=[tensors.keras[one] for one in step.inputs] if step is not None else [],
        twin_inputs=[twin for _, twin in sorted(tensors.inputs.items())] if step is not None else [],
        value=tensors.keras[number],
        twin=tensors.outputs[number] if here else tensors.inputs[slot],
        tolerance=TIMES_NOISE * run.noise[number],
        flattened=run.flattened.get(taken),
        channels_first=seen is not None and seen.note == CHANNELS_FIRST_FEATURES,
        weights=weights,
        actual=actual,
        others={name: tensors.keras[one] for one, name in others.items()},
    )


def _differing(run: Run, verdict: Verdict) -> tuple[TensorId, int]:
    """Return the Keras tensor that differs first, and its position among the step's inputs or the model's outputs."""
    index = verdict.step
    if index == len(run.graph.steps):
        return run.graph.outputs[verdict.output], verdict.output
    step = run.graph.steps[index]
    if verdict.kind == Kind.DIVERGES:
        return step.outputs[0], 0
    compared = [(slot, run.inputs[index, slot]) for slot in range(len(step.inputs)) if (index, slot) in run.inputs]
    slot = next(slot for slot, found in compared if not found.agrees)
    return step.inputs[slot], slot


def _weights(port: Port, step: Step | None) -> tuple[dict[str, Tensor], dict[str, tuple[nn.Module, str]]]:
    """Return every weight in PyTorch's layout, and where in the twin those of one step are."""
    keys, modules = port.key_of, dict(port.twin.named_modules(remove_duplicate=False))
    weights, actual = {}, {}
    for other in port.graph.steps:
        layout = find_layout(other.layer) or {}
        for variable in other.weights:
            if variable.name not in layout or variable.path not in keys:
                continue
            value = torch.from_numpy(variable.numpy().copy())
            weights[variable.path] = layout[variable.name].view(value)
            if step is not None and not step.is_activation and other.layer is step.layer:
                module, _, tensor = keys[variable.path].rpartition(".")
                actual[variable.path] = (modules[module], tensor)
    return weights, actual


def _others(run: Run, index: StepIndex, number: TensorId, here: bool) -> dict[TensorId, str]:
    """Return the names of other tensors with the shape of what a Keras layer takes, or of another tensor.

    Of a large model, these are the nearest.

    Args:
        run: Both models as they ran.
        index: The layer's step.
        number: The tensor whose shape is wanted, too.
        here: Whether the layer takes what it should; else what its twin takes may be another of its inputs.
    """
    steps = run.graph.steps
    own = steps[index].inputs if index < len(steps) else ()
    shapes = {run.shapes[one] for one in (*own, number)}
    outputs = steps[index].outputs if index < len(steps) else ()
    excluded = {number, *outputs, *(own if here else ())}
    fitting = [one for one, shape in run.shapes.items() if shape in shapes and one not in excluded]
    fitting.sort(key=lambda one: abs(one - number))
    sizes = np.cumsum([prod(run.shapes[one]) for one in fitting])
    starts = run.graph.inputs
    names = {one: f"input {place}" if len(starts) > 1 else "the input" for place, one in enumerate(starts, 1)}
    names |= {one: step.name for step in steps for one in step.outputs}
    return {one: names[one] for one, size in sorted(zip(fitting, sizes, strict=True)) if size <= STORED_NUMBERS}

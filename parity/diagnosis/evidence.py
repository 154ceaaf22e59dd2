"""A layer that diverges, and all that is known of it."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from parity.models.alignment import CHANNELS_FIRST_FEATURES, alignments, largest
from parity.models.keras_graph import Step, StepIndex, TensorId
from parity.models.rounding import TIMES_NOISE
from parity.tracing.port import Port
from parity.tracing.runs import Run
from parity.tracing.side_by_side import STORED_NUMBERS, tensors_at
from parity.tracing.verdicts import Kind, Verdict
from parity.weights.layouts import find_layout

import numpy as np
import torch
from torch import Tensor, nn

# What stands for infinity where tensors are subtracted.
_HUGE = 1e30


class Evidence(NamedTuple):
    """All that is known of a layer that diverges.

    Attributes:
        run: The record of both models' run.
        index: The step; the one after the last is the model's return.
        step: The step itself, None for the model's return.
        modules: The twin's modules that hold the layer's weights, or the one that plays its part; may be empty.
        inputs: What the Keras layer takes.
        twin_inputs: What its twin takes, with the axes as the twin has them; may be empty.
        value: What the Keras layer returns; where the twin takes another input, what the layer takes.
        twin: What the twin has instead.
        tolerance: The largest difference that rounding explains.
        flattened: The shape that the features it takes were flattened from, None if they were not.
        channels_first: Whether the twin has those features channels first.
        weights: Every Keras weight that can be moved: its path, and the values in PyTorch's layout.
        actual: By the path of each of the layer's weights: the module, and the name of the tensor in it.
        others: Other tensors of the Keras model, of the shape of what it takes.
    """

    run: Run
    index: StepIndex
    step: Step | None
    modules: list[nn.Module]
    inputs: list[Tensor]
    twin_inputs: list[Tensor]
    value: Tensor
    twin: Tensor
    tolerance: float
    flattened: tuple[int, ...] | None
    channels_first: bool
    weights: dict[str, Tensor]
    actual: dict[str, tuple[nn.Module, str]]
    others: dict[str, Tensor]

    def agrees(self, twin: Tensor | None) -> bool:
        """Tell whether a tensor in the twin's order of axes is what the Keras layer returns."""
        return twin is not None and agree_within(self.value, twin, self.tolerance, self.flattened)

    def explains(self, value: Tensor | None) -> bool:
        """Tell whether a tensor in Keras's order of axes is what the twin has."""
        return value is not None and agree_within(value, self.twin, self.tolerance, window=True)


def run_modules(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Tensor | None:
    """Return what modules, one after the other, make of what the twin took; None if they cannot."""
    if not modules or not inputs:
        return None
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x = modules[0](*(tensor.clone() for tensor in inputs))
            for module in modules[1:]:
                x = module(x)
            return x if isinstance(x, Tensor) else None
    except (RuntimeError, ValueError, IndexError):
        return None


def agree_within(
    value: Tensor, twin: Tensor, tolerance: float, flattened: tuple[int, ...] | None = None, window: bool = False
) -> bool:
    """Tell whether a Keras tensor and the twin's agree in one of the ways to lay one over the other; see ``views``."""
    # Infinities cannot be subtracted; where both tensors have one, they agree.
    value, twin = (torch.nan_to_num(tensor, nan=torch.nan, posinf=_HUGE, neginf=-_HUGE) for tensor in (value, twin))
    aligned = alignments(value, twin, None, flattened, window)
    return any(largest(view - other) <= tolerance for view, other, _ in aligned)


def gather(port: Port, run: Run, verdict: Verdict) -> Evidence:
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
        run: The record of both models' run.
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

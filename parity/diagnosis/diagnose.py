"""Why does a twin part from its Keras model? The known causes are tried on the first layer that diverges.

A cause explains a difference if undoing it makes the layer agree, or if doing the same to Keras's numbers gives the
twin's. Nothing is changed: modules are copied before anything is tried on them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, overload

from parity.diagnosis.activations import by_axis, by_function, by_gate, by_moved_activation, by_scaled_activation
from parity.diagnosis.attention import by_attention, by_attention_weights
from parity.diagnosis.causes import Cause, Untried, known_cause
from parity.diagnosis.each_alone import every_diagnosis
from parity.diagnosis.elsewhere import explained_elsewhere, targets_first, targets_then
from parity.diagnosis.evidence import Evidence, gather
from parity.diagnosis.geometry import by_border, by_crop, by_padding
from parity.diagnosis.inputs import (
    by_activation_before,
    by_another_tensor,
    by_dropping,
    by_numbers,
    by_other_input,
    by_overwriting,
    by_precision,
    by_scaled_input,
)
from parity.diagnosis.inside import by_activation_left_out, by_folding, by_function_inside, by_unseen_activation
from parity.diagnosis.merging import by_merging, by_merging_before
from parity.diagnosis.needed import Look
from parity.diagnosis.normalizing import by_formula, by_local_response, by_norm
from parity.diagnosis.norms import by_kind_of_norm, by_place_of_norm
from parity.diagnosis.operations import by_element, by_operation, by_reduction
from parity.diagnosis.order import (
    by_channels,
    by_exchanged_axes,
    by_order,
    by_order_of_channels,
    by_order_of_features,
    by_reshaped_axes,
)
from parity.diagnosis.pairs import as_two
from parity.diagnosis.parts import by_activation_between, by_leaving_out
from parity.diagnosis.pooling import by_global_pooling, by_pooling, by_unseen_pooling
from parity.diagnosis.recurrence import by_mask, by_recurrence, by_recurrent_weights, by_step_taken, by_time_and_batch
from parity.diagnosis.resizing import by_interpolation, by_pixel_blocks
from parity.diagnosis.results import Diagnoses, Diagnosis, Explained, diagnosis_of
from parity.diagnosis.scaling import by_scale
from parity.diagnosis.settings import by_mode, by_settings, other_settings
from parity.diagnosis.weights import by_bias, by_weights, by_weights_of_functions
from parity.models.inputs import Inputs, TwinInputs
from parity.models.keras_graph import StepIndex
from parity.tracing.port import Port, make_port
from parity.tracing.runs import Run
from parity.tracing.side_by_side import tensors_at
from parity.tracing.trace import divergence_of, run_and_judge
from parity.tracing.training import Fault
from parity.tracing.verdicts import STARTS, Kind, Verdict, only_outputs, table

import keras
import pandas as pd
from torch import nn

Attempt = Callable[[Evidence], Iterator[Cause | Untried]]

WRONG_OUTPUT: tuple[Attempt, ...] = (
    by_mode,
    by_recurrent_weights,
    by_recurrence,
    by_attention_weights,
    by_attention,
    by_mask,
    by_folding,
    by_weights,
    by_weights_of_functions,
    by_settings,
    by_padding,
    by_pooling,
    by_global_pooling,
    by_bias,
    by_function,
    by_kind_of_norm,
    by_function_inside,
    by_gate,
    by_axis,
    by_formula,
    by_merging,
    by_order,
    by_border,
    by_crop,
    by_interpolation,
    by_pixel_blocks,
    by_norm,
    by_local_response,
    by_reduction,
    by_element,
    by_operation,
    by_channels,
    by_unseen_activation,
    by_other_input,
    by_scale,
    by_scaled_activation,
    by_numbers,
    by_activation_between,
    by_leaving_out,
)
"""What may explain that a layer's inputs agree and its outputs do not, in the order in which it is tried."""

WRONG_INPUT: tuple[Attempt, ...] = (
    by_step_taken,
    by_time_and_batch,
    by_place_of_norm,
    by_dropping,
    by_overwriting,
    by_activation_left_out,
    by_another_tensor,
    by_merging_before,
    by_activation_before,
    by_exchanged_axes,
    by_reshaped_axes,
    by_order_of_channels,
    by_order_of_features,
    by_precision,
    by_scaled_input,
)
"""What may explain that a layer's twin takes another input than the layers before return, likewise in order."""

ELSEWHERE: tuple[Attempt, ...] = (
    by_scale,
    by_function,
    by_gate,
    by_moved_activation,
    by_order,
    by_unseen_pooling,
    by_crop,
    by_interpolation,
    by_norm,
    by_reduction,
    by_element,
    by_operation,
)
"""What is tried at steps whose own output is not seen in the twin, likewise in order; see ``explained_elsewhere``."""

_CAUSES_IN_TRAINING = {
    Fault.RATE: "dropout rate",
    Fault.FROZEN: "layer frozen",
    Fault.GRADIENT: "gradient stopped",
}


@overload
def diagnose(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    *,
    torch_x: TwinInputs = None,
    training: bool = False,
    each_alone: Literal[False] = False,
) -> Diagnosis: ...


@overload
def diagnose(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    *,
    torch_x: TwinInputs = None,
    training: bool = False,
    each_alone: Literal[True],
) -> Diagnoses: ...


def diagnose(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    *,
    torch_x: TwinInputs = None,
    training: bool = False,
    each_alone: bool = False,
) -> Diagnosis | Diagnoses:
    """Find the first layer that diverges, and try the known causes on it. Neither model is changed.

    The arguments but the last, and what is raised, are those of ``parity.trace``.

    Args:
        keras_model: See ``parity.trace``.
        torch_model: See ``parity.trace``.
        x: See ``parity.trace``.
        mapping: See ``parity.trace``.
        torch_x: See ``parity.trace``.
        training: See ``parity.trace``.
        each_alone: Find all layers that diverge, not only the first, and try the known causes on each. For this the
            twin runs again, and each tensor that differs is replaced by what Keras has in its place. So each layer
            takes the right inputs, whatever is wrong before it.

    Returns:
        The layer, the causes that explain the difference, and the table that ``trace`` returns. A cause explains a
        difference if undoing it makes the twin's layer agree, or if doing the same to Keras's numbers gives the twin's.
        If no single cause explains it, two causes may do so together. ``parity.CAUSES`` lists the known causes. With
        ``each_alone``, a list of such results, and what could not be looked at.
    """
    port = make_port(keras_model, torch_model, x, mapping, torch_x)
    run, verdicts = run_and_judge(port, training)
    traced = table(run, verdicts)
    first = next((verdict for verdict in verdicts if verdict.kind in STARTS), None)
    if each_alone:
        return every_diagnosis(port, run, verdicts, _causes)
    if first is None:
        return Diagnosis(None, [], traced, only_outputs=only_outputs(run))
    return diagnosis_of(run, _causes(port, run, first, partial(tensors_at, port, run)), traced)


def _causes(port: Port, run: Run, verdict: Verdict, look: Look) -> Explained:
    """Return what explains a divergence."""
    if verdict.exchanged_with:
        return Explained([_exchange(run, verdict)], (), verdict)
    fault = verdict.training
    if fault is not None and fault.kind in _CAUSES_IN_TRAINING:
        return Explained([known_cause(_CAUSES_IN_TRAINING[fault.kind], fault.detail)], (), verdict)
    if fault is None:
        found = explained_elsewhere(run, targets_first(run, verdict), ELSEWHERE, look)
        if found.causes:
            return Explained(found.causes, (), Verdict(Kind.DIVERGES, found.step))
    evidence = gather(port, run, verdict, look)
    if fault is not None:
        settings = other_settings(evidence)
        if "momentum" not in settings:
            return Explained([], (), verdict)
        expected, actual = settings["momentum"]
        # In PyTorch, no momentum means a cumulative average.
        is_found = "None" if actual is None else f"{actual:g}"
        return Explained([known_cause("momentum", f"momentum is {is_found}, not {expected:g}")], (), verdict)
    causes, untried = explained_by(WRONG_OUTPUT if verdict.kind == Kind.DIVERGES else WRONG_INPUT, evidence)
    if not causes and verdict.kind == Kind.DIVERGES:
        causes = as_two(evidence, lambda half: explained_by(WRONG_OUTPUT, half)[0])
    if causes:
        return Explained(causes, (), verdict, evidence)
    found = explained_elsewhere(run, targets_then(run, verdict), ELSEWHERE, look)
    place = Verdict(Kind.DIVERGES, found.step) if found.causes else verdict
    return Explained(found.causes, () if found.causes else (*untried, *found.untried), place, evidence)


def explained_by(attempts: Sequence[Attempt], evidence: Evidence) -> tuple[list[Cause], tuple[str, ...]]:
    """Return the causes that the first attempt finds that finds any; if none does, what was left untried."""
    untried: list[str] = []
    for attempt in attempts:
        found = list(attempt(evidence))
        causes = [one for one in found if isinstance(one, Cause)]
        if causes:
            return causes, ()
        untried += [one.what for one in found if isinstance(one, Untried)]
    return [], tuple(untried)


def _exchange(run: Run, verdict: Verdict) -> Cause:
    steps = run.graph.steps
    if verdict.step == len(steps):
        names = [f"output {output + 1}" for output in verdict.exchanged_with]
        return known_cause("heads exchanged", ", ".join([divergence_of(run, verdict).layer, *names]))
    names = [steps[index].name for index in (verdict.step, *verdict.exchanged_with)]
    if _becomes_output(run, verdict.step):
        cause = "heads exchanged"
    else:
        cause = "weights of another layer" if steps[verdict.step].weights else "another skip"
    return known_cause(cause, ", ".join(names))


def _becomes_output(run: Run, index: StepIndex) -> bool:
    """Tell whether a step's output becomes one of the model's through layers without weights only."""
    numbers = set(run.graph.steps[index].outputs)
    for step in run.graph.steps[index + 1 :]:
        if numbers & set(step.inputs) and not step.weights:
            numbers |= set(step.outputs)
    return bool(numbers & set(run.graph.outputs))

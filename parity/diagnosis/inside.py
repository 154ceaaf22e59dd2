"""Causes inside a module that does more than its layer: an activation, or a BatchNormalization folded into its weights.

A module may also do what Keras does not.
"""

from collections.abc import Callable, Collection, Iterator

from parity.diagnosis.activations import activations, by_axis, by_function
from parity.diagnosis.causes import Cause, Untried, known_cause
from parity.diagnosis.evidence import Behind, Evidence, agree_within
from parity.diagnosis.pooling import by_global_pooling, by_pooling
from parity.models.keras_graph import activates
from parity.tensors import as_tensor

import keras
from torch import Tensor

_FUNCTIONS: tuple[Callable[[Evidence], Iterator[Cause | Untried]], ...] = (
    by_function,
    by_axis,
    by_pooling,
    by_global_pooling,
)
_EPSILONS = (1e-5, 1e-3, 1e-2, 1e-6, 1e-12, 0.0)


def folded_into(evidence: Evidence) -> Behind | None:
    """Return the BatchNormalization directly behind a layer, if the layer's module may have it in its weights."""
    first = evidence.behind[0] if evidence.modules and evidence.behind else None
    return first if first is not None and isinstance(first.step.layer, keras.layers.BatchNormalization) else None


def by_folding(evidence: Evidence) -> Iterator[Cause]:
    """Yield what went wrong when a BatchNormalization was folded into the weights of the layer before it."""
    folded = folded_into(evidence)
    if folded is None or evidence.step is None:
        return
    behind = evidence._replace(behind=evidence.behind[1:], tolerance=folded.tolerance)
    layer, x, said = folded.step.layer, folded.taken, f"{folded.step.name} is in the weights of {_twin(evidence)}, "
    for epsilon in _EPSILONS:
        if epsilon != layer.epsilon and behind.explains(_normalized(layer, x, epsilon)):
            yield known_cause("epsilon", f"{said}with epsilon {epsilon:g}, not {layer.epsilon:g}")
            return
    if behind.explains(_normalized(layer, x, without={"beta"})):
        yield known_cause("bias missing", f"{said}without its beta")
        return
    bias = getattr(evidence.step.layer, "bias", None)
    if bias is not None:
        added = as_tensor(bias).to(x.dtype)
        if behind.explains(_normalized(layer, x - added)):
            yield known_cause("bias missing", f"{said}without the bias of {evidence.step.name}")
            return
        if behind.explains(_normalized(layer, x - added) + added):
            detail = f"{said}and the bias of {evidence.step.name} is not scaled"
            yield known_cause("weights hold other numbers", detail)
            return
    for without, detail in (
        ("mean", "without its mean"),
        ("gamma", "without its gamma"),
        ("root", "divided by the variance, not by its root"),
    ):
        if behind.explains(_normalized(layer, x, without={without})):
            yield known_cause("weights hold other numbers", said + detail)
            return


def _normalized(
    layer: keras.layers.BatchNormalization, x: Tensor, epsilon: float | None = None, without: Collection[str] = ()
) -> Tensor:
    """Return what a BatchNormalization makes of (batch, ..., channels), with another epsilon or without a part."""
    values = {"gamma": layer.gamma, "beta": layer.beta, "mean": layer.moving_mean, "variance": layer.moving_variance}
    kept = {
        name: as_tensor(value).to(x.dtype)
        for name, value in values.items()
        if value is not None and name not in without
    }
    spread = kept["variance"] + (layer.epsilon if epsilon is None else epsilon)
    scale = kept.get("gamma", 1.0) / (spread if "root" in without else spread.sqrt())
    return (x - kept.get("mean", 0.0)) * scale + kept.get("beta", 0.0)


def by_function_inside(evidence: Evidence) -> Iterator[Cause | Untried]:
    """Yield what a module does behind its layer in place of what Keras does there, or although Keras does nothing."""
    if evidence.step is None or not evidence.modules or activates(evidence.step):
        return
    for position, one in enumerate(evidence.behind):
        function = evidence._replace(
            step=one.step,
            modules=[],
            inputs=[one.taken],
            twin_inputs=[],
            value=one.returned,
            tolerance=one.tolerance,
            axis=one.axes[1],
            axes=[one.axes[0]],
            behind=evidence.behind[position + 1 :],
        )
        at = evidence.run.graph.producers()[one.step.outputs[0]]
        for attempt in _FUNCTIONS:
            found = list(attempt(function))
            for cause in found:
                detail = f"{cause.detail}; in {_twin(evidence)}" if isinstance(cause, Cause) else ""
                yield cause._replace(detail=detail, step=at) if isinstance(cause, Cause) else cause
            if any(isinstance(cause, Cause) for cause in found):
                return
    for name, activation in activations(evidence.value):
        if agree_within(activation(evidence.value), evidence.twin, evidence.tolerance):
            yield known_cause("another activation", f"{_twin(evidence)} also applies {name}")
            return


def by_unseen_activation(evidence: Evidence) -> Iterator[Cause]:
    """Yield what the twin does in place of the activation before a layer, if nothing was seen of what that returns.

    A twin that has the activation in a module that does more may leave it out there, too.
    """
    if evidence.step is not None and evidence.inputs:
        taken, axes = evidence.inputs[0], (evidence.axes[0] if evidence.axes else -1, evidence.axis)
        layer = Behind(evidence.step, taken, evidence.value, evidence.tolerance, axes)
        yield from _by_activation_before(evidence._replace(value=taken, behind=(layer,)))


def by_activation_left_out(evidence: Evidence) -> Iterator[Cause]:
    """Yield the same of a layer whose input was seen."""
    yield from _by_activation_before(evidence)


def _by_activation_before(evidence: Evidence) -> Iterator[Cause]:
    before = evidence.before
    if before is None or len(evidence.inputs_before) != 1:
        return
    at = evidence.run.graph.producers()[before.outputs[0]]
    if at not in evidence.run.pairing.twins:
        activation = evidence._replace(step=before, modules=[], inputs=list(evidence.inputs_before), twin_inputs=[])
        for cause in by_function(activation):
            yield cause._replace(step=at)


def _twin(evidence: Evidence) -> str:
    """Return the name of the module that is the twin of the layer."""
    first, _ = evidence.run.pairing.twins[evidence.at_step]
    return evidence.run.calls[first].name or "the model"

"""Activations, and axes of normalizations, that a layer and its twin may not share."""

from collections.abc import Callable, Iterator
from itertools import chain, combinations
from typing import Any

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence
from parity.models.alignment import alignments, largest
from parity.models.keras_graph import activates
from parity.models.keras_layers import activation_name
from parity.tensors import as_tensor

import keras
import torch
import torch.nn.functional as F
from torch import Tensor

_ACTIVATIONS = (
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.PReLU,
    keras.layers.Softmax,
)


def activations(value: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield known activations that change a tensor (batch, ..., channels), by name."""
    if not value.is_floating_point():
        return
    names = "relu relu6 elu selu celu silu mish sigmoid hard_sigmoid log_sigmoid tanh hard_tanh softplus softsign "
    names += "hard_silu exponential"
    functions = {name: keras.activations.get(name) for name in names.split()}
    for name, function in functions.items():
        yield name, lambda x, f=function: as_tensor(f(x.numpy()))
    yield "hard_sigmoid as in Keras 2", lambda x: (0.2 * x + 0.5).clamp(0, 1)
    yield "gelu", F.gelu
    yield "gelu by tanh", lambda x: F.gelu(x, approximate="tanh")
    yield "gelu by a sigmoid", lambda x: x * (1.702 * x).sigmoid()
    for slope in (0.01, 0.1, 0.2, 0.3):
        yield f"leaky_relu with slope {slope}", lambda x, s=slope: F.leaky_relu(x, s)
    for axis in range(value.ndim):
        yield f"softmax along axis {axis}", lambda x, a=axis: x.softmax(a)
        yield f"log_softmax along axis {axis}", lambda x, a=axis: x.log_softmax(a)
    if value.ndim > 3:
        yield "softmax along all pixels", lambda x: x.flatten(1, -2).softmax(1).reshape(x.shape)


def by_function(evidence: Evidence) -> Iterator[Cause]:
    """Yield the function with which the layer's input, or what precedes its activation, gives what the twin has."""
    if evidence.step is None or len(evidence.inputs) != 1:
        return
    layer, x = evidence.step.layer, evidence.inputs[0]
    own = activation_name(layer) if activates(evidence.step) else type(layer).__name__.lower()
    known = activates(evidence.step) or isinstance(layer, _ACTIVATIONS)
    if known and x.shape == evidence.value.shape:
        if evidence.explains(x):
            yield known_cause("activation missing", own)
            return
        slope = _slope(evidence)
        alpha = _slope(evidence, torch.expm1) if own == "elu" else None
        if alpha:
            yield known_cause("another slope", f"alpha {alpha:g}")
            return
        for name, function in activations(x):
            if not evidence.explains(function(x)):
                continue
            if name.startswith(f"{own} along"):
                yield known_cause("axis", name)
            elif slope and "leaky" in name and own in ("leakyrelu", "leaky_relu", "prelu", "relu"):
                yield known_cause("another slope", f"{slope:g}")
            else:
                yield known_cause("another activation", f"{name}, not {_described(own, layer)}")
            return
        if slope is not None:
            yield known_cause("another slope", f"{slope:g}")


def _slope(evidence: Evidence, of: Callable[[Tensor], Tensor] = torch.clone) -> float | None:
    """Return the slope for negative numbers, if the twin is the identity for others and has one slope.

    Args:
        evidence: The layer, which is an activation.
        of: What the slope is a factor of, a function of the negative numbers.
    """
    for view, twin, _ in alignments(evidence.inputs[0], evidence.twin):
        negative = view < 0
        if not bool(negative.any()) or largest((view - twin)[~negative]) > evidence.tolerance:
            continue
        below = of(view[negative])
        slope = float((twin[negative] / below).median())
        if largest(twin[negative] - slope * below) <= evidence.tolerance:
            return slope
    return None


def _described(name: str, layer: keras.Layer) -> str:
    """Return the name of an activation with the settings of its layer that are not the usual ones."""
    usual = {"alpha": 1, "negative_slope": 0, "max_value": None, "threshold": 0}
    settings = {key: getattr(layer, key, value) for key, value in usual.items()}
    given = [f"{k} {v:g}" for k, v in settings.items() if isinstance(v, int | float) and v != usual[k]]
    return f"{name} with {' and '.join(given)}" if given else name


def by_axis(evidence: Evidence) -> Iterator[Cause]:
    """Yield the axes along which a normalization gives what the twin has."""
    if evidence.step is None or len(evidence.inputs) != 1:
        return
    if not isinstance(evidence.step.layer, keras.layers.LayerNormalization | keras.layers.GroupNormalization):
        return
    layer, x = evidence.step.layer, evidence.inputs[0]
    by_name = {path.rpartition("/")[2]: weight for path, weight in evidence.weights.items() if path in evidence.actual}
    gamma, beta = by_name.get("gamma", torch.ones(())), by_name.get("beta", torch.zeros(()))
    axes = range(1, x.ndim)
    for several in chain.from_iterable(combinations(axes, n) for n in range(1, x.ndim)):
        mean, variance = x.mean(several, keepdim=True), x.var(several, correction=0, keepdim=True)
        normal = (x - mean) / (variance + layer.epsilon).sqrt()
        for axis in axes:
            if gamma.ndim and gamma.numel() != x.shape[axis]:
                continue
            shape = [-1 if other == axis else 1 for other in range(x.ndim)]
            scale, offset = (v.reshape(shape) if v.ndim else v for v in (gamma, beta))
            if evidence.explains(normal * scale + offset):
                yield known_cause("axis", f"it normalizes along {several}")
                return

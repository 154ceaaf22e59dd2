"""Causes in activations, and in the axes of normalizations."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, combinations

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


Activation = Callable[[Tensor], Tensor]


def activations(value: Tensor) -> Iterator[tuple[str, Activation]]:
    """Yield the name and the function of each known activation that a tensor (batch, ..., channels) can go through."""
    if not value.is_floating_point():
        return
    names = "relu relu6 elu selu celu silu mish sigmoid hard_sigmoid log_sigmoid tanh hard_tanh softplus softsign "
    names += "hard_silu exponential"
    for name in names.split():
        yield name, partial(_in_keras, name)
    yield "hard_sigmoid as in Keras 2", lambda x: (0.2 * x + 0.5).clamp(0, 1)
    yield "gelu", F.gelu
    yield "gelu by tanh", partial(F.gelu, approximate="tanh")
    yield "gelu by a sigmoid", lambda x: x * (1.702 * x).sigmoid()
    for slope in (0.01, 0.1, 0.2, 0.3):
        yield f"leaky_relu with slope {slope}", partial(F.leaky_relu, negative_slope=slope)
    for axis in range(value.ndim):
        yield f"softmax along axis {axis}", partial(torch.softmax, dim=axis)
        yield f"log_softmax along axis {axis}", partial(torch.log_softmax, dim=axis)
    if value.ndim > 3:
        yield "softmax along all pixels", lambda x: x.flatten(1, -2).softmax(1).reshape(x.shape)


def _in_keras(name: str, x: Tensor) -> Tensor:
    """Return what Keras's activation of this name makes of a tensor."""
    return as_tensor(keras.activations.get(name)(x.numpy()))


def by_function(evidence: Evidence) -> Iterator[Cause]:
    """Yield the activation with which the step's input gives what the twin has."""
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


def _slope(evidence: Evidence, curve: Activation = torch.clone) -> float | None:
    """Return the slope of the twin for negative numbers, if it has a single one and keeps all other numbers.

    Args:
        evidence: The layer, which is an activation.
        curve: The function of negative numbers that the slope is a factor of.
    """
    for x, twin, _ in alignments(evidence.inputs[0], evidence.twin):
        negative = x < 0
        if not bool(negative.any()) or largest((x - twin)[~negative]) > evidence.tolerance:
            continue
        below = curve(x[negative])
        slope = float((twin[negative] / below).median())
        if largest(twin[negative] - slope * below) <= evidence.tolerance:
            return slope
    return None


def _described(name: str, layer: keras.Layer) -> str:
    """Return the name of an activation, with those settings of its layer that are not the defaults."""
    defaults = {"alpha": 1, "negative_slope": 0, "max_value": None, "threshold": 0}
    settings = {key: getattr(layer, key, default) for key, default in defaults.items()}
    changed = [f"{k} {v:g}" for k, v in settings.items() if isinstance(v, int | float) and v != defaults[k]]
    return f"{name} with {' and '.join(changed)}" if changed else name


def by_axis(evidence: Evidence) -> Iterator[Cause]:
    """Yield the axes along which a normalization gives what the twin has."""
    if evidence.step is None or len(evidence.inputs) != 1:
        return
    if not isinstance(evidence.step.layer, keras.layers.LayerNormalization | keras.layers.GroupNormalization):
        return
    layer, x = evidence.step.layer, evidence.inputs[0]
    weights = evidence.weights_of_layer()
    gamma, beta = weights.get("gamma", torch.ones(())), weights.get("beta", torch.zeros(()))
    axes = range(1, x.ndim)
    for normalized in chain.from_iterable(combinations(axes, n) for n in range(1, x.ndim)):
        mean, variance = x.mean(normalized, keepdim=True), x.var(normalized, correction=0, keepdim=True)
        normal = (x - mean) / (variance + layer.epsilon).sqrt()
        for scaled in axes:
            if gamma.ndim and gamma.numel() != x.shape[scaled]:
                continue
            shape = [-1 if axis == scaled else 1 for axis in range(x.ndim)]
            scale, offset = (weight.reshape(shape) if weight.ndim else weight for weight in (gamma, beta))
            if evidence.explains(normal * scale + offset):
                yield known_cause("axis", f"it normalizes along {normalized}")
                return

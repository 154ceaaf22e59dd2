"""Causes in activations, and in the axes of normalizations."""

from collections.abc import Callable, Iterator, Sequence
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

# The activations that have a slope for negative numbers, and the slope that they have unless the layer says another.
_DUE_SLOPES: dict[str, float | str] = {"relu": 0.0, "leakyrelu": 0.3, "leaky_relu": 0.2, "prelu": "the layer's alpha"}

Activation = Callable[[Tensor], Tensor]


def activations(value: Tensor, axes: Sequence[int] = ()) -> Iterator[tuple[str, Activation]]:
    """Yield the name and the function of each known activation that a tensor (batch, ..., channels) can go through.

    Args:
        value: The tensor.
        axes: For each of its axes, which one it is in Keras, if they are others there; names tell these.
    """
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
    for axis, in_keras in enumerate(axes or range(value.ndim)):
        yield f"softmax along axis {in_keras}", partial(torch.softmax, dim=axis)
        yield f"log_softmax along axis {in_keras}", partial(torch.log_softmax, dim=axis)
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
        slope = _slope(evidence) if own in _DUE_SLOPES else None
        alpha = _slope(evidence, torch.expm1) if own == "elu" else None
        if alpha:
            yield known_cause("another slope", f"alpha is {alpha:g}, not {_due(layer, 'alpha', 1.0)}")
            return
        for name, function in activations(x, evidence.axes_of_input()):
            if not evidence.explains(function(x)):
                continue
            if name.startswith(f"{own} along"):
                yield known_cause("axis", f"{name}, not {_due_axis(layer, x.ndim)}")
            elif slope and "leaky" in name:
                yield known_cause("another slope", _of_slope(slope, own, layer))
            else:
                yield known_cause("another activation", f"{name}, not {_described(own, layer)}")
            return
        if slope is not None:
            yield known_cause("another slope", _of_slope(slope, own, layer))
        elif _slope(evidence) is not None:
            found = f"leaky_relu with slope {_slope(evidence):g}"
            yield known_cause("another activation", f"{found}, not {_described(own, layer)}")


def _of_slope(slope: float, own: str, layer: keras.Layer) -> str:
    """Return in words which slope the twin has for negative numbers, and which is due."""
    return f"slope is {slope:g}, not {_due(layer, 'negative_slope', _DUE_SLOPES[own])}"


def _due(layer: keras.Layer, setting: str, otherwise: float | str) -> str:
    """Return a setting of a Keras layer; if it has none, that of the function that its activation names."""
    due = getattr(layer, setting, otherwise)
    return f"{due:g}" if isinstance(due, int | float) else str(due)


def _due_axis(layer: keras.Layer, rank: int) -> str:
    """Return the axes of a softmax, counted from the front; an activation that is no layer takes the last axis."""
    axis = getattr(layer, "axis", -1)
    axes = [one % rank for one in (axis if isinstance(axis, list | tuple) else [axis])]
    return " and ".join(map(str, axes))


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
                in_keras = evidence.axes_of_input()
                along = tuple(sorted(in_keras[axis] for axis in normalized))
                yield known_cause("axis", _of_axes(layer, along, in_keras[scaled], x.ndim))
                return


def _of_axes(layer: keras.Layer, normalized: tuple[int, ...], scaled: int, rank: int) -> str:
    """Return in words along which axes the twin normalizes, or has its weights, and which are due."""
    if isinstance(layer, keras.layers.GroupNormalization):
        return f"it normalizes along {normalized}, not by groups"
    due = tuple(sorted(axis % rank for axis in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis])))
    if normalized == due:
        return f"gamma and beta are along {(scaled,)}, not {due}"
    return f"it normalizes along {normalized}, not {due}"

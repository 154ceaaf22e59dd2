"""Causes in activations, and in the axes of normalizations."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, combinations, product

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, Function, computed, result_of
from parity.diagnosis.operations import fitted, identified, is_unknown, same
from parity.models.alignment import alignments, largest
from parity.models.keras_graph import Step, activates
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

# A factor that is nearer to 1 is rounding.
_SAME_FACTOR = 1e-5

Activation = Callable[[Tensor], Tensor]

_NAMES = (
    *("relu", "relu6", "elu", "selu", "celu", "silu", "mish", "sigmoid", "hard_sigmoid", "log_sigmoid", "tanh"),
    *("hard_tanh", "softplus", "softsign", "hard_silu", "exponential", "hard_shrink", "soft_shrink", "tanh_shrink"),
    *("squareplus", "sparse_plus", "sparse_sigmoid"),
)
# Operations that are an activation with some constants, such as keras.ops.maximum(x, 0).
_MAY_ACTIVATE = ("Clip", "Maximum", "Minimum", "Where")


def activations(value: Tensor, axes: Sequence[int] = ()) -> Iterator[tuple[str, Activation]]:
    """Yield the name and the function of each known activation that a tensor (batch, ..., channels) can go through.

    Args:
        value: The tensor.
        axes: For each of its axes, which one it is in Keras, if they are others there; names tell these.
    """
    if not value.is_floating_point():
        return
    for name in _NAMES:
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
    for axis, in_keras in enumerate(axes or range(value.ndim)):
        yield f"sparsemax along axis {in_keras}", partial(_in_keras, "sparsemax", axis=axis)
    if value.ndim > 3:
        yield "softmax along all pixels", lambda x: x.flatten(1, -2).softmax(1).reshape(x.shape)


def _in_keras(name: str, x: Tensor, **settings: int) -> Tensor:
    """Return what Keras's activation of this name makes of a tensor."""
    return as_tensor(keras.activations.get(name)(x.numpy(), **settings))


def by_function(evidence: Evidence) -> Iterator[Cause]:
    """Yield the activation with which the step's input gives what the twin has."""
    own = own_activation(evidence)
    if evidence.step is None or not own:
        return
    layer, x = evidence.step.layer, evidence.inputs[0]
    if x.shape != evidence.value.shape:
        return
    direct = evidence.onward is None
    if evidence.gives(torch.clone):
        yield known_cause("activation missing", own)
        return
    slope = _slope(evidence) if direct and own in _DUE_SLOPES else None
    alpha = _slope(evidence, torch.expm1) if direct and own == "elu" else None
    if alpha:
        yield known_cause("another slope", f"alpha is {alpha:g}, not {_due(layer, 'alpha', 1.0)}")
        return
    for name, function in activations(x, evidence.axes_of_input()):
        if not evidence.gives(function):
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
    elif direct and _slope(evidence) is not None:
        found = f"leaky_relu with slope {_slope(evidence):g}"
        yield known_cause("another activation", f"{found}, not {_described(own, layer)}")
    elif direct:
        yield from _by_setting(evidence, own)


def by_scaled_activation(evidence: Evidence) -> Iterator[Cause]:
    """Yield that the twin scales what an activation takes, as a mean in place of a sum does."""
    step = evidence.step
    if step is None or not own_activation(evidence):
        return
    merge = evidence.run.graph.producers().get(step.inputs[0])
    count = 1 if merge is None else len(evidence.run.graph.steps[merge].inputs)
    pairs = [(value, twin) for value, twin, _ in alignments(evidence.value, evidence.twin)]
    # ReLU and its like scale what they return by the same.
    factors = [
        fitted([value], twin)[0] for value, twin in pairs if bool(value.isfinite().all() & twin.isfinite().all())
    ]
    for factor in (*factors, 1 / count, float(count)):
        if factor > 0 and abs(factor - 1) > _SAME_FACTOR and evidence.gives_in_keras(_scaled(step, factor)):
            yield known_cause("input scaled", f"it takes {factor:.4g} times its input")
            return


def _scaled(step: Step, factor: float) -> Function:
    return lambda x: computed(step, [factor * x])


def own_activation(evidence: Evidence) -> str:
    """Return the name of the activation that a step computes, nothing if it computes none.

    It is a layer's activation, a layer that is one, an operation such as ``keras.ops.relu``, or something else, such as
    a Lambda, that returns what an activation returns.
    """
    step = evidence.step
    if step is None or len(evidence.inputs) != 1:
        return ""
    kind = type(step.layer).__name__
    if activates(step):
        return activation_name(step.layer)
    if isinstance(step.layer, _ACTIVATIONS):
        return kind.lower()
    if not isinstance(step.layer, keras.layers.Layer):
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()
        if name == "gelu":
            return "gelu by tanh" if step.layer.approximate else "gelu"
        if name in (*_NAMES, "leaky_relu", "softmax", "log_softmax", "sparsemax", "threshold"):
            return name
    if step.weights:
        return ""
    if evidence.composed or is_unknown(step) or kind in _MAY_ACTIVATE:
        return identified(evidence, dict(activations(evidence.inputs[0], evidence.axes_of_input()))) or ""
    return ""


def _by_setting(evidence: Evidence, own: str) -> Iterator[Cause]:
    """Yield the other setting of an activation with which it gives what the twin has."""
    layer = evidence.step.layer if evidence.step else None
    for x, twin, _ in alignments(evidence.inputs[0], evidence.twin):
        if x.shape != twin.shape or x.shape != evidence.inputs[0].shape:
            continue
        for name, function in _set_otherwise(x, twin, own):
            if evidence.gives(function):
                yield known_cause("another activation", f"{own} with {name}, not {_described(own, layer)}")
                return


def _set_otherwise(x: Tensor, y: Tensor, own: str) -> Iterator[tuple[str, Activation]]:
    """Yield an activation with each setting that one tensor may have been made of another with.

    Args:
        x: What the activation takes.
        y: What the twin returns.
        own: The name of the activation.
    """
    if not bool(y.isfinite().all()):
        return
    low, high = float(y.min()), float(y.max())
    kept = y != 0
    if own in ("relu", "relu6", "leaky_relu", "leakyrelu", "hard_tanh", "hard_sigmoid"):
        for slope in (0.0, 0.01, 0.1, 0.2, 0.3):
            leaky = partial(F.leaky_relu, negative_slope=slope)
            yield f"max_value {high:.4g}", partial(_clipped, leaky, high)
        yield f"numbers from {low:.4g} to {high:.4g}", lambda x: x.clamp(low, high)
    if own in ("relu", "threshold", "hard_shrink") and bool(kept.any()) and not bool(kept.all()):
        above = float(x[kept].min())
        yield f"threshold {above:.2g}", lambda x: torch.where(x >= above, x, 0)
        smallest = float(x[kept].abs().min())
        yield f"threshold {smallest:.2g}", lambda x: torch.where(x.abs() >= smallest, x, 0)
    if own == "soft_shrink" and bool(kept.any()):
        by = float((x[kept].abs() - y[kept].abs()).median())
        yield f"threshold {by:.4g}", lambda x: x.sign() * (x.abs() - by).clamp(min=0)
    if own == "squareplus":
        b = float(((2 * y - x).square() - x.square()).median())
        yield f"b {b:.4g}", lambda x: (x + (x.square() + b).clamp(min=0).sqrt()) / 2
    for number in (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0):
        if own == "celu":
            yield f"alpha {number:g}", partial(F.celu, alpha=number)
        if own in _STEEPER:
            yield f"beta {number:g}", partial(_STEEPER[own], number)


def _clipped(function: Activation, high: float, x: Tensor) -> Tensor:
    return function(x).clamp(max=high)


_STEEPER: dict[str, Callable[[float, Tensor], Tensor]] = {
    "softplus": lambda beta, x: F.softplus(x, beta=beta),
    "silu": lambda beta, x: x * (beta * x).sigmoid(),
    "sigmoid": lambda beta, x: (beta * x).sigmoid(),
}


def by_gate(evidence: Evidence) -> Iterator[Cause]:
    """Yield what a gated linear unit does otherwise in the twin: the halves exchanged, another gate, another axis."""
    step = evidence.step
    if step is None or step.weights or len(evidence.inputs) != 1 or not evidence.inputs[0].is_floating_point():
        return
    x, value = evidence.inputs[0], evidence.value
    halved = [axis for axis in range(1, x.ndim) if value.ndim == x.ndim and x.shape[axis] == 2 * value.shape[axis]]
    if len(halved) != 1 or not same(result_of(partial(F.glu, dim=halved[0]), [x]), value):
        return
    axis = halved[0]
    gates: dict[str, Activation] = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": F.silu, "gelu": F.gelu}
    gates |= {"relu": F.relu, "hard_sigmoid": F.hardsigmoid, "nothing": torch.clone}
    for (name, gate), half in product(gates.items(), ("second", "first")):
        if evidence.gives(partial(_gated, axis=axis, gate=gate, first=half == "first")):
            yield known_cause(
                "another activation", f"glu: the gate is {name} of the {half} half, not sigmoid of the second"
            )
            return
    even, odd = (x.index_select(axis, torch.arange(start, x.shape[axis], 2)) for start in (0, 1))
    if evidence.gives(lambda x: even * odd.sigmoid()):
        yield known_cause("another activation", "glu: each second element is the gate, not the second half")


def by_moved_activation(evidence: Evidence) -> Iterator[Cause]:
    """Yield that the twin has an activation before the layer that merges, where the Keras model has it behind.

    The evidence is that of the activation and of the merge together: of the activation, with the inputs of the merge.
    """
    step, inputs = evidence.step, evidence.inputs
    if step is None or not evidence.composed or len(inputs) < 2:
        return
    run = evidence.run
    merge = run.graph.steps[run.graph.producers()[step.inputs[0]]]
    name = own_activation(evidence._replace(inputs=inputs[:1], composed=False))
    if not name:
        return
    every = tuple(range(len(inputs)))
    for slots in (every, *((slot,) for slot in every)):

        def moved(*xs: Tensor, slots: tuple[int, ...] = slots) -> Tensor:
            return computed(merge, [computed(step, [x]) if slot in slots else x for slot, x in enumerate(xs)])

        if evidence.gives_in_keras(moved):
            which = "all inputs" if slots == every else f"input {slots[0] + 1}"
            found = f"{name} is applied to {which} of {merge.name}, not to what it returns"
            yield known_cause("activation in another place", found)
            return


def _gated(x: Tensor, axis: int, gate: Activation, first: bool = False) -> Tensor:
    a, b = torch.chunk(x, 2, axis)
    return gate(a) * b if first else a * gate(b)


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

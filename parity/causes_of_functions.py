"""Activations, merges, and orders of axes that a layer and its twin may not share."""

from collections.abc import Callable, Iterator
from itertools import chain, combinations, permutations, product
from math import prod
from typing import Any

from parity.case import Cause, Evidence, agree_within, known_cause, other_orders, padded, run_modules
from parity.graph import activates, activation_name, run_step
from parity.overlay import as_tensor, largest, views

import keras
import torch
import torch.nn.functional as F
from torch import Tensor


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
    known = activates(evidence.step) or isinstance(
        layer,
        (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.PReLU, keras.layers.Softmax),
    )
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
        return
    if isinstance(layer, keras.layers.LayerNormalization | keras.layers.GroupNormalization):
        yield from _by_axis(evidence)


def _slope(evidence: Evidence, of: Callable[[Tensor], Tensor] = torch.clone) -> float | None:
    """Return the slope for negative numbers, if the twin is the identity for others and has one slope.

    Args:
        evidence: The layer, which is an activation.
        of: What the slope is a factor of, a function of the negative numbers.
    """
    for view, twin, _ in views(evidence.inputs[0], evidence.twin, None, None):
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


def _by_axis(evidence: Evidence) -> Iterator[Cause]:
    """Yield the axes along which a normalization gives what the twin has."""
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


def by_merging(evidence: Evidence) -> Iterator[Cause]:
    """Yield other inputs, or another order of them, with which a merging layer gives what the twin has."""
    if evidence.step is None or len(evidence.inputs) < 2:
        return
    merge = _merge(evidence)
    for order in permutations(range(len(evidence.inputs))):
        if list(order) != sorted(order) and evidence.explains(merge([evidence.inputs[i] for i in order])):
            yield known_cause("another skip", f"its inputs are in the order {tuple(i + 1 for i in order)}")
            return
    for number, x in enumerate(evidence.inputs):
        if evidence.explains(x):
            yield known_cause("another skip", f"only its input {number + 1} is used")
            return
        for name, other in evidence.others.items():
            changed = [*evidence.inputs[:number], other, *evidence.inputs[number + 1 :]]
            if other.shape == x.shape and evidence.explains(merge(changed)):
                yield known_cause("another skip", f"its input {number + 1} is the output of {name}")
                return
    for axis in range(1, evidence.value.ndim):
        if all(x.shape == evidence.inputs[0].shape for x in evidence.inputs):
            y = torch.cat(evidence.inputs, axis)
            if y.shape == evidence.value.shape and evidence.explains(y):
                yield known_cause("axis", f"joined along axis {axis}")
                return


def _merge(evidence: Evidence) -> Any:
    def merge(values: list[Tensor]) -> Tensor | None:
        try:
            node = evidence.step.node
            tensors = [keras.ops.convert_to_tensor(value.numpy()) for value in values]
            ids = [id(tensor) for tensor in node.input_tensors]
            args, kwargs = node.arguments.fill_in(dict(zip(ids, tensors, strict=True)))
            return as_tensor(evidence.step.layer(*args, **kwargs))
        except (ValueError, TypeError):
            return None

    return merge


def by_order(evidence: Evidence) -> Iterator[Cause]:
    """Yield the order of axes in which a layer that only reorders gives what the twin has."""
    if evidence.step is None or evidence.step.is_activation or len(evidence.inputs) != 1:
        return
    layer, x = evidence.step.layer, evidence.inputs[0]
    if isinstance(layer, keras.layers.Flatten | keras.layers.Reshape):
        for order, other in other_orders(x):
            if evidence.explains(other.reshape(evidence.value.shape)):
                yield known_cause("flatten order", f"axes {order} in place of {tuple(range(len(order)))}")
                return
    if type(layer).__name__.startswith("ZeroPadding") and evidence.twin.ndim == evidence.value.ndim:
        sizes = x.shape[1:-1]
        more = [total - size for total, size in zip(evidence.twin.shape[2:], sizes, strict=True)]
        for starts in product(*(range(m + 1) for m in more if m >= 0)):
            if len(starts) != len(more):
                return
            pads = [(start, m - start) for start, m in zip(starts, more, strict=True)]
            for value, y in _bordered(x.movedim(-1, 1), pads, evidence.twin):
                if agree_within(y.movedim(1, -1), evidence.twin, evidence.tolerance):
                    due = [tuple(pair) for pair in layer.padding]
                    same = pads == due
                    cause = ("padding value", value) if same else ("padding", f"{pads}, not {due}")
                    yield known_cause(*cause)
                    return


def _bordered(x: Tensor, pads: list[tuple[int, int]], twin: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (batch, channels, *spatial) with a border of each kind, and the name of what is in it."""
    corners = [float(twin.flatten()[0]), float(twin.flatten()[-1])]
    for value in dict.fromkeys([0.0, float("-inf"), *corners]):
        yield f"{value:.4g}", padded(x, pads, value=value)
    for mode in ("reflect", "replicate", "circular"):
        if all(max(pair) < size for pair, size in zip(pads, x.shape[2:], strict=True)):
            yield mode, padded(x, pads, mode)


def by_channels(evidence: Evidence) -> Iterator[Cause]:
    """Yield the order of the channels in which a layer's twin has to be fed to agree."""
    if len(evidence.twin_inputs) != 1 or evidence.twin_inputs[0].ndim < 3:
        return
    x = evidence.twin_inputs[0]
    if evidence.agrees(run_modules(evidence.modules, [x.flip(1)])):
        yield known_cause("channels reversed", "the last channel first")
    groups = getattr(evidence.step.layer, "groups", 1) if evidence.step else 1
    for parts in ((groups, -1), (-1, groups)) if groups > 1 else ():
        if evidence.agrees(run_modules(evidence.modules, [x.unflatten(1, parts).transpose(1, 2).flatten(1, 2)])):
            yield known_cause("groups", "it takes its channels in another order")
            return


def other_channels(evidence: Evidence) -> Cause | None:
    """Return in what other order the twin has the channels of a tensor (batch, ..., channels)."""
    channels = evidence.value.shape[-1]
    if evidence.value.ndim < 3:
        return None
    if evidence.explains(evidence.value.flip(-1)):
        return known_cause("channels reversed", "the last channel first")
    for groups in range(2, channels):
        if channels % groups == 0 and evidence.explains(evidence.value.unflatten(-1, (groups, -1)).mT.flatten(-2)):
            return known_cause("groups", f"its channels are taken in turn from {groups} groups of them")
    for order in permutations(range(channels)) if channels < 5 else ():
        if order != tuple(range(channels)) and evidence.explains(evidence.value[..., list(order)]):
            return known_cause("channels reversed", f"in the order {order}")
    return None


def by_scaling(evidence: Evidence, by_channel: bool) -> Iterator[Cause]:
    """Yield with what factor and offset the twin has the tensor, all of it or, if asked for, each channel."""
    for view, twin, _ in views(evidence.value, evidence.twin, None, None):
        for axes in (None, tuple(range(view.ndim - 1))) if by_channel else (None,):
            fitted = _line(view.double(), twin.double(), axes, evidence.tolerance)
            if fitted is None:
                continue
            factor, offset = fitted
            words = (
                f"{float(factor):.4g} times it" if axes is None else "each channel by a factor and an offset of its own"
            )
            if axes is None and abs(float(offset)) > evidence.tolerance:
                words += f" plus {float(offset):.4g}"
            yield known_cause("input scaled", words)
            return


def _line(x: Tensor, y: Tensor, axes: tuple[int, ...] | None, within: float) -> tuple[Tensor, Tensor] | None:
    """Return factor and offset with which one tensor gives another, along some axes or all; None if they do not."""
    axes = tuple(range(x.ndim)) if axes is None else axes
    if not axes or not bool(y.isfinite().all()) or prod(x.shape[axis] for axis in axes) < 3:
        return None
    from_mean, other = x - x.mean(axes, keepdim=True), y - y.mean(axes, keepdim=True)
    spread = from_mean.square().sum(axes, keepdim=True)
    if not bool((spread > 0).all()):
        return None
    factor = (from_mean * other).sum(axes, keepdim=True) / spread
    offset = y.mean(axes, keepdim=True) - factor * x.mean(axes, keepdim=True)
    bound = max(within, 1e-6 * largest(y))
    same = largest(factor - 1) < 1e-6 and largest(offset) <= bound
    fits = largest(factor * x + offset - y) <= bound
    return (factor, offset) if fits and not same and bool((factor != 0).all()) else None


def by_numbers(evidence: Evidence) -> Iterator[Cause]:
    """Yield another scale or order of channels of a layer that only scales."""
    if evidence.step is None or not isinstance(
        evidence.step.layer, keras.layers.Rescaling | keras.layers.Normalization
    ):
        return
    reordered = other_channels(evidence)
    if reordered:
        yield reordered
    else:
        yield from by_scaling(evidence, by_channel=True)


def by_bias(evidence: Evidence) -> Iterator[Cause]:
    """Yield that a function of the twin adds no bias, or adds it twice."""
    bias = next(
        (weight for path, weight in evidence.weights.items() if path in evidence.actual and path.endswith("/bias")),
        None,
    )
    if bias is None or bias.shape != evidence.value.shape[-1:] or not bool(bias.any()):
        return
    for sign, cause, detail in (
        (-1, "bias missing", "it is not added"),
        (1, "weights not moved", "the bias is added twice"),
    ):
        if evidence.explains(evidence.value + sign * bias.to(evidence.value.dtype)):
            yield known_cause(cause, detail)
            return


def by_global_pooling(evidence: Evidence) -> Iterator[Cause]:
    """Yield another way to make one number of all pixels that gives what the twin has."""
    layer = evidence.step.layer if evidence.step else None
    if not type(layer).__name__.startswith("Global") or len(evidence.inputs) != 1:
        return
    x = evidence.inputs[0]
    axes = tuple(range(1, x.ndim - 1))
    ways = {"average": x.mean(axes), "maximum": x.amax(axes), "sum": x.sum(axes), "minimum": x.amin(axes)}
    pixels = x.flatten(1, -2)
    ways |= {"the first": pixels[:, 0], "the last": pixels[:, -1], "the middle one": pixels[:, pixels.shape[1] // 2]}
    for name, pooled in ways.items():
        # The larger the numbers, the larger their rounding errors.
        within = evidence.tolerance * max(1.0, largest(pooled) / max(largest(evidence.value), 1e-30))
        if agree_within(pooled.reshape(evidence.value.shape), evidence.twin, within, window=True):
            yield known_cause("another pooling", f"{name} of all pixels")
            return


def by_other_input(evidence: Evidence) -> Iterator[Cause]:
    """Yield another tensor with which the layer gives what the twin has, where the twin's input was not seen."""
    if evidence.step is None or evidence.twin_inputs or len(evidence.inputs) != 1:
        return
    for name, other in evidence.others.items():
        if other.shape != evidence.inputs[0].shape:
            continue
        value = run_step(evidence.step, [keras.ops.convert_to_tensor(other.numpy())])[0]
        if evidence.explains(as_tensor(value)):
            yield known_cause("another skip", f"it takes the output of {name}")
            return

"""Padding, strides, windows and borders that a layer and its twin may not share."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, agree_within
from parity.models.alignment import largest
from parity.padding import same_padding

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _spatial(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Return kernel size, stride and dilation of a convolution or pooling layer."""
    kernel = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    if kernel is None:
        return None
    rank = len(kernel)
    dilation = getattr(layer, "dilation_rate", 1)
    dilation = (dilation,) * rank if isinstance(dilation, int) else tuple(dilation)
    return tuple(kernel), tuple(layer.strides), dilation


def pads_due(evidence: Evidence) -> list[tuple[int, int]]:
    """Return how many elements Keras adds (before, after) along each axis."""
    kernel, stride, dilation = _spatial(evidence.step.layer)
    sizes = evidence.inputs[0].shape[1:-1]
    if evidence.step.layer.padding == "same":
        return [same_padding(*axis) for axis in zip(sizes, kernel, stride, dilation, strict=True)]
    if evidence.step.layer.padding == "causal":
        return [((k - 1) * d, 0) for k, d in zip(kernel, dilation, strict=True)]
    return [(0, 0)] * len(kernel)


def _other_pads(evidence: Evidence) -> Iterator[list[tuple[int, int]]]:
    """Yield every other padding with which the output has the shape of the twin's."""
    kernel, stride, dilation = _spatial(evidence.step.layer)
    sizes = evidence.inputs[0].shape[1:-1]
    outputs = evidence.twin.shape[2:]
    due = pads_due(evidence)
    each = []
    for n, k, s, d, o in zip(sizes, kernel, stride, dilation, outputs, strict=True):
        reach = (k - 1) * d + 1
        pairs = [(b, a) for b in range(reach + 1) for a in range(reach + 1) if (n + b + a - reach) // s + 1 == o]
        each.append(pairs)
    if max(map(len, each), default=0) > 40:
        each = [[pair for pair in pairs if abs(pair[0] - pair[1]) <= 2] for pairs in each]
    for pads in product(*each):
        if list(pads) != due:
            yield list(pads)


def _channels_first_input(evidence: Evidence) -> Tensor:
    dtype = evidence.twin.dtype
    return evidence.inputs[0].movedim(-1, 1).to(dtype)


def _kernels(evidence: Evidence) -> tuple[Tensor, Tensor | None, int] | None:
    """Return weight, bias and groups of a convolution, right for PyTorch."""
    if len({id(module) for module, _ in evidence.actual.values()}) != 1:
        return None
    by_name = {path.rpartition("/")[2]: weight for path, weight in evidence.weights.items() if path in evidence.actual}
    weight = next((value for name, value in by_name.items() if "kernel" in name), None)
    if weight is None or weight.ndim != evidence.value.ndim:
        return None
    groups = evidence.inputs[0].shape[-1] // weight.shape[1]
    return weight.to(evidence.twin.dtype), by_name.get("bias"), groups


def convolved(evidence: Evidence, pads: list[tuple[int, int]], mode: str = "constant") -> Tensor | None:
    """Return what the Keras layer's convolution makes of its input with another padding, channels first."""
    kernels = _kernels(evidence)
    if kernels is None or "Transpose" in type(evidence.step.layer).__name__:
        return None
    weight, bias, groups = kernels
    _, stride, dilation = _spatial(evidence.step.layer)
    x = padded(_channels_first_input(evidence), pads, mode)
    return _CONVOLUTIONS[len(stride)](x, weight, bias, stride, 0, dilation, groups)


def by_padding(evidence: Evidence) -> Iterator[Cause]:
    """Yield the padding with which a convolution gives what the twin has."""
    if (
        evidence.step is None
        or evidence.step.is_activation
        or not evidence.inputs
        or _spatial(evidence.step.layer) is None
    ):
        return
    if _kernels(evidence) is None or evidence.twin.ndim != evidence.value.ndim:
        return
    if "Transpose" in type(evidence.step.layer).__name__:
        yield from _by_cropping(evidence)
        return
    due = pads_due(evidence)
    for pads in _other_pads(evidence):
        if evidence.explains(_channels_last(convolved(evidence, pads))):
            yield known_cause("padding", f"{pads} is added, not {due}")
            return
    for mode in ("reflect", "replicate", "circular"):
        sizes = evidence.inputs[0].shape[1:-1]
        if any(max(pair) >= size for pair, size in zip(due, sizes, strict=True)):
            continue
        if evidence.explains(_channels_last(convolved(evidence, due, mode))):
            yield known_cause("padding value", f"the padding is no zeros, it is {mode}")
            return


def _by_cropping(evidence: Evidence) -> Iterator[Cause]:
    """Yield the crop with which a transposed convolution gives what the twin has."""
    weight, bias, _ = _kernels(evidence)
    kernel, stride, dilation = _spatial(evidence.step.layer)
    whole = _TRANSPOSED[len(stride)](_channels_first_input(evidence), weight, bias, stride, 0, 0, 1, dilation)
    # Beyond the result there is only the bias.
    room = max((k - 1) * d + s for k, s, d in zip(kernel, stride, dilation, strict=True))
    rest = torch.zeros(whole.shape[1], dtype=whole.dtype) if bias is None else bias.to(whole.dtype)
    rest = rest.reshape(1, -1, *[1] * len(stride))
    whole = padded(whole - rest, [(0, room)] * len(stride)) + rest
    sizes = evidence.twin.shape[2:]
    ranges = [range(min(room, have - want) + 1) for have, want in zip(whole.shape[2:], sizes, strict=True)]
    for starts in product(*ranges):
        part = whole
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), 2):
            part = part.narrow(axis, start, size)
        if evidence.explains(_channels_last(part)):
            yield known_cause("padding", f"{starts} elements are cropped before the result")
            return


def by_pooling(evidence: Evidence) -> Iterator[Cause]:
    """Yield the pooling that gives what the twin has."""
    layer = evidence.step.layer if evidence.step else None
    if not hasattr(layer, "pool_size") or evidence.twin.ndim != evidence.value.ndim or not evidence.inputs:
        return
    kernel, stride, _ = _spatial(layer)
    due, is_max = pads_due(evidence), "Max" in type(layer).__name__
    for module in evidence.modules:
        for name, wanted in (("kernel_size", kernel), ("stride", stride), ("dilation", (1,) * len(kernel))):
            actual = getattr(module, name, wanted)
            actual = (actual,) * len(kernel) if isinstance(actual, int) else tuple(actual)
            if actual != wanted:
                yield known_cause("stride or dilation", f"{name} is {actual}, not {wanted}")
                return
    for pads in [due, *_other_pads(evidence)]:
        for name, y in _pooled(evidence, kernel, stride, pads):
            if not evidence.explains(_channels_last(y)):
                continue
            if evidence.twin.shape[2:] != y.shape[2:]:
                yield known_cause("padding", "the right windows, and more at the end, as with ceil_mode")
            elif ("max" in name) != is_max:
                yield known_cause("another pooling", name)
            elif pads == due and name == "max, zeros":
                yield known_cause("padding value", "zeros, where minus infinity is due")
            elif pads == due and name == "average, padding counted":
                yield known_cause("padding counted", "the average counts elements of padding")
            else:
                yield known_cause("padding", f"{pads} is added, not {due}; {name}")
            return
    if getattr(evidence.modules[0], "ceil_mode", False) if evidence.modules else False:
        yield known_cause("padding", "ceil_mode adds a window at the end")
    elif not evidence.modules:
        for other, step in product(range(2, max(kernel) + 2), range(1, max(stride) + 2)):
            for pads in (due, [(0, 0)] * len(kernel), [(other // 2, other // 2)] * len(kernel)):
                if any(n + sum(pair) < other for n, pair in zip(evidence.inputs[0].shape[1:-1], pads, strict=True)):
                    continue
                for name, y in _pooled(evidence, (other,) * len(kernel), (step,) * len(kernel), pads):
                    if (
                        ("max" in name) == is_max
                        and evidence.twin.shape == y.shape
                        and evidence.explains(_channels_last(y))
                    ):
                        yield known_cause("stride or dilation", f"windows of {other} in steps of {step}")
                        return


def _pooled(evidence: Evidence, kernel: Any, stride: Any, pads: list[tuple[int, int]]) -> Iterator[tuple[str, Tensor]]:
    rank = len(kernel)
    maximum = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    x = _channels_first_input(evidence)
    yield "max", maximum(padded(x, pads, value=float("-inf")), kernel, stride)
    yield "max, zeros", maximum(padded(x, pads), kernel, stride)
    counted = average(padded(x, pads), kernel, stride)
    yield "average", counted / average(padded(torch.ones_like(x), pads), kernel, stride)
    yield "average, padding counted", counted


def _channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.movedim(1, -1)


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


def by_border(evidence: Evidence) -> Iterator[Cause]:
    """Yield another border than that of a ZeroPadding layer that gives what the twin has."""
    if evidence.step is None or evidence.step.is_activation or len(evidence.inputs) != 1:
        return
    layer, x = evidence.step.layer, evidence.inputs[0]
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


def padded(x: Tensor, pads: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Return (batch, channels, *spatial) with (before, after) elements more along each spatial axis."""
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, mode=mode, value=value) if mode == "constant" else F.pad(x, flat, mode=mode)

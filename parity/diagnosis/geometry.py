"""Causes in padding, strides, pooling windows and borders."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, agree_within
from parity.models.alignment import largest
from parity.padding import same_padding
from parity.weights.module_settings import each_axis

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Geometry(NamedTuple):
    """How the window of a convolution or a pooling layer moves, along each spatial axis.

    Attributes:
        kernel: The size of the kernel, or of the pooling window.
        stride: The step of the window.
        dilation: The distance between neighbouring elements of the kernel.
        padding: What Keras calls the padding: "valid", "same" or "causal".
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str


class Kernel(NamedTuple):
    """What a convolution computes with, in PyTorch's layout."""

    weight: Tensor
    bias: Tensor | None
    groups: int


Pads = list[tuple[int, int]]


def geometry_of(layer: Any) -> Geometry | None:
    """Return the geometry of a convolution or pooling layer of Keras, None for any other layer."""
    kernel = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    if kernel is None:
        return None
    dilation = each_axis(getattr(layer, "dilation_rate", 1), len(kernel))
    return Geometry(tuple(kernel), tuple(layer.strides), dilation, getattr(layer, "padding", "valid"))


def _right_pads(geometry: Geometry, sizes: Sequence[int]) -> Pads:
    """Return how many elements Keras adds (before, after) along each spatial axis of an input of these sizes."""
    kernel, stride, dilation, padding = geometry
    if padding == "same":
        return [same_padding(*axis) for axis in zip(sizes, kernel, stride, dilation, strict=True)]
    if padding == "causal":
        return [((k - 1) * d, 0) for k, d in zip(kernel, dilation, strict=True)]
    return [(0, 0)] * len(kernel)


def _other_pads(evidence: Evidence, geometry: Geometry, border: Pads | None = None) -> Iterator[Pads]:
    """Yield every other padding with which the output has the shape of the twin's.

    Args:
        evidence: The layer that diverges.
        geometry: How its window moves.
        border: What a ZeroPadding layer before it has added already, and the twin adds here.
    """
    kernel, stride, dilation, _ = geometry
    border = border or [(0, 0)] * len(kernel)
    sizes = [size - sum(pair) for size, pair in zip(_spatial_sizes(evidence), border, strict=True)]
    outputs = evidence.twin.shape[2:]
    right = _with_border(_right_pads(geometry, _spatial_sizes(evidence)), border)
    pairs_of_axes = []
    for n, k, s, d, o in zip(sizes, kernel, stride, dilation, outputs, strict=True):
        reach = (k - 1) * d + 1
        pairs = [(b, a) for b in range(reach + 1) for a in range(reach + 1) if (n + b + a - reach) // s + 1 == o]
        # Where the last element is not read, several pairs give the same. PyTorch's own padding is alike on both sides.
        pairs.sort(key=lambda pair: pair[0] != pair[1])
        pairs_of_axes.append(pairs)
    if max(map(len, pairs_of_axes), default=0) > 40:
        pairs_of_axes = [[pair for pair in pairs if abs(pair[0] - pair[1]) <= 2] for pairs in pairs_of_axes]
    for pads in product(*pairs_of_axes):
        if list(pads) != right:
            yield list(pads)


def _with_border(pads: Pads, border: Pads) -> Pads:
    """Return how many elements a layer adds together with what a ZeroPadding layer before it has added."""
    both = zip(pads, border, strict=True)
    return [(before + first, after + last) for (before, after), (first, last) in both]


def _border_before(evidence: Evidence) -> tuple[str, Pads]:
    """Return the ZeroPadding layer whose output the layer takes, and what it adds, if nothing in the twin does this."""
    run, step = evidence.run, evidence.step
    producer = run.graph.producers().get(step.inputs[0]) if step is not None else None
    if producer is None or not _is_zero_padding(run.graph.steps[producer].layer) or producer in run.pairing.twins:
        return "", [(0, 0)] * (evidence.value.ndim - 2)
    return run.graph.steps[producer].name, _pads_of(run.graph.steps[producer].layer)


def _is_zero_padding(layer: Any) -> bool:
    return type(layer).__name__.startswith("ZeroPadding")


def _pads_of(layer: Any) -> Pads:
    """Return how many elements a ZeroPadding layer adds. ZeroPadding1D has one pair, the others one for each axis."""
    pairs = [layer.padding] if isinstance(layer.padding[0], int) else layer.padding
    return [(pair[0], pair[1]) for pair in pairs]


def _spatial_sizes(evidence: Evidence) -> Sequence[int]:
    return evidence.inputs[0].shape[1:-1]


def _channels_first_input(evidence: Evidence) -> Tensor:
    dtype = evidence.twin.dtype
    return evidence.inputs[0].movedim(-1, 1).to(dtype)


def _kernel_of(evidence: Evidence) -> Kernel | None:
    """Return the kernel of a convolution whose weights are all in one module, None for any other layer."""
    if len({id(module) for module, _ in evidence.places.values()}) != 1:
        return None
    weights = evidence.weights_of_layer()
    weight = next((value for name, value in weights.items() if "kernel" in name), None)
    if weight is None or weight.ndim != evidence.value.ndim:
        return None
    groups = evidence.inputs[0].shape[-1] // weight.shape[1]
    return Kernel(weight.to(evidence.twin.dtype), weights.get("bias"), groups)


def _is_transposed(layer: Any) -> bool:
    return "Transpose" in type(layer).__name__


def right_convolution(evidence: Evidence) -> Tensor | None:
    """Return what a convolution should make of its input, channels first; None for any other layer."""
    if evidence.step is None or _is_transposed(evidence.step.layer):
        return None
    geometry, kernel = geometry_of(evidence.step.layer), _kernel_of(evidence)
    if geometry is None or kernel is None:
        return None
    return _convolved(evidence, geometry, kernel, _right_pads(geometry, _spatial_sizes(evidence)))


def _convolved(evidence: Evidence, geometry: Geometry, kernel: Kernel, pads: Pads, mode: str = "constant") -> Tensor:
    """Return what a convolution makes of its input with other padding, channels first."""
    x = padded(_channels_first_input(evidence), pads, mode)
    convolve = _CONVOLUTIONS[len(geometry.stride)]
    return convolve(x, kernel.weight, kernel.bias, geometry.stride, 0, geometry.dilation, kernel.groups)


def by_padding(evidence: Evidence) -> Iterator[Cause]:
    """Yield the padding with which a convolution gives what the twin has."""
    if evidence.step is None or evidence.step.is_activation or not evidence.inputs:
        return
    geometry, kernel = geometry_of(evidence.step.layer), _kernel_of(evidence)
    if geometry is None or kernel is None or evidence.twin.ndim != evidence.value.ndim:
        return
    if _is_transposed(evidence.step.layer):
        yield from _by_cropping(evidence, geometry, kernel)
        return
    sizes = _spatial_sizes(evidence)
    right = _right_pads(geometry, sizes)
    border_layer, border = _border_before(evidence)
    due, by = _with_border(right, border), f", as {border_layer} has it" if border_layer else ""
    inner = [(-before, -after) for before, after in border]  # takes the border away again
    for pads in _other_pads(evidence, geometry, border):
        if evidence.explains(_channels_last(_convolved(evidence, geometry, kernel, _with_border(pads, inner)))):
            yield known_cause("padding", f"padding is {pads}, not {due}{by}")
            return
    for mode in ("reflect", "replicate", "circular"):
        if not any(map(any, right)) or any(max(pair) >= size for pair, size in zip(right, sizes, strict=True)):
            continue
        if evidence.explains(_channels_last(_convolved(evidence, geometry, kernel, right, mode))):
            yield known_cause("padding value", f"it is {mode}, not 0")
            return


def _by_cropping(evidence: Evidence, geometry: Geometry, kernel: Kernel) -> Iterator[Cause]:
    """Yield the crop with which a transposed convolution gives what the twin has."""
    stride, dilation, bias = geometry.stride, geometry.dilation, kernel.bias
    convolve = _TRANSPOSED[len(stride)]
    whole = convolve(_channels_first_input(evidence), kernel.weight, bias, stride, 0, 0, 1, dilation)
    # Beyond the result there is only the bias.
    room = max((k - 1) * d + s for k, s, d in zip(geometry.kernel, stride, dilation, strict=True))
    beyond = torch.zeros(whole.shape[1], dtype=whole.dtype) if bias is None else bias.to(whole.dtype)
    beyond = beyond.reshape(1, -1, *[1] * len(stride))
    whole = padded(whole - beyond, [(0, room)] * len(stride)) + beyond
    sizes = evidence.twin.shape[2:]
    ranges = [range(min(room, have - want) + 1) for have, want in zip(whole.shape[2:], sizes, strict=True)]
    found = {"in the twin": evidence.twin, "in Keras": evidence.value}
    starts_of = {}
    for starts in product(*ranges):
        part = whole
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), 2):
            part = part.narrow(axis, start, size)
        for where, y in found.items():
            if where not in starts_of and agree_within(_channels_last(part), y, evidence.tolerance):
                starts_of[where] = starts
    if "in the twin" in starts_of:
        due = starts_of.get("in Keras")
        elements = f"{starts_of['in the twin']} elements are cropped before the result"
        yield known_cause("padding", elements + (f", not {due}" if due else ""))


def by_pooling(evidence: Evidence) -> Iterator[Cause]:
    """Yield the pooling that gives what the twin has."""
    layer = evidence.step.layer if evidence.step else None
    geometry = geometry_of(layer) if hasattr(layer, "pool_size") else None
    if geometry is None or evidence.twin.ndim != evidence.value.ndim or not evidence.inputs:
        return
    right, is_max = _right_pads(geometry, _spatial_sizes(evidence)), _is_max(layer)
    other_window = _other_window(evidence, geometry)
    if other_window is not None:
        yield other_window
        return
    for pads in [right, *_other_pads(evidence, geometry)]:
        for name, y in _pooled(evidence, geometry, pads):
            if not evidence.explains(_channels_last(y)):
                continue
            if evidence.twin.shape[2:] != y.shape[2:]:
                yield known_cause("padding", _number_of_windows(y.shape[2:], evidence.twin.shape[2:]))
            elif ("max" in name) != is_max:
                yield known_cause("another pooling", f"{name}, not {'max' if is_max else 'average'}")
            elif pads == right and name == "max, zeros":
                yield known_cause("padding value", "it is 0, not minus infinity")
            elif pads == right and name == "average, padding counted":
                yield known_cause("padding counted", "the average counts elements of padding")
            else:
                yield known_cause("padding", f"padding is {pads}, not {right}; {name}")
            return
    if not evidence.modules:
        yield from _by_other_windows(evidence, geometry)
    elif getattr(evidence.modules[0], "ceil_mode", False):
        yield known_cause("padding", "ceil_mode adds a window at the end")


def _number_of_windows(right: Sequence[int], found: Sequence[int]) -> str:
    """Return what is said of a twin with the right windows, but more or fewer of them at the end of an axis."""
    more = any(have > due for due, have in zip(right, found, strict=True))
    fewer = any(have < due for due, have in zip(right, found, strict=True))
    if more and fewer:
        return "the right windows, but another number of them at the end"
    if more:
        return "the right windows, and more at the end, as with ceil_mode"
    return "the right windows, but the last ones are missing"


def _is_max(layer: Any) -> bool:
    return "Max" in type(layer).__name__


def _other_window(evidence: Evidence, geometry: Geometry) -> Cause | None:
    """Return the first setting of the twin's modules that gives them other windows, None if there is none."""
    rank = len(geometry.kernel)
    # Keras's pooling has no dilation.
    right_settings = {"kernel_size": geometry.kernel, "stride": geometry.stride, "dilation": (1,) * rank}
    for module in evidence.modules:
        for name, right in right_settings.items():
            actual = each_axis(getattr(module, name, right), rank)
            if actual != right:
                return known_cause("stride or dilation", f"{name} is {actual}, not {right}")
    return None


def _by_other_windows(evidence: Evidence, geometry: Geometry) -> Iterator[Cause]:
    """Yield the size and the stride of the windows with which a pooling function gives what the twin has."""
    kernel, stride, _, _ = geometry
    rank = len(kernel)
    sizes = _spatial_sizes(evidence)
    right = _right_pads(geometry, sizes)
    is_max = evidence.step is not None and _is_max(evidence.step.layer)
    for size, step in product(range(2, max(kernel) + 2), range(1, max(stride) + 2)):
        windows = geometry._replace(kernel=(size,) * rank, stride=(step,) * rank)
        for pads in (right, [(0, 0)] * rank, [(size // 2, size // 2)] * rank):
            if any(n + sum(pair) < size for n, pair in zip(sizes, pads, strict=True)):
                continue
            for name, y in _pooled(evidence, windows, pads):
                same_kind = ("max" in name) == is_max
                if same_kind and evidence.twin.shape == y.shape and evidence.explains(_channels_last(y)):
                    found = f"windows of {size} in steps of {step}, not of {kernel} in steps of {stride}"
                    yield known_cause("stride or dilation", found)
                    return


def _pooled(evidence: Evidence, geometry: Geometry, pads: Pads) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the result, channels first, of each kind of pooling of the layer's input."""
    kernel, stride, _, _ = geometry
    rank = len(kernel)
    maximum = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    x = _channels_first_input(evidence)
    yield "max", maximum(padded(x, pads, value=float("-inf")), kernel, stride)
    yield "max, zeros", maximum(padded(x, pads), kernel, stride)
    counted = average(padded(x, pads), kernel, stride)
    yield "average", counted / average(padded(torch.ones_like(x), pads), kernel, stride)
    yield "average, padding counted", counted


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def by_global_pooling(evidence: Evidence) -> Iterator[Cause]:
    """Yield another way to pool all pixels that gives what the twin has."""
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
        tolerance = evidence.tolerance * max(1.0, largest(pooled) / max(largest(evidence.value), 1e-30))
        if agree_within(pooled.reshape(evidence.value.shape), evidence.twin, tolerance, window=True):
            due = "maximum" if _is_max(layer) else "average"
            yield known_cause("another pooling", f"{name} of all pixels, not {due}")
            return


def by_border(evidence: Evidence) -> Iterator[Cause]:
    """Yield another border than that of a ZeroPadding layer that gives what the twin has."""
    if evidence.step is None or evidence.step.is_activation or len(evidence.inputs) != 1:
        return
    layer, x = evidence.step.layer, evidence.inputs[0]
    if not _is_zero_padding(layer) or evidence.twin.ndim != evidence.value.ndim:
        return
    surplus = [total - size for total, size in zip(evidence.twin.shape[2:], x.shape[1:-1], strict=True)]
    if min(surplus) < 0:
        return
    right = _pads_of(layer)
    for starts in product(*(range(size + 1) for size in surplus)):
        pads = [(start, size - start) for start, size in zip(starts, surplus, strict=True)]
        for content, y in _bordered(x.movedim(-1, 1), pads, evidence.twin):
            if agree_within(_channels_last(y), evidence.twin, evidence.tolerance):
                if pads == right:
                    yield known_cause("padding value", f"it is {content}, not 0")
                else:
                    yield known_cause("padding", f"padding is {pads}, not {right}")
                return


def _bordered(x: Tensor, pads: Pads, twin: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (batch, channels, *spatial) with a border of each kind, after the name of what is in the border."""
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

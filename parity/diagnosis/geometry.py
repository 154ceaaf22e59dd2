"""Causes in the padding and the strides of convolutions, and in borders."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, agree_within
from parity.padding import same_padding
from parity.weights.module_settings import each_axis

import keras
import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
# A Cropping layer that takes away fewer elements along an axis is tried with each other place there.
_MUCH = 8


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
    """What a convolution computes with, in PyTorch's layout. A separable one has a second kernel, of 1 x 1 pixels."""

    weight: Tensor
    bias: Tensor | None
    groups: int
    pointwise: Tensor | None = None


Pads = list[tuple[int, int]]


def geometry_of(layer: Any) -> Geometry | None:
    """Return the geometry of a convolution or pooling layer of Keras, None for any other layer."""
    kernel = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    if kernel is None:
        return None
    dilation = each_axis(getattr(layer, "dilation_rate", 1), len(kernel))
    return Geometry(tuple(kernel), tuple(layer.strides), dilation, getattr(layer, "padding", "valid"))


def right_pads(geometry: Geometry, sizes: Sequence[int]) -> Pads:
    """Return how many elements Keras adds (before, after) along each spatial axis of an input of these sizes."""
    kernel, stride, dilation, padding = geometry
    if padding == "same":
        return [same_padding(*axis) for axis in zip(sizes, kernel, stride, dilation, strict=True)]
    if padding == "causal":
        return [((k - 1) * d, 0) for k, d in zip(kernel, dilation, strict=True)]
    return [(0, 0)] * len(kernel)


def other_pads(evidence: Evidence, geometry: Geometry, border: Pads | None = None) -> Iterator[Pads]:
    """Yield every other padding with which the output has the shape of the twin's.

    Args:
        evidence: The layer that diverges.
        geometry: How its window moves.
        border: What a ZeroPadding layer before it has added already, and the twin adds here.
    """
    kernel, stride, dilation, _ = geometry
    border = border or [(0, 0)] * len(kernel)
    sizes = [size - sum(pair) for size, pair in zip(spatial_sizes(evidence), border, strict=True)]
    outputs = evidence.twin.shape[2:]
    right = with_border(right_pads(geometry, spatial_sizes(evidence)), border)
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


def with_border(pads: Pads, border: Pads) -> Pads:
    """Return how many elements a layer adds together with what a ZeroPadding layer before it has added."""
    both = zip(pads, border, strict=True)
    return [(before + first, after + last) for (before, after), (first, last) in both]


def border_before(evidence: Evidence) -> tuple[str, Pads]:
    """Return the ZeroPadding layer whose output the layer takes, and what it adds, if nothing in the twin does this."""
    run, step = evidence.run, evidence.step
    producer = run.graph.producers().get(step.inputs[0]) if step is not None else None
    if producer is None or not _is_zero_padding(run.graph.steps[producer].layer) or producer in run.pairing.twins:
        return "", [(0, 0)] * (evidence.value.ndim - 2)
    return run.graph.steps[producer].name, _pads_of(run.graph.steps[producer].layer)


def _is_zero_padding(layer: Any) -> bool:
    return type(layer).__name__.startswith("ZeroPadding")


def _pads_of(layer: Any) -> Pads:
    """Return how many elements a ZeroPadding layer adds."""
    return _pairs_of(layer.padding)


def _pairs_of(setting: Sequence[Any]) -> Pads:
    """Return a pair for each spatial axis. ZeroPadding1D and Cropping1D have one, the others one for each axis."""
    pairs = [setting] if isinstance(setting[0], int) else setting
    return [(pair[0], pair[1]) for pair in pairs]


def spatial_sizes(evidence: Evidence) -> Sequence[int]:
    """Return the sizes of the layer's input between batch and channels."""
    return evidence.inputs[0].shape[1:-1]


def channels_first_input(evidence: Evidence) -> Tensor:
    """Return the layer's input as (batch, channels, *spatial), in the twin's dtype."""
    dtype = evidence.twin.dtype
    return evidence.inputs[0].movedim(-1, 1).to(dtype)


def _kernel_of(evidence: Evidence) -> Kernel | None:
    """Return the kernel of a convolution, or both of a separable one; None for any other layer."""
    weights = evidence.weights_of_layer()
    pointwise = weights.get("pointwise_kernel")
    weight = weights.get("kernel" if pointwise is None else "depthwise_kernel")
    if weight is None or weight.ndim != evidence.value.ndim:
        return None
    groups = evidence.inputs[0].shape[-1] // weight.shape[1]
    dtype = evidence.twin.dtype
    return Kernel(weight.to(dtype), weights.get("bias"), groups, None if pointwise is None else pointwise.to(dtype))


def _is_transposed(layer: Any) -> bool:
    return "Transpose" in type(layer).__name__


def right_convolution(evidence: Evidence) -> Tensor | None:
    """Return what a convolution should make of its input, channels first; None for any other layer."""
    if evidence.step is None or _is_transposed(evidence.step.layer):
        return None
    geometry, kernel = geometry_of(evidence.step.layer), _kernel_of(evidence)
    if geometry is None or kernel is None:
        return None
    return _convolved(evidence, geometry, kernel, right_pads(geometry, spatial_sizes(evidence)))


def _convolved(evidence: Evidence, geometry: Geometry, kernel: Kernel, pads: Pads, mode: str = "constant") -> Tensor:
    """Return what a convolution makes of its input with other padding, channels first."""
    x = padded(channels_first_input(evidence), pads, mode)
    convolve, bias = _CONVOLUTIONS[len(geometry.stride)], kernel.bias
    if kernel.pointwise is None:
        return convolve(x, kernel.weight, bias, geometry.stride, 0, geometry.dilation, kernel.groups)
    x = convolve(x, kernel.weight, None, geometry.stride, 0, geometry.dilation, kernel.groups)
    return convolve(x, kernel.pointwise, bias)


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
    sizes = spatial_sizes(evidence)
    right = right_pads(geometry, sizes)
    border_layer, border = border_before(evidence)
    due, by = with_border(right, border), f", as {border_layer} has it" if border_layer else ""
    inner = [(-before, -after) for before, after in border]  # takes the border away again
    for pads in other_pads(evidence, geometry, border):
        if evidence.explains(channels_last(_convolved(evidence, geometry, kernel, with_border(pads, inner)))):
            yield known_cause("padding", f"padding is {pads}, not {due}{by}")
            return
    for mode in ("reflect", "replicate", "circular"):
        if not any(map(any, right)) or any(max(pair) >= size for pair, size in zip(right, sizes, strict=True)):
            continue
        if evidence.explains(channels_last(_convolved(evidence, geometry, kernel, right, mode))):
            yield known_cause("padding value", f"it is {mode}, not 0")
            return


def _by_cropping(evidence: Evidence, geometry: Geometry, kernel: Kernel) -> Iterator[Cause]:
    """Yield the crop with which a transposed convolution gives what the twin has."""
    stride, dilation, bias = geometry.stride, geometry.dilation, kernel.bias
    convolve = _TRANSPOSED[len(stride)]
    whole = convolve(channels_first_input(evidence), kernel.weight, bias, stride, 0, 0, 1, dilation)
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
            if where not in starts_of and agree_within(channels_last(part), y, evidence.tolerance):
                starts_of[where] = starts
    if "in the twin" in starts_of:
        due = starts_of.get("in Keras")
        elements = f"{starts_of['in the twin']} elements are cropped before the result"
        yield known_cause("padding", elements + (f", not {due}" if due else ""))


def channels_last(x: Tensor) -> Tensor:
    """Return (batch, channels, *spatial) as (batch, *spatial, channels)."""
    return x.movedim(1, -1)


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
            if agree_within(channels_last(y), evidence.twin, evidence.tolerance):
                if pads == right:
                    yield known_cause("padding value", f"it is {content}, not 0")
                else:
                    yield known_cause("padding", f"padding is {pads}, not {right}")
                return


def by_crop(evidence: Evidence) -> Iterator[Cause]:
    """Yield another part of its input than a Cropping layer keeps, of the same size, that gives what the twin has."""
    if evidence.step is None or evidence.step.is_activation or len(evidence.inputs) != 1:
        return
    layer, sizes = evidence.step.layer, evidence.value.shape[1:-1]
    if not isinstance(layer, keras.layers.Cropping1D | keras.layers.Cropping2D | keras.layers.Cropping3D):
        return
    due = _pairs_of(layer.cropping)
    totals = [sum(pair) for pair in due]
    # Where much is cropped, not every place is tried, but each end and the middle.
    several = [range(total + 1) if total < _MUCH else {0, total // 2, -(-total // 2), total} for total in totals]
    for starts in product(*several):
        crops = [(start, total - start) for start, total in zip(starts, totals, strict=True)]
        if crops != due and evidence.gives(partial(_cropped, starts=starts, sizes=sizes)):
            yield known_cause("padding", f"it crops {crops}, not {due}")
            return


def _cropped(x: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Return a part of (batch, *spatial, channels): where it starts along each spatial axis, and its sizes."""
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), 1):
        x = x.narrow(axis, start, size)
    return x


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

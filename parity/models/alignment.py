"""Align a Keras tensor with what the twin has in its place, and measure how far apart they are."""

from collections.abc import Iterator
from itertools import product
from math import inf, isfinite, prod
from typing import NamedTuple

from parity.models.sequences import SEQUENCE_MODULES

import numpy as np
import torch
from torch import Tensor, nn

# Notes on how two tensors were aligned.
CHANNELS_FIRST_FEATURES = "flattened channels first"
BORDERS = ("with a border", "without a border")

_CHANNELS_FIRST = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.PReLU),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
)
# At how many places of a border a tensor is compared whole. If there are more, a few of its elements are compared
# first: how far along each axis these lie, and within which share of the largest they fit.
_MOST_PLACES, _PROBED, _FITS = 300, (0.5, 0.2, 0.8, 0.0, 1.0), 1e-3

_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, *SEQUENCE_MODULES)


class Aligned(NamedTuple):
    """A Keras tensor and the twin's, brought to the same shape and order of elements.

    Attributes:
        value: The Keras tensor.
        twin: The twin's tensor.
        note: How they were aligned, if it took more than moving the axis of the channels.
    """

    value: Tensor
    twin: Tensor
    note: str = ""


def alignments(
    value: Tensor,
    twin: Tensor,
    module: nn.Module | None = None,
    flattened: tuple[int, ...] | None = None,
    window: bool = False,
) -> Iterator[Aligned]:
    """Yield each way to align a Keras tensor with the twin's, the likeliest first; none if no shape fits.

    Args:
        value: The Keras tensor (batch, ..., channels).
        twin: The twin's tensor, channels first or last.
        module: The module that takes or returns it. Of some modules it is known where they have the channels.
        flattened: The shape (*spatial, channels) that the features of ``value`` were flattened from, if any.
        window: Whether one of the two may have a border of padding that the other does not have yet.
    """
    if value.ndim == twin.ndim and value.ndim > 2:
        yield from _same_rank(value, twin, module, window)
    elif value.shape == twin.shape:
        yield Aligned(value, twin)
        if flattened and value.shape[1] == prod(flattened):
            yield _features_channels_first(value, twin, flattened)
    elif value.numel() == twin.numel() and value.shape[:1] == twin.shape[:1]:
        yield from _reshaped(value, twin)
    if value.ndim > 1 and twin.ndim > 1 and value.shape[0] != twin.shape[0]:
        yield from _time_as_batch(value, twin, module)
        yield from _several_calls(value, twin, module, flattened)


def _same_rank(value: Tensor, twin: Tensor, module: nn.Module | None, window: bool) -> Iterator[Aligned]:
    """Yield alignments with a tensor of the same rank: channels first, channels last, with a border, or time first."""
    candidates = []
    if not _takes_channels_last(module):
        candidates.append(twin.movedim(1, -1))
    if not isinstance(module, _CHANNELS_FIRST):
        candidates.append(twin)
    for candidate in candidates:
        if candidate.shape == value.shape:
            yield Aligned(value, candidate)
    for candidate in candidates if window else ():
        yield from _windows(value, candidate)
    # Of what a sequence module returns it is known where it has the time; what it takes may be right, and it be wrong.
    known = isinstance(module, SEQUENCE_MODULES) and not window
    if value.ndim == 3 and value.shape == twin.transpose(0, 1).shape and not known:
        yield Aligned(value, twin.transpose(0, 1))


def _takes_channels_last(module: nn.Module | None) -> bool:
    """Tell whether a module has the channels last. One of the user's own, such as a LayerNorm2d, may not."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _CHANNELS_LAST)


def _features_channels_first(value: Tensor, twin: Tensor, flattened: tuple[int, ...]) -> Aligned:
    """Align flattened features (batch, features) with those of a twin that flattened them channels first."""
    *spatial, channels = flattened
    features = twin.unflatten(1, (channels, *spatial)).movedim(1, -1).flatten(1)
    return Aligned(value, features, CHANNELS_FIRST_FEATURES)


def _reshaped(value: Tensor, twin: Tensor) -> Iterator[Aligned]:
    """Yield alignments with a tensor of another shape that has as many elements; one of the two may be flattened."""
    sizes = [size for size in value.shape[1:] if size > 1]
    if sizes == [size for size in twin.shape[1:] if size > 1]:
        yield Aligned(value.flatten(), twin.flatten())
    elif twin.ndim == 2 < value.ndim:
        yield Aligned(value.flatten(1), twin, "flattened")
        yield Aligned(value.movedim(-1, 1).flatten(1), twin, CHANNELS_FIRST_FEATURES)
    elif value.ndim == 2 < twin.ndim:
        yield Aligned(value, twin.movedim(1, -1).flatten(1), "not flattened")
        yield Aligned(value, twin.flatten(1), "not flattened")
    else:
        yield Aligned(value.flatten(1), twin.movedim(1, -1).flatten(1))
        yield Aligned(value.flatten(1), twin.flatten(1))


def _time_as_batch(value: Tensor, twin: Tensor, module: nn.Module | None) -> Iterator[Aligned]:
    """Yield alignments with a tensor in which each time step of each example is an example of its own."""
    for axes in range(2, value.ndim):
        if prod(value.shape[:axes]) == twin.shape[0]:
            yield from alignments(value.flatten(0, axes - 1), twin, module)


def _several_calls(
    value: Tensor, twin: Tensor, module: nn.Module | None, flattened: tuple[int, ...] | None
) -> Iterator[Aligned]:
    """Yield alignments with parts of a tensor that holds the examples of several calls, in blocks or interleaved."""
    calls = twin.shape[0] / value.shape[0]
    if calls in (2, 3, 4) and twin.shape[1:].numel() == value.shape[1:].numel():
        for part in (*twin.split(value.shape[0]), *(twin[call :: int(calls)] for call in range(int(calls)))):
            yield from alignments(value, part, module, flattened)


def _windows(value: Tensor, twin: Tensor) -> Iterator[Aligned]:
    """Yield each place of the smaller of two tensors (batch, *spatial, channels) within the larger."""
    ends = (0, value.ndim - 1)
    if value.shape == twin.shape or any(value.shape[axis] != twin.shape[axis] for axis in ends):
        return
    axes = range(1, value.ndim - 1)
    surplus = [twin.shape[axis] - value.shape[axis] for axis in axes]
    one_is_larger = all(size >= 0 for size in surplus) or all(size <= 0 for size in surplus)
    if not one_is_larger or not value.numel() or not twin.numel():
        return
    twin_is_larger = max(surplus) > 0
    large, small = (twin, value) if twin_is_larger else (value, twin)
    for starts in _likeliest(large, small):
        part = large
        for axis, start in zip(axes, starts, strict=True):
            part = part.narrow(axis, start, small.shape[axis])
        yield Aligned(value, part, BORDERS[0]) if twin_is_larger else Aligned(part, twin, BORDERS[1])


def _likeliest(large: Tensor, small: Tensor) -> list[tuple[int, ...]]:
    """Return where in a tensor (batch, *spatial, channels) a smaller one may begin, the likeliest places first.

    These are the places in the middle: that is where padding leaves the data. If there are many places, a few elements
    of the smaller tensor are compared at each, and those come first, or alone, at which they fit.
    """
    sizes, surplus = small.shape[1:-1], [a - b for a, b in zip(large.shape[1:-1], small.shape[1:-1], strict=True)]
    if prod(last + 1 for last in surplus) <= _MOST_PLACES:
        return list(product(*map(_middle_first, surplus)))
    apart = np.zeros([last + 1 for last in surplus])
    for share in _PROBED:
        element = tuple(int(share * (size - 1)) for size in sizes)
        there = large[0].double()
        for axis, (start, last) in enumerate(zip(element, surplus, strict=True)):
            there = there.narrow(axis, start, last + 1)
        difference = (there - small[(0, *element)].double()).abs().amax(-1)
        apart = np.maximum(apart, difference.nan_to_num(nan=inf, posinf=inf).numpy())
    fits = apart <= max(_FITS * largest(small[0]), float(apart.min()))
    apart[apart <= _FITS * largest(small[0])] = 0  # between these, rounding would decide
    places = np.argwhere(fits)
    off_middle = np.abs(places - np.array(surplus) // 2)
    order = np.lexsort((*off_middle.T[::-1], apart[fits]))[:_MOST_PLACES]
    return [tuple(int(start) for start in place) for place in places[order]]


def _middle_first(last: int) -> list[int]:
    """Return the numbers 0 to ``last``, the middle first."""
    return sorted(range(last + 1), key=lambda start: abs(start - last // 2))


def distance(value: Tensor, twin: Tensor) -> float:
    """Return the largest absolute difference of two tensors: 0 between equal infinities, infinite where one has NaN."""
    value, twin = (tensor if tensor.is_floating_point() else tensor.double() for tensor in (value, twin))
    difference = value - twin
    size = largest(difference)
    if isfinite(size):
        return size
    return largest(difference.masked_fill(value == twin, 0))


def is_constant(tensor: Tensor) -> bool:
    """Tell whether all numbers of a tensor are the same."""
    return not bool((tensor != tensor.flatten()[:1]).any())


def largest(tensor: Tensor) -> float:
    """Return the largest absolute value of a tensor; infinity if it holds NaN."""
    if not tensor.numel():
        return 0.0
    low, high = (float(end) for end in torch.aminmax(tensor))
    return inf if np.isnan(low) else max(abs(low), abs(high))

"""Causes in pooling: its windows, their padding, and what is made of them."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, agree_within
from parity.diagnosis.geometry import (
    Geometry,
    Pads,
    border_before,
    channels_first_input,
    channels_last,
    geometry_of,
    other_pads,
    padded,
    right_pads,
    spatial_sizes,
    with_border,
)
from parity.models.alignment import largest
from parity.weights.module_settings import each_axis

import torch
import torch.nn.functional as F
from torch import Tensor


def by_pooling(evidence: Evidence) -> Iterator[Cause]:
    """Yield the pooling that gives what the twin has."""
    layer = evidence.step.layer if evidence.step else None
    geometry = geometry_of(layer) if hasattr(layer, "pool_size") else None
    if geometry is None or evidence.twin.ndim != evidence.value.ndim or not evidence.inputs:
        return
    right, is_max = right_pads(geometry, spatial_sizes(evidence)), _is_max(layer)
    bordered = next(_with_border_before(evidence, geometry, is_max), None)
    if bordered is not None:
        yield bordered
        return
    other_window = _other_window(evidence, geometry)
    if other_window is not None:
        yield other_window
        return
    for pads in [right, *other_pads(evidence, geometry)]:
        for name, y in _pooled(channels_first_input(evidence), geometry, pads):
            if not evidence.explains(channels_last(y)):
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


def by_unseen_pooling(evidence: Evidence) -> Iterator[Cause]:
    """Yield the pooling that, in the place of one whose output is not seen, gives what the twin has."""
    layer = evidence.step.layer if evidence.step else None
    geometry = geometry_of(layer) if hasattr(layer, "pool_size") else None
    if geometry is None or evidence.onward is None or evidence.composed:
        return
    right, is_max = right_pads(geometry, spatial_sizes(evidence)), _is_max(layer)
    like_keras = evidence._replace(twin=evidence.value.movedim(-1, 1))  # the twin's output has the right shape
    for pads in [right, *other_pads(like_keras, geometry)]:
        for name in _POOLINGS:
            if not evidence.gives(lambda x, pads=pads, name=name: _pooled_last(x, geometry, pads, name)):
                continue
            if ("max" in name) != is_max:
                yield known_cause("another pooling", f"{name}, not {'max' if is_max else 'average'}")
            elif pads != right:
                yield known_cause("padding", f"padding is {pads}, not {right}; {name}")
            elif name == "max, zeros":
                yield known_cause("padding value", "it is 0, not minus infinity")
            else:
                yield known_cause("padding counted", "the average counts elements of padding")
            return


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
    is_max = evidence.step is not None and _is_max(evidence.step.layer)
    for module in evidence.modules:
        for name, right in right_settings.items():
            actual = each_axis(getattr(module, name, right), rank)
            if actual == right:
                continue
            if ("avgpool" if is_max else "maxpool") in type(module).__name__.lower():
                return next(_by_other_windows(evidence, geometry), None)
            return known_cause("stride or dilation", f"{name} is {actual}, not {right}")
    return None


def _by_other_windows(evidence: Evidence, geometry: Geometry) -> Iterator[Cause]:
    """Yield the size and the stride of the windows with which a pooling function gives what the twin has."""
    kernel, stride, _, _ = geometry
    rank = len(kernel)
    sizes = spatial_sizes(evidence)
    right = right_pads(geometry, sizes)
    is_max = evidence.step is not None and _is_max(evidence.step.layer)
    for size, step in product(range(2, max(kernel) + 3), range(1, max(stride) + 2)):
        windows = geometry._replace(kernel=(size,) * rank, stride=(step,) * rank)
        for pads in (right, [(0, 0)] * rank, [(size // 2, size // 2)] * rank):
            if any(n + sum(pair) < size for n, pair in zip(sizes, pads, strict=True)):
                continue
            for name, y in _pooled(channels_first_input(evidence), windows, pads):
                same_kind = ("max" in name) == is_max
                if evidence.twin.shape != y.shape or not evidence.explains(channels_last(y)):
                    continue
                found = f"windows of {size} in steps of {step}, not of {kernel} in steps of {stride}"
                if same_kind:
                    yield known_cause("stride or dilation", found)
                else:
                    yield known_cause("another pooling", f"{name}, not {'max' if is_max else 'average'}; {found}")
                return


def _with_border_before(evidence: Evidence, geometry: Geometry, is_max: bool) -> Iterator[Cause]:
    """Yield what the twin pads with, or how much, if a ZeroPadding layer of Keras pads before the pooling."""
    layer, border = border_before(evidence)
    if not layer:
        return
    inside = padded(channels_first_input(evidence), [(-before, -after) for before, after in border])
    due = with_border(right_pads(geometry, spatial_sizes(evidence)), border)
    for pads in [due, *other_pads(evidence, geometry, border)]:
        for name, y in _pooled(inside, geometry, pads):
            if ("max" in name) != is_max or evidence.twin.shape != y.shape or not evidence.explains(channels_last(y)):
                continue
            if pads != due:
                yield known_cause("padding", f"padding is {pads}, not {due}, as {layer} has it; {name}")
            elif is_max:
                yield known_cause("padding value", f"it is minus infinity, not 0, as {layer} has it")
            else:
                yield known_cause("padding counted", f"the average leaves out the zeros that {layer} adds")
            return


_POOLINGS = ("max", "max, zeros", "average", "average, padding counted")


def _pooled(x: Tensor, geometry: Geometry, pads: Pads) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the result of each kind of pooling of (batch, channels, *spatial)."""
    kernel, stride, _, _ = geometry
    rank = len(kernel)
    maximum = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    yield "max", maximum(padded(x, pads, value=float("-inf")), kernel, stride)
    yield "max, zeros", maximum(padded(x, pads), kernel, stride)
    counted = average(padded(x, pads), kernel, stride)
    yield "average", counted / average(padded(torch.ones_like(x), pads), kernel, stride)
    yield "average, padding counted", counted


def _pooled_last(x: Tensor, geometry: Geometry, pads: Pads, name: str) -> Tensor:
    """Return what a kind of pooling makes of (batch, *spatial, channels)."""
    return channels_last(dict(_pooled(x.movedim(-1, 1), geometry, pads))[name])


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

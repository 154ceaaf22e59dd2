"""Causes in layers that resize: the interpolation, and the order in which pixels become channels or channels pixels."""

from collections.abc import Callable, Iterator
from itertools import chain, islice, permutations
from math import floor
from typing import Any, NamedTuple

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, Function, result_of
from parity.diagnosis.operations import identified, is_unknown, same

import torch.nn.functional as F
from torch import Tensor

_RESIZING = ("UpSampling1D", "UpSampling2D", "UpSampling3D", "Resizing", "Resize")
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
# The factors that people give in place of a size.
_FACTORS = (0.25, 0.5, 0.75, 1.25, 1.5, 1.75, 2.5, 3.5)


def by_interpolation(evidence: Evidence) -> Iterator[Cause]:
    """Yield the other interpolation with which a layer that resizes gives what the twin has."""
    step = evidence.step
    if step is None or type(step.layer).__name__ not in _RESIZING or len(evidence.inputs) != 1:
        return
    x, value = evidence.inputs[0], evidence.value
    fits = evidence.onward is not None or evidence.twin.ndim == value.ndim
    if not fits or not x.is_floating_point():
        return
    size = tuple(value.shape[1:-1])
    due = _due(step.layer)
    in_torch = identified(evidence, dict(_interpolations(x, size)))
    if in_torch not in (None, due):
        due = f"Keras's {due}, which is PyTorch's {in_torch}"
    if evidence.onward is None and size not in (evidence.twin.shape[2:], evidence.twin.shape[1:-1]):
        found = tuple(evidence.twin.shape[2:])
        others = [(name, found, function) for name, function in _interpolations(x, found)]
    else:
        others = [(name, size, function) for name, function in _interpolations(x, size)]
    for name, to, function in others:
        if evidence.gives(function):
            detail = f"{name}, not {due}" if to == size else f"{name} to {to}, where {due} to {size} is due"
            yield known_cause("interpolation", detail)
            return


def _due(layer: Any) -> str:
    """Return what a Keras layer does, in words. UpSampling1D and UpSampling3D repeat."""
    name = getattr(layer, "interpolation", "nearest")
    name += " with antialias" if getattr(layer, "antialias", False) else ""
    for setting in ("crop_to_aspect_ratio", "pad_to_aspect_ratio"):
        name += f" with {setting}" if getattr(layer, setting, False) else ""
    return name


def _interpolations(x: Tensor, size: tuple[int, ...]) -> Iterator[tuple[str, Function]]:
    """Yield the name of each interpolation of PyTorch, and a function of (batch, *spatial, channels) that does it."""
    rank = x.ndim - 2
    linear = _LINEAR.get(rank)
    settings: list[tuple[str, dict[str, Any]]] = [
        ("nearest", {"mode": "nearest"}),
        ("nearest-exact", {"mode": "nearest-exact"}),
    ]
    for mode in [linear, "bicubic"] if rank == 2 else [linear] if linear else []:
        settings += [(f"{mode}", {"mode": mode}), (f"{mode} with align_corners", {"mode": mode, "align_corners": True})]
        if rank == 2:
            settings.append((f"{mode} with antialias", {"mode": mode, "antialias": True}))
    settings.append(("area", {"mode": "area"}))
    for name, setting in settings:
        yield name, lambda x, setting=setting: _resized(x, size=size, **setting)
    # With a factor, PyTorch reckons where pixels lie by the factor, not by both sizes.
    sizes = x.shape[1:-1]
    for factor in _FACTORS:
        if tuple(floor(old * factor) for old in sizes) == size:
            for name, setting in settings[:4]:
                given = setting | {"scale_factor": factor}
                yield f"{name} with scale_factor={factor}", lambda x, given=given: _resized(x, **given)
    if all(new % old == 0 for new, old in zip(size, sizes, strict=True)):
        yield "zeros between the pixels", lambda x: _spread(x, size)


def _resized(x: Tensor, **settings: Any) -> Tensor:
    return F.interpolate(x.movedim(-1, 1), **settings).movedim(1, -1)


def _spread(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return a tensor with zeros between its pixels, each in the first corner of its block."""
    y = x.new_zeros(x.shape[0], *size, x.shape[-1])
    steps = tuple(slice(None, None, new // old) for new, old in zip(size, x.shape[1:-1], strict=True))
    y[(slice(None), *steps)] = x
    return y


class Blocks(NamedTuple):
    """Which channels the pixels of a block become: the order of the block's rows and columns and of the channels."""

    order: tuple[int, ...]

    def __str__(self) -> str:
        names = ("rows", "columns", "channels")
        return ", ".join(names[axis] for axis in self.order)

    def to_depth(self, x: Tensor, size: int) -> Tensor:
        """Return (batch, h, w, c) with the pixels of each block as channels: (batch, h / size, w / size, c * size²)."""
        parts = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))  # batch, h, rows, w, columns, channels
        axes = (2, 4, 5)
        return parts.permute(0, 1, 3, *(axes[axis] for axis in self.order)).flatten(3)

    def to_space(self, x: Tensor, size: int) -> Tensor:
        """Return (batch, h, w, c) with the channels as the pixels of blocks: the inverse of ``to_depth``."""
        sizes = (size, size, x.shape[-1] // size**2)
        parts = x.unflatten(3, tuple(sizes[axis] for axis in self.order))
        place = {axis: 3 + position for position, axis in enumerate(self.order)}
        return parts.permute(0, 1, place[0], 2, place[1], place[2]).flatten(3, 4).flatten(1, 2)


# In TensorFlow, rows and columns come before the channels; in PyTorch's PixelUnshuffle and PixelShuffle behind them.
_KERAS_BLOCKS, _TORCH_BLOCKS = Blocks((0, 1, 2)), Blocks((2, 0, 1))
_BLOCKS = list(dict.fromkeys([_TORCH_BLOCKS, _KERAS_BLOCKS, *map(Blocks, permutations(range(3)))]))
_MOST_BLOCKS = 8
_Order = Callable[[Blocks, Tensor, int], Tensor]


def by_pixel_blocks(evidence: Evidence) -> Iterator[Cause]:
    """Yield another order in which the pixels of blocks become channels, or channels the pixels of blocks."""
    step, value = evidence.step, evidence.value
    if step is None or value.ndim != 4 or evidence.onward is not None:
        return
    if not is_unknown(step) and type(step.layer).__name__ not in ("Reshape", "Transpose", "Permute"):
        return
    ways: list[tuple[int, _Order, _Order]] = []
    for size in range(2, _MOST_BLOCKS + 1):
        if value.shape[-1] % size**2 == 0:
            ways.append((size, Blocks.to_space, Blocks.to_depth))
        if all(pixels % size == 0 for pixels in value.shape[1:3]):
            ways.append((size, Blocks.to_depth, Blocks.to_space))
    yield from islice(chain.from_iterable(_reordered(evidence, *way) for way in ways), 1)


def _reordered(evidence: Evidence, size: int, undo: _Order, do: _Order) -> Iterator[Cause]:
    """Yield the other order, if undoing it in what Keras returns and doing it again gives what the twin has.

    Args:
        evidence: The layer.
        size: The size of the blocks.
        undo: The method of ``Blocks`` that undoes what the Keras layer does.
        do: The method that does it.
    """
    value, inputs, due = evidence.value, evidence.inputs, _KERAS_BLOCKS
    if len(inputs) == 1 and inputs[0].ndim == 4:
        # The layer alone does it. Of several operations in a row, the last takes a tensor with more axes.
        known = [
            blocks for blocks in _BLOCKS if same(result_of(lambda x, blocks=blocks: do(blocks, x, size), inputs), value)
        ]
        if not known:
            return
        due = known[0]
    before = undo(due, value, size)
    for blocks in _BLOCKS:
        if blocks != due and evidence.explains(do(blocks, before, size)):
            name = "PixelUnshuffle" if value.shape[-1] > before.shape[-1] else "PixelShuffle"
            as_in = f", as {name} has them" if blocks == _TORCH_BLOCKS else ""
            yield known_cause("order of pixel blocks", f"{blocks}{as_in}, not {due}")
            return

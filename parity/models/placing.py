"""Put a Keras tensor in the place of a tensor of the twin: in its shape, its order of axes and its dtype."""

from collections.abc import Callable
from typing import NamedTuple

from parity.models.alignment import alignments, distance

import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """A tensor of the twin in whose place a Keras tensor is put.

    Attributes:
        tensor: The tensor, with wrong numbers, and perhaps of another size along some axes.
        module: The module that takes or returns it.
        seen: Returns such a tensor with the axes that Keras has, where it is known that the module has others.
    """

    tensor: Tensor
    module: nn.Module | None = None
    seen: Callable[[Tensor], Tensor] = lambda tensor: tensor


def placed(
    value: Tensor, place: Place, flattened: tuple[int, ...] | None = None, like: str | bool | None = None
) -> Tensor | None:
    """Return what the twin would have if it had the right numbers; None if it is not known how it would have them.

    A part of the twin's tensor that is not the Keras tensor's, such as the examples of another call, stays as it is.

    Args:
        value: The Keras tensor (batch, ..., channels).
        place: The twin's tensor.
        flattened: The shape (*spatial, channels) that the features of ``value`` were flattened from, if any.
        like: What is known of the twin's axes from a tensor next to it, see ``axes_of``. It decides where shapes do
            not.
    """
    twin, module, view = place
    # Where each element of the twin's tensor is, from 1 on: a packed sequence has no place for some, which are then 0.
    count = torch.arange(1, twin.numel() + 1).reshape(twin.shape)
    seen, places = view(twin), view(count)
    ways = zip(alignments(value, seen, module, flattened), alignments(value, places, module, flattened), strict=True)
    best, least = None, (True, float("inf"))
    for aligned, there in ways:
        rank = (_axes(there.twin is places, there.note) != like, distance(aligned.value, aligned.twin))
        if best is None or rank < least:
            best, least = (aligned.value, there.twin), rank
    if best is None:
        return _of_right_size(value, twin, flattened, like) if seen is twin else None
    right, spots = best
    numbers = twin.clone(memory_format=torch.contiguous_format)
    if spots.untyped_storage().data_ptr() == count.untyped_storage().data_ptr():  # it is a view
        numbers.as_strided(spots.shape, spots.stride(), spots.storage_offset()).copy_(right)
    else:
        exists = spots.flatten() > 0
        numbers.view(-1)[spots.flatten()[exists] - 1] = right.flatten()[exists].to(twin.dtype)
    return numbers


def axes_of(value: Tensor, twin: Tensor, note: str) -> str | bool:
    """Return how the twin has the axes of a tensor that agrees: the note of its alignment, or whether they are Keras's.

    Args:
        value: The Keras tensor (batch, ..., channels).
        twin: The twin's tensor.
        note: The note of the alignment in which they agree.
    """
    same_shape = value.shape == twin.shape and value.ndim > 2
    first = same_shape and twin.movedim(1, -1).shape == value.shape
    as_keras = same_shape and (not first or distance(value, twin) < distance(value, twin.movedim(1, -1)))
    return _axes(as_keras, note)


def _axes(as_keras: bool, note: str) -> str | bool:
    return note or as_keras


def _of_right_size(
    value: Tensor, twin: Tensor, flattened: tuple[int, ...] | None, like: str | bool | None
) -> Tensor | None:
    """Return a Keras tensor with the axes of a twin's tensor of another size."""
    if not value.ndim or not twin.ndim or value.shape[0] != twin.shape[0]:
        return None
    if value.ndim == 2 < twin.ndim and flattened:
        value = value.unflatten(1, flattened)
    if value.ndim != twin.ndim:
        return None
    if value.ndim > 2:
        first, last = (twin.shape[axis] == value.shape[-1] for axis in (1, -1))
        if not first and not last:  # its axes are in no order that is known
            return None
        value = value if (like is True if first and last else last) else value.movedim(-1, 1)
    return value.to(twin.dtype).contiguous()

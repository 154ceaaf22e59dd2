"""A Keras tensor laid over what the twin has in its place: how far apart they are, and how far rounding explains."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import inf, isfinite, prod
from typing import Any

from parity.graph import Step, Value

import keras
import numpy as np
import torch
from torch import Tensor, nn

# The noise is measured with rounding errors drawn once, at random; those of another run may be some times as large.
TIMES_NOISE = 32
# How features may lie in the twin, said of a comparison.
CHANNELS_FIRST_FEATURES = "flattened channels first"
BORDERS = ("with a border", "without a border")
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.PReLU,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)


def views(
    value: Tensor, twin: Tensor, module: nn.Module | None, flattened: tuple[int, ...] | None, window: bool = False
) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield each way to lay a Keras tensor and the twin's one over the other: (Keras's, the twin's, a note).

    Args:
        value: The Keras tensor, channels last.
        twin: The twin's, channels first or last.
        module: The module that takes or returns it; it may settle where the channels are.
        flattened: The shape (*spatial, channels) that the features of ``value`` were flattened from, if any.
        window: Whether one of the two may have a border that the other has not yet, of padding.
    """
    if value.ndim == twin.ndim and value.ndim > 2:
        orders = []
        if not isinstance(module, _CHANNELS_LAST):
            orders.append((twin.movedim(1, -1), ""))
        if not isinstance(module, _CHANNELS_FIRST):
            orders.append((twin, ""))
        for view, note in orders:
            if view.shape == value.shape:
                yield value, view, note
        if window:
            for view, _ in orders:
                yield from _windows(value, view)
        if value.ndim == 3 and value.shape == twin.transpose(0, 1).shape:
            yield value, twin.transpose(0, 1), ""  # time before examples
    elif value.shape == twin.shape:
        yield value, twin, ""
        if flattened and value.shape[1] == prod(flattened):
            *spatial, channels = flattened
            yield (
                value,
                twin.unflatten(1, (channels, *spatial)).movedim(1, -1).flatten(1),
                CHANNELS_FIRST_FEATURES,
            )
    elif value.numel() == twin.numel() and value.shape[:1] == twin.shape[:1]:
        plain = [size for size in value.shape[1:] if size > 1]
        if plain == [size for size in twin.shape[1:] if size > 1]:
            yield value.flatten(), twin.flatten(), ""
        elif twin.ndim == 2 < value.ndim:
            yield value.flatten(1), twin, "flattened"
            yield value.movedim(-1, 1).flatten(1), twin, CHANNELS_FIRST_FEATURES
        elif value.ndim == 2 < twin.ndim:
            yield value, twin.movedim(1, -1).flatten(1), "not flattened"
            yield value, twin.flatten(1), "not flattened"
        else:
            yield value.flatten(1), twin.movedim(1, -1).flatten(1), ""
            yield value.flatten(1), twin.flatten(1), ""
    if value.ndim > 1 and twin.ndim > 1 and value.shape[0] != twin.shape[0]:
        yield from _other_batches(value, twin, module, flattened)


def _other_batches(
    value: Tensor, twin: Tensor, module: nn.Module | None, flattened: tuple[int, ...] | None
) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield ways to lay over one another what has as many examples as steps of time, or as calls, in the twin."""
    for axes in range(2, value.ndim):
        if prod(value.shape[:axes]) == twin.shape[0]:
            yield from views(value.flatten(0, axes - 1), twin, module, None)
    calls = twin.shape[0] / value.shape[0]
    if calls in (2, 3, 4) and twin.shape[1:].numel() == value.shape[1:].numel():
        for part in (*twin.split(value.shape[0]), *(twin[call :: int(calls)] for call in range(int(calls)))):
            yield from views(value, part, module, flattened)


def _windows(value: Tensor, view: Tensor) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield each place of the smaller of two tensors (batch, *spatial, channels) within the larger."""
    ends = (0, value.ndim - 1)
    if value.shape == view.shape or any(value.shape[axis] != view.shape[axis] for axis in ends):
        return
    axes = range(1, value.ndim - 1)
    more = [view.shape[axis] - value.shape[axis] for axis in axes]
    if not (all(m >= 0 for m in more) or all(m <= 0 for m in more)) or max(map(abs, more)) > 16:
        return
    large, small = (view, value) if max(more) > 0 else (value, view)
    # The middle first: that is where padding leaves the data.
    starts = [sorted(range(abs(m) + 1), key=lambda start, m=m: abs(start - abs(m) // 2)) for m in more]
    for offset in product(*starts):
        part = large
        for axis, start in zip(axes, offset, strict=True):
            part = part.narrow(axis, start, small.shape[axis])
        yield (value, part, BORDERS[0]) if large is view else (part, view, BORDERS[1])


def as_tensor(value: Any) -> Tensor:
    """Return a Keras tensor as a PyTorch tensor on the CPU, without a copy where there can be none."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if keras.backend.backend() == "tensorflow" and "CPU" in value.device:
        return torch.from_dlpack(value)
    return torch.from_numpy(np.array(value))


def distance(value: Tensor, twin: Tensor) -> float:
    """Return the largest absolute difference of two tensors; infinity agrees with its like, NaN with nothing."""
    value, twin = (tensor if tensor.is_floating_point() else tensor.double() for tensor in (value, twin))
    difference = value - twin
    size = largest(difference)
    if isfinite(size):
        return size
    return largest(difference.masked_fill(value == twin, 0))


def largest(tensor: Tensor) -> float:
    """Return the largest absolute value of a tensor; infinity if it holds NaN."""
    if not tensor.numel():
        return 0.0
    low, high = (float(end) for end in torch.aminmax(tensor))
    return inf if np.isnan(low) else max(abs(low), abs(high))


def noise_of(exact: Tensor, perturbed: Tensor) -> float:
    """Return the rounding noise to expect in a tensor: its distance from one computed with other rounding errors.

    It is at the least one unit of rounding of the largest element, should the draw be lucky.
    """
    if not exact.is_floating_point():
        return 0.0
    difference, size = largest(exact - perturbed), largest(exact)
    if not isfinite(difference) or not isfinite(size):
        finite = exact.isfinite() & perturbed.isfinite()
        difference, size = largest((exact - perturbed)[finite]), largest(exact[finite])
    return max(difference, torch.finfo(exact.dtype).eps * size)


def follow_order(
    step: Step, inputs: Sequence[Value], outputs: Sequence[Value], flattened: dict[int, tuple[int, ...]]
) -> None:
    """Enter the outputs of a step that hold flattened features, with the shape that they were flattened from.

    Args:
        step: The step. Features keep their order up to the first Dense layer, which mixes them.
        inputs: What it takes.
        outputs: What it returns.
        flattened: By number of a tensor: the shape (*spatial, channels).
    """
    if len(step.inputs) != 1 or len(step.outputs) != 1:
        return
    shape, result = tuple(inputs[0].exact.shape)[1:], tuple(outputs[0].exact.shape)[1:]
    mixes = isinstance(step.layer, keras.layers.Dense) and not step.is_activation
    if isinstance(step.layer, keras.layers.Flatten):
        if len(shape) > 1:
            flattened[step.outputs[0]] = shape
    elif step.inputs[0] in flattened and not mixes and result == (prod(flattened[step.inputs[0]]),):
        flattened[step.outputs[0]] = flattened[step.inputs[0]]

"""Causes in the order of axes, features and channels."""

from collections.abc import Iterator
from itertools import permutations

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, agree_within, copied, run_modules
from parity.models.keras_channels import as_in_keras

import keras
import torch
from torch import Tensor

_REORDERING = (keras.layers.Flatten, keras.layers.Reshape)


def _moves_channels(layer: keras.Layer) -> bool:
    """Tell whether a layer is a Flatten that moves the channels to the end before it flattens."""
    return isinstance(layer, keras.layers.Flatten) and layer.data_format == "channels_first"


def by_order(evidence: Evidence) -> Iterator[Cause]:
    """Yield the order of axes with which a layer that only reorders gives what the twin has."""
    if evidence.step is None or evidence.step.is_activation or len(evidence.inputs) != 1:
        return
    layer, x = evidence.step.layer, evidence.inputs[0]
    if isinstance(layer, _REORDERING) or type(layer).__name__ == "Reshape":
        # The calls of several layers that flatten are looked at together, so the shape is not that of one of them.
        flattens, shape = isinstance(layer, keras.layers.Flatten), evidence.value_in_keras().shape
        gives = evidence.gives if _moves_channels(layer) else evidence.gives_in_keras
        for order in orders(x.ndim):
            if gives(lambda x, order=order: _reordered(x, order, None if flattens else shape)):
                yield known_cause("flatten order", f"axes {order} in place of {tuple(range(x.ndim - 1))}")
                return
    elif isinstance(layer, keras.layers.Permute) or type(layer).__name__ == "Transpose":
        every = [tuple(range(x.ndim - 1)), *orders(x.ndim)]
        (taken,), value = evidence.inputs_in_keras(), evidence.value_in_keras()
        due = next((order for order in every if torch.equal(_in_order(taken, order), value)), None)
        for order in every:
            if order != due and due is not None and evidence.gives_in_keras(lambda x, order=order: _in_order(x, order)):
                cause = "flatten order" if _is_reshaped(evidence) else "input axes exchanged"
                yield known_cause(cause, f"axes {order} in place of {due}")
                return


def _reordered(x: Tensor, order: tuple[int, ...], shape: torch.Size | None) -> Tensor:
    """Return (batch, ...) with its axes in another order, flattened or in a shape."""
    y = _in_order(x, order)
    return y.flatten(1) if shape is None else y.reshape(shape)


def _in_order(x: Tensor, order: tuple[int, ...]) -> Tensor:
    return x.permute(0, *(axis + 1 for axis in order))


def _is_reshaped(evidence: Evidence) -> bool:
    """Tell whether a layer that flattens or reshapes takes what the layer returns."""
    steps, step = evidence.run.graph.steps, evidence.step
    following = [other for other in steps if step is not None and set(step.outputs) & set(other.inputs)]
    return any(type(other.layer).__name__ in ("Reshape", "Flatten") for other in following)


def orders(rank: int) -> Iterator[tuple[int, ...]]:
    """Yield each other order of the axes of a tensor (batch, ...) of a rank, the batch not counted."""
    usual = tuple(range(rank - 1))
    yield from (order for order in permutations(usual) if order != usual)


def by_channels(evidence: Evidence) -> Iterator[Cause]:
    """Yield the order of the input's channels with which the layer's twin agrees."""
    if len(evidence.twin_inputs) != 1 or evidence.twin_inputs[0].ndim < 3:
        return
    # In training mode, modules update their statistics when they run.
    x, modules = evidence.twin_inputs[0], copied(evidence.modules)
    if evidence.agrees(run_modules(modules, [x.flip(1)])):
        yield known_cause("channels reversed", "the last channel first")
    groups = getattr(evidence.step.layer, "groups", 1) if evidence.step else 1
    for parts in ((groups, -1), (-1, groups)) if groups > 1 else ():
        if evidence.agrees(run_modules(modules, [x.unflatten(1, parts).transpose(1, 2).flatten(1, 2)])):
            yield known_cause("groups", "it takes its channels in another order")
            return


def other_channels(evidence: Evidence) -> Cause | None:
    """Return the other order in which the twin has the channels of a tensor (batch, ..., channels), if it has one."""
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


def other_orders(x: Tensor, all_orders: bool = False) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield each other order of the axes of a tensor (batch, ...), and the tensor flattened in that order.

    Args:
        x: The tensor.
        all_orders: Whether to yield the order that it has, too.
    """
    axes = range(1, x.ndim)
    for order in permutations(axes):
        if all_orders or list(order) != list(axes):
            yield tuple(axis - 1 for axis in order), x.permute(0, *order).flatten(1)


def by_exchanged_axes(evidence: Evidence) -> Iterator[Cause]:
    """Yield the other order in which the twin takes the axes, first of all those between batch and channels."""
    rank, in_keras = evidence.value.ndim, evidence.axes_of_value()
    axes = tuple(range(1, rank))
    if evidence.explains(evidence.value):
        return
    for order in sorted(permutations(axes), key=lambda order: order[-1] != rank - 1):
        if order == axes or not evidence.explains(evidence.value.permute(0, *order)):
            continue
        order = order[:-1] if order[-1] == rank - 1 else order
        order = tuple(in_keras[axis] for axis in order)
        if evidence.step is not None and isinstance(evidence.step.layer, _REORDERING):
            yield known_cause("flatten order", f"its axes are in the order {order} before they are flattened")
        else:
            yield known_cause("input axes exchanged", f"in the order {order}")
        return


def by_reshaped_axes(evidence: Evidence) -> Iterator[Cause]:
    """Yield that the twin's input was reshaped, not permuted."""
    value, twin = as_in_keras(evidence.value, evidence.axis), evidence.twin
    reshaped = value.ndim > 2 and value.shape != twin.shape
    if reshaped and agree_within(value.flatten(1), twin.flatten(1), evidence.tolerance):
        yield known_cause("input axes exchanged", "reshaped, where its axes should be permuted")


def by_order_of_channels(evidence: Evidence) -> Iterator[Cause]:
    """Yield the other order in which the twin takes the channels."""
    found = other_channels(evidence)
    if found:
        yield found


def by_order_of_features(evidence: Evidence) -> Iterator[Cause]:
    """Yield the other order in which the twin takes flattened features."""
    if evidence.flattened:
        for order, reordered in other_orders(evidence.value.unflatten(1, evidence.flattened)):
            if evidence.explains(reordered):
                yield known_cause("flatten order", f"axes {order} in place of {tuple(range(len(order)))}")
                return

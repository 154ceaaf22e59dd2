"""The known causes of a difference at one layer: each is tried, and those that explain all of it are named.

A cause explains a difference if undoing it makes the layer agree, or if doing the same to Keras's numbers gives the
twin's. Nothing is changed: modules are copied before anything is tried on them.
"""

from collections.abc import Iterator
from itertools import permutations

from parity.case import Cause, Evidence, agree_within, known_cause, other_orders
from parity.causes_of_functions import (
    activations,
    by_bias,
    by_channels,
    by_function,
    by_global_pooling,
    by_merging,
    by_numbers,
    by_order,
    by_other_input,
    by_scaling,
    other_channels,
)
from parity.causes_of_settings import by_mode, by_padding, by_pooling, by_settings, dropped
from parity.causes_of_weights import by_weights

import keras

_ATTEMPTS = (
    by_mode,
    by_weights,
    by_settings,
    by_padding,
    by_pooling,
    by_global_pooling,
    by_bias,
    by_function,
    by_merging,
    by_order,
    by_channels,
    by_other_input,
    by_numbers,
)


def causes_here(evidence: Evidence) -> Iterator[Cause]:
    """Yield what explains that a layer takes what it should and returns something else."""
    found = False
    for several in _ATTEMPTS:
        for cause in several(evidence):
            found = True
            yield cause
        if found:
            return


def causes_before(evidence: Evidence) -> Iterator[Cause]:
    """Yield what explains that a layer's twin takes something else than what the layers before return."""
    value, rank = evidence.value, evidence.value.ndim
    if dropped(evidence):
        yield known_cause("train mode", "some elements are 0, the others larger, as dropout makes them")
        return
    if _overwritten(evidence):
        yield known_cause("overwritten in place", f"by {_overwritten(evidence)}")
        return
    names = [name for name, other in evidence.others.items() if evidence.explains(other)]
    if names:
        yield known_cause("another skip", f"it takes the output of {' or '.join(names)}")
        return
    for name, function in activations(value):
        if evidence.explains(function(value)):
            yield known_cause("another activation", f"{name}, which Keras has not")
            return
    for order in permutations(range(1, rank - 1)):
        if list(order) != list(range(1, rank - 1)) and evidence.explains(value.permute(0, *order, rank - 1)):
            if evidence.step is not None and isinstance(
                evidence.step.layer, keras.layers.Flatten | keras.layers.Reshape
            ):
                yield known_cause("flatten order", f"its axes are in the order {order} before they are flattened")
                return
            yield known_cause("input axes exchanged", f"in the order {order}")
            return
    if (
        rank > 2
        and value.shape != evidence.twin.shape
        and agree_within(value.flatten(1), evidence.twin.flatten(1), evidence.tolerance)
    ):
        yield known_cause("input axes exchanged", "reshaped, where its axes should be permuted")
        return
    reordered = other_channels(evidence)
    if reordered:
        yield reordered
        return
    if evidence.flattened:
        for order, other in other_orders(value.unflatten(1, evidence.flattened)):
            if evidence.explains(other):
                yield known_cause("flatten order", f"axes {order} in place of {tuple(range(len(order)))}")
                return
    if evidence.twin.dtype != value.dtype and evidence.explains(value.to(evidence.twin.dtype)):
        yield known_cause("precision", f"the twin computes in {str(evidence.twin.dtype).removeprefix('torch.')}")
        return
    first = evidence.step is not None and set(evidence.step.inputs) <= set(evidence.run.graph.inputs)
    yield from by_scaling(evidence, by_channel=first)


def _overwritten(evidence: Evidence) -> str:
    """Return the name of the call that has overwritten what the twin takes, or nothing."""
    spot = (
        evidence.run.pairing.inputs.get((evidence.index, 0))
        if evidence.step is None or len(evidence.step.inputs) == 1
        else None
    )
    spots = [spot] if spot else [s for (i, _), s in evidence.run.pairing.inputs.items() if i == evidence.index]
    source = {number: call for call in evidence.run.calls for number in call.outputs}
    for one in spots:
        if one.call >= len(evidence.run.calls):
            continue
        number = evidence.run.calls[one.call].inputs[one.position]
        while number in source and source[number].overwrites:
            call = source[number]
            names = type(call.module).__name__.lower() if call.module is not None else call.name
            if "dropout" not in names and "identity" not in names:
                return call.name
            number = call.inputs[0]
    return ""

"""Into which parts a Keras layer may be taken apart: each of them fills one module of the twin."""

from collections.abc import Sequence
from typing import NamedTuple

from parity.models.keras_layers import WITH_HEADS, inner_layers, layers_of_attention, sub_layers
from parity.models.sequences import is_sequence_layer
from parity.proposal.parts import ATTENTION, JOINED, LAYER, OWN, RECURRENT, Part, own_weights
from parity.weights.layouts import covered_layers, find_layout, needs_no_place

import keras


class Splits(NamedTuple):
    """In which ways a layer may be taken apart.

    Attributes:
        ways: The parts of each way, still without inputs; the first is the usual one.
        faults: What cannot be moved. Each begins with the label of a part.
        own: The parts if the weights of a layer of the user's own, which is not covered, may be moved as they are.
    """

    ways: list[list[Part]]
    faults: list[str]
    own: tuple[Part, ...] = ()


def splits_of(layer: keras.Layer) -> Splits:
    """Return in which ways a layer with weights may be taken apart."""
    levels = levels_of(layer)
    if levels:
        return Splits([[recurrent_part([layer], levels)]], [])
    if isinstance(layer, WITH_HEADS):
        return Splits(_attention(layer), [])
    return _composed(layer) or _plain(layer)


def path_of(layer: keras.Layer) -> str:
    """Return what the paths of all weights of a layer begin with."""
    paths = [weight.path.split("/")[:-1] for weight in layer.weights]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len({*parts}) > 1:
            break
        common.append(parts[0])
    return "/".join(common)


def levels_of(layer: keras.Layer) -> list[list[keras.Layer]]:
    """Return the cells of a recurrent layer: for each level, of both its directions if it has two.

    There are several levels where its cell is a stack of cells. If one is not covered, there are none.
    """
    if not is_sequence_layer(layer):
        return []
    both = isinstance(layer, keras.layers.Bidirectional)
    ways = [layer.forward_layer, layer.backward_layer] if both else [layer]
    stacks = [getattr(way.cell, "cells", [way.cell]) for way in ways if hasattr(way, "cell")]
    cells = [cell for stack in stacks for cell in stack]
    if len(stacks) < len(ways) or not all(cell.weights and find_layout(cell) for cell in cells):
        return []
    if len(ways) > 1 and len(cells) > len(ways):
        return []  # in Keras each direction goes through all cells, in PyTorch each level joins both directions
    return [[stack[number] for stack in stacks] for number in range(len(stacks[0]))]


def recurrent_part(layers: Sequence[keras.Layer], levels: Sequence[Sequence[keras.Layer]]) -> Part:
    """Return the part of recurrent layers one behind the other, with the cells of all their levels."""
    cells = {cell.name for level in levels for cell in level}
    paths = [path_of(layer).split("/") for layer in layers]
    label = "+".join("/".join(path[:-1] if path[-1] in cells else path) for path in paths)
    return Part(label, layers[0], {}, [], RECURRENT, tuple(tuple(level) for level in levels), layers[0])


def _attention(layer: keras.Layer) -> list[list[Part]]:
    """Return the ways of an attention: one module; query, key and value in one matrix, or the last two; all apart."""
    layers = layers_of_attention(layer)
    if not layers:
        return []
    query, key, value, output = layers
    path = path_of(layer)

    def joined(*layers: keras.Layer) -> Part:
        label = "+".join(one.name for one in layers)
        return Part(f"{path}/{label}", layers[0], {}, [], JOINED, (layers,), layer, inside=True)

    together = Part(path, layer, {}, [], ATTENTION, ((query, key, value, output),), layer)
    return [
        [together],
        [joined(query, key, value), joined(output)],
        [joined(query), joined(key, value), joined(output)],
        [joined(query), joined(key), joined(value), joined(output)],
    ]


def _composed(layer: keras.Layer) -> Splits | None:
    """Return the parts of a layer of the user's own that consists of several layers; None if it is no such layer."""
    inner = [one for one in sub_layers(layer) if one.weights]
    if find_layout(layer) is not None or isinstance(layer, keras.layers.Wrapper) or len(inner) < 2:
        return None
    several = [splits_of(one) for one in inner]
    if any(not one.ways for one in several):
        return None
    ways = [
        [part._replace(top=layer, inside=True) for one in several for part in one.ways[min(number, len(one.ways) - 1)]]
        for number in range(max(len(one.ways) for one in several))
    ]
    if own_weights(layer):
        ways = [[*way, own_part(layer, layer)] for way in ways]
    return Splits(ways, [fault for one in several for fault in one.faults])


def own_part(layer: keras.Layer, top: keras.Layer) -> Part:
    """Return the part of the weights that a layer of the user's own has itself."""
    path = own_weights(layer)[0].path.rpartition("/")[0] if own_weights(layer) else path_of(layer)
    return Part(path, layer, {}, [], OWN, ((layer,),), top)


def _plain(layer: keras.Layer) -> Splits:
    """Return the parts of a layer that has all its weights itself, or in one layer within it."""
    owners = {id(variable): inner for inner in inner_layers(layer) for variable in inner.weights}
    inner = {id(owner): owner for owner in owners.values()}
    owner = next(iter(inner.values())) if len(inner) == 1 else layer  # the layer in a TimeDistributed
    path, kind = owner.weights[0].path.rpartition("/")[0], type(owner).__name__
    layout = find_layout(owner)
    if layout is None or any(place.modules and place.names for place in layout.values()):
        whole = len(own_weights(owner)) == len(owner.weights) and not is_sequence_layer(layer)
        own = (own_part(owner, layer),) if whole else ()
        return Splits([], [f"{path}: the kind {kind} is not covered; covered are {', '.join(covered_layers())}"], own)
    parts: dict[str, Part] = {}
    faults = []
    for variable in owner.weights:
        place = layout.get(variable.name)
        if place is None and needs_no_place(owner, variable.name):
            continue
        if place is None:
            faults.append(f"{path}: a {kind} has no weight {variable.name} that can be moved")
            continue
        label = f"{path}/{place.part}" if place.part else path
        part = parts.setdefault(label, Part(label, owner, {}, [], LAYER, ((owner,),), layer))
        # A place that is free has no name of its own.
        part.weights[place.tensor if place.modules else variable.name] = (variable, place)
    return Splits([[*parts.values()]] if parts else [], faults)

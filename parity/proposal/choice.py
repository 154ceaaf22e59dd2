"""Which of the ways to take layers apart suit the twin, by kind and shapes of its modules."""

from collections.abc import Collection, Sequence

from parity.models.keras_graph import Graph
from parity.proposal.parts import LAYER, Part
from parity.proposal.splits import path_of, splits_of
from parity.proposal.twin import TwinCopy

import keras

Choice = dict[int, list[list[Part]]]
"""For layers by their identity: the ways to take them apart that suit the twin."""


def ways_in(graph: Graph, twin: TwinCopy, named: Collection[str]) -> tuple[Choice, list[str]]:
    """Return the ways in which layers of several weights may be taken apart, and faults: the layers that have none.

    Args:
        graph: The Keras model.
        twin: The twin.
        named: Parts whose modules are given by name: ways with these go first.
    """
    found: Choice = {}
    faults = []
    for layer in {id(step.layer): step.layer for step in graph.steps if step.weights}.values():
        ways = splits_of(layer).ways
        if not ways or all(part.kind == LAYER and not part.inside for way in ways for part in way):
            continue
        suiting = [way for way in ways if have_modules(way, twin)]
        by_name = [way for way in ways if any(part.label in named for part in way)]
        found[id(layer)] = by_name or suiting
        if not found[id(layer)]:
            fault = f"{path_of(layer)}: no module fits a {type(layer).__name__} with {_shapes(layer)}"
            faults.append(fault)
            found[id(layer)] = [[Part(path_of(layer), layer, {}, [], LAYER, (), layer)]]
    return found, faults


def _shapes(layer: keras.Layer) -> str:
    prefix = len(path_of(layer)) + 1
    return ", ".join(f"{weight.path[prefix:]} {tuple(weight.shape)}" for weight in layer.weights)


def have_modules(parts: Sequence[Part], twin: TwinCopy) -> bool:
    """Tell whether there is a module for each of several parts, one for each."""
    fits = {part.label: twin.fitting(part) for part in parts}
    taken: dict[str, str] = {}

    def find(label: str, seen: set[str]) -> bool:
        for name in fits[label]:
            if name not in seen:
                seen.add(name)
                if name not in taken or find(taken[name], seen):
                    taken[name] = label
                    return True
        return False

    return all(find(label, set()) for label in fits)

"""Which of the ways to take layers apart suit the twin, by kind and shapes of its modules."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations

from parity.models.keras_graph import Graph, Step, TensorId
from parity.models.keras_layers import RANDOM_IN_TRAINING
from parity.proposal.parts import LAYER, Part
from parity.proposal.splits import levels_of, path_of, recurrent_part, splits_of
from parity.proposal.twin import TwinCopy
from parity.weights.fills import Weight, is_own, same_but_for_ones

import keras

Choice = dict[int, list[list[Part]]]
"""For layers by their identity: the ways to take them apart that suit the twin."""


def ways_in(
    graph: Graph, twin: TwinCopy, named: Collection[str], unproved: Mapping[str, int], near: Mapping[str, Sequence[str]]
) -> tuple[Choice, list[str]]:
    """Return the ways in which layers of several weights may be taken apart, and faults: the layers that have none.

    Args:
        graph: The Keras model.
        twin: The twin.
        named: Parts whose modules are given by name: ways with these go first.
        unproved: How often each part of a layer of the user's own was tried in vain: first its weights were taken to be
            in a module of its own, then to be single tensors. After that they are left to the user.
        near: For parts of layers of the user's own: modules that may hold their tensors, the likeliest first.
    """
    found = _stacked(graph, twin)
    faults = []
    alone: dict[int, Part] = {}  # of layers of the user's own that have no module
    for layer in {id(step.layer): step.layer for step in graph.steps if step.weights}.values():
        if id(layer) in found:
            continue
        ways, _, own = splits_of(layer)
        if own:
            modules = bool(twin.fitting(own[0]))
            tries = unproved.get(own[0].label, 0)
            if modules and tries == 0:
                found[id(layer)] = [[own[0]]]
            elif tries <= modules:
                alone[id(layer)] = own[0]
            continue
        if any(part.label in unproved for way in ways for part in way):
            faults.append(f"{path_of(layer)}: what lies behind it does not show which tensors of the twin it fills")
            found[id(layer)] = [[Part(path_of(layer), layer, {}, [], LAYER, (), layer)]]
            continue
        if not ways or all(part.kind == LAYER and not part.inside for way in ways for part in way):
            continue
        suiting = [way for way in ways if have_modules(way, twin)]
        by_name = [way for way in ways if any(part.label in named for part in way)]
        found[id(layer)] = by_name or suiting
        if not found[id(layer)]:
            fault = f"{path_of(layer)}: no module fits a {type(layer).__name__} with {_shapes(layer)}"
            faults.append(fault)
            found[id(layer)] = [[Part(path_of(layer), layer, {}, [], LAYER, (), layer)]]
    twin.preset = _free_tensors([*alone.values()], twin, near)
    found |= {key: [[part]] for key, part in alone.items() if part.label in twin.preset}
    return found, faults


def _free_tensors(
    parts: Sequence[Part], twin: TwinCopy, near: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Weight]]:
    """Return the tensors of the twin that layers of the user's own may fill, by part.

    These are the only ones of their shapes, or else those of the nearest module that has such. What lies behind has to
    prove it.

    Args:
        parts: The parts, which have no module to themselves.
        twin: The twin.
        near: For parts: modules that may hold their tensors, the likeliest first.
    """
    needed = Counter(_without_ones(weight.variable.shape) for part in parts for weight in part.held.values())
    free: dict[tuple[int, ...], list[str]] = defaultdict(list)
    of_module: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensors in twin.tensors.items():
        if is_own(twin.module(name)):
            of_module[name] = {f"{name}.{own}" if name else own: tuple(one.shape) for own, one in tensors.items()}
            for key, shape in of_module[name].items():
                free[shape].append(key)
    found: dict[str, dict[str, Weight]] = {}
    for part in parts:
        shapes = {path: tuple(weight.variable.shape) for path, weight in part.held.items()}
        fitting = {path: [*_fitting(shape, free)] for path, shape in shapes.items()}
        if all(needed[_without_ones(shapes[path])] == 1 == len(keys) for path, keys in fitting.items()):
            found[part.label] = {keys[0]: part.held[path] for path, keys in fitting.items()}
    for part in parts:
        taken = {key for several in found.values() for key in several}
        modules = [name for name in near.get(part.label, ()) if name in of_module and part.label not in found]
        for name in modules:
            keys = _keys_for(part, {key: shape for key, shape in of_module[name].items() if key not in taken})
            if keys is not None:
                found[part.label] = keys
                break
    return found


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _fitting(shape: tuple[int, ...], free: Mapping[tuple[int, ...], Sequence[str]]) -> Iterator[str]:
    """Yield the tensors of a shape, or of one that differs from it by axes of size 1."""
    for other, keys in free.items():
        if same_but_for_ones(shape, other):
            yield from keys


def _keys_for(part: Part, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Weight] | None:
    """Return which tensors of a module a part may fill, those of equal names first; None if there are not enough.

    Args:
        part: The part.
        shapes: The shapes of the tensors, by key.
    """
    found: dict[str, Weight] = {}
    for weight in part.held.values():
        due = tuple(weight.variable.shape)
        fitting = [key for key, shape in shapes.items() if key not in found and same_but_for_ones(due, shape)]
        named = [key for key in fitting if key.rpartition(".")[2] == weight.variable.name]
        if not fitting:
            return None
        found[(named or fitting)[0]] = weight
    return found


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


def _stacked(graph: Graph, twin: TwinCopy) -> Choice:
    """Return the recurrent layers one behind the other that are one module of the twin, such as an LSTM of two layers.

    The part belongs to the first layer, and the others have none. They are only taken together if a layer among them
    has no module of its own.
    """
    found: Choice = {}
    for chain in _chains(graph):
        alone = {id(layer): have_modules(splits_of(layer).ways[0], twin) for layer in chain}
        start = 0
        while start < len(chain):
            for end in range(len(chain), start + 1, -1):
                layers = chain[start:end]
                part = recurrent_part(layers, [level for layer in layers for level in levels_of(layer)])
                if not all(alone[id(layer)] for layer in layers) and twin.fitting(part):
                    found |= {id(layer): [[part] if layer is layers[0] else []] for layer in layers}
                    start = end - 1
                    break
            start += 1
    for forward, backward in _directions(graph):
        part = recurrent_part([forward, backward], [[levels_of(one)[0][0] for one in (forward, backward)]])
        alone_too = all(have_modules(splits_of(one).ways[0], twin) for one in (forward, backward))
        if not alone_too and not {id(forward), id(backward)} & found.keys() and twin.fitting(part):
            found |= {id(forward): [[part]], id(backward): [[part]]}
    return found


def _directions(graph: Graph) -> Iterator[tuple[keras.Layer, keras.Layer]]:
    """Yield each two recurrent layers with the same input, of which one goes forward and one backward."""
    steps = [step for step in graph.steps if step.weights and [len(level) for level in levels_of(step.layer)] == [1]]
    for first, second in permutations(steps, 2):
        backwards = [step.layer.go_backwards for step in (first, second)]
        if first.inputs[:1] == second.inputs[:1] and backwards == [False, True]:
            yield first.layer, second.layer


def _chains(graph: Graph) -> list[list[keras.Layer]]:
    """Return recurrent layers of which each takes all steps of the one before it, and nothing else does."""
    calls = Counter(id(step.layer) for step in graph.steps if step.weights)
    takers: dict[TensorId, list[Step]] = defaultdict(list)
    for step in graph.steps:
        for number in step.inputs:
            takers[number].append(step)
    chain_of: dict[int, list[keras.Layer]] = {}  # by the identity of its last layer
    for step in graph.steps:
        layer = step.layer
        if not step.weights or calls[id(layer)] > 1 or not levels_of(layer):
            continue
        chain = chain_of.setdefault(id(layer), [layer])
        behind, number = takers[step.outputs[0]], step.outputs[0]
        while len(behind) == 1 and isinstance(behind[0].layer, RANDOM_IN_TRAINING) and number not in graph.outputs:
            number = behind[0].outputs[0]
            behind = takers[number]
        after = behind[0].layer if len(behind) == 1 and number not in graph.outputs else None
        if after is not None and calls[id(after)] == 1 and levels_of(after) and _go_on(layer, after):
            chain_of[id(after)] = [*chain, after]
            del chain_of[id(layer)]
    return [chain for chain in chain_of.values() if len(chain) > 1]


def _go_on(layer: keras.Layer, after: keras.Layer) -> bool:
    """Tell whether one recurrent layer may be a level of a module, and another the next one."""
    backwards = any(getattr(one, "go_backwards", False) for one in (layer, after))
    plain = not backwards and getattr(layer, "merge_mode", "concat") == "concat"
    kinds = {type(cell) for one in (layer, after) for level in levels_of(one) for cell in level}
    return layer.return_sequences and plain and len(kinds) == 1 and type(layer) is type(after)

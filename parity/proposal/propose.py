"""Propose a mapping: find the module of the twin that belongs to each Keras layer, by the inputs of the modules."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from parity.errors import ParityError
from parity.models.alignment import alignments, largest
from parity.models.inputs import Inputs, TwinInputs, keras_inputs, takes_keras_axes, twin_inputs, unchanged
from parity.models.keras_channels import channels_of, input_axes
from parity.models.keras_graph import Graph, keras_graph, with_graph
from parity.proposal.choice import ways_in
from parity.proposal.failures import Failure
from parity.proposal.found import Found, equal_names, part_of
from parity.proposal.layers import keras_dtype, keras_parts
from parity.proposal.onward import Onward, go_on
from parity.proposal.outputs import keras_outputs
from parity.proposal.parts import OWN, Part
from parity.proposal.report import Proposal, make_proposal, shapes_of
from parity.proposal.search import Search
from parity.proposal.splits import splits_of
from parity.proposal.twin import TwinCopy

import keras
import torch
from torch import nn

# A few examples are enough to tell layers apart, and the copy of the twin runs many times.
_EXAMPLES = 2
# For so many layers at most it is tried whether they are more modules, or fewer.
_OTHER_WAYS = 6
# So often it is tried which layers of the user's own can be moved.
_ROUNDS = 4


def propose_mapping(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    names: Mapping[str, str] | None = None,
    *,
    torch_x: TwinInputs = None,
) -> Proposal:
    """Find the twin of each Keras layer by what it takes. Neither model is changed, and the twin's weights are ignored.

    A layer's twin is the module of a fitting kind and shapes that takes the same numbers, once all layers before it
    have their twins and these are filled. Of several such modules, those remain with which every later layer finds a
    twin, too. If more than one remains, equal names decide, or else the user, by ``names`` or in the file. The order
    in which a model returns its outputs decides nothing: two heads with the same input stay undecided. So do layers
    that cannot be told apart after a great many trials.

    A row is never a guess: if the twin equals the Keras model under some mapping, that mapping has the row. Where the
    twin has a mistake, such as another epsilon, ``parts_at`` says so, and the search goes on with what Keras's layer
    returns. The layers behind are listed in ``behind``: their rows are right if the twin has no other mistakes, and, if
    the mistake is in a function between modules, if the twin calls its modules in Keras's order.

    A layer without a twin, or of a kind that is not covered, keeps no other from being found. What is not certain has
    no row, but the third column, ``how``, says of some rows more: "as it is" for a weight of a layer of the user's own
    that is copied in its shape, and proved by what lies behind; "by hand" for a layer that is not
    covered, and "not from Keras" for a module that no layer fills.

    To store it: ``propose_mapping(...).mapping.to_csv("keras_torch_mapping.csv", index=False)``. To use it at once:
    ``transfer(keras_model, torch_model, proposal.mapping, proposal.flatten)``, which refuses an incomplete mapping.

    Args:
        keras_model: A Functional or a built Sequential model.
        torch_model: The twin, a module whose ``forward`` takes as many tensors as the Keras model has inputs.
        x: An input of the Keras model: an array, with the axes that the model takes, or one for each of several inputs.
            The first two examples are used. Random numbers tell layers apart better than zeros.
        names: The twins that you know: {layer: module}, such as ``{"dense_1": "steer"}``. A SeparableConv has two:
            ``{"sep/depthwise": "a", "sep/pointwise": "b"}``. Layers that fill a module together are joined by a plus:
            ``{"attention/query+key+value": "qkv"}``. A proposal says how it calls them.
        torch_x: The twin's inputs, if they are neither ``x`` with the channels on axis 1 nor, for sequences, ``x``
            itself.

    Raises:
        ParityError: If nothing can be found: a Keras model without a graph or without weights, or with two layers of
            one path, a twin that cannot run, or ``names`` that are unknown, do not fit, or that the numbers contradict.
    """
    keras_model = with_graph(keras_model, x)
    graph = keras_graph(keras_model)
    keras_side = _Keras(graph, [array[:_EXAMPLES] for array in keras_inputs(keras_model, x)], keras_dtype(keras_model))
    with unchanged(keras_model, torch_model):
        best, onward = _looked_for(keras_side, torch_model, names or {}, torch_x, {})
        near = _near(best.search, onward)
        if near:
            again, further = _looked_for(keras_side, torch_model, names or {}, torch_x, near)
            if len(again.not_covered) < len(best.not_covered):
                best, onward = again, further
    return make_proposal(best.search, onward, best.by_name | onward.by_name, best.not_covered)


class _Keras(NamedTuple):
    """The Keras model, an array for each of its inputs, and the dtype of its weights."""

    graph: Graph
    arrays: Sequence[Any]
    dtype: torch.dtype


class _Attempt(NamedTuple):
    """A search with layers taken apart in one way.

    Attributes:
        search: The search.
        found: What it has found.
        by_name: The layers that numbers could not decide and equal names did.
        not_covered: What of the Keras model cannot be moved, by part.
        open: The layers of the Keras model that have no module although one would fit.
    """

    search: Search
    found: Found
    by_name: dict[str, str]
    not_covered: dict[str, str]
    open: list[int]


def _looked_for(
    keras_side: _Keras,
    torch_model: nn.Module,
    names: Mapping[str, str],
    torch_x: TwinInputs,
    near: Mapping[str, Sequence[str]],
) -> tuple[_Attempt, Onward]:
    """Return what is found in a copy of the twin, and behind its mistakes.

    Args:
        keras_side: The Keras model.
        torch_model: The twin.
        names: See ``propose_mapping``.
        torch_x: See ``propose_mapping``.
        near: See ``ways_in``.
    """
    graph, arrays, dtype = keras_side
    twin = TwinCopy(torch_model, dtype)
    first = list(input_axes(graph, channels_of(graph)))
    as_keras = takes_keras_axes(twin.model, arrays, first) if torch_x is None else ()
    tensors = [tensor[:_EXAMPLES] for tensor in twin_inputs(twin.model, arrays, torch_x, as_keras)]
    twin.inputs = [tensor.to(twin.dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
    named = {label: twin.canonical.get(module, module) for label, module in names.items()}
    best = _best_attempt(keras_side, twin, named, near)
    if not best.found.failing:
        return best, Onward(best.found, {}, [], {}, {})
    return best, go_on(best.search, best.found, keras_outputs(graph, arrays, best.search.parts))


def _near(search: Search, onward: Onward) -> dict[str, list[str]]:
    """Return for each layer of the user's own that has no tensors: the modules with some around its neighbours' twins.

    Such a layer's weights are often single tensors of the module that also holds the layers next to it. Those around
    the layer before come first, and of these the innermost.
    """
    decided = onward.found.decided
    before = {label: search.just_before(part.inputs) for label, part in search.parts.items()}
    found = {}
    for label, part in search.parts.items():
        if part.is_covered or not splits_of(part.layer).own:
            continue
        neighbours = [*before[label], *(other for other, several in before.items() if label in several)]
        names = [decided[other] for other in neighbours if other in decided]
        around = dict.fromkeys(module for name in names for module in _modules_around(name))
        holders = [module for module in around if module in search.twin.tensors]
        if holders:
            found[label] = holders
    return found


def _modules_around(name: str) -> Iterator[str]:
    """Yield the names of the modules that a module is in, the innermost first."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _best_attempt(
    keras_side: _Keras, twin: TwinCopy, named: Mapping[str, str], near: Mapping[str, Sequence[str]]
) -> _Attempt:
    """Return the search that finds most layers; layers of the user's own are only moved if what lies behind agrees."""
    unproved: Counter[str] = Counter()
    for _ in range(_ROUNDS):
        best = _best_way(keras_side, twin, named, unproved, near)
        more = [*_unproved(best, keras_side)]
        if not more:
            return best
        unproved.update(more)
    return _best_way(keras_side, twin, named, dict.fromkeys(unproved, _ROUNDS), near)


def _unproved(attempt: _Attempt, keras_side: _Keras) -> Iterator[str]:
    """Yield each layer of the user's own that has no module, or behind which not all layers take the right numbers."""
    search, found = attempt.search, attempt.found
    failing = {part_of(label) for label in found.failing}
    right = {label for label, modules in found.options.items() if None not in modules and label not in failing}
    followers: dict[str, set[str]] = defaultdict(set)
    for label, part in search.parts.items():
        for before in search.just_before(part.inputs):
            followers[before].add(label)
    for label in reversed(search.parts):  # what a single tensor fills shows nothing by itself
        for other in followers[label] & search.twin.preset.keys():
            followers[label] |= followers[other]
        behind = followers[label] - search.twin.preset.keys()
        if search.parts[label].kind != OWN:
            continue
        agrees = behind <= right if behind else _returned(label, attempt, keras_side)
        if label not in right or not agrees:
            yield label


def _returned(label: str, attempt: _Attempt, keras_side: _Keras) -> bool:
    """Tell whether the twin returns what a layer does, the last one."""
    search = attempt.search
    search.twin.inputs_of_modules({name: search.content(one, name) for one, name in attempt.found.decided.items()})
    due = keras_outputs(keras_side.graph, keras_side.arrays, search.parts).get(label, [])
    pairs = ((output, tensor) for call in due for output in call[:1] for tensor in search.twin.outputs)
    return any(
        largest(pair.value - pair.twin) <= output.tolerance
        for output, tensor in pairs
        for pair in alignments(output.value, tensor)
    )


def _best_way(
    keras_side: _Keras,
    twin: TwinCopy,
    named: Mapping[str, str],
    unproved: Mapping[str, int],
    near: Mapping[str, Sequence[str]],
) -> _Attempt:
    """Return the search that finds most layers: an attention may be one module of the twin, or several."""
    graph, arrays, _ = keras_side
    twin.contents.clear()
    ways, faults = ways_in(graph, twin, named, unproved, near)
    picked = dict.fromkeys(ways, 0)

    def attempt() -> _Attempt:
        splits = {layer: ways[layer][number] for layer, number in picked.items()}
        parts, others = keras_parts(graph, arrays, splits)
        not_covered = {label: why for label, _, why in (fault.partition(": ") for fault in faults + others)}
        return _attempt(parts, twin, named, not_covered)

    best = attempt()
    several = [layer for layer in ways if len(ways[layer]) > 1]
    for layer in sorted(several, key=lambda layer: layer not in best.open)[:_OTHER_WAYS]:
        for number in range(1, len(ways[layer])):
            if not best.open:
                return best
            before = picked[layer]
            picked[layer] = number
            another = attempt()
            if len(another.open) < len(best.open):
                best = another
            else:
                picked[layer] = before
    return best


def _attempt(parts: dict[str, Part], twin: TwinCopy, named: Mapping[str, str], not_covered: dict[str, str]) -> _Attempt:
    """Search once."""
    fits = {label: twin.fitting(part) if part.is_covered else [] for label, part in parts.items()}
    fits |= {label: [" and ".join(keys)] for label, keys in twin.preset.items() if label in parts}
    name_faults = list(_name_faults(parts, fits, twin, named))
    if name_faults:
        raise ParityError("proposal", name_faults)
    alone = {label: _nothing_fits(part, not_covered) for label, part in parts.items() if not fits[label]}
    search = Search(parts, fits, twin, named)
    preset = {label: " and ".join(keys) for label, keys in twin.preset.items() if label in parts}
    found = search.run(preset, alone)
    if named and found.failing.keys() - alone:
        contradicted = found.failing.keys() - Search(parts, fits, twin, {}).run(preset, alone).failing.keys()
        if contradicted:
            faults = [f"{label}: {failure.why}" for label, failure in found.failing.items() if label not in alone]
            raise ParityError("proposal", faults)
    by_name = equal_names(found)
    if by_name:
        search_by_name = Search(parts, fits, twin, {**named, **by_name})
        found_by_name = search_by_name.run(preset, alone)
        if len(found_by_name.failing) <= len(found.failing):
            search, found = search_by_name, found_by_name
        else:  # the names contradict each other or the numbers, so they decide nothing
            by_name = {}
    without = {part_of(label) for label in found.failing.keys() - alone} | {*found.blocked}
    return _Attempt(search, found, by_name, not_covered, list({id(parts[label].top) for label in without}))


def _nothing_fits(part: Part, not_covered: Mapping[str, str]) -> Failure:
    """Return the failure of a part that no module fits, whatever the numbers are."""
    if part.label in not_covered:
        return Failure(not_covered[part.label], structural=True)
    if not part.weights:
        return Failure("no module fits", structural=True)
    place = next(iter(part.weights.values()))[1]
    shapes = shapes_of({name: part.value(name) for name in part.weights})
    needed = place.needed or "module of your own"
    return Failure(f"no module fits; it needs a {needed} with {shapes}", structural=True)


def _name_faults(
    parts: dict[str, Part], fits: dict[str, list[str]], twin: TwinCopy, fixed: Mapping[str, str]
) -> Iterator[str]:
    count = Counter(fixed.values())
    for label, name in fixed.items():
        if label not in parts:
            yield f"names: the Keras model has no layer {label} with weights; it has {', '.join(parts)}"
        elif name not in twin.tensors:
            yield f"names: the twin has no module {name} with tensors"
        elif name not in fits[label]:
            yield f"names: {twin.describe(name)} does not fit {label}"
        if count[name] > 1:
            yield f"names: {name} is given to {label} and to another"

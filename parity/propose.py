"""Propose a mapping: fill a copy of the twin layer by layer, and see which module takes what.

Each round runs the copy once and notes what its modules take. A layer is ready when all layers before it have their
twins; a module that takes the same numbers is a candidate, and if it is the only one, it is the twin. When nothing but
ties is left, each candidate is tried and the rounds go on from there; a trial that leaves a layer without a candidate,
where another trial has one, was wrong. Trials that cannot be told apart by anything that follows, such as two
convolutions that are added, are merged, so that ties one after another do not multiply.

Why this never guesses: if the twin is right, the module that is really a ready layer's twin takes what the layer takes,
so it is among the candidates, and one candidate alone is the right one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from math import inf, isfinite, prod
from typing import NamedTuple

from parity.arguments import Inputs, TwinInputs, keras_inputs, twin_inputs, unchanged
from parity.faults import ParityError
from parity.graph import keras_graph
from parity.mapping import COLUMNS
from parity.overlay import CHANNELS_FIRST_FEATURES, largest, views
from parity.parts import Part, Taken, keras_dtype, keras_parts
from parity.twin_copy import TwinCopy, module_name

import keras
import pandas as pd
import torch
from torch import Tensor, nn

# A few examples show all; the copy runs once for each round.
_EXAMPLES = 2
# How many candidates to try in all before ties are left to the reader.
_TRIALS = 64
# What follows the part in the name of a failure in a later call.
_CALL = " (call "


class Proposal(NamedTuple):
    """What ``propose_mapping`` found. A layer is called by the path of its weights, less the last part: ``dense_1``.

    Attributes:
        mapping: A row for each tensor of the twin whose Keras layer is certain, as ``read_mapping`` returns it, in the
            order of the twin's state dict.
        undecided: The modules that may be the twin of a layer, for each layer where numbers cannot decide; one alone
            is not certain either.
        unmatched: For each layer without a twin: why; the first is where the numbers stopped agreeing.
        flatten: What ``parity.transfer.transfer`` takes as ``flatten``: layers whose features the twin has flattened
            channels first, and the shape (*spatial, channels) that Keras flattens.
        by_name: The layers that numbers could not decide and equal names did, with their modules.
    """

    mapping: pd.DataFrame
    undecided: dict[str, list[str]]
    unmatched: dict[str, str]
    flatten: dict[str, tuple[int, ...]]
    by_name: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.mapping)} rows"]
        lines += [f"{layer}: {module}, by its name" for layer, module in self.by_name.items()]
        lines += [f"{layer}: undecided: {' or '.join(modules)}" for layer, modules in self.undecided.items()]
        lines += [f"{layer}: {why}" for layer, why in self.unmatched.items()]
        return "\n  ".join(lines)


def propose_mapping(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    names: Mapping[str, str] | None = None,
    torch_x: TwinInputs = None,
) -> Proposal:
    """Find the twin of each Keras layer by what it takes. Neither model is changed, and the twin's weights are ignored.

    A layer's twin is the module of fitting kind and shapes that takes the same numbers, once all before it are found
    and filled. Of several such modules, those remain with which every later layer finds a twin, too. If more than one
    remains, equal names decide; else the reader does, by ``names`` or in the file. The order in which a model returns
    its outputs decides nothing: two heads fed by one tensor stay open. So do layers that others cannot be told from
    after a great many trials.

    A row is never a guess: if the twin equals the Keras model under some mapping, that mapping has the row. With a
    mistake in the twin, such as another epsilon, no later module takes the right numbers; see ``unmatched`` and
    ``parity.trace.trace``.

    To keep it: ``propose_mapping(...).mapping.to_csv("keras_torch_mapping.csv", index=False)``. To use it at once:
    ``transfer(keras_model, torch_model, proposal.mapping, proposal.flatten)``, which refuses an incomplete one.

    Args:
        keras_model: A Functional or a built Sequential model.
        torch_model: The twin, a module whose ``forward`` takes as many tensors as the Keras model has inputs.
        x: An input of the Keras model: an array (batch, *spatial, channels), or one for each of several inputs. The
            first two examples are used. Random numbers tell layers apart better than zeros.
        names: The twins that the reader knows: {layer: module}, such as ``{"dense_1": "steer"}``; for a SeparableConv
            two, ``{"sep/depthwise": "a", "sep/pointwise": "b"}``.
        torch_x: The twin's inputs, if they are not ``x`` with the channels moved to axis 1.

    Raises:
        ParityError: If no mapping can be complete, with every fault: a Keras model without a graph, a kind of layer
            that is not covered, a layer that no module fits or that none is left for, a module that is never called or
            left over, a tensor of the twin that no layer fills, or ``names`` that are unknown, do not fit, or that the
            numbers contradict.
    """
    graph = keras_graph(keras_model)
    arrays = [array[:_EXAMPLES] for array in keras_inputs(keras_model, x)]
    parts, faults = keras_parts(graph, arrays)
    twin = TwinCopy(torch_model, keras_dtype(keras_model))
    with unchanged(keras_model, torch_model):
        given = [tensor[:_EXAMPLES] for tensor in twin_inputs(twin.model, arrays, torch_x)]
        twin.inputs = [tensor.to(twin.dtype) if tensor.is_floating_point() else tensor for tensor in given]
        fits = {label: twin.fitting(part) for label, part in parts.items()}
        named = {label: twin.canonical.get(module, module) for label, module in (names or {}).items()}
        faults += _faults(parts, fits, twin)
        faults += _name_faults(parts, fits, twin, named)
        if faults:
            raise ParityError("proposal", faults)
        found = _Search(parts, fits, twin, named).run()
        by_name = _equal_names(found)
        if by_name:
            again = _Search(parts, fits, twin, named | by_name).run()
            # Names that contradict each other decide nothing.
            found, by_name = (again, by_name) if len(again.failing) <= len(found.failing) else (found, {})
    hopeless = [label for label, failure in found.failing.items() if failure.structural]
    hopeless += [label for label in named if found.options[label] == {None} and label in found.failing]
    left_over = _left_over(found, twin)
    if hopeless or left_over:
        raise ParityError("proposal", [*(f"{label}: {f.why}" for label, f in found.failing.items()), *left_over])
    return _proposal(parts, twin, found, by_name)


class _Failure(NamedTuple):
    """Why a layer finds no twin, and whether this is for want of modules, not a matter of numbers."""

    why: str
    structural: bool = False


class _Node(NamedTuple):
    """How far the search is, when nothing but ties is left.

    Attributes:
        matched: The module of each part that has one.
        failing: The parts, and later calls of shared ones, that no module is right for.
        ties: The candidates of each part that has several.
        takes: What each module takes.
    """

    matched: dict[str, str]
    failing: dict[str, _Failure]
    ties: dict[str, list[str]]
    takes: dict[str, list[Tensor]]


class _Found(NamedTuple):
    """What came of a search.

    Attributes:
        options: The modules that each part may have; None among them if it may have none.
        failing: As in ``_Node``.
        flattened: By part and module: the shape of the features that the twin has flattened channels first.
        blocked: Why parts could not be reached.
    """

    options: dict[str, set[str | None]]
    failing: dict[str, _Failure]
    flattened: dict[tuple[str, str], tuple[int, ...] | None]
    blocked: dict[str, str]


class _Search:
    """Finds the module of each part.

    Args:
        parts: The parts, in the order of the data flow.
        fits: The modules that each part could have by kind and shapes.
        twin: The copy of the twin.
        fixed: The modules of some parts.
    """

    def __init__(
        self, parts: dict[str, Part], fits: dict[str, list[str]], twin: TwinCopy, fixed: Mapping[str, str]
    ) -> None:
        self.parts, self.fits, self.twin, self.fixed = parts, fits, twin, fixed
        self.flattened: dict[tuple[str, str], tuple[int, ...] | None] = {}
        self.trials = 0

    def run(self) -> _Found:
        """Search, and return what was found."""
        return self.explore(self.propagate({}, {}))

    def propagate(self, matched: dict[str, str], failing: dict[str, _Failure]) -> _Node:
        """Match what has one candidate, until there is no more."""
        matched, failing = dict(matched), dict(failing)
        while True:
            filled = {m: (self.parts[label], self.flattened.get((label, m))) for label, m in matched.items()}
            takes = self.twin.takes(filled)
            self.check_shared(matched, failing, takes)
            candidates = self.candidates(matched, failing, takes)
            alone = {label: modules[0] for label, modules in candidates.items() if len(modules) == 1}
            claims = defaultdict(list)
            for label, module in alone.items():
                claims[module].append(label)
            sure = {labels[0]: module for module, labels in claims.items() if len(labels) == 1}
            failing |= {
                label: _Failure(f"{module_name(module)} is the only one for {' and for '.join(claims[module])}", True)
                for label, module in alone.items()
                if label not in sure
            }
            if not sure:
                ties = {label: modules for label, modules in candidates.items() if len(modules) > 1}
                return _Node(matched, failing, ties, takes)
            matched |= sure

    def candidates(
        self, matched: dict[str, str], failing: dict[str, _Failure], takes: dict[str, list[Tensor]]
    ) -> dict[str, list[str]]:
        """Return the candidates of each part that is ready; note those without."""
        used = {*matched.values()}
        found = {}
        for label, part in self.parts.items():
            ready = [taken for taken in part.taken if taken.before <= matched.keys()]
            if label in matched or label in failing or not ready:
                continue
            free = [name for name in self.allowed(label) if name not in used]
            modules = [name for name in free if all(self.agree(label, taken, name, takes) for taken in ready)]
            if not modules:
                failing[label] = self.failure(label, ready, free, takes, matched)
            elif unclear := [name for name in modules if self.unclear(label, ready, name, takes)]:
                failing[label] = _Failure(
                    f"x does not show in which order {module_name(unclear[0])} takes the flattened features"
                )
            else:
                found[label] = modules
        return found

    def allowed(self, label: str) -> list[str]:
        """Return the modules that a part could have by kind and shapes, as far as they are not promised."""
        if label in self.fixed:
            return [self.fixed[label]]
        promised = {*self.fixed.values()}
        return [name for name in self.fits[label] if name not in promised]

    def agree(self, label: str, taken: Taken, name: str, takes: dict[str, list[Tensor]]) -> bool:
        """Tell whether a module takes, in one of its calls, what a part takes; note the order of its features."""
        _, way = self.nearest(taken, name, takes)
        if way is None:
            return False
        self.flattened[label, name] = taken.flattened if way == CHANNELS_FIRST_FEATURES else None
        return True

    def nearest(self, taken: Taken, name: str, takes: dict[str, list[Tensor]]) -> tuple[float, str | None]:
        """Return how near a module comes to what a part takes, and by which change of layout if that is agreement."""
        nearest = inf
        for tensor in takes.get(name, []):
            for difference, way in self.differences(taken, tensor, name):
                if difference <= taken.within:
                    return difference, way
                nearest = min(nearest, difference)
        return nearest, None

    def differences(self, taken: Taken, tensor: Tensor, name: str) -> Iterator[tuple[float, str]]:
        """Yield each way to compare what a part takes with what a module takes: (largest difference, way)."""
        for a, b, way in views(taken.value, tensor, self.twin.module(name), taken.flattened, window=True):
            yield largest(a - b), way

    def unclear(self, label: str, ready: list[Taken], name: str, takes: dict[str, list[Tensor]]) -> bool:
        """Tell whether flattened features agree in both orders, although these differ."""
        for taken in ready:
            *spatial, channels = taken.flattened or (1,)
            if prod(spatial) == 1 or channels == 1:
                continue
            for tensor in takes[name]:
                ways = {way for difference, way in self.differences(taken, tensor, name) if difference <= taken.within}
                if len(ways) > 1:
                    return True
        return False

    def check_shared(
        self, matched: dict[str, str], failing: dict[str, _Failure], takes: dict[str, list[Tensor]]
    ) -> None:
        """Note the later calls of a layer that its twin does not repeat."""
        for label, name in matched.items():
            for number, taken in enumerate(self.parts[label].taken[1:], start=2):
                if taken.before <= matched.keys() and self.nearest(taken, name, takes)[1] is None:
                    failing[f"{label}{_CALL}{number})"] = self.failure(label, [taken], [name], takes, matched)

    def failure(
        self,
        label: str,
        ready: list[Taken],
        free: list[str],
        takes: dict[str, list[Tensor]],
        matched: dict[str, str],
    ) -> _Failure:
        """Return why a part has no candidate."""
        promised = {module: other for other, module in self.fixed.items() if other != label}
        for name in self.fits[label]:
            if name not in free and name in promised and all(self.agree(label, taken, name, takes) for taken in ready):
                why = f"{module_name(name)} takes what it takes, but by name it is the twin of {promised[name]}"
                return _Failure(why, True)
        if not free:
            holders = {module: other for other, module in matched.items()} | promised
            taken = ", ".join(
                f"{module_name(name)} is the twin of {holders[name]}" for name in self.fits[label] if name in holders
            )
            return _Failure(f"no module is left that fits: {taken}", True)
        by_name = {name: max(self.nearest(taken, name, takes)[0] for taken in ready) for name in free}
        name = min(by_name, key=by_name.__getitem__)
        within = max(taken.within for taken in ready)
        off = f"{by_name[name]:.2g} off, where rounding explains {within:.1g}"
        called = module_name(name)
        what = f"{called} comes nearest, {off}" if isfinite(by_name[name]) else "none takes a tensor of that shape"
        before = frozenset().union(*(taken.before for taken in ready))
        last = before.difference(*(self.parts[other].before - {other} for other in before))
        places = [f"{other} ({module_name(matched[other])})" for other in self.parts if other in last]
        look = f"{', '.join(places)} and what follows" if places else "what the twin does to its input"
        problem = "no module takes what it takes"
        if label in matched:
            problem = f"{called} does not take what it takes in this call"
        elif label in self.fixed:
            problem = f"by name it is {called}, which does not take what it takes"
        return _Failure(f"{problem}: {what}; look at {look}")

    def explore(self, node: _Node) -> _Found:
        """Try the candidates of the first tie that later layers may decide, and so on; return what remains."""
        label = next((label for label in node.ties if self.has_followers(label, node)), None)
        if label is None or self.trials >= _TRIALS:
            return self.closed(node)
        self.trials += len(node.ties[label])
        children = [self.propagate(node.matched | {label: name}, node.failing) for name in node.ties[label]]
        found: list[_Found] = []
        clean = False
        for group in sorted(self.merged(children), key=lambda group: len(group[0].failing)):
            if clean and len(group[0].failing) > len(node.failing):
                continue
            result = self.explore(group[0])
            for other in group[1:]:
                for part, name in other.matched.items():
                    result.options[part].add(name)
            found.append(result)
            clean |= len(result.failing) <= len(node.failing)
        best = [one for one in found if not any(self.beats(other, one, node) for other in found)]
        return _union(best or found)

    def beats(self, one: _Found, other: _Found, node: _Node) -> bool:
        """Tell whether one trial shows another to be wrong.

        It does if it has twins for layers that the other has none for, and itself fails, if at all, only behind these,
        where the other has not come: so a mistake of the twin farther on does not open what is settled before it.
        """
        ahead = {
            _part_of(label)
            for label in other.failing.keys() - node.failing.keys() - one.failing.keys()
            if None not in one.options[_part_of(label)]
        }
        return bool(ahead) and all(
            label not in other.failing and ahead & self.parts[_part_of(label)].before
            for label in one.failing.keys() - node.failing.keys()
        )

    def has_followers(self, label: str, node: _Node) -> bool:
        """Tell whether layers behind a part are still without a twin."""
        others = (part for other, part in self.parts.items() if other not in node.matched and other != label)
        return any(label in part.before for part in others) or label in self.parts[label].before

    def merged(self, nodes: list[_Node]) -> list[list[_Node]]:
        """Group nodes that differ in nothing that may still matter."""
        groups: list[list[_Node]] = []
        for node in nodes:
            group = next((group for group in groups if self.alike(group[0], node)), None)
            groups.append([node]) if group is None else group.append(node)
        return groups

    def alike(self, a: _Node, b: _Node) -> bool:
        """Tell whether two nodes leave the same layers and modules, and these take the same numbers."""
        used = {*a.matched.values()}
        if (a.matched.keys(), a.failing.keys(), used) != (b.matched.keys(), b.failing.keys(), {*b.matched.values()}):
            return False
        shared = {m for node in (a, b) for label, m in node.matched.items() if len(self.parts[label].taken) > 1}
        return all(
            _close(one, other)
            for name in a.takes
            if name not in used or name in shared
            for one, other in zip(a.takes[name], b.takes.get(name, []), strict=True)
        )

    def closed(self, node: _Node) -> _Found:
        """Return what was found at a node from which the search does not go on."""
        options: dict[str, set[str | None]] = {label: {None} for label in self.parts}
        options |= {label: {module} for label, module in node.matched.items()}
        options |= {label: {*modules} for label, modules in node.ties.items()}
        blocked = {}
        for label, part in self.parts.items():
            if label not in node.matched and label not in node.failing and label not in node.ties:
                culprits = [other for other in self.parts if other in part.before and other not in node.matched]
                blocked[label] = f"lies behind {', '.join(other for other in culprits if other not in blocked)}"
        return _Found(options, node.failing, self.flattened, blocked)


def _part_of(label: str) -> str:
    """Return the part that a failure is about, of one in a later call too."""
    return label.partition(_CALL)[0]


def _union(found: list[_Found]) -> _Found:
    first, *others = found
    options = {
        label: modules.union(*(other.options[label] for other in others)) for label, modules in first.options.items()
    }
    failing, blocked = {}, {}
    for one in found:
        failing |= one.failing
        blocked |= one.blocked
    for label, failure in failing.items():
        # What is so in one trial only may be the fault of the trial.
        always = all(label in one.failing and one.failing[label].structural for one in found)
        failing[label] = failure._replace(structural=always)
    return _Found(options, failing, first.flattened, blocked)


def _close(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors of the twin differ by rounding only, which nobody has measured here."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    return a.shape == b.shape and largest(a - b) <= torch.finfo(a.dtype).eps ** 0.5 * largest(a)


def _faults(parts: dict[str, Part], fits: dict[str, list[str]], twin: TwinCopy) -> Iterator[str]:
    """Yield why no mapping can be complete, before any number is looked at."""
    for label, part in parts.items():
        if not fits[label]:
            shapes = _shapes({name: part.value(name) for name in part.weights})
            kinds = next(iter(part.weights.values()))[1].modules
            kind = " or ".join(kind.__name__.lstrip("_") for kind in kinds)
            yield f"{label}: no module fits; it needs a {kind} with {shapes}"
    fitting = {name for names in fits.values() for name in names}
    called = twin.takes({})
    for name in twin.tensors:
        if name not in fitting:
            yield f"{twin.describe(name)} fits no Keras layer: {_shapes(twin.tensors[name])}"
        elif name not in called:
            yield f"{twin.describe(name)} is never called"


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())


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


def _left_over(found: _Found, twin: TwinCopy) -> list[str]:
    """Return the modules that no layer may have, if every layer has one."""
    if any(None in options for options in found.options.values()):
        return []
    wanted = {name for options in found.options.values() for name in options}
    return [
        f"{twin.describe(name)} is left over: all layers have other twins"
        for name in twin.tensors
        if name not in wanted
    ]


def _equal_names(found: _Found) -> dict[str, str]:
    """Return the module of each undecided layer of which only one candidate has the layer's name."""
    named = {}
    for label, options in found.options.items():
        dotted = label.replace("/", ".")
        alike = [name for name in options if name and f".{name}".endswith(f".{dotted}")]
        if len(options) > 1 and None not in options and len(alike) == 1:
            named[label] = alike[0]
    count = Counter(named.values())
    return {label: name for label, name in named.items() if count[name] == 1}


def _proposal(parts: dict[str, Part], twin: TwinCopy, found: _Found, by_name: dict[str, str]) -> Proposal:
    order = list(twin.tensors)
    decided = {label: next(iter(modules)) for label, modules in found.options.items() if len(modules) == 1}
    owner = {name: parts[label] for label, name in decided.items() if name is not None}
    rows = [
        (part.weights[tensor][0].path if tensor in part.weights else "", f"{name}.{tensor}" if name else tensor)
        for name, tensors in twin.tensors.items()
        if (part := owner.get(name)) is not None
        for tensor in tensors
    ]
    # Numbered as the lines of the file will be.
    mapping = pd.DataFrame(rows, index=pd.RangeIndex(2, 2 + len(rows), name="line"), columns=COLUMNS, dtype=str)
    mapping.attrs["source"] = "proposal"
    undecided = {
        label: sorted((name for name in modules if name is not None), key=order.index)
        for label, modules in found.options.items()
        if len(modules) > 1
    }
    unmatched = {label: failure.why for label, failure in found.failing.items() if label not in undecided}
    unmatched |= {label: why for label, why in found.blocked.items() if found.options[label] == {None}}
    flatten = {}
    for label, modules in found.options.items():
        shapes = {found.flattened.get((label, name)) for name in modules if name is not None}
        if len(shapes) == 1 and (shape := shapes.pop()):
            flatten[parts[label].layer.name] = shape
    return Proposal(mapping, undecided, unmatched, flatten, by_name)

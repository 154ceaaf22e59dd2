"""The search for a mapping: fill a copy of the twin layer by layer, and see which module takes what.

Each round runs the copy once and notes what its modules take. A layer is ready when all layers before it have their
twins; a module that takes the same numbers is a candidate, and if it is the only one, it is the twin. When nothing but
ties is left, each candidate is tried and the rounds go on from there; a trial that leaves a layer without a candidate,
where another trial has one, was wrong. Trials that cannot be told apart by anything that follows, such as two
convolutions that are added, are merged, so that ties one after another do not multiply.

Why this never guesses: if the twin is right, the module that is really a ready layer's twin takes what the layer takes,
so it is among the candidates, and one candidate alone is the right one.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import inf, prod
from typing import NamedTuple

from parity.models.alignment import CHANNELS_FIRST_FEATURES, alignments, largest
from parity.proposal.failures import Failure, module_name, none_agrees, none_left, promised_to_another
from parity.proposal.layers import Part, Taken
from parity.proposal.twin import TwinCopy

import torch
from torch import Tensor

# How many candidates to try in all before ties are left to the reader.
_TRIALS = 64
# What follows the part in the name of a failure in a later call.
_CALL = " (call "


class _Node(NamedTuple):
    """A state of the search in which every part that is ready has several candidates.

    Attributes:
        matched: The module of each part that has one.
        failing: The parts, and later calls of shared ones, that no module is right for.
        ties: The candidates of each part that has several.
        takes: What each module takes.
    """

    matched: dict[str, str]
    failing: dict[str, Failure]
    ties: dict[str, list[str]]
    takes: dict[str, list[Tensor]]


class Found(NamedTuple):
    """What came of a search.

    Attributes:
        options: The modules that each part may have; None among them if it may have none.
        failing: As in ``_Node``.
        flattened: By part and module: the shape of the features that the twin has flattened channels first.
        blocked: Why parts could not be reached.
    """

    options: dict[str, set[str | None]]
    failing: dict[str, Failure]
    flattened: dict[tuple[str, str], tuple[int, ...] | None]
    blocked: dict[str, str]


class Seen(NamedTuple):
    """What is known in one round.

    Attributes:
        matched: The module of each part that has one.
        takes: What each module takes.
    """

    matched: dict[str, str]
    takes: dict[str, list[Tensor]]


class Search:
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

    def run(self) -> Found:
        """Search, and return what was found."""
        return self.explore(self.propagate({}, {}))

    def propagate(self, matched: dict[str, str], failing: dict[str, Failure]) -> _Node:
        """Match what has one candidate, until there is no more."""
        matched, failing = dict(matched), dict(failing)
        while True:
            filled = {m: (self.parts[label], self.flattened.get((label, m))) for label, m in matched.items()}
            takes = self.twin.takes(filled)
            seen = Seen(matched, takes)
            self.check_shared(seen, failing)
            candidates = self.candidates(seen, failing)
            alone = {label: modules[0] for label, modules in candidates.items() if len(modules) == 1}
            claims = defaultdict(list)
            for label, module in alone.items():
                claims[module].append(label)
            sure = {labels[0]: module for module, labels in claims.items() if len(labels) == 1}
            failing |= {
                label: Failure(f"{module_name(module)} is the only one for {' and for '.join(claims[module])}", True)
                for label, module in alone.items()
                if label not in sure
            }
            if not sure:
                ties = {label: modules for label, modules in candidates.items() if len(modules) > 1}
                return _Node(matched, failing, ties, takes)
            matched |= sure

    def candidates(self, seen: Seen, failing: dict[str, Failure]) -> dict[str, list[str]]:
        """Return the candidates of each part that is ready; note those without."""
        matched, takes = seen
        used = {*matched.values()}
        found = {}
        for label, part in self.parts.items():
            ready = [taken for taken in part.taken if taken.before <= matched.keys()]
            if label in matched or label in failing or not ready:
                continue
            free = [name for name in self.allowed(label) if name not in used]
            modules = [name for name in free if all(self.agree(label, taken, name, takes) for taken in ready)]
            if not modules:
                failing[label] = self.failure(label, ready, free, seen)
                continue
            unclear = [name for name in modules if self.unclear(label, ready, name, takes)]
            if unclear:
                why = f"x does not show in which order {module_name(unclear[0])} takes the flattened features"
                failing[label] = Failure(why)
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
                if difference <= taken.tolerance:
                    return difference, way
                nearest = min(nearest, difference)
        return nearest, None

    def differences(self, taken: Taken, tensor: Tensor, name: str) -> Iterator[tuple[float, str]]:
        """Yield each way to compare what a part takes with what a module takes: (largest difference, note)."""
        for a, b, note in alignments(taken.value, tensor, self.twin.module(name), taken.flattened, window=True):
            yield largest(a - b), note

    def unclear(self, label: str, ready: list[Taken], name: str, takes: dict[str, list[Tensor]]) -> bool:
        """Tell whether flattened features agree in both orders, although these differ."""
        for taken in ready:
            *spatial, channels = taken.flattened or (1,)
            if prod(spatial) == 1 or channels == 1:
                continue
            for tensor in takes[name]:
                ways = {
                    way for difference, way in self.differences(taken, tensor, name) if difference <= taken.tolerance
                }
                if len(ways) > 1:
                    return True
        return False

    def check_shared(self, seen: Seen, failing: dict[str, Failure]) -> None:
        """Note the later calls of a layer that its twin does not repeat."""
        for label, name in seen.matched.items():
            for number, taken in enumerate(self.parts[label].taken[1:], start=2):
                if taken.before <= seen.matched.keys() and self.nearest(taken, name, seen.takes)[1] is None:
                    failing[f"{label}{_CALL}{number})"] = self.failure(label, [taken], [name], seen)

    def failure(self, label: str, ready: list[Taken], free: list[str], seen: Seen) -> Failure:
        """Return why a part has no candidate.

        Args:
            label: The part.
            ready: Its calls that all parts before are matched for.
            free: The modules that it could have.
            seen: What is known so far.
        """
        promised = {module: other for other, module in self.fixed.items() if other != label}
        for name in self.fits[label]:
            if name in free or name not in promised:
                continue
            if all(self.agree(label, taken, name, seen.takes) for taken in ready):
                return promised_to_another(name, promised[name])
        if not free:
            holders = {module: other for other, module in seen.matched.items()} | promised
            return none_left({name: holders[name] for name in self.fits[label] if name in holders})
        nearest = {name: max(self.nearest(taken, name, seen.takes)[0] for taken in ready) for name in free}
        before = frozenset().union(*(taken.before for taken in ready))
        last = before.difference(*(self.parts[other].before - {other} for other in before))
        look = {other: seen.matched[other] for other in self.parts if other in last}
        known = "in this call" if label in seen.matched else "by name" if label in self.fixed else ""
        return none_agrees(nearest, max(taken.tolerance for taken in ready), look, known)

    def explore(self, node: _Node) -> Found:
        """Try the candidates of the first tie that later layers may decide, and so on; return what remains."""
        label = next((label for label in node.ties if self.has_followers(label, node)), None)
        if label is None or self.trials >= _TRIALS:
            return self.closed(node)
        self.trials += len(node.ties[label])
        children = [self.propagate(node.matched | {label: name}, node.failing) for name in node.ties[label]]
        found: list[Found] = []
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
        return union(best or found)

    def beats(self, one: Found, other: Found, node: _Node) -> bool:
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
            if group is None:
                groups.append([node])
            else:
                group.append(node)
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

    def closed(self, node: _Node) -> Found:
        """Return what was found at a node from which the search does not go on."""
        options: dict[str, set[str | None]] = {label: {None} for label in self.parts}
        options |= {label: {module} for label, module in node.matched.items()}
        options |= {label: {*modules} for label, modules in node.ties.items()}
        blocked = {}
        for label, part in self.parts.items():
            if label not in node.matched and label not in node.failing and label not in node.ties:
                culprits = [other for other in self.parts if other in part.before and other not in node.matched]
                blocked[label] = f"lies behind {', '.join(other for other in culprits if other not in blocked)}"
        return Found(options, node.failing, self.flattened, blocked)


def _part_of(label: str) -> str:
    """Return the part that a failure is about, of one in a later call too."""
    return label.partition(_CALL)[0]


def union(found: list[Found]) -> Found:
    """Return what remains of several trials that nothing has shown to be wrong."""
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
    return Found(options, failing, first.flattened, blocked)


def _close(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors of the twin differ by rounding only, which nobody has measured here."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    return a.shape == b.shape and largest(a - b) <= torch.finfo(a.dtype).eps ** 0.5 * largest(a)

"""The search for a mapping: run a copy of the twin, fill each module when it is called, and go on.

When a module is called, its input is compared with what the layers take that are ready. A layer is ready when all
layers before it have their twins. If one layer takes the same numbers, it fills the module, which then runs: so one run
may fill all modules. After the run it is seen whether another module has taken the same numbers, too. If it has, or if
several layers take what the module takes, there is a tie: each candidate is tried, and the search goes on from there. A
trial is wrong if it leaves a layer without a candidate that has one in another trial. Trials are merged if no later
layer can tell them apart, as with two convolutions that are added. So ties one after another do not multiply.

Why this never guesses: if the twin is right, the true twin of a ready layer takes the same numbers as the layer. So it
is among the candidates, and if there is only one candidate, that is the true twin.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import inf, prod
from typing import NamedTuple

from parity.models.alignment import CHANNELS_FIRST_FEATURES, Aligned, alignments, largest
from parity.models.sequences import Seen
from parity.proposal.failures import Failure, module_name, none_agrees, none_left, promised_to_another
from parity.proposal.found import CALL, Found, Round, is_close, part_of, union
from parity.proposal.parts import Part, PartInput
from parity.proposal.twin import Content, TwinCopy

from torch import Tensor

# The most candidates that are tried in all, at least and for each part. The ties that are left then are undecided.
_TRIALS, _TRIALS_EACH = 64, 4


class _Node(NamedTuple):
    """A state of the search in which every part that is ready has several candidates.

    Attributes:
        matched: The module of each part that has one.
        failing: The parts, and later calls of shared parts, for which no module is right.
        ties: The candidates of each part that has several.
        module_inputs: The input of each module, call by call.
    """

    matched: dict[str, str]
    failing: dict[str, Failure]
    ties: dict[str, list[str]]
    module_inputs: dict[str, list[Tensor]]


class Search:
    """Finds the module of each part.

    Args:
        parts: The parts, in the order of the data flow.
        fits: The modules that each part could have by kind and shapes.
        twin: The copy of the twin.
        fixed: The modules of some parts, given by name.
        absent: The parts that have no module, but what lies behind them may be found.
    """

    def __init__(
        self,
        parts: dict[str, Part],
        fits: dict[str, list[str]],
        twin: TwinCopy,
        fixed: Mapping[str, str],
        absent: Collection[str] = (),
    ) -> None:
        self.parts, self.fits, self.twin, self.fixed = parts, fits, twin, fixed
        self.absent = frozenset(absent)
        self.flattened: dict[tuple[str, str], tuple[int, ...] | None] = {}
        self.trials = 0
        self.parts_of: dict[str, list[str]] = defaultdict(list)
        for label in parts:
            for name in self.allowed(label):
                self.parts_of[name].append(label)

    def run(self, matched: Mapping[str, str] | None = None, failing: Mapping[str, Failure] | None = None) -> Found:
        """Search, and return what was found.

        Args:
            matched: The parts that have a module already.
            failing: The parts that have failed already.
        """
        return self.explore(self.propagate(matched or {}, failing or {}))

    def is_ready(self, part_input: PartInput, matched: Collection[str]) -> bool:
        """Tell whether all parts before an input of a part have their modules, but for those that have none."""
        return not part_input.before.difference(matched, self.absent)

    def propagate(self, matched: Mapping[str, str], failing: Mapping[str, Failure]) -> _Node:
        """Match every part that has a single candidate, round by round, until none has.

        Args:
            matched: The parts that have a module already.
            failing: The parts that have failed already.
        """
        matched, failing = dict(matched), dict(failing)
        barred: set[str] = set()
        while True:
            current, again = self.run_twin(matched, failing, barred)
            matched = current.matched
            if again:
                continue
            self.check_shared(current, failing)
            candidates = self.candidates(current, failing)
            single = {label: modules[0] for label, modules in candidates.items() if len(modules) == 1}
            claims = defaultdict(list)
            for label, module in single.items():
                claims[module].append(label)
            certain = {labels[0]: module for module, labels in claims.items() if len(labels) == 1}
            failing |= {
                label: Failure(f"{module_name(module)} is the only one for {' and for '.join(claims[module])}", True)
                for label, module in single.items()
                if label not in certain
            }
            if not certain:
                ties = {label: modules for label, modules in candidates.items() if len(modules) > 1}
                return _Node(matched, failing, ties, current.module_inputs)
            matched = matched | certain

    def run_twin(
        self, matched: Mapping[str, str], failing: Mapping[str, Failure], barred: set[str]
    ) -> tuple[Round, bool]:
        """Run the copy of the twin, and fill modules while it runs.

        Args:
            matched: The parts that have a module already.
            failing: The parts that have failed.
            barred: The parts that no module gets while the twin runs, because several modules take what they take. More
                are added.

        Returns:
            What is matched now, with the inputs of the modules. And whether the twin has to run again, because these
            are not what the modules take if all that is matched is filled.
        """
        known = dict(matched)
        ready_inputs: dict[str, list[PartInput]] = {}  # of the parts that get their modules in this run, in its order
        late = False

        def choose(name: str, call: int, tensor: Tensor) -> Content | None:
            nonlocal late
            ready = {
                label: [one for one in self.parts[label].inputs if self.is_ready(one, known)]
                for label in self.parts_of[name]
                if not (label in known or label in failing or label in barred or label in self.absent)
            }
            here = Round(known, {name: [tensor]})
            taking = [
                label for label, inputs in ready.items() if any(self.takes(label, one, name, here) for one in inputs)
            ]
            if len(taking) != 1 or self.is_order_unclear(ready[taking[0]], name, here):
                return None
            known[taking[0]] = name
            ready_inputs[taking[0]] = ready[taking[0]]
            late |= call > 1
            return self.content(taking[0], name)

        filled = {name: self.content(label, name) for label, name in matched.items()}
        current = Round(known, self.twin.inputs_of_modules(filled, choose))
        confirmed = dict(matched)
        for label, inputs in ready_inputs.items():
            free = [name for name in self.allowed(label) if name not in confirmed.values()]
            if [name for name in free if self.takes_all(label, inputs, name, current)] != [known[label]]:
                barred.add(label)
                return current._replace(matched=confirmed), True
            confirmed[label] = known[label]
        return current, late

    def candidates(self, current: Round, failing: dict[str, Failure]) -> dict[str, list[str]]:
        """Return the candidates of each part that is ready; add the parts without candidates to ``failing``."""
        matched = current.matched
        used = {*matched.values()}
        found = {}
        for label, part in self.parts.items():
            ready = [part_input for part_input in part.inputs if self.is_ready(part_input, matched)]
            if label in matched or label in failing or label in self.absent or not ready:
                continue
            free = [name for name in self.allowed(label) if name not in used]
            modules = [name for name in free if self.takes_all(label, ready, name, current)]
            if not modules:
                failing[label] = self.failure(label, ready, free, current)
                continue
            unclear = [name for name in modules if self.is_order_unclear(ready, name, current)]
            if unclear:
                why = f"x does not show in which order {module_name(unclear[0])} takes the flattened features"
                failing[label] = Failure(why)
            else:
                found[label] = modules
        return found

    def allowed(self, label: str) -> list[str]:
        """Return the modules that a part may have by kind and shapes, without those fixed for other parts."""
        if label in self.fixed:
            return [self.fixed[label]]
        promised = {*self.fixed.values()}
        return [name for name in self.fits[label] if name not in promised]

    def takes_all(self, label: str, ready: list[PartInput], name: str, current: Round) -> bool:
        """Tell whether a module takes the same inputs as a part, each in one of its calls.

        It also stores the order in which the module takes flattened features.
        """
        return all(self.takes(label, part_input, name, current) for part_input in ready)

    def takes(self, label: str, part_input: PartInput, name: str, current: Round) -> bool:
        """Tell whether a module takes one input of a part; store the order in which it takes flattened features."""
        note = self.note_on(part_input, name, current)
        if note is not None:
            self.flattened[label, name] = part_input.flattened if note == CHANNELS_FIRST_FEATURES else None
        return note is not None

    def content(self, label: str, name: str) -> Content:
        """Return what to fill a module with: a part, and the shape of features that it takes channels first."""
        return self.parts[label], self.flattened.get((label, name))

    def note_on(self, part_input: PartInput, name: str, current: Round) -> str | None:
        """Return how the input of a part and the same numbers that a module takes are aligned, None if it takes none.

        Args:
            part_input: The input of the part.
            name: The module.
            current: The current round.
        """
        for tensor in current.module_inputs.get(name, []):
            for value, twin, note in self.aligned(part_input, tensor, name):
                # Most of what differs, differs in the first channel.
                first = value.ndim < 2 or largest(value[..., 0] - twin[..., 0]) <= part_input.tolerance
                if first and largest(value - twin) <= part_input.tolerance:
                    return note
        return None

    def nearest(self, part_input: PartInput, name: str, current: Round) -> float:
        """Return the difference between the input of a part and the nearest of a module's."""
        tensors = current.module_inputs.get(name, [])
        return min((d for tensor in tensors for d, _ in self.differences(part_input, tensor, name)), default=inf)

    def aligned(self, part_input: PartInput, tensor: Tensor, name: str) -> Iterator[Aligned]:
        """Yield each alignment of a part's and a module's input."""
        value, steps = part_input.value, self.twin.steps.get(tensor)
        if steps is not None and value.ndim == 3:
            value = Seen(tensor, steps).value(value[:, : steps.shape[1]])
        return alignments(value, tensor, self.twin.module(name), part_input.flattened, window=True)

    def differences(self, part_input: PartInput, tensor: Tensor, name: str) -> Iterator[tuple[float, str]]:
        """Yield for each alignment of a part's and a module's input: the largest difference, and the note."""
        for value, twin, note in self.aligned(part_input, tensor, name):
            yield largest(value - twin), note

    def is_order_unclear(self, ready: list[PartInput], name: str, current: Round) -> bool:
        """Tell whether flattened features agree in both orders, although the orders differ."""
        for part_input in ready:
            *spatial, channels = part_input.flattened or (1,)
            if prod(spatial) == 1 or channels == 1:
                continue
            for tensor in current.module_inputs[name]:
                differences = self.differences(part_input, tensor, name)
                notes = {note for difference, note in differences if difference <= part_input.tolerance}
                if len(notes) > 1:
                    return True
        return False

    def check_shared(self, current: Round, failing: dict[str, Failure]) -> None:
        """Add to ``failing`` each later call of a part that its module does not repeat."""
        for label, name in current.matched.items():
            if name not in self.twin.tensors:
                continue  # it fills single tensors
            for number, part_input in enumerate(self.parts[label].inputs[1:], start=2):
                if self.is_ready(part_input, current.matched) and self.note_on(part_input, name, current) is None:
                    failing[f"{label}{CALL}{number})"] = self.failure(label, [part_input], [name], current)

    def failure(self, label: str, ready: list[PartInput], free: list[str], current: Round) -> Failure:
        """Return why a part has no candidate.

        Args:
            label: The part.
            ready: Its inputs that depend on matched parts only.
            free: The modules that it may have.
            current: The current round.
        """
        promised = {module: other for other, module in self.fixed.items() if other != label}
        for name in self.fits[label]:
            if name in free or name not in promised:
                continue
            if self.takes_all(label, ready, name, current):
                return promised_to_another(name, promised[name])
        if not free:
            holders = {module: other for other, module in current.matched.items()} | promised
            return none_left({name: holders[name] for name in self.fits[label] if name in holders})
        nearest = {name: max(self.nearest(part_input, name, current) for part_input in ready) for name in free}
        look = {other: current.matched[other] for other in self.just_before(ready) if other in current.matched}
        known = ""
        if label in current.matched:
            known = "in this call"
        elif label in self.fixed:
            known = "by name"
        failure = none_agrees(nearest, max(part_input.tolerance for part_input in ready), look, known)
        taken = {tensor.numel() for name in free for tensor in current.module_inputs.get(name, [])}
        return failure._replace(other_sizes=all(part_input.value.numel() not in taken for part_input in ready))

    def just_before(self, inputs: Iterable[PartInput]) -> list[str]:
        """Return the last parts before some inputs, with no part between."""
        before = frozenset[str]().union(*(part_input.before for part_input in inputs))
        last = before.difference(*(self.parts[other].before - {other} for other in before))
        return [label for label in self.parts if label in last]

    def explore(self, node: _Node) -> Found:
        """Try each candidate of the first tie that later layers may decide, and explore on; return what remains."""
        label = next((label for label in node.ties if self.has_followers(label, node)), None)
        if label is None or self.trials >= max(_TRIALS, _TRIALS_EACH * len(self.parts)):
            return self.result_at(node)
        self.trials += len(node.ties[label])
        children = [self.propagate(node.matched | {label: name}, node.failing) for name in node.ties[label]]
        trials: list[Found] = []
        one_is_clean = False
        for group in sorted(self.merged(children), key=lambda group: len(group[0].failing)):
            if one_is_clean and len(group[0].failing) > len(node.failing):
                continue
            trial = self.explore(group[0])
            for other in group[1:]:
                for part, name in other.matched.items():
                    trial.options[part].add(name)
            trials.append(trial)
            one_is_clean |= len(trial.failing) <= len(node.failing)
        best = [trial for trial in trials if not any(self.disproves(other, trial, node) for other in trials)]
        return union(best or trials)

    def disproves(self, better: Found, worse: Found, node: _Node) -> bool:
        """Tell whether one trial shows that another is wrong.

        It does if it has twins for layers that fail in the other, and if all its own failures come after these layers,
        where the other trial has not arrived. So a mistake farther on in the twin does not make earlier layers
        undecided.
        """
        gained = set()
        for label in worse.failing.keys() - node.failing.keys() - better.failing.keys():
            if None not in better.options[part_of(label)]:
                gained.add(part_of(label))
        return bool(gained) and all(
            label not in worse.failing and gained & self.parts[part_of(label)].before
            for label in better.failing.keys() - node.failing.keys()
        )

    def has_followers(self, label: str, node: _Node) -> bool:
        """Tell whether layers that come after a part still have no twin."""
        others = (part for other, part in self.parts.items() if other not in node.matched and other != label)
        return any(label in part.before for part in others) or label in self.parts[label].before

    def merged(self, nodes: list[_Node]) -> list[list[_Node]]:
        """Group nodes that no later layer can tell apart."""
        groups: list[list[_Node]] = []
        for node in nodes:
            group = next((group for group in groups if self.are_alike(group[0], node)), None)
            if group is None:
                groups.append([node])
            else:
                group.append(node)
        return groups

    def are_alike(self, a: _Node, b: _Node) -> bool:
        """Tell whether two nodes have the same layers and modules left, and these modules take the same numbers."""
        used = {*a.matched.values()}
        if (a.matched.keys(), a.failing.keys(), used) != (b.matched.keys(), b.failing.keys(), {*b.matched.values()}):
            return False
        shared = {m for node in (a, b) for label, m in node.matched.items() if len(self.parts[label].inputs) > 1}
        for name, tensors in a.module_inputs.items():
            if name not in used or name in shared:
                pairs = zip(tensors, b.module_inputs.get(name, []), strict=True)
                if not all(is_close(*pair) for pair in pairs):
                    return False
        return True

    def result_at(self, node: _Node) -> Found:
        """Return the result of a search that ends at a node."""
        options: dict[str, set[str | None]] = {label: {None} for label in self.parts}
        options |= {label: {module} for label, module in node.matched.items()}
        options |= {label: {*modules} for label, modules in node.ties.items()}
        blocked = {}
        for label, part in self.parts.items():
            if label not in node.matched and label not in node.failing and label not in node.ties:
                unmatched = [other for other in self.parts if other in part.before and other not in node.matched]
                blocked[label] = f"lies behind {', '.join(other for other in unmatched if other not in blocked)}"
        return Found(options, node.failing, self.flattened, blocked)

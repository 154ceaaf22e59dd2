"""What lies behind a mistake of the twin: the search goes on with what Keras's layers take and return.

The first search has come to layers whose numbers no module takes. Here it goes on, in two ways. A module that takes
what its layer takes and returns something else returns Keras's output instead. Where all modules before a layer return
what they should, the mistake is in a function between them: then a module that fits the layer, the next one that the
twin calls, is given what Keras's layer takes. So what lies behind is told apart by numbers again.

Rows that are found so are right if the twin has no other mistakes than those that were passed.
"""

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from parity.errors import ParityError
from parity.proposal.failures import Failure, returns_another
from parity.proposal.forcing import Forcing
from parity.proposal.found import Found, call_of, equal_names, part_of
from parity.proposal.outputs import Output
from parity.proposal.parts import PartInput
from parity.proposal.search import Search


class Onward(NamedTuple):
    """What was found behind mistakes.

    Attributes:
        found: What the last search has found.
        parts_at: For each layer at which the twin parts: how.
        behind: The parts whose modules were found only because a mistake was passed.
        stands: For parts without a module: the module that takes what they take, if there is one.
        by_name: The parts behind mistakes that numbers could not decide and equal names did, with their modules.
    """

    found: Found
    parts_at: dict[str, str]
    behind: list[str]
    stands: dict[str, str]
    by_name: dict[str, str]


def go_on(search: Search, first: Found, outputs: dict[str, list[list[Output]]]) -> Onward:
    """Search on behind the places where a search has failed.

    Args:
        search: The search.
        first: What it has found.
        outputs: What each part returns in each of its calls.
    """
    return _Onward(search, first, outputs).run()


class _Onward:
    """Passes one mistake after another; each round passes at least one, so there are not many more rounds than parts.

    Attributes:
        absent: The parts that have no module.
        fed: Why each part, or a later call of it, is given its input by hand.
        passed: The parts that have failed and were seen to, and later calls.
        sized: For each part that has failed behind modules that return a border: these, which are cut to size.
    """

    def __init__(self, search: Search, first: Found, outputs: dict[str, list[list[Output]]]) -> None:
        self.search, self.first = search, first
        self.parts, self.fits, self.twin = search.parts, search.fits, search.twin
        self.absent = {label for label in self.parts if not self.fits[label]}
        self.fed: dict[str, Failure] = {}
        self.passed: set[str] = set()
        self.sized: dict[str, set[str]] = {}
        followers: dict[str, set[str]] = {label: set() for label in self.parts}
        for label, part in self.parts.items():
            for other in search.just_before(part.inputs):
                followers[other].add(label)
        right = first.decided.keys() - {part_of(label) for label in first.failing}
        # Where all layers behind a part take the right numbers, its module does not part from it.
        checked = {label for label, others in followers.items() if others and not others <= right}
        self.forcing = Forcing(self.parts, self.fits, outputs, checked)
        for label in self.absent:
            self.forcing.absent[label] = self.parts[label].inputs
        self.twin.force(self.forcing, self.may_stand())

    def may_stand(self) -> list[str]:
        """Return the modules that may stand for a part without a module.

        A module with modules in it may if no part fits any of these, and if it has as many weights as the layer: else
        it may be more than the layer.
        """
        fitting = {name for names in self.fits.values() for name in names}
        sizes = {sum(prod(v.shape) for v in self.parts[label].layer.weights) for label in self.absent}
        found = []
        for name, module in self.twin.modules.items():
            within = {id(one) for one in module.modules()}
            inside = [other for other in self.twin.tensors if id(self.twin.modules[other]) in within]
            size = sum(tensor.numel() for other in inside for tensor in self.twin.tensors[other].values())
            if inside == [name] or (inside and size in sizes and not fitting & set(inside)):
                found.append(name)
        return found

    def run(self) -> Onward:
        """Search until no mistake is left that can be passed."""
        known = self.first.decided
        while True:
            self.forcing.begin_round()
            search = Search(self.parts, self.fits, self.twin, self.search.fixed, self.absent)
            try:
                found = search.run(known)
            except ParityError:
                if not self.forcing.trail:
                    raise
                self.forcing.exempt.add(self.forcing.trail[-1])
                continue
            first = [label for label in found.failing if not self.follows(label, found.failing)]
            passed = [self.passes(label, found) for label in first or found.failing]
            if not any(passed):
                return self.result(*self.by_name(found))
            known = found.decided

    def by_name(self, found: Found) -> tuple[Found, dict[str, str]]:
        """Return what is found if equal names decide what numbers cannot, and the parts that these decide."""
        named = {label: name for label, name in equal_names(found).items() if self.first.options[label] == {None}}
        if named:
            search = Search(self.parts, self.fits, self.twin, {**self.search.fixed, **named}, self.absent)
            again = search.run({label: name for label, name in found.decided.items() if label not in named})
            if len(again.failing) <= len(found.failing):
                return again, named
        return found, {}

    def follows(self, label: str, failing: Iterable[str]) -> bool:
        """Tell whether a part that has failed, or a later call of it, lies behind another that has."""
        part, number = part_of(label), call_of(label)
        before = frozenset[str]().union(*(one.before for one in self.parts[part].inputs[number - 1 :]))
        others = (other for other in failing if part_of(other) in before and other not in self.passed)
        return any(part_of(other) != part or call_of(other) < number for other in others)

    def passes(self, label: str, found: Found) -> bool:
        """Pass the mistake at which a part, or a later call of it, has failed; tell whether anything was passed."""
        self.passed.add(label)
        part, number = part_of(label), call_of(label)
        inputs, failure = self.parts[part].inputs[number - 1 :], found.failing[label]
        if label not in self.sized:
            self.sized[label] = self.with_borders(inputs)
            self.forcing.sizes |= self.sized[label]
            if self.sized[label]:
                return True
        if self.sized[label] and failure.other_sizes:  # the border was right: the twin cuts it off later
            self.forcing.sizes -= self.sized[label]
            self.forcing.exempt |= self.sized[label]
            self.sized[label] = set()
            return True
        name = self.module_for(label, found)
        if name is not None and failure.numbers and label not in self.fed:
            self.fed[label] = failure
            self.forcing.fed[name, number] = inputs[0]
            return True
        if label != part or part in self.absent or found.options[part] != {None}:
            return False
        self.absent.add(part)
        self.forcing.absent[part] = inputs
        return True

    def with_borders(self, inputs: Iterable[PartInput]) -> set[str]:
        """Return the parts before some inputs whose modules were the first to return a border that Keras's have not."""
        found: set[str] = set()
        bordered = {label for label in self.forcing.bordered - self.forcing.sizes if label not in self.forcing.exempt}
        behind = [label for label in self.search.just_before(inputs) if label in bordered]
        while behind:
            label = behind.pop()
            before = [other for other in self.search.just_before(self.parts[label].inputs) if other in bordered]
            found |= set() if before else {label}
            bordered.discard(label)
            behind += before
        return found

    def module_for(self, label: str, found: Found) -> str | None:
        """Return the module that is given what a part takes: that of its name, else the next that the twin calls."""
        if label != part_of(label):
            return found.decided.get(part_of(label))
        used = {name for options in found.options.values() for name in options} | {name for name, _ in self.forcing.fed}
        used |= {name for name, _ in self.forcing.standing}
        order = {name: index for index, name in enumerate(self.twin.calls)}
        free = [name for name in order if name in self.search.allowed(label) and name not in used]
        dotted = label.replace("/", ".")
        alike = [name for name in free if f".{name}".endswith(f".{dotted}")]
        if len(alike) == 1:
            return alike[0]
        before = [found.decided.get(other) for other in self.search.just_before(self.parts[label].inputs)]
        last = max((order[name] for name in before if name in order), default=-1)
        return next((name for name in free if order[name] > last), None)

    def result(self, found: Found, by_name: dict[str, str]) -> Onward:
        """Return what was found in all."""
        options = {label: one if one != {None} else found.options[label] for label, one in self.first.options.items()}
        open_ = {label for label, one in options.items() if one == {None}}
        failing = {label: why for label, why in (found.failing | self.first.failing).items() if label in open_}
        blocked = {label: why for label, why in self.first.blocked.items() if label in open_}
        merged = Found(options, failing, self.first.flattened | found.flattened, blocked)
        places = {}
        for label, parting in self.forcing.partings.items():
            if found.decided.get(label) == parting.module:
                places[label] = returns_another(parting.module, parting.difference, parting.tolerance, parting.shapes)
        # A later call whose module takes something else, and is not called so often, cannot be given its input.
        later = {label: failure for label, failure in found.failing.items() if label != part_of(label)}
        for label, failure in (later | self.fed).items():
            # What lies behind a layer without a module is given what it takes although nothing is wrong there.
            if not self.absent & set(self.search.just_before(self.parts[part_of(label)].inputs)):
                places[label] = failure.why
        order = {label: index for index, label in enumerate(self.parts)}
        parts_at = {label: places[label] for label in sorted(places, key=lambda label: order[part_of(label)])}
        passed = {*self.forcing.partings, *map(part_of, self.fed)}
        behind = [
            label
            for label, name in merged.decided.items()
            if label not in self.first.decided and (label in self.fed or passed & self.parts[label].before)
        ]
        stands = {label: name for (name, _), (label, _) in reversed(self.forcing.standing.items())}
        return Onward(merged, parts_at, behind, stands, by_name)

"""Which call of the PyTorch twin plays the part of which Keras layer.

Layers with weights are paired by the mapping. Layers without are paired by their place in the graph: the call from
whose result a paired neighbour takes its input, or that takes a paired neighbour's output, if it is of a fitting kind.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from parity.models.keras_graph import Graph, Step, StepIndex, TensorId
from parity.models.torch_calls import Call
from parity.tracing.op_families import (
    ARITHMETIC,
    FAMILIES,
    IDENTITIES,
    POOLINGS,
    SCALES,
    WHOLE_FAMILIES,
    may_be_anything,
    may_be_twin,
    names_of_call,
    names_of_step,
    same_numbers,
)

from torch import nn


class Spot(NamedTuple):
    """A tensor as the twin hands it over: an input ("in") or output ("out") of one of its calls, by position.

    The call after the last stands for the twin's return: its inputs are the twin's outputs.
    """

    call: int
    when: str
    position: int


class Pairing(NamedTuple):
    """The twin of each Keras layer, and where each Keras tensor can be seen in the twin.

    Attributes:
        twins: For a step: its first and last call in the twin.
        inputs: For a step and the position of one of its inputs: that input as the twin's call takes it. The step after
            the last is the model's return: its inputs are the model's outputs.
        outputs: For a Keras tensor: the same tensor as the twin's call returns it.
        observed: For a Keras tensor that no call is known for certain to return: where its consumers take it.
        guessed: Keras tensors whose call may be another. It was found by what it takes only, and may be the
            first of several that do together what the layer does, as in ``(a + b) / 2``. Or it was found by what takes
            its result, a module of the reader's own that may do what several layers do. Or it is arithmetic, which may
            be done in another order.
    """

    twins: dict[StepIndex, tuple[int, int]]
    inputs: dict[tuple[StepIndex, int], Spot]
    outputs: dict[TensorId, Spot]
    observed: dict[TensorId, list[Spot]]
    guessed: set[TensorId]


def pair(
    graph: Graph,
    calls: Sequence[Call],
    returned: Sequence[int],
    modules: dict[int, list[nn.Module]],
) -> Pairing:
    """Pair the steps of a Keras model with the calls of its twin.

    Args:
        graph: The Keras model.
        calls: What the twin called.
        returned: Numbers of the twin's outputs.
        modules: For the identity of a Keras layer: the modules that hold its weights, the first to be called first.
    """
    return _Pairer(graph, calls, returned, modules).pair()


class _Pairer:
    """The two graphs while they are being paired."""

    def __init__(
        self, graph: Graph, calls: Sequence[Call], returned: Sequence[int], modules: dict[int, list[nn.Module]]
    ) -> None:
        self.steps = graph.steps
        self.calls = [*calls, Call("return", None, tuple(returned), (), ())]
        self.modules = modules
        self.producers, self.consumers = graph.producers(), graph.consumers()
        self.made_by = {number: index for index, call in enumerate(self.calls) for number in call.outputs}
        held = {id(module) for several in modules.values() for module in several}
        self.with_weights = {index for index, call in enumerate(self.calls) if id(call.module) in held}
        self.used = self.with_weights | {len(calls)}
        # Calls of which it is not clear that they take what the layer takes whose output they return.
        others = [(index, call) for index, call in enumerate(calls) if index not in self.with_weights]
        self.unclear = {index for index, call in others if may_be_anything(call)}
        self.result = Pairing({}, {}, {}, {}, set())
        # The calls of modules with weights that each tensor comes from directly; -1, -2, ... stand for the inputs. None
        # if a layer that a Keras tensor comes from has no such call.
        self.keras_sources: dict[TensorId, frozenset[int] | None] = {}
        self.keras_sources |= {number: frozenset({-1 - position}) for position, number in enumerate(graph.inputs)}
        self.twin_sources: dict[int, frozenset[int]] = {-1: frozenset()}
        for index, call in enumerate(self.calls):
            sources = frozenset({index}) if index in self.with_weights else self.sources_of(*call.inputs)
            self.twin_sources.update(dict.fromkeys(call.outputs, sources))
        for slot in range(min(len(graph.outputs), len(returned))):
            self.result.inputs[len(graph.steps), slot] = Spot(len(calls), "in", slot)

    def pair(self) -> Pairing:
        self.pair_by_modules()
        for index in reversed(range(len(self.steps))):
            if self.is_open(index):
                self.pair_with_consumers(index, clear=True)
        for index in range(len(self.steps)):
            if self.is_open(index):
                self.pair_with_producers(index)
        for index in reversed(range(len(self.steps))):
            if self.is_open(index):
                self.pair_with_consumers(index, clear=False)
        return self.result

    def is_open(self, index: int) -> bool:
        """Tell whether a step has no twin yet, and no place where its result can be seen."""
        return index not in self.result.twins and self.steps[index].outputs[0] not in self.result.observed

    def pair_by_modules(self) -> None:
        """Pair each layer with weights with the module or modules that hold them, call by call.

        The twin may call a shared module in another order: a call that takes what comes from the right modules is the
        layer's, else the first that is left.
        """
        calls_of: dict[int, list[int]] = defaultdict(list)
        for index, call in enumerate(self.calls):
            calls_of[id(call.module)].append(index)
        free = {
            layer: list(zip(calls_of[id(several[0])], calls_of[id(several[-1])], strict=False))
            for layer, several in self.modules.items()
        }
        for index, step in enumerate(self.steps):
            each = [self.keras_sources[number] for number in step.inputs]
            sources = None if None in each else frozenset().union(*each)
            if not step.is_activation and id(step.layer) in self.modules:
                calls = free[id(step.layer)]
                same = [both for both in calls if self.sources_of(*self.calls[both[0]].inputs) == sources]
                sources = None
                for both in (same or calls)[:1]:
                    calls.remove(both)
                    self.match(index, *both)
                    sources = frozenset({both[1]})
            self.keras_sources.update(dict.fromkeys(step.outputs, sources))

    def match(self, step: StepIndex, first: int, last: int) -> None:
        """Enter a pair: a step, and the first and the last of the calls that are its twin."""
        self.result.twins[step] = (first, last)
        self.used |= {first, last}
        for slot, position in self.slots(step, first):
            self.result.inputs[step, slot] = Spot(first, "in", position)
        for position, number in enumerate(self.steps[step].outputs[: len(self.calls[last].outputs)]):
            self.result.outputs[number] = Spot(last, "out", position)

    def slots(self, step: int, call: int) -> Iterator[tuple[int, int]]:
        """Yield (position of an input of the step, position of the same input of the call)."""
        inputs, numbers = self.steps[step].inputs, self.calls[call].inputs
        if self.calls[call].module is not None and len(inputs) == 1:
            if numbers:
                yield 0, 0
            return
        free = [position for position, number in enumerate(numbers) if number >= 0]
        if 1 < len(set(inputs)) > len(free):
            # A module that does more than the step, or the last of several calls: which of the inputs it takes, and
            # whether it takes any, cannot be told.
            return
        left = []
        for slot, number in enumerate(inputs):
            same = [at for at in free if self.sources_of(numbers[at]) == self.keras_sources[number]]
            same.sort(key=lambda at, number=number: not self.is_of_the_kind(numbers[at], number))
            if same:
                free.remove(same[0])
                yield slot, same[0]
            else:
                left.append(slot)
        if len(left) == len(free) and (len(inputs) > 1 or (left and self.may_come_from(numbers[free[0]], inputs[0]))):
            yield from zip(left, free, strict=True)

    def is_of_the_kind(self, number: int, keras_number: int) -> bool:
        """Tell whether a tensor of the twin comes from a call of just the kind of the step of a Keras tensor."""
        step, source = self.producers.get(keras_number), self.made_by.get(number)
        if step is None or source is None:
            return False
        names = names_of_step(self.steps[step]) - {"activation"} | {self.steps[step].kind.split(" ")[-1]}
        return any(names & kinds and names_of_call(self.calls[source]) & kinds for kinds in (*POOLINGS, names))

    def may_come_from(self, number: int, keras_number: int) -> bool:
        """Tell whether a tensor of the twin may be a Keras tensor, although they come from different modules."""
        if self.keras_sources[keras_number] is None:
            return True
        step = self.producers.get(keras_number)
        return step is not None and step not in self.result.twins and self.origin(number, self.steps[step]) is not None

    def sources_of(self, *numbers: int) -> frozenset[int]:
        """Return the calls of modules with weights, or the inputs, that tensors of the twin come from directly."""
        return frozenset().union(*(self.twin_sources.get(number, frozenset({-1 - number})) for number in numbers))

    def comes_from(self, number: int, call: int) -> bool:
        """Tell whether a tensor is the result of a call, perhaps in another order."""
        while number in self.made_by:
            index = self.made_by[number]
            if index == call:
                return True
            if not same_numbers(self.calls[index]):
                return False
            number = self.calls[index].inputs[0]
        return False

    def pair_with_consumers(self, index: int, clear: bool) -> None:
        """Pair a step with the call whose result the consumers of the step's output take.

        Args:
            index: Number of the step.
            clear: Whether to leave out consumers of which it is not clear that they take that output.
        """
        step = self.steps[index]
        spots = [spot for one in self.consumers[step.outputs[0]] if (spot := self.result.inputs.get(one))]
        spots = [spot for spot in spots if not clear or spot.call not in self.unclear]
        for spot in spots:
            call = self.origin(self.calls[spot.call].inputs[spot.position], step)
            if call is not None:
                better = self.of_the_same_modules(step)
                call = call if better is None else better
                self.match(index, self.first_of_several(step, call), call)
                if spot.call in self.unclear:
                    self.unclear.add(call)
                if call in self.unclear or names_of_call(self.calls[call]) & ARITHMETIC:
                    self.result.guessed.update(step.outputs)
                return
        # A model may return its outputs in another order: a call that takes what the step takes is the better sign.
        at_the_end = all(spot.call == len(self.calls) - 1 for spot in spots)
        if spots:
            self.result.observed[step.outputs[0]] = spots
            sources = [self.made_by.get(self.calls[spot.call].inputs[spot.position]) for spot in spots]
            others = all(source in self.used for source in sources)  # another step's, then
            call = self.of_the_same_modules(step) if others else None
            if call is not None:
                self.match(index, call, call)
                self.result.guessed.update(step.outputs)
            elif not (at_the_end and self.pair_with_producers(index)) and names_of_step(step) & IDENTITIES:
                self.result.inputs[index, 0] = spots[0]

    def first_of_several(self, step: Step, call: int) -> int:
        """Return the first of the functions in a row that scale as one step does; one by itself is the last, too."""
        before = self.producers.get(step.inputs[0]) if step.inputs else None
        if not names_of_step(step) & SCALES or (before is not None and names_of_step(self.steps[before]) & SCALES):
            return call
        while (source := self.made_by.get(self.calls[call].inputs[0])) is not None:
            other = self.calls[source]
            if source in self.used or other.module is not None or not names_of_call(other) & FAMILIES["scale"]:
                break
            call = source
        return call

    def of_the_same_modules(self, step: Step) -> int | None:
        """Return the one free call of a fitting kind that takes what comes from the same modules as a step's inputs."""
        each = [self.keras_sources[number] for number in step.inputs]
        if None in each:
            return None
        sources = frozenset().union(*each)
        free = [(at, call) for at, call in enumerate(self.calls) if at not in self.used]
        same = [at for at, call in free if self.sources_of(*call.inputs) == sources and may_be_twin(step, call)]
        return same[0] if len(same) == 1 else None

    def origin(self, number: int, step: Step) -> int | None:
        """Return the free call of a fitting kind that a tensor comes from, perhaps in another order.

        Of several borders in a row the last may be the padding of the layer that takes the tensor: they are counted
        from the first.
        """
        fitting = []
        while number in self.made_by:
            index = self.made_by[number]
            call = self.calls[index]
            if index not in self.used and may_be_twin(step, call):
                fitting.append(index)
                if not names_of_step(step) & FAMILIES["border"]:
                    break
            if not same_numbers(call):
                break
            number = call.inputs[0]
        before = self.borders_before(step) if names_of_step(step) & FAMILIES["border"] else 0
        return fitting[-1 - before] if len(fitting) > before else None

    def borders_before(self, step: Step) -> int:
        """Return how many layers that add a border precede one directly."""
        count = 0
        while step.inputs and step.inputs[0] in self.producers:
            step = self.steps[self.producers[step.inputs[0]]]
            if not names_of_step(step) & FAMILIES["border"]:
                break
            count += 1
        return count

    def pair_with_producers(self, index: int) -> bool:
        """Pair a step with the first free call of its kind that takes what it takes; tell whether there is one."""
        step = self.steps[index]
        inputs = set(step.inputs)
        made = [self.result.outputs.get(number) for number in inputs]
        if None in made or not any(names_of_step(step) & FAMILIES[family] for family in WHOLE_FAMILIES):
            return False
        for at, call in enumerate(self.calls):
            known = sum(number >= 0 for number in call.inputs)
            if at in self.used or not may_be_twin(step, call) or known < len(inputs):
                continue
            if all(any(self.comes_from(number, spot.call) for number in call.inputs) for spot in made):
                self.match(index, at, at)
                self.result.guessed.update(step.outputs)
                return True
        return False

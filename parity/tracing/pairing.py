"""Pair the steps of a Keras model with the calls of its PyTorch twin.

Layers with weights are paired by the mapping. A layer without weights is paired by its place in the graph: with a call
of a fitting kind that a paired consumer takes its input from, or that takes the output of a paired producer.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from parity.models.keras_graph import Graph, Step, StepIndex, TensorId
from parity.models.sequences import count_of_outputs
from parity.models.torch_calls import Call
from parity.tracing.covers import Known, Work, work_of, works_of_calls
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
    """Where in the twin a tensor is seen.

    Attributes:
        call: The call. The call after the last stands for the twin's return: its inputs are the twin's outputs.
        when: "in" for an input of the call, "out" for an output.
        position: The position among the call's inputs or outputs.
    """

    call: int
    when: str
    position: int


class Pairing(NamedTuple):
    """The twin of each Keras layer, and where each Keras tensor can be seen in the twin.

    Attributes:
        twins: The first and the last call of each step's twin.
        inputs: Where each input of a step is seen, by step and slot. The step after the last is the model's return:
            its inputs are the model's outputs.
        outputs: Where each Keras tensor is seen as the output of a call.
        observed: Where each other Keras tensor is seen: as an input of its consumers' calls, because it is not certain
            which call returns it.
        guessed: Keras tensors of which another call may be the producer. There are four reasons. The call was found
            only by its inputs, and may be the first of several that do together what the layer does, as in
            ``(a + b) / 2``. Or it was found by its consumer, which is a module of the user's own that may do what
            several layers do. Or it is arithmetic, which may be done in another order. Or it is one of several heads
            in one module, which may have it in another form, as a bidirectional module has its second direction.
        work: What the call of each module with weights may do, by the tensor that is seen as its output.
        heads: Keras tensors of which the output of a call may hold several, one beside the other.
    """

    twins: dict[StepIndex, tuple[int, int]]
    inputs: dict[tuple[StepIndex, int], Spot]
    outputs: dict[TensorId, Spot]
    observed: dict[TensorId, list[Spot]]
    guessed: set[TensorId]
    work: Mapping[TensorId, Work] = MappingProxyType({})
    heads: frozenset[TensorId] = frozenset()


def pair(
    graph: Graph,
    calls: Sequence[Call],
    returned: Sequence[int],
    modules: dict[int, list[nn.Module]],
    known: Known | None = None,
) -> Pairing:
    """Pair the steps of a Keras model with the calls of its twin.

    Args:
        graph: The Keras model.
        calls: The twin's calls.
        returned: Numbers of the twin's outputs.
        modules: The modules that hold a Keras layer's weights, by the identity of the layer. They run in this order.
        known: What else is known.
    """
    return _Pairer(graph, [*calls, Call("return", None, tuple(returned), (), ())], modules, known or Known()).pair()


class _Pairer:
    """The two graphs while they are being paired."""

    def __init__(self, graph: Graph, calls: list[Call], modules: dict[int, list[nn.Module]], known: Known) -> None:
        self.graph, self.steps, self.calls = graph, graph.steps, calls
        self.modules, self.known = modules, known
        self.producers, self.consumers = graph.producers(), graph.consumers()
        # The call that returns each tensor of the twin.
        self.call_of = {number: index for index, call in enumerate(self.calls) for number in call.outputs}
        holders = {id(module) for several in modules.values() for module in several}
        holders |= {id(one.module) for one in known.shared}
        self.with_weights = {index for index, call in enumerate(self.calls) if id(call.module) in holders}
        end = len(calls) - 1
        self.used = self.with_weights | {end}
        # Calls that may do what several layers do. It is not clear whose input they take.
        without_weights = [(index, call) for index, call in enumerate(calls[:end]) if index not in self.with_weights]
        self.unclear = {index for index, call in without_weights if may_be_anything(call)}
        self.result = Pairing({}, {}, {}, {}, set())
        self.work: dict[TensorId, Work] = {}
        self.heads: set[TensorId] = set()
        # Steps behind the first that a shared module does.
        self.inside: set[StepIndex] = set()
        # The sources of each tensor: the nearest calls before it of modules with weights. -1, -2, ... stand for the
        # inputs. None for a Keras tensor that comes from a layer whose modules the twin does not call.
        self.keras_sources: dict[TensorId, frozenset[int] | None] = {}
        self.keras_sources |= {number: frozenset({-1 - position}) for position, number in enumerate(graph.inputs)}
        self.twin_sources: dict[int, frozenset[int]] = {-1: frozenset()}
        for index, call in enumerate(self.calls):
            sources = frozenset({index}) if index in self.with_weights else self.sources_of(*call.inputs)
            self.twin_sources.update(dict.fromkeys(call.outputs, sources))
        for slot in range(min(len(graph.outputs), len(calls[end].inputs))):
            self.result.inputs[len(graph.steps), slot] = Spot(end, "in", slot)

    def pair(self) -> Pairing:
        self.pair_by_modules()
        for index, call in self.known.by_numbers.items():
            self.match(index, self.first_of_several(self.steps[index], call), call)
        for index in reversed(range(len(self.steps))):
            if self.is_open(index):
                self.pair_with_consumers(index, clear=True)
        for index in range(len(self.steps)):
            if self.is_open(index):
                self.pair_with_producers(index)
        for index in reversed(range(len(self.steps))):
            if self.is_open(index):
                self.pair_with_consumers(index, clear=False)
        return self.result._replace(work=self.work, heads=frozenset(self.heads))

    def is_open(self, index: StepIndex) -> bool:
        """Tell whether a step has no twin yet, and its output is not observed either."""
        seen = index in self.result.twins or self.steps[index].outputs[0] in self.result.observed
        return not seen and index not in self.inside

    def pair_by_modules(self) -> None:
        """Pair each layer with weights with the module or modules that hold them, call by call.

        The twin may call a shared module in another order. The twin of a step is the first call whose inputs come from
        the right modules, or else the first call that is left.
        """
        calls_of: dict[int, list[int]] = defaultdict(list)
        for index, call in enumerate(self.calls):
            calls_of[id(call.module)].append(index)
        free = {
            layer: list(zip(calls_of[id(several[0])], calls_of[id(several[-1])], strict=False))
            for layer, several in self.modules.items()
        }
        several_do = works_of_calls(self.graph, self.consumers, self.known.shared, calls_of, self.modules)
        works_in = Counter(call for _, call in several_do.values())
        for work, last in several_do.values():
            self.inside.update(work.least)
            if works_in[last] > 1:
                self.heads.update(work.tensors(self.graph))
                self.result.guessed.update(self.heads)
        for index, step in enumerate(self.steps):
            sources = self.sources_of_step(step)
            if index in several_do:
                work, last = several_do[index]
                self.match_work(work, last, last)
                sources = frozenset({last})
            elif not step.is_activation and id(step.layer) in self.modules:
                calls = free[id(step.layer)]
                same = [(first, last) for first, last in calls if self.sources_of_call(first) == sources]
                sources = None
                for first, last in (same or calls)[:1]:
                    calls.remove((first, last))
                    self.match_work(work_of(self.graph, self.consumers, index, self.modules), first, last)
                    sources = frozenset({last})
            self.keras_sources.update(dict.fromkeys(step.outputs, sources))

    def match_work(self, work: Work, first: int, last: int) -> None:
        """Add the pair of the first step that a module with weights does, and of its call or calls."""
        self.match(work.step, first, last)
        number = self.steps[work.step].outputs[0]
        if work.least:
            # What it returns is seen only as the output of the last of these.
            seen = self.result.outputs.pop(number)
            number = work.tensors(self.graph)[len(work.least)]
            self.result.outputs[number] = seen
        self.work[number] = work

    def match(self, step: StepIndex, first: int, last: int) -> None:
        """Add a pair: a step, and the first and the last call of its twin."""
        self.result.twins[step] = (first, last)
        self.used |= {first, last}
        for slot, position in self.positions_of_inputs(step, first):
            self.result.inputs[step, slot] = Spot(first, "in", position)
        count = count_of_outputs(self.steps[step].layer, self.calls[last].module, len(self.calls[last].outputs))
        for position, number in enumerate(self.steps[step].outputs[:count]):
            self.result.outputs[number] = Spot(last, "out", position)

    def positions_of_inputs(self, step: StepIndex, call: int) -> Iterator[tuple[int, int]]:
        """Yield the slot of each input of a step but masks, with the position of the same input among a call's."""
        every, masks, module = self.steps[step].inputs, self.steps[step].masks, self.calls[call].module
        numbers = self.calls[call].inputs[: 3 if isinstance(module, nn.MultiheadAttention) else None]  # masks follow
        slots = [slot for slot in range(len(every)) if slot not in masks] or [*range(len(every))]
        inputs = [every[slot] for slot in slots]
        if module is not None and len(inputs) == 1:
            yield from [(slots[0], 0)][: len(numbers)]
            return
        free = [position for position, number in enumerate(numbers) if number >= 0]
        if module is not None and len(set(inputs)) == len(set(numbers)) == 1:
            yield from ((slot, 0) for slot in slots)  # an attention to itself
            return
        if 1 < len(set(inputs)) > len(free):
            # It does more than the step, or is the last of several calls: which input it takes cannot be told.
            return
        left = []
        for slot, number in zip(slots, inputs, strict=True):
            same = [position for position in free if self.sources_of(numbers[position]) == self.keras_sources[number]]
            same_kind = [position for position in same if self.has_kind_of(numbers[position], number)]
            if same:
                position = (same_kind or same)[0]
                free.remove(position)
                yield slot, position
            else:
                left.append(slot)
        if len(left) == len(free) and (len(inputs) > 1 or (left and self.may_come_from(numbers[free[0]], inputs[0]))):
            yield from zip(left, free, strict=True)

    def has_kind_of(self, number: int, keras_number: TensorId) -> bool:
        """Tell whether the call that returns a tensor of the twin does exactly what a Keras tensor's step does."""
        index, call = self.producers.get(keras_number), self.call_of.get(number)
        if index is None or call is None:
            return False
        step = self.steps[index]
        names = set(names_of_step(step))
        names.discard("activation")  # the name of every activation
        names.add(step.kind.split(" ")[-1])
        return any(names & kinds and names_of_call(self.calls[call]) & kinds for kinds in (*POOLINGS, names))

    def may_come_from(self, number: int, keras_number: TensorId) -> bool:
        """Tell whether a tensor of the twin may be a Keras tensor, although they come from different modules."""
        if self.keras_sources[keras_number] is None:
            return True
        step = self.producers.get(keras_number)
        return step is not None and step not in self.result.twins and self.origin(number, self.steps[step]) is not None

    def sources_of(self, *numbers: int) -> frozenset[int]:
        """Return the sources of tensors of the twin; see ``keras_sources``."""
        return frozenset().union(*(self.twin_sources.get(number, frozenset({-1 - number})) for number in numbers))

    def sources_of_call(self, call: int) -> frozenset[int]:
        """Return the sources of a call's inputs."""
        return self.sources_of(*self.calls[call].inputs)

    def sources_of_step(self, step: Step) -> frozenset[int] | None:
        """Return the sources of a step's inputs, None if those of an input are not known."""
        each = [self.keras_sources[number] for number in step.inputs]
        known = [sources for sources in each if sources is not None]
        return frozenset[int]().union(*known) if len(known) == len(each) else None

    def comes_from(self, number: int, call: int) -> bool:
        """Tell whether a tensor has the numbers that a call returns, perhaps in another order."""
        while number in self.call_of:
            index = self.call_of[number]
            if index == call:
                return True
            if not same_numbers(self.calls[index]):
                return False
            number = self.calls[index].inputs[0]
        return False

    def pair_with_consumers(self, index: StepIndex, clear: bool) -> None:
        """Pair a step with the call whose output the consumers of the step's output take.

        Args:
            index: The step.
            clear: Whether to leave out consumers of which it is not clear whether they take that output.
        """
        step, inputs = self.steps[index], self.result.inputs
        spots = [inputs[consumer] for consumer in self.consumers[step.outputs[0]] if consumer in inputs]
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
        only_returned = all(spot.call == len(self.calls) - 1 for spot in spots)
        if spots:
            self.result.observed[step.outputs[0]] = spots
            producers = [self.call_of.get(self.calls[spot.call].inputs[spot.position]) for spot in spots]
            of_other_steps = all(producer in self.used for producer in producers)
            call = self.of_the_same_modules(step) if of_other_steps else None
            if call is not None:
                self.match(index, call, call)
                self.result.guessed.update(step.outputs)
            elif not (only_returned and self.pair_with_producers(index)) and names_of_step(step) & IDENTITIES:
                inputs[index, 0] = spots[0]

    def first_of_several(self, step: Step, call: int) -> int:
        """Return the first of the functions in a row that together scale as a step does, or that do what it does.

        Args:
            step: The step.
            call: The last of the functions. It is also the first if it scales alone, or if the step does not scale.
        """
        before = self.producers.get(step.inputs[0]) if step.inputs else None
        if before is not None and before in self.known.by_numbers and len(set(step.inputs)) == 1:
            return self.first_behind(self.known.by_numbers[before], call)
        if not names_of_step(step) & SCALES or (before is not None and names_of_step(self.steps[before]) & SCALES):
            return call
        while (producer := self.call_of.get(self.calls[call].inputs[0])) is not None:
            function = self.calls[producer]
            scales = function.module is None and names_of_call(function) & FAMILIES["scale"]
            if producer in self.used or not scales:
                break
            call = producer
        return call

    def first_behind(self, before: int, call: int) -> int:
        """Return the first of the functions in a row that lead from the output of one call to the output of another."""
        first = call
        while (known := {number for number in self.calls[first].inputs if number >= 0}) and len(known) == 1:
            producer = self.call_of.get(known.pop())
            if producer == before:
                return first
            if producer is None or producer in self.used:
                break
            first = producer
        return call

    def of_the_same_modules(self, step: Step) -> int | None:
        """Return the only free call of a fitting kind whose inputs have the same sources as a step's inputs."""
        sources = self.sources_of_step(step)
        if sources is None:
            return None
        free = [(index, call) for index, call in enumerate(self.calls) if index not in self.used]
        same = [index for index, call in free if self.sources_of_call(index) == sources and may_be_twin(step, call)]
        return same[0] if len(same) == 1 else None

    def origin(self, number: int, step: Step) -> int | None:
        """Return the free call of a fitting kind whose numbers a tensor has, perhaps in another order.

        Of several calls in a row that add a border, the last may be the padding of the layer that takes the tensor. So
        the call is found by how many layers with a border come before the step.
        """
        fitting = []
        while number in self.call_of:
            index = self.call_of[number]
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
        """Return how many layers in a row directly before a step add a border."""
        count = 0
        while step.inputs and step.inputs[0] in self.producers:
            step = self.steps[self.producers[step.inputs[0]]]
            if not names_of_step(step) & FAMILIES["border"]:
                break
            count += 1
        return count

    def pair_with_producers(self, index: StepIndex) -> bool:
        """Pair a step with the first free call of its kind that takes what it takes; tell whether there is one."""
        step = self.steps[index]
        inputs = set(step.inputs)
        producers = [self.result.outputs[number].call for number in inputs if number in self.result.outputs]
        whole = any(names_of_step(step) & FAMILIES[family] for family in WHOLE_FAMILIES)
        if len(producers) < len(inputs) or not whole:
            return False
        for candidate, call in enumerate(self.calls):
            known = sum(number >= 0 for number in call.inputs)
            if candidate in self.used or not may_be_twin(step, call) or known < len(inputs):
                continue
            merges_more = names_of_step(step) & FAMILIES["merge"] and len({*call.inputs} - {-1}) > len(inputs)
            if merges_more:
                continue
            if all(any(self.comes_from(number, producer) for number in call.inputs) for producer in producers):
                self.match(index, candidate, candidate)
                self.result.guessed.update(step.outputs)
                return True
        return False

"""Run a Keras model and its twin side by side, and compare each tensor as soon as both have computed it.

The twin runs, and at each of its calls the Keras model is computed as far as the layer that is compared there. Only
tensors that are still to be compared stay in memory. So a large model needs little more memory than both need to run.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from math import inf
from typing import Any, NamedTuple

from parity.errors import ParityError
from parity.models.alignment import alignments, distance, is_constant
from parity.models.inputs import unchanged
from parity.models.keras_channels import channels_of, with_channels_last
from parity.models.keras_graph import Graph, Step, StepIndex, TensorId
from parity.models.keras_values import Value, follow_order, walk
from parity.models.rounding import TIMES_NOISE, noise_of, rule_of
from parity.models.sequences import SEQUENCE_MODULES, Seen, returned, taken
from parity.models.torch_calls import Call, Watch, identity_of, record
from parity.tensors import as_tensor
from parity.tracing.covers import Known, likeliest_parts, shared_modules
from parity.tracing.misfits import without_misfits
from parity.tracing.pairing import Pairing, Spot, pair
from parity.tracing.port import Port
from parity.tracing.runs import MISFIT, Comparison, Run

from torch import Tensor

# The outputs of layers that diverge are stored, to see whether the twin has exchanged them: at most this many numbers.
STORED_NUMBERS = 2**24

# An input of a step: the step and the slot.
Consumer = tuple[StepIndex, int]


def run(port: Port, training: bool = False, by_numbers: Mapping[StepIndex, int] | None = None) -> Run:
    """Run both models of a port and compare every tensor that can be seen in both. Neither model is changed.

    Args:
        port: The two models. Unless ``training``, the twin runs in the mode that it is in.
        training: Run both in training mode, but without dropout, because its random numbers would differ.
        by_numbers: Calls of the twin that are known to return what steps without weights return, by the step.

    Raises:
        ParityError: If the twin fails, or calls other modules and functions when it runs again.
    """
    whole, keys = port.modules_with_weights, port.graph.keys
    with unchanged(port.keras_model, port.twin, training):
        # A few examples are enough to record the calls. In training mode one may be too few. A twin that was exported
        # for so many examples takes no other number.
        few = [tensor[:2].clone() for tensor in port.twin_inputs]
        try:
            calls, returned, _ = record(port.twin, few, whole, keys)
        except ParityError:
            calls, returned, _ = record(port.twin, [tensor.clone() for tensor in port.twin_inputs], whole, keys)
    pairing = pair(port.graph, calls, returned, port.modules, Known(shared_modules(port), by_numbers or {}))
    comparer = Comparer(port, calls, pairing, training)
    with unchanged(port.keras_model, port.twin, training):
        watch = Watch(calls, comparer.watch, dropout=not training)
        record(port.twin, [tensor.clone() for tensor in port.twin_inputs], whole, keys, watch)
        while comparer.advance():
            pass
    return without_misfits(comparer.result())


class Tensors(NamedTuple):
    """Tensors of both models around one step.

    Attributes:
        keras: The Keras tensors that the step takes and returns, and those that were asked for.
        inputs: What the step's twin takes, by slot; only inputs that can be seen.
        seen: The same with Keras's axes, where it is known that the twin has others.
        outputs: What the twin returns in place of the step's outputs; only outputs that can be seen.
    """

    keras: dict[TensorId, Tensor]
    inputs: dict[int, Tensor]
    seen: dict[int, Tensor]
    outputs: dict[TensorId, Tensor]


def tensors_at(port: Port, run: Run, step: StepIndex, wanted: Collection[TensorId] = ()) -> Tensors:
    """Run both models again, as far as needed, and return the tensors around a step. Neither model is changed.

    Args:
        port: The two models.
        run: The record that ``run`` returned for them.
        step: The step. The step after the last is the model's return, whose inputs are the model's outputs.
        wanted: Other Keras tensors to return.
    """
    graph = port.graph
    outputs = run.outputs_of(step) if step < len(graph.steps) else ()
    found = Tensors({}, {}, {}, {})
    # For each moment at which the twin is watched: the tensors to store, their keys and where they are seen.
    to_store: dict[tuple[int, str], list[tuple[dict[Any, Tensor], int, Spot]]] = defaultdict(list)
    for (index, slot), spot in run.pairing.inputs.items():
        if index == step:
            to_store[spot.call, spot.when].append((found.inputs, slot, spot))
    for number in outputs:
        if number in run.outputs:
            spot = run.outputs[number].spot
            to_store[spot.call, spot.when].append((found.outputs, number, spot))

    def watch(call: int, when: str, tensors: list[Tensor]) -> None:
        for store, key, spot in to_store.pop((call, when), []):
            seen = seen_as_keras(graph, run.calls, run.pairing, spot, tensors).tensor.clone()
            if store is found.inputs:
                found.inputs[key], found.seen[key] = tensors[spot.position].clone(), seen
            else:
                store[key] = seen
        if not to_store:
            raise EnoughError

    needed = {*graph.inputs_of(step), *outputs, *wanted}
    with unchanged(port.keras_model, port.twin, run.training):
        with suppress(EnoughError):
            copies = [tensor.clone() for tensor in port.twin_inputs]
            again = Watch(run.calls, watch, dropout=not run.training)
            record(port.twin, copies, port.modules_with_weights, graph.keys, again)
        for computed, _, values in walk(graph, port.inputs, run.training, perturb=None):
            numbers = graph.inputs if computed is None else computed.outputs
            for number, value in zip(numbers, values, strict=True):
                if number in needed:
                    found.keras[number] = as_tensor(value.exact)
            if needed <= found.keras.keys():
                break
    return found


def seen_as_keras(graph: Graph, calls: Sequence[Call], pairing: Pairing, spot: Spot, tensors: Sequence[Tensor]) -> Seen:
    """Return a tensor of the twin with the axes that Keras has.

    Args:
        graph: The Keras model.
        calls: The twin's calls.
        pairing: Which calls are the twin of which step.
        spot: Where the tensor is seen.
        tensors: All tensors that the call takes, or that it returns.
    """
    module = calls[spot.call].module if spot.call < len(calls) else None
    if not isinstance(module, SEQUENCE_MODULES):
        return Seen(tensors[spot.position])
    end = 0 if spot.when == "in" else -1
    step = next((step for step, ends in pairing.twins.items() if ends[end] == spot.call), None)
    if spot.when == "out":  # of several layers, the last returns it
        step = next((work.least[-1] for work in pairing.work.values() if work.step == step and work.least), step)
    layer = None if step is None else graph.steps[step].layer
    return (taken if spot.when == "in" else returned)(layer, module, tensors, spot.position)


class EnoughError(Exception):
    """Raised to stop the twin when all tensors that are wanted of it are known."""


class Comparer:
    """Compares tensors at each of the twin's calls; it computes the Keras model only as far as that takes."""

    def __init__(self, port: Port, calls: list[Call], pairing: Pairing, training: bool) -> None:
        self.graph, self.calls, self.pairing, self.training = port.graph, calls, pairing, training
        self.steps = walk(port.graph, port.inputs, training)
        self.producers, self.channels = port.graph.producers(), channels_of(port.graph)
        self.inputs: dict[Consumer, Comparison] = {}
        self.outputs: dict[TensorId, Comparison] = {}
        self.shapes: dict[TensorId, tuple[int, ...]] = {}
        self.flattened: dict[TensorId, tuple[int, ...]] = {}
        self.noise: dict[TensorId, float] = {}
        self.stored: dict[TensorId, tuple[Tensor, Tensor]] = {}
        self.returned: dict[int, tuple[Tensor, Tensor]] = {}
        # Which steps of a sequence are real, by the spot; None where all are.
        self.real: dict[Spot, Tensor | None] = {}
        self.covers = {work.step: work.least for work in pairing.work.values() if work.least}
        # Keras tensors that are still to be compared, and how many times.
        self.values: dict[TensorId, Tensor] = {}
        self.pending: Counter[TensorId] = Counter()
        # What to compare at each moment at which the twin is watched: a Keras tensor, the spot of the twin's tensor,
        # and the input of a step that it is, None for the output of a step.
        self.planned: dict[tuple[int, str], list[tuple[TensorId, Spot, Consumer | None]]] = defaultdict(list)
        # Comparisons that were agreement, by Keras tensor, axis of its channels and identity of the twin's tensor.
        self.agreed: dict[tuple[TensorId, int, tuple[int, int] | None], Comparison] = {}
        for consumer, spot in pairing.inputs.items():
            step, slot = consumer
            self.plan(self.graph.inputs_of(step)[slot], spot, consumer)
        for number, spot in pairing.outputs.items():
            self.plan(number, spot, None)
            self.pending.update(self.behind(number))
        for number, spots in pairing.observed.items():
            for spot in spots:
                self.plan(number, spot, None)

    def plan(self, number: TensorId, spot: Spot, consumer: Consumer | None) -> None:
        """Plan to compare a Keras tensor with the twin's at a spot."""
        self.planned[spot.call, spot.when].append((number, spot, consumer))
        self.pending[number] += 1

    def result(self) -> Run:
        """Return the record of all that was compared."""
        return Run(
            graph=self.graph,
            calls=self.calls,
            pairing=self.pairing,
            training=self.training,
            inputs=self.inputs,
            outputs=self.outputs,
            shapes=self.shapes,
            flattened=self.flattened,
            noise=self.noise,
            stored=self.stored,
            returned=self.returned,
            channels=self.channels,
            covers=self.covers,
        )

    def watch(self, call: int, when: str, tensors: list[Tensor]) -> list[Tensor] | None:
        """Compare what is planned for a call of the twin; see ``parity.models.torch_calls.Watcher``."""
        for number, spot, consumer in self.planned.pop((call, when), []):
            self.compute(number)
            twin = self.seen(spot, tensors)
            is_output = consumer is None and spot == self.pairing.outputs.get(number)
            if not (is_output and self.covers_more(number, twin, spot)):
                self.enter(number, twin, spot, consumer)
            for compared in (number, *(self.behind(number) if is_output else ())):
                self.pending[compared] -= 1
                if not self.pending[compared]:
                    self.values.pop(compared, None)
        return None

    def compute(self, number: TensorId) -> None:
        """Compute the Keras model as far as a tensor, if it is not computed yet."""
        while number not in self.values and self.advance():
            pass

    def behind(self, number: TensorId) -> list[TensorId]:
        """Return what a module with weights may return in place of a Keras tensor, because it does more."""
        work = self.pairing.work.get(number)
        return work.tensors(self.graph)[1 + len(work.least) :] if work is not None else []

    def covers_more(self, number: TensorId, twin: Tensor, spot: Spot) -> bool:
        """Tell whether a module does more than the layers whose weights it holds; if so, enter what it returns.

        Args:
            number: What these layers return.
            twin: What the module returns.
            spot: Where that is seen.
        """
        if not self.behind(number) or not self.inputs_agree(number):
            return False
        if self.comparison(number, twin, spot, self.axes(number, None)).agrees:
            return False
        work = self.pairing.work[number]
        for count, later in enumerate(self.behind(number), 1):
            self.compute(later)
            found = self.comparison(later, twin, spot, self.axes(later, None))
            # After a ReLU that nothing passes, all is 0. Then a ReLU of its own in the twin speaks against this one.
            has_twin = work.more[count - 1] in self.pairing.twins
            if found.agrees and (not is_constant(self.values[later]) or not has_twin):
                self.outputs[later] = found
                self.covers[work.step] = (*work.least, *work.more[:count])
                return True
        return False

    def seen(self, spot: Spot, tensors: list[Tensor]) -> Tensor:
        """Return a tensor of the twin with Keras's axes; note which of its steps are real, if it is a sequence."""
        found = seen_as_keras(self.graph, self.calls, self.pairing, spot, tensors)
        self.real[spot] = found.real
        return found.tensor

    def advance(self) -> bool:
        """Compute the Keras model's next step; tell whether there was one."""
        try:
            step, inputs, outputs = next(self.steps)
        except StopIteration:
            return False
        numbers = self.graph.inputs if step is None else step.outputs
        for number, value in zip(numbers, outputs, strict=True):
            tensor = as_tensor(value.exact)
            self.shapes[number] = tuple(tensor.shape)
            self.noise[number] = noise_of(tensor, as_tensor(value.perturbed))
            if self.pending[number]:
                self.values[number] = tensor
        if step is not None:
            self.follow(step, inputs, outputs)
        return True

    def follow(self, step: Step, inputs: list[Value], outputs: list[Value]) -> None:
        """Add what a step's inputs tell about its outputs: the least noise, and the shape of flattened features."""
        if rule_of(step).selects:
            # The twin may select other elements, even if the perturbed model selects the same.
            least = max(self.noise[number] for number in step.inputs)
            self.noise.update({number: max(least, self.noise[number]) for number in step.outputs})
        follow_order(step, inputs, outputs, self.flattened, self.channels)

    def enter(self, number: TensorId, twin: Tensor, spot: Spot, consumer: Consumer | None) -> None:
        """Compare a Keras tensor with the twin's and add the comparison."""
        axes = self.axes(number, consumer)
        found, value = self.comparison(number, twin, spot, axes), with_channels_last(self.values[number], axes[0])
        if consumer is not None:
            self.inputs[consumer] = found
            step, slot = consumer
            if step == len(self.graph.steps):
                self.returned[slot] = (value, twin.clone())
        elif number not in self.outputs or found.difference < self.outputs[number].difference:
            self.outputs[number] = found
            room = sum(tensor.numel() for tensor, _ in self.stored.values()) + value.numel() <= STORED_NUMBERS
            if not found.agrees and room and self.inputs_agree(number):
                self.stored[number] = (value, twin.clone())

    def axes(self, number: TensorId, consumer: Consumer | None) -> Sequence[int]:
        """Return where a Keras tensor may have its channels, as the step says that takes it, or that returns it."""
        index = self.producers.get(number) if consumer is None else consumer[0]
        step = None if index is None or index == len(self.graph.steps) else self.graph.steps[index]
        return self.channels.possible(number, step, self.values[number].ndim)

    def comparison(self, number: TensorId, twin: Tensor, spot: Spot, axes: Sequence[int]) -> Comparison:
        """Compare a Keras tensor with the twin's, unless it is known that they agree."""
        # A tensor is seen as the output of one call and as the input of the next. It is compared only once, unless it
        # was overwritten in between, or the two layers do not have the channels on the same axis.
        identity = identity_of(twin)
        known = self.agreed.get((number, axes[0], identity))
        if known is not None:
            return known
        found = self.closest(number, twin, spot, axes)
        if found.agrees and identity is not None:
            self.agreed[number, axes[0], identity] = found
        return found

    def closest(self, number: TensorId, twin: Tensor, spot: Spot, axes: Sequence[int]) -> Comparison:
        """Compare a Keras tensor and the twin's in each alignment, and return the nearest."""
        best = Comparison(inf, TIMES_NOISE * self.noise[number], MISFIT, tuple(twin.shape), spot)
        module = self.calls[spot.call].module if spot.call < len(self.calls) else None
        window, in_keras = spot.when == "in", Seen(twin, self.real.get(spot)).value(self.values[number])
        features = self.channels.features(number, self.flattened)
        values = [with_channels_last(in_keras, axis) for axis in axes]
        pairs = [(value, twin) for value in values]
        if number in self.pairing.heads:
            pairs += [(value, part) for value in values for part in likeliest_parts(value, twin)]
        ways = (alignments(value, part, module, features, window) for value, part in pairs)
        for aligned in chain.from_iterable(ways):
            difference = distance(aligned.value, aligned.twin)
            if best.note == MISFIT or difference < best.difference:
                best = best._replace(difference=difference, note=aligned.note)
            if best.agrees:
                break
        return best

    def inputs_agree(self, number: TensorId) -> bool:
        """Tell whether the inputs of the step that returned a tensor agree, as far as they were compared."""
        if number not in self.producers:
            return True
        index = self.producers[number]
        for taken_here, before in zip(self.taken_by(index), self.graph.steps[index].inputs, strict=True):
            found = taken_here or self.returned_before(before)
            if found is not None and not found.agrees:
                return False
        return True

    def taken_by(self, index: StepIndex) -> list[Comparison | None]:
        """Return the comparisons of what a step's twin takes."""
        return [self.inputs.get((index, slot)) for slot in range(len(self.graph.steps[index].inputs))]

    def returned_before(self, number: TensorId) -> Comparison | None:
        """Return the comparison of what the twin returns in the place of a Keras tensor that a step takes."""
        return self.outputs.get(number)

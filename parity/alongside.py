"""Run a Keras model and its twin side by side, and compare each tensor when both have computed it.

Only what is still to be compared is kept: the twin runs, and at each of its calls the Keras model is computed as far as
the layer in question. So a large model needs little more memory than to run it twice.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from math import inf
from typing import NamedTuple

from parity.arguments import Inputs, TwinInputs, held_modules, keras_inputs, modules_by_layer, twin_inputs, unchanged
from parity.calls import Call, number_of, record
from parity.graph import Graph, Step, Value, chooses, keras_graph, walk
from parity.overlay import BORDERS, TIMES_NOISE, as_tensor, distance, follow_order, noise_of, views
from parity.pairing import Pairing, Spot, pair

import keras
import pandas as pd
from torch import Tensor, nn

_MISFIT = "shapes do not fit"
# Values of layers that diverge are kept, to see whether they are each other's: at most so many numbers in all.
KEPT = 2**24


class Seen(NamedTuple):
    """A Keras tensor beside what the twin has in its place.

    Attributes:
        difference: The largest absolute difference after the change of layout; infinite if no layout fits.
        within: The largest difference that rounding explains.
        way: What the change of layout was, if it was more than moving the axis of the channels.
        shape: The twin's shape.
        spot: Where in the twin it is.
    """

    difference: float
    within: float
    way: str
    shape: tuple[int, ...]
    spot: Spot

    @property
    def agrees(self) -> bool:
        """Tell whether rounding explains the difference."""
        return self.difference <= self.within


@dataclass(frozen=True)
class Run:
    """Both models as they ran.

    Attributes:
        graph: The Keras model.
        calls: What the twin called.
        pairing: Which call is which layer's.
        taken: By number of a step and of one of its inputs: what it and its twin took. The step after the last is the
            model's return, its inputs are the outputs.
        made: By number of a Keras tensor: what the layer and its twin returned; where the twin has no such call, what
            the layers after it took, of several the nearest.
        shapes: By number of a Keras tensor: its shape.
        flattened: By number of a Keras tensor that holds flattened features: the shape (*spatial, channels) before.
        noise: By number of a Keras tensor: the rounding noise to expect there.
        kept: By number of a Keras tensor: the tensor and the twin's, of layers that diverge and of those asked for.
        returned: By place among the model's outputs: the output and the twin's.
        inputs: Of the step that was asked for, by number of an input of it: the input, and the twin's.
        others: By number of a Keras tensor that was asked for: the tensor.
    """

    graph: Graph
    calls: list[Call]
    pairing: Pairing
    taken: dict[tuple[int, int], Seen] = field(default_factory=dict)
    made: dict[int, Seen] = field(default_factory=dict)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    flattened: dict[int, tuple[int, ...]] = field(default_factory=dict)
    noise: dict[int, float] = field(default_factory=dict)
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    returned: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    inputs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    others: dict[int, Tensor] = field(default_factory=dict)


def run_both(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    torch_x: TwinInputs = None,
    training: bool = False,
    before: Run | None = None,
    keep: str | None = None,
    others: Collection[int] = (),
) -> Run:
    """Run a Keras model and its twin side by side; neither is changed.

    Args:
        keras_model: A Functional or a built Sequential model.
        torch_model: The twin; it runs in the mode that it is in, in training mode if ``training``.
        x: The input of the Keras model, an array or one for each input.
        mapping: Which Keras weight fills which PyTorch tensor.
        torch_x: The twin's inputs, if they are not ``x`` with the channels moved to axis 1.
        training: Run both as in training, but without dropout, whose noise they cannot share.
        before: The same models as they ran with the same inputs: what is known of them is not measured again, and the
            twin stops when what is wanted is known.
        keep: Name of a step whose inputs and outputs are wanted.
        others: Numbers of Keras tensors that are wanted.

    Raises:
        ParityError: If the Keras model has no graph, the mapping has names that the models do not have, the inputs do
            not fit, or the twin fails or is not on the CPU.
    """
    graph = keras_graph(keras_model) if before is None else before.graph
    modules = modules_by_layer(graph, torch_model, mapping)
    arrays = keras_inputs(keras_model, x)
    tensors = twin_inputs(torch_model, arrays, torch_x)
    held = held_modules(modules)
    if before is None:
        with unchanged(keras_model, torch_model, training):
            # How the twin is made up shows with a few examples; two, because in training one may be too few.
            calls, returned, _ = record(torch_model, [tensor[:2].clone() for tensor in tensors], held, keys=graph.keys)
        run = Run(graph, calls, pair(graph, calls, returned, modules))
        with unchanged(keras_model, torch_model, training):
            return _Runner(run, walk(graph, arrays, training), training, others).run(torch_model, tensors, held)
    run = Run(graph, before.calls, before.pairing, noise=before.noise)
    steps = walk(graph, arrays, training, shake=None)
    with unchanged(keras_model, torch_model, training):
        run = _Runner(run, steps, training, others, keep).run_again(torch_model, tensors, held)
    return replace(run, taken=before.taken, made=before.made, shapes=before.shapes, flattened=before.flattened)


class _EnoughError(Exception):
    """The twin need not run on: all that is wanted of it is known."""


class _Runner:
    """Runs the twin, and the Keras model as far as each of the twin's calls needs it."""

    def __init__(
        self,
        run: Run,
        steps: Iterator[tuple[Step | None, list[Value], list[Value]]],
        training: bool,
        others: Collection[int],
        keep: str | None = None,
    ) -> None:
        self.run_ = run
        self.graph = graph = run.graph
        pairing = run.pairing
        self.steps = steps
        self.training = training
        self.others = others
        # The number of the step that alone is of interest, if any is; that after the last is the model's return.
        named = (index for index, step in enumerate(graph.steps) if step.name == keep)
        self.wanted = None if keep is None else next(named, len(graph.steps))
        self.values: dict[int, Tensor] = {}
        # What to compare at each call of the twin: a Keras tensor, the position of the twin's, and who takes it.
        self.due: dict[tuple[int, str], list[tuple[int, int, tuple[int, int] | None]]] = defaultdict(list)
        self.pending: Counter[int] = Counter()
        # Pairs that were found to agree: numbers of both tensors, and the version of the twin's.
        self.agreed: dict[tuple[int, int, int], Seen] = {}
        for (index, slot), spot in pairing.taken.items():
            number = graph.outputs[slot] if index == len(graph.steps) else graph.steps[index].inputs[slot]
            self.expect(number, spot, (index, slot))
        for number, spot in pairing.made.items():
            self.expect(number, spot, None)
        for number, spots in pairing.seen.items():
            for spot in spots:
                self.expect(number, spot, None)

    def expect(self, number: int, spot: Spot, taker: tuple[int, int] | None) -> None:
        if self.wanted is None or self.is_wanted(number, taker):
            self.due[spot.call, spot.when].append((number, spot.position, taker))
            self.pending[number] += 1

    def run(self, torch_model: nn.Module, inputs: Sequence[Tensor], held: Sequence[nn.Module]) -> Run:
        self.record(torch_model, inputs, held)
        while self.advance():
            pass
        self.settle_misfits()
        return self.run_

    def run_again(self, torch_model: nn.Module, inputs: Sequence[Tensor], held: Sequence[nn.Module]) -> Run:
        """Run the twin as far as the step that is wanted, and the Keras model as far as all that is."""
        with suppress(_EnoughError):
            self.record(torch_model, inputs, held)
        while not self.run_.others.keys() >= set(self.others) and self.advance():
            pass
        return self.run_

    def record(self, torch_model: nn.Module, inputs: Sequence[Tensor], held: Sequence[nn.Module]) -> None:
        calls, keys = self.run_.calls, self.graph.keys
        _, _, outputs = record(torch_model, inputs, held, self.watch, not self.training, expected=calls, keys=keys)
        self.watch(len(calls), "in", outputs)

    def is_wanted(self, number: int, taker: tuple[int, int] | None) -> bool:
        """Tell whether a tensor is an input of the step that is wanted, or without a taker, an output."""
        steps = self.graph.steps
        if taker is not None or self.wanted is None or self.wanted == len(steps):
            return taker is not None and taker[0] == self.wanted
        return number in steps[self.wanted].outputs

    def settle_misfits(self) -> None:
        """Take a layer as not paired where its twin is in doubt and all layers that take its result are right.

        A twin may merge two axes into one, or return more from a module than it uses; then no shape fits. Or it has no
        such tensor, as it computes in another order: ``a + (b + c)`` for ``(a + b) + c``.
        """
        taken, made, steps, pairing = self.run_.taken, self.run_.made, self.graph.steps, self.run_.pairing
        producers = {number: index for index, step in enumerate(steps) for number in step.outputs}
        takers: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for index, numbers in enumerate([*(step.inputs for step in steps), self.graph.outputs]):
            for slot, number in enumerate(numbers):
                takers[number].append((index, slot))

        @cache
        def right(index: int) -> bool:
            """Tell whether a step's outputs agree, or if nobody saw them, those of the steps that take them."""
            outputs = steps[index].outputs if index < len(steps) else ()
            seen = [made[number] for number in outputs if number in made]
            after = [taker for number in outputs for taker, _ in takers[number]]
            return all(one.agrees for one in seen) if seen else bool(after) and all(map(right, after))

        def in_doubt(number: int) -> bool:
            # What a layer without a twin returns is looked for in what the next takes, which may be a part of that one.
            if number in pairing.seen or number in pairing.guessed:
                return True
            index = producers[number]
            inputs = [seen for slot in range(len(steps[index].inputs)) if (seen := taken.get((index, slot)))]
            return not steps[index].weights and not all(seen.agrees for seen in inputs)

        for number in sorted(made, reverse=True):  # of several in a row, the last first
            guessed = not made[number].agrees and in_doubt(number)
            if made[number].way == _MISFIT or guessed:
                takes = [taken[taker] for taker in takers[number] if taker in taken]
                same = [seen for seen in takes if seen.agrees and seen.way not in BORDERS]
                if same:
                    made[number] = same[0]
                elif all(right(index) for index, _ in takers[number]):
                    del made[number]
                    if guessed:
                        pairing.twins.pop(producers[number], None)
        for index, slot in list(taken):
            if taken[index, slot].way == _MISFIT and right(index):
                del taken[index, slot]

    def watch(self, call: int, when: str, tensors: list[Tensor]) -> None:
        for number, position, taker in self.due.pop((call, when), []):
            while number not in self.values and self.advance():
                pass
            self.compare(number, tensors[position], Spot(call, when, position), taker)
            self.pending[number] -= 1
            if not self.pending[number]:
                del self.values[number]
        if self.wanted is not None and not self.due:
            raise _EnoughError

    def advance(self) -> bool:
        """Compute the Keras model's next step; tell whether there was one."""
        try:
            step, inputs, outputs = next(self.steps)
        except StopIteration:
            return False
        numbers = self.graph.inputs if step is None else step.outputs
        for number, value in zip(numbers, outputs, strict=True):
            self.note(number, value)
        if step is not None and chooses(step):
            # The choice may be another in the twin, although it was not in the one draw of other rounding errors.
            least = max(self.run_.noise[number] for number in step.inputs)
            self.run_.noise.update({number: max(least, self.run_.noise[number]) for number in numbers})
        if step is not None:
            follow_order(step, inputs, outputs, self.run_.flattened)
        return True

    def note(self, number: int, value: Value) -> None:
        tensor = as_tensor(value.exact)
        self.run_.shapes[number] = tuple(tensor.shape)
        if number not in self.run_.noise:
            self.run_.noise[number] = noise_of(tensor, as_tensor(value.shaken))
        if number in self.others:
            self.run_.others[number] = tensor
        if self.pending[number]:
            self.values[number] = tensor

    def compare(self, number: int, twin: Tensor, spot: Spot, taker: tuple[int, int] | None) -> None:
        value = self.values[number]
        # What one layer returns the next takes; the version tells whether the tensor was overwritten in between.
        known = -1 if twin.is_inference() else number_of(twin)
        key = (number, known, twin._version if known >= 0 else 0)
        best = self.agreed.get(key)
        if best is None:
            best = self.closest(number, twin, spot)
            if best.agrees and known >= 0:
                self.agreed[key] = best
        if taker is not None:
            self.run_.taken[taker] = best
            if taker[0] == len(self.graph.steps):
                self.run_.returned[taker[1]] = (value, twin.clone())
            elif self.is_wanted(number, taker):
                self.run_.inputs[taker[1]] = (value, twin.clone())
            return
        if number not in self.run_.made or best.difference < self.run_.made[number].difference:
            self.run_.made[number] = best
            room = sum(tensor.numel() for tensor, _ in self.run_.kept.values()) + value.numel() <= KEPT
            if self.is_wanted(number, None) or (not best.agrees and room and self.came_right(number)):
                self.run_.kept[number] = (value, twin.clone())

    def closest(self, number: int, twin: Tensor, spot: Spot) -> Seen:
        """Compare a Keras tensor and the twin's in each way that one can be laid over the other; return the best."""
        within = TIMES_NOISE * self.run_.noise[number]
        best = Seen(inf, within, _MISFIT, tuple(twin.shape), spot)
        module = self.run_.calls[spot.call].module if spot.call < len(self.run_.calls) else None
        flattened, window = self.run_.flattened.get(number), spot.when == "in"
        for view, candidate, way in views(self.values[number], twin, module, flattened, window):
            difference = distance(view, candidate)
            if best.way == _MISFIT or difference < best.difference:
                best = best._replace(difference=difference, way=way)
            if best.agrees:
                break
        return best

    def came_right(self, number: int) -> bool:
        """Tell whether the inputs of the step that returned a tensor agreed, as far as they were seen."""
        for index, step in enumerate(self.graph.steps):
            if number in step.outputs:
                seen = [self.run_.taken.get((index, slot)) for slot in range(len(step.inputs))]
                seen = [one or self.run_.made.get(n) for one, n in zip(seen, step.inputs, strict=True)]
                return all(one is None or one.agrees for one in seen)
        return True

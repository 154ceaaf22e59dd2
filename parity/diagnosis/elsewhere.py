"""Causes in steps whose own output is not seen in the twin: another function is put in a step's place.

Of several functions in a row often only the last result can be seen, and functions that the twin has in other groups
than the Keras model may be paired wrongly. So a function is put in the place of a Keras step, what follows is computed
again, and the result is compared with a tensor of the twin that is surely the right one. Nothing but numbers decides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product
from math import isfinite, prod
from typing import NamedTuple

from parity.diagnosis.causes import Cause, Untried
from parity.diagnosis.evidence import Evidence, Function
from parity.diagnosis.needed import Look
from parity.models.alignment import CHANNELS_FIRST_FEATURES, largest
from parity.models.keras_channels import as_in_keras, with_channels_last
from parity.models.keras_graph import Step, StepIndex, TensorId, activates, run_step
from parity.models.rounding import TIMES_NOISE
from parity.tensors import as_tensor
from parity.tracing.op_families import SCALES, names_of_step
from parity.tracing.runs import Run
from parity.tracing.side_by_side import STORED_NUMBERS
from parity.tracing.verdicts import Kind, Verdict

import keras
from torch import Tensor

# At most so many steps before a tensor of the twin are looked at, so many rows of at most so many steps that together
# may be one function, and so many tensors of the twin behind the mistake. GELU by tanh takes eight operations.
_MOST_STEPS, _MOST_ROWS, _LONGEST_ROW, _MOST_TARGETS = 24, 24, 8, 2
# What may be computed for all of these: so many steps, or so many for each of the model's, and so many numbers, or so
# many for each of the model's. A trace computes each step and each number several times, and those of layers with
# weights cost far more than those of functions.
_MOST_RUNS, _TIMES_RUNS, _MOST_NUMBERS, _TIMES_NUMBERS = 800, 20, 2**22, 40


class Target(NamedTuple):
    """A tensor of the twin that shows what the steps before it compute.

    Attributes:
        at: The step whose input it is; the step itself if it is an output.
        slot: The position among the step's inputs, None for an output.
        number: The Keras tensor in its place.
    """

    at: StepIndex
    slot: int | None
    number: TensorId


class Found(NamedTuple):
    """What explains a difference, and at which step.

    Attributes:
        causes: The causes; empty if nothing was found.
        step: The step.
        untried: What was left out.
    """

    causes: list[Cause]
    step: StepIndex
    untried: tuple[str, ...] = ()


class _TooMuchError(Exception):
    """Raised when so much was computed that no more may be."""


class _Budget:
    """What may still be computed."""

    def __init__(self, run: Run) -> None:
        self.runs = max(_MOST_RUNS, _TIMES_RUNS * len(run.graph.steps))
        self.numbers = max(_MOST_NUMBERS, _TIMES_NUMBERS * sum(prod(shape) for shape in run.shapes.values()))

    def spend(self, outputs: Sequence[Tensor]) -> None:
        """Take off what the outputs of a step cost."""
        self.runs -= 1
        self.numbers -= sum(output.numel() for output in outputs)
        if self.runs < 0 or self.numbers < 0:
            raise _TooMuchError


Attempts = Sequence[Callable[[Evidence], Iterator[Cause | Untried]]]


def targets_first(run: Run, verdict: Verdict) -> list[Target]:
    """Return what to look at before the causes at the step itself are tried: it may not be the step that is wrong.

    Layers that scale, and single operations, may be grouped otherwise in the twin: only what the next layer with
    weights takes is surely the right tensor. The twin of an activation may be a function that is the last of
    several. And what is before a step without weights, and not seen, may be missing there.
    """
    steps = run.graph.steps
    if verdict.step >= len(steps) or steps[verdict.step].weights:
        return []
    step = steps[verdict.step]
    producers, consumers = run.graph.producers(), run.graph.consumers()
    if not isinstance(step.layer, keras.layers.Layer):
        return _behind(run, verdict.step)
    if names_of_step(step) & SCALES:
        around = [producers.get(number) for number in step.inputs]
        around += [index for number in step.outputs for index, _ in consumers[number]]
        several = any(i is not None and i < len(steps) and names_of_step(steps[i]) & SCALES for i in around)
        return _behind(run, verdict.step) if several else []
    if len(step.inputs) != 1 or (verdict.kind != Kind.TAKES_OTHER and (verdict.step, 0) in run.inputs):
        return []
    calls = [run.calls[call] for call in run.pairing.twins.get(verdict.step, ())]
    before = producers.get(step.inputs[0])
    last_of_several = activates(step) and bool(calls) and calls[-1].module is None
    unseen = before is not None and before not in run.pairing.twins and not steps[before].weights
    return _at(run, verdict) if unseen or (last_of_several and verdict.kind == Kind.TAKES_OTHER) else []


def targets_then(run: Run, verdict: Verdict) -> list[Target]:
    """Return what to look at where no cause is found at the step: what it takes and returns, and what is behind it."""
    targets = _at(run, verdict)
    if verdict.step < len(run.graph.steps) and not run.graph.steps[verdict.step].weights:
        targets += _behind(run, verdict.step)
    first = targets_first(run, verdict)
    return [target for target in targets if target not in first]


def explained_elsewhere(run: Run, targets: Sequence[Target], attempts: Attempts, look: Look) -> Found:
    """Return what explains a difference if another function is put in the place of a step before it.

    Args:
        run: The record of both models' run.
        targets: The tensors that show the difference, one after the other.
        attempts: What is tried at each step; they ask ``Evidence.gives`` only.
        look: Returns the tensors around a step.
    """
    untried: list[str] = []
    budget = _Budget(run)
    for target in targets:
        steps = _steps_before(run, target)
        numbers = {number for index in steps for number in (*run.graph.steps[index].inputs, target.number)}
        if not steps or sum(prod(run.shapes[number]) for number in numbers) > STORED_NUMBERS:
            continue
        seen = _seen(run, target, steps, look)
        if seen is None:
            continue
        try:
            several = list(_Stretch(run, steps, target, seen, budget).evidence())
            # Of several explanations that numbers cannot tell apart, the attempts have the likeliest first.
            for attempt, (index, evidence) in product(attempts, several):
                causes = [found for found in attempt(evidence) if isinstance(found, Cause)]
                if causes:
                    return Found(causes, index)
        except _TooMuchError:
            untried.append(f"of {len(steps)} functions before {_name(run, target)}, not all others were put in place")
    return Found([], 0, tuple(untried))


def _name(run: Run, target: Target) -> str:
    return run.graph.steps[target.at].name if target.at < len(run.graph.steps) else "the model's return"


def _at(run: Run, verdict: Verdict) -> list[Target]:
    """Return the first input that is wrong, and the output of a step without weights; what the model returns."""
    graph, index = run.graph, verdict.step
    if index == len(graph.steps):
        return [Target(index, verdict.output, graph.outputs[verdict.output])]
    step, targets = graph.steps[index], []
    if verdict.kind == Kind.TAKES_OTHER:
        compared = [(slot, run.inputs.get((index, slot))) for slot in range(len(step.inputs))]
        wrong = [slot for slot, found in compared if found is not None and not found.agrees]
        targets += [Target(index, slot, step.inputs[slot]) for slot in wrong[:1]]
    if not step.weights:
        outputs = [number for number in step.outputs if number in run.outputs and not run.outputs[number].agrees]
        targets += [Target(index, None, number) for number in outputs[:1]]
    return targets


def _behind(run: Run, start: StepIndex) -> list[Target]:
    """Return the nearest inputs of layers with weights, or outputs of the model, that steps without weights lead to."""
    graph, consumers = run.graph, run.graph.consumers()
    found, todo, seen = [], list(graph.steps[start].outputs), set()
    while todo:
        number = todo.pop(0)
        for index, slot in consumers[number]:
            is_end = index == len(graph.steps) or bool(graph.steps[index].weights)
            if is_end and (index, slot) in run.inputs:
                found.append(Target(index, slot, number))
            elif not is_end and index not in seen:
                seen.add(index)
                todo += graph.steps[index].outputs
    wrong = [target for target in found if target.slot is not None and not run.inputs[target.at, target.slot].agrees]
    return sorted(wrong, key=lambda target: target.at)[:_MOST_TARGETS]


def _steps_before(run: Run, target: Target) -> list[StepIndex]:
    """Return the steps without weights between a tensor and those before it that surely agree, in order."""
    graph, producers = run.graph, run.graph.producers()
    found: set[StepIndex] = set()
    todo = [target.number]
    while todo and len(found) < _MOST_STEPS:
        number = todo.pop(0)
        index, seen = producers.get(number), run.outputs.get(number)
        agrees = seen is not None and seen.agrees and seen.note != CHANNELS_FIRST_FEATURES
        if index is None or index in found or graph.steps[index].weights or (agrees and number != target.number):
            continue
        found.add(index)
        todo += graph.steps[index].inputs
    return sorted(found)


class _Seen(NamedTuple):
    """The Keras tensors of some steps, and the tensor of the twin that shows what they compute."""

    values: Mapping[TensorId, Tensor]
    twin: Tensor


def _seen(run: Run, target: Target, steps: Sequence[StepIndex], look: Look) -> _Seen | None:
    """Run both models again and return what is seen of steps, None if the target is not."""
    several = [run.graph.steps[index] for index in steps]
    wanted = {number for step in several for number in (*step.inputs, *step.outputs)}
    tensors = look(target.at, wanted)
    twin = tensors.outputs.get(target.number) if target.slot is None else tensors.seen.get(target.slot)
    return None if twin is None or not wanted <= tensors.keras.keys() else _Seen(tensors.keras, twin)


class _Stretch:
    """Steps without weights whose last result is seen in the twin."""

    def __init__(self, run: Run, steps: list[StepIndex], target: Target, seen: _Seen, budget: _Budget) -> None:
        self.run, self.steps, self.target, self.budget = run, steps, target, budget
        self.values, self.twin = seen
        growth = largest(self.twin) / max(largest(self.values[target.number]), 1e-30)
        self.tolerance = TIMES_NOISE * run.noise[target.number] * max(1.0, growth if isfinite(growth) else 1.0)
        self.producers = run.graph.producers()

    def evidence(self) -> Iterator[tuple[StepIndex, Evidence]]:
        """Yield each step with its evidence; then each row of operations that together may be one function.

        The last step comes first, because little follows it that has to be computed again.
        """
        for index in reversed(self.steps):
            group = self.alike(index)
            if group[0] == index:
                yield index, self.evidence_of(index, self.step(index).inputs, group)
            if len(group) > 1:
                yield index, self.evidence_of(index, self.step(index).inputs, [index])
        rows = ((index, inputs) for index in self.steps for inputs in self.rows_to(index))
        for index, inputs in islice(rows, _MOST_ROWS):
            yield index, self.evidence_of(index, inputs, [index])._replace(composed=True)

    def step(self, index: StepIndex) -> Step:
        return self.run.graph.steps[index]

    def axis(self, number: TensorId, step: Step | None) -> int:
        """Return the axis on which Keras has the channels of a tensor, which a step takes or returns."""
        return self.run.channels.axis(number, step, self.values[number].ndim)

    def last(self, number: TensorId, step: Step | None) -> Tensor:
        """Return a tensor with the channels last."""
        return with_channels_last(self.values[number], self.axis(number, step))

    def alike(self, index: StepIndex) -> list[StepIndex]:
        """Return the calls of the same layer; of all that flatten, which a twin does in one way."""
        step = self.step(index)
        flattens = isinstance(step.layer, keras.layers.Flatten)
        others = ((other, self.step(other)) for other in self.steps)
        return [
            number
            for number, other in others
            if (other.layer is step.layer and other.is_activation == step.is_activation)
            or (flattens and isinstance(other.layer, keras.layers.Flatten) and self.rank(other) == self.rank(step))
        ]

    def rank(self, step: Step) -> int:
        return self.values[step.inputs[0]].ndim

    def rows_to(self, index: StepIndex) -> Iterator[tuple[TensorId, ...]]:
        """Yield what operations take that together may be one function: a tensor, or those of a merge.

        Args:
            index: The last of the operations.
        """
        step, producers = self.step(index), self.producers
        shape = self.run.shapes[step.outputs[0]]
        before = [number for other in self.steps if other < index for number in self.step(other).inputs]
        for number in dict.fromkeys(before):
            if self.run.shapes[number] == shape and self.is_all_of(index, number):
                yield (number,)
        merge = producers.get(step.inputs[0]) if len(step.inputs) == 1 else None
        if merge is not None and merge in self.steps and len(self.step(merge).inputs) > 1:
            yield self.step(merge).inputs

    def is_all_of(self, index: StepIndex, number: TensorId) -> bool:
        """Tell whether a step depends on nothing but a tensor, through a few other steps."""
        todo, between, found = list(self.step(index).inputs), {index}, False
        while todo:
            other = todo.pop()
            if other == number:
                found = True
            elif self.producers.get(other) not in self.steps:
                return False
            elif self.producers[other] not in between:
                between.add(self.producers[other])
                todo += self.step(self.producers[other]).inputs
        return found and 1 < len(between) <= _LONGEST_ROW

    def evidence_of(self, index: StepIndex, inputs: Sequence[TensorId], replaced: Sequence[StepIndex]) -> Evidence:
        """Return the evidence of a step, in whose place, and that of others, functions are put.

        Args:
            index: The step.
            inputs: What the functions take.
            replaced: The steps; each but ``index`` takes its own inputs.
        """
        step = self.step(index)

        def onward(function: Function) -> Tensor | None:
            taken = {other: self.step(other).inputs if other != index else tuple(inputs) for other in replaced}
            return self.computed(function, taken)

        return Evidence(
            run=self.run,
            at_step=index,
            step=step,
            modules=[],
            inputs=[self.last(number, step) for number in inputs],
            twin_inputs=[],
            value=self.last(step.outputs[0], step),
            twin=self.twin,
            tolerance=self.tolerance,
            flattened=None,
            channels_first=False,
            weights={},
            places={},
            others={},
            axes=[self.axis(number, step) for number in inputs],
            axis=self.axis(step.outputs[0], step),
            onward=onward,
        )

    def computed(self, function: Function, taken: Mapping[StepIndex, Sequence[TensorId]]) -> Tensor | None:
        """Return the target if a function is in the place of steps; None if it, or what follows, cannot be computed.

        Args:
            function: The function.
            taken: The steps, and what the function takes at each.
        """
        changed: dict[TensorId, Tensor] = {}

        def value(number: TensorId) -> Tensor:
            return changed[number] if number in changed else self.values[number]

        for index in self.steps:
            step = self.step(index)
            try:
                if index in taken:
                    given = [with_channels_last(value(n), self.axis(n, step)) for n in taken[index]]
                    outputs = [as_in_keras(function(*given), self.axis(step.outputs[0], step))]
                elif changed.keys() & set(step.inputs):
                    inputs = [keras.ops.convert_to_tensor(value(number).numpy()) for number in step.inputs]
                    outputs = [as_tensor(output) for output in run_step(step, inputs)]
                else:
                    continue
            except Exception:  # whatever a backend raises where shapes do not fit
                return None
            changed.update(zip(step.outputs, outputs, strict=False))
            self.budget.spend(outputs)
        number = self.target.number
        return with_channels_last(changed[number], self.axis(number, None)) if number in changed else None

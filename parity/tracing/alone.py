"""Look at each layer by itself: the twin runs, and what differs in it is replaced by what Keras has there.

So each layer takes the right numbers, whatever came before, and what it makes of them is its own. A tensor is replaced
where the call returns it that is surely the layer's twin. Else it is replaced where the next layer takes it.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from typing import NamedTuple

from parity.errors import ParityError
from parity.models.alignment import BORDERS
from parity.models.inputs import unchanged
from parity.models.keras_channels import with_channels_last
from parity.models.keras_graph import StepIndex, TensorId
from parity.models.keras_values import walk
from parity.models.placing import Place, axes_of, placed
from parity.models.sequences import RECURRENT_MODULES, SEQUENCE_MODULES
from parity.models.torch_calls import Watch, record
from parity.tensors import as_tensor
from parity.tracing.misfits import without_misfits
from parity.tracing.op_families import FAMILIES, names_of_call
from parity.tracing.pairing import Spot
from parity.tracing.port import Port
from parity.tracing.runs import MISFIT, Comparison, Run
from parity.tracing.side_by_side import Comparer, Consumer, EnoughError, Tensors, seen_as_keras
from parity.tracing.training import faults_without_gradients
from parity.tracing.verdicts import STARTS, Kind, Verdict, verdicts_of

from torch import Tensor, nn

_PADDING = frozenset({"pad", "zeropad", "constantpad"})
_CUTTING = frozenset({*FAMILIES["border"], "split", "chunk", "unbind", "index_select", "gather", "crop"})


class Alone(NamedTuple):
    """Both models' run in which each layer of the twin took what Keras's layer takes.

    Attributes:
        plain: The run in which it took what the layers before it returned.
        run: The record.
        right_inputs: Steps whose inputs were replaced although the layers before them return the right numbers.
        verdicts: A verdict on each step and each output of the Keras model.
        stopped: Why the twin stopped, if it did.
    """

    plain: Run
    run: Run
    right_inputs: frozenset[StepIndex]
    verdicts: list[Verdict]
    stopped: str

    def starts(self) -> list[Verdict]:
        """Return the verdicts on what differs by itself, in the order of the data flow."""
        return [verdict for verdict in self.verdicts if verdict.kind in STARTS]

    def unseen(self) -> list[Verdict]:
        """Return the verdicts on what could not be looked at by itself."""
        behind_stop = self.plain.outputs.keys() - self.run.outputs.keys() if self.stopped else set()
        return [verdict for verdict in self.verdicts if self._is_unseen(verdict, behind_stop)]

    def _is_unseen(self, verdict: Verdict, behind_stop: set[TensorId]) -> bool:
        steps = self.run.graph.steps
        if verdict.step == len(steps):
            return verdict.kind == Kind.DIFFERENT_BEFORE or (verdict.kind == Kind.NOT_PAIRED and bool(self.stopped))
        return verdict.kind == Kind.DIFFERENT_BEFORE or not behind_stop.isdisjoint(steps[verdict.step].outputs)


def run_alone(port: Port, plain: Run, right_inputs: Collection[StepIndex] = ()) -> Alone:
    """Run both models of a port once more, each layer of the twin with the right inputs. Neither model is changed.

    Args:
        port: The two models.
        plain: What ``run`` has returned for them.
        right_inputs: Steps to give the right inputs although the layers before them return the right numbers: the twin
            takes something else.
    """
    forcing = _Forcing(port, plain, right_inputs)
    stopped, faults = "", {}
    before = {w.path: as_tensor(w).clone() for w in port.keras_model.non_trainable_variables}
    with unchanged(port.keras_model, port.twin, plain.training):
        try:
            forcing.run_twin()
        except ParityError as error:
            stopped = "; ".join(error.faults)
        while forcing.advance():
            pass
        run = forcing.result()
        if plain.training and not stopped:
            faults = faults_without_gradients(port, run, before)
    verdicts = verdicts_of(run, faults)
    for index, slot in forcing.other_inputs(run):
        output = slot if index == len(run.graph.steps) else 0
        at = index + output
        if verdicts[at].kind not in STARTS:
            verdicts[at] = Verdict(Kind.TAKES_OTHER, index, output)
    return Alone(plain, run, frozenset(right_inputs), verdicts, stopped)


def tensors_alone(
    port: Port, alone: Alone, wanted: Mapping[StepIndex, Collection[TensorId]]
) -> dict[StepIndex, Tensors]:
    """Return the tensors around steps, as ``tensors_at`` does, of the run in which each layer took the right inputs.

    ``Tensors.inputs`` are what a step was given; ``Tensors.seen`` and ``Tensors.outputs`` are the twin's own, before
    they were replaced.

    Args:
        port: The two models.
        alone: What ``run_alone`` has returned for them.
        wanted: For each of the steps, other Keras tensors to return.
    """
    collecting = _Collecting(port, alone, wanted)
    with unchanged(port.keras_model, port.twin, alone.run.training):
        with suppress(EnoughError, ParityError):
            collecting.run_twin()
        while not collecting.needed <= collecting.values.keys() and collecting.advance():
            pass
    return {
        step: collecting.found[step]._replace(keras={number: collecting.values[number] for number in numbers})
        for step, numbers in collecting.numbers.items()
    }


class _Forcing(Comparer):
    """Compares tensors at each of the twin's calls, and replaces those that differ by Keras's."""

    def __init__(self, port: Port, plain: Run, right_inputs: Collection[StepIndex]) -> None:
        super().__init__(port, plain.calls, plain.pairing, plain.training)
        self.port, self.known_noise, self.right_inputs = port, plain.noise, right_inputs
        self.steps = walk(port.graph, port.inputs, plain.training, perturb=None)
        # What the call goes on with that the twin is at.
        self.given: list[Tensor] = []
        self.changed = False
        self.last: Comparison | None = None
        # Keras tensors that were given in place of what a call returns, and in place of what the next one takes.
        self.returned_right: set[TensorId] = set()
        self.taken_right: dict[Consumer, tuple[TensorId, Comparison]] = {}
        self.kept: set[TensorId] = set()
        # How the twin has the axes of tensors that agree.
        self.order: dict[TensorId, str | bool] = {}
        # Where a Keras tensor is still without the border that the layer behind it needs: there it is replaced.
        self.without_border: dict[Consumer, Spot] = {}
        producer_of = {number: index for index, call in enumerate(self.calls) for number in call.outputs}
        for (step, slot), spot in plain.pairing.inputs.items():
            number, source = self.graph.inputs_of(step)[slot], spot
            while source.call < len(self.calls):
                before = producer_of.get(self.calls[source.call].inputs[source.position])
                if before is None or not names_of_call(self.calls[before]) & _PADDING or self.has_step(before):
                    break
                source = Spot(before, "in", 0)
            if source != spot:
                self.without_border[step, slot] = source
                self.plan(number, source, (step, slot))

    def has_step(self, call: int) -> bool:
        """Tell whether a call is the twin of a step."""
        return any(first <= call <= last for first, last in self.pairing.twins.values())

    def run_twin(self) -> None:
        """Run the twin; see ``record``."""
        port, watch = self.port, Watch(self.calls, self.watch, dropout=not self.training)
        inputs = [tensor.clone() for tensor in port.twin_inputs]
        record(port.twin, inputs, port.modules_with_weights, port.graph.keys, watch)

    def advance(self) -> bool:
        """Compute the Keras model's next step; tell whether there was one."""
        there = super().advance()
        self.noise.update(self.known_noise)
        return there

    def watch(self, call: int, when: str, tensors: list[Tensor]) -> list[Tensor] | None:
        """Compare what is planned for a call; return what the twin is to go on with."""
        self.given, self.changed = list(tensors), False
        super().watch(call, when, tensors)
        return self.given if self.changed else None

    def comparison(self, number: TensorId, twin: Tensor, spot: Spot, axes: Sequence[int]) -> Comparison:
        """Compare a Keras tensor and the twin's."""
        self.last = super().comparison(number, twin, spot, axes)
        if self.last.agrees and number not in self.order:
            self.order[number] = axes_of(with_channels_last(self.values[number], axes[0]), twin, self.last.note)
        return self.last

    def enter(self, number: TensorId, twin: Tensor, spot: Spot, consumer: Consumer | None) -> None:
        """Compare a Keras tensor with the twin's, add the comparison, and replace the twin's if it differs."""
        if consumer is not None and self.without_border.get(consumer) == spot:
            if number in self.pairing.observed:
                super().enter(number, twin, spot, None)
            else:
                self.comparison(number, twin, spot, self.axes(number, consumer))
        elif consumer is not None or spot.when == "out" or not self.is_replaced(number, spot):
            super().enter(number, twin, spot, consumer)
        else:
            return
        found = self.last
        if found is None or (found.agrees and not self.has_wrong_size(number, found)):
            return
        if not self.is_to_be_replaced(number, spot, consumer):
            return
        new = self.replacement(number, spot, consumer)
        if new is None:
            return
        self.given[spot.position], self.changed = new, True
        self.kept.add(number)
        if spot.when == "out":
            self.returned_right.add(number)
        elif consumer is not None:
            right = self.comparison(number, self.seen(spot, self.given), spot, self.axes(number, consumer))
            self.taken_right[consumer] = number, right

    def is_replaced(self, number: TensorId, spot: Spot) -> bool:
        """Tell whether a Keras tensor was replaced where a consumer takes it, or before a border was added to it."""
        there = [consumer for consumer, (other, _) in self.taken_right.items() if other == number]
        return any(consumer in self.without_border and self.pairing.inputs[consumer] == spot for consumer in there)

    def has_wrong_size(self, number: TensorId, found: Comparison) -> bool:
        """Tell whether a tensor agrees only in a part, and is no larger or smaller than a call has returned it."""
        returned = self.outputs.get(number)
        return found.note in BORDERS and returned is not None and returned.shape == found.shape and not returned.agrees

    def is_to_be_replaced(self, number: TensorId, spot: Spot, consumer: Consumer | None) -> bool:
        """Tell whether a tensor that differs is to be replaced here.

        It is not, if the layers before return what they should: then the twin takes another tensor, and that is to be
        seen.
        """
        if spot.when == "out":
            of_its_size = self.last is not None and self.last.note != MISFIT
            # A recurrent module returns its last step twice, and the twin may take either.
            recurrent = isinstance(self.module_at(spot), RECURRENT_MODULES)
            return self.is_certain(number) and not recurrent and (of_its_size or not self.is_cut(spot))
        if consumer is not None and consumer[0] in self.right_inputs:
            return True
        if number in self.returned_right:
            return False
        found = self.outputs.get(number)
        return number in self.pairing.observed or (found is not None and not found.agrees)

    def is_certain(self, number: TensorId) -> bool:
        """Tell whether the call that returns a tensor in the place of a Keras tensor is surely the layer's twin."""
        if number in self.pairing.guessed or number in self.pairing.heads or number not in self.producers:
            return False
        index = self.producers[number]
        if self.may_do_more(number):
            return False
        step = self.graph.steps[index]
        return bool(step.weights) or all(found is None or found.agrees for found in self.taken_by(index))

    def may_do_more(self, number: TensorId) -> bool:
        """Tell whether a module may return what a later step returns in Keras, because it does that, too."""
        work = self.pairing.work.get(number)
        if work is None or not work.more or work.more[0] in self.pairing.twins:
            return False
        module = self.module_at(self.pairing.outputs[number])
        return module is not None and not type(module).__module__.startswith("torch.nn")

    def is_cut(self, spot: Spot) -> bool:
        """Tell whether the twin takes a part of what a call returns, or adds a border to it."""
        number = self.calls[spot.call].outputs[spot.position]
        takes = [call for call in self.calls if number in call.inputs]
        return any(names_of_call(call) & _CUTTING for call in takes)

    def taken_by(self, index: StepIndex) -> list[Comparison | None]:
        """Return the comparisons of what a step's twin takes."""
        taken = enumerate(super().taken_by(index))
        return [self.taken_right[index, slot][1] if (index, slot) in self.taken_right else one for slot, one in taken]

    def returned_before(self, number: TensorId) -> Comparison | None:
        """Return the comparison of what the twin returns, None if the right numbers were given in its place."""
        return None if number in self.returned_right else super().returned_before(number)

    def replacement(self, number: TensorId, spot: Spot, consumer: Consumer | None) -> Tensor | None:
        """Return what the twin would have at a spot if it had the right numbers; None if that is not known."""
        known = self.order.get(number)
        if known is None and number in self.producers:
            before = self.graph.steps[self.producers[number]].inputs
            known = next((self.order[other] for other in before if other in self.order), None)
        features, seen_at = self.channels.features(number, self.flattened), partial(self.seen_at, spot)
        place = Place(self.given[spot.position], self.module_at(spot), seen_at)
        places = [place]
        if isinstance(place.module, SEQUENCE_MODULES):
            # It may take time for batch, and what it is given is right.
            places.append(place._replace(module=None))
        for axis, at in product(self.axes(number, consumer), places):
            new = placed(with_channels_last(self.values[number], axis), at, features, known)
            if new is not None:
                return new
        return None

    def module_at(self, spot: Spot) -> nn.Module | None:
        """Return the module that takes or returns what is seen at a spot."""
        return self.calls[spot.call].module if spot.call < len(self.calls) else None

    def seen_at(self, spot: Spot, tensor: Tensor) -> Tensor:
        """Return a tensor that is at a spot with the axes that Keras has."""
        tensors = [*self.given[: spot.position], tensor, *self.given[spot.position + 1 :]]
        return seen_as_keras(self.graph, self.calls, self.pairing, spot, tensors).tensor

    def result(self) -> Run:
        """Return the record; what a step was given counts as what its twin takes."""
        run = without_misfits(super().result(), self.kept)
        others = set(self.other_inputs(run))
        right = {consumer: found for consumer, (_, found) in self.taken_right.items() if consumer not in others}
        return run._replace(inputs=dict(run.inputs) | right, forced=frozenset(self.returned_right))

    def other_inputs(self, run: Run) -> list[Consumer]:
        """Return the inputs that were replaced although the layers before return what they should.

        That shows late: another layer that takes the same tensor takes the right numbers.
        """
        return [
            consumer
            for consumer, (number, _) in self.taken_right.items()
            if not (consumer[0] in self.right_inputs or consumer in self.without_border)
            and number in run.outputs
            and run.outputs[number].agrees
        ]


class _Collecting(_Forcing):
    """Stores tensors around steps while the twin runs."""

    def __init__(self, port: Port, alone: Alone, wanted: Mapping[StepIndex, Collection[TensorId]]) -> None:
        super().__init__(port, alone.plain, alone.right_inputs)
        run, steps = alone.run, port.graph.steps
        self.found = {step: Tensors({}, {}, {}, {}) for step in wanted}
        returned = {step: run.outputs_of(step) if step < len(steps) else () for step in wanted}
        self.numbers = {step: {*run.graph.inputs_of(step), *returned[step], *wanted[step]} for step in wanted}
        self.needed = set().union(*self.numbers.values())
        self.pending.update(self.needed)  # so that they are kept
        # For each moment at which the twin is watched: the step of a tensor, its slot if it is an input, its number if
        # it is an output, and where it is seen.
        self.to_store: dict[tuple[int, str], list[tuple[StepIndex, int | None, TensorId | None, Spot]]]
        self.to_store = defaultdict(list)
        for (step, slot), spot in run.pairing.inputs.items():
            if step in wanted:
                self.to_store[spot.call, spot.when].append((step, slot, None, spot))
        for step, numbers in returned.items():
            for number in numbers:
                if number in run.outputs:
                    spot = run.outputs[number].spot
                    self.to_store[spot.call, spot.when].append((step, None, number, spot))

    def watch(self, call: int, when: str, tensors: list[Tensor]) -> list[Tensor] | None:
        """Store what is wanted of a call."""
        wanted = self.to_store.pop((call, when), [])
        for step, slot, number, spot in wanted:
            seen = seen_as_keras(self.graph, self.calls, self.pairing, spot, tensors).tensor.clone()
            if slot is not None:
                self.found[step].seen[slot] = seen
            elif number is not None:
                self.found[step].outputs[number] = seen
        given = super().watch(call, when, tensors)
        for step, slot, _, spot in wanted:
            if slot is not None:
                self.found[step].inputs[slot] = (given or tensors)[spot.position].clone()
        if not self.to_store:
            raise EnoughError
        return given

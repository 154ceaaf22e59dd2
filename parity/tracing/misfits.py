"""Drop comparisons with a wrong tensor of the twin, which show only after both models have run."""

from collections.abc import Collection
from functools import cache
from math import inf

from parity.models.alignment import BORDERS
from parity.models.keras_graph import StepIndex, TensorId
from parity.tracing.runs import MISFIT, Comparison, Run


def without_misfits(run: Run, kept: Collection[TensorId] = ()) -> Run:
    """Return a run without comparisons with a wrong tensor of the twin.

    A Keras tensor may have no counterpart. The twin may merge two axes into one, or return more from a module than it
    uses, so that no shape fits. Or it computes in another order: ``a + (b + c)`` for ``(a + b) + c``. Where a consumer
    of the tensor takes the right one, that comparison is used instead. Else, if it is doubtful whether a call is the
    layer's twin, and all consumers of the layer's output are right, the pair is dropped.

    Args:
        run: The run.
        kept: Keras tensors whose comparisons stay: of these it is known that they were compared with the right tensor.
    """
    inputs, outputs, twins = dict(run.inputs), dict(run.outputs), dict(run.pairing.twins)
    steps, producers, consumers = run.graph.steps, run.graph.producers(), run.graph.consumers()

    @cache
    def is_right(index: StepIndex) -> bool:
        """Tell whether a step's outputs agree; if none was compared, whether the steps that take them are right.

        The model's return is never right by itself: nothing follows it that could show it.
        """
        numbers = steps[index].outputs if index < len(steps) else ()
        compared = [outputs[number] for number in numbers if number in outputs]
        if compared:
            return all(found.agrees for found in compared)
        following = [consumer for number in numbers for consumer, _ in consumers[number]]
        return bool(following) and all(map(is_right, following))

    def may_have_other_twin(number: TensorId) -> bool:
        # Without a twin, a layer's output is observed at its consumer, which may be a part of the layer's real twin.
        if number in run.pairing.observed or number in run.pairing.guessed:
            return True
        index = producers[number]
        compared = [inputs[index, slot] for slot in range(len(steps[index].inputs)) if (index, slot) in inputs]
        return not steps[index].weights and not all(found.agrees for found in compared)

    for number in sorted(outputs.keys() - set(kept), reverse=True):  # of several in a row, the last first
        doubtful = not outputs[number].agrees and may_have_other_twin(number)
        if outputs[number].note != MISFIT and not doubtful:
            continue
        compared = [inputs[consumer] for consumer in consumers[number] if consumer in inputs]
        same = [found for found in compared if found.agrees and found.note not in BORDERS]
        if same:
            outputs[number] = same[0]
        elif all(is_right(index) for index, _ in consumers[number]):
            del outputs[number]
            if doubtful:
                twins.pop(producers[number], None)
    for index, slot in list(inputs):
        if inputs[index, slot].note == MISFIT and is_right(index):
            del inputs[index, slot]
    _without_borders_of_wrong_tensors(run, inputs, outputs, kept)
    return run._replace(inputs=inputs, outputs=outputs, pairing=run.pairing._replace(twins=twins))


def _without_borders_of_wrong_tensors(
    run: Run,
    inputs: dict[tuple[StepIndex, int], Comparison],
    outputs: dict[TensorId, Comparison],
    kept: Collection[TensorId],
) -> None:
    """Undo each agreement within a border behind a layer that returns something else.

    A layer that returns more than it should has the right numbers within what it returns. That is no padding.
    """
    wrong = {number for number, found in outputs.items() if not found.agrees} - set(kept)
    for index, step in enumerate(run.graph.steps):
        for slot, number in enumerate(step.inputs):
            found = inputs.get((index, slot))
            if number in wrong and found is not None and found.note in BORDERS:
                inputs[index, slot] = found._replace(difference=inf, note=MISFIT)
        for number in step.outputs if wrong.intersection(step.inputs) else ():
            found = outputs.get(number)
            if found is not None and found.note in BORDERS:
                outputs[number] = found._replace(difference=inf, note=MISFIT)
                wrong.add(number)

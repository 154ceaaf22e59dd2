"""Comparisons of a Keras tensor with something that is no twin of it, found out after the run and taken back."""

from functools import cache

from parity.models.alignment import BORDERS
from parity.models.keras_graph import StepIndex, TensorId
from parity.tracing.runs import MISFIT, Run


def without_misfits(run: Run) -> Run:
    """Take a layer as not paired where its twin is in doubt and all layers that take its output are right.

    A twin may merge two axes into one, or return more from a module than it uses; then no shape fits. Or it has no such
    tensor, as it computes in another order: ``a + (b + c)`` for ``(a + b) + c``.
    """
    inputs, outputs, twins = dict(run.inputs), dict(run.outputs), dict(run.pairing.twins)
    steps, producers, consumers = run.graph.steps, run.graph.producers(), run.graph.consumers()

    @cache
    def is_right(index: StepIndex) -> bool:
        """Tell whether a step's outputs agree, or if none was compared, those of the steps that take them."""
        own = steps[index].outputs if index < len(steps) else ()
        compared = [outputs[number] for number in own if number in outputs]
        if compared:
            return all(one.agrees for one in compared)
        after = [consumer for number in own for consumer, _ in consumers[number]]
        return bool(after) and all(map(is_right, after))

    def is_in_doubt(number: TensorId) -> bool:
        # What a layer without a twin returns is looked for in what the next takes, which may be a part of that one.
        if number in run.pairing.observed or number in run.pairing.guessed:
            return True
        index = producers[number]
        compared = [inputs[index, slot] for slot in range(len(steps[index].inputs)) if (index, slot) in inputs]
        return not steps[index].weights and not all(one.agrees for one in compared)

    for number in sorted(outputs, reverse=True):  # of several in a row, the last first
        doubtful = not outputs[number].agrees and is_in_doubt(number)
        if outputs[number].note != MISFIT and not doubtful:
            continue
        taken = [inputs[consumer] for consumer in consumers[number] if consumer in inputs]
        same = [one for one in taken if one.agrees and one.note not in BORDERS]
        if same:
            outputs[number] = same[0]
        elif all(is_right(index) for index, _ in consumers[number]):
            del outputs[number]
            if doubtful:
                twins.pop(producers[number], None)
    for index, slot in list(inputs):
        if inputs[index, slot].note == MISFIT and is_right(index):
            del inputs[index, slot]
    return run._replace(inputs=inputs, outputs=outputs, pairing=run.pairing._replace(twins=twins))

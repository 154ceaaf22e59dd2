"""Causes in normalizations of features: another kind, and another place beside a sum."""

from collections.abc import Iterator, Sequence

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence
from parity.models.keras_graph import Step, TensorId
from parity.models.torch_calls import Call
from parity.tracing.op_families import names_of_call, names_of_step, same_numbers

import keras
import torch

_L = keras.layers
NORMS = (_L.LayerNormalization, _L.RMSNormalization, _L.BatchNormalization, _L.GroupNormalization)
"""The layers that normalize, and have weights."""

_SUMS = frozenset({"add", "iadd", "radd"})


def by_kind_of_norm(evidence: Evidence) -> Iterator[Cause]:
    """Yield that the twin subtracts a mean that Keras's layer does not, or the reverse."""
    step = evidence.step
    if step is None or not isinstance(step.layer, _L.LayerNormalization | _L.RMSNormalization) or not evidence.inputs:
        return
    x, weights = evidence.inputs[0], evidence.weights_of_layer()
    scale = weights.get("gamma", weights.get("scale", torch.ones((), dtype=x.dtype)))
    offset = weights.get("beta", torch.zeros((), dtype=x.dtype))
    mean = x.mean(-1, keepdim=True)
    by_root = x / (x.square().mean(-1, keepdim=True) + step.layer.epsilon).sqrt()
    by_deviation = (x - mean) / (x.var(-1, correction=0, keepdim=True) + step.layer.epsilon).sqrt()
    rms = isinstance(step.layer, _L.RMSNormalization) or getattr(step.layer, "rms_scaling", False)
    other, words = (by_deviation, "the mean is subtracted") if rms else (by_root, "the mean is not subtracted")
    if evidence.explains(other * scale + offset):
        yield known_cause("another normalization", words)


def by_place_of_norm(evidence: Evidence) -> Iterator[Cause]:
    """Yield that the twin normalizes before a sum where Keras does behind it, or the reverse."""
    step, before = evidence.step, evidence.before
    if step is None:
        return
    if not isinstance(step.layer, NORMS):
        yield from _norm_before(evidence, step)
        return
    if before is not None and names_of_step(before) & _SUMS and len(before.inputs) > 1:
        if any(evidence.explains(term) for term in evidence.inputs_before):
            yield known_cause("pre-norm for post-norm", "it normalizes before the sum, not behind it")
        return
    run = evidence.run
    first, _ = run.pairing.twins.get(evidence.at_step, (-1, -1))
    taken = run.calls[first].inputs[0] if first >= 0 and run.calls[first].inputs else -1
    producer = next((call for call in run.calls if taken in call.outputs), None)
    if producer is None or not names_of_call(producer) & _SUMS:
        return
    # In Keras, too, what is normalized is also a term of a sum.
    terms = {number for other in run.graph.steps if names_of_step(other) & _SUMS for number in other.inputs}
    due = _number_in_twin(evidence, step.inputs[0]) if step.inputs[0] in terms else None
    if due is not None and any(_comes_from(run.calls, number, due) for number in producer.inputs):
        yield known_cause("pre-norm for post-norm", "it normalizes behind the sum, not before it")


def _norm_before(evidence: Evidence, step: Step) -> Iterator[Cause]:
    """Yield that the twin takes what a normalization further behind returns, and that this takes what is due here."""
    run, at = evidence.run, evidence.at_step
    sums = {number for other in run.graph.steps if names_of_step(other) & _SUMS for number in other.outputs}
    norms = {}
    for later, (first, last) in run.pairing.twins.items():
        behind = run.graph.steps[later] if later > at else None
        if behind is not None and isinstance(behind.layer, NORMS) and behind.inputs[0] in sums:
            norms[last] = behind.name, first
    for slot, due in enumerate(step.inputs):
        spot, compared = run.pairing.inputs.get((at, slot)), run.inputs.get((at, slot))
        if spot is None or compared is None or compared.agrees:
            continue
        taken, right = run.calls[spot.call].inputs[spot.position], _number_in_twin(evidence, due)
        name, first = next((norm for last, norm in norms.items() if taken in run.calls[last].outputs), ("", -1))
        if right is not None and first >= 0 and _comes_from(run.calls, run.calls[first].inputs[0], right):
            yield known_cause("pre-norm for post-norm", f"{name} comes before it, not behind the sum")
            return


def _comes_from(calls: Sequence[Call], number: int, due: int) -> bool:
    """Tell whether a tensor of the twin is another, or has its numbers in another order of axes."""
    while number != due:
        producer = next((call for call in calls if number in call.outputs), None)
        if producer is None or not same_numbers(producer):
            return False
        number = producer.inputs[0]
    return True


def _number_in_twin(evidence: Evidence, number: TensorId) -> int | None:
    """Return the number of the twin's tensor that agrees with a Keras tensor."""
    run = evidence.run
    if number in run.graph.inputs:
        return run.graph.inputs.index(number)
    found = run.outputs.get(number)
    if found is None or not found.agrees or found.spot.when != "out":
        return None
    return run.calls[found.spot.call].outputs[found.spot.position]

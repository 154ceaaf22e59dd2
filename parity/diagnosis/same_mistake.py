"""Which layers that diverge show the same mistake: it is said once."""

from collections.abc import Sequence
from typing import NamedTuple

from parity.diagnosis.evidence import Evidence
from parity.diagnosis.needed import differing, others_of
from parity.diagnosis.results import Diagnosis
from parity.models.keras_graph import TensorId
from parity.tracing.runs import Run
from parity.tracing.verdicts import Kind, Verdict

import torch

_OF_ANOTHER_LAYER = "weights of another layer"


class Mistake(NamedTuple):
    """A layer that diverges, and what tells whether another one shows the same mistake.

    Attributes:
        verdict: The verdict on it.
        diagnosis: Where it is, and why.
        modules: Its modules in the twin, by identity; if it has none, the Keras layer.
        layers: The paths of the Keras layer's weights, without their last parts.
        holds: The same of other layers whose weights are in these modules.
        flattened: The Keras tensor with flattened features that it takes, if these are in another order.
        due: The Keras tensor that its twin should take, and does not.
        takes: The Keras tensors that it may take instead.
    """

    verdict: Verdict
    diagnosis: Diagnosis
    modules: frozenset[int] = frozenset()
    layers: frozenset[str] = frozenset()
    holds: frozenset[str] = frozenset()
    flattened: TensorId | None = None
    due: TensorId | None = None
    takes: frozenset[TensorId] = frozenset()

    @property
    def causes(self) -> set[str]:
        """Return the names of its causes."""
        return {cause.cause for cause in self.diagnosis.causes}


def mistake_of(run: Run, verdict: Verdict, diagnosis: Diagnosis, evidence: Evidence | None) -> Mistake:
    """Return a divergence with what tells whether another one shows the same mistake.

    Args:
        run: The record of both models' run.
        verdict: The verdict on the layer.
        diagnosis: Where it is, and why.
        evidence: What is known of the layer, if it was gathered.
    """
    mistake = Mistake(verdict, diagnosis)
    if evidence is None:
        return mistake
    layer = {id(evidence.step.layer)} if evidence.step is not None else set()
    mistake = mistake._replace(modules=frozenset({id(module) for module in evidence.modules} or layer))
    if verdict.kind == Kind.TAKES_OTHER:
        names = others_of(run, verdict)
        takes = {
            number
            for number, name in names.items()
            if "another skip" in mistake.causes and name in evidence.others and evidence.explains(evidence.others[name])
        }
        return mistake._replace(due=differing(run, verdict)[0], takes=frozenset(takes))
    if mistake.causes == {"flatten order"} and evidence.step is not None:
        return mistake._replace(flattened=evidence.step.inputs[0])
    if _OF_ANOTHER_LAYER in mistake.causes:
        own = frozenset(_layer(path) for path in evidence.places)
        return mistake._replace(layers=own, holds=_held(evidence) - own)
    return mistake


def _layer(path: str) -> str:
    return path.rpartition("/")[0]


def _held(evidence: Evidence) -> frozenset[str]:
    """Return the layers whose weights are in a layer's modules."""
    held = set()
    for module, name in evidence.places.values():
        tensor = (dict(module.named_parameters()) | dict(module.named_buffers())).get(name)
        for path, value in evidence.weights.items():
            if tensor is not None and value.shape == tensor.shape and torch.equal(value.to(tensor.dtype), tensor):
                held.add(_layer(path))
    return frozenset(held)


def said_once(mistakes: Sequence[Mistake]) -> list[Diagnosis]:
    """Return a diagnosis of each mistake, with the other layers at which it shows.

    Args:
        mistakes: The layers that diverge, in the order of the data flow.
    """
    groups: list[list[Mistake]] = []
    for mistake in mistakes:
        same = next((group for group in groups if any(_are_same(one, mistake) for one in group)), None)
        if same is None:
            groups.append([mistake])
        else:
            same.append(mistake)
    return [
        first.diagnosis._replace(
            also=tuple(
                one.diagnosis.divergence
                for one in others
                # An exchange names all layers anyway.
                if one.diagnosis.divergence is not None and not one.verdict.exchanged_with
            )
        )
        for first, *others in groups
    ]


def _are_same(a: Mistake, b: Mistake) -> bool:
    """Tell whether a layer that diverges shows no other mistake than one before it."""
    if a.verdict.exchanged_with or b.verdict.exchanged_with:
        at = b.verdict.output if a.verdict.step == b.verdict.step else b.verdict.step
        return at in a.verdict.exchanged_with
    if a.causes == b.causes == {"train mode"}:
        return True
    if a.verdict.step == b.verdict.step and a.diagnosis.causes == b.diagnosis.causes != []:
        return True
    if a.verdict.kind != b.verdict.kind:
        return False
    same_causes = a.diagnosis.causes == b.diagnosis.causes
    if a.verdict.kind == Kind.TAKES_OTHER:
        # The twin changes a tensor that several layers take; or two layers take each other's tensors.
        return (a.due == b.due and same_causes) or (a.due in b.takes and b.due in a.takes)
    if a.modules and a.modules == b.modules and same_causes:
        return True
    if a.flattened is not None and a.flattened == b.flattened:
        return True
    return b.causes <= a.causes and bool(a.holds & b.layers or b.holds & a.layers)

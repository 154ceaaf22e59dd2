"""All mistakes in one run: a diagnosis of each layer that differs although it takes the right inputs."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from math import prod

from parity.diagnosis.needed import Look, wanted_for
from parity.diagnosis.results import Diagnoses, Explained, diagnosis_of
from parity.diagnosis.same_mistake import Mistake, mistake_of, said_once
from parity.diagnosis.weights import order_in_other_weights
from parity.models.keras_graph import StepIndex, TensorId
from parity.tracing.alone import Alone, run_alone, tensors_alone
from parity.tracing.port import Port
from parity.tracing.runs import Run
from parity.tracing.side_by_side import STORED_NUMBERS, Tensors
from parity.tracing.trace import Divergence, divergence_of
from parity.tracing.training import Fault
from parity.tracing.verdicts import STARTS, Kind, Verdict, layer_name, table

import pandas as pd

# Both models run once more for so many layers that diverge, or for fewer, if these have large tensors; and so many
# times in all. With the other runs this is less than 20 traces.
_AT_ONCE, _TIMES = 16, 24

Explain = Callable[[Port, Run, Verdict, Look], Explained]


def every_diagnosis(port: Port, run: Run, verdicts: Sequence[Verdict], explain: Explain) -> Diagnoses:
    """Return a diagnosis of each layer that diverges by itself.

    Args:
        port: The two models.
        run: The record of their run.
        verdicts: The verdicts on it.
        explain: Returns the causes of a divergence.
    """
    starts = [verdict for verdict in verdicts if verdict.kind in STARTS]
    if not starts:
        return Diagnoses([], table(run, verdicts))
    alone = run_alone(port, run)
    if all(verdict.training is not None for verdict in starts):
        # The outputs agree, so that each layer has had the right inputs.
        alone = alone._replace(run=run, verdicts=list(verdicts))
    again = _Again(port, explain, _TIMES)
    found, unexplained = again.explained(alone, alone.starts())
    other = {verdict.step for verdict in alone.starts() if verdict.kind == Kind.TAKES_OTHER}
    other.discard(len(run.graph.steps))
    if other:
        # Whether these also make something else of the right input shows only if they are given that.
        right = run_alone(port, run, other)
        own = [verdict for verdict in right.starts() if verdict.step in other and verdict.kind == Kind.DIVERGES]
        more, left = again.explained(right, own)
        found, unexplained = found + more, unexplained + left
    found.sort(key=lambda one: (one.verdict.step, one.verdict.output))
    remarks = []
    if run.training and any(verdict.training is None for verdict in starts):
        remarks.append("Gradients were not looked at: they depend on all layers. Mend these first.")
    traced = table(alone.run, alone.verdicts)
    return Diagnoses(
        [one._replace(traced=traced) for one in said_once(found)],
        traced,
        tuple(unexplained),
        tuple(layer_name(alone.run, verdict) for verdict in alone.unseen()),
        alone.stopped,
        tuple(remarks),
    )


class _SpentError(Exception):
    """Raised when both models have run as often as they may."""


class _Again:
    """Explains divergences; both models run again for that, but not too often."""

    def __init__(self, port: Port, explain: Explain, times: int) -> None:
        self.port, self.explain, self.left = port, explain, times
        # The tensors around steps that are looked at next.
        self.known: dict[StepIndex, Tensors] = {}

    def explained(self, alone: Alone, verdicts: Sequence[Verdict]) -> tuple[list[Mistake], list[Divergence]]:
        """Return each divergence with its causes; and those for which no cause was looked for.

        Args:
            alone: Both models' run in which each layer took the right inputs.
            verdicts: The verdicts on the layers that diverge.
        """
        found, left = [], []
        for several in _at_once(alone.run, verdicts):
            wanted = {verdict.step: wanted_for(alone.run, verdict) for verdict in several if _is_looked_at(verdict)}
            self.known = {}
            if wanted and self.left > 0:
                self.left -= 1
                self.known = tensors_alone(self.port, alone, wanted)
            for verdict in several:
                try:
                    found.append(self.mistake(alone, verdict))
                except _SpentError:
                    left.append(divergence_of(alone.run, verdict))
                self.known.pop(verdict.step, None)
        return found, left

    def mistake(self, alone: Alone, verdict: Verdict) -> Mistake:
        """Return a divergence with its causes."""
        run = alone.run
        explained = self.explain(self.port, run, verdict, partial(self.look, alone))
        evidence = explained.evidence
        if evidence is not None and [cause.cause for cause in explained.causes] == ["weights of another layer"]:
            explained = explained._replace(causes=[*explained.causes, *order_in_other_weights(evidence)])
        return mistake_of(run, explained.place, diagnosis_of(run, explained, pd.DataFrame()), evidence)

    def look(self, alone: Alone, step: StepIndex, wanted: Collection[TensorId]) -> Tensors:
        """Return the tensors around a step; see ``tensors_at``."""
        known = self.known.get(step)
        if known is not None and known.keras.keys() >= set(wanted):
            return known
        if self.left <= 0:
            raise _SpentError
        self.left -= 1
        return tensors_alone(self.port, alone, {step: wanted})[step]


def _is_looked_at(verdict: Verdict) -> bool:
    """Tell whether the tensors around a step are needed to explain a verdict."""
    return not verdict.exchanged_with and (verdict.training is None or verdict.training.kind == Fault.STATISTICS)


def _at_once(run: Run, verdicts: Sequence[Verdict]) -> Iterator[list[Verdict]]:
    """Yield verdicts on different steps that are looked at in one run."""
    several: list[Verdict] = []
    size = 0
    for verdict in verdicts:
        numbers = set(run.graph.inputs_of(verdict.step))
        numbers |= wanted_for(run, verdict) if _is_looked_at(verdict) else set()
        own = sum(prod(run.shapes[number]) for number in numbers)
        full = len(several) == _AT_ONCE or size + own > STORED_NUMBERS or any(verdict.step == v.step for v in several)
        if several and full:
            yield several
            several, size = [], 0
        several.append(verdict)
        size += own
    if several:
        yield several

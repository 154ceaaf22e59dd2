"""What ``diagnose`` returns."""

from typing import NamedTuple

from parity.diagnosis.causes import Cause
from parity.diagnosis.evidence import Evidence
from parity.tracing.runs import Run
from parity.tracing.trace import Divergence, divergence_of
from parity.tracing.verdicts import Kind, Verdict, only_outputs

import pandas as pd


class Diagnosis(NamedTuple):
    """Where a twin diverges, and why.

    Attributes:
        divergence: The first layer that diverges, None if none does. Its verdict is that of the table, unless the
            cause is another input that could not be seen: then it is "TAKES OTHER INPUT". If one module of the twin
            does several layers, it is the one of these that the cause is about.
        causes: The known causes that explain it; empty if none does.
        traced: What ``parity.trace`` returns.
        untried: Where a search met its bound before it found anything, what it left out.
        only_outputs: Whether nothing but the outputs of both models was compared, because nothing in the twin was found
            for any layer.
        also: With ``each_alone``, other layers at which the same mistake shows, such as the other of two layers that
            have each other's weights.
    """

    divergence: Divergence | None
    causes: list[Cause]
    traced: pd.DataFrame
    untried: tuple[str, ...] = ()
    only_outputs: bool = False
    also: tuple[Divergence, ...] = ()

    def __str__(self) -> str:
        only = "only the outputs were compared, because nothing in the twin was found for any layer"
        if self.divergence is None:
            return f"the outputs agree; {only}" if self.only_outputs else "no layer diverges"
        lines = [str(cause) for cause in self.causes] or ["none of the known causes explains it"]
        lines += [only] if self.only_outputs else []
        lines += [f"not all was tried: {what}" for what in self.untried]
        if self.also:
            lines.append(f"the same mistake shows at {', '.join(f'{one.layer} ({one.twin})' for one in self.also)}")
        function, at = self.divergence.twin.rpartition(", ")[2], self.divergence.at
        if at and function.endswith("()"):  # a module can be found by its name
            lines.append(f"{function} is called in {at}")
        return "\n  ".join([str(self.divergence), *lines])


class Diagnoses(NamedTuple):
    """All layers that differ by themselves, and why: what ``diagnose`` returns with ``each_alone``.

    Attributes:
        divergences: For each mistake, in the order of the data flow, the first layer at which it shows, and the causes.
            A layer is in it twice if its twin takes another input and also makes something else of the right one.
        traced: The table of ``parity.trace``, but with the right inputs for each layer: what differed was replaced by
            what Keras has there. So a mistake shows in the rows of its own layers only.
        unexplained: Further layers that diverge. They are so many that no cause was looked for.
        unseen: Layers that could not be looked at by themselves, and outputs of the model: what is before them could
            not be replaced, or the twin stopped.
        stopped: Why the twin stopped, empty if it did not.
        remarks: What else was not looked at.
    """

    divergences: list[Diagnosis]
    traced: pd.DataFrame
    unexplained: tuple[Divergence, ...] = ()
    unseen: tuple[str, ...] = ()
    stopped: str = ""
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [str(diagnosis) for diagnosis in self.divergences] or ["no layer diverges"]
        lines += [
            f"{divergence}\n  no cause was looked for, because so many diverge" for divergence in self.unexplained
        ]
        if self.stopped:
            lines.append(f"Behind the last of these the twin stops, even with the right inputs: {self.stopped}")
        if self.unseen:
            lines.append(f"Not looked at by itself: {', '.join(self.unseen)}")
        return "\n".join([*lines, *self.remarks])


class Explained(NamedTuple):
    """What explains a divergence.

    Attributes:
        causes: The causes; empty if none was found.
        untried: What was not tried.
        place: The verdict at the place that the causes tell.
        evidence: What is known of the layer, if it was gathered.
    """

    causes: list[Cause]
    untried: tuple[str, ...]
    place: Verdict
    evidence: Evidence | None = None


def diagnosis_of(run: Run, explained: Explained, traced: pd.DataFrame) -> Diagnosis:
    """Return what explains a divergence as a diagnosis.

    Args:
        run: The record of both models' run.
        explained: What explains it.
        traced: The table of the run.
    """
    causes = explained.causes
    divergence = divergence_of(run, explained.place)
    at = next((cause.step for cause in causes if cause.step is not None), None)
    if at is not None:
        divergence = divergence._replace(layer=run.graph.steps[at].name, verdict=str(Kind.DIVERGES), note="")
    if any(cause.takes_other for cause in causes):
        # A function's input may not have been seen. Then the cause alone tells that it is another one.
        divergence = divergence._replace(verdict=str(Kind.TAKES_OTHER))
    return Diagnosis(divergence, causes, traced, explained.untried, only_outputs(run))

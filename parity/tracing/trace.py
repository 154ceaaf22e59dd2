"""Where does a twin part from its Keras model? A table of all layers, and the first layer that diverges."""

from collections.abc import Sequence
from typing import NamedTuple

from parity.models.inputs import Inputs, TwinInputs
from parity.models.keras_graph import StepIndex
from parity.models.rounding import TIMES_NOISE
from parity.tracing.numbers import found_by_numbers
from parity.tracing.port import Port, make_port
from parity.tracing.runs import Run
from parity.tracing.side_by_side import run
from parity.tracing.training import Fault, training_faults
from parity.tracing.verdicts import (
    EXCHANGED,
    NOT_SEEN,
    OR_AT,
    OTHER_SHAPE,
    STARTS,
    Kind,
    Verdict,
    layer_name,
    line_of,
    note_of,
    table,
    twin_name,
    verdicts_of,
)

import keras
import numpy as np
import pandas as pd
from torch import nn


class Divergence(NamedTuple):
    """The layer at which a twin parts from its Keras model.

    Attributes:
        layer: Name of the Keras layer, or of one of the model's outputs.
        twin: Name of its twin in the PyTorch model.
        verdict: "DIVERGES HERE" if its inputs agree and its outputs do not, or it trains in another way; "TAKES OTHER
            INPUT" if the twin takes something else than the layers before it return.
        note: What else is known; may be empty.
        at: File and line in which the twin is called, such as "port.py, line 12"; empty if that is not known, as in the
            cell of a notebook.
    """

    layer: str
    twin: str
    verdict: str
    note: str = ""
    at: str = ""

    def __str__(self) -> str:
        if self.note.startswith(EXCHANGED):
            partners = self.note.removeprefix(EXCHANGED)
            return f"{self.layer} and {partners} are each other's: each has the output of the other"
        twin = self.twin if self.twin != "-" else "not found in the twin"
        where = f"{self.layer} ({twin})"
        if self.note.startswith(OR_AT):
            where += f", {self.note}"
        if self.verdict == Kind.TAKES_OTHER:
            shapes = f": {self.note}" if self.note.startswith(OTHER_SHAPE) else ""
            return f"{where}{',' * self.note.startswith(OR_AT)} does not take what the layers before it return{shapes}"
        in_training = next((str(fault) for fault in Fault if self.note.startswith(fault)), "")
        seen = not self.note.startswith((OR_AT, NOT_SEEN))
        before = "its inputs agree" if seen else "all that was seen before it agrees"
        wrong = f"{before}, its outputs do not" + (f": {self.note}" if self.note.startswith(OTHER_SHAPE) else "")
        return f"{where}: {in_training or wrong}"


def trace(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    *,
    torch_x: TwinInputs = None,
    training: bool = False,
) -> pd.DataFrame:
    """Compare a twin with its Keras model layer by layer. Neither is changed.

    Args:
        keras_model: A Functional or a built Sequential model, or a subclassed one whose ``call`` takes symbolic inputs.
        torch_model: The twin; it runs in the mode that it is in.
        x: An input of the Keras model: an array, with the axes that the model takes, or one for each of several inputs.
        mapping: Which Keras weight fills which PyTorch tensor, as ``parity.read_mapping`` returns it.
        torch_x: The twin's inputs, examples on axis 0, if they are not ``x`` with the channels on axis 1: moved there,
            or as they are, if the Keras layers have them there. A twin of sequences may also take ``x`` as it is; that
            is found out by trying.
        training: Run both in training mode, without dropout, and compare running statistics, dropout rates and
            gradients, too. That PyTorch's running variance divides by N - 1 and Keras's by N is no difference.
            Gradients need all of both models in memory, and TensorFlow as Keras's backend.

    Returns:
        One row for each call of a Keras layer in the order of the data flow (two for a layer with an activation of its
        own), then one for each output of the model, then one for each module of the twin that no layer was found for.
        The columns: ``layer``; ``kind``; ``twin``, a module, or a function with brackets; ``keras_shape`` and
        ``torch_shape`` of the output, each with its framework's order of axes; ``inputs`` and ``outputs``, the largest
        absolute difference after the change of layout, NaN where it could not be seen; ``noise``, the difference that
        rounding makes there, as measured by rounding otherwise; ``verdict``, one of five; ``note``, what else is
        known, which may be empty; and ``at``, file and line in which the twin is called. The verdicts:

        - "agree": the outputs agree.
        - "DIVERGES HERE": the inputs agree, the outputs do not; or, with ``training``, only the training step differs.
          If the inputs were not seen, ``note`` says so, or at which layers before it the twin may diverge as well.
        - "TAKES OTHER INPUT": the layers before agree, and the twin takes something else than their output.
        - "different before": the inputs do not agree, because a layer before diverges.
        - "not paired": nothing in the twin was found for it.

    Raises:
        ParityError: If the Keras model has no graph, the mapping or the inputs do not fit the models, the twin is not
            on the CPU or fails, or it calls other modules and functions when it runs again.
    """
    port = make_port(keras_model, torch_model, x, mapping, torch_x)
    return table(*run_and_judge(port, training))


def run_and_judge(port: Port, training: bool = False) -> tuple[Run, list[Verdict]]:
    """Run both models of a port; return the record, and a verdict on each step and each output of the Keras model.

    Args:
        port: The two models.
        training: Run both in training mode, and compare the results of a training step.
    """
    record = run(port, training)
    first = _first_start(verdicts_of(record, {}))
    if first is None and any(_has_no_module(record, index) for index in range(len(record.graph.steps))):
        first = len(record.graph.steps)
    if first is not None:
        # A mistake makes numbers differ, so that what was paired by order and kind may be wrong up to it. And weights
        # that no module holds, as in a twin of functions, do not tell what takes them.
        by_numbers = found_by_numbers(port, record, first)
        again = run(port, training, by_numbers) if by_numbers else record
        first_again = _first_start(verdicts_of(again, {}))
        record = again if first_again is None or first_again >= first else record
    faults = training_faults(port, record) if training else {}
    return record, verdicts_of(record, faults)


def _has_no_module(run: Run, index: StepIndex) -> bool:
    """Tell whether a step computes with weights, and no twin was found for it."""
    return bool(run.graph.steps[index].weights) and index not in run.pairing.twins and index not in run.covered_by


def _first_start(verdicts: Sequence[Verdict]) -> StepIndex | None:
    """Return the first step that starts a divergence, None if none does."""
    return next((verdict.step for verdict in verdicts if verdict.kind in STARTS), None)


def readable(traced: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a trace that people read.

    Differences have two digits, so that they come out the same on most machines. A difference that is agreement is the
    word "agree". Where shapes do not fit, both stand there, the twin's first; of an input it is said only that they do
    not.

    Args:
        traced: What ``trace`` returned.

    Returns:
        The columns ``layer``, ``twin``, ``inputs``, ``outputs`` and ``verdict``, as text; the note follows the verdict,
        after a colon.
    """
    table = traced[["layer", "twin", "inputs", "outputs", "verdict"]].copy()
    table["verdict"] = [
        f"{verdict}: {note}" if note else verdict for verdict, note in zip(traced.verdict, traced.note, strict=True)
    ]
    tolerance = traced.noise.fillna(0) * TIMES_NOISE
    for column in ("inputs", "outputs"):
        # The noise in this row is not that of the inputs. Whether the inputs agree follows from the verdict.
        agrees = (traced[column] <= tolerance) | (traced.verdict == Kind.AGREES)
        if column == "inputs":
            agrees |= traced.verdict == Kind.DIVERGES
        table[column] = [_in_words(*row) for row in zip(traced[column], agrees, strict=True)]
    other = [_have_other_sizes(*shapes) for shapes in zip(traced.keras_shape, traced.torch_shape, strict=True)]
    shapes = [f"{twin} for {keras}" for keras, twin in zip(traced.keras_shape, traced.torch_shape, strict=True)]
    table["outputs"] = table.outputs.where((table.outputs != "inf") | ~np.array(other, bool), shapes)
    misfits = np.array(other, bool) | traced.note.str.startswith(OTHER_SHAPE).to_numpy(bool)
    behind = np.logical_or.accumulate(misfits)
    table["inputs"] = table.inputs.where((table.inputs != "inf") | ~behind, "other shape")
    return table


def _have_other_sizes(keras_shape: object, torch_shape: object) -> bool:
    """Tell whether two tensors cannot be the same in another order of axes."""
    shapes = [shape for shape in (keras_shape, torch_shape) if isinstance(shape, tuple)]
    return len(shapes) == 2 and sorted(shapes[0]) != sorted(shapes[1])


def _in_words(difference: float, agrees: bool) -> str:
    if np.isnan(difference):
        return "-"
    return "agree" if agrees else f"{difference:.2g}"


def first_divergence(traced: pd.DataFrame) -> Divergence | None:
    """Return the first layer that diverges here or takes another input; None if there is none.

    Args:
        traced: What ``trace`` returned.
    """
    starts = traced[traced.verdict.isin(STARTS)]
    if starts.empty:
        return None
    return Divergence(*(str(starts[column].iloc[0]) for column in ("layer", "twin", "verdict", "note", "at")))


def divergence_of(run: Run, verdict: Verdict) -> Divergence:
    """Return a verdict as a divergence.

    Args:
        run: The record of both models' run.
        verdict: The verdict; its kind is one of ``STARTS``.
    """
    names = layer_name(run, verdict), twin_name(run, verdict)
    return Divergence(*names, str(verdict.kind), note_of(run, verdict), line_of(run, verdict))

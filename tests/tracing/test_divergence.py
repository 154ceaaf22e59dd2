"""What is read out of a table, and what is said of a divergence: neither may be misled by the names of layers."""

from math import inf, nan

from parity.models.rounding import TIMES_NOISE
from parity.tracing.trace import Divergence, divergence_of, first_divergence, readable
from parity.tracing.training import Fault, TrainingFault
from parity.tracing.verdicts import TRACE_COLUMNS, Kind, Verdict
from tests.tracing.test_verdicts import CHAIN, RIGHT, SEEN, WRONG, run_of

import pandas as pd
import pytest


def traced(*rows, noise=1e-9):
    """Return a trace: of each row (layer, inputs, outputs, verdict, note) are given."""
    filled = [
        (layer, "Dense", f"twin of {layer}", (2, 2), (2, 2), inputs, outputs, noise, str(verdict), note, "")
        for layer, inputs, outputs, verdict, note in rows
    ]
    return pd.DataFrame(filled, columns=TRACE_COLUMNS)


TABLE = traced(
    ("a", 0.0, 3e-9, Kind.AGREES, ""),
    ("b", 3e-9, 0.123456, Kind.DIVERGES, "or at a"),
    ("c", 0.123456, inf, Kind.DIFFERENT_BEFORE, ""),
    ("d", 2.0, 3.0, Kind.TAKES_OTHER, ""),
    ("e", nan, nan, Kind.NOT_PAIRED, ""),
)


def test_readable_joins_verdict_and_note_and_rounds():
    words = readable(TABLE)
    assert list(words.columns) == ["layer", "twin", "inputs", "outputs", "verdict"]
    assert [tuple(row) for row in words.to_numpy()] == [
        ("a", "twin of a", "agree", "agree", "agree"),
        ("b", "twin of b", "agree", "0.12", "DIVERGES HERE: or at a"),
        ("c", "twin of c", "0.12", "inf", "different before"),
        ("d", "twin of d", "2", "3", "TAKES OTHER INPUT"),
        ("e", "twin of e", "-", "-", "not paired"),
    ]
    assert TABLE.verdict[1] == "DIVERGES HERE"  # the table is as it was


def test_readable_says_agree_up_to_the_tolerance():
    noise = 2.0**-20
    differences = [TIMES_NOISE * noise, TIMES_NOISE * noise * 1.01]
    words = readable(traced(*((f"{d}", d, d, Kind.DIFFERENT_BEFORE, "") for d in differences), noise=noise))
    assert list(words.outputs) == ["agree", f"{differences[1]:.2g}"]
    assert list(words.inputs) == ["agree", f"{differences[1]:.2g}"]


def test_readable_shows_no_residual_of_an_input_that_agrees():
    """The noise in the row is that of the output; the input may have more."""
    words = readable(traced(("a", 0.25, 0.25, Kind.AGREES, ""), ("b", 0.25, 0.25, Kind.DIVERGES, "")))
    assert list(words.inputs) == ["agree", "agree"]
    assert list(words.outputs) == ["agree", "0.25"]


def test_a_row_without_noise_has_no_tolerance():
    words = readable(traced(("a", 0.0, 1e-30, Kind.DIFFERENT_BEFORE, ""), noise=nan))
    assert (words.inputs[0], words.outputs[0]) == ("agree", "1e-30")


@pytest.mark.parametrize("kind", Kind)
def test_the_first_divergence_is_the_first_row_of_either_kind(kind):
    rows = [("a", 0.0, 1.0, Kind.AGREES, ""), ("b", 0.0, 1.0, kind, "so"), ("c", 0.0, 1.0, Kind.DIVERGES, "")]
    found = first_divergence(traced(*rows))
    starts = kind in ("DIVERGES HERE", "TAKES OTHER INPUT")
    assert found == (
        Divergence("b", "twin of b", str(kind), "so") if starts else Divergence("c", "twin of c", "DIVERGES HERE")
    )
    assert first_divergence(traced(*rows[:2])) == (found if starts else None)


def test_it_reads_two_columns_and_no_name_or_note():
    rows = [
        ("DIVERGES HERE", 0.0, 0.0, Kind.AGREES, "DIVERGES HERE"),
        ("TAKES OTHER INPUT: x", 0.0, 0.0, Kind.NOT_PAIRED, "TAKES OTHER INPUT"),
        ("agree", 0.0, 0.0, Kind.DIVERGES, "agree"),
    ]
    assert first_divergence(traced(*rows[:2])) is None
    assert first_divergence(traced(*rows)) == Divergence("agree", "twin of agree", "DIVERGES HERE", "agree")


@pytest.mark.parametrize(
    ("divergence", "said"),
    [
        (("a", "t", "DIVERGES HERE"), "a (t): its inputs agree, its outputs do not"),
        (("a", "-", "DIVERGES HERE"), "a (not found in the twin): its inputs agree, its outputs do not"),
        (
            ("a", "t", "DIVERGES HERE", "or at b"),
            "a (t), or at b: all that was seen before it agrees, its outputs do not",
        ),
        (
            ("a", "t", "DIVERGES HERE", "its inputs were not seen"),
            "a (t): all that was seen before it agrees, its outputs do not",
        ),
        (
            ("a", "t", "TAKES OTHER INPUT", "or at b or before"),
            "a (t), or at b or before, does not take what the layers before it return",
        ),
        (("a", "t", "TAKES OTHER INPUT"), "a (t) does not take what the layers before it return"),
        (("a", "t", "DIVERGES HERE", "other running statistics"), "a (t): other running statistics"),
        (
            ("a", "-", "DIVERGES HERE", "another dropout rate: rate is 0.2, not 0.5"),
            "a (not found in the twin): another dr",
        ),
        (("a", "t", "DIVERGES HERE", "another gradient"), "a (t): another gradient"),
        (("a", "t", "DIVERGES HERE", "frozen in one model only: bias"), "a (t): frozen in one model only"),
        (("a", "t", "DIVERGES HERE", "exchanged with b"), "a and b are each other's: each has the output of the other"),
        (
            ("a", "t", "DIVERGES HERE", "exchanged with b and c"),
            "a and b and c are each other's: each has the output of",
        ),
        (
            ("output 1, of a", "return value 1", "TAKES OTHER INPUT", "exchanged with output 2"),
            "output 1, of a and output 2 are each other's: each has the output of the other",
        ),
        (
            ("output 1, of a", "return value 1", "TAKES OTHER INPUT"),
            "output 1, of a (return value 1) does not take what the layers before it return",
        ),
    ],
)
def test_what_is_said_of_each_kind(divergence, said):
    text = str(Divergence(*divergence))
    assert text.startswith(said)
    assert len(text) < len(said) + 35


# Names that a reader of text would take for something else.
ODD = [
    "a, b",
    "a: exchanged with b",
    "exchanged with a",
    "another gradient",
    "agree",
    "DIVERGES HERE",
    "conv activation",
    "output 1, of conv",
    "or at a or before",
]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["DIVERGES HERE", "TAKES OTHER INPUT"])
def test_an_odd_name_changes_nothing(name, kind):
    plain, odd = (str(Divergence(one, "t", kind)) for one in ("plain", name))
    assert odd == plain.replace("plain", name)
    table = traced((name, 0.0, 1.0, kind, ""))
    assert first_divergence(table) == Divergence(name, "t".replace("t", f"twin of {name}"), kind)
    assert readable(table).verdict[0] == kind


def at(run, verdict):
    return divergence_of(run, verdict)


def test_a_layer_that_is_called_like_anothers_activation_is_named_as_it_is():
    steps = [("conv", (0,), 1), ("conv activation", (1,), 2), ("conv, too", (2,), 3)]
    run = run_of(steps, SEEN, {1: RIGHT, 2: WRONG, 3: RIGHT})
    assert at(run, Verdict(Kind.DIVERGES, 1)) == Divergence("conv activation", "-", "DIVERGES HERE")
    assert at(run, Verdict(Kind.DIVERGES, 2)) == Divergence("conv, too", "-", "DIVERGES HERE")
    text = str(at(run, Verdict(Kind.DIVERGES, 0, exchanged_with=(1,))))
    assert text == "conv and conv activation are each other's: each has the output of the other"


def test_the_name_of_a_layer_that_is_exchanged_may_have_a_comma():
    run = run_of([("a", (0,), 1), ("b, c", (0,), 2)], {}, {1: WRONG, 2: WRONG})
    text = str(at(run, Verdict(Kind.DIVERGES, 0, exchanged_with=(1,))))
    assert text == "a and b, c are each other's: each has the output of the other"


def test_a_divergence_of_training_has_the_fault_for_its_note():
    run = run_of(CHAIN, SEEN, {1: RIGHT, 2: RIGHT, 3: RIGHT})
    fault = TrainingFault(Fault.RATE, "rate is 0.25, not 0.5")
    found = at(run, Verdict(Kind.DIVERGES, 1, training=fault))
    assert found == Divergence("b", "-", "DIVERGES HERE", "another dropout rate: rate is 0.25, not 0.5")
    assert str(found) == "b (not found in the twin): another dropout rate"


@pytest.mark.parametrize("fault", Fault)
def test_each_fault_of_training_is_told_from_the_note(fault):
    assert str(Divergence("a", "t", "DIVERGES HERE", f"{fault}: more")) == f"a (t): {fault}"

"""What the checks of page 11 say of right and wrong answers: a check of the reader's own, and a set of causes."""

from course.exercises.e11_checks import check_causes_of_training, check_my_check

import numpy as np
import pytest

HIDDEN = ["momentum", "dropout rate", "gradient stopped", "layer frozen"]


def said(check, answer, capsys):
    check(answer)
    return capsys.readouterr().out.strip()


def differs(pair, port, which=slice(None)):
    for size in pair.sizes:
        both = zip(*pair.both(port, "images", size, exact=True), strict=True)
        if any(np.abs(a - b).max() > 1e-6 * np.abs(a).max() for a, b in list(both)[which]):
            return True
    return False


def plain(pair, port):
    return not differs(pair, port)


def with_asserts(pair, port):
    """Raise an error instead of returning False."""
    assert not differs(pair, port)
    return True


@pytest.mark.parametrize("answer", [plain, with_asserts, lambda pair, port: np.bool_(plain(pair, port))])
def test_every_right_check_is_right(answer, capsys):
    line = said(check_my_check, answer, capsys)
    assert line == "✓ My check: right; it passes 7 right ports and catches all 91 mutants"


def forgetful(pair, port):
    if differs(pair, port):
        return False


def stops(pair, port):
    return pair.unknown


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (forgetful, "it returned None; is a `return` missing?"),
        (lambda pair, port: False, "it refuses the right port of encoder: your check says False"),
        (lambda pair, port: "yes", "for the right port of encoder it returned yes: return True or False"),
        (stops, "the right port of encoder must pass, and your check stops: AttributeError"),
        # Only the second of two outputs of this mutant is wrong.
        (
            lambda pair, port: not differs(pair, port, slice(1)),
            "lets 1 of 91 mutants through, the first is heads: right",
        ),
        (lambda pair, port: pair.trace(port).empty, "NotImplementedError: this exercise is about a check without"),
    ],
)
def test_every_wrong_check_is_told_what_is_wrong(answer, line, capsys):
    printed = said(check_my_check, answer, capsys)
    assert printed.startswith("✗ My check: wrong; ")
    assert line in printed


def test_an_empty_check_is_not_attempted(capsys):
    def my_check(pair, port):
        return None

    assert said(check_my_check, my_check, capsys) == "… My check: not attempted yet"


@pytest.mark.parametrize("kind", [set, list, tuple, frozenset])
def test_causes_may_be_any_collection(kind, capsys):
    assert said(check_causes_of_training, kind(HIDDEN), capsys).startswith("✓ Causes: right")


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (None, "… Causes: not attempted yet"),
        ({*HIDDEN, "train mode"}, "✗ Causes: wrong; train mode changes outputs at inference"),
        (HIDDEN[:3], "✗ Causes: wrong; 1 more cannot be seen at inference"),
        ("momentum", "✗ Causes: wrong; 3 more cannot be seen at inference"),
        ({"learning rate"}, "✗ Causes: wrong; not among the causes: learning rate"),
        (4, "✗ Causes: wrong; answer with a set of names"),
    ],
)
def test_what_is_said_of_causes(answer, line, capsys):
    assert said(check_causes_of_training, answer, capsys) == line

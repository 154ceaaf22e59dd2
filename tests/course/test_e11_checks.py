"""What the check of page 11 says of right and wrong answers, which are checks of the reader's own."""

from course.exercises.e11_checks import check_my_check

import numpy as np
import pytest


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
    assert line == "✓ My check: right; it passes 7 right ports and catches all 92 mutants"


def forgetful(pair, port):
    if differs(pair, port):
        return False


def stops(pair, port):
    return pair.unknown


def images_and_other_sizes(pair, port):
    """Look at negative numbers at one size, and at other sizes without negative numbers: two checks of the page."""
    for kind, sizes in (("images", [0]), ("noise", pair.sizes)):
        for size in sizes:
            for a, b in zip(*pair.both(port, kind, size, exact=True), strict=True):
                if np.abs(a - b).max() > 1e-6 * np.abs(a).max():
                    return False
    return True


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
            "lets 1 of 92 mutants through, the first is heads: right",
        ),
        (
            images_and_other_sizes,
            "lets 1 of 92 mutants through, the first is pooling: largest: padded with zeros at even",
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

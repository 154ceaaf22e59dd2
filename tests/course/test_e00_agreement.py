"""The exercises of notebook 00: right answers in many forms are right, and each wrong one is told what is wrong."""

from functools import partial

from course.exercises.e00_agreement import check_images, check_outputs

import numpy as np
import pytest
import torch


def said(capsys, check, answer):
    check(answer)
    return capsys.readouterr().out.strip()


def agree(a, b, tolerance):
    return a.shape == b.shape and a.size > 0 and np.isfinite(tolerance) and np.abs(a - b).max() <= tolerance


def judge(a, b, within, same_names=lambda a, b: a.keys() == b.keys()):
    if not a or not same_names(a, b):
        return False
    return all(agree(a[name], b[name], within * np.abs(a[name]).max(initial=0)) for name in a)


def falsy(a, b, within):
    """Return the empty dictionary for no outputs, as ``and`` does."""
    return a and judge(a, b, within)


def in_float32(a, b, within):
    """Compute in float32, which is fine enough for two outputs that are float32 themselves."""
    same = a.keys() == b.keys()
    if not a or not same:
        return 0
    for name in a:
        x, y = a[name].astype("float32"), b[name].astype("float32")
        if not agree(x, y, np.float32(within) * np.abs(x).max(initial=0)):
            return 0
    return 1


@pytest.mark.parametrize("answer", [judge, falsy, in_float32, partial(judge), lambda a, b, w: np.bool_(judge(a, b, w))])
def test_right_comparisons(answer, capsys):
    assert said(capsys, check_outputs, answer) == "✓ Several outputs: right; it judges all 25 pairs"


def stub(a, b, within):
    return None


def forgetful(a, b, within):
    """Judge rightly, and forget the return: that is an attempt."""
    judge(a, b, within)


def mean_difference(a, b, within):
    """Look at the mean, which a single wrong number barely moves."""
    return judge(a, b, within) or (
        a.keys() == b.keys()
        and bool(a)
        and all(
            a[n].shape == b[n].shape
            and a[n].size
            and np.isfinite(a[n]).all()
            and np.abs(a[n] - b[n]).mean() <= within * np.abs(a[n]).max()
            for n in a
        )
    )


def without_empty_arrays(a, b, within):
    """Take the largest number of an array that has none: the error says what was expected."""
    if not a or a.keys() != b.keys():
        return False
    return all(agree(a[name], b[name], within * np.abs(a[name]).max()) for name in a)


def of_all_outputs(a, b, within):
    """Take the largest number of all outputs: it hides a small output that is doubled."""
    if not a or a.keys() != b.keys():
        return False
    largest = max(np.abs(output).max(initial=0) for output in a.values())
    return all(agree(a[name], b[name], within * largest) for name in a)


def test_an_error_says_what_was_expected(capsys):
    assert said(capsys, check_outputs, without_empty_arrays).endswith("(False was expected)")


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (None, "… Several outputs: not attempted yet"),
        (stub, "… Several outputs: not attempted yet"),
        (forgetful, "✗ Several outputs: wrong for equal outputs: it returned None; is a `return` missing?"),
        (lambda a, b, within: True, "✗ Several outputs: wrong for exchanged outputs: True, not False"),
        (lambda a, b, within: False, "✗ Several outputs: wrong for equal outputs: False, not True"),
        (
            lambda a, b, within: a["angle"] == b["angle"],
            "✗ Several outputs: wrong for equal outputs: ValueError: The truth value",
        ),
        (
            lambda a, b, within: 1 / 0,
            "✗ Several outputs: wrong for equal outputs: ZeroDivisionError: division by zero (True was expected)",
        ),
        (without_empty_arrays, "✗ Several outputs: wrong for empty arrays: ValueError: zero-size array"),
        (lambda a, b, within: judge(a, b, 1e-5), "✗ Several outputs: wrong for rounding, within=1e-9: True, not False"),
        (mean_difference, "✗ Several outputs: wrong for one number off by 1.1 of the bound: True, not False"),
        (of_all_outputs, "✗ Several outputs: wrong for a small output doubled: True, not False"),
        (
            partial(judge, same_names=lambda a, b: a.keys() <= b.keys()),
            "✗ Several outputs: wrong for an output missing in Keras",
        ),
        (True, "✗ Several outputs: wrong for equal outputs: TypeError: 'bool' object is not callable"),
    ],
)
def test_other_comparisons_are_told_why(answer, line, capsys):
    assert said(capsys, check_outputs, answer).startswith(line)


def images(*shape, scale=10.0):
    return scale * np.random.default_rng(1).normal(size=shape)


@pytest.mark.parametrize(
    "answer",
    [
        images(4, 13, 16, 3),
        images(2, 16, 13, 3, scale=50),
        images(3, 7, 8, 3).astype("float32"),
        images(3, 7, 8, 3).astype(int),
        images(3, 7, 8, 3).tolist(),
        list(images(3, 7, 8, 3)),
        torch.tensor(images(3, 7, 8, 3)),
    ],
)
def test_right_images(answer, capsys):
    assert said(capsys, check_images, answer) == "✓ Images: right; all 6 wrong ports differ on these images"


PORTS = "✗ Images: 5 of 6 wrong ports differ on these images. No difference for: "


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (None, "… Images: not attempted yet"),
        (images(4, 14, 16, 3), PORTS + "pads right at even sizes only"),
        (images(4, 13, 15, 3), PORTS + "pads right at odd sizes only"),
        (images(4, 13, 16, 1).repeat(3, axis=-1), PORTS + "reads colours in reverse order"),
        (abs(images(4, 13, 16, 3)), PORTS + "sets negative pixels to 0"),
        (images(4, 13, 16, 3, scale=1), PORTS + "cuts features off at 6"),
        (images(1, 13, 16, 3), PORTS + "averages over the batch"),
        (images(1, 13, 16, 3).repeat(4, axis=0), PORTS + "averages over the batch"),
        (np.zeros((4, 13, 16, 3)), "✗ Images: 0 of 6 wrong ports differ on these images"),
        (images(4, 13, 16, 3, scale=1e7), "✗ Images: they hold numbers above a million"),
        ([images(4, 13, 15, 3), images(4, 14, 16, 3)], "✗ Images: these are several arrays of different shapes"),
        (images(13, 16, 3), "✗ Images: the shape is (13, 16, 3); needed is one array"),
        (images(4, 3, 13, 16), "✗ Images: the shape is (4, 3, 13, 16)"),
        (np.empty((0, 13, 16, 3)), "✗ Images: the shape is (0, 13, 16, 3)"),
        (np.full((4, 13, 16, 3), np.nan), "✗ Images: some numbers are NaN or infinite"),
        ("random", "✗ Images: the type of their numbers is <U6"),
    ],
)
def test_other_images_are_told_why(answer, line, capsys):
    assert said(capsys, check_images, answer).startswith(line)

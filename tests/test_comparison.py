"""The ruler: what cannot be compared is a failure, never agreement, and a line is the same on every machine."""

from parity import compare, header, largest_difference

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ONES = np.ones((2, 3))


def with_one(value, shape=(2, 3), dtype=np.float64):
    array = np.ones(shape, dtype=dtype)
    array.flat[-1] = value
    return array


def line(capsys, *args, **kwargs):
    """Return the fields of the line that compare prints, split where two blanks or more are, and what it returns."""
    result = compare(*args, **kwargs)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert printed.endswith("\n")
    return [field.strip() for field in printed.split("  ") if field.strip()], result


# --- What has no difference -----------------------------------------------------------------------------------------

OBSTACLES = {
    "shapes that broadcast": (np.ones((4, 1)), np.ones(4), "SHAPES DIFFER"),
    "a scalar": (np.ones((2, 2)), 1.0, "SHAPES DIFFER"),
    "axes exchanged": (np.ones((2, 3)), np.ones((3, 2)), "SHAPES DIFFER"),
    "as many elements": (np.ones((2, 3)), np.ones(6), "SHAPES DIFFER"),
    "one batch too many": (np.ones((1, 3)), np.ones((2, 3)), "SHAPES DIFFER"),
    "empty": (np.ones((0, 3)), np.ones((0, 3)), "EMPTY"),
    "empty, and of other shapes": (np.ones((0, 3)), np.ones((3, 0)), "SHAPES DIFFER"),
    "NaN in Keras": (with_one(np.nan), ONES, "NaN IN KERAS"),
    "NaN in PyTorch": (ONES, with_one(np.nan), "NaN IN PYTORCH"),
    "NaN at the same place": (with_one(np.nan), with_one(np.nan), "NaN IN KERAS"),
    "NaN beside infinity": (with_one(np.inf), with_one(np.nan), "NaN IN PYTORCH"),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_what_has_no_difference_is_a_failure(capsys, what):
    a, b, verdict = OBSTACLES[what]
    fields, agree = line(capsys, "layer", a, b)
    assert agree is False
    assert fields == ["layer", str(np.shape(a)), str(np.shape(b)), "-", verdict]
    with pytest.raises(ValueError, match=verdict):
        largest_difference(a, b)


@pytest.mark.parametrize("a", [np.inf, -np.inf])
@pytest.mark.parametrize("b", [1.0, np.inf, -np.inf])
@pytest.mark.parametrize("within", [1e-12, 1e300])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_infinity_is_a_failure_even_on_both_sides(capsys, a, b, within, dtype):
    a, b = with_one(a, dtype=dtype), with_one(b, dtype=dtype)
    for first, second in ((a, b), (b, a)):
        assert largest_difference(first, second) == np.inf
        assert line(capsys, "x", first, second, within=within) == (["x", "(2, 3)", "(2, 3)", "inf", "DIFFERENT"], False)


def test_infinity_is_a_failure_within_any_bound():
    assert not compare("x", with_one(np.inf), ONES, within=np.inf)


# --- The difference -------------------------------------------------------------------------------------------------


def test_the_difference_is_absolute_and_the_largest():
    a, b = np.zeros((2, 3)), np.array([[0.5, -3.0, 0], [0, 2, 0]])
    assert largest_difference(a, b) == largest_difference(b, a) == 3.0
    assert largest_difference(a, np.full((2, 3), 5.0)) == largest_difference(a, np.full((2, 3), -5.0)) == 5.0


@given(
    values=st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)), min_size=1, max_size=6),
    columns=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_the_difference_is_that_of_the_pair_furthest_apart(values, columns):
    a, b = (np.array([pair[i] for pair in values]).reshape((-1, 1) if columns else -1) for i in (0, 1))
    assert largest_difference(a, b) == max(abs(x - y) for x, y in values)
    assert largest_difference(torch.from_numpy(a), b.tolist()) == largest_difference(a, b)


def test_the_difference_is_computed_in_float64():
    """In float16 the difference of these would be infinite, in uint8 it would be 255."""
    assert largest_difference(np.float16([6e4]), np.float16([-6e4])) == 120000.0 - 2 * (60000 - float(np.float16(6e4)))
    assert largest_difference(np.uint8([1]), np.uint8([2])) == 1.0
    assert largest_difference(np.array([True]), np.array([False])) == 1.0
    assert largest_difference(np.float32([1]), np.float64([1 + 1e-9])) == pytest.approx(1e-9)


def test_imaginary_parts_are_not_dropped():
    with pytest.raises((TypeError, ValueError)):
        largest_difference(np.array([1 + 1j]), np.array([1 + 2j]))


def test_tensors_are_taken_as_they_are():
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    assert largest_difference(parameter * 2, ONES) == 1.0
    assert largest_difference(ONES, parameter.T.contiguous().T) == 0.0
    assert largest_difference(torch.full((3,), 1.5, dtype=torch.bfloat16), [1.5, 1.5, 1.0]) == 0.5


# --- The line -------------------------------------------------------------------------------------------------------


def test_an_agreement_prints_its_bound_and_not_its_noise(capsys):
    for noise in (0, 3e-16, 7e-14):
        fields = ["conv 1", "(2, 3)", "(2, 3)", "< 1e-12", "agree"]
        assert line(capsys, "conv 1", ONES, torch.from_numpy(ONES + noise)) == (fields, True)
    assert line(capsys, "x", ONES, ONES + 0.4, within=0.5) == (["x", "(2, 3)", "(2, 3)", "< 5e-01", "agree"], True)


def test_the_bound_itself_agrees_and_anything_above_does_not():
    assert compare("x", [0.0], [0.25], within=0.25) is True
    assert compare("x", [0.0], [np.nextafter(0.25, 1)], within=0.25) is False
    assert compare("x", [0.0], [2e-12]) is False
    assert compare("x", [0.0], [-2e-12]) is False


@pytest.mark.parametrize(
    ("largest", "difference", "dtype", "printed"),
    [
        (1, 0.1234, np.float64, "0.12"),
        (1, 1.2345e-9, np.float64, "1.2e-09"),
        (1, 12.345, np.float64, "12"),
        (1, 3456.0, np.float64, "3.5e+03"),
        (1, 0.1234, np.float32, "0.12"),
        (1, 0.005678, np.float32, "0.006"),
        (1, 0.0005678, np.float32, "> 1e-04"),
        (1, 3e-6, np.float32, "> 1e-06"),
        (1000, 5.678, np.float32, "6"),
        (1000, 0.5678, np.float32, "> 1e-01"),
    ],
)
def test_a_difference_has_the_digits_that_every_machine_agrees_on(capsys, largest, difference, dtype, printed):
    a = np.array([-largest, 0], dtype=dtype)
    b = np.array([-largest, difference], dtype=dtype)
    expected = ["x", "(2,)", "(2,)", printed, "DIFFERENT"]
    assert line(capsys, "x", a, b) == (expected, False)
    assert line(capsys, "x", torch.from_numpy(b), a) == (expected, False)


def test_one_float32_side_is_enough_to_be_coarse(capsys):
    a, b = np.array([1.0, 0.0]), np.array([1.0, 0.005678])
    for first, second in ((a.astype("f4"), b), (a, b.astype("f4"))):
        assert line(capsys, "x", first, second)[0][3] == "0.006"
    assert line(capsys, "x", a, b)[0][3] == "0.0057"


def test_the_columns_stand_under_their_headings(capsys):
    header()
    compare("a name", np.ones((2, 64, 64, 32)), np.ones((2, 64, 64, 32)))
    compare("another", ONES, ONES + 1)
    heading, *lines = capsys.readouterr().out.splitlines()
    starts = [heading.index(word) for word in ("Keras", "PyTorch", "largest", "verdict")]
    assert heading.split() == ["Keras", "PyTorch", "largest", "|difference|", "verdict"]
    for text, fields in zip(lines, (["(2,", "(2,", "<", "agree"], ["(2,", "(2,", "1", "DIFFERENT"]), strict=True):
        assert [text[start:].split()[0] for start in starts] == fields
        assert all(text[start - 1] == " " for start in starts)


def test_a_field_that_is_too_long_does_not_run_into_the_next(capsys):
    name, array = "a name of very many words, more than fit into the column", np.ones((11, 1, 112, 112, 1, 1))
    compare(name, array, array)
    assert capsys.readouterr().out.split() == [*name.split(), *str(array.shape).split() * 2, "<", "1e-12", "agree"]

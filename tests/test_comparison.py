"""The ruler: what cannot be compared is a failure, never agreement, and a line is the same on every machine."""

import re

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
    """Return the fields of the first line that compare prints, and what it returns."""
    result = compare(*args, **kwargs)
    printed, *more = capsys.readouterr().out.splitlines()
    assert all(line.startswith("               (") for line in more)  # what is said of float32
    return fields_of(printed), result


def fields_of(printed):
    """Return verdict, difference, name and shape, or both shapes."""
    return [printed[:14].strip(), printed[15:23].strip(), *re.split("  +", printed[25:])]


def printed_lines(capsys, *args, **kwargs):
    """Return the fields of all lines that compare prints, and what it returns."""
    result = compare(*args, **kwargs)
    return [fields_of(text) for text in capsys.readouterr().out.splitlines()], result


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
    shapes = {str(np.shape(a)): None, str(np.shape(b)): None}
    assert fields == [verdict, "-", "layer", " and ".join(shapes)]
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
        assert line(capsys, "x", first, second, within=within) == (["DIFFERENT", "inf", "x", "(2, 3)"], False)


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
        fields = ["agree", "< 1e-12", "conv 1", "(2, 3)"]
        assert line(capsys, "conv 1", ONES, torch.from_numpy(ONES + noise)) == (fields, True)
    assert line(capsys, "x", ONES, ONES + 0.4, within=0.5) == (["agree", "< 5e-01", "x", "(2, 3)"], True)


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
    expected = ["DIFFERENT", printed, "x", "(2,)"]
    assert line(capsys, "x", a, b) == (expected, False)
    assert line(capsys, "x", torch.from_numpy(b), a) == (expected, False)


def test_one_float32_side_is_enough_to_be_coarse(capsys):
    a, b = np.array([1.0, 0.0]), np.array([1.0, 0.005678])
    for first, second in ((a.astype("f4"), b), (a, b.astype("f4"))):
        assert line(capsys, "x", first, second)[0][1] == "0.006"
    assert line(capsys, "x", a, b)[0][1] == "0.0057"


def test_the_columns_stand_under_their_headings(capsys):
    header()
    compare("a name", np.ones((2, 64, 64, 32)), np.ones((2, 64, 64, 32)))
    compare("another", ONES, ONES + 1)
    heading, *lines = capsys.readouterr().out.splitlines()
    assert fields_of(heading) == ["verdict", "|diff|", "what was compared", "shape"]
    assert fields_of(lines[0]) == ["agree", "< 1e-12", "a name", "(2, 64, 64, 32)"]
    assert fields_of(lines[1]) == ["DIFFERENT", "1", "another", "(2, 3)"]
    assert {text.index("(") for text in lines} == {heading.index("shape")}


def test_a_line_fits_on_a_projector(capsys):
    header()
    compare("a name of thirty characters...", np.ones((2, 64, 64, 32)), np.ones((2, 64, 64, 32)))
    compare("NaN", with_one(np.nan), with_one(np.nan))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 76


def test_a_field_that_is_too_long_does_not_run_into_the_next(capsys):
    name, array = "a name of very many words, more than fit into the column", np.ones((11, 1, 112, 112, 1, 1))
    compare(name, array, array)
    assert capsys.readouterr().out.split() == ["agree", "<", "1e-12", *name.split(), *str(array.shape).split()]


@pytest.mark.parametrize("keras32", [True, False])
@pytest.mark.parametrize("torch32", [True, False])
def test_float32_where_float64_was_meant_is_said(capsys, keras32, torch32):
    def said(a, b, **kwargs):
        compare("x", a.astype("f4") if keras32 else a, b.astype("f4") if torch32 else b, **kwargs)
        return capsys.readouterr().out.splitlines()[1:]

    which = " and ".join(["Keras"] * keras32 + ["PyTorch"] * torch32)
    expected = [f"               ({which} computed in float32, too coarse for a bound of 1e-12)"] if which else []
    assert said(ONES / 3, ONES / 3 + 1e-7) == expected
    assert said(ONES / 3, ONES / 3 + 1e-7, within=1e-5) == []  # agreement
    assert said(ONES / 3, ONES, within=1e-5) == []  # float32 is fine enough for this bound


def test_a_right_port_in_float16_is_not_called_one_in_float32(capsys):
    compare("x", ONES.astype("f2"), 2 * ONES)
    assert capsys.readouterr().out.count("\n") == 1


# --- Several outputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, lambda pair: {"angle": pair[0], "collision": pair[1]}])
def test_each_of_several_outputs_is_compared_by_itself(capsys, kind):
    first, second = np.zeros((4, 1)), np.ones((4, 2))
    names = ["net, angle", "net, collision"] if isinstance(kind((1, 2)), dict) else ["net, 0", "net, 1"]
    same = [["agree", "< 1e-12", name, shape] for name, shape in zip(names, ("(4, 1)", "(4, 2)"), strict=True)]
    assert printed_lines(capsys, "net", kind((first, second)), kind((torch.zeros(4, 1), torch.ones(4, 2)))) == (
        same,
        True,
    )
    for wrong in range(2):
        lines, agree = printed_lines(
            capsys, "net", kind((first, second)), kind([x + (at == wrong) for at, x in enumerate((first, second))])
        )
        assert agree is False
        assert lines[1 - wrong] == same[1 - wrong]
        assert lines[wrong][:3] == ["DIFFERENT", "1", names[wrong]]


def test_a_list_and_a_tuple_hold_the_same_outputs():
    assert compare("net", [ONES, 2 * ONES], (ONES, 2 * ONES))
    assert not compare("net", [ONES, 2 * ONES], (2 * ONES, ONES))


def test_names_may_stand_in_another_order():
    assert compare("net", {"a": ONES, "b": 2 * ONES}, {"b": 2 * ONES, "a": ONES})


def test_outputs_within_outputs_are_compared(capsys):
    lines, agree = printed_lines(capsys, "net", [ONES, {"a": ONES, "b": [ONES]}], [ONES, {"a": ONES, "b": [2 * ONES]}])
    assert not agree
    assert [fields[2] for fields in lines] == ["net, 0", "net, 1, a", "net, 1, b, 0"]


@pytest.mark.parametrize(
    ("keras_output", "torch_output", "said"),
    [
        ([ONES, ONES], ONES, "0, 1 and a single one"),
        (ONES, [ONES], "a single one and 0"),
        ([ONES, ONES], [ONES, ONES, ONES], "0, 1 and 0, 1, 2"),
        ({"a": ONES}, {"b": ONES}, "a and b"),
        ({"a": ONES}, {}, "a and none"),
    ],
)
def test_outputs_that_have_no_counterpart_are_a_failure(capsys, keras_output, torch_output, said):
    expected = [["OUTPUTS DIFFER", "-", "net", said]]
    assert printed_lines(capsys, "net", keras_output, torch_output) == (expected, False)


def test_no_outputs_at_all_are_a_failure():
    assert compare("net", {}, {}) is False


def test_a_list_of_numbers_is_one_output(capsys):
    assert printed_lines(capsys, "x", [[1.0, 2.0]], [[1.0, 2.0]]) == ([["agree", "< 1e-12", "x", "(1, 2)"]], True)

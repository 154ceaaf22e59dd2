"""Each way to align two tensors is found, in its order, and pairs the same elements; the distance knows infinities."""

from math import inf, nan, prod

from parity.axes import channels_first
from parity.models.alignment import BORDERS, CHANNELS_FIRST_FEATURES, alignments, distance, largest

import pytest
import torch
from torch import nn


def numbers(*shape):
    """Return a tensor of which no two elements are the same."""
    return torch.arange(prod(shape), dtype=torch.float64).reshape(shape)


def notes(value, twin, *args, **kwargs):
    """Return the notes of the ways to align two tensors whose elements are then the same, and all shapes fit."""
    ways = list(alignments(value, twin, *args, **kwargs))
    assert all(way.value.shape == way.twin.shape for way in ways)
    return [way.note for way in ways if torch.equal(way.value, way.twin)]


# --- As many axes in both ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 4, 5, 3), (2, 3, 4, 5, 6)])
def test_the_channels_of_the_twin_may_be_first(shape):
    value = numbers(*shape)
    (way,) = alignments(value, channels_first(value))
    assert way.value is value
    assert torch.equal(way.twin, value)
    assert way.note == ""


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 4, 5, 3)])
def test_the_channels_of_the_twin_may_be_last(shape):
    value = numbers(*shape)
    (way,) = alignments(value, value.clone())
    assert torch.equal(way.twin, value)
    assert way.note == ""


@pytest.mark.parametrize(
    ("module", "first", "last"),
    [
        (None, True, True),
        (nn.Sigmoid(), True, True),
        (nn.Conv2d(4, 4, 1), True, False),
        (nn.BatchNorm2d(4), True, False),
        (nn.PReLU(4), True, False),
        (nn.AvgPool2d(2), True, False),
        (nn.Linear(4, 4), False, True),
        (nn.LayerNorm(4), False, True),
        (nn.Embedding(4, 4), False, True),
    ],
    ids=lambda x: type(x).__name__,
)
def test_where_both_orders_fit_the_module_decides(module, first, last):
    value = numbers(2, 4, 4, 4)
    found = [way.twin for way in alignments(value, channels_first(value), module)]
    assert len(found) == first + last
    if first:
        assert torch.equal(found[0], value)  # the likelier of the two
    assert any(torch.equal(twin, channels_first(value)) for twin in found) == last


def test_without_the_modules_word_its_order_is_not_tried():
    value = numbers(2, 5, 4, 3)
    assert not list(alignments(value, channels_first(value), nn.Linear(3, 3)))
    assert not list(alignments(value, value.clone(), nn.Conv2d(3, 3, 1)))


def test_the_time_of_the_twin_may_come_before_its_examples():
    value = numbers(2, 5, 3)
    (way,) = alignments(value, value.transpose(0, 1).contiguous(), nn.Linear(3, 3))
    assert torch.equal(way.twin, value)
    assert not list(alignments(numbers(2, 5, 4, 3), numbers(5, 2, 4, 3), nn.Linear(3, 3)))


# --- A border ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [(0, 1), (1, 0), (2, 1)])
def test_the_twin_may_have_a_border_of_padding(where):
    value = numbers(2, 3, 4, 2)
    top, left = where
    padded = nn.functional.pad(value, (0, 0, left, 2 - left, top, 2 - top), value=-1)
    assert notes(value, channels_first(padded), window=True) == [BORDERS[0]]
    assert notes(value, padded, nn.Linear(2, 2), window=True) == [BORDERS[0]]
    assert not list(alignments(value, channels_first(padded)))


def test_the_twin_may_lack_a_border_of_padding():
    value = numbers(2, 5, 4, 2)
    twin = channels_first(value[:, 1:4, 2:])
    (way,) = (way for way in alignments(value, twin, window=True) if torch.equal(way.value, way.twin))
    assert way.note == BORDERS[1]
    assert torch.equal(way.value, value[:, 1:4, 2:])


def test_of_the_places_within_a_border_the_middle_is_first_and_none_is_left_out():
    value, twin = numbers(1, 2, 3, 1), numbers(1, 1, 6, 6)
    ways = list(alignments(value, twin, window=True))
    assert len(ways) == 5 * 4
    assert torch.equal(ways[0].twin[0, ..., 0], twin[0, 0, 2:4, 1:4])
    assert len({float(way.twin[0, 0, 0, 0]) for way in ways}) == 5 * 4


@pytest.mark.parametrize(
    "shape",
    [(1, 4, 3, 2), (3, 5, 6, 2), (2, 5, 6, 3), (2, 5, 2, 2)],
    ids=["examples", "more examples", "channels", "larger and smaller"],
)
def test_a_border_is_around_pixels_only_and_on_both_axes(shape):
    value = numbers(2, 4, 3, 2)
    assert not list(alignments(value, numbers(*shape), nn.Linear(2, 2), window=True))


@pytest.mark.parametrize("place", [(0, 0), (40, 60), (17, 3), (20, 30)])
def test_a_border_may_have_any_width(place):
    """Of 41 x 61 places, few are compared whole, and the right one is the first."""
    value = numbers(2, 4, 3, 2)
    top, left = place
    padded = nn.functional.pad(value, (0, 0, left, 60 - left, top, 40 - top))
    for large, small in ((padded, value), (value, padded)):
        first, *others = alignments(large, small, nn.Linear(2, 2), window=True)
        assert torch.equal(first.value, first.twin)
        assert len(others) < 300


def test_in_a_wide_border_rounding_does_not_decide_where_a_tensor_is():
    """It fits everywhere, a little better at the edges. The middle is taken, as with exact numbers."""
    value = torch.ones(1, 2, 2, 3, dtype=torch.float64)
    wide = torch.ones(1, 42, 42, 3, dtype=torch.float64)
    wide[:, 2:-2, 2:-2] += 1e-9
    wide[0, 20:22, 20:22, 0] += 2e-9
    first, *others = alignments(value, wide, nn.Linear(2, 2), window=True)
    assert torch.equal(first.twin, wide[:, 20:22, 20:22])
    assert len(others) == 299


def test_a_tensor_with_nothing_in_common_has_a_place_in_a_wide_border_all_the_same():
    value, wide = numbers(1, 2, 2, 3), 100 + numbers(1, 42, 42, 3)
    wide[0, 5, 5, 0] = torch.nan
    assert 1 <= len(list(alignments(value, wide, nn.Linear(2, 2), window=True))) < 300


# --- Flattened --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 2, 3, 4)])
def test_features_may_have_been_flattened_channels_first(shape):
    value = numbers(2, *shape)
    flat, twin = value.flatten(1), channels_first(value).flatten(1)
    assert notes(flat, twin) == []
    assert notes(flat, twin, None, shape) == [CHANNELS_FIRST_FEATURES]
    assert notes(flat, flat, None, shape) == [""]


def test_features_of_another_number_were_not_flattened_from_that_shape():
    (way,) = alignments(numbers(2, 12), numbers(2, 12), None, (2, 5))
    assert way.note == ""


@pytest.mark.parametrize(
    ("value", "twin", "note"),
    [
        (lambda x: x, lambda x: x.flatten(1), "flattened"),
        (lambda x: x, lambda x: channels_first(x).flatten(1), CHANNELS_FIRST_FEATURES),
        (lambda x: x.flatten(1), lambda x: channels_first(x), "not flattened"),
        (lambda x: x.flatten(1), lambda x: x, "not flattened"),
        (lambda x: x, lambda x: channels_first(x).flatten(2), ""),
        (lambda x: x, lambda x: x.flatten(2), ""),
    ],
    ids=["twin flat", "twin flat, channels first", "Keras flat", "Keras flat, channels last", "pixels", "last axes"],
)
def test_one_of_the_two_may_be_flattened(value, twin, note):
    x = numbers(2, 3, 4, 5)
    assert notes(value(x), twin(x)) == [note]


@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 3, 1)])
def test_axes_of_one_element_do_not_matter(shape):
    value = numbers(2, 3)
    assert notes(value, value.reshape(shape)) == [""]
    assert notes(value.reshape(shape), value) == [""]


# --- Other examples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3])
def test_each_step_of_time_may_be_an_example_of_the_twin(axes):
    value = numbers(2, 5, 3, 4, 6)
    twin = channels_first(value.flatten(0, axes - 1))
    assert notes(value, twin, nn.BatchNorm2d(6)) == [""]
    assert not list(alignments(value, twin[:-1], nn.BatchNorm2d(6)))


def test_the_features_of_each_step_of_time_may_be_an_example_of_the_twin():
    value = numbers(2, 5, 3)
    assert notes(value, value.flatten(0, 1)) == [""]


@pytest.mark.parametrize("calls", [2, 3, 4])
@pytest.mark.parametrize("in_turn", [False, True])
def test_the_twin_may_have_the_examples_of_several_calls(calls, in_turn):
    values = numbers(calls, 5, 4, 3, 2)
    twin = channels_first((values.transpose(0, 1) if in_turn else values).flatten(0, 1))
    for value in values:
        assert notes(value, twin) == [""]


def test_several_calls_are_at_most_four_and_whole():
    value = numbers(4, 3)
    assert not list(alignments(value, numbers(20, 3)))
    assert not list(alignments(value, numbers(10, 3)))
    assert not list(alignments(value, numbers(8, 2)))
    assert list(alignments(value, numbers(16, 3)))


def test_features_of_several_calls_may_have_been_flattened_channels_first():
    values = numbers(2, 4, 3, 5)
    twin = values.movedim(-1, 2).flatten(0, 1).flatten(1)
    assert notes(values[1].flatten(1), twin, None, (3, 5)) == [CHANNELS_FIRST_FEATURES]


@pytest.mark.parametrize(
    ("value", "twin"),
    [
        ((2, 3), (2, 4)),
        ((2, 3), (3, 2)),
        ((2, 3, 4), (2, 3, 5)),
        ((2, 3, 4), (2, 13)),
        ((6,), (2, 3)),
        ((2, 4, 5, 3), (2, 5, 4, 3)),
    ],
    ids=str,
)
def test_where_no_shape_fits_there_is_no_way(value, twin):
    assert not list(alignments(numbers(*value), numbers(*twin), window=True))


# --- The distance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "twin", "expected"),
    [
        ([1.0, -2.0], [1.5, -5.0], 3),
        ([1.0, 5.0], [1.5, 2.0], 3),
        ([inf, 1.0], [inf, 1.5], 0.5),
        ([-inf, 1.0], [-inf, 1.0], 0),
        ([inf, 1.0], [-inf, 1.0], inf),
        ([inf, 1.0], [3.0, 1.0], inf),
        ([nan, 1.0], [nan, 1.0], inf),
        ([1.0, 1.0], [nan, 1.0], inf),
        ([inf, nan], [inf, nan], inf),
        ([], [], 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_distance_is_the_largest_difference(value, twin, expected, dtype):
    assert distance(torch.tensor(value, dtype=dtype), torch.tensor(twin, dtype=dtype)) == expected


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_the_distance_of_whole_numbers_does_not_wrap_around(dtype):
    zero, one = torch.tensor([0, 1], dtype=dtype), torch.tensor([1, 1], dtype=dtype)
    assert distance(zero, one) == distance(one, zero) == 1
    assert distance(one, one) == 0


@pytest.mark.parametrize(
    ("elements", "expected"), [([], 0), ([-3.0, 2.0], 3), ([1.0, 2.0], 2), ([1.0, -inf], inf), ([1.0, nan], inf)]
)
def test_the_largest_absolute_value(elements, expected):
    assert largest(torch.tensor(elements)) == expected

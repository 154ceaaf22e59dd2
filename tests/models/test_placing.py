"""A Keras tensor in the place of the twin's: what is put there agrees, in the twin's shape and dtype."""

from parity.models.alignment import CHANNELS_FIRST_FEATURES, alignments
from parity.models.placing import Place, axes_of, placed
from parity.models.sequences import taken

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

RNG = np.random.default_rng(0)


def tensor(*shape):
    return torch.from_numpy(RNG.normal(size=shape))


def features_first(x):
    return x.movedim(-1, 1).flatten(1)


# A Keras tensor as the twin has it, and what else is known.
WAYS = {
    "channels first": ((2, 5, 4, 3), lambda x: x.movedim(-1, 1), {}),
    "channels last": ((2, 5, 4, 3), lambda x: x, {}),
    "one rank less": ((2, 3), lambda x: x, {}),
    "a number for each example": ((4,), lambda x: x, {}),
    "flattened as in Keras": ((2, 5, 4, 3), lambda x: x.flatten(1), {}),
    "not flattened": ((2, 60), lambda x: x.unflatten(1, (5, 4, 3)).movedim(-1, 1), {"flattened": (5, 4, 3)}),
    "pooled, with all axes": ((2, 3), lambda x: x[:, :, None, None], {}),
    "time first": ((2, 6, 3), lambda x: x.transpose(0, 1), {}),
    "time steps as examples": ((2, 6, 3), lambda x: x.flatten(0, 1), {}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_placed_is_what_a_right_twin_has(way, dtype):
    shape, view, known = WAYS[way]
    value = tensor(*shape)
    right = view(value).to(dtype)
    wrong = right + 1
    before = wrong.clone()
    found = placed(value, Place(wrong), **known)
    assert found.dtype == dtype
    assert torch.equal(found, right)
    assert found.is_contiguous()
    assert torch.equal(wrong, before)


def test_of_several_calls_only_one_is_replaced():
    value, others = tensor(2, 5, 3), tensor(2, 3, 5)
    twin = torch.cat([value.movedim(-1, 1) + 0.01, others])
    found = placed(value, Place(twin))
    assert torch.equal(found, torch.cat([value.movedim(-1, 1), others]))


@pytest.mark.parametrize(
    ("like", "view"),
    [(CHANNELS_FIRST_FEATURES, features_first), ("", lambda x: x.flatten(1)), (None, lambda x: x.flatten(1))],
    ids=["channels first", "Keras's", "nearest"],
)
def test_the_order_of_features_is_that_of_a_tensor_next_to_it(like, view):
    maps = tensor(2, 4, 3, 3)
    near = maps.flatten(1) + 0.01 * tensor(2, 36)
    assert torch.equal(placed(maps.flatten(1), Place(near), flattened=(4, 3, 3), like=like), view(maps))


@pytest.mark.parametrize("as_keras", [False, True])
def test_where_shapes_do_not_tell_a_tensor_next_to_it_does(as_keras):
    """All axes are equally long, so that channels may be first or last; the numbers are far from right either way."""
    value = tensor(2, 3, 3, 3)
    right = value if as_keras else value.movedim(-1, 1)
    like = axes_of(value, right, "")
    assert like is as_keras
    assert torch.equal(placed(value, Place(100 * tensor(2, 3, 3, 3)), like=like), right)


def test_a_module_tells_where_its_channels_are():
    value = tensor(2, 3, 3, 3)
    assert torch.equal(placed(value, Place(value + 1, nn.Conv2d(3, 3, 1))), value.movedim(-1, 1))
    assert torch.equal(placed(value, Place(value + 1, nn.Linear(3, 3))), value)


SIZES = {
    "channels first": ((2, 5, 4, 3), (2, 3, 7, 6), {}, lambda x: x.movedim(-1, 1)),
    "channels last": ((2, 5, 4, 3), (2, 7, 6, 3), {}, lambda x: x),
    "either, channels first": ((2, 3, 4, 3), (2, 3, 7, 3), {"like": False}, lambda x: x.movedim(-1, 1)),
    "either, channels last": ((2, 3, 4, 3), (2, 3, 7, 3), {"like": True}, lambda x: x),
    "not flattened": (
        (2, 60),
        (2, 3, 7, 6),
        {"flattened": (5, 4, 3)},
        lambda x: x.unflatten(1, (5, 4, 3)).movedim(-1, 1),
    ),
    "features": ((2, 6), (2, 8), {}, lambda x: x),
}


@pytest.mark.parametrize("case", SIZES)
def test_a_tensor_of_another_size_is_replaced_by_one_of_the_right_size(case):
    shape, wrong, known, right = SIZES[case]
    value = tensor(*shape)
    found = placed(value, Place(torch.zeros(wrong)), **known)
    assert torch.equal(found, right(value).float())
    assert found.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "wrong"),
    [
        ((2, 5, 4, 3), (2, 5, 3, 4)),
        ((2, 5, 4, 3), (2, 7)),
        ((2, 5, 4, 3), (3, 3, 7, 6)),
        ((2, 6), (2, 3, 4)),
        ((2, 3), (6, 7)),
    ],
    ids=["permuted", "flattened", "other examples", "other axes", "other examples and features"],
)
def test_where_nothing_tells_how_the_twin_would_have_it_it_is_none(shape, wrong):
    assert placed(tensor(*shape), Place(torch.zeros(wrong))) is None


def test_what_agrees_says_how_the_twin_has_its_axes():
    value = tensor(2, 5, 4, 3)
    assert axes_of(value, value, "") is True
    assert axes_of(value, value.movedim(-1, 1), "") is False
    flat = next(aligned for aligned in alignments(value, features_first(value)) if aligned.note)
    assert axes_of(value, features_first(value), CHANNELS_FIRST_FEATURES) == CHANNELS_FIRST_FEATURES != flat.note


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_module_that_has_the_time_first_is_given_it_first(batch_first):
    module, value = nn.LSTM(3, 4, batch_first=batch_first), tensor(2, 6, 3)
    right = value if batch_first else value.transpose(0, 1)
    place = Place(torch.zeros(right.shape), module, lambda x: taken(None, module, [x], 0).tensor)
    assert torch.equal(placed(value, place), right.float())


@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_of_a_packed_sequence_each_step_that_is_there_is_replaced(enforce_sorted):
    module, value, lengths = nn.LSTM(3, 4, batch_first=True), tensor(3, 5, 3), [5, 3, 2]
    right = pack_padded_sequence(value, lengths, batch_first=True, enforce_sorted=enforce_sorted)
    others = [part for part in right[1:] if part is not None]
    place = Place(right.data + 1, module, lambda x: taken(None, module, [x, *others], 0).tensor)
    assert torch.equal(placed(value, place), right.data)

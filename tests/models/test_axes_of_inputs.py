"""Which axes a twin's inputs have, where Keras has the channels first, or the twin takes them as Keras does."""

from course.small_models import draw, fill_scaled, pair_up
from parity import ParityError, diagnose, propose_mapping, trace, transfer
from parity.models.inputs import takes_keras_axes
from tests.helpers.models import Twin, float64_model

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

FIRST = {"data_format": "channels_first"}


def check(model, twin, modules, x, torch_x=None):
    """Assert that a right port is found, filled and quiet, whatever is left to be found out."""
    twin = twin.double().eval()
    mapping = pair_up(model, twin, {name: name for name in modules})
    transfer(model, twin, mapping)
    assert str(diagnose(model, twin, x, mapping, torch_x=torch_x)) == "no layer diverges"
    assert set(trace(model, twin, x, mapping, torch_x=torch_x).verdict) <= {"agree", "not paired"}
    proposal = propose_mapping(model, twin, x, torch_x=torch_x)
    assert {tuple(row) for row in proposal.mapping.to_numpy()} == {tuple(row) for row in mapping.to_numpy()}


@pytest.mark.parametrize(
    ("shape", "first", "usual"),
    [((4, 4, 4), True, True), ((4, 4, 4), False, False), ((5, 5), True, True), ((5, 5), False, False)],
)
def test_where_both_orders_run_the_layers_decide(shape, first, usual):
    twin = nn.Identity()
    assert takes_keras_axes(twin, [np.zeros((2, *shape))], [first]) == (usual,)


@pytest.mark.parametrize(("first", "as_keras"), [(True, True), (False, False), (None, True)])
def test_a_twin_that_fails_either_way_takes_the_likeliest(first, as_keras):
    assert takes_keras_axes(nn.Conv2d(7, 2, 1), [np.zeros((2, 3, 4, 5), "float32")], [first]) == (as_keras,)


def test_a_square_image_with_the_channels_first_is_not_turned():
    def function(x):
        return L.DepthwiseConv2D(3, use_bias=False, name="a", **FIRST)(L.Rescaling(0.5)(x))

    model = float64_model((4, 4, 4), function)
    check(model, Twin(lambda t, x: t.a(x / 2), a=nn.Conv2d(4, 4, 3, groups=4, bias=False)), ["a"], draw(2, 4, 4, 4))


@pytest.mark.parametrize("has_it", [False, True], ids=["the twin leaves it out", "the twin has it"])
def test_a_permutation_at_the_start_may_be_left_out_or_not(has_it):
    def function(x):
        return L.Conv2D(3, 2, name="a")(L.Permute((2, 3, 1), name="turn")(x))

    model = float64_model((4, 9, 8), function)
    check(model, Twin(lambda t, x: t.a(x), a=nn.Conv2d(4, 3, 2)), ["a"], draw(2, 4, 9, 8))

    def other(x):
        return L.LSTM(3, name="a")(L.Permute((2, 1), name="turn")(x)) if has_it else x

    steps = float64_model((4, 9), lambda x: L.Dense(3, name="a")(L.Permute((2, 1), name="turn")(x)))
    check(steps, Twin(lambda t, x: t.a(x.mT if has_it else x), a=nn.Linear(4, 3)), ["a"], draw(2, 4, 9))


def test_an_image_with_the_channels_first_and_words_and_a_series_go_together():
    image, words, series = (
        keras.Input((3, 9, 8), dtype="float64"),
        keras.Input((6,), dtype="int32"),
        keras.Input((7, 5), dtype="float64"),
    )
    a = L.GlobalMaxPooling2D(**FIRST, dtype="float64")(L.DepthwiseConv2D(2, name="a", **FIRST, dtype="float64")(image))
    b = L.GlobalAveragePooling1D(dtype="float64")(L.Embedding(11, 4, name="b", dtype="float64")(words))
    c = L.GlobalAveragePooling1D(dtype="float64")(L.Dense(2, name="c", dtype="float64")(series))
    model = fill_scaled(keras.Model([image, words, series], L.Concatenate(dtype="float64")([a, b, c])))
    twin = Twin(
        lambda t, x, words, s: torch.cat([t.a(x).amax((2, 3)), t.b(words).mean(1), t.c(s).mean(1)], 1),
        a=nn.Conv2d(3, 3, 2, groups=3),
        b=nn.Embedding(11, 4),
        c=nn.Linear(5, 2),
    )
    words_x = np.random.default_rng(0).integers(0, 11, (2, 6))
    check(model, twin, "abc", [draw(2, 3, 9, 8), words_x, draw(2, 7, 5, seed=1)])


# --- Twins of time series and of words -------------------------------------------------------------------------------

SERIES = {
    "dense": (
        lambda x: L.Dense(4, activation="gelu", name="a")(x),
        lambda: Twin(lambda t, x: nn.functional.gelu(t.a(x)), a=nn.Linear(5, 4)),
        ["a"],
    ),
    "a convolution that turns it": (
        lambda x: L.Dense(2, name="b")(L.Conv1D(4, 3, name="a")(x)),
        lambda: Twin(lambda t, x: t.b(t.a(x.mT).mT), a=nn.Conv1d(5, 4, 3), b=nn.Linear(4, 2)),
        ["a", "b"],
    ),
    "a convolution": (
        lambda x: L.Conv1D(4, 3, name="a")(x),
        lambda: Twin(lambda t, x: t.a(x), a=nn.Conv1d(5, 4, 3)),
        ["a"],
    ),
    "a norm": (
        lambda x: L.Dense(2, name="b")(L.LayerNormalization(name="a")(x)),
        lambda: Twin(lambda t, x: t.b(t.a(x)), a=nn.LayerNorm(5, 1e-3), b=nn.Linear(5, 2)),
        ["a", "b"],
    ),
    "a convolution, channels first in Keras": (
        lambda x: L.Conv1D(4, 3, name="a", **FIRST)(x),
        lambda: Twin(lambda t, x: t.a(x), a=nn.Conv1d(7, 4, 3)),
        ["a"],
    ),
}


@pytest.mark.parametrize("name", SERIES)
def test_a_twin_of_a_series_is_right_without_a_word_and_with_its_inputs_given(name):
    function, make, modules = SERIES[name]
    model, x = float64_model((7, 5), function), draw(3, 7, 5)
    check(model, make(), modules, x)
    as_is = "first" in name or name not in ("a convolution",)
    given = torch.from_numpy(x if as_is else np.moveaxis(x, -1, 1).copy())
    for torch_x in (given, [given], (given,)):
        check(model, make(), modules, x, torch_x)


def test_a_twin_of_words_is_right_with_its_inputs_given_or_not():
    start = keras.Input((6,), dtype="int32")
    x = L.Embedding(11, 4, name="a", dtype="float64")(start)
    model = fill_scaled(keras.Model(start, L.Conv1D(3, 2, name="b", dtype="float64")(x)))
    twin = Twin(lambda t, words: t.b(t.a(words).mT), a=nn.Embedding(11, 4), b=nn.Conv1d(4, 3, 2))
    words = np.random.default_rng(0).integers(0, 11, (2, 6))
    for torch_x in (None, torch.from_numpy(words), [torch.from_numpy(words)]):
        check(model, twin, "ab", words, torch_x)


def test_several_series_may_each_have_axes_of_their_own():
    a, b = keras.Input((7, 5), dtype="float64"), keras.Input((9, 4), dtype="float64")
    left = L.GlobalMaxPooling1D(dtype="float64")(L.Dense(3, name="a", dtype="float64")(a))
    right = L.GlobalMaxPooling1D(dtype="float64")(L.Conv1D(3, 2, name="b", dtype="float64")(b))
    model = fill_scaled(keras.Model([a, b], L.Add(dtype="float64")([left, right])))
    twin = Twin(lambda t, x, y: t.a(x).amax(1) + t.b(y).amax(2), a=nn.Linear(5, 3), b=nn.Conv1d(4, 3, 2))
    check(model, twin, "ab", [draw(2, 7, 5), draw(2, 9, 4, seed=1)])


def test_torch_x_that_is_no_tensor_is_told():
    model = float64_model((7, 5), lambda x: L.Dense(3, name="a")(x))
    twin = nn.Sequential(nn.Linear(5, 3)).double()
    x = draw(2, 7, 5)
    mapping = propose_mapping(model, twin, x).mapping
    for look in (
        lambda: propose_mapping(model, twin, x, torch_x=x),
        lambda: trace(model, twin, x, mapping, torch_x=[x]),
        lambda: diagnose(model, twin, x, mapping, torch_x="x"),
    ):
        with pytest.raises(ParityError, match="torch_x must be a tensor, or a list of tensors"):
            look()

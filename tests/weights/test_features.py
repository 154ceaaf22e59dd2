"""The order of flattened features, element by element, without a transfer."""

from math import prod

from parity.weights.flattened import (
    ON_FEATURES,
    channels_first_features,
    counts_features,
    is_shape_of,
    unflattened_channels_first,
)

import keras
import pytest
import torch
from keras import layers as L
from torch import nn

SHAPES = [(3, 4), (2, 3, 4), (2, 3, 4, 5), (3, 1, 4), (6,)]


def numbers(*shape):
    """Return a tensor of which no two elements are the same."""
    return torch.arange(prod(shape)).reshape(shape)


def flattened_by_keras(image):
    """Return what a Flatten of Keras makes of an image (*spatial, channels) alone, and of one channels first."""
    return image.flatten(), image.movedim(-1, 0).flatten()


@pytest.mark.parametrize("shape", SHAPES)
def test_features_take_on_the_order_of_a_twin_that_flattens_channels_first(shape):
    keras_order, twin_order = flattened_by_keras(numbers(*shape))
    assert torch.equal(channels_first_features(keras_order, shape), twin_order)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_are_viewed_as_the_image_channels_first(shape):
    image = numbers(*shape)
    found = unflattened_channels_first(image.flatten(), shape)
    assert torch.equal(found, image.movedim(-1, 0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("before", [(2,), (3, 2)])
def test_the_axes_before_the_features_stay(shape, before):
    images = numbers(*before, *shape)
    features = images.flatten(len(before))
    channels_first = images.movedim(-1, len(before))
    assert torch.equal(unflattened_channels_first(features, shape), channels_first)
    assert torch.equal(channels_first_features(features, shape), channels_first.flatten(len(before)))


def test_the_image_is_a_view():
    features = torch.zeros(2, 12)
    unflattened_channels_first(features, [3, 4]).fill_(1)
    assert features.min() == 1


def test_both_frameworks_agree_on_the_order():
    """A Flatten of Keras, and an nn.Flatten of the same image channels first."""
    image = numbers(2, 3, 4, 5).double()
    by_keras = torch.from_numpy(L.Flatten(dtype="float64")(image.numpy()).numpy())
    by_torch = nn.Flatten()(image.movedim(-1, 1))
    assert torch.equal(channels_first_features(by_keras, (3, 4, 5)), by_torch)
    assert not torch.equal(by_keras, by_torch)


@pytest.mark.parametrize(
    ("shape", "features", "fits"),
    [
        ((3, 4), 12, True),
        ([3, 4, 5], 60, True),
        ((12,), 12, True),
        ((3, 4), 13, False),
        ((3, 4), 11, False),
        ((-3, -4), 12, False),
        ((3, -4, -1), 12, False),
        ((), 1, False),
        ((), 0, False),
        ((0, 4), 0, False),
    ],
)
def test_a_shape_has_as_many_features_as_its_product_and_no_axis_is_empty(shape, features, fits):
    assert is_shape_of(shape, features) is fits


@pytest.mark.parametrize(
    ("layer", "of_features"),
    [
        (L.Dense(2), {"kernel"}),
        (L.BatchNormalization(), {"gamma", "beta", "moving_mean", "moving_variance"}),
        (L.LayerNormalization(), {"gamma", "beta"}),
        (L.PReLU(), {"alpha"}),
        (L.EinsumDense("ab,bc->ac", 2, bias_axes="c"), set()),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_which_weights_have_a_number_or_a_row_for_each_feature(layer, of_features):
    layer.build((None, 7))
    names = {weight.name for weight in layer.weights}
    assert of_features <= names
    assert {name for name in names if counts_features(layer, name)} == of_features
    assert isinstance(layer, ON_FEATURES) == bool(of_features)
    for weight in layer.weights:
        if layer.__class__ is not L.EinsumDense:
            assert (7 in weight.shape[:1]) == counts_features(layer, weight.name)


def test_a_layer_derived_from_dense_counts_as_dense():
    class Mine(keras.layers.Dense):
        pass

    assert counts_features(Mine(2), "kernel")
    assert not counts_features(Mine(2), "bias")

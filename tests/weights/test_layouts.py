"""Each kind of layer computes in PyTorch what it does in Keras, once its weights have moved."""

from parity import largest_difference
from parity.weights.layouts import covered_layers
from tests.helpers.models import ROUNDING, draw, layer, moved, separable, spoil, twin_output

import keras
import numpy as np
import pytest
import torch
from torch import nn

CHANNELS_FIRST = {
    "conv 1d": lambda: (layer("Conv1D", 4, 3, strides=2), nn.Conv1d(3, 4, 3, 2), (7, 3)),
    "conv 2d": lambda: (layer("Conv2D", 5, (3, 2), strides=(1, 2)), nn.Conv2d(3, 5, (3, 2), (1, 2)), (6, 7, 3)),
    "conv 3d": lambda: (layer("Conv3D", 5, (3, 2, 4)), nn.Conv3d(3, 5, (3, 2, 4)), (4, 5, 6, 3)),
    "conv, all sides equal": lambda: (layer("Conv2D", 3, 3), nn.Conv2d(3, 3, 3), (5, 4, 3)),
    "conv, dilated": lambda: (
        layer("Conv2D", 5, 2, dilation_rate=(2, 3)),
        nn.Conv2d(3, 5, 2, dilation=(2, 3)),
        (6, 7, 3),
    ),
    "conv without bias": lambda: (layer("Conv2D", 5, 2, use_bias=False), nn.Conv2d(3, 5, 2, bias=False), (6, 7, 3)),
    "conv, bias in PyTorch only": lambda: (layer("Conv2D", 5, 2, use_bias=False), nn.Conv2d(3, 5, 2), (6, 7, 3)),
    "grouped conv 1d": lambda: (layer("Conv1D", 6, 3, groups=2), nn.Conv1d(4, 6, 3, groups=2), (7, 4)),
    "grouped conv 2d": lambda: (layer("Conv2D", 6, (3, 2), groups=2), nn.Conv2d(4, 6, (3, 2), groups=2), (6, 7, 4)),
    "grouped conv 3d": lambda: (layer("Conv3D", 6, 2, groups=3), nn.Conv3d(9, 6, 2, groups=3), (4, 5, 3, 9)),
    "depthwise 1d": lambda: (layer("DepthwiseConv1D", 3, depth_multiplier=2), nn.Conv1d(3, 6, 3, groups=3), (7, 3)),
    "depthwise 2d": lambda: (
        layer("DepthwiseConv2D", (3, 2), depth_multiplier=4),
        nn.Conv2d(3, 12, (3, 2), groups=3),
        (6, 7, 3),
    ),
    "depthwise, as many outputs for each input": lambda: (
        layer("DepthwiseConv2D", 3, depth_multiplier=3),
        nn.Conv2d(3, 9, 3, groups=3),
        (6, 7, 3),
    ),
    "separable 1d": lambda: (
        layer("SeparableConv1D", 5, 3, strides=2, depth_multiplier=2),
        separable(nn.Conv1d, 5, 3, stride=2),
        (7, 3),
    ),
    "separable 2d": lambda: (
        layer("SeparableConv2D", 5, (3, 2), depth_multiplier=4),
        separable(nn.Conv2d, 5, (3, 2), multiplier=4),
        (6, 7, 3),
    ),
    "transposed 1d": lambda: (layer("Conv1DTranspose", 4, 3, strides=2), nn.ConvTranspose1d(3, 4, 3, 2), (7, 3)),
    "transposed 2d": lambda: (
        layer("Conv2DTranspose", 5, (3, 4), strides=(2, 3)),
        nn.ConvTranspose2d(3, 5, (3, 4), (2, 3)),
        (6, 7, 3),
    ),
    "transposed 3d": lambda: (
        layer("Conv3DTranspose", 5, (3, 2, 4)),
        nn.ConvTranspose3d(3, 5, (3, 2, 4)),
        (4, 5, 6, 3),
    ),
    "transposed, all sides equal": lambda: (layer("Conv2DTranspose", 3, 3), nn.ConvTranspose2d(3, 3, 3), (5, 4, 3)),
    "batch norm": lambda: (layer("BatchNormalization"), nn.BatchNorm2d(5, 1e-3, 0.01), (4, 3, 5)),
    "batch norm of vectors": lambda: (layer("BatchNormalization"), nn.BatchNorm1d(5, 1e-3, 0.01), (5,)),
    "batch norm, other settings": lambda: (
        layer("BatchNormalization", epsilon=0.7, momentum=0.9),
        nn.BatchNorm2d(5, 0.7, 0.1),
        (4, 3, 5),
    ),
    "batch norm without scale": lambda: (
        layer("BatchNormalization", scale=False),
        nn.BatchNorm2d(5, 1e-3, 0.01),
        (4, 3, 5),
    ),
    "batch norm without center": lambda: (
        layer("BatchNormalization", center=False),
        nn.BatchNorm3d(5, 1e-3, 0.01),
        (4, 3, 2, 5),
    ),
    "batch norm without either": lambda: (
        layer("BatchNormalization", scale=False, center=False),
        nn.BatchNorm2d(5, 1e-3, 0.01),
        (4, 3, 5),
    ),
    "batch norm without either in PyTorch": lambda: (
        layer("BatchNormalization", scale=False, center=False),
        nn.BatchNorm2d(5, 1e-3, 0.01, affine=False),
        (4, 3, 5),
    ),
    "group norm": lambda: (layer("GroupNormalization", 2), nn.GroupNorm(2, 6, 1e-3), (4, 3, 6)),
    "group norm without center": lambda: (
        layer("GroupNormalization", 3, center=False, epsilon=0.2),
        nn.GroupNorm(3, 6, 0.2),
        (4, 3, 6),
    ),
    "group norm without scale": lambda: (
        layer("GroupNormalization", 3, scale=False),
        nn.GroupNorm(3, 6, 1e-3),
        (4, 3, 6),
    ),
    "instance norm": lambda: (layer("GroupNormalization", -1), nn.GroupNorm(6, 6, 1e-3), (4, 3, 6)),
    "prelu": lambda: (layer("PReLU", shared_axes=[1, 2]), nn.PReLU(5), (4, 3, 5)),
    "prelu with one slope": lambda: (layer("PReLU", shared_axes=[1, 2, 3]), nn.PReLU(1), (4, 3, 5)),
}

LAST_AXIS = {
    "dense": lambda: (layer("Dense", 4), nn.Linear(5, 4), (5,)),
    "dense, square": lambda: (layer("Dense", 5), nn.Linear(5, 5), (5,)),
    "dense without bias": lambda: (layer("Dense", 4, use_bias=False), nn.Linear(5, 4), (5,)),
    "dense on the last axis": lambda: (layer("Dense", 4), nn.Linear(5, 4), (2, 3, 5)),
    "layer norm": lambda: (layer("LayerNormalization"), nn.LayerNorm(5, 1e-3), (4, 5)),
    "rms norm": lambda: (layer("RMSNormalization"), nn.RMSNorm(5, 1e-6), (4, 5)),
    "layer norm, other epsilon": lambda: (layer("LayerNormalization", epsilon=0.4), nn.LayerNorm(5, 0.4), (4, 5)),
    "layer norm without center": lambda: (layer("LayerNormalization", center=False), nn.LayerNorm(5, 1e-3), (4, 5)),
    "layer norm without scale": lambda: (layer("LayerNormalization", scale=False), nn.LayerNorm(5, 1e-3), (4, 5)),
}


@pytest.mark.parametrize("make", CHANNELS_FIRST.values(), ids=CHANNELS_FIRST)
def test_the_twin_computes_what_the_layer_does(make):
    keras_layer, module, shape = make()
    x = draw(2, *shape, seed=1)
    module = moved(keras_layer, module.double(), shape)
    expected = keras_layer(x).numpy()
    assert largest_difference(expected, twin_output(module, x)) < ROUNDING
    # The same twin, had nothing been moved.
    assert largest_difference(expected, twin_output(spoil(module), x)) > 0.1


@pytest.mark.parametrize("make", LAST_AXIS.values(), ids=LAST_AXIS)
def test_the_twin_on_the_last_axis_computes_what_the_layer_does(make):
    keras_layer, module, shape = make()
    x = draw(2, *shape, seed=1)
    module = moved(keras_layer, module.double(), shape)
    expected = keras_layer(x).numpy()
    with torch.no_grad():
        assert largest_difference(expected, module(torch.from_numpy(x))) < ROUNDING
        assert largest_difference(expected, spoil(module)(torch.from_numpy(x))) > 0.1


def test_embedding_looks_up_the_same_vectors():
    keras_layer, module = layer("Embedding", 7, 4), nn.Embedding(7, 4).double()
    words = np.array([[0, 6, 3], [5, 1, 3]])
    moved(keras_layer, module, (3,))
    assert largest_difference(keras_layer(words), module(torch.from_numpy(words))) == 0


def test_every_covered_kind_is_tested_here():
    tested = {type(make()[0]).__name__ for make in (*CHANNELS_FIRST.values(), *LAST_AXIS.values())} | {"Embedding"}
    elsewhere = "SimpleRNN LSTM GRU EinsumDense Attention AdditiveAttention Normalization"
    assert tested | set(elsewhere.split()) == set(covered_layers()), "test_sequence_layouts.py has the others"


def test_a_layer_derived_from_a_covered_one_is_covered():
    class Special(keras.layers.Conv1D):
        pass

    special, x = Special(4, 3, dtype="float64"), draw(2, 7, 3)
    module = moved(special, nn.Conv1d(3, 4, 3).double(), (7, 3))
    assert largest_difference(special(x), twin_output(module, x)) < ROUNDING

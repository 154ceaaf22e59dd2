"""Where a Keras model has its channels: as its layers say."""

from course.small_models import draw
from parity import ParityError, trace
from parity.models.keras_channels import (
    CHANNELS_LAST,
    as_in_keras,
    axes_in_keras,
    channels_of,
    input_axes,
    stated_axis,
    with_channels_last,
)
from parity.models.keras_graph import keras_graph, run_step
from parity.models.keras_values import follow_order, walk
from parity.models.rounding import usual_move
from tests.helpers.models import float64_model, table

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

FIRST = {"data_format": "channels_first"}


def axes_of(shape, function, **settings):
    """Return the axis of the channels of each step's output, by the name of the step; None where it is the last."""
    start = keras.Input(shape, **settings)
    graph = keras_graph(keras.Model(start, function(start)))
    found = channels_of(graph)
    axes = {"input": found.axes.get(graph.inputs[0])}
    axes |= {step.name: found.axes.get(step.outputs[0]) for step in graph.steps}
    return axes, found, graph


LAYERS = {
    "Conv1D": ((4, 9), L.Conv1D(3, 2, **FIRST)),
    "Conv2D": ((4, 9, 8), L.Conv2D(3, 2, **FIRST)),
    "Conv3D": ((4, 9, 8, 7), L.Conv3D(3, 2, **FIRST)),
    "Conv1DTranspose": ((4, 9), L.Conv1DTranspose(3, 2, **FIRST)),
    "Conv2DTranspose": ((4, 9, 8), L.Conv2DTranspose(3, 2, **FIRST)),
    "Conv3DTranspose": ((4, 9, 8, 7), L.Conv3DTranspose(3, 2, **FIRST)),
    "DepthwiseConv1D": ((4, 9), L.DepthwiseConv1D(2, **FIRST)),
    "DepthwiseConv2D": ((4, 9, 8), L.DepthwiseConv2D(2, **FIRST)),
    "SeparableConv1D": ((4, 9), L.SeparableConv1D(3, 2, **FIRST)),
    "SeparableConv2D": ((4, 9, 8), L.SeparableConv2D(3, 2, **FIRST)),
    "MaxPooling2D": ((4, 9, 8), L.MaxPooling2D(2, **FIRST)),
    "AveragePooling1D": ((4, 9), L.AveragePooling1D(2, **FIRST)),
    "GlobalAveragePooling2D": ((4, 9, 8), L.GlobalAveragePooling2D(keepdims=True, **FIRST)),
    "UpSampling2D": ((4, 9, 8), L.UpSampling2D(2, **FIRST)),
    "ZeroPadding1D": ((4, 9), L.ZeroPadding1D(2, **FIRST)),
    "Cropping3D": ((4, 9, 8, 7), L.Cropping3D(1, **FIRST)),
    "SpatialDropout2D": ((4, 9, 8), L.SpatialDropout2D(0.5, **FIRST)),
    "Resizing": ((4, 9, 8), L.Resizing(5, 6, **FIRST)),
    "BatchNormalization": ((4, 9, 8), L.BatchNormalization(axis=1)),
    "LayerNormalization": ((4, 9, 8), L.LayerNormalization(axis=[1])),
    "GroupNormalization": ((4, 9, 8), L.GroupNormalization(2, axis=1)),
    "RMSNormalization": ((4, 9, 8), L.RMSNormalization(axis=1)),
    "Normalization": ((4, 9, 8), L.Normalization(axis=1, mean=[0.0] * 4, variance=[1.0] * 4)),
    "PReLU": ((4, 9, 8), L.PReLU(shared_axes=[2, 3])),
    "SpectralNormalization": ((4, 9, 8), L.SpectralNormalization(L.DepthwiseConv2D(2, **FIRST))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_says_that_its_channels_are_first(name):
    shape, layer = LAYERS[name]
    axes, found, graph = axes_of(shape, layer)
    assert set(axes.values()) == {1}
    assert list(input_axes(graph, found)) == [True]
    assert found.possible(graph.inputs[0], graph.steps[0], len(shape) + 1) == [1]


SILENT = {
    "as by default": ((9, 8, 4), L.Conv2D(3, 2)),
    "softmax": ((4, 9, 8), L.Softmax(axis=1)),  # weights of an attention, as likely
    "over all": ((4, 9, 8), L.LayerNormalization(axis=[1, 2, 3])),
    "slopes of each place": ((4, 9, 8), L.PReLU()),
    "features": ((4,), L.BatchNormalization(axis=1)),
    "words": ((9,), L.Embedding(5, 3)),
    "Dense": ((4, 9, 8), L.Dense(3)),
    "flattened as it lies": ((4, 9, 8), L.Flatten(data_format="channels_last")),
}


@pytest.mark.parametrize("name", SILENT)
def test_all_else_has_the_channels_last(name):
    shape, layer = SILENT[name]
    axes, found, graph = axes_of(shape, layer)
    assert set(axes.values()) == {None}
    assert (found.axes, found.features_first) == ({}, frozenset())
    assert list(input_axes(graph, found)) == [False]


def test_an_image_in_time_has_its_channels_behind_the_time():
    for layer in (L.TimeDistributed(L.DepthwiseConv2D(2, **FIRST)), L.ConvLSTM2D(3, 2, return_sequences=True, **FIRST)):
        axes, found, graph = axes_of((6, 4, 9, 8), layer)
        assert set(axes.values()) == {2}
        assert list(input_axes(graph, found)) == [True]
    assert axes_of((6, 4, 9, 8), L.ConvLSTM2D(3, 2, name="last", **FIRST))[0] == {"input": 2, "last": 1}


def test_layers_that_keep_the_axes_hand_it_on_both_ways():
    def function(x):
        x = L.ReLU(name="relu")(L.Rescaling(2.0, name="scale")(x))
        x = L.DepthwiseConv2D(2, activation="tanh", name="conv", **FIRST)(x)
        x = L.Add(name="add")([x, L.Dropout(0.5, name="drop")(x)])
        x = L.Multiply(name="gates")(
            [x, L.Reshape((4, 1, 1), name="gate")(L.Dense(4)(L.GlobalMaxPooling2D(**FIRST)(x)))]
        )
        return L.Reshape((4, 56), name="rows")(x)

    axes, _, _ = axes_of((4, 9, 8), function)
    names = ("input", "scale", "relu", "conv", "conv activation", "drop", "add", "gate", "gates", "rows")
    assert {name: axes[name] for name in names} == dict.fromkeys(names, 1)


MOVES = {
    "Permute": (L.Permute((3, 1, 2)), L.Permute((2, 3, 1))),
    "transpose": (lambda x: keras.ops.transpose(x, (0, 3, 1, 2)), lambda x: keras.ops.transpose(x, (0, 2, -1, 1))),
    "moveaxis": (lambda x: keras.ops.moveaxis(x, -1, 1), lambda x: keras.ops.moveaxis(x, 1, -1)),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_layer_that_permutes_moves_it(name):
    to_first, to_last = MOVES[name]
    axes, found, graph = axes_of((9, 8, 4), lambda x: L.ReLU(name="r")(to_first(L.Conv2D(5, 2)(x))))
    assert axes["r"] == 1
    assert axes["input"] is None
    axes, found, graph = axes_of((4, 9, 8), lambda x: L.Conv2D(5, 2, name="c")(to_last(x)))
    assert (axes["input"], axes["c"]) == (1, None)
    assert list(input_axes(graph, found)) == [None], "a twin may do without the permutation"
    axes, found, graph = axes_of((9, 8, 4), lambda x: L.DepthwiseConv2D(2, name="c", **FIRST)(to_first(x)))
    assert (axes["input"], axes["c"]) == (None, 1)
    assert list(input_axes(graph, found)) == [False]


def test_swapped_axes_are_followed_too():
    axes, _, _ = axes_of((9, 8, 4), lambda x: L.ReLU(name="r")(keras.ops.swapaxes(L.Conv2D(5, 2)(x), 1, -1)))
    assert axes["r"] == 1
    axes, _, _ = axes_of((9, 4), lambda x: L.ReLU(name="r")(keras.ops.transpose(L.Conv1D(5, 2)(x), (0, 2, 1))))
    assert axes["r"] == 1


def test_what_makes_a_tensor_is_asked_before_what_takes_it_and_a_step_for_itself():
    def function(x):
        return L.BatchNormalization(axis=1, name="by rows")(L.ReLU(name="r")(L.Conv2D(5, 2, name="c")(x)))

    axes, found, graph = axes_of((9, 8, 4), function)
    assert axes == {"input": None, "c": None, "r": None, "by rows": 1}
    *_, rows = graph.steps
    assert stated_axis(rows, 4) == 1
    assert found.axis(rows.inputs[0], rows, 4) == 1
    assert found.axis(rows.inputs[0], None, 4) == 3
    assert found.possible(rows.inputs[0], None, 4) == [3, 1]


def test_a_tensor_of_which_no_layer_says_it_may_have_the_channels_on_either_end():
    _, found, graph = axes_of((4, 9, 8), lambda x: L.ReLU()(L.DepthwiseConv2D(2, **FIRST)(x)))
    assert found.possible(graph.steps[-1].outputs[0], graph.steps[-1], 4) == [1, 3]
    assert found.possible(graph.steps[-1].outputs[0], graph.steps[-1], 2) == [1]
    assert CHANNELS_LAST.possible(graph.steps[-1].outputs[0], graph.steps[-1], 4) == [3]


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_channels_are_moved_to_the_end_and_back(axis):
    x = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    moved = with_channels_last(x, axis)
    assert moved.shape[-1] == x.shape[axis]
    assert torch.equal(as_in_keras(moved, axis), x)
    assert [x.shape[one] for one in axes_in_keras(4, axis)] == list(moved.shape)
    features = torch.ones(2, 3)
    assert with_channels_last(features, 1) is as_in_keras(features, 1) is features
    assert axes_in_keras(2, 1) == [0, 1]


@pytest.mark.parametrize(
    ("shape", "way", "flattened", "reorderable"),
    [
        ((9, 8, 4), {}, (8, 7, 4), True),
        ((4, 9, 8), FIRST, (8, 7, 4), True),  # Keras moves the channels to the end
        ((4, 9, 8), {"data_format": "channels_last"}, (4, 8, 7), False),  # it flattens what it gets
    ],
)
def test_features_are_followed_in_the_order_in_which_keras_has_them(shape, way, flattened, reorderable):
    first = FIRST if shape[0] == 4 else {}
    start = keras.Input(shape)
    x = L.Flatten(**way)(L.DepthwiseConv2D(2, name="a", **first)(start))
    model = keras.Model(start, L.Dense(2)(L.ReLU()(x)))
    graph, known = keras_graph(model), {}
    channels = channels_of(graph)
    for step, inputs, outputs in walk(graph, [draw(2, *shape).astype("float32")], perturb=None):
        if step is not None:
            follow_order(step, inputs, outputs, known, channels)
    numbers = [step.outputs[0] for step in graph.steps[-3:-1]]
    assert [known[number] for number in numbers] == [flattened] * 2
    assert [channels.features(number, known) for number in numbers] == [flattened if reorderable else None] * 2
    assert graph.steps[-1].outputs[0] not in known
    found = graph.steps[1]
    flat = np.asarray(
        run_step(
            found,
            [
                np.arange(np.prod(found.node.input_tensors[0].shape[1:])).reshape(
                    1, *found.node.input_tensors[0].shape[1:]
                )
            ],
        )[0]
    )
    if reorderable and first:
        assert list(flat[0, :4]) == [0, 56, 112, 168]


PLAIN = {
    "Conv1D": ((4, 9), L.Conv1D, 3),
    "causal": ((4, 9), L.Conv1D, 3, {"padding": "causal", "dilation_rate": 2}),
    "Conv2D": ((4, 9, 8), L.Conv2D, (3, 2), {"strides": 2, "padding": "same"}),
    "groups": ((4, 9, 8), L.Conv2D, (3, 2), {"groups": 2}),
    "Conv3D": ((4, 6, 7, 9), L.Conv3D, 2, {"activation": "relu"}),
    "Conv2DTranspose": ((4, 9, 8), L.Conv2DTranspose, (3, 2), {"strides": 2}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_convolution_that_tensorflow_cannot_run_channels_first_is_run_with_the_channels_last(name):
    """In float64 it cannot on any processor, and in float32 on many."""
    shape, kind, kernel, *more = PLAIN[name]
    settings = more[0] if more else {}
    x = draw(2, *shape)
    first = float64_model(shape, lambda x: kind(6, kernel, name="conv", **FIRST, **settings)(x))
    last = float64_model((*shape[1:], shape[0]), lambda x: kind(6, kernel, name="conv", **settings)(x))
    last.set_weights([weight.numpy() for weight in first.weights])
    layer = first.layers[1]
    before = layer.input_spec
    *_, (_, _, (value,)) = walk(keras_graph(first), [x], perturb=None)
    due = np.moveaxis(np.asarray(last(np.moveaxis(x, 1, -1))), -1, 1)
    np.testing.assert_allclose(np.asarray(value.exact), due, atol=1e-12)
    assert (layer.data_format, layer.input_spec) == ("channels_first", before)


def test_what_keras_cannot_run_at_all_is_told_with_the_layer():
    def function(x):
        return L.TimeDistributed(L.Conv2D(3, 2, **FIRST), name="frames")(x)

    model = float64_model((6, 4, 9, 8), function)
    with pytest.raises(
        ParityError, match="frames: 1 fault\n  the Keras model stops there: UnimplementedError: The Conv2D"
    ):
        trace(
            model, nn.Conv2d(4, 3, 2).double(), draw(2, 6, 4, 9, 8), table(), torch_x=torch.zeros(12, 4, 9, 8).double()
        )


def test_rounding_moves_a_convolution_as_far_wherever_it_has_the_channels():
    x = draw(2, 4, 9, 8)
    moves = []
    for way, given in (("channels_first", x), ("channels_last", np.moveaxis(x, 1, -1))):
        model = float64_model(given.shape[1:], lambda x, way=way: L.Conv2D(5, 3, name="conv", data_format=way)(x))
        (step,) = keras_graph(model).steps
        (y,) = run_step(step, [given])
        moves.append(usual_move(step, [1e-9], [given], y))
    assert moves[0] == moves[1] > 0

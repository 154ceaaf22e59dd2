"""What becomes a module, and what it takes."""

from types import SimpleNamespace

from parity import ParityError
from parity.models.keras_graph import keras_graph
from parity.models.rounding import TIMES_NOISE
from parity.proposal.layers import keras_dtype, keras_parts
from tests.helpers.models import model_of, x_of

import keras
import numpy as np
import pytest
import torch
from keras import layers as L


def parts_of(shape, layers, examples=2):
    model = model_of(shape, layers)
    x = x_of(examples, *shape)
    return model, x, *keras_parts(keras_graph(model), [x])


def test_a_part_for_each_layer_with_weights_in_the_order_of_the_data_flow():
    model, x, parts, faults = parts_of(
        (4,), lambda x: L.Dense(2, name="b")(L.ReLU()(L.Dense(3, name="a", activation="tanh")(x)))
    )
    assert faults == []
    assert list(parts) == ["a", "b"]
    a, b = parts.values()
    assert (a.label, a.layer, list(a.weights)) == ("a", model.get_layer("a"), ["weight", "bias"])
    assert (a.before, b.before) == (frozenset(), {"a"})
    np.testing.assert_array_equal(a.inputs[0].value.numpy(), x)
    kernel, offset = model.get_layer("a").get_weights()
    due = np.maximum(np.tanh(x @ kernel + offset), 0)
    np.testing.assert_allclose(b.inputs[0].value.numpy(), due, rtol=1e-5, atol=1e-6)
    assert 0 < b.inputs[0].tolerance < 1e-3
    assert b.inputs[0].tolerance >= TIMES_NOISE * np.finfo("float32").eps * due.max() * 0.999
    np.testing.assert_array_equal(a.value("weight").numpy(), kernel.T)
    np.testing.assert_array_equal(a.value("bias").numpy(), offset)
    assert a.weights["weight"][0] is model.get_layer("a").kernel


def test_a_shared_layer_is_one_part_and_takes_something_in_each_call():
    shared = L.Dense(4, name="shared")
    _, x, parts, _ = parts_of((4,), lambda x: L.Dense(2, name="out")(shared(shared(x))))
    assert list(parts) == ["shared", "out"]
    first, second = parts["shared"].inputs
    np.testing.assert_array_equal(first.value.numpy(), x)
    np.testing.assert_allclose(second.value.numpy(), shared(x).numpy(), rtol=1e-5, atol=1e-6)
    assert (first.before, second.before) == (frozenset(), {"shared"})
    assert parts["shared"].before == {"shared"}
    assert parts["out"].before == {"shared"}


def test_what_is_before_a_merge_are_both_branches():
    *_, parts, _ = parts_of(
        (4,), lambda x: L.Dense(2, name="c")(L.Add()([L.Dense(4, name="a")(x), L.Dense(4, name="b")(x)]))
    )
    assert {label: part.before for label, part in parts.items()} == {"a": set(), "b": set(), "c": {"a", "b"}}


def test_a_separable_convolution_is_two_parts():
    model, x, parts, faults = parts_of(
        (6, 5, 2), lambda x: L.SeparableConv2D(3, 3, strides=2, padding="same", name="sep")(x)
    )
    assert faults == []
    assert list(parts) == ["sep/depthwise", "sep/pointwise"]
    depthwise, pointwise = parts.values()
    assert (list(depthwise.weights), list(pointwise.weights)) == (["weight"], ["weight", "bias"])
    assert (depthwise.before, pointwise.before) == (frozenset(), {"sep/depthwise"})
    np.testing.assert_array_equal(depthwise.inputs[0].value.numpy(), x)
    layer = model.get_layer("sep")
    due = keras.ops.depthwise_conv(x, layer.depthwise_kernel, 2, "same").numpy()
    np.testing.assert_allclose(pointwise.inputs[0].value.numpy(), due, rtol=1e-5, atol=1e-6)
    assert depthwise.value("weight").shape == (2, 1, 3, 3)
    assert pointwise.value("weight").shape == (3, 2, 1, 1)


def test_flattened_features_are_known_up_to_the_first_dense_layer():
    def layers(x):
        x = L.BatchNormalization(name="norm")(L.Flatten()(L.Conv2D(3, 1, name="conv")(x)))
        return L.Dense(2, name="b")(L.Dense(36, name="a")(x))

    model, _, parts, _ = parts_of((4, 3, 2), layers)
    assert {label: part.inputs[0].flattened for label, part in parts.items()} == {
        "conv": None,
        "norm": (4, 3, 3),
        "a": (4, 3, 3),
        "b": None,
    }
    kernel = model.get_layer("a").kernel.numpy()
    due = kernel.reshape(4, 3, 3, 36).transpose(2, 0, 1, 3).reshape(36, 36).T
    a, norm = parts["a"], parts["norm"]
    np.testing.assert_array_equal(a.value("weight", (4, 3, 3)).numpy(), due)
    np.testing.assert_array_equal(a.value("weight").numpy(), kernel.T)
    np.testing.assert_array_equal(a.value("bias", (4, 3, 3)).numpy(), model.get_layer("a").bias.numpy())
    gamma = model.get_layer("norm").gamma.numpy()
    np.testing.assert_array_equal(norm.value("weight", (4, 3, 3)).numpy(), gamma.reshape(12, 3).T.ravel())


def test_whole_numbers_have_no_tolerance():
    x = keras.Input((5,), dtype="int32")
    model = keras.Model(x, L.Embedding(9, 2, name="e")(x))
    words = np.arange(5, dtype="int32")[None]
    parts, _ = keras_parts(keras_graph(model), [words])
    taken = parts["e"].inputs[0]
    assert (taken.tolerance, taken.flattened, taken.before) == (0.0, None, frozenset())
    np.testing.assert_array_equal(taken.value.numpy(), words)


def test_the_layer_in_a_time_distributed_is_the_part():
    model, _, parts, faults = parts_of((5, 4), lambda x: L.TimeDistributed(L.Dense(3, name="inner"), name="each")(x))
    assert faults == []
    (part,) = parts.values()
    assert part.layer is model.get_layer("each").layer
    assert part.label == part.layer.kernel.path.rpartition("/")[0]


def test_a_layer_that_is_not_covered_is_a_fault_once():
    lstm = L.ConvLSTM1D(4, 1, name="lstm", return_sequences=True)
    *_, parts, faults = parts_of((5, 3, 4), lambda x: L.Dense(2, name="out")(lstm(lstm(x))))
    assert list(parts) == ["lstm/conv_lstm_cell", "out"]
    (part, _) = parts.values()
    assert (part.weights, len(part.inputs), part.is_covered) == ({}, 2, False)
    assert parts["out"].before == {part.label}
    assert len(faults) == 1
    assert faults[0].startswith(f"{part.label}: the kind ConvLSTMCell is not covered; covered are AdditiveAttention, ")


def test_a_weight_that_cannot_be_moved_is_a_fault():
    class Extra(L.Dense):
        def build(self, shape):
            super().build(shape)
            self.gain = self.add_weight(name="gain", shape=())

    *_, parts, faults = parts_of((4,), lambda x: Extra(3, name="a")(x))
    assert faults == ["a: a Extra has no weight gain that can be moved"]
    assert list(parts["a"].weights) == ["weight", "bias"]


def test_a_model_without_weights_is_refused():
    with pytest.raises(ParityError, match="the Keras model has no weights"):
        parts_of((4,), lambda x: L.ReLU()(x))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_dtype_of_the_weights(dtype):
    model = keras.Sequential([keras.Input((3,)), L.Dense(2, dtype=dtype)])
    assert keras_dtype(model) == getattr(torch, dtype)
    assert keras_dtype(keras.Sequential([keras.Input((3,)), L.ReLU()])) == torch.float32


def test_the_first_weight_of_real_numbers_tells_it():
    weights = [keras.Variable(1, dtype="int32"), keras.Variable(1.0, dtype="float64")]
    assert keras_dtype(SimpleNamespace(weights=weights)) == torch.float64


def test_a_layer_whose_weights_cannot_be_reordered_has_no_flattened_features():
    *_, parts, _ = parts_of((4, 3, 2), lambda x: L.GroupNormalization(3, name="norm")(L.Flatten()(x)))
    assert parts["norm"].inputs[0].flattened is None

"""What is known of Keras's layers by their kind, beside what Keras itself says of them."""

import inspect

from parity.models.keras_layers import (
    RANDOM_IN_TRAINING,
    activation_name,
    activation_owner,
    has_activation,
    inner_layers,
)
from tests.helpers.models import model_of

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops


def operation():
    """Return an operation without weights."""
    return (keras.Input((2,)) + 1)._keras_history.operation


def named(layers):
    return sorted(layer.name for layer in layers)


def test_the_layers_within_a_layer_are_found_at_any_depth():
    inner = keras.Sequential([keras.Input((5, 3)), L.TimeDistributed(L.Dense(2, name="d"), name="each")], name="inner")
    model = keras.Sequential(
        [keras.Input((5, 3)), inner, L.Bidirectional(L.LSTM(2, name="rnn"), name="both")], name="m"
    )
    found = inner_layers(model)
    assert found[0] is model
    assert {"m", "inner", "each", "d", "both"} <= set(named(found))
    assert sum(isinstance(layer, L.LSTM) for layer in found) >= 2
    assert len({id(layer) for layer in found}) == len(found)


def test_a_layer_without_layers_has_itself_and_an_operation_none():
    layer = L.Dense(2)
    assert inner_layers(layer) == [layer]
    assert inner_layers(operation()) == []


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda: L.Dense(2), "linear"),
        (lambda: L.Dense(2, activation="relu"), "relu"),
        (lambda: L.Activation("tanh"), "tanh"),
        (lambda: L.Dense(2, activation=ops.sin), "sin"),
        (lambda: L.Dense(2, activation=L.LeakyReLU()), "LeakyReLU"),
        (lambda: L.Flatten(), "linear"),
        (lambda: operation(), "linear"),
    ],
)
def test_the_name_of_an_activation(layer, name):
    assert activation_name(layer()) == name


# Kinds whose activation is not added to what they compute: within the loop of a recurrent layer, or the whole layer.
WITHIN = {
    *("SimpleRNN", "SimpleRNNCell", "GRU", "GRUCell", "LSTM", "LSTMCell"),
    *("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "Activation"),
}


def kinds_with_activation():
    """Yield the names of Keras's layers that take an activation."""
    for name, kind in vars(keras.layers).items():
        if inspect.isclass(kind) and "activation" in inspect.signature(kind.__init__).parameters:
            yield name


def layer_of(name, **more):
    """Return a layer of a kind with an activation, with the arguments that it needs."""
    needed = {"units": 2, "filters": 2, "kernel_size": 2, "equation": "ab,bc->ac", "output_shape": 2}
    takes = inspect.signature(getattr(L, name).__init__).parameters
    given = {key: value for key, value in needed.items() if key in takes and takes[key].default is inspect._empty}
    return getattr(L, name)(**given, **more)


@pytest.mark.parametrize("name", sorted(kinds_with_activation()))
def test_a_layer_has_an_activation_of_its_own_if_it_adds_one_to_what_it_computes(name):
    """Of all kinds that Keras has; the expected answer is written above, and a new kind of layer is asked for here."""
    assert has_activation(layer_of(name, activation="relu")) == (name not in WITHIN)
    if name != "Activation":
        assert not has_activation(layer_of(name, activation="linear"))


def test_a_layer_that_is_repeated_for_each_step_has_the_activation_of_what_it_repeats():
    repeated = L.TimeDistributed(L.Dense(2, activation="relu"))
    for layer in (repeated, L.TimeDistributed(repeated)):
        assert has_activation(layer)
        assert activation_name(layer) == "relu"
        assert isinstance(activation_owner(layer), L.Dense)
    assert not has_activation(L.TimeDistributed(L.Dense(2)))
    assert not has_activation(L.TimeDistributed(L.GRU(2)))


def test_a_layer_without_an_activation_has_none():
    assert not has_activation(L.ReLU())
    assert not has_activation(operation())

    class Mine(L.Dense):
        pass

    assert has_activation(Mine(2, activation="relu"))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: L.Dropout(0.5), (6,)),
        (lambda: L.SpatialDropout1D(0.5), (4, 6)),
        (lambda: L.SpatialDropout2D(0.5), (2, 2, 6)),
        (lambda: L.SpatialDropout3D(0.5), (1, 2, 2, 6)),
        (lambda: L.AlphaDropout(0.5), (6,)),
        (lambda: L.GaussianDropout(0.5), (6,)),
        (lambda: L.GaussianNoise(0.5), (6,)),
        (lambda: L.RandomBrightness(0.5, value_range=(0, 1)), (2, 2, 3)),
        (lambda: L.RandomFlip("horizontal"), (4, 4, 3)),
        (lambda: L.Dense(6), (6,)),
        (lambda: L.BatchNormalization(), (6,)),
        (lambda: L.ActivityRegularization(), (6,)),
        (lambda: L.Rescaling(2.0), (6,)),
    ],
)
def test_what_is_random_in_training_is_known(layer, shape):
    layer = layer()
    model = model_of(shape, layer)
    x = np.random.default_rng(0).random((16, *shape), "float32")
    results = [np.array(model(x, training=True)) for _ in range(4)]
    differ = any(not np.array_equal(results[0], result) for result in results[1:])
    assert isinstance(layer, RANDOM_IN_TRAINING) == differ

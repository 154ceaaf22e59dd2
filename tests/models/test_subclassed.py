"""A subclassed Keras model has no graph. Its ``call`` makes one of symbolic inputs, or the message says what to do."""

from parity import ParityError, diagnose, propose_mapping, read_mapping, trace, transfer
from parity.models.keras_graph import with_graph

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn


class Net(keras.Model):
    """Two Dense layers and a shortcut."""

    def __init__(self):
        super().__init__(name="net")
        self.first, self.relu, self.second = L.Dense(5, name="first"), L.ReLU(name="relu"), L.Dense(5, name="second")

    def call(self, x, training=None):
        """Map (batch, 5) to (batch, 5)."""
        return x + self.second(self.relu(self.first(x)))


class Twin(nn.Module):
    """Its twin."""

    def __init__(self, act=torch.relu):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(5, 5), nn.Linear(5, 5), act

    def forward(self, x):
        """Map (batch, 5) to (batch, 5)."""
        return x + self.b(self.act(self.a(x)))


X = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")


def filled(net, twin):
    net(X)
    for number, weight in enumerate(net.weights):
        weight.assign(np.random.default_rng(number).normal(size=weight.shape))
    mapping = propose_mapping(net, twin, X).mapping
    transfer(net, twin, mapping)
    return mapping


def test_a_subclassed_model_is_mapped_moved_and_traced():
    net, twin = Net(), Twin().eval()
    mapping = filled(net, twin)
    assert set(mapping.torch) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert str(diagnose(net, twin, X, mapping)) == "no layer diverges"
    wrong = Twin(torch.tanh).eval()
    transfer(net, wrong, mapping)
    assert "another activation (tanh, not relu)" in str(diagnose(net, wrong, X, mapping))


def test_it_can_be_traced_again_and_keeps_what_it_computes():
    net, twin = Net(), Twin().eval()
    mapping = filled(net, twin)
    before = np.asarray(net(X))
    first, second = (trace(net, twin, X, mapping) for _ in range(2))
    assert list(first.layer) == list(second.layer)
    assert np.array_equal(np.asarray(net(X)), before)


def test_several_inputs_are_given_as_call_takes_them():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.d = L.Dense(2, name="d")

        def call(self, inputs):
            return self.d(inputs["a"]) + self.d(inputs["b"])

    made = with_graph(Two(), {"a": X, "b": X})
    assert [start.name for start in made.inputs] == ["a", "b"]
    assert with_graph(made, {"a": X, "b": X}) is made


def test_a_model_of_another_size_is_made_anew():
    class Any(keras.Model):
        def call(self, x):
            return x * 2

    net = Any()
    assert with_graph(net, X) is with_graph(net, X + 1)
    assert with_graph(net, X) is not with_graph(net, X[:, :3])


def test_a_call_that_looks_at_numbers_is_told_what_to_do():
    class Branching(Net):
        def call(self, x, training=None):
            return self.first(x) if float(keras.ops.max(x)) > 0 else x

    net = Branching()
    with pytest.raises(
        ParityError, match=r"a Branching has no graph, and keras.Model\(inputs, model.call\(inputs\)\)"
    ) as caught:
        propose_mapping(net, Twin(), X)
    assert "Write it as a Functional model with the same layers, or trace its parts" in str(caught.value)


def test_a_weight_outside_of_any_layer_is_named():
    class Scaled(Net):
        def build(self, shape):
            self.scale = self.add_weight(shape=(5,), name="scale")

        def call(self, x, training=None):
            return keras.ops.multiply(self.first(x), self.scale)

    net = Scaled()
    net(X)
    with pytest.raises(ParityError, match=r"computes with .*scale outside of any layer"):
        trace(net, Twin(), X, read_mapping("keras_torch_mapping.csv"))

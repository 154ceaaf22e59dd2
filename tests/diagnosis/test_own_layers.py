"""Layers of the user's own, whatever their names and their weights: located, and no exception gets out."""

from parity import diagnose, trace, transfer
from tests.helpers.models import Twin, model_of, x_of

import keras
import pandas as pd
import pytest
import torch
from keras import layers as L
from torch import nn


class Scale(keras.layers.Layer):
    """Scale by a number, or by one for each channel."""

    def __init__(self, shape=(), **more):
        super().__init__(**more)
        self.wanted = shape

    def build(self, shape):
        """Make both weights."""
        self.alpha = self.add_weight(name="alpha", shape=self.wanted, initializer="ones")
        self.shift = self.add_weight(name="shift", shape=self.wanted, initializer="zeros")

    def call(self, x):
        """Keep the shape."""
        return x * self.alpha + self.shift


class BatchNormalization(Scale):
    """It has the name of Keras's layer, and nothing else of it."""


class CroppingCentre(keras.layers.Layer):
    """It has the beginning of the name of Keras's layers."""

    def call(self, x):
        """Take away the first and the last step."""
        return x[:, 1:-1]


@pytest.mark.parametrize("kind", [Scale, BatchNormalization])
@pytest.mark.parametrize("shape", [(), (4,)], ids=["one number", "one for each channel"])
def test_weights_of_a_layer_of_ones_own(kind, shape):
    model = model_of((4,), lambda i: L.Dense(3, name="out")(kind(shape, name="own")(i)))
    own = model.get_layer("own")
    own.alpha.assign(keras.random.uniform(shape, 1, 2, seed=0)), own.shift.assign(keras.random.uniform(shape, seed=1))
    twin = Twin(lambda t, x: t.out(x * t.a + t.s), out=nn.Linear(4, 3))
    twin.a, twin.s = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
    rows = [("own/alpha", "a", "as it is"), ("own/shift", "s", "as it is")]
    rows += [("out/kernel", "out.weight", ""), ("out/bias", "out.bias", "")]
    mapping, x = pd.DataFrame(rows, columns=["keras", "torch", "how"]), x_of(3, 4)
    transfer(model, twin, mapping)
    assert set(trace(model, twin, x, mapping).verdict) <= {"agree", "not paired"}
    right = twin.a.detach().clone()
    with torch.no_grad():
        twin.a.add_(1)
    found = diagnose(model, twin, x, mapping)
    assert (found.divergence.layer, [cause.cause for cause in found.causes]) == ("own", ["weights hold other numbers"])
    with torch.no_grad():
        twin.a.copy_(twin.s), twin.s.copy_(right)
    found = diagnose(model, twin, x, mapping)
    assert [(cause.cause, cause.detail) for cause in found.causes] == [
        ("weights of another layer", "alpha holds shift")
    ]


def test_a_layer_of_ones_own_that_crops():
    model = model_of((7, 4), lambda i: L.Dense(3, name="out")(CroppingCentre(name="crop")(i)))
    twin = Twin(lambda t, x: t.out(x.mT[:, 2:]), out=nn.Linear(4, 3))
    mapping = pd.DataFrame([("out/kernel", "out.weight"), ("out/bias", "out.bias")], columns=["keras", "torch"])
    transfer(model, twin, mapping)
    assert diagnose(model, twin, x_of(2, 7, 4), mapping).divergence.layer == "crop"


def test_in_training_stored_statistics_are_no_noise():
    model = model_of((4,), lambda i: L.Dense(3, name="out")(L.BatchNormalization(name="norm")(i)))
    norm = model.get_layer("norm")
    norm.moving_mean.assign([1e5] * 4), norm.moving_variance.assign([1e-3] * 4)
    twin = Twin(lambda t, x: t.out(1.001 * t.norm(x)), norm=nn.BatchNorm1d(4, 1e-3, 0.01), out=nn.Linear(4, 3))
    names = (("gamma", "weight"), ("beta", "bias"), ("moving_mean", "running_mean"), ("moving_variance", "running_var"))
    rows = [(f"norm/{one}", f"norm.{other}") for one, other in names] + [("", "norm.num_batches_tracked")]
    rows += [("out/kernel", "out.weight"), ("out/bias", "out.bias")]
    mapping = pd.DataFrame(rows, columns=["keras", "torch"])
    transfer(model, twin, mapping)
    assert diagnose(model, twin, x_of(8, 4), mapping, training=True).divergence is not None

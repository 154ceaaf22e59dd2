"""What only training shows: statistics, dropout, gradients."""

from parity import diagnose, first_divergence, trace
from tests.helpers.models import Twin, model_of, norm, ported
from tests.helpers.residual import X, state

import keras
import pytest
import torch.nn.functional as F
from keras import layers as L
from torch import nn


def detached(t, x):
    x = F.relu(t.first(x))
    return t.out(t.drop(t.second(t.norm(x.detach())).flatten(1)))


def dropping(t, x):
    return t.out(t.drop(t.second(t.norm(F.relu(t.first(x)))).flatten(1)))


class OwnDropout(nn.Module):
    """Dropout as readers write it: a module of their own around the function."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        """Drop, in training."""
        return F.dropout(x, self.rate, self.training)


@pytest.mark.parametrize(
    ("plant", "layer", "said"),
    [
        (lambda t: None, None, "no layer diverges"),
        (lambda t: setattr(t, "drop", OwnDropout(0.5).eval()), None, "no layer diverges"),
        (lambda t: setattr(t, "drop", OwnDropout(0.25).eval()), "drop", "(rate is 0.25, not 0.5)"),
        (lambda t: setattr(t.norm, "momentum", 0.5), "norm", "momentum (momentum is 0.5, not 0.01): notebook 03"),
        (lambda t: setattr(t.drop, "p", 0.25), "drop", "dropout rate (rate is 0.25, not 0.5): notebook 12"),
        (lambda t: t.second.requires_grad_(False), "second", "layer frozen (kernel and bias not trained in the twin)"),
        (lambda t: setattr(t, "run", detached), "first activation", "gradient stopped: see the cheat sheet"),
    ],
    ids=["right", "own dropout", "rate of own dropout", "momentum", "rate", "frozen", "detached"],
)
def test_what_only_training_shows(plant, layer, said):
    def layers(x):
        x = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, activation="relu", name="first")(x))
        x = L.Flatten(name="flatten")(L.Conv2D(4, 6, name="second")(x))
        return L.Dense(2, name="out")(L.Dropout(0.5, name="drop")(x))

    model = model_of((8, 8, 3), layers)
    modules = {"first": nn.Conv2d(3, 4, 3), "norm": norm(4), "second": nn.Conv2d(4, 4, 6), "out": nn.Linear(4, 2)}
    twin, mapping = ported(model, Twin(dropping, drop=nn.Dropout(0.5), **modules), *modules)
    plant(twin)
    before = state(model, twin)
    assert first_divergence(trace(model, twin, X, mapping)) is None
    found = diagnose(model, twin, X, mapping, training=True)
    assert said in str(found)
    assert (found.divergence and found.divergence.layer) == layer
    assert state(model, twin) == before


def test_a_part_that_is_not_trained_raises_no_alarm():
    base = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(4, 3, name="conv"), L.BatchNormalization(name="inner")])
    base.trainable = False
    model = model_of(
        (8, 8, 3), lambda x: L.Dense(2, name="out")(L.Flatten()(L.BatchNormalization(name="norm")(base(x))))
    )
    base.trainable, calls = True, [False]  # fill_scaled is done; from here on only the call says so
    x = keras.Input((8, 8, 3))
    outer = [model.get_layer(name) for name in ("norm", "out")]
    model = keras.Model(x, outer[1](L.Flatten()(outer[0](base(x, training=calls[0])))))

    class Frozen(Twin):
        def train(self, mode=True):
            super().train(mode)
            self.inner.eval()
            return self

    modules = {"conv": nn.Conv2d(3, 4, 3), "inner": norm(4), "norm": norm(4), "out": nn.Linear(144, 2)}
    twin = Frozen(lambda t, x: t.out(t.norm(t.inner(t.conv(x))).permute(0, 2, 3, 1).flatten(1)), **modules)
    twin, mapping = ported(model, twin, *modules)
    assert first_divergence(trace(model, twin, X, mapping, training=True)) is None
    base.trainable = False
    for module in (twin.conv, twin.inner):
        module.requires_grad_(False)
    assert first_divergence(trace(model, twin, X, mapping, training=True)) is None

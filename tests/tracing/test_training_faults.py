"""Each fault of training by itself, and right twins that have none."""

from parity import transfer
from parity.tracing.port import make_port
from parity.tracing.side_by_side import run
from parity.tracing.training import Fault, TrainingFault, training_faults
from tests.helpers.models import Twin, model_of, norm, pair_up, ported, snapshot, x_of

import keras
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn

X = x_of(9, 4)


def layers(x):
    x = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(L.Dense(5, name="a")(x)))
    return L.Dense(2, name="b")(L.Dropout(0.5, name="drop")(x))


def right(t, x):
    return t.b(t.drop(F.relu(t.norm(t.a(x)))))


def twin_of(call=right, **more):
    modules = {"a": nn.Linear(4, 5), "norm": norm(5, nn.BatchNorm1d), "drop": nn.Dropout(0.5), "b": nn.Linear(5, 2)}
    return Twin(call, **modules | more)


@pytest.fixture
def model():
    return model_of((4,), layers)


def faults(model, twin, *names, momentum=None):
    """Return the fault of each layer, by its name; the twin's normalization may be given another momentum."""
    twin, mapping = ported(model, twin, *(names or ("a", "norm", "b")))
    twin.norm.momentum = momentum or getattr(twin.norm, "momentum", None)
    port = make_port(model, twin, X, mapping)
    before = snapshot(model), snapshot(twin), [module.training for module in twin.modules()]
    found = training_faults(port, run(port, training=True))
    assert (snapshot(model), snapshot(twin), [module.training for module in twin.modules()]) == before
    return {port.graph.steps[index].name: fault for index, fault in found.items()}


def test_a_right_twin_has_none(model):
    assert faults(model, twin_of()) == {}


@pytest.mark.parametrize("momentum", [0.5, 0.02, 0.009])
def test_another_momentum_makes_other_statistics(model, momentum):
    assert faults(model, twin_of(), momentum=momentum) == {"norm": TrainingFault(Fault.STATISTICS)}


class OwnNorm(nn.BatchNorm1d):
    """A normalization of the reader's own that keeps statistics of its own making."""

    def __init__(self, *args, correction=1, of_mean=1.0, **more):
        super().__init__(*args, **more)
        self.correction, self.of_mean = correction, of_mean

    def forward(self, x):
        """Normalize as in training, and keep the statistics."""
        if self.training:
            self.running_mean.lerp_(self.of_mean * x.mean(0), self.momentum)
            self.running_var.lerp_(x.var(0, correction=self.correction), self.momentum)
        mean, var = (x.mean(0), x.var(0, correction=0)) if self.training else (self.running_mean, self.running_var)
        return (x - mean) / (var + self.eps).sqrt() * self.weight + self.bias


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, {}),
        ({"correction": 0}, {"norm": TrainingFault(Fault.STATISTICS)}),
        ({"of_mean": 1.1}, {"norm": TrainingFault(Fault.STATISTICS)}),
    ],
    ids=["unbiased", "biased", "another mean"],
)
def test_the_variance_that_is_kept_is_unbiased_as_pytorch_has_it(model, more, found):
    model.get_layer("norm").momentum = 0.5
    twin = twin_of(norm=OwnNorm(5, eps=1e-3, momentum=0.5, **more))
    with torch.no_grad():
        assert faults(model, twin) == found


def test_a_normalization_that_is_called_twice_has_moved_twice():
    shared, x = L.BatchNormalization(name="norm", momentum=0.5), keras.Input((4,))
    model = keras.Model(x, shared(L.Dense(4, name="a")(shared(x))))
    for number, weight in enumerate(model.weights):
        weight.assign(1 + abs(x_of(*weight.shape, seed=number)))
    modules = {"a": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4, 1e-3, 0.5)}
    assert faults(model, Twin(lambda t, x: t.norm(t.a(t.norm(x))), **modules), *modules) == {}
    found = faults(model, Twin(lambda t, x: t.norm(t.a(t.norm(x))), **modules), *modules, momentum=0.4)
    assert set(found.values()) == {TrainingFault(Fault.STATISTICS)}


def test_statistics_of_flattened_features_may_be_channels_first():
    def flat(x):
        return L.Dense(2, name="b")(L.BatchNormalization(name="norm", momentum=0.5)(L.Flatten(name="flat")(x)))

    model, modules = model_of((3, 2, 4), flat), {"norm": nn.BatchNorm1d(24, 1e-3, 0.5), "b": nn.Linear(24, 2)}
    twin = Twin(lambda t, x: t.b(t.norm(x.flatten(1))), **modules)
    mapping = pair_up(model, twin, {name: name for name in modules})
    transfer(model, twin, mapping, flatten=dict.fromkeys(modules, (3, 2, 4)))
    port = make_port(model, twin, x_of(9, 3, 2, 4), mapping)
    assert training_faults(port, run(port, training=True)) == {}


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        (nn.Dropout(0.25), "rate is 0.25, not 0.5"),
        (nn.Identity(), "rate is 0 (no dropout), not 0.5"),
        (nn.Dropout(0.5), None),
        (nn.Dropout(0.5 + 1e-9), None),
    ],
    ids=["another", "none", "the same", "all but the same"],
)
def test_the_rate_of_dropout(model, drop, said):
    found = faults(model, twin_of(drop=drop))
    assert found == ({} if said is None else {"drop": TrainingFault(Fault.RATE, said)})


def test_dropout_of_nothing_may_be_missing():
    model = model_of((4,), lambda x: L.Dense(2, name="norm")(L.Dropout(0.0, name="drop")(L.Dense(5, name="a")(x))))
    modules = {"a": nn.Linear(4, 5), "norm": nn.Linear(5, 2)}
    assert faults(model, Twin(lambda t, x: t.norm(t.a(x)), **modules), *modules) == {}


@pytest.mark.parametrize("where", ["the twin", "Keras"])
def test_a_layer_that_one_of_both_does_not_train(model, where):
    twin = twin_of()
    if where == "Keras":
        model.get_layer("b").trainable = False
    else:
        twin.b.requires_grad_(False)
    assert faults(model, twin) == {"b": TrainingFault(Fault.FROZEN, f"kernel and bias not trained in {where}")}


def test_one_weight_is_enough_and_both_frozen_is_right(model):
    twin = twin_of()
    twin.a.bias.requires_grad_(False)
    assert faults(model, twin) == {"a": TrainingFault(Fault.FROZEN, "bias not trained in the twin")}
    model.get_layer("b").trainable = False
    twin = twin_of()
    twin.b.requires_grad_(False)
    assert faults(model, twin) == {}


def scaled(x):
    """Return the same numbers, with twice the gradient."""
    return 2 * x - x.detach()


@pytest.mark.parametrize(
    ("call", "layer"),
    [
        (lambda t, x: t.b(t.drop(F.relu(t.norm(t.a(x).detach())))), "a"),
        (lambda t, x: t.b(t.drop(F.relu(t.norm(t.a(x))).detach())), "drop"),
        (lambda t, x: t.b(t.drop(F.relu(scaled(t.norm(t.a(x)))))), "norm"),
    ],
    ids=["stopped before the norm", "stopped behind the ReLU", "doubled"],
)
def test_another_gradient_is_said_of_the_last_layer_that_has_it(model, call, layer):
    found = faults(model, twin_of(call))
    assert found.keys() == {layer}
    assert found[layer] == TrainingFault(Fault.GRADIENT)


def test_a_layer_with_another_output_is_no_matter_of_its_gradient(model):
    twin, mapping = ported(
        model, twin_of(lambda t, x: t.b(t.drop(F.leaky_relu(t.norm(t.a(x)), 0.3)))), "a", "norm", "b"
    )
    port = make_port(model, twin, X, mapping)
    found = training_faults(port, run(port, training=True))
    assert not any(fault.kind == Fault.GRADIENT for index, fault in found.items() if index < 2)


def test_without_tensorflow_all_is_compared_but_gradients(model, monkeypatch):
    twin, mapping = ported(model, twin_of(), "a", "norm", "b")
    twin.norm.momentum = 0.5
    port = make_port(model, twin, X, mapping)
    ran = run(port, training=True)
    twin.b.weight.requires_grad_(False)
    before = snapshot(model), snapshot(twin)
    found = training_faults(port, ran)
    assert {fault.kind for fault in found.values()} == {Fault.STATISTICS, Fault.FROZEN}
    monkeypatch.setattr("parity.tracing.training.keras_gradients", lambda *arguments: None)
    assert training_faults(port, ran) == found
    assert (snapshot(model), snapshot(twin)) == before


def test_a_fault_in_words():
    assert str(TrainingFault(Fault.GRADIENT)) == "another gradient"
    assert str(TrainingFault(Fault.RATE, "0.5")) == "another dropout rate: 0.5"
    assert {str(fault) for fault in Fault} == {
        "other running statistics",
        "another dropout rate",
        "frozen in one model only",
        "another gradient",
    }

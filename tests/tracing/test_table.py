"""What a trace says: its table, its words, its noise, its errors; and that it leaves both models as they were."""

import copy

from parity import ParityError, diagnose, first_divergence, readable, trace
from parity.tracing.plot import error_by_layer
from parity.tracing.verdicts import TRACE_COLUMNS
from tests.helpers.models import draw, sequential, snapshot, table

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def models():
    """Return a small network, its right twin, an input and the mapping."""
    layers = keras.layers
    model = sequential(
        (6, 5, 2),
        layers.Conv2D(3, 3, name="conv", dtype="float64"),
        layers.BatchNormalization(name="norm", dtype="float64"),
        layers.ReLU(name="relu", dtype="float64"),
        layers.Flatten(name="flatten", dtype="float64"),
        layers.Dense(4, activation="tanh", name="dense", dtype="float64"),
    )

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(2, 3, 3)
            self.b = nn.BatchNorm2d(3, eps=1e-3, momentum=0.01)
            self.c = nn.Linear(36, 4)

        def forward(self, x):
            x = torch.relu(self.b(self.a(x)))
            return torch.tanh(self.c(x.permute(0, 2, 3, 1).flatten(1)))

    keys = ["a.weight", "a.bias", "b.weight", "b.bias", "b.running_mean", "b.running_var", "c.weight", "c.bias"]
    rows = [(weight.path, key) for weight, key in zip(model.weights, keys, strict=True)]
    rows.append(("", "b.num_batches_tracked"))
    twin = Twin().double().eval()
    values = [torch.from_numpy(weight.numpy().copy()) for weight in model.weights]
    kernel, bias, gamma, beta, mean, variance, dense, offset = values
    state = {"a.weight": kernel.permute(3, 2, 0, 1), "a.bias": bias, "b.weight": gamma, "b.bias": beta}
    state |= {"b.running_mean": mean, "b.running_var": variance, "b.num_batches_tracked": torch.tensor(0)}
    twin.load_state_dict(state | {"c.weight": 0.05 * dense.T, "c.bias": offset})
    model.get_layer("dense").kernel.assign(0.05 * model.get_layer("dense").kernel)
    return model, twin, draw(3, 6, 5, 2, seed=9), table(*rows)


def test_a_row_for_each_layer_in_the_order_of_the_data_flow(models):
    traced = trace(*models)
    assert list(traced.columns) == TRACE_COLUMNS
    assert list(traced.layer) == [
        "conv",
        "norm",
        "relu",
        "flatten",
        "dense",
        "dense activation",
        "output 1, of dense activation",
    ]
    assert list(traced.twin) == ["a", "b", "relu()", "flatten()", "c", "tanh()", "return value 1"]
    assert traced.keras_shape[0] == (3, 4, 3, 3)
    assert traced.torch_shape[0] == (3, 3, 4, 3)
    assert (traced.verdict == "agree").all()
    assert first_divergence(traced) is None
    assert str(diagnose(*models)) == "no layer diverges"


def test_the_search_for_a_cause_runs_the_twin_no_further_than_the_layer(models):
    model, twin, x, mapping = models
    wrong, runs = copy.deepcopy(twin), []
    wrong.b.eps = 1e-5
    for name, module in wrong.named_children():
        module.register_forward_hook(lambda module, x, y, name=name: runs.append(name))
    traced = trace(model, wrong, x, mapping)
    count, runs[:] = runs.count("c"), []
    diagnosis = diagnose(model, wrong, x, mapping)
    assert [cause.cause for cause in diagnosis.causes] == ["epsilon"]
    pd.testing.assert_frame_equal(diagnosis.traced, traced)
    assert runs.count("c") == count < runs.count("b")


def test_the_noise_is_that_of_rounding(models):
    _, twin, x, _ = models
    traced = trace(*models)
    with torch.no_grad():
        exact = twin(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy()
    size = np.abs(exact).max()
    assert (traced.noise > 0).all()
    assert 0.1 * np.finfo(float).eps * size < traced.noise.iloc[-1] < 100 * np.finfo(float).eps * size


@pytest.mark.parametrize(
    ("name", "plant", "said"),
    [
        ("epsilon", lambda t: setattr(t.b, "eps", 1e-5), "norm (b): its inputs agree, its outputs do not\n  epsilon ("),
        ("kernel", lambda t: t.a.weight.data.copy_(t.a.weight.data.mT.clone()), "height and width exchanged"),
        ("variance", lambda t: t.b.running_var.fill_(1), "statistics left at 0 and 1"),
        ("mode", lambda t: t.b.train(), "train mode"),
        ("bias", lambda t: t.c.bias.data.zero_(), "dense (c): its inputs agree, its outputs do not\n  bias missing"),
        ("odd", lambda t: t.c.register_forward_hook(lambda m, i, o: o + i[0].sum()), "none of the known causes"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_changed(models, name, plant, said):
    model, right, x, mapping = models
    twin = copy.deepcopy(right)
    plant(twin)
    before, modes = (snapshot(model), snapshot(twin)), [module.training for module in twin.modules()]
    assert said in str(diagnose(model, twin, x, mapping))
    assert first_divergence(trace(model, right, x, mapping)) is None
    assert (snapshot(model), snapshot(twin)) == before
    assert [module.training for module in twin.modules()] == modes
    assert model.get_layer("dense").activation is keras.activations.tanh


def test_training_shows_what_inference_does_not(models):
    model, right, x, mapping = models
    for plant, cause in (
        (lambda t: setattr(t.b, "momentum", 0.1), "momentum"),
        (lambda t: t.a.requires_grad_(False), "layer frozen"),
    ):
        twin = copy.deepcopy(right)
        plant(twin)
        before = snapshot(model), snapshot(twin)
        assert diagnose(model, twin, x, mapping).divergence is None
        assert [c.cause for c in diagnose(model, twin, x, mapping, training=True).causes] == [cause]
        assert (snapshot(model), snapshot(twin)) == before


def test_readable_shows_no_residual(models):
    model, right, x, mapping = models
    assert set(readable(trace(*models)).outputs) == {"agree"}
    twin = copy.deepcopy(right)
    twin.b.eps = 1.0
    words = readable(trace(model, twin, x, mapping))
    assert words.outputs[0] == "agree"
    assert "e-1" not in "".join(words.outputs)
    assert words.verdict[1] == "DIVERGES HERE"


def test_the_first_divergence_is_marked_in_the_picture(models):
    model, right, x, mapping = models
    twin = copy.deepcopy(right)
    twin.b.eps = 1.0
    figure, axes = plt.subplots()
    error_by_layer(axes, trace(model, twin, x, mapping), trace(*models))
    assert [text.get_text() for text in axes.texts] == ["first divergence"]
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["conv", "norm"]
    assert axes.get_xscale() == "log"
    plt.close(figure)


def test_bad_input_is_one_clear_error(models):
    model, twin, x, mapping = models

    class Own(keras.Model):
        def call(self, x):
            return x if float(x[0, 0]) > 0 else -x

    cases = [
        ((Own(), twin, x, mapping), "has no graph"),
        ((model, twin, [x, x], mapping), "inputs: 1 expected, 2 found"),
        ((model, twin, x[:0], mapping), "is empty"),
        ((model, twin, np.full_like(x, np.nan), mapping), "not finite"),
        ((model, twin, x, mapping.replace("a.weight", "z.weight")), "line 2: there is no PyTorch tensor z.weight"),
        ((model, twin, x, mapping.replace(mapping.keras[2], "z/kernel")), "line 2: there is no Keras weight z/kernel"),
        ((model, twin, x, mapping.rename(columns={"torch": "pytorch"})), "the columns must be"),
    ]
    before = snapshot(model), snapshot(twin)
    for arguments, said in cases:
        with pytest.raises(ParityError, match=said):
            trace(*arguments)
    assert (snapshot(model), snapshot(twin)) == before


def test_a_twin_that_fails_says_where(models):
    model, right, x, mapping = models
    twin = copy.deepcopy(right)
    twin.c = nn.Linear(35, 4).double()
    before = snapshot(twin)
    with pytest.raises(ParityError, match="it stops in c"):
        trace(model, twin, x, mapping)
    assert snapshot(twin) == before

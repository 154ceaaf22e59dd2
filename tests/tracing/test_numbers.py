"""Where functions are grouped otherwise, numbers tell which of them belong to which layer."""

from parity import diagnose, first_divergence, readable, trace, transfer
from parity.errors import ParityError
from tests.helpers.models import Twin, conv, model_of, norm, ported, table, verdicts, x_of

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from keras import ops
from torch import nn

MEAN, VARIANCE = [0.5, 0.4, 0.3], [0.05, 0.06, 0.04]
PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 5, 6, 3)).astype("float32")


def scaled(x):
    x = L.Normalization(mean=MEAN, variance=VARIANCE, name="norm")(L.Rescaling(1 / 255, name="rescaling")(x))
    return L.Conv2D(2, 3, name="conv")(x)


def scaling_twin(divisor):
    """Return a model that scales twice, and a twin that does so with functions; the last divides by this."""
    model = model_of((5, 6, 3), scaled)
    mean = torch.tensor(MEAN).view(3, 1, 1)
    twin = Twin(lambda t, x: t.conv((x / 255 - mean) / divisor.view(3, 1, 1)), conv=nn.Conv2d(3, 2, 3))
    mapping = table(("conv/kernel", "conv.weight"), ("conv/bias", "conv.bias"))
    transfer(model, twin, mapping)
    return model, twin.eval(), mapping


def test_what_returns_the_right_numbers_is_the_layers_twin_and_what_follows_is_no_part_of_it():
    model, twin, mapping = scaling_twin(torch.tensor(VARIANCE))  # not its root
    traced = trace(model, twin, PIXELS, mapping)
    twins = dict(zip(traced.layer, traced.twin, strict=True))
    assert (twins["rescaling"], twins["norm"]) == ("div()", "sub(), div()")
    assert verdicts(traced)["rescaling"] == "agree"
    assert first_divergence(traced).layer == "norm"
    model, twin, mapping = scaling_twin(torch.tensor(VARIANCE).sqrt())
    assert first_divergence(trace(model, twin, PIXELS, mapping)) is None


def responding(x):
    """Return a block with a global response normalization, as in ConvNeXt V2."""
    x = L.Dense(8, activation="gelu", name="grow")(x)
    size = ops.sqrt(ops.sum(x * x, axis=(1, 2), keepdims=True))
    x = x * size / (ops.mean(size, axis=-1, keepdims=True) + 1e-6) + x
    return L.Dense(3, name="head")(ops.mean(x, axis=(1, 2)))


@pytest.mark.parametrize(("axes", "layer"), [((1, 2), None), ((2, 3), "sum")])
def test_a_product_of_one_tensor_is_not_taken_for_a_product_of_two(axes, layer):
    model = model_of((5, 6, 3), responding)

    def run(t, x):
        x = F.gelu(t.grow(x.permute(0, 2, 3, 1)))
        size = torch.norm(x, p=2, dim=axes, keepdim=True)
        return t.head((x * size / (size.mean(-1, keepdim=True) + 1e-6) + x).mean((1, 2)))

    parts = {"grow": nn.Linear(3, 8), "head": nn.Linear(8, 3)}
    twin, mapping = ported(model, Twin(run, **parts), *parts)
    found = first_divergence(trace(model, twin, x_of(2, 5, 6, 3), mapping))
    assert (None if found is None else found.layer.rstrip("_0123456789")) == layer


class Functional(nn.Module):
    """A twin of functions only, which keeps its weights as parameters."""

    def __init__(self, model):
        super().__init__()
        for weight in model.weights:
            value = torch.from_numpy(weight.numpy().copy())
            *spatial, last, first = range(value.ndim) if value.ndim > 1 else (0, 0)
            turned = value.permute(first, last, *spatial) if value.ndim > 1 else value
            self.register_parameter(weight.path.replace("/", "_"), nn.Parameter(turned.contiguous()))

    def forward(self, x):
        """Convolve, normalize, pool and multiply."""
        x = F.relu(F.conv2d(x, self.c_kernel, self.c_bias, padding=1))
        statistics = self.b_moving_mean, self.b_moving_variance
        x = F.batch_norm(x, *statistics, self.b_gamma, self.b_beta, False, 0.01, 1e-3)
        return F.linear(x.mean((2, 3)), self.d_kernel, self.d_bias)


def layers(x):
    x = L.BatchNormalization(name="b")(conv("c", activation="relu")(x))
    return L.Dense(2, name="d")(L.GlobalAveragePooling2D(name="mean")(x))


class Modules(nn.Module):
    """The same with modules."""

    def __init__(self):
        super().__init__()
        self.c, self.b, self.d = nn.Conv2d(3, 4, 3, padding=1), norm(4), nn.Linear(4, 2)

    def forward(self, x):
        """Convolve, normalize, pool and multiply."""
        return self.d(self.b(F.relu(self.c(x))).mean((2, 3)))


@pytest.fixture
def functional():
    model = model_of((8, 6, 3), layers)
    mapping = table(*((weight.path, weight.path.replace("/", "_")) for weight in model.weights))
    return model, Functional(model).eval(), mapping


def test_a_twin_of_functions_is_seen_inside(functional):
    model, twin, mapping = functional
    traced = trace(model, twin, x_of(3, 8, 6, 3), mapping)
    assert set(traced.verdict) == {"agree"}
    assert list(traced.twin)[:5] == ["conv2d()", "relu()", "batch_norm()", "mean()", "linear()"]
    assert str(diagnose(model, twin, x_of(3, 8, 6, 3), mapping)) == "no layer diverges"


@pytest.mark.parametrize(("weight", "layer"), [("c_bias", "c"), ("b_beta", "b"), ("d_kernel", "d")])
def test_a_mistake_in_a_twin_of_functions_is_located(functional, weight, layer):
    model, twin, mapping = functional
    with torch.no_grad():
        getattr(twin, weight).add_(1)
    found = diagnose(model, twin, x_of(3, 8, 6, 3), mapping)
    assert found.divergence.layer == layer
    name, _, line = found.divergence.at.partition(", line ")
    assert name == "test_numbers.py"
    assert line.isdigit()
    assert f"is called in test_numbers.py, line {line}" in str(found)


def exported(twin, examples, **more):
    return torch.export.export(twin, (torch.zeros(examples, 3, 8, 6),), **more).module()


@pytest.fixture
def modules():
    model = model_of((8, 6, 3), layers)
    return model, *ported(model, Modules(), "c", "b", "d")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_exported_twin_is_seen_inside(modules):
    model, twin, mapping = modules
    x = x_of(3, 8, 6, 3)
    for made in (exported(twin, 3), exported(twin, 3, dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})):
        traced = trace(model, made, x, mapping)
        assert set(traced.verdict[:6]) == {"agree"}
        with torch.no_grad():
            made.b.bias.add_(1)
        assert first_divergence(trace(model, made, x, mapping)).layer == "b"
        with torch.no_grad():
            made.b.bias.sub_(1)
    with pytest.raises(ParityError, match=r"exported for inputs of one size: give inputs of that size"):
        trace(model, exported(twin, 5), x, mapping)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:The .grad attribute")
def test_where_only_the_outputs_were_compared_it_is_said(modules):
    model, twin, mapping = modules
    x = x_of(3, 8, 6, 3)
    traced_twin = torch.jit.trace(twin, torch.zeros(3, 3, 8, 6))
    only = "only the outputs were compared, because nothing in the twin was found for any layer"
    for made, rows in ((traced_twin, mapping), (torch.jit.freeze(traced_twin), mapping[:0])):
        found = diagnose(model, made, x, rows)
        assert str(found) == f"the outputs agree; {only}"
        assert verdicts(found.traced)["output 1, of d"] == "agree: nothing before it was compared"
    with torch.no_grad():
        traced_twin.d.bias.add_(1)
    assert str(diagnose(model, traced_twin, x, mapping)).endswith(only)


def test_half_a_mapping_is_enough_to_locate(modules):
    model, twin, mapping = modules
    with torch.no_grad():
        twin.b.bias.add_(1)
    found = first_divergence(trace(model, twin, x_of(3, 8, 6, 3), mapping[:2]))
    assert (found.layer, found.twin) == ("b", "b")


def test_rounding_that_leaves_nothing_of_a_tensor_is_no_sign():
    """A tensor whose numbers are all alike agrees with many; so does one in which rounding is all that there is."""
    model = model_of((4,), lambda x: L.Dense(2, name="d")(L.Rescaling(0.0, name="nothing")(x)))
    twin, mapping = ported(model, Twin(lambda t, x: t.d(x * 2 * 0) + 1, d=nn.Linear(4, 2)), "d")
    found = first_divergence(trace(model, twin, x_of(3, 4), mapping))
    assert found.layer == "output 1, of d"


def test_shapes_that_do_not_fit_are_said_and_behind_them_nothing_diverges_anew():
    def longer(x):
        x = L.Conv1D(3, 6, padding="same", use_bias=False, name="a")(x)
        x = L.ReLU(name="relu")(L.BatchNormalization(name="n")(x))
        return L.Conv1D(2, 3, name="b")(x)

    model = model_of((32, 1), longer)
    parts = {"a": nn.Conv1d(1, 3, 6, padding=3, bias=False), "n": norm(3, nn.BatchNorm1d), "b": nn.Conv1d(3, 2, 3)}
    twin, mapping = ported(model, Twin(lambda t, x: t.b(F.relu(t.n(t.a(x)))), **parts), *parts)
    found = diagnose(model, twin, x_of(2, 32, 1), mapping)
    assert str(found).startswith(
        "a (a): its inputs agree, its outputs do not: its shape is (2, 3, 33), not (2, 3, 32)\n  padding"
    )
    assert list(found.traced.verdict).count("DIVERGES HERE") == 1
    text = readable(found.traced)
    assert text.outputs[0] == "(2, 3, 33) for (2, 32, 3)"
    assert text.inputs[1] == "other shape"
    assert "inf" not in text.to_string()


def test_a_tensor_that_is_not_finite_is_no_other_shape():
    model = model_of((4,), lambda x: L.Dense(2, name="b")(L.Dense(3, name="a")(x)))
    twin, mapping = ported(model, nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), a="0", b="1")
    with torch.no_grad():
        twin[0].bias.fill_(torch.nan)
    text = readable(trace(model, twin, x_of(3, 4), mapping))
    assert (text.outputs[0], text.inputs[1]) == ("inf", "inf")


def test_a_name_of_a_keras_model_is_kept():
    """A twin may be asked about a model that was named by hand."""
    model = keras.Sequential([keras.Input((4,)), L.Dense(2, name="d")], name="mine")
    twin, mapping = ported(model, nn.Sequential(nn.Linear(4, 2)), d="0")
    assert mapping.keras.iloc[0] == "mine/d/kernel"
    assert first_divergence(trace(model, twin, x_of(3, 4), mapping)) is None

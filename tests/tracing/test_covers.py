"""Twins whose modules do more than one Keras layer does: right ones are quiet, wrong ones are told where and why."""

import warnings

from parity import diagnose, first_divergence, trace, transfer
from tests.helpers.models import Twin, conv, model_of, norm, ported, snapshot, table, verdicts, x_of

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn

X = x_of(3, 8, 6, 3)


class NormReLU(nn.BatchNorm2d):
    """A BatchNorm with its activation, as timm has it."""

    def forward(self, x):
        """Normalize and rectify."""
        return F.relu(super().forward(x))


class NormSiLU(nn.BatchNorm2d):
    """A BatchNorm with another activation."""

    def forward(self, x):
        """Normalize and activate."""
        return F.silu(super().forward(x))


class ConvReLU(nn.Conv2d):
    """A convolution with its activation."""

    def forward(self, x):
        """Convolve and rectify."""
        return F.relu(super().forward(x))


class TanhLinear(nn.Linear):
    """A linear layer with its activation."""

    def forward(self, x):
        """Multiply and squash."""
        return torch.tanh(super().forward(x))


class Pooled(nn.Conv2d):
    """A convolution with an activation and pooling."""

    def forward(self, x):
        """Convolve, rectify, and take the largest of each window."""
        return F.max_pool2d(F.relu(super().forward(x)), 2)


class Block(nn.Module):
    """Two linear layers with their activations, and all weights in one module."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.zeros(5, 6)), nn.Parameter(torch.zeros(5))
        self.w2, self.b2 = nn.Parameter(torch.zeros(4, 5)), nn.Parameter(torch.zeros(4))

    def forward(self, x):
        """Map (batch, 6) to (batch, 4)."""
        return F.relu(F.linear(F.relu(F.linear(x, self.w1, self.b1)), self.w2, self.b2))


def put(tensor, value):
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.array(value)))


def preactivated(x):
    """Return a small residual network whose normalizations and activations are layers of their own."""
    x = L.ReLU(name="r1")(L.BatchNormalization(name="b1")(conv("c1")(x)))
    y = conv("c3")(L.ReLU(name="r2")(L.BatchNormalization(name="b2")(conv("c2", activation="relu")(x))))
    x = L.GlobalAveragePooling2D(name="mean")(L.Add(name="add")([x, y]))
    return L.Dense(2, activation="tanh", name="d")(x)


def run_preactivated(t, x):
    x = t.b1(t.c1(x))
    return t.d((x + t.c3(t.b2(t.c2(x)))).mean((2, 3)))


@pytest.fixture
def fused():
    model = model_of((8, 6, 3), preactivated)
    parts = {
        "c1": nn.Conv2d(3, 4, 3, padding=1),
        "c2": ConvReLU(4, 4, 3, padding=1),
        "c3": nn.Conv2d(4, 4, 3, padding=1),
    }
    norms = {name: NormReLU(4, eps=1e-3, momentum=0.01) for name in ("b1", "b2")}
    return model, *ported(model, Twin(run_preactivated, **parts, **norms, d=TanhLinear(4, 2)), *parts, *norms, "d")


@pytest.mark.parametrize("training", [False, True], ids=["prediction", "training"])
def test_a_right_twin_with_activations_inside_is_quiet(fused, training):
    model, twin, mapping = fused
    before = snapshot(twin)
    traced = trace(model, twin, X, mapping, training=training)
    assert snapshot(twin) == before
    assert set(traced.verdict) == {"agree"}
    said = verdicts(traced)
    assert said["b1"] == "agree: together with r1"
    assert said["r1"] == "agree: in the twin of b1"
    assert said["d activation"] == "agree: in the twin of d"
    assert dict(zip(traced.layer, traced.twin, strict=True))["r2"] == "b2"


def changed(name, change):
    def plant(twin):
        module = getattr(twin, name)
        with torch.no_grad():
            change(module)

    return plant


WRONG = {
    "epsilon": ("b1", "epsilon", changed("b1", lambda m: setattr(m, "eps", 0.1))),
    "train mode": ("b2", "train mode", changed("b2", lambda m: m.train())),
    "padding": ("c2", "padding value", changed("c2", lambda m: setattr(m, "padding_mode", "zeros") or reflect(m))),
    "order": ("c2", "weights in another order", changed("c2", lambda m: m.weight.copy_(m.weight.flip(0)))),
    "bias": ("d", "bias missing", changed("d", lambda m: m.bias.zero_())),
    "vectors": ("b1", "BatchNormalization vectors exchanged", changed("b1", lambda m: exchange(m.weight, m.bias))),
}


def reflect(module):
    module.padding_mode, module._reversed_padding_repeated_twice = "reflect", [1, 1, 1, 1]


def exchange(a, b):
    before = a.clone()
    a.copy_(b)
    b.copy_(before)


@pytest.mark.parametrize("what", WRONG)
def test_repairs_are_tried_on_what_follows_too(fused, what):
    model, twin, mapping = fused
    layer, cause, plant = WRONG[what]
    plant(twin)
    found = diagnose(model, twin, X, mapping)
    assert found.divergence.layer == layer
    assert [one.cause for one in found.causes] == [cause]


def test_a_mistake_behind_such_a_module_is_located_behind_it(fused):
    model, twin, mapping = fused
    changed("c3", lambda m: m.bias.zero_())(twin)
    assert first_divergence(trace(model, twin, X, mapping)).layer == "c3"


def test_an_activation_that_is_missing_in_the_module_is_said_of_the_activation(fused):
    model, twin, mapping = fused
    twin.b2.__class__ = nn.BatchNorm2d
    found = diagnose(model, twin, X, mapping)
    assert (found.divergence.layer, str(found.causes[0])) == ("r2", "activation missing (relu): see the cheat sheet")


@pytest.mark.parametrize(
    ("activation", "twin", "said"),
    [
        (None, ConvReLU, "another activation (c also applies relu)"),
        ("tanh", ConvReLU, "another activation (relu, not tanh; in c)"),
        ("leaky_relu", ConvReLU, "another activation (relu, not leaky_relu; in c)"),
    ],
)
def test_what_a_module_also_does_is_said(activation, twin, said):
    model = model_of((8, 6, 3), lambda x: L.Conv2D(2, 1, name="e")(conv("c", activation=activation)(x)))
    parts = {"c": twin(3, 4, 3, padding=1), "e": nn.Conv2d(4, 2, 1)}
    twin, mapping = ported(model, Twin(lambda t, x: t.e(t.c(x)), **parts), *parts)
    found = diagnose(model, twin, X, mapping)
    assert (found.divergence.layer, found.divergence.twin) == ("c activation" if activation else "c", "c")
    assert [str(one).partition(":")[0] for one in found.causes] == [said]


@pytest.mark.parametrize("pads", ["convolution", "function"])
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (NormReLU, None),
        (nn.BatchNorm2d, "activation missing (relu): see the cheat sheet"),
        (NormSiLU, "another activation (silu, not relu; in b): see the cheat sheet"),
    ],
)
def test_an_activation_that_is_seen_only_behind_the_padding(module, said, pads):
    """Neither the activation nor the padding is a call of its own, or the padding alone is."""

    def layers(x):
        x = L.ReLU(name="relu")(L.BatchNormalization(name="b")(x))
        return L.Conv2D(2, 3, name="c")(L.ZeroPadding2D(1, name="pad")(x))

    def run(t, x):
        x = t.b(x)
        return t.c(x if pads == "convolution" else F.pad(x, (1, 1, 1, 1)))

    model = model_of((8, 6, 3), layers)
    parts = {"b": module(3, eps=1e-3, momentum=0.01), "c": nn.Conv2d(3, 2, 3, padding=int(pads == "convolution"))}
    twin, mapping = ported(model, Twin(run, **parts), *parts)
    found = diagnose(model, twin, X, mapping)
    assert [str(one) for one in found.causes] == ([] if said is None else [said])
    assert (found.divergence.layer if found.divergence else None) == (None if said is None else "relu")


def test_a_chain_of_three_may_be_in_one_module():
    def layers(x):
        x = L.MaxPooling2D(2, name="pool")(L.ReLU(name="relu")(conv("c")(x)))
        return L.Conv2D(2, 1, name="e")(x)

    model = model_of((8, 6, 3), layers)
    parts = {"c": Pooled(3, 4, 3, padding=1), "e": nn.Conv2d(4, 2, 1)}
    twin, mapping = ported(model, Twin(lambda t, x: t.e(t.c(x)), **parts), *parts)
    said = verdicts(trace(model, twin, X, mapping))
    assert said["c"] == "agree: together with relu, pool"
    changed("c", lambda m: m.weight.copy_(m.weight.flip(2)))(twin)
    found = diagnose(model, twin, X, mapping)
    assert (found.divergence.layer, found.causes[0].cause) == ("c", "kernel flipped")


def test_where_nothing_passes_a_relu_a_relu_of_its_own_speaks_against_one_inside():
    """All is 0 behind it, so 0 from the module says nothing, unless there is no other ReLU."""
    model = model_of((8, 6, 3), lambda x: L.Conv2D(2, 1, name="e")(L.ReLU(name="relu")(conv("c")(x))))
    model.get_layer("c").bias.assign(np.full(4, -99.0))
    for module, run in ((ConvReLU, lambda t, x: t.e(t.c(x))), (nn.Conv2d, lambda t, x: t.e(F.relu(t.c(x))))):
        parts = {"c": module(3, 4, 3, padding=1), "e": nn.Conv2d(4, 2, 1)}
        twin, mapping = ported(model, Twin(run, **parts), *parts)
        assert first_divergence(trace(model, twin, X, mapping)) is None
    with torch.no_grad():
        twin.c.weight.zero_(), twin.c.bias.zero_()
    assert first_divergence(trace(model, twin, X, mapping)).layer == "c"


def test_modules_in_a_chain_that_are_all_there_stay_apart():
    """The ReLU's module agrees by itself, so it is no part of the convolution's."""
    model = model_of((8, 6, 3), lambda x: L.BatchNormalization(name="b")(L.ReLU(name="relu")(conv("c")(x))))
    parts = {"c": nn.Conv2d(3, 4, 3, padding=1), "b": norm(4)}
    twin, mapping = ported(model, Twin(lambda t, x: t.b(t.act(t.c(x))), act=nn.ReLU(), **parts), *parts)
    assert set(verdicts(trace(model, twin, X, mapping)).values()) == {"agree"}


# A BatchNormalization that is folded into the convolution before it.


def folding(activation="relu"):
    def layers(x):
        x = L.BatchNormalization(name="b")(conv("c")(x))
        return L.Conv2D(2, 1, name="e")(L.Activation(activation, name="act")(x))

    model = model_of((8, 6, 3), layers)
    for weight in model.get_layer("b").weights:  # none is 1 or 0
        weight.assign(np.linspace(0.5, 2, 4) * (-1 if weight.name == "moving_mean" else 1))
    twin = Twin(lambda t, x: t.e(t.c(x)), c=ConvReLU(3, 4, 3, padding=1), e=nn.Conv2d(4, 2, 1)).eval()
    put(twin.e.weight, model.get_layer("e").kernel.numpy().transpose(3, 2, 0, 1))
    put(twin.e.bias, model.get_layer("e").bias.numpy())
    mapping = table(("c/kernel", "c.weight"), ("e/kernel", "e.weight"), ("e/bias", "e.bias"))
    return model, twin, mapping


def fold(model, twin, epsilon=1e-3, without=(), root=True):
    """Fill the twin's convolution, with or without a mistake."""
    layer, kernel = model.get_layer("b"), model.get_layer("c").kernel.numpy()
    values = {weight.name: weight.numpy() for weight in layer.weights}
    bias = model.get_layer("c").bias.numpy() * ("bias" not in without)
    spread = values["moving_variance"] + epsilon
    scale = (1 if "gamma" in without else values["gamma"]) / (np.sqrt(spread) if root else spread)
    mean = 0 if "mean" in without else values["moving_mean"]
    offset = (bias - mean) * scale + values["beta"] * ("beta" not in without)
    if "scale of the bias" in without:
        offset += bias * (1 - scale)
    put(twin.c.weight, (kernel * scale).transpose(3, 2, 0, 1))
    put(twin.c.bias, offset)


def test_a_batch_normalization_may_be_folded_in():
    model, twin, mapping = folding()
    fold(model, twin)
    said = verdicts(trace(model, twin, X, mapping))
    assert said["c"] == "agree: together with b, act"
    assert said["b"] == said["act"] == "agree: in the twin of c"


@pytest.mark.parametrize(
    ("mistake", "cause", "detail"),
    [
        ({"epsilon": 1e-5}, "epsilon", "b is in the weights of c, with epsilon 1e-05, not 0.001"),
        ({"without": {"beta"}}, "bias missing", "b is in the weights of c, without its beta"),
        ({"without": {"bias"}}, "bias missing", "b is in the weights of c, without the bias of c"),
        ({"without": {"mean"}}, "weights hold other numbers", "b is in the weights of c, without its mean"),
        ({"without": {"gamma"}}, "weights hold other numbers", "b is in the weights of c, without its gamma"),
        ({"root": False}, "weights hold other numbers", "b is in the weights of c, divided by the variance"),
        (
            {"without": {"scale of the bias"}},
            "weights hold other numbers",
            "b is in the weights of c, and the bias of c is not scaled",
        ),
    ],
)
def test_what_went_wrong_in_folding_is_named(mistake, cause, detail):
    model, twin, mapping = folding()
    fold(model, twin, **mistake)
    found = diagnose(model, twin, X, mapping)
    assert found.divergence.layer == "c"
    assert [one.cause for one in found.causes] == [cause]
    assert found.causes[0].detail.startswith(detail)


def test_a_batch_normalization_that_is_missing_is_said_of_it():
    model, twin, mapping = folding()
    twin.c.__class__ = nn.Conv2d
    put(twin.c.weight, model.get_layer("c").kernel.numpy().transpose(3, 2, 0, 1))
    put(twin.c.bias, model.get_layer("c").bias.numpy())
    assert first_divergence(trace(model, twin, X, mapping)).layer in ("b", "act")


# Parametrizations.


@pytest.mark.parametrize("module", [nn.Conv2d, ConvReLU])
@pytest.mark.parametrize("old", [False, True], ids=["parametrized", "hooked"])
def test_a_convolution_with_weight_norm(module, old):
    model = model_of((8, 6, 3), lambda x: L.Conv2D(2, 1, name="e")(L.ReLU(name="relu")(conv("c")(x))))
    parts = {"c": module(3, 4, 3, padding=1), "e": nn.Conv2d(4, 2, 1)}
    run = (lambda t, x: t.e(t.c(x))) if module is ConvReLU else (lambda t, x: t.e(F.relu(t.c(x))))
    twin, _ = ported(model, Twin(run, **parts), *parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        twin.c = (nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm)(twin.c)
    key = "c.weight_v" if old else "c.parametrizations.weight.original1"
    rows = table(("c/kernel", key), ("c/bias", "c.bias"), ("e/kernel", "e.weight"), ("e/bias", "e.bias"))
    assert first_divergence(trace(model, twin, X, rows)) is None
    with torch.no_grad():
        (twin.c.weight_g if old else twin.c.parametrizations.weight.original0).mul_(2)
    assert diagnose(model, twin, X, rows).divergence.layer == "c"


# One module with the weights of several layers.


def chained(x):
    x = L.Dense(4, activation="relu", name="b")(L.Dense(5, activation="relu", name="a")(x))
    return L.Dense(2, name="c")(x)


def test_a_chain_of_layers_in_one_module():
    model, x = model_of((6,), chained), x_of(3, 6)
    twin = Twin(lambda t, x: t.c(t.block(x)), block=Block(), c=nn.Linear(4, 2)).eval()
    names = (("a", "kernel", "w1"), ("a", "bias", "b1"), ("b", "kernel", "w2"), ("b", "bias", "b2"))
    mapping = table(*((f"{a}/{b}", f"block.{c}") for a, b, c in names), ("c/kernel", "c.weight"), ("c/bias", "c.bias"))
    for path, key in mapping.to_numpy():
        put(twin.state_dict()[key], next(w for w in model.weights if w.path == path).numpy().T)
    traced = trace(model, twin, x, mapping)
    assert verdicts(traced)["a"] == "agree: together with a activation, b, b activation"
    assert set(traced.verdict) == {"agree"}
    with torch.no_grad():
        twin.block.b1.mul_(2)
    found = verdicts(trace(model, twin, x, mapping))
    assert found["a"].startswith("DIVERGES HERE")
    assert found["b"].startswith("different before")
    assert first_divergence(trace(model, twin, x, mapping)).layer == "a"


def test_two_recurrent_layers_in_one_module():
    def layers(x):
        return L.Dense(2, name="out")(L.GRU(4, name="g2")(L.GRU(4, return_sequences=True, name="g1")(x)))

    model, x = model_of((7, 3), layers), x_of(2, 7, 3)
    twin = Twin(
        lambda t, x: t.out(t.rnn(x)[0][:, -1]), rnn=nn.GRU(3, 4, 2, batch_first=True), out=nn.Linear(4, 2)
    ).eval()
    rows = [("out/kernel", "out.weight"), ("out/bias", "out.bias")]
    for number, layer in enumerate(("g1", "g2")):
        cell = model.get_layer(layer).cell
        for name, key in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh")):
            rows.append((getattr(cell, name).path, f"rnn.{key}_l{number}"))
            put(twin.state_dict()[rows[-1][1]], gates(getattr(cell, name).numpy()).T)
        for row, key in enumerate(("bias_ih", "bias_hh")):
            put(twin.state_dict()[f"rnn.{key}_l{number}"], gates(cell.bias.numpy()[row]))
    put(twin.out.weight, model.get_layer("out").kernel.numpy().T)
    put(twin.out.bias, model.get_layer("out").bias.numpy())
    traced = trace(model, twin, x, table(*rows), torch_x=torch.from_numpy(x))
    assert verdicts(traced)["g1"] == "agree: together with g2"
    with torch.no_grad():
        twin.rnn.weight_hh_l1.add_(0.1)
    found = first_divergence(trace(model, twin, x, table(*rows), torch_x=torch.from_numpy(x)))
    assert (found.layer, found.twin) == ("g1", "rnn")


def gates(array):
    update, reset, new = np.split(array, 3, -1)
    return np.concatenate([reset, update, new], -1)


def two_heads(x):
    x = L.Dense(5, activation="relu", name="h")(x)
    return [L.Dense(3, name="a")(x), L.Dense(2, activation="sigmoid", name="b")(x)]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_two_heads_in_one_module(order):
    model, x = model_of((6,), two_heads), x_of(3, 6)
    sizes = [3, 2] if order == "ab" else [2, 3]

    def run(t, x):
        parts = dict(zip(order, t.heads(F.relu(t.h(x))).split(sizes, 1), strict=True))
        return parts["a"], parts["b"].sigmoid()

    twin = Twin(run, h=nn.Linear(6, 5), heads=nn.Linear(5, 5)).eval()
    rows = [("h/kernel", "h.weight"), ("h/bias", "h.bias")]
    rows += [(f"{head}/{a}", f"heads.{b}") for head in order for a, b in (("kernel", "weight"), ("bias", "bias"))]
    transfer(model, twin, table(*rows))  # several rows fill one tensor, one behind the other
    traced = trace(model, twin, x, table(*rows))
    assert set(traced.verdict) == {"agree"}
    assert dict(zip(traced.layer, traced.twin, strict=True))["a"] == "heads"
    with torch.no_grad():
        twin.heads.bias[order.index("b") * 3 :][:2].add_(1)
    assert first_divergence(trace(model, twin, x, table(*rows))).layer == "b"


def test_a_head_that_takes_the_other_heads_channels_is_located():
    model, x = model_of((6,), two_heads), x_of(3, 6)

    def run(t, x):
        y = t.heads(F.relu(t.h(x)))
        return y[:, :3], y[:, 2:4].sigmoid()

    twin = Twin(run, h=nn.Linear(6, 5), heads=nn.Linear(5, 5)).eval()
    rows = [("h/kernel", "h.weight"), ("h/bias", "h.bias")]
    rows += [(f"{head}/{a}", f"heads.{b}") for head in "ab" for a, b in (("kernel", "weight"), ("bias", "bias"))]
    transfer(model, twin, table(*rows))
    assert first_divergence(trace(model, twin, x, table(*rows))).layer in ("b", "b activation")


def test_the_twin_of_a_layer_in_a_sequential_model_may_be_fused():
    model = keras.Sequential([keras.Input((6,)), L.Dense(4, activation="tanh", name="a"), L.Dense(2, name="b")])
    twin, mapping = ported(model, nn.Sequential(TanhLinear(6, 4), nn.Linear(4, 2)), a="0", b="1")
    assert first_divergence(trace(model, twin, x_of(3, 6), mapping)) is None

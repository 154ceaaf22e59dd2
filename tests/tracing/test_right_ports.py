"""Twins that compute the same in another way raise no alarm, and with a mistake the layer is found all the same."""

from course.small_models import fill_scaled
from parity import first_divergence, trace
from tests.helpers.models import Twin, conv, model_of, ported, verdicts, x_of

import keras
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn

# By what a layer computes of a tensor and of another: the Keras layers, and functions that do the same, and another.
SEVERAL = {
    "average": (lambda a, b: L.Average(name="last")([a, b]), lambda a, b: (a + b) / 2, lambda a, b: (a + b) / 3),
    "subtract": (lambda a, b: L.Subtract(name="last")([a, b]), lambda a, b: -(b - a), lambda a, b: b - a),
    "silu": (lambda _, b: L.Activation("silu", name="last")(b), lambda _, b: b * b.sigmoid(), lambda _, b: b.sigmoid()),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("after", ["nothing", "functions", "a layer with weights"])
@pytest.mark.parametrize("kind", SEVERAL)
def test_several_functions_may_do_together_what_one_layer_does(kind, after, training):
    """They must not be taken for a layer that goes wrong in the first of them."""
    layer, functions, others = SEVERAL[kind]

    def layers(x):
        first = L.Dense(4, name="first")(x)
        x = layer(first, L.Dense(4, name="second")(first))
        if after == "functions":
            return L.Activation("silu", name="silu")(x)
        return x if after == "nothing" else L.Dense(2, name="out")(x)

    def twin_of(functions):
        def run(t, x):
            first = t.first(x)
            x = functions(first, t.second(first))
            if after == "functions":
                return x * x.sigmoid()
            return x if after == "nothing" else t.out(x)

        sizes = {"first": (3, 4), "second": (4, 4)} | ({"out": (4, 2)} if after == "a layer with weights" else {})
        modules = {name: nn.Linear(*size) for name, size in sizes.items()}
        return ported(model, Twin(run, **modules), *modules)

    model = model_of((3,), layers)
    x = x_of(5, 3)
    twin, mapping = twin_of(functions)
    traced = trace(model, twin, x, mapping, training=training)
    assert first_divergence(traced) is None, traced.to_string()
    twin, mapping = twin_of(others)
    assert first_divergence(trace(model, twin, x, mapping, training=training)).layer == "last"


class Own(nn.Module):
    """A module of the reader's own, without modules or weights in it; its name does not say what it does."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *x):
        """Call the function that this module was made of."""
        return self.function(*x)


# Two layers that one module does, with what it does, and the same with a mistake.
IN_ONE = {
    "two activations": (
        lambda x: L.Activation("tanh", name="b")(L.Activation("gelu", name="a")(x)),
        lambda x: F.gelu(x).tanh(),
        lambda x: F.gelu(x).sigmoid(),
    ),
    "a shortcut": (
        lambda x: L.Add(name="b")([x, L.LeakyReLU(0.3, name="a")(x)]),
        lambda x: x + F.leaky_relu(x, 0.3),
        lambda x: x + F.leaky_relu(x, 0.01),
    ),
    "a merge of three": (
        lambda x: L.Add(name="b")([x, x * x, L.Activation("tanh", name="a")(x)]),
        lambda x: x + x * x + x.tanh(),
        lambda x: x - x * x + x.tanh(),
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("in_module", [False, True])
@pytest.mark.parametrize("kind", IN_ONE)
def test_what_is_around_a_module_that_does_several_layers_is_paired_right(kind, in_module, training):
    layers, function, other = IN_ONE[kind]

    def twin_of(function):
        def run(t, x):
            x = F.gelu(t.first(x).tanh())
            return t.out(t.own(x) if in_module else function(x))

        modules = {"first": nn.Linear(3, 4), "out": nn.Linear(4, 2)} | ({"own": Own(function)} if in_module else {})
        return ported(model, Twin(run, **modules), "first", "out")

    x = keras.Input((3,))
    y = L.Activation("gelu", name="before")(L.Dense(4, activation="tanh", name="first")(x))
    model = fill_scaled(keras.Model(x, L.Dense(2, name="out")(layers(y))))
    twin, mapping = twin_of(function)
    traced = trace(model, twin, x_of(5, 3), mapping, training=training)
    assert first_divergence(traced) is None, traced.to_string()
    twin, mapping = twin_of(other)
    assert first_divergence(trace(model, twin, x_of(5, 3), mapping, training=training)).layer in ("a", "b")


class DropAndAverage(nn.Module):
    """A module of the reader's own that has no modules in it and does what four Keras layers do."""

    def __init__(self, rate=0.5, parts=2):
        super().__init__()
        self.rate, self.parts = rate, parts

    def forward(self, x):
        """Drop, in training, and average with the input."""
        return (F.dropout(F.dropout(F.relu(x), 0.25, self.training), self.rate, self.training) + x) / self.parts


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("more", "layer", "verdict"),
    [
        ({}, None, "agree"),
        ({"rate": 0.4}, "drop", "DIVERGES HERE: another dropout rate: rate is 0.25 or 0.4, not 0.5"),
        ({"parts": 3}, "average", "DIVERGES HERE"),
    ],
    ids=["right", "rate", "divisor"],
)
def test_dropout_in_a_module_that_does_more_is_no_mere_dropout(more, layer, verdict, training):
    """Taken for one that hands on what it takes, the layers in it would be looked for before it."""

    def layers(x):
        x = L.Dense(4, name="first")(x)
        x = L.Multiply(name="square")([x, x])
        y = L.Dropout(0.5, name="drop")(L.Dropout(0.25, name="other")(L.ReLU(name="relu")(x)))
        return L.Dense(2, name="out")(L.Average(name="average")([y, x]))

    def run(t, x):
        x = t.first(x)
        return t.out(t.block(x * x))

    model = model_of((3,), layers)
    modules = {"first": nn.Linear(3, 4), "out": nn.Linear(4, 2)}
    twin, mapping = ported(model, Twin(run, block=DropAndAverage(**more), **modules), *modules)
    traced = trace(model, twin, x_of(5, 3), mapping, training=training)
    found = first_divergence(traced)
    if layer is None or (layer == "drop" and not training):
        assert found is None
    else:
        assert found.layer == layer
        assert verdicts(traced)[layer].startswith(verdict)


def gate(x):
    g = conv("c", activation="sigmoid")(x)
    return L.Add(name="sum")([L.Multiply(name="of x")([g, x]), L.Multiply(name="of d")([1 - g, conv("d")(x)])])


def dense_block(x):
    x = L.Concatenate(name="first")([x, conv("c")(x)])
    return L.Concatenate(name="second")([x, conv("d")(x)])


def listed_features(t, x, last=None):
    features = [x]
    for module in (t.c, t.d):
        features.append(module(torch.cat(features, 1)))
    return torch.cat(features if last is None else features[:last] * 2, 1)


# The Keras layers; the twin; the twin with a mistake; and the layers at which that may be found.
STYLES = {
    "two scalings": (
        lambda x: conv("d")(conv("c")(L.Rescaling(2.0, -1.0, name="b")(L.Rescaling(0.25, name="a")(x)))),
        lambda t, x: t.d(t.c(x / 2 - 1)),
        lambda t, x: t.d(t.c(x / 2 + 1)),
        ("a", "b", "c"),
    ),
    "a sum": (
        lambda x: L.Add(name="b")([L.Add(name="a")([conv("c")(x), conv("d")(x)]), x]),
        lambda t, x: x + t.c(x) + t.d(x),
        lambda t, x: x + t.c(x) - t.d(x),
        ("a", "b"),
    ),
    "a product": (
        lambda x: L.Multiply(name="b")(
            [L.Multiply(name="a")([conv("c", activation="sigmoid")(x), x]), conv("d", activation="tanh")(x)]
        ),
        lambda t, x: x * t.d(x).tanh() * t.c(x).sigmoid(),
        lambda t, x: x * t.d(x).sigmoid() * t.c(x).sigmoid(),
        ("a", "d activation"),
    ),
    "a gate": (
        gate,
        lambda t, x: (h := t.d(x)) + t.c(x).sigmoid() * (x - h),
        lambda t, x: (h := t.d(x)) + t.c(x).sigmoid() * (h - x),
        ("subtract", "of x", "of d", "sum"),
    ),
    "a maximum": (
        lambda x: L.Maximum(name="a")([conv("c")(x), conv("d", activation="tanh")(x), x]),
        lambda t, x: torch.where((m := torch.where((c := t.c(x)) > x, c, x)) > (d := t.d(x).tanh()), m, d),
        lambda t, x: torch.where((m := torch.where((c := t.c(x)) > x, c, x)) < (d := t.d(x).tanh()), m, d),
        "a",
    ),
    "features in a list": (dense_block, listed_features, lambda t, x: listed_features(t, x, 2)[:, :12], "second"),
    "a function twice": (
        lambda x: L.Add(name="a")([y := L.ReLU(name="relu")(conv("c")(x)), conv("d")(y)]),
        lambda t, x: t.d(F.relu(y := t.c(x))) + F.relu(y),
        lambda t, x: t.d(F.relu(y := t.c(x))) + y,
        "a",
    ),
    "a sigmoid of minus": (
        lambda x: L.Multiply(name="a")([1 - conv("c", activation="sigmoid")(x), conv("d")(x)]),
        lambda t, x: (-t.c(x)).sigmoid() * t.d(x),
        lambda t, x: t.c(x).sigmoid() * t.d(x),
        ("subtract", "a"),
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_arithmetic_in_another_order_is_no_divergence(style, training):
    layers, right, wrong, where = STYLES[style]
    x = keras.Input((6, 6, 4))
    model = fill_scaled(keras.Model(x, L.Conv2D(2, 1, name="out")(layers(L.Conv2D(4, 1, name="stem")(x)))))
    sizes = {layer.name: layer.kernel.shape for layer in model.layers if isinstance(layer, L.Conv2D)}
    for function in (right, wrong):
        modules = {name: nn.Conv2d(i, o, k, padding=k // 2) for name, (k, _, i, o) in sizes.items()}
        twin = Twin(lambda t, x, f=function: t.out(f(t, t.stem(x))), **modules)
        twin, mapping = ported(model, twin, *modules)
        traced = trace(model, twin, x_of(3, 6, 6, 4), mapping, training=training)
        if function is right:
            assert first_divergence(traced) is None, traced.to_string()
        else:
            assert first_divergence(traced).layer.startswith(where), traced.to_string()


@pytest.mark.parametrize(
    "join", [torch.cat, lambda both: torch.stack(both, 1).flatten(0, 1)], ids=["in a row", "in turn"]
)
def test_two_calls_of_a_shared_layer_may_be_one_on_all_examples(join):
    shared = L.Dense(5, name="shared")
    a, b = keras.Input((4,)), keras.Input((4,))
    model = fill_scaled(keras.Model([a, b], L.Dense(1, name="out")(L.Subtract(name="minus")([shared(a), shared(b)]))))

    def run(t, a, b):
        y = t.shared(join([a, b]))
        a, b = y.chunk(2) if join is torch.cat else (y[::2], y[1::2])
        return t.out(a - b)

    twin, mapping = ported(model, Twin(run, shared=nn.Linear(4, 5), out=nn.Linear(5, 1)), "shared", "out")
    x = [x_of(3, 4), x_of(3, 4, seed=1)]
    assert first_divergence(trace(model, twin, x, mapping)) is None
    with torch.no_grad():
        twin.shared.bias.add_(0.1)
    assert first_divergence(trace(model, twin, x, mapping)).layer == "shared"


def test_a_layer_that_is_repeated_for_each_step_may_have_its_activation_behind_the_module():
    model = model_of((5, 3), lambda x: L.TimeDistributed(L.Dense(4, activation="relu", name="dense"), name="steps")(x))
    x = x_of(2, 5, 3)
    for function, expected in ((F.relu, None), (torch.tanh, "steps activation")):
        twin = Twin(lambda twin, x, function=function: function(twin.a(x)), a=nn.Linear(3, 4))
        twin, mapping = ported(model, twin, dense="a")
        found = first_divergence(trace(model, twin, x, mapping))
        assert (found and found.layer) == expected

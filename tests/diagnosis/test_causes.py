"""A mistake is located and named."""

from course.mutants.tools import another_forward
from course.small_models import fill_scaled
from parity import diagnose, readable, trace, transfer
from parity.tracing.plot import error_by_layer
from tests.helpers.models import Twin, conv, model_of, norm, ported, x_of
from tests.helpers.residual import NAMES, X, plain, residual_twin, state

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn


def scaled(t, x):
    return 2 * plain(t, x)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (
            lambda t: [t.second.weight.data.copy_(t.second.weight.flip(2)), t.second.bias.data.zero_()],
            "second (second): its inputs agree, its outputs do not\n"
            "  kernel flipped (along its axes (2,), in 4 of its 4 channels): see the cheat sheet\n"
            "  bias missing (bias is 0 in 4 of its 4 channels): see the cheat sheet",
        ),
        (
            lambda t: [setattr(t.norm, "eps", 1.0), t.norm.running_mean.zero_()],
            "norm (norm): its inputs agree, its outputs do not\n"
            "  statistics left at 0 and 1 (moving_mean is 0 throughout): see the cheat sheet\n"
            "  epsilon (eps is 1.0, not 0.001): notebook 03",
        ),
        (
            lambda t: another_forward(t.norm, lambda self, x: type(self).__base__.forward(self, x).sin()),
            "norm (norm): its inputs agree, its outputs do not\n  none of the known causes explains it",
        ),
        (
            lambda t: setattr(t, "run", scaled),
            "output 1, of out activation (return value 1) does not take what the layers before it return\n"
            "  input scaled (2 times it): see the cheat sheet",
        ),
        (lambda t: setattr(t.second, "padding", (2, 2)), "padding (padding is [(2, 2), (2, 2)], not [(1, 1), (1, 1)])"),
        (lambda t: t.bfloat16(), "precision (the twin computes in bfloat16): see the cheat sheet"),
        (lambda t: t.norm.running_var.fill_(-9), "norm (norm): its inputs agree, its outputs do not"),
    ],
    ids=["two in one layer", "a setting, too", "unknown", "output", "shape", "precision", "NaN"],
)
def test_a_mistake_is_located_and_named(model, plant, said):
    twin, mapping = ported(model, residual_twin(plain), *NAMES)
    plant(twin)
    if said.startswith("padding"):
        twin.run = lambda t, x: torch.sigmoid(t.out(t.second(F.relu(t.norm(F.relu(t.first(x))))).mean((2, 3))))
    before = state(model, twin)
    assert said in str(diagnose(model, twin, X, mapping))
    assert state(model, twin) == before


def test_a_layer_that_the_twin_lacks_is_said_to_be_lacking(model):
    twin, mapping = ported(model, residual_twin(plain), *NAMES)
    twin.run = lambda t, x: t.out((F.relu(t.first(x)) + t.second(F.relu(t.norm(F.relu(t.first(x)))))).mean((2, 3)))
    said = (
        "out activation (not found in the twin): its inputs agree, its outputs do not\n  activation missing (sigmoid)"
    )
    assert said in str(diagnose(model, twin, X, mapping))


def test_readable_and_the_picture_show_where_it_starts(model):
    twin, mapping = ported(model, residual_twin(plain), *NAMES)
    right = trace(model, twin, X, mapping)
    assert set(readable(right)[["inputs", "outputs"]].to_numpy().flat) == {"agree"}
    twin.norm.eps = 1.0
    wrong = trace(model, twin, X, mapping)
    assert list(readable(wrong).outputs[:2]) == ["agree", "agree"]
    assert readable(wrong).outputs[2] == f"{wrong.outputs[2]:.2g}"
    _, axes = plt.subplots()
    error_by_layer(axes, wrong, right)
    line = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert [label.get_text() for label in axes.get_yticklabels()][round(line.get_ydata()[0] + 0.5)] == "norm"
    plt.close()


def test_dropout_that_the_twin_lacks_is_named_although_nobody_sees_it():
    def layers(x):
        x = L.Dropout(0.5, name="drop")(L.Dense(5, activation="relu", name="a")(x))
        return L.Dense(3, name="b")(x)

    def run(t, x):
        return F.linear(F.linear(x, t.a.weight, t.a.bias).relu(), t.b.weight, t.b.bias)

    model = model_of((6,), layers)
    twin, mapping = ported(model, Twin(run, a=nn.Linear(6, 5), b=nn.Linear(5, 3)), "a", "b")
    assert diagnose(model, twin, x_of(4, 6), mapping).divergence is None
    assert str(diagnose(model, twin, x_of(4, 6), mapping, training=True)) == (
        "drop (not found in the twin): another dropout rate\n"
        "  dropout rate (rate is 0 (no dropout), not 0.5): notebook 12"
    )


def pooled_both_ways(x):
    x = conv("stem")(x)
    return L.Concatenate(name="join")([L.GlobalMaxPooling2D(name="max")(x), L.GlobalAveragePooling2D(name="mean")(x)])


def squeezed(x):
    x = conv("stem")(x)
    return L.Multiply(name="scale")([x, L.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)])


# The Keras layers; the twin with a mistake; what is said of it.
NAMED = {
    "input not scaled": (
        lambda x: conv("c")(L.Rescaling(0.5, -1.0, name="scale")(x)),
        lambda t, x: t.c(x),
        "scale (not found in the twin): all that was seen before it agrees, its outputs do not\n"
        "  input scaled (2 times it plus 2)",
    ),
    "input reversed before it is scaled": (
        lambda x: conv("c")(L.Rescaling(0.5, -1.0, name="scale")(x)),
        lambda t, x: t.c(x.flip(1) / 2 - 1),
        "scale (div(), sub()) does not take what the layers before it return\n  channels reversed",
    ),
    "two channels exchanged": (
        lambda x: conv("c")(L.Rescaling(0.5, name="scale")(x)),
        lambda t, x: t.c(x[:, [1, 0, 2, 3]] / 2),
        "channels reversed (in the order (1, 0, 2, 3))",
    ),
    "sum of all pixels": (
        squeezed,
        lambda t, x: (y := t.stem(x)) * y.sum((2, 3), keepdim=True),
        "squeeze (sum()): its inputs agree, its outputs do not\n  another pooling (sum of all pixels, not average)",
    ),
    "branches joined in another order": (
        pooled_both_ways,
        lambda t, x: torch.cat([(y := t.stem(x)).mean((2, 3)), y.amax((2, 3))], 1),
        "join (cat()): its inputs agree, its outputs do not\n  another skip (its inputs are in the order (2, 1))",
    ),
    "twice the same": (
        lambda x: L.Add(name="sum")([y := conv("stem")(x), conv("c")(y)]),
        lambda t, x: (y := t.stem(x)) + (y, t.c(y))[0],
        "another skip (it takes the output of stem)",
    ),
    "function of an earlier tensor": (  # what a function takes is not seen, so the cause alone tells
        lambda x: L.Activation("sigmoid", name="out")(conv("c")(conv("stem")(x))),
        lambda t, x: (y := t.stem(x), t.c(y), y.sigmoid())[-1],
        "out (sigmoid()) does not take what the layers before it return\n  another skip (it takes the output of stem)",
    ),
    "bias not added": (
        lambda x: conv("c")(conv("stem")(x)),
        lambda t, x: F.conv2d(t.stem(x), t.c.weight, padding=1),
        "c (conv2d()): its inputs agree, its outputs do not\n  bias missing",
    ),
    "window of pooling": (
        lambda x: L.MaxPooling2D(3, strides=2, name="pool")(conv("stem")(x)),
        lambda t, x: F.max_pool2d(t.stem(x), 2, 3),
        "pool (max_pool2d()): its inputs agree, its outputs do not\n  stride or dilation (windows of 2 in steps of 3, "
        "not of (3, 3) in steps of (2, 2))",
    ),
    "softmax over the pixels": (
        lambda x: L.Softmax(name="softmax")(conv("stem")(x)),
        lambda t, x: t.stem(x).flatten(2).softmax(2).unflatten(2, x.shape[2:]),
        "axis (softmax along all pixels, not 3)",
    ),
    "border of another value": (
        lambda x: L.ZeroPadding2D(1, name="border")(conv("stem")(x)),
        lambda t, x: F.pad(t.stem(x), (1, 1, 1, 1), value=-1),
        "border (pad()): its inputs agree, its outputs do not\n  padding value (it is -1, not 0)",
    ),
    "reshaped": (
        lambda x: conv("c", 3)(conv("stem")(x)),
        lambda t, x: t.c(t.stem(x).movedim(1, -1).reshape(x.shape)),
        "c (c) does not take what the layers before it return\n  input axes exchanged",
    ),
}


@pytest.mark.parametrize("mistake", NAMED)
def test_a_mistake_outside_of_modules_is_named(mistake):
    layers, run, said = NAMED[mistake]
    model = model_of((6, 5, 4), layers)
    sizes = {layer.name: layer.kernel.shape for layer in model.layers if isinstance(layer, L.Conv2D)}
    modules = {name: nn.Conv2d(i, o, k, padding=1) for name, (k, _, i, o) in sizes.items()}
    twin, mapping = ported(model, Twin(run, **modules), *modules)
    assert said in str(diagnose(model, twin, x_of(3, 6, 5, 4), mapping))


def test_words_shifted_by_one_are_located():
    """No activation is tried on whole numbers."""
    x = keras.Input((7,), dtype="int32")
    model = fill_scaled(keras.Model(x, L.Dense(2, name="out")(L.Embedding(9, 4, name="embed")(x))))
    modules = {"embed": nn.Embedding(9, 4), "out": nn.Linear(4, 2)}
    twin, mapping = ported(model, Twin(lambda t, x: t.out(t.embed(x + 1)), **modules), *modules)
    words = np.arange(7, dtype="int32")[None]
    assert str(diagnose(model, twin, words, mapping)).startswith("embed (embed) does not take what")


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:The .grad attribute")
def test_a_twin_compiled_by_torchscript_is_seen_from_outside():
    model = model_of((4,), lambda x: L.Dense(2, name="b")(L.Dense(3, name="a")(x)))
    twin, mapping = ported(model, nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), a="0", b="1")
    x = x_of(3, 4)
    compiled = torch.jit.script(twin)
    assert diagnose(model, compiled, x, mapping).divergence is None
    with torch.no_grad():
        twin[0].bias += 1
    # Its modules cannot be watched: that it diverges shows, and not where.
    diagnosis = diagnose(model, torch.jit.script(twin), x, mapping)
    assert (diagnosis.divergence.layer, diagnosis.divergence.twin, diagnosis.causes) == ("b", "-", [])


@pytest.mark.parametrize(
    ("layer", "function", "said"),
    [
        (L.ELU(alpha=0.5, name="act"), F.elu, "another slope (alpha is 1, not 0.5): see the cheat sheet"),
        (
            L.Activation("elu", name="act"),
            lambda x: F.elu(x, 0.25),
            "another slope (alpha is 0.25, not 1): see the cheat sheet",
        ),
        (L.ELU(alpha=0.5, name="act"), torch.relu, "another activation (relu, not elu with alpha 0.5)"),
        (L.ReLU(max_value=0.5, name="act"), torch.relu, "another activation (relu, not relu with max_value 0.5)"),
        (L.Activation("elu", name="act"), F.selu, "another activation (selu, not elu)"),
        (L.ELU(name="act"), F.selu, "another activation (selu, not elu)"),
        (L.LeakyReLU(negative_slope=0.2, name="act"), F.silu, "another activation (silu, not leakyrelu with negative_"),
    ],
)
def test_a_setting_of_an_activation_is_named(layer, function, said):
    model = model_of((6,), lambda x: L.Dense(5, name="b")(layer(L.Dense(8, name="a")(x))))
    twin = Twin(lambda t, x: t.b(function(t.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 5))
    twin, mapping = ported(model, twin, "a", "b")
    assert str(diagnose(model, twin, x_of(9, 6), mapping)).splitlines()[1].strip().startswith(said)


def test_a_part_that_is_left_in_evaluation_mode_is_named():
    model = model_of((4,), lambda x: L.Dense(2, name="b")(L.BatchNormalization(name="bn")(x)))
    twin = Twin(lambda t, x: t.b(t.bn(x)), bn=norm(4, nn.BatchNorm1d), b=nn.Linear(4, 2))
    twin, mapping = ported(model, twin, "bn", "b")
    x = x_of(9, 4)
    assert diagnose(model, twin.train(), x, mapping, training=True).divergence is None
    twin.bn.eval()
    diagnosis = diagnose(model, twin, x, mapping, training=True)
    assert diagnosis.divergence.layer == "bn"
    assert [cause[:2] for cause in diagnosis.causes] == [("train mode", "it agrees after train()")]
    assert twin.b.training
    assert not twin.bn.training


@pytest.mark.parametrize("training", [False, True])
def test_what_is_between_modules_is_no_matter_of_their_mode(training):
    model = model_of((6, 5, 4), lambda x: L.SeparableConv2D(8, 3, padding="same", name="sep")(x))
    depthwise, pointwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.Conv2d(4, 8, 1)
    twin = Twin(lambda t, x: t.pointwise(t.depthwise(x).relu()), depthwise=depthwise, pointwise=pointwise)
    names = [weight.path for weight in model.weights]
    mapping = pd.DataFrame({"keras": names, "torch": ["depthwise.weight", "pointwise.weight", "pointwise.bias"]})
    transfer(model, twin, mapping)
    diagnosis = diagnose(model, twin.train(training), x_of(3, 6, 5, 4), mapping)
    assert diagnosis.divergence.layer == "sep"
    assert [cause.cause for cause in diagnosis.causes] == ["another activation"]


def test_slopes_that_are_weights_are_no_setting():
    model = model_of((6,), lambda x: L.Dense(5, name="b")(L.PReLU(name="act")(L.Dense(8, name="a")(x))))
    twin = Twin(lambda t, x: t.b(t.act(t.a(x))), a=nn.Linear(6, 8), act=nn.PReLU(8), b=nn.Linear(8, 5))
    twin, mapping = ported(model, twin, "a", "act", "b")
    twin.act.forward = F.silu
    assert "another activation (silu, not prelu)" in str(diagnose(model, twin, x_of(9, 6), mapping))


@pytest.mark.parametrize("units", [12, 7])
@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda head: head.bias.zero_(), "bias missing"),
        (lambda head: head.weight.copy_(head.weight.half().float()), "precision"),
        (lambda head: head.weight[3].add_(1), "weights hold other numbers"),
    ],
    ids=["bias", "kernel in float16", "one row"],
)
def test_a_dense_layer_may_have_as_many_units_as_features(plant, said, units):
    """Its kernel is reordered in a twin that flattens channels first; its bias is not, though it is as long."""
    model = model_of((3, 2, 2), lambda x: L.Dense(units, name="head")(L.Flatten()(L.ReLU(name="act")(x))))
    twin = Twin(lambda t, x: t.head(x.relu().flatten(1)), head=nn.Linear(12, units))
    mapping = pd.DataFrame({"keras": ["head/kernel", "head/bias"], "torch": ["head.weight", "head.bias"]})
    transfer(model, twin, mapping, flatten={"head": (3, 2, 2)})
    x = x_of(5, 3, 2, 2)
    assert diagnose(model, twin, x, mapping).divergence is None
    with torch.no_grad():
        plant(twin.head)
    assert [cause.cause for cause in diagnose(model, twin, x, mapping).causes] == [said]


def test_a_momentum_of_none_is_said():
    model = model_of((4,), lambda x: L.BatchNormalization(name="bn")(x))
    twin, mapping = ported(model, Twin(lambda t, x: t.bn(x), bn=norm(4, nn.BatchNorm1d)), "bn")
    twin.bn.momentum = None
    found = diagnose(model, twin, x_of(9, 4), mapping, training=True)
    assert [cause[:2] for cause in found.causes] == [("momentum", "momentum is None, not 0.01")]


def test_the_weights_of_a_layer_in_bfloat16_are_looked_at():
    # No Dense: TensorFlow gives a product in bfloat16 to oneDNN if the processor has AVX-512, even where
    # ONEDNN_MAX_CPU_ISA forbids AVX-512 to oneDNN, and crashes there.
    norm = L.LayerNormalization(epsilon=1e-5, name="norm", dtype="bfloat16")
    model = model_of((4,), norm, dtype="bfloat16")
    twin, mapping = ported(model, Twin(lambda t, x: t.norm(x), norm=nn.LayerNorm(4).bfloat16()), "norm")
    assert diagnose(model, twin, x_of(5, 4), mapping).divergence is None
    with torch.no_grad():
        twin.norm.bias.zero_()
    assert [cause.cause for cause in diagnose(model, twin, x_of(5, 4), mapping).causes] == ["bias missing"]


@pytest.mark.parametrize(
    ("padding", "pads", "said"),
    [((1, 2), (2, 1), "padding (padding is [(2, 1)], not [(1, 2)])"), (1, (1, 1), "padding value (it is 7, not 0)")],
)
def test_a_border_along_one_axis_is_named(padding, pads, said):
    model = model_of((6, 3), lambda x: L.Conv1D(2, 3, name="b")(L.ZeroPadding1D(padding, name="border")(x)))
    twin = Twin(lambda t, x: t.b(F.pad(x, pads, value=0.0 if pads == (2, 1) else 7.0)), b=nn.Conv1d(3, 2, 3))
    twin, mapping = ported(model, twin, "b")
    assert said in str(diagnose(model, twin, x_of(5, 6, 3), mapping))

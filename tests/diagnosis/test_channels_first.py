"""Mistakes in ports of Keras models that have the channels first: located, and named with Keras's own axes."""

from course.mutants.tools import put
from course.small_models import draw, pair_up
from parity import diagnose, propose_mapping, trace, transfer
from parity.diagnosis.evidence import gather
from parity.diagnosis.merging import output_of
from parity.tracing.port import make_port
from parity.tracing.trace import run_and_judge
from parity.tracing.verdicts import Kind
from tests.helpers.models import Twin, float64_model, norm

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn

FIRST = {"data_format": "channels_first"}
SHAPE = (3, 9, 8)


def settle(twin, name, **settings):
    for key, value in settings.items():
        setattr(getattr(twin, name), key, value)


def body(axis, way):
    """Return what makes a Keras model with the channels on one axis."""

    def function(x):
        x = L.Conv2D(5, 3, strides=2, padding="same", activation="relu", name="conv", data_format=way)(x)
        x = L.BatchNormalization(axis=axis, name="norm")(x)
        pooled = L.AveragePooling2D(3, strides=1, padding="same", name="mean", data_format=way)(x)
        return L.Concatenate(axis=axis, name="join")([x, pooled])

    return function


class Body(nn.Module):
    """The twin of ``body``; what its functions do can be changed."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, 2), norm(5)
        self.do = {
            "pad": lambda x: F.pad(x, (0, 1, 1, 1)),
            "act": F.relu,
            "mean": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
            "join": lambda a, b: torch.cat([a, b], 1),
        }

    def forward(self, x):
        """Map (batch, 3, h, w) to (batch, 10, h', w')."""
        x = self.norm(self.do["act"](self.conv(self.do["pad"](x))))
        return self.do["join"](x, self.do["mean"](x))


MISTAKES = {
    "epsilon": (lambda t: settle(t, "norm", eps=0.5), "norm (norm)", "epsilon (eps is 0.5, not 0.001)"),
    "padding": (
        lambda t: t.do.update(pad=lambda x: F.pad(x, (1, 1, 1, 1))),
        "conv (conv)",
        "padding (padding is [(1, 1), (1, 1)], not [(1, 1), (0, 1)])",
    ),
    "stride": (
        lambda t: settle(t, "conv", stride=(1, 1)),
        "conv (conv)",
        "stride or dilation (stride is (1, 1), not (2, 2))",
    ),
    "activation": (
        lambda t: t.do.update(act=torch.tanh),
        "conv activation (tanh())",
        "another activation (tanh, not relu)",
    ),
    "padding counted": (
        lambda t: t.do.update(mean=lambda x: F.avg_pool2d(x, 3, 1, 1)),
        "mean (avg_pool2d())",
        "padding counted",
    ),
    "maximum": (
        lambda t: t.do.update(mean=lambda x: F.max_pool2d(x, 3, 1, 1)),
        "mean (max_pool2d())",
        "another pooling (max, not average)",
    ),
    "join": (
        lambda t: t.do.update(join=lambda a, b: torch.cat([b, a], 1)),
        "join (cat())",
        "another skip (it takes the output of mean)",
    ),
    "one alone": (
        lambda t: t.do.update(join=lambda a, b: torch.cat([a, a], 1)),
        "join (cat())",
        "another skip (it takes the output of norm)",
    ),
    "kernel": (lambda t: put(t.conv.weight, t.conv.weight.flip(2, 3)), "conv (conv)", "kernel flipped"),
    "bias": (lambda t: put(t.conv.bias, 0.0), "conv (conv)", "bias missing"),
    "exchanged": (
        lambda t: t.do.update(pad=lambda x: F.pad(x.flip(1), (0, 1, 1, 1))),
        "conv (conv)",
        "channels reversed (the last channel first)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_located_and_named_wherever_keras_has_the_channels(name):
    plant, layer, cause = MISTAKES[name]
    x = draw(2, *SHAPE)
    said = []
    for shape, function, given in (
        (SHAPE, body(1, "channels_first"), x),
        ((*SHAPE[1:], SHAPE[0]), body(-1, "channels_last"), np.moveaxis(x, 1, -1)),
    ):
        model, twin = float64_model(shape, function), Body().double().eval()
        mapping = pair_up(model, twin, {"conv": "conv", "norm": "norm"})
        transfer(model, twin, mapping)
        plant(twin)
        said.append(str(diagnose(model, twin, given, mapping)))
    assert said[0] == said[1]
    assert said[0].startswith(layer)
    assert f"\n  {cause}" in said[0]


def said_of(shape, function, run, twin=None, **modules):
    """Return what is said of a twin whose weights are the right ones."""
    model = float64_model(shape, function)
    twin = twin or Twin(run, **modules).double()
    mapping = pair_up(model, twin, {name: name for name in modules})
    transfer(model, twin, mapping)
    return str(diagnose(model, twin.eval(), draw(2, *shape), mapping)).replace("\n  ", " | ")


def depth(x):
    return L.DepthwiseConv2D(3, name="a", **FIRST)(x)


def filters():
    return nn.Conv2d(3, 3, 3, groups=3)


def test_axes_are_told_as_keras_counts_them():
    softmax = said_of(
        SHAPE, lambda x: L.Softmax(axis=1, name="s")(depth(x)), lambda t, x: t.a(x).softmax(3), a=filters()
    )
    assert "s (softmax()): its inputs agree, its outputs do not | axis (softmax along axis 3, not 1)" in softmax
    last = said_of(
        SHAPE, lambda x: L.Activation("softmax", name="s")(depth(x)), lambda t, x: t.a(x).softmax(1), a=filters()
    )
    assert "axis (softmax along axis 1, not 3)" in last

    def normal(t, x):
        x = t.a(x)
        return F.layer_norm(x, x.shape[3:], eps=1e-3) * t.n.weight[:, None, None] + t.n.bias[:, None, None]

    of_rows = said_of(
        SHAPE, lambda x: L.LayerNormalization(axis=1, name="n")(depth(x)), normal, a=filters(), n=nn.LayerNorm(3, 1e-3)
    )
    assert "axis (it normalizes along (3,), not (1,))" in of_rows


def test_the_layer_is_run_on_other_inputs_with_keras_s_axes():
    model = float64_model(SHAPE, lambda x: L.Softmax(axis=1, name="s")(depth(x)))
    twin = Twin(lambda t, x: t.a(x).softmax(3), a=filters()).double().eval()
    mapping = pair_up(model, twin, {"a": "a"})
    transfer(model, twin, mapping)
    port = make_port(model, twin, draw(2, *SHAPE), mapping)
    run, verdicts = run_and_judge(port)
    evidence = gather(port, run, next(verdict for verdict in verdicts if verdict.kind == Kind.DIVERGES))
    assert evidence.value.shape == (2, 7, 6, 3)
    np.testing.assert_allclose(output_of(evidence, evidence.inputs), evidence.value, atol=1e-12)


def test_height_and_width_exchanged_are_told_with_keras_s_axes():
    said = said_of((3, 8, 8), depth, lambda t, x: t.a(x.transpose(2, 3)), a=filters())
    assert said.startswith(
        "a (a) does not take what the layers before it return | input axes exchanged (in the order (3, 2))"
    )


def test_a_cropped_transposed_convolution_is_named():
    said = said_of(
        (3, 7, 8),
        lambda x: L.Conv2DTranspose(4, 3, strides=2, padding="same", name="up", **FIRST)(x),
        lambda t, x: t.up(x),
        up=nn.ConvTranspose2d(3, 4, 3, 2, padding=1, output_padding=1),
    )
    assert (
        "up (up): its inputs agree, its outputs do not | padding ((1, 1) elements are cropped before the result" in said
    )


def test_a_flatten_that_moves_the_channels_wants_the_rows_reordered():
    def function(x):
        return L.Dense(4, name="out")(L.Flatten(name="flat", **FIRST)(depth(x)))

    model = float64_model(SHAPE, function)
    twin = Twin(lambda t, x: t.out(t.a(x).flatten(1)), a=filters(), out=nn.Linear(3 * 7 * 6, 4)).double().eval()
    mapping = pair_up(model, twin, {"a": "a", "out": "out"})
    x = draw(2, *SHAPE)
    assert propose_mapping(model, twin, x).flatten == {"out": (7, 6, 3)}
    transfer(model, twin, mapping, {"out": (7, 6, 3)})
    assert str(diagnose(model, twin, x, mapping)) == "no layer diverges"
    transfer(model, twin, mapping)
    said = str(diagnose(model, twin, x, mapping))
    assert said.startswith(
        "out (out): its inputs agree, its outputs do not\n  flatten order (kernel has its features in the order"
    )


def test_a_flatten_that_keeps_the_order_wants_nothing_reordered():
    def function(x):
        return L.Dense(4, name="out")(
            L.ReLU(name="relu")(L.Flatten(name="flat", data_format="channels_last")(depth(x)))
        )

    model = float64_model(SHAPE, function)
    order = []
    twin = (
        Twin(lambda t, x: t.out(order[0](t.a(x)).flatten(1).relu()), a=filters(), out=nn.Linear(3 * 7 * 6, 4))
        .double()
        .eval()
    )
    order.append(lambda x: x)
    mapping = pair_up(model, twin, {"a": "a", "out": "out"})
    x = draw(2, *SHAPE)
    assert propose_mapping(model, twin, x).flatten == {}
    transfer(model, twin, mapping, {"out": (7, 6, 3)})
    said = str(diagnose(model, twin, x, mapping))
    assert said.startswith(
        "out (out): its inputs agree, its outputs do not\n  flatten order (kernel is reordered, and Keras has"
    )
    transfer(model, twin, mapping)
    assert str(diagnose(model, twin, x, mapping)) == "no layer diverges"
    order[0] = lambda x: x.permute(0, 2, 3, 1)
    said = str(diagnose(model, twin, x, mapping))
    assert said.startswith(
        "flat (flatten()): its inputs agree, its outputs do not\n  flatten order (axes (1, 2, 0) in place of (0, 1, 2))"
    )


def test_keras_s_own_mistake_is_told():
    """Its ``add`` on TensorFlow takes a bias that is as long as the last axis for one of that axis."""
    added = keras.ops.add(np.zeros((1, 3, 2, 3)), np.arange(3.0).reshape(1, 3, 1, 1))
    said = said_of((3, 6, 5), depth, lambda t, x: t.a(x), a=filters())
    if np.asarray(added)[0, 1, 0, 0] == 1:
        assert said == "no layer diverges"
    else:
        assert "a (a): its inputs agree" in said
        assert (
            "| axis (the twin is right; Keras adds the bias along axis 3, not 1, as Keras 3.15 on TensorFlow does"
            in said
        )


def test_the_table_tells_each_shape_in_its_framework_s_order_of_axes():
    model = float64_model(
        (9, 8, 3),
        lambda x: L.Conv2D(4, 2, name="b")(
            L.Permute((2, 3, 1))(L.DepthwiseConv2D(3, name="a", **FIRST)(L.Permute((3, 1, 2))(x)))
        ),
    )
    twin = Twin(lambda t, x: t.b(t.a(x)), a=filters(), b=nn.Conv2d(3, 4, 2)).double().eval()
    mapping = pair_up(model, twin, {"a": "a", "b": "b"})
    transfer(model, twin, mapping)
    traced = trace(model, twin, draw(2, 9, 8, 3), mapping).set_index("layer")
    assert traced.keras_shape["a"] == traced.torch_shape["a"] == (2, 3, 7, 6)
    assert (traced.keras_shape["b"], traced.torch_shape["b"]) == ((2, 6, 5, 4), (2, 4, 6, 5))

"""What a port holds, what it refuses, and which modules it takes for a layer's."""

import re

from parity import ParityError
from parity.tracing.port import make_port
from tests.helpers.models import Twin, model_of, table, x_of

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

PAIRS = (("a/kernel", "a.weight"), ("a/bias", "a.bias"), ("b/kernel", "b.weight"), ("b/bias", "b.bias"))


def two_dense(x):
    return L.Dense(2, name="b")(L.Dense(3, name="a")(x))


def linear_twin(**more):
    return Twin(lambda t, x: t.b(t.a(x)), a=nn.Linear(4, 3), b=nn.Linear(3, 2), **more)


@pytest.fixture(scope="module")
def dense():
    return model_of((4,), two_dense)


def modules_of(port, layer):
    """Return the modules that a port has for a layer, by their names in the twin; None if it has none."""
    names = {id(module): name for name, module in port.twin.named_modules()}
    found = port.modules.get(id(port.keras_model.get_layer(layer)))
    return None if found is None else [names[id(module)] for module in found]


def port_of(model, twin, *pairs, x=None, torch_x=None):
    x = x_of(2, *model.input_shape[1:]) if x is None else x
    return make_port(model, twin, x, table(*pairs), torch_x)


def test_a_port_holds_both_models_and_what_they_are_run_with():
    model = model_of((6, 5, 2), lambda x: L.Conv2D(3, 3, name="a")(x))
    twin, x = nn.Sequential(nn.Conv2d(2, 3, 3)).double(), x_of(2, 6, 5, 2)
    port = port_of(model, twin, ("a/kernel", "0.weight"), ("", "0.bias"), x=x.astype("float64"))
    assert (port.keras_model, port.twin) == (model, twin)
    assert [step.name for step in port.graph.steps] == ["a"]
    assert port.inputs[0].dtype == np.float32
    assert np.array_equal(port.inputs[0], x)
    assert port.twin_inputs[0].dtype == torch.float64
    assert np.array_equal(port.twin_inputs[0].numpy(), np.moveaxis(x, -1, 1))
    assert not port.twin_inputs_given
    assert port.key_of == {"a/kernel": "0.weight"}
    assert [(row.keras, row.torch) for row in port.rows] == [("a/kernel", "0.weight"), ("", "0.bias")]
    assert port.modules_with_weights == [twin[0]]


def own_model():
    class Own(keras.Model):
        def call(self, x):
            return x if float(x[0, 0]) > 0 else -x

    return Own()


# What is passed in place of the right arguments, and the faults.
REFUSED = {
    "no graph": ({"keras_model": own_model}, ["has no graph"]),
    "no module": ({"torch_model": lambda: lambda x: x}, ["it is no torch.nn.Module"]),
    "columns": ({"mapping": lambda: table(*PAIRS).rename(columns={"keras": "tensorflow"})}, ["the columns must be"]),
    "every unknown name": (
        {"mapping": lambda: table(("a/kernal", "a.weight"), ("b/kernel", "c.weight"), PAIRS[1])},
        [
            "line 2: there is no Keras weight a/kernal; did you mean a/kernel",
            "line 3: there is no PyTorch tensor c.wei",
        ],
    ),
    "too many inputs": ({"x": lambda: [x_of(2, 4)] * 2}, ["inputs: 1 expected, 2 found"]),
    "shape": ({"x": lambda: x_of(2, 5)}, [r"has the shape \(2, 5\), not \(None, 4\)"]),
    "NaN": ({"x": lambda: np.full((2, 4), np.nan)}, ["not finite"]),
    "no tensors": ({"torch_x": lambda: [x_of(2, 4)]}, ["torch_x must be a tensor"]),
    "device": ({"torch_model": lambda: linear_twin().to("meta")}, ["it is on meta; move it to the CPU"]),
    "lazy": (
        {"torch_model": lambda: Twin(lambda t, x: x, a=nn.LazyLinear(3), b=nn.Linear(3, 2))},
        ["it has lazy modules"],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_with_every_fault(dense, what):
    changed, said = REFUSED[what]
    right = {"keras_model": dense, "torch_model": linear_twin(), "x": x_of(2, 4), "mapping": table(*PAIRS)}
    make_port(**right)
    with pytest.raises(ParityError) as caught:
        make_port(**right | {name: value() for name, value in changed.items()})
    assert len(caught.value.faults) == len(said)
    for fault, pattern in zip(caught.value.faults, said, strict=True):
        assert re.search(pattern, fault)


def test_the_modules_of_each_layer(dense):
    port = port_of(dense, linear_twin(), *PAIRS)
    assert (modules_of(port, "a"), modules_of(port, "b")) == (["a"], ["b"])
    assert port.modules_with_weights == [port.twin.a, port.twin.b]
    assert modules_of(port_of(dense, linear_twin(), *PAIRS[2:]), "a") is None


def test_the_convolutions_of_a_separable_one_are_in_the_order_of_its_weights():
    model = model_of((6, 6, 2), lambda x: L.SeparableConv2D(3, 3, name="s")(x))
    twin = Twin(lambda t, x: t.first(t.second(x)), first=nn.Conv2d(2, 3, 1), second=nn.Conv2d(2, 2, 3, groups=2))
    pairs = ("s/bias", "first.bias"), ("s/pointwise_kernel", "first.weight"), ("s/depthwise_kernel", "second.weight")
    assert modules_of(port_of(model, twin, *pairs), "s") == ["second", "first"]


def test_a_module_may_be_called_by_any_of_its_names(dense):
    twin = linear_twin()
    twin.alias = twin.a
    pairs = ("a/kernel", "alias.weight"), ("a/bias", "a.bias")
    assert modules_of(port_of(dense, twin, *pairs), "a") == ["a"]


def test_a_shared_layer_has_its_module_once():
    shared, x = L.Dense(4, name="a"), keras.Input((4,))
    model = keras.Model(x, shared(shared(x)))
    twin = Twin(lambda t, x: t.a(t.a(x)), a=nn.Linear(4, 4))
    port = port_of(model, twin, ("a/kernel", "a.weight"), ("a/bias", "a.bias"))
    assert len(port.graph.steps) == 2
    assert port.modules_with_weights == [twin.a]


class Holder(nn.Module):
    """A module with parameters of its own, and perhaps with modules in it."""

    def __init__(self, **modules):
        super().__init__()
        self.kernel, self.rows = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(2, 3))
        for name, module in modules.items():
            self.add_module(name, module)


def test_a_module_with_the_weights_of_two_layers_is_no_one_s_twin(dense):
    twin = linear_twin(both=Holder())
    pairs = ("a/kernel", "both.kernel"), ("b/kernel", "both.rows")
    port = port_of(dense, twin, *pairs)
    assert (modules_of(port, "a"), modules_of(port, "b")) == (None, None)
    assert modules_of(port_of(dense, twin, pairs[0], PAIRS[2]), "a") == ["both"]
    assert modules_of(port_of(dense, twin, pairs[0], PAIRS[2]), "b") == ["b"]


def test_a_module_with_the_module_of_another_layer_in_it_does_more_than_its_layer(dense):
    twin = linear_twin(outer=Holder(inner=nn.ModuleDict({"b": nn.Linear(3, 2)})))
    port = port_of(dense, twin, ("a/kernel", "outer.kernel"), ("b/kernel", "outer.inner.b.weight"))
    assert (modules_of(port, "a"), modules_of(port, "b")) == (None, ["outer.inner.b"])


def test_layers_made_of_layers_have_the_module_that_holds_their_weights():
    model = model_of((5, 4), lambda x: L.LSTM(3, name="cell")(L.TimeDistributed(L.Dense(4, name="in"), name="each")(x)))
    twin = Twin(lambda t, x: x, dense=nn.Linear(4, 4), lstm=nn.LSTM(4, 3))
    kernel = next(weight.path for weight in model.get_layer("each").weights)
    recurrent = next(weight.path for weight in model.get_layer("cell").weights)
    port = port_of(model, twin, (kernel, "dense.weight"), (recurrent, "lstm.weight_ih_l0"))
    assert (modules_of(port, "each"), modules_of(port, "cell")) == (["dense"], ["lstm"])


def test_an_attention_has_the_smallest_module_around_its_weights_or_those_from_query_to_output():
    model = model_of((5, 4), lambda x: L.MultiHeadAttention(2, 2, name="mha")(x, x))
    names = ("query", "key", "value", "attention_output")
    apart = Twin(lambda t, x: x, **{name: nn.Linear(4, 4) for name in names}, other=nn.Linear(4, 4))
    for prefix, twin in (("", apart), ("a.", Twin(lambda t, x: x, a=apart))):
        pairs = [
            (w.path, f"{prefix}{w.path.split('/')[-2]}.weight") for w in model.weights if w.path.endswith("kernel")
        ]
        whole = [f"{prefix}{name}" for name in names] if not prefix else ["a"]
        assert modules_of(port_of(model, twin, *pairs), "mha") == whole
    joint = Twin(lambda t, x: x, a=nn.MultiheadAttention(4, 2))
    keys = ["a.in_proj_weight"] * 3 + ["a.out_proj.weight"]
    pairs = list(zip([pair[0] for pair in pairs], keys, strict=True))
    assert modules_of(port_of(model, joint, *pairs), "mha") == ["a"]


class Affine(L.Layer):
    """A layer of a kind that is not covered."""

    def build(self, shape):
        """Make the weights."""
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")
        self.bias = self.add_weight(shape=(3,), name="bias")

    def call(self, x):
        """Map the last axis to three features."""
        return keras.ops.matmul(x, self.kernel) + self.bias


def test_of_a_kind_that_is_not_covered_one_module_is_its_twin_and_two_are_not():
    model = model_of((5, 4), Affine(name="a"))
    twin = linear_twin()
    assert modules_of(port_of(model, twin, *PAIRS[:2]), "a") == ["a"]
    assert modules_of(port_of(model, twin, PAIRS[0], ("a/bias", "b.bias")), "a") is None


def test_a_parametrized_weight_belongs_to_the_module_that_is_called(dense):
    twin = linear_twin()
    nn.utils.parametrizations.weight_norm(twin.a)
    pairs = ("a/kernel", "a.parametrizations.weight.original1"), *PAIRS[1:]
    port = port_of(dense, twin, *pairs)
    assert (modules_of(port, "a"), modules_of(port, "b")) == (["a"], ["b"])


def two_inputs():
    image, words = keras.Input((4, 3, 2), name="image"), keras.Input((5,), dtype="int32", name="words")
    return keras.Model([image, words], [L.Conv2D(2, 1, name="a")(image), L.Embedding(9, 2, name="e")(words)])


def test_moved_inputs_are_up_to_five_per_cent_off_and_whole_numbers_stay():
    twin = Twin(lambda t, x, y: (t.a(x), t.e(y)), a=nn.Conv2d(2, 2, 1), e=nn.Embedding(9, 2))
    image, words = x_of(50, 4, 3, 2), np.arange(250, dtype="int32").reshape(50, 5) % 9
    image[0, 0, 0, 0] = 0
    port = port_of(two_inputs(), twin, ("a/kernel", "a.weight"), x=[image, words])
    moved = port.moved(3)
    factors = moved.inputs[0][image != 0].astype(float) / image[image != 0]
    assert 0.9499 < factors.min() < 0.951
    assert 1.049 < factors.max() < 1.0501
    assert moved.inputs[0][0, 0, 0, 0] == 0
    assert moved.inputs[0].dtype == np.float32
    assert np.array_equal(moved.inputs[1], words)
    assert np.array_equal(moved.twin_inputs[0].numpy(), np.moveaxis(moved.inputs[0], -1, 1))
    assert np.array_equal(moved.twin_inputs[1].numpy(), words)
    assert np.array_equal(port.inputs[0], image)
    assert np.array_equal(port.moved(3).inputs[0], moved.inputs[0])
    assert not np.array_equal(port.moved(4).inputs[0], moved.inputs[0])
    assert (moved.modules, moved.rows) == (port.modules, port.rows)


def test_inputs_of_the_twin_that_were_given_stay_and_so_do_the_keras_model_s(dense):
    given = torch.ones(2, 4)
    port = port_of(dense, linear_twin(), *PAIRS, torch_x=given)
    assert port.twin_inputs_given
    moved = port.moved(1)
    assert torch.equal(moved.twin_inputs[0], given)
    assert np.array_equal(moved.inputs[0], port.inputs[0])
    port.twin_inputs[0].zero_()
    assert torch.equal(given, torch.ones(2, 4))  # the port has a copy

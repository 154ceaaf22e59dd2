"""Of a recurrent layer or an attention that returns something strange, no cause is named; nothing is changed."""

from course.mutants import attention, recurrent
from course.mutants.tools import another_forward
from parity import diagnose, propose_mapping, transfer
from tests.helpers.models import Twin, conv, model_of, norm, ported, snapshot, x_of

import keras
import pytest
import torch
from keras import layers as L
from torch import nn

LAYERS = [(recurrent, name) for name in ("old", "both", "back", "simple", "ends", "last")]
LAYERS += [(attention, name) for name in ("norm", "joint", "apart", "rms", "groups", "cross", "additive")]


def strange(output):
    """Return what no known mistake makes of an output."""
    if isinstance(output, tuple):
        return tuple(strange(one) for one in output)
    return output if output is None else output.sin() * 3 + output.square() + torch.linspace(0, 1, output.shape[-1])


@pytest.mark.parametrize(("network", "layer"), LAYERS, ids=[name for _, name in LAYERS])
def test_what_is_strange_has_no_cause(network, layer):
    made = network.network()
    twin, probe = made.build(), made.probes[0]
    module = twin.get_submodule(layer)
    original = type(module).forward
    another_forward(module, lambda self, *x, **more: strange(original(self, *x, **more)))
    before = snapshot(twin), snapshot(probe.keras_model)
    found = diagnose(probe.keras_model, twin, probe.x, made.mapping)
    assert found.divergence.layer == layer
    assert found.causes == []
    assert (snapshot(twin), snapshot(probe.keras_model)) == before


@pytest.mark.parametrize("network", [recurrent, attention])
def test_the_right_port_is_quiet(network):
    made = network.network()
    for probe in made.probes:
        assert diagnose(probe.keras_model, made.build(), probe.x, made.mapping).divergence is None


def normalized_by(number):
    """Return a Keras model with a normalization behind a convolution, and a twin that adds a number between both."""
    model = model_of((6, 5, 3), lambda i: conv("last", 2)(L.BatchNormalization(name="norm")(conv("conv")(i))))
    modules = {"conv": nn.Conv2d(3, 4, 3, padding=1), "norm": norm(4), "last": nn.Conv2d(4, 2, 3, padding=1)}

    def run(t, x):
        y = t.conv(x)
        return t.last(t.norm(y + number * y.square()))

    return model, *ported(model, Twin(run, **modules), "conv", "norm", "last")


def test_a_sum_before_a_normalization_is_no_other_place_of_it():
    """In Keras, nothing adds what the normalization takes."""
    model, twin, mapping = normalized_by(0.5)
    found = diagnose(model, twin, x_of(2, 6, 5, 3), mapping)
    assert (found.divergence.layer, found.causes) == ("norm", [])


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 4), (1, 1, 4, 4)])
@pytest.mark.parametrize("examples", [1, 3, 4])
def test_a_mask_that_is_the_same_for_all_examples_stops_no_search(shape, examples):
    class Mask(keras.layers.Layer):
        def call(self, x):
            return keras.ops.reshape(keras.ops.tri(4, dtype="bool"), shape)

    model = model_of((4, 8), lambda i: L.MultiHeadAttention(2, 4, name="a")(i, i, attention_mask=Mask()(i)))
    later = torch.ones(4, 4).triu(1).bool()
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    twin = Twin(lambda t, x: t.a(*3 * [x], attn_mask=later)[0], a=attention)
    x = x_of(examples, 4, 8)
    mapping = propose_mapping(model, twin, x, torch_x=[torch.from_numpy(x)]).mapping
    transfer(model, twin, mapping)
    assert diagnose(model, twin, x, mapping, torch_x=[torch.from_numpy(x)]).divergence is None
    attention.num_heads, attention.head_dim = 4, 2
    later[3, 0] = True
    found = diagnose(model, twin, x, mapping, torch_x=[torch.from_numpy(x)])
    assert (found.divergence.layer, found.causes) == ("a", [])

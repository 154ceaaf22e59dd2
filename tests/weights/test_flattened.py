"""Weights behind a Flatten move into a twin that flattens channels first."""

from functools import partial

from parity import largest_difference, transfer
from tests.helpers.models import ROUNDING, draw, refused, sequential, spoil, table

import keras
import numpy as np
import pytest
import torch
from torch import nn

SHAPES = [(3, 4, 5), (6, 4), (2, 3, 4, 5), (4, 4, 4)]


def flattening(shape):
    """Return a Keras model that flattens channels last and a twin that flattens channels first, and their mapping."""
    head = keras.layers.Dense(3, name="head", dtype="float64")
    model = sequential(shape, keras.layers.Flatten(dtype="float64"), head)
    twin = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3)).double()
    return model, spoil(twin), table((head.kernel.path, "1.weight"), (head.bias.path, "1.bias"))


def flattened_apart(shape, **kwargs):
    model, twin, mapping = flattening(shape)
    x = draw(2, *shape, seed=1)
    transfer(model, twin, mapping, **kwargs)
    with torch.no_grad():
        return largest_difference(model(x), twin(torch.from_numpy(np.moveaxis(x, -1, 1).copy())))


@pytest.mark.parametrize("shape", SHAPES)
def test_flatten_option_puts_the_rows_in_the_twins_order(shape):
    assert flattened_apart(shape, flatten={"head": shape}) < ROUNDING


@pytest.mark.parametrize("shape", SHAPES)
def test_without_the_flatten_option_the_outputs_differ(shape):
    assert flattened_apart(shape) > 0.1


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 3)])
def test_flatten_option_reorders_the_vectors_of_layers_before_the_dense_one(shape):
    features = int(np.prod(shape))
    layers = {
        "norm": (keras.layers.BatchNormalization, nn.BatchNorm1d(features, eps=1e-3, momentum=0.01)),
        "scale": (keras.layers.LayerNormalization, nn.LayerNorm(features, eps=1e-3)),
        "slope": (keras.layers.PReLU, nn.PReLU(features)),
        "head": (partial(keras.layers.Dense, 3), nn.Linear(features, 3)),
    }
    keras_layers = [kind(name=name, dtype="float64") for name, (kind, _) in layers.items()]
    model = sequential(shape, keras.layers.Flatten(dtype="float64"), *keras_layers)
    twin = spoil(nn.Sequential(nn.Flatten(), *(module for _, module in layers.values())).double().eval())
    tensors = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    tensors |= {"alpha": "weight", "kernel": "weight", "bias": "bias"}
    rows = [(w.path, f"{i}.{tensors[w.name]}") for i, layer in enumerate(keras_layers, 1) for w in layer.weights]
    mapping, x = table(*rows, ("", "1.num_batches_tracked")), draw(2, *shape, seed=1)

    def apart(names):
        transfer(model, twin, mapping, flatten=dict.fromkeys(names, shape))
        with torch.no_grad():
            return largest_difference(model(x), twin(torch.from_numpy(np.moveaxis(x, -1, 1).copy())))

    assert apart(layers) < ROUNDING
    for name in layers:
        assert apart(layers.keys() - {name}) > 1e-3


def test_with_the_channels_in_the_wrong_place_the_outputs_differ():
    """Not so with height and width exchanged: channels first, only the number of pixels matters."""
    assert flattened_apart((3, 4, 5), flatten={"head": [5, 3, 4]}) > 0.1
    assert flattened_apart((3, 4, 5), flatten={"head": [3, 5, 4]}) > 0.1


def test_flatten_touches_only_the_layer_it_names():
    shape = (3, 4)
    layers = [keras.layers.Dense(12, name=name, dtype="float64") for name in ("one", "two")]
    model = sequential(shape, keras.layers.Flatten(dtype="float64"), *layers)
    twin = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12)).double()
    rows = [(f"{model.name}/{n}/{w}", f"{i}.{t}") for i, n in ((1, "one"), (2, "two")) for w, t in WEIGHT_AND_BIAS]
    transfer(model, twin, table(*rows), flatten={"one": shape})
    x = draw(2, *shape, seed=1)
    with torch.no_grad():
        assert largest_difference(model(x), twin(torch.from_numpy(x.swapaxes(1, 2).copy()))) < 1e-11


WEIGHT_AND_BIAS = (("kernel", "weight"), ("bias", "bias"))


@pytest.mark.parametrize(
    ("flatten", "fault"),
    [
        ({"head": (3, 4, 6)}, r"line 2: .*kernel \(60, 3\) does not take \(3, 4, 6\) flattened"),
        ({"head": ()}, r"line 2: .*kernel \(60, 3\) does not take \(\) flattened"),
        ({"head": (-3, -4, 5)}, r"line 2: .*kernel \(60, 3\) does not take \(-3, -4, 5\) flattened"),
        ({"heads": (3, 4, 5)}, "flatten: the Keras model has no layer heads of the kinds Dense, BatchNormalization, "),
    ],
)
def test_flatten_that_does_not_fit_is_refused(flatten, fault):
    model, twin, mapping = flattening((3, 4, 5))
    refused(model, twin, mapping, [fault], flatten=flatten)


def test_flatten_refuses_a_name_that_two_layers_have():
    """Nested models may each have a layer of that name, and only one of them stands behind the Flatten."""
    inner = [keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, name="head")], name=n) for n in ("a", "b")]
    model = keras.Sequential([keras.Input((2, 3)), keras.layers.Flatten(), *inner])
    twin = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Linear(6, 6))
    paths = [variable.path for variable in model.weights]
    assert len(set(paths)) == 4
    rows = zip(paths, ("1.weight", "1.bias", "2.weight", "2.bias"), strict=True)
    refused(model, twin, table(*rows), ["flatten: the Keras model has 2 layers head"], flatten={"head": (2, 3)})

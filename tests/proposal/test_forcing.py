"""Keras's tensors with the axes of the twin, and what modules take and return in place of their own."""

from parity.models.keras_graph import keras_graph
from parity.proposal.forcing import Forcing, laid_like
from parity.proposal.layers import keras_parts
from parity.proposal.outputs import keras_outputs
from tests.helpers.models import model_of, x_of

import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

IMAGE = torch.arange(2 * 4 * 5 * 3.0).view(2, 4, 5, 3)
SEQUENCE = torch.arange(2 * 4 * 3.0).view(2, 4, 3)


@pytest.mark.parametrize(
    ("value", "due", "module"),
    [
        (IMAGE, IMAGE.movedim(-1, 1), nn.Conv2d(3, 3, 1)),
        (IMAGE, IMAGE.movedim(-1, 1), None),
        (IMAGE, IMAGE, nn.Linear(3, 3)),
        (SEQUENCE, SEQUENCE, nn.LayerNorm(3)),
        (SEQUENCE, SEQUENCE.movedim(-1, 1), nn.BatchNorm1d(3)),
        (SEQUENCE, SEQUENCE.flatten(0, 1), nn.Linear(3, 3)),  # each step is an example
        (SEQUENCE, SEQUENCE.flatten(1), nn.Linear(12, 3)),
        (SEQUENCE[:, 0], SEQUENCE[:, 0], nn.Linear(3, 3)),
        (torch.arange(6).view(2, 3), torch.arange(6).view(2, 3), nn.Embedding(9, 2)),
    ],
)
def test_a_keras_tensor_gets_the_axes_of_the_twins(value, due, module):
    laid = laid_like(value, torch.zeros_like(due), module)
    assert laid.is_contiguous()
    assert torch.equal(laid, due)


@pytest.mark.parametrize(
    ("like", "due", "module"),
    [
        ((2, 3, 6, 5), IMAGE.movedim(-1, 1), nn.Conv2d(3, 3, 1)),
        ((2, 6, 5, 3), IMAGE, None),
        ((2, 60), IMAGE.flatten(1), nn.Linear(60, 3)),
        ((2, 90), IMAGE.movedim(-1, 1), nn.Conv2d(3, 3, 1)),
        ((2, 90), IMAGE, nn.Linear(3, 3)),
    ],
)
def test_of_another_size_the_channels_tell_the_axes(like, due, module):
    assert torch.equal(laid_like(IMAGE, torch.zeros(like), module), due)


def test_flattened_features_are_given_in_keras_order_and_in_the_twins_dtype():
    features = IMAGE.flatten(1)
    laid = laid_like(features, torch.zeros(2, 60, dtype=torch.float64), nn.Linear(60, 2), (4, 5, 3))
    assert laid.dtype == torch.float64
    assert torch.equal(laid, features.double())


def layers(x):
    x = L.Conv2D(3, 3, padding="same", activation="relu", name="a")(x)
    return L.Conv2D(2, 1, name="b")(L.MaxPooling2D(2)(x))


def forcing_of(checked):
    x = x_of(2, 6, 5, 3)
    model = model_of(x.shape[1:], layers)
    graph = keras_graph(model)
    parts, _ = keras_parts(graph, [x])
    return Forcing(parts, {"a": ["p"], "b": ["q"]}, keras_outputs(graph, [x], parts), checked), parts


def take_and_return(forcing, tensor, label="a"):
    module = nn.Conv2d(3, 3, 3)
    value = forcing.parts[label].inputs[0].value.movedim(-1, 1)
    forcing.taken(module, "p", 1, value)
    return forcing.returned(module, ("p", 1), label, tensor)


def test_of_a_part_the_output_is_known_and_what_one_or_two_layers_make_of_it():
    forcing, parts = forcing_of({"a"})
    before, relu, pooled = forcing.outputs["a"][0]
    assert torch.equal(relu.value, before.value.relu())
    np.testing.assert_array_equal(pooled.value.numpy(), parts["b"].inputs[0].value.numpy())
    assert 0 < before.tolerance < 1e-3
    assert len(forcing.outputs["b"][0]) == 1


def test_a_module_that_returns_something_else_returns_what_keras_returns():
    forcing, _ = forcing_of({"a"})
    due = forcing.outputs["a"][0][0].value.movedim(-1, 1)
    assert torch.equal(take_and_return(forcing, due + 0.5), due)
    parting = forcing.partings["a"]
    assert (parting.module, round(parting.difference, 3)) == ("p", 0.5)
    assert parting.shapes == ((2, 6, 5, 3), (2, 3, 6, 5))
    assert forcing.trail == ["a"]
    forcing.exempt.add("a")
    assert take_and_return(forcing, due + 0.5) is None
    forcing.begin_round()
    assert forcing.partings == {}


def test_a_module_is_left_alone_if_it_agrees_or_also_does_what_comes_next_or_has_a_border_or_takes_something_else():
    forcing, _ = forcing_of({"a"})
    due = forcing.outputs["a"][0][0].value.movedim(-1, 1)
    assert take_and_return(forcing, due) is None
    assert take_and_return(forcing, due.relu()) is None
    assert forcing.bordered == set()
    bordered = nn.functional.pad(due, (1, 1))
    assert take_and_return(forcing, bordered) is None
    assert forcing.bordered == {"a"}
    forcing.sizes.add("a")
    assert torch.equal(take_and_return(forcing, bordered), due)
    forcing.taken(nn.Conv2d(3, 3, 3), "p", 1, torch.zeros(2, 3, 6, 5))
    assert forcing.returned(nn.Conv2d(3, 3, 3), ("p", 1), "a", due + 1) is None
    unchecked, _ = forcing_of(set())
    assert take_and_return(unchecked, due + 1) is None


def test_a_module_stands_for_a_part_without_one_unless_another_part_claims_it():
    forcing, parts = forcing_of(set())
    forcing.absent["a"] = parts["a"].inputs
    module, taken = nn.Conv2d(3, 3, 5, padding=2), parts["a"].inputs[0].value.movedim(-1, 1)
    forcing.taken(module, "r", 1, taken)
    forcing.stand(module, "r", 1, set())
    assert torch.equal(
        forcing.returned(module, ("r", 1), None, module(taken)), forcing.outputs["a"][0][0].value.movedim(-1, 1)
    )
    forcing.fits["c"] = ["r"]
    parts["c"] = parts["a"]._replace(label="c")
    forcing.stand(module, "r", 1, set())
    assert forcing.standing == {}
    forcing.stand(module, "r", 1, {"c"})
    assert forcing.standing.keys() == {("r", 1)}


def test_a_module_that_is_fed_takes_what_keras_layer_takes():
    forcing, parts = forcing_of(set())
    forcing.fed["q", 2] = parts["b"].inputs[0]
    module, other = nn.Conv2d(3, 2, 1), torch.zeros(2, 3, 3, 2)
    assert forcing.taken(module, "q", 1, other) is None
    assert torch.equal(forcing.taken(module, "q", 2, other), parts["b"].inputs[0].value.movedim(-1, 1))
    assert forcing.trail == [("q", 2)]

"""What a Keras layer would return with other weights, settings or inputs; the layer stays as it is."""

from parity.models.keras_graph import keras_graph
from parity.models.keras_variants import Variant, last_cells, output_of, scale_settings, steps_reversed, two_ways
from tests.helpers.models import draw, fill, layer

import keras
import numpy as np
import pytest
import torch

L = keras.layers
X = torch.from_numpy(draw(2, 5, 4))


def step_of(make, *shapes):
    """Return the last step of a model in float64 with random weights."""
    inputs = [keras.Input(shape, dtype="float64") for shape in shapes or [(5, 4)]]
    model = fill(keras.Model(inputs, make(*inputs)))
    return keras_graph(model).steps[-1]


def plain(step, *x):
    return output_of(step, x, Variant())


def test_without_a_change_it_is_what_the_layer_returns():
    step = step_of(layer("LSTM", 3))
    assert np.array_equal(plain(step, X), step.layer(X.numpy()).numpy())


def test_other_weights_are_those_of_the_variant_only():
    step = step_of(layer("Dense", 3))
    kernel, bias = step.layer.weights
    before = [weight.numpy() for weight in step.layer.weights]
    found = output_of(step, [X], Variant(weights={kernel.path: torch.zeros(4, 3, dtype=torch.float64)}))
    assert np.allclose(found, np.broadcast_to(bias.numpy(), found.shape))
    assert all(np.array_equal(a, weight.numpy()) for a, weight in zip(before, step.layer.weights, strict=True))


def test_a_setting_of_a_cell_is_changed_for_the_variant_only():
    step = step_of(layer("LSTM", 3))
    changed = output_of(step, [X], Variant(settings={"activation": keras.activations.relu}))
    assert not np.allclose(changed, plain(step, X))
    assert step.layer.cell.activation is keras.activations.tanh


def test_only_one_of_two_equal_inputs_may_be_another():
    step = step_of(lambda x: layer("MultiHeadAttention", 2, 3)(x, x))
    other = X.flip(0)
    expected = step.layer(other.numpy(), X.numpy()).numpy()
    assert np.allclose(output_of(step, [X, X], Variant(inputs={0: other})), expected)


def test_an_argument_is_changed_or_taken_away():
    step = step_of(lambda x: layer("MultiHeadAttention", 2, 3)(x, x, use_causal_mask=True))
    free = step.layer(X.numpy(), X.numpy()).numpy()
    for value in (False, None):
        assert np.allclose(output_of(step, [X, X], Variant(arguments={"use_causal_mask": value})), free)
    assert not np.allclose(plain(step, X, X), free)


def test_what_is_compared_may_be_made_of_the_output():
    step = step_of(layer("GRU", 3, return_sequences=True))
    assert torch.equal(output_of(step, [X], Variant(twin_of=steps_reversed)), plain(step, X).flip(1))


def test_a_variant_that_cannot_be_explains_nothing():
    step = step_of(layer("Dense", 3))
    assert output_of(step, [X], Variant(inputs={0: X[..., :2]})) is None


@pytest.mark.parametrize("backwards", [False, True])
def test_the_sequence_of_one_way_is_in_the_order_of_the_input(backwards):
    step = step_of(layer("GRU", 3, go_backwards=backwards))
    (sequence,) = two_ways(step, [X])
    assert torch.allclose(sequence[:, 0 if backwards else -1], plain(step, X))


def test_the_two_ways_of_a_bidirectional_layer_end_at_its_two_ends():
    step = step_of(layer("Bidirectional", layer("LSTM", 3)))
    forward, backward = two_ways(step, [X])
    assert torch.allclose(torch.cat([forward[:, -1], backward[:, 0]], -1), plain(step, X))
    assert not step.layer.forward_layer.return_sequences


def test_the_cell_of_an_lstm():
    step = step_of(layer("LSTM", 3))
    _, _, cell = layer_with_states(step, X)
    assert np.allclose(last_cells(step, [X]), cell)
    assert last_cells(step_of(layer("GRU", 3)), [X]) is None


def layer_with_states(step, x):
    step.layer.return_state = True
    try:
        return [one.numpy() for one in step.layer(x.numpy())]
    finally:
        step.layer.return_state = False


@pytest.mark.parametrize("kind", [("MultiHeadAttention", 2, 4), ("GroupQueryAttention", 4, 2, 1)])
def test_the_scale_of_an_attention_is_found(kind):
    made = layer(*kind)
    step = step_of(lambda x: made(x, x))
    assert list(scale_settings(step.layer).values()) == [0.5]
    name = next(iter(scale_settings(step.layer)))
    assert not torch.allclose(output_of(step, [X, X], Variant(settings={name: 1.0})), plain(step, X, X))
    assert scale_settings(layer("Dense", 2)) == {}

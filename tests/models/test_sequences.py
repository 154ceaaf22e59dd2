"""What recurrent modules and attention take and return, seen with Keras's axes."""

import parity.recurrent as recurrent
from parity.models.sequences import Seen, count_of_outputs, is_sequence_layer, returned, taken

import keras
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

L = keras.layers
BATCH, STEPS, UNITS = 2, 5, 3


def numbered(*shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("module", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_module_takes_examples_first(module, batch_first):
    x = numbered(BATCH, STEPS, 4)
    given = x if batch_first else x.transpose(0, 1)
    seen = taken(L.LSTM(UNITS), module(4, UNITS, batch_first=batch_first), [given], 0)
    assert torch.equal(seen.tensor, x)
    assert seen.real is None


def test_a_layer_that_goes_backwards_takes_the_last_step_first():
    x = numbered(BATCH, STEPS, 4)
    module = nn.GRU(4, UNITS, batch_first=True)
    assert torch.equal(taken(L.GRU(UNITS, go_backwards=True), module, [x.flip(1)], 0).tensor, x)
    assert torch.equal(taken(L.GRU(UNITS), module, [x.flip(1)], 0).tensor, x.flip(1))


def test_a_state_is_taken_without_the_axis_of_layers():
    state = numbered(1, BATCH, UNITS)
    seen = taken(L.LSTM(UNITS), nn.LSTM(4, UNITS), [numbered(STEPS, BATCH, 4), state], 1)
    assert torch.equal(seen.tensor, state[0])


def test_of_a_packed_sequence_only_the_real_steps_are_compared():
    x = numbered(BATCH, STEPS, 4) + 1
    packed = pack_padded_sequence(x, torch.tensor([2, 5]), batch_first=True, enforce_sorted=False)
    parts = [packed.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices]
    seen = taken(L.LSTM(UNITS), nn.LSTM(4, UNITS, batch_first=True), parts, 0)
    assert seen.real.tolist() == [[True, True, False, False, False], [True] * 5]
    assert torch.equal(seen.tensor[0, :2], x[0, :2])
    assert torch.equal(seen.tensor, seen.value(x))
    assert not torch.equal(seen.tensor, x)


@pytest.mark.parametrize("module", [nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, batch_first=True)])
def test_an_attention_takes_and_returns_examples_first(module):
    x = numbered(BATCH, STEPS, 4)
    given = x if module.batch_first else x.transpose(0, 1)
    layer = L.MultiHeadAttention(2, 2)
    assert torch.equal(taken(layer, module, [given, given], 1).tensor, x)
    assert torch.equal(returned(layer, module, [given], 0).tensor, x)


def run(layer, module, x, position=0):
    out = module(x if getattr(module, "batch_first", True) else x.transpose(0, 1))
    states = out[1] if isinstance(out[1], tuple) else (out[1],)
    return returned(layer, module, [out[0], *states], position).tensor, out[0], states


def test_the_last_step_is_the_last_state():
    x, module = torch.rand(BATCH, STEPS, 4), nn.LSTM(4, UNITS, batch_first=True)
    found, sequence, _ = run(L.LSTM(UNITS), module, x)
    assert torch.equal(found, sequence[:, -1])
    found, sequence, _ = run(L.LSTM(UNITS, return_sequences=True), module, x)
    assert torch.equal(found, sequence)


def test_the_last_step_of_two_directions_is_the_end_of_each():
    x, module = torch.rand(BATCH, STEPS, 4), nn.GRU(4, UNITS, batch_first=True, bidirectional=True)
    layer = L.Bidirectional(L.GRU(UNITS))
    found, sequence, _ = run(layer, module, x)
    assert torch.equal(found, torch.cat([sequence[:, -1, :UNITS], sequence[:, 0, UNITS:]], -1))
    assert not torch.equal(found, sequence[:, -1])


@pytest.mark.parametrize(("merge", "number"), [("sum", 2.0), ("mul", 1.0), ("ave", 1.0)])
def test_two_directions_are_merged_as_keras_merges_them(merge, number):
    layer = L.Bidirectional(L.GRU(UNITS, return_sequences=True), merge_mode=merge)
    module = nn.GRU(4, UNITS, batch_first=True, bidirectional=True)
    both = torch.ones(BATCH, STEPS, 2 * UNITS)
    seen = returned(layer, module, [both, torch.ones(2, BATCH, UNITS)], 0)
    assert torch.equal(seen.tensor, torch.full((BATCH, STEPS, UNITS), number))


def test_states_are_counted_as_keras_returns_them():
    both = L.Bidirectional(L.LSTM(UNITS, return_state=True))
    module = nn.LSTM(4, UNITS, batch_first=True, bidirectional=True)
    assert count_of_outputs(both, module, 3) == 5
    assert count_of_outputs(L.LSTM(UNITS), module, 3) == 1
    assert count_of_outputs(L.GRU(UNITS, return_state=True), module, 2) == 2
    assert count_of_outputs(L.Dense(3), nn.Linear(4, 3), 1) == 1
    x = torch.rand(BATCH, STEPS, 4)
    _, _, (h, c) = run(both, module, x)
    found = [run(both, module, x, position)[0] for position in range(1, 5)]
    assert [torch.equal(a, b) for a, b in zip(found, (h[0], c[0], h[1], c[1]), strict=True)] == [True] * 4


def test_of_several_layers_in_one_module_the_last_is_returned():
    x, module = torch.rand(BATCH, STEPS, 4), nn.GRU(4, UNITS, num_layers=2, batch_first=True)
    found, sequence, states = run(L.GRU(UNITS), module, x)
    assert torch.equal(found, sequence[:, -1])
    assert torch.equal(found, states[0][1])


def test_the_modules_of_parity_are_seen_alike():
    x, module = torch.rand(BATCH, STEPS, 4), recurrent.LSTM(4, UNITS)
    found, sequence, _ = run(L.LSTM(UNITS), module, x)
    assert torch.equal(found, sequence[:, -1])


def test_what_is_no_sequence_module_is_left_as_it_is():
    x = numbered(BATCH, 4)
    assert taken(L.Dense(3), nn.Linear(4, 3), [x], 0) == Seen(x)
    assert returned(L.Dense(3), nn.Linear(4, 3), [x], 0).tensor is x


@pytest.mark.parametrize(
    ("layer", "is_one"),
    [(L.LSTM(2), True), (L.RNN([L.GRUCell(2)]), True), (L.Bidirectional(L.GRU(2)), True), (L.Dense(2), False)],
)
def test_which_layers_are_recurrent(layer, is_one):
    assert is_sequence_layer(layer) is is_one

"""Proposals for recurrent layers, attention and layers of the user's own: rows that move what Keras computes."""

import functools

from course.mutants import load_network
from course.small_models import fill_scaled
from parity import propose_mapping
from tests.proposal.test_propose import Twin, layer, model_of, passes, rows

import keras
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

STEPS = (5, 3)


def pairs(path, module, *, after=False, slot="_l0"):
    """Return the rows of a cell."""
    found = {(f"{path}/kernel", f"{module}.weight_ih{slot}"), (f"{path}/recurrent_kernel", f"{module}.weight_hh{slot}")}
    again = f"{path}/bias" if after else ""
    return found | {(f"{path}/bias", f"{module}.bias_ih{slot}"), (again, f"{module}.bias_hh{slot}")}


@pytest.mark.parametrize("name", ["recurrent", "attention"])
def test_the_networks_of_the_course_get_their_rows(name):
    network = load_network(name)
    probe = network.probes[0]
    proposal = propose_mapping(probe.keras_model, network.build(), probe.x)
    assert (proposal.undecided, proposal.unmatched, proposal.parts_at, proposal.left_over) == ({}, {}, {}, {})
    assert rows(proposal.mapping) == rows(network.mapping)
    # Several weights fill a tensor in the order of their rows.
    for tensor, own in network.mapping.groupby("torch"):
        found = proposal.mapping[proposal.mapping.torch == tensor]
        assert list(found.keras.fillna("")) == list(own.keras.fillna(""))


@pytest.mark.parametrize(
    ("kind", "module"), [("SimpleRNN", nn.RNN), ("LSTM", nn.LSTM), ("GRU", nn.GRU)], ids=["SimpleRNN", "LSTM", "GRU"]
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_two_layers_that_only_numbers_tell_apart(kind, module, batch_first):
    def build(x):
        return layer(kind, 3, name="second")(layer(kind, 3, return_sequences=True, name="first")(x))

    model, x = model_of(STEPS, build)
    first, second = (module(3, 3, batch_first=batch_first) for _ in range(2))

    def run(m, x):
        x = x.mT if batch_first else x.permute(2, 0, 1)
        y, _ = m.p(m.q(x)[0])
        return y[:, -1] if batch_first else y[-1]

    twin = Twin(run, p=second, q=first)
    proposal = propose_mapping(model, twin, x)
    after = kind == "GRU"
    cells = {"SimpleRNN": "simple_rnn_cell", "LSTM": "lstm_cell", "GRU": "gru_cell"}
    assert rows(proposal.mapping) == pairs(f"first/{cells[kind]}", "q", after=after) | pairs(
        f"second/{cells[kind]}", "p", after=after
    )
    assert proposal.unmatched == {}
    assert passes(model, twin, x, proposal)


def test_layers_one_behind_the_other_in_one_module():
    def build(x):
        for name in "abc":
            x = layer("LSTM", 4, return_sequences=name != "c", name=name)(x)
            x = layer("Dropout", 0.5, name=f"drop_{name}")(x)
        return layer("Dense", 2, name="out")(x)

    model, x = model_of(STEPS, build)
    twin = Twin(lambda m, x: m.out(m.rnn(x.mT)[0][:, -1]), rnn=nn.LSTM(3, 4, 3, batch_first=True), out=nn.Linear(4, 2))
    proposal = propose_mapping(model, twin, x)
    expected = [pairs(f"{name}/lstm_cell", "rnn", slot=f"_l{level}") for level, name in enumerate("abc")]
    assert rows(proposal.mapping) == set.union(*expected, {("out/kernel", "out.weight"), ("out/bias", "out.bias")})
    assert (proposal.parts_at, proposal.behind, proposal.unmatched) == ({}, [], {})
    assert passes(model, twin, x, proposal)


def test_a_layer_whose_steps_are_taken_elsewhere_too_is_not_in_one_module_with_the_next():
    def build(x):
        x = layer("GRU", 4, return_sequences=True, name="a")(x)
        y = layer("GRU", 4, return_sequences=True, name="b")(x)
        return layer("Dense", 2, name="out")(layer("Add")([x, y]))

    model, x = model_of(STEPS, build)
    twin = Twin(lambda m, x: m.out(m.rnn(x.mT)[0]).mT, rnn=nn.GRU(3, 4, 2, batch_first=True), out=nn.Linear(4, 2))
    proposal = propose_mapping(model, twin, x)
    assert {"a/gru_cell", "b/gru_cell"} <= proposal.unmatched.keys()
    assert {how for _, key, how in rows(proposal.mapping) if key.startswith("rnn")} == {"by hand"}


def test_forward_and_backward_are_one_module():
    def build(x):
        ways = [layer("LSTM", 4, go_backwards=back, name=name)(x) for name, back in (("there", False), ("back", True))]
        return layer("Dense", 2, name="out")(layer("Concatenate")(ways))

    model, x = model_of(STEPS, build)
    rnn = nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    twin = Twin(lambda m, x: m.out(m.rnn(x.mT)[1][0].transpose(0, 1).flatten(1)), rnn=rnn, out=nn.Linear(8, 2))
    proposal = propose_mapping(model, twin, x)
    expected = pairs("there/lstm_cell", "rnn") | pairs("back/lstm_cell", "rnn", slot="_l0_reverse")
    assert {row for row in rows(proposal.mapping) if row[1].startswith("rnn")} == expected
    assert passes(model, twin, x, proposal)


def test_a_packed_sequence():
    words = keras.Input((5,), dtype="int32")
    y = layer("LSTM", 4, name="rnn")(layer("Embedding", 7, 3, mask_zero=True, name="words")(words))
    model = fill_scaled(keras.Model(words, layer("Dense", 2, name="out")(y)))
    x = np.array([[3, 1, 4, 1, 5], [2, 6, 5, 0, 0]], "int32")  # what stands for no word has numbers, too

    def run(m, x):
        lengths = (x != 0).sum(1)
        packed = pack_padded_sequence(m.words(x), lengths, batch_first=True, enforce_sorted=False)
        return m.out(m.rnn(packed)[1][0][0])

    twin = Twin(run, words=nn.Embedding(7, 3), rnn=nn.LSTM(3, 4, batch_first=True), out=nn.Linear(4, 2))
    proposal = propose_mapping(model, twin, x)
    assert pairs("rnn/lstm_cell", "rnn") <= rows(proposal.mapping)
    assert (len(proposal.mapping), proposal.parts_at, proposal.behind) == (7, {}, [])


class Separate(nn.Module):
    """An attention of one head with four Linear; what they are called says nothing."""

    def __init__(self, order="qkv"):
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(4, 4) for _ in range(4))
        self.order = order

    def forward(self, x):
        """Map (batch, time, 4) to the same."""
        parts = dict(zip(self.order, (self.one(x), self.two(x), self.three(x)), strict=True))
        return self.four(nn.functional.scaled_dot_product_attention(parts["q"], parts["k"], parts["v"]))


@functools.cache
def attention():
    def build(x):
        x = layer("MultiHeadAttention", 1, 4, name="att")(x, x)
        return layer("Dense", 2, name="out")(x)

    return model_of((5, 4), build)


@pytest.mark.parametrize("order", ["qkv", "kvq", "vqk"])
def test_query_key_and_value_are_told_apart_by_what_is_made_of_them(order):
    model, x = attention()
    twin = Twin(lambda m, x: m.out(m.att(x.mT)), att=Separate(order), out=nn.Linear(4, 2))
    proposal = propose_mapping(model, twin, x)
    names = {"q": "query", "k": "key", "v": "value"}
    due = {
        (f"att/{names[one]}/kernel", f"att.{name}.weight")
        for one, name in zip(order, ("one", "two", "three"), strict=True)
    }
    assert due | {("att/attention_output/kernel", "att.four.weight")} <= rows(proposal.mapping)
    assert (len(proposal.mapping), proposal.parts_at) == (10, {})


def test_an_attention_that_is_scaled_otherwise_parts_behind_it():
    model, x = attention()

    def run(m, x):
        q, k, v = m.qkv(x.mT).chunk(3, -1)
        return m.out(m.proj(nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)))

    twin = Twin(run, qkv=nn.Linear(4, 12), proj=nn.Linear(4, 4), out=nn.Linear(4, 2))
    proposal = propose_mapping(model, twin, x)
    assert list(proposal.parts_at) == ["att/attention_output"]
    assert "att/query+key+value" not in proposal.behind


class Table(keras.layers.Layer):
    """A layer of the user's own: a square matrix on the last axis."""

    def build(self, shape):
        """Make the matrix."""
        self.table = self.add_weight(name="table", shape=(shape[-1], shape[-1]))

    def call(self, x):
        """Multiply."""
        return x @ self.table


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_weight_of_a_layer_of_ones_own_is_moved_as_it_is_only_if_what_lies_behind_agrees(turned, last):
    def build(x):
        x = Table(name="table", dtype="float64")(layer("Dense", 4, activation="tanh", name="a")(x))
        return x if last else layer("Dense", 3, name="b")(x)

    model, x = model_of((4,), build)

    def run(m, x):
        x = torch.tanh(m.a(x)) @ (m.matrix.T if turned else m.matrix)
        return x if last else m.b(x)

    twin = Twin(run, a=nn.Linear(4, 4), **({} if last else {"b": nn.Linear(4, 3)}))
    twin.matrix = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    found = {row for row in rows(propose_mapping(model, twin, x).mapping) if row[2:] > ("",)}
    moved = {("table/table", "matrix", "as it is")}
    if turned:
        assert found != moved
        assert {how for *_, how in found} == {"by hand"}
    else:
        assert found == moved


def test_dense_is_a_convolution_with_a_kernel_of_1():
    model, x = model_of((5, 6, 3), lambda x: layer("Dense", 2, name="b")(layer("Dense", 3, name="a")(x)))
    twin = Twin(lambda m, x: m.q(m.p(x)), p=nn.Conv2d(3, 3, 1), q=nn.Conv2d(3, 2, 1))
    proposal = propose_mapping(model, twin, x)
    names = (("kernel", "weight"), ("bias", "bias"))
    assert rows(proposal.mapping) == {(f"{a}/{k}", f"{b}.{t}") for a, b in ("ap", "bq") for k, t in names}
    assert passes(model, twin, x, proposal)


class Norm(nn.Module):
    """LayerNorm on axis 1, as ConvNeXt has it."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(channels)) for _ in range(2))

    def forward(self, x):
        """Keep the shape (batch, channels, height, width)."""
        y = nn.functional.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, 1e-3)
        return y.movedim(-1, 1)


def test_a_normalization_of_ones_own():
    def build(x):
        return layer("Conv2D", 2, 1, name="conv")(layer("LayerNormalization", name="norm")(x))

    model, x = model_of((5, 6, 3), build)
    twin = Twin(lambda m, x: m.conv(m.norm(x)), norm=Norm(3), conv=nn.Conv2d(3, 2, 1))
    proposal = propose_mapping(model, twin, x)
    assert {("norm/gamma", "norm.weight"), ("norm/beta", "norm.bias")} <= rows(proposal.mapping)
    assert passes(model, twin, x, proposal)


class Scale(keras.layers.Layer):
    """A layer of the user's own: a factor for each channel, as LayerScale."""

    def build(self, shape):
        """Make the factors."""
        self.gamma = self.add_weight(name="gamma", shape=(shape[-1],))

    def call(self, x):
        """Multiply."""
        return self.gamma * x


class Block(nn.Module):
    """Two matrices, each with its scale and a skip."""

    def __init__(self, *shape):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for _ in range(2))
        self.scales = True

    def forward(self, x):
        """Keep the shape (batch, 4)."""
        a, b = (self.gamma_1, self.gamma_2) if self.scales else (1.0, 1.0)
        x = x + a * torch.tanh(self.one(x))
        return x + b * torch.tanh(self.two(x))


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
@pytest.mark.parametrize("without", [None, 0, 1, 2])
def test_tensors_of_blocks_that_are_alike(without, shape):
    """Which block a scale belongs to is told by the layers around it, and proved by what lies behind."""

    def build(x):
        for number in range(6):
            y = layer("Dense", 4, activation="tanh", name=f"d{number}")(x)
            x = layer("Add")([x, Scale(name=f"s{number}", dtype="float64")(y)])
        return layer("Dense", 3, name="last")(x)

    model, x = model_of((4,), build)
    blocks = nn.Sequential(*(Block(*shape) for _ in range(3)))
    twin = Twin(lambda m, x: m.last(m.blocks(x)), blocks=blocks, last=nn.Linear(4, 3))
    if without is not None:
        blocks[without].scales = False
    proposal = propose_mapping(model, twin, x)
    moved = {row for row in rows(proposal.mapping) if row[2:] == ("as it is",)}
    right = 6 if without is None else 2 * without
    assert moved == {(f"s{k}/gamma", f"blocks.{k // 2}.gamma_{k % 2 + 1}", "as it is") for k in range(right)}
    assert (without is not None) or passes(model, twin, x, proposal)


class Normalized(nn.Module):
    """Normalize by buffers of these names."""

    def __init__(self, mean, scale):
        super().__init__()
        for name in (mean, scale):
            self.register_buffer(name, torch.ones(3, dtype=torch.float64))
        self.names = (mean, scale)

    def forward(self, x):
        """Keep the shape (batch, 3, height, width)."""
        mean, scale = (getattr(self, name)[:, None, None] for name in self.names)
        return (x - mean) / (scale if "std" in self.names[1] else scale.sqrt())


@pytest.mark.parametrize("names", [("mean", "variance"), ("mean", "std"), ("pixel_mean", "pixel_std")])
def test_a_normalization_of_inputs_in_a_module_with_buffers(names):
    def build(x):
        return layer("Conv2D", 2, 1, name="conv")(layer("Normalization", name="norm")(x))

    model, x = model_of((5, 6, 3), build)
    model.get_layer("norm").adapt(np.random.default_rng(0).normal([0.5, 0.4, 0.3], 0.2, (9, 5, 6, 3)))
    twin = Twin(lambda m, x: m.conv(m.norm(x)), norm=Normalized(*names), conv=nn.Conv2d(3, 2, 1))
    proposal = propose_mapping(model, twin, x)
    assert (proposal.unmatched, proposal.left_over) == ({}, {})
    due = {(f"norm/{own}", f"norm.{tensor}") for own, tensor in zip(("mean", "variance"), names, strict=True)}
    assert due <= {row[:2] for row in rows(proposal.mapping)}

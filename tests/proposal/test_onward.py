"""Behind a mistake the search goes on: what lies there is found, and it is said where the twin parts."""

from course.mutants import load_network
from parity import diagnose, propose_mapping, transfer
from parity.proposal.search import Search
from tests.helpers.models import Twin, model_of, norm, snapshot, x_of

import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn

X = x_of(2, 8, 9, 3)


def found(layers, twin, x=X, **names):
    """Return the proposal for a right or wrong twin, and the module of each layer in it."""
    proposal = propose_mapping(model_of(x.shape[1:], layers), twin.eval(), x, names=names)
    rows = proposal.mapping.to_numpy()
    return proposal, {row[0].rpartition("/")[0]: row[1].rpartition(".")[0] for row in rows if row[0]}


def chain(count, norms=True, activation="relu"):
    def layers(x):
        for k in range(count):
            x = L.Conv2D(4, 3, padding="same", name=f"c{k}")(x)
            x = L.BatchNormalization(name=f"n{k}")(x) if norms else x
            x = L.Activation(activation)(x)
        return L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x))

    return layers


def modules(count, channels=3, **more):
    """Return the modules of the twin of ``chain``; they are called c0 and so on, too, but for the name."""
    made = {}
    for k in reversed(range(count)):
        made[f"m{k}"] = nn.Conv2d(4 if k else channels, 4, 3, padding=1)
        made[f"b{k}"] = norm(4)
    return made | {"head": nn.Linear(4, 2)} | more


def chained(count, activation=torch.relu, order=None):
    def run(t, x):
        for k in order or range(count):
            x = activation(getattr(t, f"b{k}")(getattr(t, f"m{k}")(x)))
        return t.head(x.mean((2, 3)))

    return run


RIGHT = {f"{a}{k}": f"{b}{k}" for k in range(4) for a, b in (("c", "m"), ("n", "b"))} | {"head": "head"}


@pytest.fixture
def runs(monkeypatch):
    """Return a list that gets an entry for each run of a copy of a twin."""
    counted, run = [], Search.run_twin
    monkeypatch.setattr(Search, "run_twin", lambda self, *args: counted.append(1) or run(self, *args))
    return counted


def test_every_module_with_another_setting_is_found_in_two_runs(runs):
    twin = Twin(chained(4), **modules(4))
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-1
    before = snapshot(twin)
    proposal, pairs = found(chain(4), twin)
    assert pairs == RIGHT
    assert list(proposal.parts_at) == ["n0", "n1", "n2", "n3"]
    assert all("takes what it takes, and returns something else, " in why for why in proposal.parts_at.values())
    assert proposal.behind == ["c1", "n1", "c2", "n2", "c3", "n3", "head"]
    assert (proposal.unmatched, proposal.undecided, proposal.left_over) == ({}, {}, {})
    assert snapshot(twin) == before
    assert len(runs) == 2
    assert not any(module._forward_hooks for module in twin.modules())


def test_every_function_that_is_another_is_passed_by_a_run_of_its_own(runs):
    proposal, pairs = found(chain(4), Twin(chained(4, torch.tanh), **modules(4)))
    assert pairs == RIGHT
    assert list(proposal.parts_at) == ["c1", "c2", "c3", "head"]
    assert proposal.parts_at["c2"].startswith("no module takes what it takes: m2 comes nearest, ")
    assert proposal.parts_at["c2"].endswith("; look at n1 (b1) and what follows")
    assert proposal.behind == ["c1", "n1", "c2", "n2", "c3", "n3", "head"]
    assert len(runs) == 6
    text = str(proposal).split("\n  ")
    assert text[1] == f"the twin parts at c1: {proposal.parts_at['c1']}"
    assert text[5] == (
        "behind a mistake or a layer without a twin, so right if nothing else is wrong: c1, n1, c2, n2, c3, n3, head"
    )


def test_behind_a_function_the_module_of_the_layers_name_comes_before_the_next_one_that_is_called():
    def layers(x):
        x = L.Flatten()(x)
        a, b = (L.Dense(4, name=name)(L.ReLU()(L.Dense(5, name=f"{name}0")(x))) for name in "ab")
        return a, b

    def run(t, x):
        flat = x.movedim(1, -1).flatten(1)
        b, a = t.u(flat).tanh(), t.v(flat).tanh()
        return t.a(a), t.b(b)

    names = {"u": nn.Linear(216, 5), "v": nn.Linear(216, 5), "a": nn.Linear(5, 4), "b": nn.Linear(5, 4)}
    proposal, pairs = found(layers, Twin(run, **names), a0="v", b0="u")
    assert (pairs["a"], pairs["b"]) == ("a", "b")
    assert {*proposal.parts_at} == {*proposal.behind} == {"a", "b"}


def test_a_border_is_looked_for_where_it_begins():
    """The convolution returns 33 steps for 32; BatchNormalization takes them all the same, and pooling does not."""

    def layers(x):
        x = L.BatchNormalization(name="n")(L.Conv1D(3, 6, padding="same", use_bias=False, name="a")(x))
        return L.Conv1D(2, 3, name="b")(L.AveragePooling1D(4, name="pool")(x))

    parts = {"a": nn.Conv1d(1, 3, 6, padding=3, bias=False), "n": norm(3, nn.BatchNorm1d), "b": nn.Conv1d(3, 2, 3)}
    x = x_of(2, 32, 1)
    proposal, pairs = found(layers, Twin(lambda t, z: t.b(F.avg_pool1d(t.n(t.a(z)), 4)), **parts), x)
    assert pairs == {"a": "a", "n": "n", "b": "b"}
    assert proposal.parts_at == {
        "a": "a takes what it takes, and returns another shape, (2, 3, 33), where Keras's layer returns (2, 32, 3)"
    }
    assert proposal.behind == ["b"]

    proposal, _ = found(layers, Twin(lambda t, z: t.b(F.avg_pool1d(t.n(t.a(z))[..., 1:], 4)), **parts), x)
    assert (proposal.parts_at, proposal.behind) == ({}, [])  # what cuts it off later is right

    late = Twin(lambda t, z: t.b(F.avg_pool1d(t.n(t.a(z))[..., 1:], 4).tanh()), **parts)
    proposal, pairs = found(layers, late, x)
    assert pairs == {"a": "a", "n": "n", "b": "b"}
    assert list(proposal.parts_at) == ["b"]


def test_what_stands_for_a_layer_that_no_module_fits_returns_what_the_layer_returns():
    """The second of four convolutions has another kernel; the one after it must not take its place."""

    def layers(x):
        for k in range(4):
            x = L.Conv2D(4, 5 if k == 1 else 3, padding="same", activation="relu", name=f"c{k}")(x)
        return x

    def run(t, x):
        for name in "abcd":
            x = getattr(t, name)(x).relu()
        return x

    convs = {name: nn.Conv2d(3 if name == "a" else 4, 4, 3, padding=1) for name in "dcba"}
    proposal, pairs = found(layers, Twin(run, **convs))
    assert pairs == {"c0": "a", "c2": "c", "c3": "d"}
    assert proposal.unmatched == {
        "c1": "no module fits; it needs a Conv2d with weight (4, 4, 5, 5), bias (4,); b (Conv2d) takes what it takes"
    }
    assert (proposal.parts_at, proposal.behind, proposal.left_over) == ({}, [], {})


def test_where_nothing_stands_for_a_layer_what_follows_is_given_what_it_takes():
    def layers(x):
        return L.Dense(2, name="out")(L.ReLU()(L.Dense(7, name="missing")(L.Dense(4, name="first")(x))))

    twin = Twin(lambda t, x: t.out(F.pad(t.first(x), (0, 3)).relu()), first=nn.Linear(6, 4), out=nn.Linear(7, 2))
    proposal, pairs = found(layers, twin, x_of(2, 6))
    assert pairs == {"first": "first", "out": "out"}
    assert proposal.unmatched == {"missing": "no module fits; it needs a Linear with weight (7, 4), bias (7,)"}
    assert (proposal.parts_at, proposal.behind) == ({}, ["out"])


def test_a_twin_that_stops_if_it_is_given_a_shape_it_does_not_expect_is_left_alone_there():
    """Keras keeps 8 steps, the twin's convolution returns 6, and the twin adds 6 to it."""

    def layers(x):
        x = L.Conv1D(3, 3, padding="same", name="a")(x)
        return L.Dense(2, name="b")(L.GlobalAveragePooling1D()(x))

    def run(t, x):
        return t.b((t.a(x).tanh() + torch.ones(6)).mean(2))

    proposal, pairs = found(layers, Twin(run, a=nn.Conv1d(4, 3, 3), b=nn.Linear(3, 2)), x_of(2, 8, 4))
    assert pairs == {"a": "a", "b": "b"}
    assert proposal.parts_at["a"].endswith("returns another shape, (2, 3, 6), where Keras's layer returns (2, 8, 3)")
    assert proposal.parts_at["b"].startswith("no module takes what it takes: b comes nearest, ")
    assert proposal.behind == ["b"]


def test_a_mistake_in_one_of_two_branches_leaves_the_other_certain():
    def layers(x):
        a = L.Dense(5, name="a2")(L.LayerNormalization(name="a1")(x))
        b = L.Dense(5, name="b2")(L.Dense(4, activation="tanh", name="b1")(x))
        return L.Dense(3, name="c")(L.Add()([a, b]))

    names = {"p": nn.LayerNorm(6, 1e-1), "q": nn.Linear(6, 5), "r": nn.Linear(6, 4), "s": nn.Linear(4, 5)}
    twin = Twin(lambda t, x: t.c(t.s(t.r(x).tanh()) + t.q(t.p(x))), **names, c=nn.Linear(5, 3))
    proposal, pairs = found(layers, twin, x_of(2, 6))
    assert pairs == {"a1": "p", "a2": "q", "b1": "r", "b2": "s", "c": "c"}
    assert list(proposal.parts_at) == ["a1"]
    assert proposal.behind == ["a2", "c"]


@pytest.mark.parametrize("name", ["signal", "residual", "flat"])
def test_a_right_twin_parts_nowhere(name):
    network = load_network(name)
    proposal = propose_mapping(network.probes[0].keras_model, network.build(), network.probes[0].x)
    assert (proposal.parts_at, proposal.behind, proposal.unmatched) == ({}, [], {})


def test_diagnose_works_on_what_was_found_behind_a_mistake():
    model = model_of((8, 9, 3), chain(4))
    twin = Twin(chained(4), **modules(4))
    twin.b1.eps = 1e-1
    mapping = propose_mapping(model, twin.eval(), X).mapping
    twin.b1.eps = 1e-3
    transfer(model, twin, mapping)
    twin.b1.eps = 1e-1
    diagnosis = diagnose(model, twin, X, mapping)
    assert (diagnosis.divergence.layer, [cause.cause for cause in diagnosis.causes]) == ("n1", ["epsilon"])


def test_of_two_heads_in_one_module_it_is_said_what_to_write():
    """Whose rows come first does not show in what the module takes."""

    def build(x):
        x = L.Dense(5, activation="relu", name="hidden")(x)
        return [L.Dense(1, name=name)(x) for name in ("steer", "collide")]

    model, x = model_of((7,), build), x_of(2, 7)
    twin = Twin(lambda m, x: m.heads(m.hidden(x).relu()).split(1, 1), hidden=nn.Linear(7, 5), heads=nn.Linear(5, 2))
    said = "\n".join(propose_mapping(model, twin, x).unmatched.values())
    assert "heads (Linear) takes what it takes, and has room for more layers: write a row for each of them" in said

"""A proposed mapping is right row by row, leaves open what numbers cannot decide, and says where they stop agreeing."""

import functools
import itertools
import random
from pathlib import Path

from course.mutants import Probe, load_network, run_keras, run_twin
from course.small_models import fill_scaled
from keras_model import resnet8
from parity import ParityError, propose_mapping, read_mapping, transfer
from parity.axes import torch_input
from parity.proposal.failures import Failure
from parity.proposal.found import Found, union
from tests.helpers.models import draw, snapshot, spoil
from tests.helpers.random_ports import right_ports
from torch_model import ResNet8

import keras
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

CSV = Path(__file__).parents[2] / "keras_torch_mapping.csv"
L = keras.layers


def rows(mapping):
    return {tuple(row) for row in mapping.fillna("").to_numpy()}


def layer(kind, *args, **kwargs):
    return getattr(L, kind)(*args, **({"dtype": "float64"} | kwargs))


def model_of(shape, build, *more):
    """Return a Keras model in float64 with random weights, and inputs: ``build`` takes symbolic inputs."""
    inputs = [keras.Input(s, dtype="float64") for s in (shape, *more)]
    model = fill_scaled(keras.Model(inputs if more else inputs[0], build(*inputs)))
    return model, [draw(2, *s, seed=k) for k, s in enumerate((shape, *more), start=9)]


def passes(model, twin, x, proposal):
    """Tell whether a proposal moves all weights, and the twin then returns what the Keras model returns."""
    transfer(model, spoil(twin), proposal.mapping, proposal.flatten)
    pairs = zip(run_keras(Probe(model, x)), run_twin(twin, x), strict=True)
    return all(np.abs(a - b).max() < 1e-5 for a, b in pairs)


def refuse(model, twin, x, **kwargs):
    with pytest.raises(ParityError) as caught:
        propose_mapping(model, twin, x, **kwargs)
    return caught.value.faults


class Twin(nn.Module):
    """A twin in float64: its modules by name, and a function of it and its inputs."""

    def __init__(self, run, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = run
        self.double()

    def forward(self, *x):
        """Run the function."""
        return self.run(self, *x)


# --- DroNet ---------------------------------------------------------------------------------------------------------


def scramble(twin, seed):
    """Register the modules of a twin in a random order, under random names; return {former name: name}."""
    drawn = random.Random(seed)
    names, new = {}, {"": ""}
    for former, module in list(twin.named_modules()):
        children = list(module._modules.items())
        drawn.shuffle(children)
        aliases = {name: f"{drawn.choice('abcxyz')}{number}" for number, (name, _) in enumerate(children)}
        for name in aliases:
            new[f"{former}.{name}".strip(".")] = f"{new[former]}.{aliases[name]}".strip(".")
        names[former] = new[former]
        if children:
            module._modules = {aliases[name]: child for name, child in children}
            module.aliases = aliases
            module.__class__ = type("Scrambled", (type(module),), {"__getattr__": _by_alias})
    return names


def _by_alias(module, name):
    return nn.Module.__getattr__(module, module.__dict__.get("aliases", {}).get(name, name))


@functools.cache
def dronet():
    return fill_scaled(resnet8(37, 41, 1, 1)), draw(2, 41, 37, 1).astype("float32")


def renamed(names):
    """Return the rows of the mapping file, with other names of modules."""
    split = [(path, *key.rpartition(".")[::2]) for path, key in rows(read_mapping(CSV))]
    return {(path, f"{names[module]}.{tensor}") for path, module, tensor in split}


@pytest.mark.parametrize("seed", range(3))
def test_dronet_is_found_but_for_the_heads_whatever_its_modules_are_called(seed):
    model, x = dronet()
    twin = ResNet8(37, 41, 1, 1).train()
    names = scramble(twin, seed)
    before = snapshot(model), snapshot(twin), torch.get_rng_state()
    proposal = propose_mapping(model, twin, x)
    heads = {names["steer"], names["coll"]}
    assert rows(proposal.mapping) == {row for row in renamed(names) if row[1].rpartition(".")[0] not in heads}
    assert {layer: set(modules) for layer, modules in proposal.undecided.items()} == {
        "dense_1": heads,
        "dense_2": heads,
    }
    assert (proposal.unmatched, proposal.flatten, proposal.by_name) == ({}, {}, {})
    assert (before[0], before[1]) == (snapshot(model), snapshot(twin))
    assert torch.equal(before[2], torch.get_rng_state())
    assert all(module.training and not module._forward_pre_hooks for module in twin.modules())
    with pytest.raises(ParityError, match="no row for Keras weight dense_1/kernel"):
        transfer(model, twin, proposal.mapping)

    whole = propose_mapping(model, twin, x, names={"dense_1": names["steer"]})
    assert rows(whole.mapping) == renamed(names)
    assert list(whole.mapping["torch"]) == list(twin.state_dict())
    assert passes(model, twin, [x], whole)


def test_the_reader_decides_the_heads_and_gets_the_file_that_comes_with_the_project(tmp_path):
    model, x = dronet()
    proposal = propose_mapping(model, ResNet8(37, 41, 1, 1), x, names={"dense_1": "steer", "dense_2": "coll"})
    proposal.mapping.to_csv(tmp_path / "names.csv", index=False)
    assert (tmp_path / "names.csv").read_text() == CSV.read_text()
    again = read_mapping(tmp_path / "names.csv")
    assert again.equals(proposal.mapping)
    assert again.index.name == proposal.mapping.index.name


def test_a_proposal_says_what_is_open():
    model, x = dronet()
    lines = str(propose_mapping(model, ResNet8(37, 41, 1, 1), x)).split("\n  ")
    assert sorted(lines) == ["50 rows", *(f"dense_{n}: undecided: steer or coll" for n in (1, 2))]


# --- Other networks: 1D, nested, shared, separable, several inputs, flattened channels first ------------------------


@pytest.mark.parametrize(
    "name", ["signal", "encoder", "dense", "residual", "pooling", "flat", "heads", "nested", "channels_first"]
)
def test_the_small_networks_are_found_whole(name):
    network = load_network(name)
    model, x = network.probes[0].keras_model, network.probes[0].x
    twin = network.build()
    proposal = propose_mapping(model, twin, x)
    assert rows(proposal.mapping) == rows(network.mapping)
    assert (proposal.undecided, proposal.unmatched) == ({}, {})
    assert proposal.flatten == (network.flatten or {})
    assert proposal.by_name == ({"left": "left", "right": "right"} if name == "heads" else {})
    assert passes(model, twin, x, proposal)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(right_ports())
def test_no_row_is_a_guess(port):
    proposal = propose_mapping(port.keras_model, port.twin, port.x)
    true = rows(port.mapping)
    assert rows(proposal.mapping) <= true
    for part, candidates in proposal.undecided.items():
        right = {key.rpartition(".")[0] for path, key in true if path.startswith((f"{part}/", f"{part}_kernel"))}
        assert len(right) == 1
        assert right <= set(candidates)
    reasons = [why for why in proposal.unmatched.values() if "in which order" not in why and "lies behind" not in why]
    assert reasons == []
    assert (proposal.parts_at, proposal.left_over) == ({}, {})


def test_a_proposal_with_two_modules_exchanged_does_not_pass():
    network = load_network("dense")
    model, x, twin = network.probes[0].keras_model, network.probes[0].x, network.build()
    proposal = propose_mapping(model, twin, x)
    squares = [name for name, module in twin.named_modules() if getattr(module, "out_features", 0) == 8]
    assert len(squares) == 4
    for a, b in itertools.combinations(squares, 2):
        swap = {f"{m}.{t}": f"{n}.{t}" for m, n in ((a, b), (b, a)) for t in ("weight", "bias")}
        keys = twin.state_dict()
        torch_column = [swap[k] if swap.get(k) in keys else k for k in proposal.mapping["torch"]]
        wrong = proposal._replace(mapping=proposal.mapping.assign(torch=torch_column))
        try:
            assert not passes(model, twin, x, wrong), (a, b)
        except ParityError:
            assert "8" in (a, b)  # the one without a bias


def test_the_layer_in_a_time_distributed():
    model, x = model_of((5, 3), lambda x: layer("TimeDistributed", layer("Dense", 4, name="inner"))(x))
    twin = Twin(lambda m, x: m.fc(x.transpose(1, 2)).transpose(1, 2), fc=nn.Linear(3, 4))
    proposal = propose_mapping(model, twin, x)
    assert list(proposal.mapping["torch"]) == ["fc.weight", "fc.bias"]
    assert passes(model, twin, x, proposal)


class NormOfPixels(nn.Module):
    """A normalization of each pixel's channels, at axis 1, in a class of one's own."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = 1e-3

    def forward(self, x):
        """Map (b, c, h, w) to the same."""
        y = x - x.mean(1, keepdim=True)
        y = y / (y.square().mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight[:, None, None] * y + self.bias[:, None, None]


def test_modules_of_other_kinds_that_transfer_takes():
    """Dense as a 1 x 1 convolution, before and behind pooling; a 1 x 1 convolution as Linear; a norm of one's own."""

    def build(x):
        x = layer("LayerNormalization", name="norm")(layer("Dense", 6, name="a")(x))
        x = layer("GlobalAveragePooling2D", keepdims=True)(layer("Dense", 6, name="b")(x))
        x = layer("Flatten")(layer("Conv2D", 6, 1, name="c")(x))
        return layer("Dense", 6, name="d")(x)

    model, x = model_of((4, 5, 6), build)
    modules = {"q": nn.Conv2d(6, 6, 1), "p": nn.Conv2d(6, 6, 1), "s": nn.Conv2d(6, 6, 1), "r": nn.Linear(6, 6)}

    def run(m, x):
        x = m.p(m.norm(m.q(x))).mean((2, 3))
        return m.s(m.r(x)[:, :, None, None]).flatten(1)

    twin = Twin(run, norm=NormOfPixels(6), **modules)
    proposal = propose_mapping(model, twin, x)
    assert rows(proposal.mapping) >= {
        ("a/kernel", "q.weight"),
        ("b/kernel", "p.weight"),
        ("c/kernel", "r.weight"),
        ("d/kernel", "s.weight"),
        ("norm/gamma", "norm.weight"),
    }
    assert passes(model, twin, x, proposal)


def test_weights_that_only_one_of_both_has():
    def build(x):
        x = layer("Dense", 4, use_bias=False, name="a")(x)
        return layer("BatchNormalization", scale=False, name="b")(x)

    model, x = model_of((3,), build)
    twin = Twin(lambda m, x: m.bn(m.fc(x)), bn=nn.BatchNorm1d(4, 1e-3, 0.01), fc=nn.Linear(3, 4))
    proposal = propose_mapping(model, twin, x)
    assert list(map(tuple, proposal.mapping.to_numpy())) == [
        ("", "bn.weight"),
        ("b/beta", "bn.bias"),
        ("b/moving_mean", "bn.running_mean"),
        ("b/moving_variance", "bn.running_var"),
        ("", "bn.num_batches_tracked"),
        ("a/kernel", "fc.weight"),
        ("", "fc.bias"),
    ]
    assert passes(model, twin, x, proposal)


@pytest.mark.parametrize("value", [0, 7, float("nan")])
def test_the_weights_that_the_twin_has_do_not_matter(value):
    network = load_network("residual")
    twin = network.build()
    for tensor in twin.state_dict().values():
        tensor.fill_(0 if tensor.dtype == torch.int64 else value)
    proposal = propose_mapping(network.probes[0].keras_model, twin, network.probes[0].x)
    assert rows(proposal.mapping) == rows(network.mapping)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_twin_of_less_precision(dtype):
    network = load_network("residual")
    proposal = propose_mapping(network.probes[0].keras_model, network.build().to(dtype), network.probes[0].x)
    assert rows(proposal.mapping) == rows(network.mapping)


def test_inputs_of_the_twins_own():
    network = load_network("pooling")
    model, x = network.probes[0].keras_model, network.probes[0].x
    twin = Twin(lambda m, x: m.inner(x * 2), inner=network.build())
    proposal = propose_mapping(model, twin, x, torch_x=[torch_input(x[0]) / 2])
    assert rows(proposal.mapping) == {(path, f"inner.{key}") for path, key in rows(network.mapping)}
    twice = propose_mapping(model, twin, x)
    assert rows(twice.mapping) == {(path, f"inner.{key}") for path, key in rows(network.mapping)}
    assert list(twice.parts_at) == ["conv"]
    assert twice.parts_at["conv"].endswith("; look at what the twin does to its input")
    assert twice.behind == ["conv", "hidden", "head"]


# --- Ties -----------------------------------------------------------------------------------------------------------


WEIGHTS = (("kernel", "weight"), ("bias", "bias"))


def four(**more):
    """Return Linear modules of one shape, and others."""
    return {name: nn.Linear(4, 4) for name in "pqrs"} | more


def test_what_lies_behind_a_sum_is_found_although_its_terms_are_open():
    def build(x):
        x = layer("Add")([layer("Dense", 4, name="a")(x), layer("Dense", 4, name="b")(x)])
        return layer("Dense", 4, name="d")(layer("Dense", 4, activation="relu", name="c")(x))

    model, x = model_of((4,), build)
    twin = Twin(lambda m, x: m.q(torch.relu(m.s(m.r(x) + m.p(x)))), **four())
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided == {"a": ["p", "r"], "b": ["p", "r"]}
    assert rows(proposal.mapping) == {(f"{k}/{w}", f"{t}.{v}") for k, t in ("cs", "dq") for w, v in WEIGHTS}
    for choice in "pr":
        assert passes(model, twin, x, propose_mapping(model, twin, x, names={"b": choice}))


def concatenated(x):
    return layer("Concatenate")([layer("Dense", 4, name=name)(x) for name in "ab"])


def test_a_tie_is_decided_by_the_layer_that_takes_both():
    model, x = model_of((4,), lambda x: layer("Dense", 3, name="c")(concatenated(x)))
    twin = Twin(
        lambda m, x: m.fc(torch.cat([m.r(x), m.q(x)], 1)), q=nn.Linear(4, 4), r=nn.Linear(4, 4), fc=nn.Linear(8, 3)
    )
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided == proposal.unmatched == {}
    assert ("a/kernel", "r.weight") in rows(proposal.mapping)
    assert passes(model, twin, x, proposal)


def test_a_tie_is_not_decided_if_the_layer_that_could_takes_something_else():
    """The twin forgets an activation: the tie stays open, and what lies behind the mistake is found."""
    model, x = model_of((4,), lambda x: layer("Dense", 3, name="c")(layer("ReLU")(concatenated(x))))
    twin = Twin(
        lambda m, x: m.fc(torch.cat([m.r(x), m.q(x)], 1)), q=nn.Linear(4, 4), r=nn.Linear(4, 4), fc=nn.Linear(8, 3)
    )
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided == {"a": ["q", "r"], "b": ["q", "r"]}
    assert list(proposal.parts_at) == proposal.behind == ["c"]
    assert rows(proposal.mapping) == {("c/kernel", "fc.weight"), ("c/bias", "fc.bias")}


def test_a_mistake_farther_on_does_not_open_a_tie_that_was_decided():
    def build(x):
        x = layer("LayerNormalization", name="c")(concatenated(x))
        return layer("Dense", 3, name="e")(layer("Dense", 3, activation="tanh", name="d")(x))

    model, x = model_of((4,), build)
    modules = {"q": nn.Linear(4, 4), "r": nn.Linear(4, 4), "ln": nn.LayerNorm(8, 1e-5)}
    modules |= {"d": nn.Linear(8, 3), "e": nn.Linear(3, 3)}
    twin = Twin(lambda m, x: m.e(torch.tanh(m.d(m.ln(torch.cat([m.r(x), m.q(x)], 1))))), **modules)
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided == {}
    assert list(proposal.parts_at) == ["c"]
    assert proposal.parts_at["c"].startswith("ln takes what it takes, and returns something else, ")
    assert proposal.behind == ["d", "e"]
    assert set(proposal.mapping["torch"]) == {f"{m}.{t}" for m in modules for t in ("weight", "bias")}
    assert ("a/kernel", "r.weight") in rows(proposal.mapping)


def test_a_mistake_that_both_trials_meet_leaves_the_tie_open():
    """With the wrong trial one layer more finds a module than with the right one; that must not decide.

    Nor may what is found behind the mistake, where ``z`` is given the module that the twin calls next.
    """

    def build(x):
        a, b = (layer("Dense", 4, name=name)(x) for name in "ab")
        ends = [
            layer("Dense", 4, name="y")(layer("ReLU")(a)),
            layer("Dense", 4, name="z")(layer("Activation", "softplus")(b)),
        ]
        return ends

    model, x = model_of((4,), build)
    twin = Twin(lambda m, x: (m.q(torch.sin(m.p(x))), m.s(torch.relu(m.r(x)))), **four())
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided["a"] == proposal.undecided["b"] == ["p", "r"]
    assert list(proposal.parts_at) == proposal.behind == ["z"]
    assert {path for path, _ in rows(proposal.mapping)} == {"z/kernel", "z/bias"}


def towers(x):
    """Two towers of one shape, beside each other, whose ends are added or returned."""
    return [layer("Dense", 4, name=f"{name}2")(layer("Dense", 4, activation="tanh", name=name)(x)) for name in "ab"]


def tower_twin(join, **modules):
    return Twin(lambda m, x: join(m, m.q(torch.tanh(m.p(x))), m.s(torch.tanh(m.r(x)))), **(four() | modules))


def test_two_towers_that_nothing_tells_apart_stay_open_together():
    model, x = model_of((4,), towers)
    twin = tower_twin(lambda m, a, b: (a, b))
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided == {"a": ["p", "r"], "b": ["p", "r"], "a2": ["q", "s"], "b2": ["q", "s"]}
    assert len(proposal.mapping) == 0
    decided = propose_mapping(model, twin, x, names={"b2": "s"})
    assert decided.undecided == {}
    assert passes(model, twin, x, decided)


def test_two_towers_that_a_later_layer_tells_apart():
    model, x = model_of((4,), lambda x: layer("Dense", 2, name="c")(layer("Subtract")(towers(x))))
    twin = tower_twin(lambda m, a, b: m.fc(b - a), fc=nn.Linear(4, 2))
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided == {}
    assert {("a/kernel", "r.weight"), ("a2/kernel", "s.weight")} <= rows(proposal.mapping)
    assert passes(model, twin, x, proposal)


def test_equal_names_decide_what_numbers_cannot_and_the_rest_follows():
    model, x = model_of((4,), towers)
    twin = Twin(lambda m, x: (m.v(torch.tanh(m.b(x))), m.w(torch.tanh(m.c(x)))), **{k: nn.Linear(4, 4) for k in "bcvw"})
    proposal = propose_mapping(model, twin, x)
    assert proposal.by_name == {"b": "b"}
    assert proposal.undecided == {}
    assert {("b2/kernel", "v.weight"), ("a/kernel", "c.weight")} <= rows(proposal.mapping)
    assert "b: b, by its name" in str(proposal)


def test_names_that_contradict_each_other_decide_nothing():
    model, x = model_of((4,), towers)
    twin = Twin(lambda m, x: (m.a2(torch.tanh(m.b(x))), m.b2(torch.tanh(m.a(x)))))
    for name in ("a", "b", "a2", "b2"):
        twin.add_module(name, nn.Linear(4, 4).double())
    proposal = propose_mapping(model, twin, x)
    assert proposal.by_name == {}
    assert proposal.undecided == {"a": ["a", "b"], "b": ["a", "b"], "a2": ["a2", "b2"], "b2": ["a2", "b2"]}


def test_scales_of_zero_do_not_hide_a_difference():
    """In a twin that multiplies by 0 as yet, two trials would look alike that later differ."""

    def build(x):
        scaled = layer("Multiply")([concatenated(x), *(layer("Dense", 8, name=f"z{number}")(x) for number in (1, 2))])
        return layer("Dense", 3, name="c")(scaled)

    model, x = model_of((4,), build)
    modules = {"q": nn.Linear(4, 4), "r": nn.Linear(4, 4), "u": nn.Linear(4, 8), "v": nn.Linear(4, 8)}
    twin = Twin(lambda m, x: m.fc(torch.cat([m.r(x), m.q(x)], 1) * m.u(x) * m.v(x)), **modules, fc=nn.Linear(8, 3))
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided == {"z1": ["u", "v"], "z2": ["u", "v"]}
    assert {("a/kernel", "r.weight"), ("c/kernel", "fc.weight")} <= rows(proposal.mapping)


def test_kinds_tell_modules_of_one_shape_apart():
    def build(x):
        return [layer(kind, 2, 3, padding="same", name=kind)(x) for kind in ("Conv1D", "Conv1DTranspose")]

    model, x = model_of((5, 2), build)
    modules = {"up": nn.ConvTranspose1d(2, 2, 3, padding=1), "conv": nn.Conv1d(2, 2, 3, padding=1)}
    twin = Twin(lambda m, x: (m.conv(x), m.up(x)), **modules)
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided == {}
    assert passes(model, twin, x, proposal)


def test_what_is_wanting_in_one_trial_only_is_not_held_against_the_twin():
    numbers, modules = Failure("other numbers"), Failure("no module is left", structural=True)
    found = [Found({"a": {None}}, {"a": failure}, {}, {}) for failure in (modules, numbers)]
    assert not union(found).failing["a"].structural
    assert union(found[:1] * 2).failing["a"].structural


def test_ties_one_after_another_do_not_multiply():
    def build(x):
        for number in range(8):
            pair = [layer("Dense", 4, activation="tanh", name=f"{name}{number}")(x) for name in "ab"]
            x = layer("Add")(pair)
        return layer("Dense", 2, name="last")(x)

    runs = []

    def run(twin, x):
        runs.append(1)
        for number in reversed(range(8)):
            x = torch.tanh(twin[2 * number](x)) + torch.tanh(twin[2 * number + 1](x))
        return twin[16](x)

    model, x = model_of((4,), build)
    twin = nn.Sequential(*(nn.Linear(4, 4) for _ in range(16)), nn.Linear(4, 2)).double()
    twin.forward = functools.partial(run, twin)
    twin.__class__ = type("Sums", (nn.Sequential,), {"forward": run})
    del twin.__dict__["forward"]
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided == {
        f"{name}{number}": [str(14 - 2 * number), str(15 - 2 * number)] for number in range(8) for name in "ab"
    }
    assert list(proposal.mapping["torch"]) == ["16.weight", "16.bias"]
    assert len(runs) < 60


def wide(count):
    model, x = model_of((3,), lambda x: layer("Dense", 2, name="last")(
        layer("Concatenate")([layer("Dense", 2, name=f"d{number}")(x) for number in range(count)])
    ))  # fmt: skip
    order = random.Random(0).sample(range(count), count)
    modules = {f"m{number}": nn.Linear(3, 2) for number in range(count)}

    def run(twin, x):
        return twin.fc(torch.cat([getattr(twin, f"m{number}")(x) for number in order], 1))

    return model, Twin(run, **modules, fc=nn.Linear(2 * count, 2)), x, order


def test_a_tie_of_three_is_decided():
    model, twin, x, order = wide(3)
    proposal = propose_mapping(model, twin, x)
    assert proposal.undecided == {}
    assert {(f"d{at}/kernel", f"m{number}.weight") for at, number in enumerate(order)} <= rows(proposal.mapping)


def test_a_tie_of_too_many_is_left_open_with_all_its_candidates():
    model, twin, x, order = wide(6)
    proposal = propose_mapping(model, twin, x)
    assert all(f"m{number}" in proposal.undecided[f"d{at}"] for at, number in enumerate(order))
    assert rows(proposal.mapping) == set()
    named = {f"d{at}": f"m{number}" for at, number in enumerate(order)}
    assert passes(model, twin, x, propose_mapping(model, twin, x, names=named))


def test_many_heads_need_no_trial():
    model, x = model_of((3,), lambda x: [layer("Dense", 2, name=f"d{number}")(x) for number in range(9)])
    runs = []

    def run(twin, x):
        runs.append(1)
        return tuple(child(x) for child in twin.children())

    proposal = propose_mapping(model, Twin(run, **{f"m{n}": nn.Linear(3, 2) for n in range(9)}), x)
    assert proposal.undecided == {f"d{n}": [f"m{k}" for k in range(9)] for n in range(9)}
    assert len(runs) == 1


# --- Where the numbers stop agreeing --------------------------------------------------------------------------------


def test_with_another_epsilon_it_says_where_the_numbers_stop_agreeing():
    model, x = dronet()
    twin = ResNet8(37, 41, 1, 1)
    twin.block2.bn1.eps = 1e-2
    proposal = propose_mapping(model, twin, x, names={"dense_1": "steer", "dense_2": "coll"})
    assert rows(proposal.mapping) == rows(read_mapping(CSV))
    ((layer, why),) = proposal.parts_at.items()
    assert layer == "batch_normalization_3"
    assert why.startswith("block2.bn1 takes what it takes, and returns something else, ")
    assert f"\n  the twin parts at {layer}: {why}\n  behind a mistake or a layer without" in str(proposal)
    assert (proposal.undecided, proposal.unmatched) == ({}, {})
    # The shortcut takes the right numbers still.
    behind = {
        f"{kind}_{n}" for kind, ns in {"conv2d": (5, 6, 8, 9, 10), "batch_normalization": (4, 5, 6)}.items() for n in ns
    }
    assert set(proposal.behind) == behind | {"dense_1", "dense_2"}


def test_with_another_function_it_says_where_the_numbers_stop_agreeing():
    model, x = dronet()
    twin = ResNet8(37, 41, 1, 1)
    twin.maxpool = nn.AvgPool2d(3, stride=2)
    proposal = propose_mapping(model, twin, x, names={"dense_1": "steer", "dense_2": "coll"})
    assert proposal.parts_at.keys() == {"batch_normalization_1", "conv2d_4"}
    why = proposal.parts_at["conv2d_4"]
    assert why.startswith("no module takes what it takes: block1.downsample comes nearest, ")
    assert why.endswith("; look at conv2d_1 (conv1) and what follows")
    assert set(proposal.behind) == {path.rpartition("/")[0] for path, _ in rows(proposal.mapping)} - {"", "conv2d_1"}
    assert rows(proposal.mapping) == rows(read_mapping(CSV))


def test_features_whose_order_does_not_show():
    model, x = model_of((2, 3, 2), lambda x: layer("Dense", 3, name="d")(layer("Flatten")(x)))
    twin = Twin(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(12, 3))
    proposal = propose_mapping(model, twin, x)
    assert proposal.flatten == {"d": (2, 3, 2)}
    assert "\n  d: the twin flattens (2, 3, 2) channels first; give transfer the flatten of this proposal" in str(
        proposal
    )
    flat = propose_mapping(model, twin, [np.ones_like(x[0])])
    assert flat.unmatched == {"d": "x does not show in which order fc takes the flattened features"}


def test_a_layer_called_twice_whose_second_twin_takes_something_else():
    network = load_network("nested")
    twin = network.build()
    twin.swish = nn.ReLU()
    proposal = propose_mapping(network.probes[0].keras_model, twin, network.probes[0].x)
    assert list(proposal.parts_at) == ["twice (call 2)"]
    why = proposal.parts_at["twice (call 2)"]
    assert why.startswith("twice does not take what it takes in this call: twice comes nearest")


class Scaled(L.Layer):
    """A layer of one's own, of a kind that is not covered."""

    def build(self, shape):
        """Make the weight."""
        self.gain = self.add_weight(name="gain", shape=shape[-1:], initializer="ones")

    def call(self, x):
        """Multiply each channel by a number."""
        return x * self.gain


class Scale(nn.Module):
    """The twin of ``Scaled``."""

    def __init__(self, *shape):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(shape))

    def forward(self, x):
        """Multiply each channel by a number."""
        return x * self.factor.view(-1, *(1,) * (x.ndim - 2))


# --- Faults ---------------------------------------------------------------------------------------------------------


def chain():
    model, x = model_of((4,), lambda x: layer("Dense", 3, name="b")(layer("Dense", 4, activation="relu", name="a")(x)))
    return model, x


def test_all_that_keeps_a_mapping_from_being_complete_is_listed():
    def build(x, y):
        x = layer("Conv1D", 3, 2, name="conv")(layer("Rescaling", 2.0)(x))
        return Scaled(name="scaled", dtype="float64")(x), layer("Dense", 3, name="d")(y)

    model, x = model_of((5, 2), build, (4,))
    twin = Twin(
        lambda m, x, y: (m.scaled(m.conv(2 * x)), m.used(y)),
        scaled=Scale(3),
        conv=nn.Conv1d(2, 3, 3),
        used=nn.Linear(4, 3),
        unused=nn.Linear(4, 3),
    )
    twin.gain = nn.Parameter(torch.ones(3, dtype=torch.float64))
    proposal = propose_mapping(model, twin, x)
    assert rows(proposal.mapping) == {
        ("d/kernel", "used.weight", ""),
        ("d/bias", "used.bias", ""),
        ("scaled/gain", "scaled.factor", "by hand"),
    }
    assert proposal.unmatched["conv"] == (
        "no module fits; it needs a Conv1d with weight (3, 2, 2), bias (3,); conv (Conv1d) takes what it takes"
    )
    assert proposal.unmatched["scaled"].startswith("the kind Scaled is not covered; covered are ")
    assert proposal.unmatched["scaled"].endswith("; scaled (Scale) takes what it takes, and is to be filled by hand")
    assert proposal.left_over == {
        "": "the model (Twin) fits no Keras layer: gain (3,)",
        "unused": "unused (Linear) is never called",
    }
    assert all(f"\n  {line}" in str(proposal) for line in proposal.left_over.values())
    with pytest.raises(ParityError, match="no row for Keras weight conv/kernel"):
        transfer(model, twin, proposal.mapping)


def test_what_is_not_from_keras_and_what_is_filled_by_hand_do_not_keep_the_rest_from_being_moved():
    model, x = model_of((4,), lambda x: layer("Dense", 3, name="b")(Scaled(name="s", dtype="float64")(
        layer("Dense", 4, activation="relu", name="a")(x)
    )))  # fmt: skip
    modules = {"a": nn.Linear(4, 4), "scale": Scale(1, 4), "b": nn.Linear(4, 3), "auxiliary": nn.Linear(4, 2)}
    twin = Twin(lambda m, x: m.b(m.scale(torch.relu(m.a(x)))), **modules)
    twin.register_buffer("mean", torch.zeros(4, dtype=torch.float64))
    proposal = propose_mapping(model, twin, x)
    assert rows(proposal.mapping) == {
        *((f"{name}/{k}", f"{name}.{t}", "") for name in "ab" for k, t in WEIGHTS),
        ("s/gain", "scale.factor", "by hand"),
        *(("", key, "not from Keras") for key in ("auxiliary.weight", "auxiliary.bias", "mean")),
    }
    assert (proposal.parts_at, proposal.behind) == ({}, [])
    with pytest.warns(UserWarning, match=r"left to you, as the column how says: scale.factor"):
        transfer(model, spoil(twin), proposal.mapping)
    twin.scale.factor.data = torch.from_numpy(model.get_layer("s").gain.numpy())[None]
    assert np.abs(run_keras(Probe(model, x))[0] - run_twin(twin, x)[0]).max() < 1e-5


def test_a_module_that_is_left_over():
    model, x = chain()
    twin = Twin(lambda m, x: m.b(torch.relu(m.a(x))) + 0 * m.c(torch.sigmoid(m.a(x))))
    twin.a, twin.b, twin.c = (nn.Linear(4, n).double() for n in (4, 3, 3))
    proposal = propose_mapping(model, twin, x)
    assert proposal.left_over == {"c": "c (Linear) is left over: all layers have other twins"}
    assert {row for row in rows(proposal.mapping) if row[2]} == {("", f"c.{t}", "not from Keras") for _, t in WEIGHTS}
    assert passes(model, twin, x, proposal)


def test_two_layers_for_which_there_is_one_module():
    model, x = model_of((4,), lambda x: layer("Add")([layer("Dense", 4, name=name)(x) for name in "ab"]))
    twin = Twin(lambda m, x: m.p(x) + m.p(x), p=nn.Linear(4, 4))
    proposal = propose_mapping(model, twin, x)
    assert proposal.unmatched == dict.fromkeys("ab", "p is the only one for a and for b")
    assert len(proposal.mapping) == 0


def test_no_module_is_left():
    model, x = model_of((4,), lambda x: layer("Dense", 4, name="b")(layer("Dense", 4, name="a")(x)))
    twin = Twin(lambda m, x: m.p(m.p(x)), p=nn.Linear(4, 4))
    proposal = propose_mapping(model, twin, x)
    assert proposal.unmatched == {"b": "no module is left that fits: p is the twin of a"}
    assert rows(proposal.mapping) == {("a/kernel", "p.weight"), ("a/bias", "p.bias")}


@pytest.mark.parametrize(
    ("names", "faults"),
    [
        ({"c": "a"}, ["names: the Keras model has no layer c with weights; it has a, b"]),
        ({"a": "z"}, ["names: the twin has no module z with tensors"]),
        ({"a": "b"}, ["names: b (Linear) does not fit a"]),
        (
            {"a": "a", "b": "a"},
            [
                "names: a is given to a and to another",
                "names: a (Linear) does not fit b",
                "names: a is given to b and to another",
            ],
        ),
    ],
)
def test_names_that_fit_nothing(names, faults):
    model, x = chain()
    twin = Twin(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 3))
    assert refuse(model, twin, x, names=names) == faults


def test_names_that_the_numbers_contradict():
    network = load_network("dense")
    model, x = network.probes[0].keras_model, network.probes[0].x
    faults = refuse(model, network.build(), x, names={"dense_b": "4"})
    assert faults[0].startswith("dense_b: by name it is 4, which does not take what it takes: 4 comes nearest, ")
    faults = refuse(model, network.build(), x, names={"dense_c": "2"})
    assert faults == ["dense_b: 2 takes what it takes, but by name it is the twin of dense_c"]


def test_what_cannot_be_run():
    model, x = chain()
    twin = Twin(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 3))
    assert refuse(model, twin.to("meta"), x)[0] == "a.weight is on the meta device: the twin cannot run"
    with pytest.warns(match="jit.script"):
        half = Twin(twin.run, a=torch.jit.script(nn.Linear(4, 4)), b=nn.Linear(4, 3))
    (fault,) = refuse(model, half, x)
    assert fault.startswith("a is compiled by TorchScript")
    empty = keras.Sequential([keras.Input((3,)), L.ReLU()])
    assert refuse(empty, nn.ReLU(), draw(2, 3)) == ["the Keras model has no weights"]
    start = keras.Input((4,))
    twice = [keras.Model(start, L.Dense(4, name="d")(start), name=name) for name in "ab"]
    same = keras.Model(start, twice[1](twice[0](start)))
    assert "d: two layers of the Keras model have this path; rename one" in refuse(same, nn.Linear(4, 4), draw(2, 4))


@pytest.mark.parametrize(("kernel", "dilation"), [(17, 1), (18, 1), (64, 1), (3, 128)])
def test_a_convolution_may_be_padded_by_any_number_of_elements(kernel, dilation):
    surplus = (kernel - 1) * dilation
    model, x = model_of(
        (40, 3), lambda a: layer("Conv1D", 2, kernel, dilation_rate=dilation, padding="causal", name="c")(a)
    )
    twin = Twin(lambda t, a: t.c(nn.functional.pad(a, (surplus, 0))), c=nn.Conv1d(3, 2, kernel, dilation=dilation))
    proposal = propose_mapping(model, twin, x)
    assert rows(proposal.mapping) == {("c/kernel", "c.weight"), ("c/bias", "c.bias")}
    assert passes(model, twin, x, proposal)

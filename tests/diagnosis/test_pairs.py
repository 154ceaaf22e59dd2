"""Two mistakes in one layer: both are named, and only if no single cause explains the difference."""

from course.mutants.tools import another_forward
from parity import diagnose
from parity.diagnosis import pairs
from parity.diagnosis.evidence import gather
from parity.diagnosis.settings import by_settings
from parity.padding import Conv2dSame
from parity.tracing.port import make_port
from parity.tracing.trace import run_and_judge
from parity.tracing.verdicts import STARTS
from tests.helpers.models import Twin, float64_model, norm, ported

import keras
import numpy as np
import pytest
import torch
from torch import nn

L = keras.layers


def x_of(*shape):
    return np.random.default_rng(0).normal(size=shape)


def put(tensor, value):
    with torch.no_grad():
        tensor.copy_(value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value))


def reset(module):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.reset_parameters()


def network(name):
    """Return a Keras model, its right twin with one module "m" to plant mistakes in, its mapping, and inputs."""
    made = {
        "conv": (
            (10, 8, 3),
            lambda i: L.GlobalAveragePooling2D()(L.Conv2D(4, 3, strides=2, padding="same", name="m")(i)),
            Twin(lambda t, a: t.m(a).mean((2, 3)), m=Conv2dSame(3, 4, 3, 2)),
        ),
        "norm": ((6, 5, 3), lambda i: L.BatchNormalization(name="m")(i), Twin(lambda t, a: t.m(a), m=norm(3))),
        "layer norm": (
            (6, 8),
            lambda i: L.LayerNormalization(name="m")(i),
            Twin(lambda t, a: t.m(a), m=nn.LayerNorm(8, eps=1e-3)),
        ),
        "dense": (
            (8,),
            lambda i: L.Dense(8, name="m")(i),
            Twin(lambda t, a: t.m(a), m=nn.Linear(8, 8)),
        ),
        "depthwise": (
            (10, 8, 3),
            lambda i: L.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="m")(i),
            Twin(lambda t, a: t.m(a), m=nn.Conv2d(3, 6, 3, padding=1, groups=3)),
        ),
        "dilated": (
            (10, 9, 3),
            lambda i: L.GlobalMaxPooling2D()(L.Conv2D(4, 3, dilation_rate=2, name="m")(i)),
            Twin(lambda t, a: t.m(a).amax((2, 3)), m=nn.Conv2d(3, 4, 3, dilation=2)),
        ),
    }
    shape, layers, twin = made[name]
    model = float64_model(shape, layers)
    twin, mapping = ported(model, twin.double(), "m")
    return model, twin, mapping, x_of(4, *shape)


def padded_evenly(twin):
    other = nn.Conv2d(3, 4, 3, 2, 1).double()
    other.load_state_dict(twin.m.state_dict())
    twin.m = other


def statistics_reset(twin):
    twin.m.reset_running_stats()


def epsilon(twin):
    twin.m.eps = 0.1


def train(twin):
    twin.m.train()


def unfilled(twin):
    reset(twin.m)


def transposed(twin):
    put(twin.m.weight, twin.m.weight.T)


def no_bias(twin):
    put(twin.m.bias, 0.0)


def stride(twin):
    twin.m.stride = (1, 1)


def dilation(twin):
    twin.m.dilation = (1, 1)


def padding(twin):
    twin.m.padding = (2, 0)


def multiplier_first(twin):
    put(twin.m.weight, twin.m.weight.unflatten(0, (3, 2)).transpose(0, 1).flatten(0, 1))


def flipped(twin):
    put(twin.m.weight, twin.m.weight.flip(2, 3))


def in_half(twin):
    put(twin.m.weight, twin.m.weight.half().double())


OTHER = "weights hold other numbers"
PAIRS = {
    ("conv", unfilled, padded_evenly): [OTHER, "padding"],
    ("conv", flipped, padded_evenly): ["kernel flipped", "padding"],
    ("conv", no_bias, padded_evenly): ["bias missing", "padding"],
    ("conv", unfilled, stride): [OTHER, "stride or dilation"],
    ("dilated", unfilled, dilation): [OTHER, "stride or dilation"],
    ("norm", statistics_reset, epsilon): ["statistics left at 0 and 1", "epsilon"],
    ("norm", no_bias, epsilon): ["bias missing", "epsilon"],
    ("norm", no_bias, train): ["bias missing", "train mode"],
    ("norm", epsilon, train): ["epsilon", "train mode"],
    ("layer norm", no_bias, epsilon): ["bias missing", "epsilon"],
    ("dense", transposed, no_bias): ["kernel not transposed", "bias missing"],
    ("dense", in_half, no_bias): ["precision", "bias missing"],
    ("depthwise", multiplier_first, padding): ["depthwise order", "padding"],
}


def name_of(pair):
    return f"{pair[0]}: {pair[1].__name__}, {pair[2].__name__}"


@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
@pytest.mark.parametrize("each_alone", [False, True], ids=["first", "each alone"])
def test_both_are_named(pair, each_alone):
    name, *plants = pair
    model, twin, mapping, x = network(name)
    for plant in plants:
        plant(twin)
    found = diagnose(model, twin, x, mapping, each_alone=each_alone)
    (one,) = found.divergences if each_alone else [found]
    assert one.divergence.layer == "m"
    assert [cause.cause for cause in one.causes] == PAIRS[pair]
    assert not one.untried


SINGLE = [("conv", unfilled), ("conv", padded_evenly), ("norm", epsilon), ("norm", train), ("depthwise", padding)]


@pytest.mark.parametrize(("name", "plant"), SINGLE, ids=lambda one: getattr(one, "__name__", one))
def test_a_single_cause_is_not_looked_for_in_pairs(name, plant, monkeypatch):
    def never(*arguments):
        raise AssertionError("it was looked for")

    monkeypatch.setattr(pairs, "_repairs", never)
    model, twin, mapping, x = network(name)
    plant(twin)
    assert len(diagnose(model, twin, x, mapping).causes) == 1


def test_both_have_their_details_as_alone():
    model, twin, mapping, x = network("norm")
    statistics_reset(twin)
    epsilon(twin)
    assert str(diagnose(model, twin, x, mapping)).splitlines()[1:] == [
        "  statistics left at 0 and 1 (moving_mean is 0 throughout): see the cheat sheet",
        "  epsilon (eps is 0.1, not 0.001): notebook 03",
    ]


def test_three_mistakes_are_not_explained_by_two():
    model, twin, mapping, x = network("norm")
    for plant in (statistics_reset, epsilon):
        plant(twin)
    another_forward(twin.m, lambda self, x: type(self).__base__.forward(self, x).sin())
    assert diagnose(model, twin, x, mapping).causes == []


def test_a_fault_in_a_function_behind_the_modules_is_not_blamed_on_them():
    """The modules alone do not make what the twin has, so that two causes in them do not explain it."""
    model, twin, mapping, x = network("norm")
    for plant in (no_bias, epsilon):
        plant(twin)
    port = make_port(model, twin, x, mapping)
    run, verdicts = run_and_judge(port)
    evidence = gather(port, run, next(verdict for verdict in verdicts if verdict.kind in STARTS))

    def explain(half):
        return list(by_settings(half))

    assert [cause.cause for cause in pairs.as_two(evidence, explain)] == ["bias missing", "epsilon"]
    assert pairs.as_two(evidence._replace(twin=evidence.twin.sin()), explain) == []


def test_neither_model_nor_mode_is_changed():
    model, twin, mapping, x = network("norm")
    for plant in (no_bias, train):
        plant(twin)
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    diagnose(model, twin, x, mapping)
    assert twin.m.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in twin.state_dict().items())

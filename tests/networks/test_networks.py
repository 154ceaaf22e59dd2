"""The bar for known networks: proposed, moved, without an alarm; of the mistakes in them all located, most named."""

import copy

from course.pages.anatomy import ROOT
from parity import CAUSES, diagnose
from tests.networks.base import networks
from tests.networks.ports import largest, network_named, ported, proposed
from tests.networks.test_right_twins import outputs, twin_takes

import numpy as np
import pytest

ROOM = 0.9  # the least share of mistakes whose cause is to be named
DTYPES = ("float32", "float64")


def marks(network):
    return [pytest.mark.slow] if network.slow else []


NETWORKS = [pytest.param(network.name, marks=marks(network)) for network in networks()]
MISTAKES = [
    pytest.param(
        network.name,
        number,
        marks=marks(network),
        id=f"{network.name}: {mistake.name}",
    )
    for network in networks()
    for number, mistake in enumerate(network.mistakes)
]


@pytest.mark.parametrize("name", NETWORKS)
def test_proposed(name):
    proposal = proposed(name)
    open_ends = ("undecided", "unmatched", "parts_at", "behind")
    assert {end: found for end in open_ends if (found := getattr(proposal, end))} == {}
    assert tuple(proposal.left_over) == network_named(name).left_over


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_moved(name, dtype):
    built, network = ported(name, dtype).built, network_named(name)
    within = network.within if dtype == "float32" else network.within_float64
    expected, found = outputs(built.keras_model, built.x), outputs(built.twin, twin_takes(built))
    for a, b in zip(expected, found, strict=True):
        b = b if a.shape == b.shape else np.moveaxis(b, 1, -1)
        assert a.dtype == b.dtype == dtype
        assert np.ptp(a) > 1e-2 * largest(a) > 1e-5  # else a mistake might not show
        assert largest(a - b) <= within * largest(a)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_quiet(name, dtype):
    built, mapping = ported(name, dtype)
    assert str(diagnose(built.keras_model, built.twin, built.x, mapping, torch_x=built.torch_x)) == "no layer diverges"


@pytest.mark.parametrize(("name", "number"), MISTAKES)
def test_mistakes(name, number):
    mistake = network_named(name).mistakes[number]
    built, mapping = ported(name, "float32")
    twin = mistake.plant(copy.deepcopy(built.twin))
    found = diagnose(built.keras_model, twin, built.x, mapping, torch_x=built.torch_x, training=mistake.training)
    assert found.divergence is not None, "not caught"
    # The name of a row for an output ends with that of the layer that it comes from.
    layer = found.divergence.layer.split(", of ")[-1].split(" ")[0]
    assert layer.split("/")[-1] in mistake.layers, f"{found}\n{layer} is none of {sorted(mistake.layers)}"
    assert [cause.cause for cause in found.causes] == [mistake.cause] * mistake.named, str(found)


def test_nine_in_ten_are_named():
    mistakes = [mistake for network in networks() for mistake in network.mistakes]
    named = sum(mistake.named for mistake in mistakes)
    assert {mistake.cause for mistake in mistakes} <= set(CAUSES)
    assert named >= ROOM * len(mistakes)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"`tests/networks` has {len(networks())} ports of well-known networks" in readme
    assert f"Of {len(mistakes)} mistakes in them all are located, and {named} are given their cause." in readme


@pytest.mark.parametrize("network", [pytest.param(network, id=network.name) for network in networks()])
def test_at_least_five_mistakes(network):
    assert len({mistake.name for mistake in network.mistakes}) == len(network.mistakes) >= 5

"""The bar for the trace: every mutant is caught and located, nine in ten are given their cause."""

import functools
from typing import NamedTuple

from course.mutants import EVERY_MUTANT, EVERY_NETWORK, SHOWS, Mutant, load_network
from course.mutants.tools import another_forward, put
from course.pages.anatomy import ROOT
from parity import CAUSES, diagnose, first_divergence, trace
from parity.padding import MaxPool2dSame
from tests.helpers.random_ports import PORTS

import pandas as pd
import pytest

ROOM = 0.9  # the least share of mutants whose cause is to be named


class Found(NamedTuple):
    """What was found of a mutant: at which of the network's probes, at which layer, and why."""

    probe: int
    layer: str
    causes: tuple[str, ...]


@functools.cache
def found(number: int) -> Found | None:
    """Return what the first probe at which a mutant diverges shows; None if it is not caught."""
    mutant = EVERY_MUTANT[number]
    network = load_network(mutant.network)
    twin = mutant.plant(network.build())
    for at, probe in enumerate(network.probes):
        diagnosis = diagnose(probe.keras_model, twin, probe.x, network.mapping, training=mutant.shows == "training")
        if diagnosis.divergence is not None:
            # The name of a row for an output ends with that of the layer that it comes from.
            layer = diagnosis.divergence.layer.split(", of ")[-1]
            return Found(at, layer, tuple(cause.cause for cause in diagnosis.causes))
    return None


def is_named(mutant: Mutant, result: Found) -> bool:
    return result.causes == (mutant.cause,)


NAMES = [f"{mutant.network}: {mutant.name}" for mutant in EVERY_MUTANT]


@pytest.mark.parametrize("number", range(len(EVERY_MUTANT)), ids=NAMES)
def test_a_mutant_is_caught_and_located(number):
    mutant, result = EVERY_MUTANT[number], found(number)
    assert result is not None, "not caught"
    assert mutant.accepts(result.layer), f"located at {result.layer}, not at {sorted(mutant.layers)}"


def test_nine_in_ten_are_given_their_cause_and_no_other(record_property):
    results = [found(number) for number in range(len(EVERY_MUTANT))]
    rows = [(mutant, result) for mutant, result in zip(EVERY_MUTANT, results, strict=True) if result is not None]
    named = [is_named(*row) for row in rows]
    table = pd.DataFrame(
        {
            "shows": [mutant.shows for mutant, _ in rows],
            "mutants": 1,
            "located": [mutant.accepts(result.layer) for mutant, result in rows],
            "named": named,
            "unexplained": [not result.causes for _, result in rows],
        }
    )
    lines = [table.groupby("shows").sum().reindex(SHOWS).to_string()]
    lines += [
        f"{mutant.network}: {mutant.name}: {mutant.cause}; found: {', '.join(result.causes) or 'none'}"
        for (mutant, result), right in zip(rows, named, strict=True)
        if not right
    ]
    record_property("mutants", "\n".join(lines))
    assert sum(named) >= ROOM * len(EVERY_MUTANT)
    count, located = len(EVERY_MUTANT), int(table.located.sum())
    numbers = "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    ports = numbers.split()[len(EVERY_NETWORK)]
    exact = sum(len(mutant.layers) == 1 for mutant in EVERY_MUTANT)
    said = (
        f"`course/mutants` plants {count} single mistakes in {ports} right ports. All {len(rows)} are caught, and "
        f"{sum(named)} are given their cause and no other. For {exact} the tool names one layer, for {count - exact} "
        "one of two or three neighbours, because numbers cannot tell which of them is wrong. "
        f"On {PORTS} right ports drawn at random there is no alarm."
    )
    assert located == count
    assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_enough_mutants_of_every_kind():
    assert len(EVERY_MUTANT) >= 40
    assert {mutant.shows for mutant in EVERY_MUTANT} == set(SHOWS)


def test_every_cause_is_planted_and_named():
    """Three by hand: as mutants they would be more in the sample that notebook 11 draws, with all its numbers."""

    def another_pooling(twin):
        twin.mean = MaxPool2dSame((3, 2), 2)

    def filters_reversed(twin):
        put(twin.conv.weight, twin.conv.weight.flip(0))

    def bias_added_twice(twin):
        another_forward(twin.conv, lambda self, x: type(self).__base__.forward(self, x) + self.bias[:, None, None])

    by_hand = set()
    for plant, layer in ((another_pooling, "mean"), (filters_reversed, "conv"), (bias_added_twice, "conv")):
        network = load_network("pooling")
        twin = network.build()
        plant(twin)
        diagnosis = diagnose(network.probes[0].keras_model, twin, network.probes[0].x, network.mapping)
        assert diagnosis.divergence.layer == layer
        by_hand.update(cause.cause for cause in diagnosis.causes)
    assert len(by_hand) == 3
    assert {mutant.cause for mutant in EVERY_MUTANT} | by_hand == set(CAUSES)


@pytest.mark.parametrize("name", EVERY_NETWORK)
@pytest.mark.parametrize("training", [False, True], ids=["prediction", "training"])
def test_no_alarm_on_the_networks(name, training):
    network = load_network(name)
    twin = network.build()
    for probe in network.probes:
        assert first_divergence(trace(probe.keras_model, twin, probe.x, network.mapping, training=training)) is None

"""Of a Keras model that is turned to have the channels first, the same is said, but for the numbers of axes."""

from course.mutants import MUTANTS, load_network
from parity import diagnose, propose_mapping
from tests.helpers.turned import can_be_turned, turned, turned_input

import pytest

NAMES = ("pooling", "flat", "encoder")
NUMBERED = ("axis", "input axes exchanged", "flatten order")


def pair_of(name):
    """Return a network, a probe of it, and the turned model and input."""
    network = load_network(name)
    probe = next(probe for probe in network.probes if can_be_turned(probe.keras_model))
    return network, probe, turned(probe.keras_model), [turned_input(x) for x in probe.x]


@pytest.mark.parametrize("name", NAMES)
def test_a_right_port_is_found_and_quiet(name):
    network, probe, model, x = pair_of(name)
    for training in (False, True):
        assert diagnose(model, network.build(), x, network.mapping, training=training).divergence is None
    found, due = (
        propose_mapping(*given)
        for given in ((model, network.build(), x), (probe.keras_model, network.build(), probe.x))
    )
    assert found.mapping.equals(due.mapping)
    assert str(found) == str(due)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_is_said_of_every_mistake(name):
    network, probe, model, x = pair_of(name)
    for mutant in MUTANTS:
        if mutant.network != name:
            continue
        twin, training = mutant.plant(network.build()), mutant.shows == "training"
        due = diagnose(probe.keras_model, twin, probe.x, network.mapping, training=training)
        found = diagnose(model, twin, x, network.mapping, training=training)
        assert found.divergence == due.divergence, mutant.name
        assert [cause.cause for cause in found.causes] == [cause.cause for cause in due.causes], mutant.name
        if mutant.cause not in NUMBERED:
            assert found.causes == due.causes, mutant.name

"""A mapping of a twin with a mistake is the right one, row by row, and ``diagnose`` finds the mistake with it."""

from contextlib import suppress

from course.mutants import MUTANTS, NETWORKS, load_network
from parity import ParityError, diagnose, propose_mapping, transfer

import pytest

# What numbers cannot tell, the user does.
NAMES = {"dronet": {"dense_1": "steer", "dense_2": "coll"}}
# DroNet takes longest and has most mutants: of these, one in so many is tried.
EACH = {"dronet": 4}


def rows(mapping):
    """Return the rows with a Keras weight."""
    return {(row[0], row[1]) for row in mapping.fillna("").to_numpy() if row[0]}


def shown(mutant):
    """Return the proposals for a mutant, probe by probe up to the one at which it shows, and what is found there."""
    network, proposals = load_network(mutant.network), []
    for probe in network.probes:
        twin = mutant.plant(network.build())
        proposals.append(propose_mapping(probe.keras_model, twin, probe.x, NAMES.get(mutant.network)))
        with suppress(ParityError):  # transfer may see the mistake itself
            transfer(probe.keras_model, twin, proposals[-1].mapping, network.flatten)
        found = diagnose(probe.keras_model, twin, probe.x, proposals[-1].mapping, training=mutant.shows == "training")
        if found.divergence is not None:
            return proposals, found.divergence.layer.split(", of ")[-1]
    return proposals, None


@pytest.mark.filterwarnings("ignore:proposal. line:UserWarning")
@pytest.mark.parametrize("network", NETWORKS)
def test_the_right_rows_whatever_is_wrong_with_the_twin(network):
    mutants = [mutant for mutant in MUTANTS if mutant.network == network][:: EACH.get(network, 1)]
    healed = []
    for mutant in mutants:
        proposals, layer = shown(mutant)
        for proposal in proposals:
            assert rows(proposal.mapping) == rows(load_network(network).mapping), mutant.name
            assert proposal.unmatched == {}, mutant.name
        if layer is None:  # the mistake was in the weights, which have been moved anew
            healed.append(mutant.name)
            assert not any(proposal.parts_at or proposal.behind for proposal in proposals), mutant.name
        else:
            assert mutant.accepts(layer), (mutant.name, layer)
    assert len(healed) < len(mutants) * 2 / 3

"""The known networks, ported with the tool: proposed, moved. What is dear is done once for each network.

Names of layers are the same in float32 and float64, so one proposal serves both.
"""

import functools
from typing import NamedTuple

from parity import propose_mapping, transfer
from parity.proposal.propose import Proposal
from tests.networks.base import Built, Network, build, networks

import numpy as np
import pandas as pd


class Ported(NamedTuple):
    """A network in one dtype, whose twin has its weights, and the mapping that they went by."""

    built: Built
    mapping: pd.DataFrame


def network_named(name: str) -> Network:
    """Return a network by its name."""
    return next(network for network in networks() if network.name == name)


# Tests come network by network, so more is not kept than one network in both dtypes.
@functools.lru_cache(maxsize=2)
def built(name: str, dtype: str) -> Built:
    """Return both models of a network in "float32" or "float64", the twin empty."""
    return build(network_named(name), dtype)


@functools.lru_cache(maxsize=1)
def proposed(name: str) -> Proposal:
    """Return what ``propose_mapping`` makes of a network in float32."""
    model, x, twin, torch_x = built(name, "float32")
    return propose_mapping(model, twin, x, network_named(name).names, torch_x=torch_x)


@functools.lru_cache(maxsize=2)
def ported(name: str, dtype: str) -> Ported:
    """Return a network with a twin that has its weights, moved by the tool; whoever changes it copies it first."""
    found, proposal = built(name, dtype), proposed(name)
    transfer(found.keras_model, found.twin, proposal.mapping, proposal.flatten)
    return Ported(found, proposal.mapping)


def largest(array: np.ndarray) -> float:
    """Return the largest absolute number of an array."""
    return float(np.abs(array).max())

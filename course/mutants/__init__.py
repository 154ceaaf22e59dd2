"""Single mistakes, each planted in a right port, with the place and the cause that a good search must name.

A mutant's function takes a right port and plants its mistake. None raises an error, and none changes the shape of an
output. Most change the outputs of every probe; when the others show is in ``Mutant.shows``.

The ports are those of DroNet and of eight small networks that have what DroNet lacks. Each has a module with its Keras
model, its port and its mutants. Each is looked at through several probes: Keras models of one architecture, with the
same names and weights, for inputs of different sizes.

``NETWORKS``, ``MUTANTS`` and ``CAUSES`` are what pages 10 and 11 and the hunt know of. More networks, for the tests
alone, are in ``EVERY_NETWORK``, and all mutants in ``EVERY_MUTANT``.
"""

from course.mutants import (
    attention,
    channels_first,
    dense,
    dronet,
    encoder,
    flat,
    functions,
    fused,
    heads,
    nested,
    operations,
    pooling,
    recurrent,
    residual,
    signal,
)
from course.mutants.base import SHOWS, Mutant, Network, Probe, run_keras, run_twin
from parity import CAUSES as KNOWN_CAUSES

__all__ = [
    "CAUSES",
    "EVERY_MUTANT",
    "EVERY_NETWORK",
    "MUTANTS",
    "NETWORKS",
    "SHOWS",
    "Mutant",
    "Network",
    "Probe",
    "load_network",
    "run_keras",
    "run_twin",
]

# In this order the mutants are listed, and notebook 11 takes its sample from the end.
_MODULES = {
    "dronet": dronet,
    "signal": signal,
    "encoder": encoder,
    "dense": dense,
    "residual": residual,
    "pooling": pooling,
    "flat": flat,
    "heads": heads,
    "nested": nested,
}
# What no page knows of: a new network goes here, and the pages stay as they are.
_FOR_TESTS = {
    "channels_first": channels_first,
    "functions": functions,
    "operations": operations,
    "fused": fused,
    "recurrent": recurrent,
    "attention": attention,
}

NETWORKS = tuple(_MODULES)
"""The names of the networks that the pages know of."""

EVERY_NETWORK = (*_MODULES, *_FOR_TESTS)
"""The names of all networks."""

MUTANTS = tuple(mutant for module in _MODULES.values() for mutant in module.MUTANTS)
"""The mutants of ``NETWORKS``."""

EVERY_MUTANT = (*MUTANTS, *(mutant for module in _FOR_TESTS.values() for mutant in module.MUTANTS))
"""The mutants of ``EVERY_NETWORK``."""

CAUSES = {cause: notebook for cause, notebook in KNOWN_CAUSES.items() if cause in {mutant.cause for mutant in MUTANTS}}
"""Each cause that a mutant has, and the number of the notebook that explains it, or "cheat sheet"."""


def load_network(name: str) -> Network:
    """Return one of ``EVERY_NETWORK``; it is built once."""
    return (_MODULES | _FOR_TESTS)[name].network()

"""Single mistakes, each planted in a right port, with the place and the cause that a good search must name.

A mutant's function takes a right port and plants its mistake. None raises an error, and none changes the shape of an
output. Most change the outputs of every probe; when the others show is in ``Mutant.shows``.

The ports are those of DroNet and of ten small networks that have what DroNet lacks. Each has a module with its Keras
model, its port and its mutants. Each is looked at through several probes: Keras models of one architecture, with the
same names and weights, for inputs of different sizes.
"""

from course.mutants import channels_first, dense, dronet, encoder, flat, fused, heads, nested, pooling, residual, signal
from course.mutants.base import SHOWS, Mutant, Network, Probe, run_keras, run_twin
from parity import CAUSES as KNOWN_CAUSES

__all__ = [
    "CAUSES",
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
    "channels_first": channels_first,
    "fused": fused,
}

NETWORKS = tuple(_MODULES)
"""The names of all networks."""

MUTANTS = tuple(mutant for module in _MODULES.values() for mutant in module.MUTANTS)

CAUSES = {cause: notebook for cause, notebook in KNOWN_CAUSES.items() if cause in {mutant.cause for mutant in MUTANTS}}
"""Each cause that a mutant has, and the number of the notebook that explains it, or "cheat sheet"."""


def load_network(name: str) -> Network:
    """Return one of ``NETWORKS``; it is built once."""
    return _MODULES[name].network()

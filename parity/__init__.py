"""Move a model from Keras to PyTorch without changing what it computes.

``transfer`` moves the weights, ``compare`` compares what both models compute, ``trace`` shows where they part, and
``diagnose`` says why. ``parity.padding`` has layers that pad as Keras does; ``parity.tracing.plot`` draws a trace.
"""

from parity.axes import channels_first, channels_last, run_torch
from parity.comparison import compare, header, largest_difference
from parity.diagnosis.causes import CAUSES
from parity.diagnosis.diagnose import diagnose
from parity.errors import ParityError
from parity.precision import use_float64
from parity.proposal.propose import propose_mapping
from parity.tracing.trace import first_divergence, readable, trace
from parity.weights.legacy_files import load_keras_weights, read_legacy_weights
from parity.weights.mapping import read_mapping
from parity.weights.transfer import transfer

__all__ = [
    "CAUSES",
    "ParityError",
    "channels_first",
    "channels_last",
    "compare",
    "diagnose",
    "first_divergence",
    "header",
    "largest_difference",
    "load_keras_weights",
    "propose_mapping",
    "read_legacy_weights",
    "read_mapping",
    "readable",
    "run_torch",
    "trace",
    "transfer",
    "use_float64",
]

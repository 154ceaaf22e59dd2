"""How far does the noise that a trace measures reach? ``python benchmarks/noise.py``.

Runs 200 right ports, drawn at random, side by side with their Keras models, and prints the largest quotient of a
difference and of the noise measured there. A trace allows ``TIMES_NOISE`` times the noise. It takes about a minute.
"""

import course  # noqa: F401, I001  settles the Keras backend before Keras is imported
import sys
from pathlib import Path

import pandas as pd
from hypothesis import HealthCheck, Phase, given, settings

from parity.models.rounding import TIMES_NOISE
from parity.tracing.port import make_port
from parity.tracing.side_by_side import run

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.helpers.random_ports import right_ports

PORTS = 200


def quotients(training: bool) -> pd.Series:
    """Return the largest quotient of difference and noise in each of the ports.

    Args:
        training: Run them as in training.
    """
    found = []

    @settings(
        max_examples=PORTS,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(right_ports())
    def measure(port) -> None:
        try:
            ran = run(make_port(port.keras_model, port.twin, port.x, port.mapping), training)
        except ValueError:  # PyTorch takes no statistics where a channel has one number only
            return
        both = [(compared.difference, ran.noise[number]) for number, compared in ran.outputs.items()]
        found.append(max((difference / noise for difference, noise in both if noise > 0), default=0.0))

    measure()
    return pd.Series(found)


def main() -> None:
    """Measure and print."""
    for training in (False, True):
        found = quotients(training)
        where = "training" if training else "prediction"
        print(f"{len(found)} ports in {where}: median {found.median():.1f}, 99 % {found.quantile(0.99):.1f}, ", end="")
        print(f"largest {found.max():.1f} times the noise; {TIMES_NOISE} times are allowed")


if __name__ == "__main__":
    main()

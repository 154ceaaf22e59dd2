"""The words of the tables that say what a check thinks of a port: a sign before each, so that the eye finds them."""

import pandas as pd

CAUGHT, PASSES = "● caught", "○ passes"


def caught(passes: bool) -> str:
    """Return what a table says of a port: a check that passes it has not caught its mistake."""
    return PASSES if passes else CAUGHT


def verdicts(passes: pd.DataFrame) -> pd.DataFrame:
    """Return a table of words.

    Args:
        passes: Truth values, a row for each port and a column for each check: whether the check passes the port.

    Returns:
        The same table with ``CAUGHT`` and ``PASSES``.
    """
    return passes.map(caught)

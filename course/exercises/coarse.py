"""An answer that is right but computed in float32, although the exercise is in float64."""

from course.exercises.report import say

import numpy as np


class Coarse:
    """What the cases of an exercise found of the precision of an answer."""

    # What float32 may round, relative to the largest number: well below what any mistake of these exercises changes.
    WITHIN = 1e-5

    def __init__(self) -> None:
        self.found = False

    def outputs(self, expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what a case returns; for an answer that float32 has rounded, outputs that agree."""
        if expected.shape == found.shape:
            difference = np.abs(expected - found).max()
            if 1e-12 < difference <= self.WITHIN * max(1.0, np.abs(expected).max()):
                self.found = True
                return expected, expected
        return expected, found

    def say(self) -> None:
        """Print a line about it, if any case was computed in float32."""
        if self.found:
            say("  (computed in float32, and rounded: the tensors that it is given are float64)")


def say_weight_is_float32() -> None:
    """Print a line about a right weight that is in float32, although the kernel is in float64."""
    say("  (the weight is in float32, rounded: the kernel is float64)")

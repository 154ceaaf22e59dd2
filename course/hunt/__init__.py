"""A broken port for each learner: one to three mistakes to find, to explain and to fix.

``python -m course.hunt SEED`` writes a notebook. This module has what that notebook calls.
"""

import logging

from course.hunt.answers import check_fixed, check_found, hint
from course.hunt.drawing import CASES, broken_port, code_of, keras_side

__all__ = ["CASES", "broken_port", "check_fixed", "check_found", "code_of", "hint", "keras_side"]

# One network has a grouped convolution, which TensorFlow compiles anew at each call, and warns of it.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

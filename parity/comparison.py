"""The ruler: how far apart are two outputs, and is that agreement?

An agreement between arrays that hold NaN, that have different shapes or that are empty would say nothing, so each of
these is a failure. numpy.allclose would broadcast the second and pass the third.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

_HEADER = ("verdict", "|diff|", "what was compared", "shape")
# Of verdict, difference and name. With shapes of four axes a line has at most 76 columns: more does not fit on a
# projector or beside a list of files.
_WIDTHS = (14, 8, 30)


def largest_difference(a: Any, b: Any) -> float:
    """Return the largest absolute difference between two arrays of the same shape.

    Args:
        a: An array or tensor with numbers.
        b: Another of the same shape; its axes in the same order.

    Returns:
        The largest of ``|a - b|``, computed in float64; infinity if either holds an infinite value.

    Raises:
        ValueError: If the shapes differ, the arrays are empty, or either holds NaN.
        TypeError: If either holds complex numbers.
    """
    a, b = _array(a), _array(b)
    obstacle = _obstacle(a, b)
    if obstacle:
        raise ValueError(f"shapes {a.shape} and {b.shape} cannot be compared: {obstacle}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def compare(name: str, keras_output: Any, torch_output: Any, within: float = 1e-12) -> bool:
    """Print a line that says whether two outputs agree: verdict, largest absolute difference, name, shape.

    A difference that is larger than ``within`` is printed with two digits, or one where the outputs are float32 and
    the difference is under a hundredth of them; so the line is the same on every machine. The rounding noise of an
    agreement is not, and only its bound is printed. A second line says so if an output is float32 and ``within`` is
    smaller than what float32 can tell apart.

    Args:
        name: What is compared, in a few words.
        keras_output: Output of the Keras model. A model with several outputs returns them as a tuple, a list or a
            dictionary: each is compared by itself, on a line of its own.
        torch_output: Output of the PyTorch model, its axes brought into the same order; several as in Keras.
        within: The largest absolute difference that is agreement. Rounding makes about 1e-15 of the largest value in
            float64, 1e-6 of it in float32.

    Returns:
        True if there are as many outputs under the same names and all have the same shape as their counterpart, are
        neither empty nor NaN nor infinite, and agree.
    """
    keras_outputs, torch_outputs = dict(_named(name, keras_output)), dict(_named(name, torch_output))
    if keras_outputs.keys() != torch_outputs.keys():
        print(_line("OUTPUTS DIFFER", "-", name, f"{_listed(keras_outputs, name)} and {_listed(torch_outputs, name)}"))
        return False
    agree = [_compare_one(one, keras_outputs[one], torch_outputs[one], within) for one in keras_outputs]
    return bool(agree) and all(agree)


def header() -> None:
    """Print what the columns of ``compare`` are."""
    print(_line(*_HEADER))


def _compare_one(name: str, keras_output: Any, torch_output: Any, within: float) -> bool:
    a, b = _array(keras_output), _array(torch_output)
    difference, verdict, agree = "-", _obstacle(a, b), False
    if not verdict:
        distance = largest_difference(a, b)
        agree = bool(np.isfinite(distance) and distance <= within)
        difference = f"< {within:.0e}" if agree else _rounded(distance, a, b)
        verdict = "agree" if agree else "DIFFERENT"
    print(_line(verdict, difference, name, a.shape if a.shape == b.shape else f"{a.shape} and {b.shape}"))
    coarse = [framework for framework, array in (("Keras", a), ("PyTorch", b)) if array.dtype == np.float32]
    if coarse and verdict == "DIFFERENT" and within < _float32_noise(a, b):
        print(f"{'':{_WIDTHS[0]}} ({' and '.join(coarse)} computed in float32, too coarse for a bound of {within:.0e})")
    return agree


def _named(name: str, output: Any) -> Iterator[tuple[str, Any]]:
    """Yield each output with a name; a list of numbers is one output, an array."""
    if isinstance(output, Mapping):
        parts = [(f"{name}, {key}", value) for key, value in output.items()]
    elif isinstance(output, list | tuple) and any(_holds_arrays(value) for value in output):
        parts = [(f"{name}, {number}", value) for number, value in enumerate(output)]
    else:
        yield name, output
        return
    for part, value in parts:
        yield from _named(part, value)


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_arrays, value))
    return isinstance(value, Mapping) or len(getattr(value, "shape", ())) > 0


def _listed(outputs: Mapping[str, Any], name: str) -> str:
    """Return the names of outputs; the name of the comparison, which they begin with, is left out."""
    return ", ".join(one.removeprefix(name).removeprefix(", ") or "a single one" for one in outputs) or "none"


def _array(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        # numpy has no bfloat16; every bfloat16 is a float32.
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    array = np.asarray(x)
    if np.iscomplexobj(array):
        raise TypeError("complex numbers cannot be compared")
    return array


def _obstacle(a: np.ndarray, b: np.ndarray) -> str:
    """Return what keeps two arrays from being compared, or nothing."""
    if a.shape != b.shape:
        return "SHAPES DIFFER"
    if a.size == 0:
        return "EMPTY"
    for framework, array in (("KERAS", a), ("PYTORCH", b)):
        if np.isnan(array).any():
            return f"NaN IN {framework}"
    return ""


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    return max(float(np.abs(a).max()), float(np.abs(b).max()))


def _float32_noise(a: np.ndarray, b: np.ndarray) -> float:
    """Return how far apart two neighbouring float32 numbers of the size of these outputs are."""
    return float(np.finfo(np.float32).eps) * _largest(a, b)


def _rounded(distance: float, a: np.ndarray, b: np.ndarray) -> str:
    scale = _largest(a, b)
    coarse = min(a.dtype.itemsize, b.dtype.itemsize) < np.dtype(np.float64).itemsize and distance < 1e-2 * scale
    if coarse and distance < 1e-3 * scale:
        return f"> {10.0 ** np.floor(np.log10(distance)):.0e}"
    return f"{distance:.1g}" if coarse else f"{distance:.2g}"


def _line(verdict: str, difference: str, name: str, shape: object) -> str:
    widths = _WIDTHS
    return f"{verdict:<{widths[0]}} {difference:>{widths[1]}}  {name:<{widths[2]}}  {shape}"

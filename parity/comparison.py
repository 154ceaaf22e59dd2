"""The ruler: how far apart are two outputs, and is that agreement?

An agreement between arrays that hold NaN, that have different shapes or that are empty would say nothing, so each of
these is a failure. numpy.allclose would broadcast the second and pass the third.
"""

from typing import Any

import numpy as np
import torch

_HEADER = ("", "Keras", "PyTorch", "largest |difference|", "verdict")
_WIDTHS = (35, 17, 17, 20)


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
    """Print one line that says whether two outputs agree: name, shapes, largest absolute difference, verdict.

    A difference that is larger than ``within`` is printed with two digits, or one where the outputs are float32 and
    the difference is under a hundredth of them; so the line is the same on every machine. The rounding noise of an
    agreement is not, and only its bound is printed.

    Args:
        name: What is compared, in a few words.
        keras_output: Output of the Keras model.
        torch_output: Output of the PyTorch model, its axes brought into the same order.
        within: The largest absolute difference that is agreement. Rounding makes about 1e-15 of the largest value in
            float64, 1e-6 of it in float32.

    Returns:
        True if the outputs have the same shape, are neither empty nor NaN nor infinite, and agree.
    """
    a, b = _array(keras_output), _array(torch_output)
    difference, verdict, agree = "-", _obstacle(a, b), False
    if not verdict:
        distance = largest_difference(a, b)
        agree = bool(np.isfinite(distance) and distance <= within)
        difference = f"< {within:.0e}" if agree else _rounded(distance, a, b)
        verdict = "agree" if agree else "DIFFERENT"
    print(_line(name, a.shape, b.shape, difference, verdict))
    return agree


def header() -> None:
    """Print what the columns of ``compare`` are."""
    print(_line(*_HEADER))


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


def _rounded(distance: float, a: np.ndarray, b: np.ndarray) -> str:
    scale = max(float(np.abs(a).max()), float(np.abs(b).max()))
    coarse = min(a.dtype.itemsize, b.dtype.itemsize) < np.dtype(np.float64).itemsize and distance < 1e-2 * scale
    if coarse and distance < 1e-3 * scale:
        return f"> {10.0 ** np.floor(np.log10(distance)):.0e}"
    return f"{distance:.1g}" if coarse else f"{distance:.2g}"


def _line(*fields: object) -> str:
    *texts, verdict = (str(field) for field in fields)
    return " ".join([*(text.ljust(width) for text, width in zip(texts, _WIDTHS, strict=True)), verdict])

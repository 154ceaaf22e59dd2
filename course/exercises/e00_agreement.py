"""The exercises of notebook 00: a comparison of several outputs, and images that tell wrong ports from a right one."""

from collections.abc import Callable, Iterator
from textwrap import shorten
from typing import Any

from course.exercises.report import in_words, is_empty, is_right, not_attempted, wrong
from parity import largest_difference, run_torch
from parity.padding import Conv2dSame

import keras
import numpy as np
import torch
from torch import Tensor, nn

Outputs = dict[str, np.ndarray]

_KERNEL = (3, 5)


def check_outputs(answer: Callable[[Outputs, Outputs, float], bool]) -> None:
    """Check a function of (Keras's outputs by name, PyTorch's, within) that says whether they agree.

    What counts as True in Python counts here: an answer may return the empty dictionary for False.
    """
    # What is no plain function, such as a functools.partial, has no code that could be looked at.
    if answer is None or (hasattr(answer, "__code__") and is_empty(answer)):
        not_attempted("Several outputs")
        return
    pairs = list(_pairs())
    for name, keras_outputs, torch_outputs, within, expected in pairs:
        problem = _misjudged(answer, keras_outputs, torch_outputs, within, expected)
        if problem:
            wrong("Several outputs", f"wrong for {name}: {problem}")
            return
    is_right("Several outputs", f"it judges all {len(pairs)} pairs")


def check_images(images: np.ndarray | None) -> None:
    """Check images (batch, height, width, 3): each wrong port must differ from Keras on them, the right one not."""
    if images is None:
        not_attempted("Images")
        return
    try:
        images = _as_images(images)
    except ValueError as error:
        wrong("Images", f"{error}; needed is one array (batch, height, width, 3) of finite real numbers")
        return
    if np.abs(images).max() > 1e6:
        wrong("Images", "they hold numbers above a million; such numbers need a wider tolerance")
        return
    keras_model, right, ports = _models()
    expected = np.asarray(keras_model(images))
    # Rounding grows with the numbers within the model, and images may be large.
    tolerance = 1e-10 * max(1.0, float(np.abs(images).max()))
    if largest_difference(expected, run_torch(right, images)) > tolerance:
        wrong("Images", "the right port differs on them, too")
        return
    missed = [name for name, port in ports.items() if largest_difference(expected, run_torch(port, images)) < tolerance]
    if missed:
        found = len(ports) - len(missed)
        wrong(
            "Images",
            f"{found} of {len(ports)} wrong ports differ on these images. No difference for: {', '.join(missed)}",
        )
    else:
        is_right("Images", f"all {len(ports)} wrong ports differ on these images")


def _misjudged(
    answer: Callable, keras_outputs: Outputs, torch_outputs: Outputs, within: float, expected: bool
) -> str | None:
    """Return what is wrong with an answer's verdict on copies of two models' outputs, if anything."""
    copies = ({name: array.copy() for name, array in outputs.items()} for outputs in (keras_outputs, torch_outputs))
    try:
        # Numbers that are not finite make numpy warn, and the warning would be stored with the notebook.
        with np.errstate(all="ignore"):
            said = answer(*copies, within)
        if said is None:
            return "it returned None; is a `return` missing?"
        if bool(said) == expected:
            return None
    except Exception as error:
        return f"{in_words(error)} ({expected} was expected)"
    return f"{shorten(repr(said), 60, placeholder=' …')}, not {expected}"


def _as_images(images: Any) -> np.ndarray:
    """Return images in float64; a ValueError says why they are not one array of images."""
    if isinstance(images, Tensor):
        images = images.detach().cpu()
    try:
        array = np.asarray(images)
    except (TypeError, ValueError):
        raise ValueError("these are several arrays of different shapes") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the type of their numbers is {array.dtype}")
    if array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"the shape is {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("some numbers are NaN or infinite")
    return array.astype(np.float64)


def _pairs() -> Iterator[tuple[str, Outputs, Outputs, float, bool]]:
    """Yield (what it is, Keras's outputs, PyTorch's, within, whether they agree within that of each one's largest)."""
    rng = np.random.default_rng(0)
    angle, logit = (rng.normal(size=(4, 1)).astype(np.float32) for _ in range(2))
    noise = 1 + 1e-7 * rng.normal(size=(4, 1)).astype(np.float32)
    ones, empty, zero = np.ones((4, 1)), np.ones((0, 1)), angle.copy()
    nan, infinite = angle.copy(), angle.copy()
    zero[1], nan[2], infinite[2] = 0, np.nan, np.inf
    below, above = (np.array([[4.0], [-20.0], [7.0], [0.5 + share * 20e-5]]) for share in (0.9, 1.1))
    exact = np.array([[4.0], [-20.0], [7.0], [0.5]])
    both, rounded = {"angle": angle, "logit": logit}, {"angle": angle * noise, "logit": logit * noise}

    cases: list[tuple[str, Outputs, Outputs, bool]] = [
        ("equal outputs", both, both, True),
        ("rounding", both, rounded, True),
        ("rounding of large outputs", {"area": 1e6 * angle}, {"area": 1e6 * angle * noise}, True),
        ("rounding of negative outputs", {"angle": -3 * ones}, {"angle": -3 * ones * noise}, True),
        ("rounding of a number near 0", {"angle": zero}, {"angle": zero + np.float32(1e-7)}, True),
        ("names in another order", both, {"logit": logit, "angle": angle}, True),
        ("exchanged outputs", both, {"angle": logit, "logit": angle}, False),
        ("exchanged images", both, {"angle": angle[::-1], "logit": logit[::-1]}, False),
        ("the first output wrong", both, {"angle": angle + 1, "logit": logit}, False),
        ("the last output wrong", both, {"angle": angle, "logit": logit + 1}, False),
        ("an output too small", both, {"angle": angle - 1, "logit": logit}, False),
        ("a small output doubled", both | {"rate": 1e-7 * ones}, both | {"rate": 2e-7 * ones}, False),
        ("(4, 1) with (4,)", {"angle": ones}, {"angle": ones[:, 0]}, False),
        ("an output missing in PyTorch", both, {"angle": angle}, False),
        ("an output missing in Keras", {"angle": angle}, both, False),
        ("no outputs", {}, {}, False),
        ("empty arrays", {"angle": empty}, {"angle": empty}, False),
        ("NaN in PyTorch", {"angle": angle}, {"angle": nan}, False),
        ("NaN in both", {"angle": nan}, {"angle": nan}, False),
        ("infinity in Keras", {"angle": infinite}, {"angle": angle}, False),
        ("infinity in both", {"angle": infinite}, {"angle": infinite}, False),
        ("one number off by 0.9 of the bound", {"angle": exact}, {"angle": below}, True),
        ("one number off by 1.1 of the bound", {"angle": exact}, {"angle": above}, False),
    ]
    for name, keras_outputs, torch_outputs, expected in cases:
        yield name, keras_outputs, torch_outputs, 1e-5, expected
    yield "rounding, within=1e-9", both, rounded, 1e-9, False
    yield "1.1e-5 of the largest, within=1e-4", {"angle": exact}, {"angle": above}, 1e-4, True


def _models() -> tuple[keras.Model, nn.Module, dict[str, Callable[[Tensor], Tensor]]]:
    """Return a Keras model from (batch, height, width, 3) to (batch, 1), its port, and wrong ports by what they do."""
    rng = np.random.default_rng(0)
    keras_model = keras.Sequential(
        [
            keras.Input((None, None, 3), dtype="float64"),
            keras.layers.Conv2D(4, _KERNEL, 2, "same", activation="relu", dtype="float64"),
            keras.layers.GlobalAveragePooling2D(dtype="float64"),
            keras.layers.Dense(1, dtype="float64"),
        ]
    )
    keras_model.set_weights([0.1 * rng.normal(size=weight.shape) for weight in keras_model.weights])
    kernel, bias, head, head_bias = (torch.tensor(weight) for weight in keras_model.get_weights())

    def port(
        convolution: nn.Module, activation: nn.Module | None = None, mean_over: tuple[int, ...] = (2, 3)
    ) -> Callable[[Tensor], Tensor]:
        convolution.load_state_dict({"weight": kernel.permute(3, 2, 0, 1), "bias": bias})

        def run(x: Tensor) -> Tensor:
            features = (activation or nn.ReLU())(convolution(x)).mean(mean_over, keepdim=True).flatten(1)
            return (features @ head + head_bias).expand(len(x), 1)

        return run

    def same() -> nn.Module:
        return Conv2dSame(3, 4, _KERNEL, stride=2, dtype=torch.float64)

    def padded(*padding: int) -> nn.Module:
        convolution = nn.Conv2d(3, 4, _KERNEL, stride=2, dtype=torch.float64)
        # The hook keeps the keys of the state dict as they are.
        convolution.register_forward_pre_hook(lambda _, inputs: nn.functional.pad(inputs[0], padding))
        return convolution

    right = port(same())
    ports = {
        "pads right at odd sizes only": port(padded(2, 2, 1, 1)),
        "pads right at even sizes only": port(padded(1, 3, 0, 2)),
        "reads colours in reverse order": lambda x: right(x.flip(1)),
        "sets negative pixels to 0": lambda x: right(x.relu()),
        "cuts features off at 6": port(same(), nn.ReLU6()),
        "averages over the batch": port(same(), mean_over=(0, 2, 3)),
    }
    return keras_model, right, ports

"""The exercises of notebook 04: padding."""

from collections.abc import Callable, Iterator
from operator import index
from textwrap import shorten
from typing import Any

from course.exercises.report import Case, report
from parity import ParityError, channels_first, largest_difference
from parity.axes import torch_input
from parity.padding import pad_same, same_padding

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def check_same_padding(answer: Callable[[int, int, int, int], tuple[int, int]]) -> None:
    """Check a function of (size, kernel, stride, dilation) that returns the padding (before, after) of one axis."""
    report(
        "Dilation",
        {
            "dilation 1": _padding_cases(
                answer, [(n, k, s, 1) for n in (5, 6, 11) for k in (2, 3, 5, 1) for s in (1, 2, 3)]
            ),
            "dilation over 1": _padding_cases(
                answer, [(n, k, 1, d) for n in (9, 10) for k in (2, 3, 4) for d in (2, 3)]
            ),
        },
        answer,
    )


def check_average_pool_same(answer: Callable[[Tensor, int, int], Tensor]) -> None:
    """Check a function of (x, kernel, stride) that average-pools (batch, channels, height, width) like Keras."""
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 3))
    report(
        "Average pooling",
        {
            "odd sizes, kernel 3, stride 2": _pooling_cases(answer, x, [(3, 2)]),
            "even sizes, kernel 3, stride 2": _pooling_cases(answer, x[:, 1:, 1:], [(3, 2)]),
            "other kernels and strides": _pooling_cases(answer, x[:, 1:], [(2, 2), (3, 1), (4, 3), (2, 3), (5, 2)]),
        },
        answer,
    )


def _padding_cases(answer: Callable, settings: list[tuple[int, int, int, int]]) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for size, kernel, stride, dilation in settings:
        x = rng.normal(size=(2, size, 3))
        layer = keras.layers.Conv1D(4, kernel, stride, "same", dilation_rate=dilation, dtype="float64")
        expected = channels_first(np.asarray(layer(x)))
        weight = torch.from_numpy(np.asarray(layer.kernel)).permute(2, 1, 0)

        def run(x=x, expected=expected, weight=weight, arguments=(size, kernel, stride, dilation)):
            padding = answer(*arguments)
            if padding is None:
                return None
            padding = _as_padding(padding)
            padded = F.pad(torch_input(x), padding)
            output = F.conv1d(padded, weight, stride=arguments[2], dilation=arguments[3])
            if output.shape != expected.shape:
                outputs = f"{output.shape[2]} outputs, not {expected.shape[2]}"
                raise ParityError("answer", [f"{padding} makes {outputs}"])
            difference = largest_difference(expected, output)
            if difference > 1e-12:
                right = sum(padding) == sum(same_padding(*arguments))
                total = "the total is right, the sides are not" if right else "Keras adds another total"
                raise ParityError("answer", [f"{padding}: other numbers, by up to {difference:.2g}; {total}"])
            return expected, output

        yield f"size {size}, kernel {kernel}, stride {stride}, dilation {dilation}", run


def _as_padding(answer: Any) -> tuple[int, int]:
    try:
        before, after = map(index, answer)
    except (TypeError, ValueError):
        shown = shorten(repr(answer), 60, placeholder=" …")
        raise ParityError("answer", [f"it returns {shown}, not two integers"]) from None
    if min(before, after) < 0:
        raise ParityError("answer", [f"it returns {before, after}; negative padding cuts data away"])
    return before, after


def _name_pooling_mistake(pooled: Tensor, kernel: int, stride: int, x: Tensor) -> None:
    """Raise a fault if a wrong average is one of two that people often compute."""
    padded = pad_same(x, (kernel, kernel), (stride, stride), (1, 1))
    if largest_difference(pooled, F.avg_pool2d(padded, kernel, stride)) < 1e-12:
        raise ParityError("answer", ["the divisor counts the padding, too"])
    on_both_sides = F.avg_pool2d(x, kernel, stride, (kernel - 1) // 2, count_include_pad=False)
    if on_both_sides.shape == pooled.shape and largest_difference(pooled, on_both_sides) < 1e-12:
        raise ParityError("answer", ["the padding is the same on both sides; Keras's is not the same here"])


def _pooling_cases(answer: Callable, x: np.ndarray, settings: list[tuple[int, int]]) -> Iterator[Case]:
    for kernel, stride in settings:
        layer = keras.layers.AveragePooling2D(kernel, stride, "same", dtype="float64")

        def run(layer=layer, arguments=(kernel, stride)):
            pooled = answer(torch_input(x), *arguments)
            if pooled is None:
                return None
            if not isinstance(pooled, Tensor):
                raise ParityError("answer", [f"it returns {type(pooled).__name__}, not a tensor"])
            if pooled.dtype != torch.float64:
                raise ParityError("answer", [f"it returns {pooled.dtype}; x is torch.float64"])
            expected = channels_first(np.asarray(layer(x)))
            if pooled.shape != expected.shape:
                raise ParityError("answer", [f"its shape is {tuple(pooled.shape)}, not {expected.shape}"])
            if largest_difference(expected, pooled) > 1e-12:
                _name_pooling_mistake(pooled, *arguments, torch_input(x))
            return expected, pooled

        yield f"{x.shape[1]} x {x.shape[2]}, kernel {kernel}, stride {stride}", run

"""What the exercises of the notebooks are checked with: Keras itself, on inputs that cannot hide a mistake.

Each check prints one line: not attempted yet, what is still wrong, or right.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from parity.compare import largest_difference
from parity.faults import ParityError
from parity.layouts import channels_first, channels_last
from parity.mapping import COLUMNS
from parity.transfer import transfer

import keras
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A group of cases that share a trait ("even sizes"): for each, its arguments in words, and what runs it and returns
# the outputs of Keras and of the answer, or None for an answer that returned None.
_Case = tuple[str, Callable[[], tuple[Any, Any] | None]]

_NOT_ATTEMPTED = "not attempted yet"


def check_same_padding(answer: Callable[[int, int, int, int], tuple[int, int]]) -> None:
    """Check a function of (size, kernel, stride, dilation) that returns the padding (before, after) of one axis."""
    _report(
        "Dilation",
        {
            "dilation 1": _padding_cases(
                answer, [(n, k, s, 1) for n in (5, 6, 11) for k in (2, 3, 5) for s in (1, 2, 3)]
            ),
            "dilation over 1": _padding_cases(
                answer, [(n, k, 1, d) for n in (9, 10) for k in (2, 3, 4) for d in (2, 3)]
            ),
        },
    )


def check_max_pool_same(answer: Callable[[Tensor, int, int], Tensor]) -> None:
    """Check a function of (x, kernel, stride) that max-pools (batch, channels, height, width) like Keras."""
    positive = np.random.default_rng(0).uniform(1, 2, size=(2, 7, 9, 3))
    _report(
        "Max pooling",
        {
            "odd sizes": _pooling_cases(answer, positive),
            "even sizes": _pooling_cases(answer, positive[:, 1:, 1:]),
            "negative input": _pooling_cases(answer, -1e30 * positive[:, 1:]),
        },
    )


def check_mapping_rows(
    answer: dict[str, str], keras_model: keras.Model, torch_model: nn.Module, remaining: pd.DataFrame
) -> None:
    """Check the PyTorch keys given for the Keras weights that a mapping lacks; "?" is not attempted.

    The models agree only if the answer and the rows that remain are the whole mapping.
    """

    def run():
        open_rows = list(answer.values()).count("?")
        if open_rows == len(answer):
            return None
        if open_rows:
            raise ParityError("answer", [f"{open_rows} of {len(answer)} rows are still '?'"])
        rows = pd.DataFrame(list(answer.items()), columns=COLUMNS)
        return _transferred(keras_model, torch_model, pd.concat([remaining, rows], ignore_index=True), {})

    _report("Mapping", {"these rows": [(f"{len(answer)} rows", run)]})


def check_flatten(
    answer: dict[str, tuple[int, ...]], keras_model: keras.Model, torch_model: nn.Module, mapping: pd.DataFrame
) -> None:
    """Check the argument ``flatten`` of ``transfer`` for a twin that flattens channels first; {} is not attempted."""

    def run():
        return _transferred(keras_model, torch_model, mapping, answer) if answer else None

    _report("Flatten", {"this twin": [(str(answer), run)]})


def _transferred(
    keras_model: keras.Model, torch_model: nn.Module, mapping: pd.DataFrame, flatten: dict[str, tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """Move the weights and return the outputs of both models on noise, side by side in one array each."""
    transfer(keras_model, torch_model, mapping, flatten)
    x = np.random.default_rng(0).random((2, *keras_model.input_shape[1:]), dtype=np.float32)
    with torch.no_grad():
        outputs = torch_model(torch.from_numpy(channels_first(x).astype(np.float64)))
    return np.concatenate(keras_model(x), axis=1), torch.cat(outputs, dim=1).numpy()


def _padding_cases(answer: Callable, settings: list[tuple[int, int, int, int]]) -> Iterator[_Case]:
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
            padded = F.pad(torch.from_numpy(channels_first(x).copy()), tuple(padding))
            return expected, F.conv1d(padded, weight, stride=arguments[2], dilation=arguments[3])

        yield f"size {size}, kernel {kernel}, stride {stride}, dilation {dilation}", run


def _pooling_cases(answer: Callable, x: np.ndarray) -> Iterator[_Case]:
    for kernel, stride in ((2, 2), (3, 2), (3, 1), (4, 3)):
        layer = keras.layers.MaxPooling2D(kernel, stride, "same", dtype="float64")

        def run(layer=layer, arguments=(kernel, stride)):
            pooled = answer(torch.from_numpy(channels_first(x).copy()), *arguments)
            return None if pooled is None else (np.asarray(layer(x)), channels_last(pooled))

        yield f"{x.shape[1]} x {x.shape[2]}, kernel {kernel}, stride {stride}", run


def _report(exercise: str, groups: dict[str, Iterable[_Case]]) -> None:
    """Run all cases; print what is right, and the first that is not."""
    right, count = [], 0
    for trait, cases in groups.items():
        for case, run in cases:
            problem = _problem(run)
            if problem == _NOT_ATTEMPTED:
                print(f"{exercise}: {problem}")
                return
            if problem:
                so_far = f"right for {', '.join(right)}; " if right else ""
                print(f"{exercise}: {so_far}wrong for {trait} ({case}): {problem}")
                return
            count += 1
        right.append(trait)
    print(f"{exercise}: right; it equals Keras" + (f" in all {count} cases" if count > 1 else ""))


def _problem(run: Callable[[], tuple[Any, Any] | None]) -> str:
    """Return what is wrong with one case, or nothing. A mistake of the reader must not stop the notebook."""
    try:
        outputs = run()
        if outputs is None:
            return _NOT_ATTEMPTED
        difference = largest_difference(*outputs)
    except ParityError as error:
        more = f"; and {len(error.faults) - 2} more" if len(error.faults) > 2 else ""
        return "; ".join(error.faults[:2]) + more
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "" if difference < 1e-12 else f"other numbers, by up to {difference:.2g}"

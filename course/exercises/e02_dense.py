"""The exercises of notebook 02: Dense layers."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from course.exercises.coarse import Coarse, say_weight_is_float32
from course.exercises.report import Case, report, say
from parity import ParityError, largest_difference, run_torch

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Fill = Callable[[nn.Linear, np.ndarray, np.ndarray], nn.Linear]

_SQUARE = ((4, 4), (7, 7))
_RECTANGULAR = ((3, 5), (6, 2), (1, 4), (4, 1))


def check_fill_linear(answer: Fill) -> None:
    """Check a function of (linear, kernel, bias) that fills a Linear from arrays (i, o) and (o,).

    It must do so without ``load_state_dict``, and raise an error if the kernel or the bias has a wrong shape.
    """
    coarse = Coarse()
    report(
        "Fill a Linear",
        {
            "layers that are not square": _filled(answer, coarse, _RECTANGULAR),
            "square layers": _filled(answer, coarse, _SQUARE),
            "float32 arrays": _filled(answer, coarse, [(3, 5)], dtype="float32"),
            "arrays that change afterwards": _filled(answer, coarse, [(3, 5)], trial="change"),
            "a bias of the wrong shape": _filled(answer, coarse, [(3, 5)], trial="bias"),
            "a kernel of the wrong shape": _filled(answer, coarse, [(3, 5)], trial="kernel"),
        },
        answer,
    )
    if coarse.found:
        say("  (the numbers of the Linear are rounded to float32: the arrays are float64)")


def check_pointwise_weight(answer: Callable[[Tensor], Tensor]) -> None:
    """Check a function of a Dense kernel (i, o) that returns the weight of a 1 x 1 convolution, both as tensors."""
    dtypes: set[torch.dtype] = set()
    report(
        "1 x 1 convolution",
        {
            "kernels that are not square": _convolved(answer, dtypes, _RECTANGULAR),
            "square kernels": _convolved(answer, dtypes, _SQUARE),
        },
        answer,
    )
    if torch.float32 in dtypes:
        say_weight_is_float32()


def _dense(inputs: int, outputs: int, dtype: str = "float64") -> tuple[keras.layers.Dense, np.ndarray, np.ndarray]:
    """Return a Dense layer that computes in float64, and its kernel and bias as arrays of this dtype."""
    rng = np.random.default_rng(inputs)
    kernel, bias = (rng.normal(size=shape).astype(dtype) for shape in ((inputs, outputs), outputs))
    layer = keras.layers.Dense(outputs, dtype="float64")
    layer.build((None, inputs))
    layer.set_weights([kernel, bias])
    return layer, kernel, bias


def _filled(
    answer: Fill,
    coarse: Coarse,
    sizes: Sequence[tuple[int, int]],
    dtype: str = "float64",
    trial: str = "",
) -> Iterator[Case]:
    """Yield a case for each size; it may change the arrays afterwards, or give a kernel or bias that does not fit."""
    for inputs, outputs in sizes:

        def run(inputs=inputs, outputs=outputs):
            layer, kernel, bias = _dense(inputs, outputs, dtype)
            x = np.random.default_rng(0).normal(size=(2, inputs))
            if trial in ("kernel", "bias"):
                _expect_refusal(answer, trial, kernel, bias)
            linear = nn.Linear(inputs, outputs, dtype=torch.float64)
            before = linear.weight.detach().numpy().copy()
            filled = _fill(answer, linear, kernel, bias)
            is_as_before = linear.weight.shape == before.shape and np.array_equal(linear.weight.detach(), before)
            if filled is None and is_as_before:
                return None
            if filled is not linear:
                missing = "; is a `return` missing?" if filled is None else ""
                raise ParityError("answer", [f"it returns {_kind(filled)}, not the Linear that it was given{missing}"])
            if is_as_before:
                raise ParityError("answer", ["the Linear still has the weight that it had before"])
            if trial == "change":
                _expect_own_memory(filled, kernel, bias)
            return coarse.outputs(np.asarray(layer(x)), run_torch(filled, x))

        yield f"{inputs} -> {outputs}", run


def _fill(answer: Fill, linear: nn.Linear, kernel: np.ndarray, bias: np.ndarray) -> Any:
    """Call the reader's function; there is no ``load_state_dict`` meanwhile."""

    def refuse(*args, **settings):
        raise ParityError("answer", ["it calls load_state_dict, but the exercise asks for `.copy_()`"])

    with mock.patch.object(nn.Module, "load_state_dict", refuse):
        return answer(linear, kernel, bias)


def _expect_own_memory(linear: nn.Linear, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Set both arrays to 0; no parameter of the Linear may change with them."""
    before = {name: parameter.detach().clone() for name, parameter in linear.named_parameters()}
    kernel[:], bias[:] = 0, 0
    changed = [name for name, parameter in linear.named_parameters() if not torch.equal(parameter, before[name])]
    if changed:
        names = " and the ".join(changed)
        problem = f"the {names} of the Linear changed together with the arrays, because they share memory"
        raise ParityError("answer", [problem])


def _expect_refusal(answer: Fill, which: str, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Give the answer the kernel or the bias with one row or one number only; it must raise an error."""
    linear = nn.Linear(*kernel.shape, dtype=torch.float64)
    given = {"kernel": kernel, "bias": bias}
    given[which] = given[which][:1]
    try:
        answer(linear, given["kernel"], given["bias"])
    except Exception:
        return
    raise ParityError(which, [f"a {which} of shape {given[which].shape} raises no error"])


def _convolved(
    answer: Callable[[Tensor], Tensor], dtypes: set[torch.dtype], sizes: Sequence[tuple[int, int]]
) -> Iterator[Case]:
    for inputs, outputs in sizes:

        def run(inputs=inputs, outputs=outputs):
            layer, kernel, bias = _dense(inputs, outputs)
            x = np.random.default_rng(0).normal(size=(2, 3, 5, inputs))
            with warnings.catch_warnings():
                # PyTorch warns of `.T` on more than two axes; the shape below says what is wrong.
                warnings.simplefilter("ignore")
                weight = answer(torch.from_numpy(kernel.copy()))
            if weight is None:
                return None
            if not isinstance(weight, Tensor):
                raise ParityError("answer", [f"it returns {_kind(weight)}, not a tensor"])
            if weight.shape != (outputs, inputs, 1, 1):
                shape = f"its shape is {tuple(weight.shape)}, not {(outputs, inputs, 1, 1)}"
                is_reversed = weight.shape == (1, 1, outputs, inputs)
                more = "; `.T` reverses all axes, so transpose first or use permute" if is_reversed else ""
                raise ParityError("answer", [shape + more])
            if weight.dtype not in (torch.float64, torch.float32):
                raise ParityError("answer", [f"it is of type {weight.dtype}, the kernel of type torch.float64"])
            dtypes.add(weight.dtype)
            # A weight in float32 is right if it is the kernel in float32.
            rounded = torch.from_numpy(kernel).to(weight.dtype).numpy()
            layer.set_weights([rounded, bias])
            weight = weight.detach().double()
            expected = np.asarray(layer(x))
            found = run_torch(lambda x: F.conv2d(x, weight, torch.from_numpy(bias)), x)
            has_all = np.array_equal(np.sort(weight.numpy(), axis=None), np.sort(rounded.astype("float64"), axis=None))
            if largest_difference(expected, found) > 1e-12 and has_all:
                raise ParityError("answer", ["the weight has all numbers of the kernel, but in another order"])
            return expected, found

        yield f"{inputs} -> {outputs}", run


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"

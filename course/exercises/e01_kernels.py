"""The exercises of notebook 01: the kernels of convolutions."""

from collections.abc import Callable, Iterator
from typing import Any

from course.exercises.coarse import say_weight_is_float32
from course.exercises.report import Case, report
from parity import ParityError, largest_difference, run_torch

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_Answer = Callable[[np.ndarray], Any]

_CONVOLUTIONS = (
    (1, keras.layers.Conv1D),
    (2, keras.layers.Conv2D),
    (3, keras.layers.Conv3D),
)
_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def check_convolution_weight(answer: _Answer) -> None:
    """Check a function from the kernel (*spatial, i, o) of a Conv1D, Conv2D or Conv3D to a weight (o, i, *spatial)."""
    recorder = _Recorder(answer)
    report(
        "Any convolution",
        {kind.__name__: _convolution_cases(recorder, rank, kind) for rank, kind in _CONVOLUTIONS},
        answer,
    )
    recorder.mention_precision()


def check_depthwise_weight(answer: _Answer) -> None:
    """Check a function from the kernel (h, w, i, m) of a DepthwiseConv2D to a weight (i * m, 1, h, w)."""
    recorder = _Recorder(answer)
    report(
        "Depthwise",
        {
            "multiplier 1": _depthwise_cases(recorder, (1,)),
            "multipliers over 1": _depthwise_cases(recorder, (2, 3)),
        },
        answer,
    )
    recorder.mention_precision()


class _Recorder:
    """The reader's function; it remembers whether a weight was in float32."""

    def __init__(self, answer: _Answer) -> None:
        self.answer = answer
        self.saw_float32 = False

    def __call__(self, kernel: np.ndarray) -> np.ndarray | None:
        weight = self.answer(kernel)
        if weight is None:
            return None
        weight = np.asarray(weight.detach().cpu() if isinstance(weight, Tensor) else weight)
        self.saw_float32 |= weight.dtype == np.float32
        return weight

    def mention_precision(self) -> None:
        if self.saw_float32:
            say_weight_is_float32()


def _convolution_cases(answer: _Recorder, rank: int, kind: type[keras.Layer]) -> Iterator[Case]:
    # Where no two sizes are equal a wrong order of axes shows in the shape; where all are, only in the numbers.
    for spatial, inputs, outputs in (((3, 5, 6)[:rank], 2, 4), ((3,) * rank, 3, 3)):
        layer = kind(outputs, spatial, use_bias=False, dtype="float64")
        name = f"kernel {_times(spatial)}, {inputs} to {outputs} channels"
        yield _case(answer, layer, inputs, _CONVOLVE[rank], name)


def _depthwise_cases(answer: _Recorder, multipliers: tuple[int, ...]) -> Iterator[Case]:
    for multiplier in multipliers:
        for spatial, channels in (((2, 5), 4), ((3, 3), 3)):
            layer = keras.layers.DepthwiseConv2D(spatial, depth_multiplier=multiplier, use_bias=False, dtype="float64")

            def convolve(x, weight, groups=channels):
                return F.conv2d(x, weight, groups=groups)

            name = f"kernel {_times(spatial)}, {channels} channels, multiplier {multiplier}"
            yield _case(answer, layer, channels, convolve, name)


def _case(
    answer: _Recorder,
    layer: keras.Layer,
    channels: int,
    convolve: Callable[..., Tensor],
    name: str,
) -> Case:
    """Return the case of one layer: its kernel is random, its input (2, *sizes, channels) has no two equal sizes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *(7, 8, 9)[: layer.rank], channels))
    layer.build(x.shape)
    kernel = rng.normal(size=tuple(layer.weights[0].shape))
    *spatial, first, second = kernel.shape
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    shape = (first * second, 1, *spatial) if is_depthwise else (second, first, *spatial)

    def run():
        weight = answer(kernel.copy())
        if weight is None:
            return None
        if weight.shape != shape:
            raise ParityError("answer", [f"the weight has the shape {weight.shape}, not {shape}"])
        if weight.dtype not in (np.float64, np.float32):
            raise ParityError("answer", [f"the weight is of type {weight.dtype}, the kernel of type {kernel.dtype}"])
        # A weight in float32 is right if it is the kernel in float32.
        rounded = kernel.astype(weight.dtype).astype(kernel.dtype)
        weight = weight.astype(kernel.dtype)
        layer.set_weights([rounded])
        expected = np.asarray(layer(x))
        # torch.from_numpy refuses views with negative strides.
        found = run_torch(lambda tensor: convolve(tensor, torch.from_numpy(np.ascontiguousarray(weight))), x)
        if largest_difference(expected, found) > 1e-12 and np.array_equal(np.sort(weight.flat), np.sort(rounded.flat)):
            raise ParityError("answer", ["the weight has all numbers of the kernel, but in another order"])
        return expected, found

    return name, run


def _times(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))

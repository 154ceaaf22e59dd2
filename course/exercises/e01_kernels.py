"""The exercises of notebook 01: the kernels of convolutions."""

from collections.abc import Callable, Iterator

from course.exercises.report import Case, report
from parity import ParityError, run_torch

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_Answer = Callable[[np.ndarray], np.ndarray | None]

_CONVOLUTIONS = (
    (1, keras.layers.Conv1D, F.conv1d),
    (2, keras.layers.Conv2D, F.conv2d),
    (3, keras.layers.Conv3D, F.conv3d),
)


def check_convolution_weight(answer: _Answer) -> None:
    """Check a function from the kernel (*spatial, i, o) of a Conv1D, Conv2D or Conv3D to a weight (o, i, *spatial)."""
    report(
        "Any convolution",
        {kind.__name__: _convolution_cases(answer, rank, kind, convolve) for rank, kind, convolve in _CONVOLUTIONS},
        answer,
    )


def check_depthwise_weight(answer: _Answer) -> None:
    """Check a function from the kernel (h, w, i, m) of a DepthwiseConv2D to a weight (i * m, 1, h, w)."""
    report(
        "Depthwise",
        {
            "multiplier 1": _depthwise_cases(answer, (1,)),
            "multipliers over 1": _depthwise_cases(answer, (2, 3)),
        },
        answer,
    )


def _convolution_cases(
    answer: _Answer, rank: int, kind: type[keras.Layer], convolve: Callable[..., Tensor]
) -> Iterator[Case]:
    # Where no two sizes are equal a wrong order of axes shows in the shape; where all are, only in the numbers.
    for spatial, inputs, outputs in (((3, 5, 6)[:rank], 2, 4), ((3,) * rank, 3, 3)):
        layer = kind(outputs, spatial, use_bias=False, dtype="float64")
        yield _case(answer, layer, inputs, convolve, f"kernel {_times(spatial)}, {inputs} to {outputs} channels")


def _depthwise_cases(answer: _Answer, multipliers: tuple[int, ...]) -> Iterator[Case]:
    for multiplier in multipliers:
        for spatial, channels in (((2, 5), 4), ((3, 3), 3)):
            layer = keras.layers.DepthwiseConv2D(spatial, depth_multiplier=multiplier, use_bias=False, dtype="float64")

            def convolve(x, weight, groups=channels):
                return F.conv2d(x, weight, groups=groups)

            name = f"kernel {_times(spatial)}, {channels} channels, multiplier {multiplier}"
            yield _case(answer, layer, channels, convolve, name)


def _case(answer: _Answer, layer: keras.Layer, channels: int, convolve: Callable[..., Tensor], name: str) -> Case:
    """Return the case of one layer: its kernel is random, its input (2, *sizes, channels) has no two equal sizes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *(7, 8, 9)[: layer.rank], channels))
    layer.build(x.shape)
    kernel = rng.normal(size=tuple(layer.weights[0].shape))
    layer.set_weights([kernel])
    *spatial, first, second = kernel.shape
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    shape = (first * second, 1, *spatial) if is_depthwise else (second, first, *spatial)

    def run():
        weight = answer(kernel.copy())
        if weight is None:
            return None
        weight = np.asarray(weight.detach() if isinstance(weight, Tensor) else weight)
        if weight.dtype != kernel.dtype:
            raise ParityError("answer", [f"the weight is of type {weight.dtype}, the kernel of type {kernel.dtype}"])
        if weight.shape != shape:
            raise ParityError("answer", [f"the weight has the shape {weight.shape}, not {shape}"])
        # torch.from_numpy refuses views with negative strides.
        weight = torch.from_numpy(np.ascontiguousarray(weight))
        return np.asarray(layer(x)), run_torch(lambda tensor: convolve(tensor, weight), x)

    return name, run


def _times(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))

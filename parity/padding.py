"""SAME padding as Keras computes it: the geometry, and PyTorch layers that pad so.

The rule is TensorFlow's (https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2): the output has
``ceil(size / stride)`` elements, the padding is just enough for that, and an odd element of padding goes **after** the
data. How much is needed depends on the size of the input, so it is computed whenever a layer is called.

One exception is TensorFlow's own: with a kernel so much smaller than the stride that two or more elements stay unread
(size 3, kernel 1, stride 3), its 3D layers on a CPU leave out half of them, rounded down, before the first that they
read (2.21.0). The layers here do not.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(size: int, kernel: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """Return how many elements SAME padding adds along one axis.

    Args:
        size: Number of elements of the input along the axis.
        kernel: Number of elements of the kernel (or of the pooling window) along the axis.
        stride: Step from one position of the kernel to the next.
        dilation: Distance between two neighbouring elements of the kernel.

    Returns:
        The elements added (before, after) the data: (left, right) or (top, bottom). They differ by at most one, and
        the larger is ``after``.

    Raises:
        ValueError: If an argument is less than 1.
    """
    for name, value in (("size", size), ("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        if value < 1:
            raise ValueError(f"same_padding: {name} must be at least 1, not {value}")
    output = -(-size // stride)
    reach = (kernel - 1) * dilation + 1
    total = max((output - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def pad_same(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], value: float = 0.0
) -> Tensor:
    """Pad the trailing axes of a tensor as SAME padding does.

    Args:
        x: Shape (..., *spatial), with as many spatial axes as ``kernel`` has entries.
        kernel: Size of the kernel for each spatial axis, in the order of the axes.
        stride: Stride for each spatial axis.
        dilation: Dilation for each spatial axis.
        value: What to pad with: 0 for a convolution, minus infinity for max pooling.

    Returns:
        The padded tensor; ``x`` itself where no padding is needed.
    """
    spatial = x.shape[x.ndim - len(kernel) :]
    pads = [same_padding(*axis) for axis in zip(spatial, kernel, stride, dilation, strict=True)]
    # F.pad wants the last axis first.
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


_KERAS_NAMES = {
    "filters": "out_channels",
    "pool_size": "kernel_size",
    "strides": "stride",
    "dilation_rate": "dilation",
    "use_bias": "bias",
}
_DECIDED = ("padding", "padding_mode", "output_padding")


def _refuse(layer: nn.Module, unknown: Iterable[str]) -> NoReturn:
    """Say why a layer does not take the first of some arguments."""
    kind, name = type(layer).__name__, next(iter(unknown))
    if name in _KERAS_NAMES:
        raise TypeError(f"{kind}: PyTorch says `{_KERAS_NAMES[name]}`, not `{name}`")
    if name in _DECIDED:
        raise TypeError(f"{kind}: it takes no `{name}`, because SAME padding decides it")
    raise TypeError(f"{kind}: it has no argument `{name}`")


if TYPE_CHECKING:

    class _Convolution(nn.Module):
        """What PyTorch's convolutions have in common. The classes below are mixins, each combined with one of them."""

        kernel_size: tuple[int, ...]
        stride: tuple[int, ...]
        dilation: tuple[int, ...]
        output_padding: tuple[int, ...]

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def forward(self, x: Tensor) -> Tensor: ...
else:
    _Convolution = object


class _WithoutPaddingArgument(_Convolution):
    """The constructor of a PyTorch convolution, less the arguments that SAME padding decides."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            _refuse(self, unknown)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )


class _ConvSame(_WithoutPaddingArgument):
    """A convolution with SAME padding, for every input size: what Keras computes with ``padding="same"``.

    Takes the arguments of the PyTorch class it derives from, less ``padding`` and ``padding_mode``, and has the same
    parameters under the same names.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (batch, in_channels, *spatial) to (batch, out_channels, *ceil(spatial / stride))."""
        return super().forward(pad_same(x, self.kernel_size, self.stride, self.dilation))


class Conv1dSame(_ConvSame, nn.Conv1d):
    """``nn.Conv1d`` with SAME padding, on (batch, channels, length)."""


class Conv2dSame(_ConvSame, nn.Conv2d):
    """``nn.Conv2d`` with SAME padding, on (batch, channels, height, width)."""


class Conv3dSame(_ConvSame, nn.Conv3d):
    """``nn.Conv3d`` with SAME padding, on (batch, channels, depth, height, width)."""


class _ConvTransposeSame(_WithoutPaddingArgument):
    """A transposed convolution whose output is exactly ``stride`` times as large as its input.

    It is the gradient of a convolution with SAME padding: the full result is computed, and what SAME padding would
    have added is cropped. Takes the arguments of the PyTorch class it derives from, less ``padding``,
    ``output_padding`` and ``padding_mode``, and has the same parameters under the same names.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        self.output_padding = tuple(max(s - r, 0) for s, r in zip(self.stride, reach, strict=True))
        self._crop = [max(r - s, 0) // 2 for s, r in zip(self.stride, reach, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (batch, in_channels, *spatial) to (batch, out_channels, *(spatial * stride))."""
        spatial = x.shape[x.ndim - len(self._crop) :]
        x = super().forward(x)
        first = x.ndim - len(self._crop)
        for axis, (before, size, stride) in enumerate(zip(self._crop, spatial, self.stride, strict=True), first):
            x = x.narrow(axis, before, size * stride)
        return x


class ConvTranspose1dSame(_ConvTransposeSame, nn.ConvTranspose1d):  # type: ignore[misc]  # its forward takes no output_size
    """``nn.ConvTranspose1d`` with SAME padding, on (batch, channels, length)."""


class ConvTranspose2dSame(_ConvTransposeSame, nn.ConvTranspose2d):  # type: ignore[misc]  # its forward takes no output_size
    """``nn.ConvTranspose2d`` with SAME padding, on (batch, channels, height, width)."""


class ConvTranspose3dSame(_ConvTransposeSame, nn.ConvTranspose3d):  # type: ignore[misc]  # its forward takes no output_size
    """``nn.ConvTranspose3d`` with SAME padding, on (batch, channels, depth, height, width)."""


def _each(value: int | Sequence[int], rank: int, name: str) -> tuple[int, ...]:
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or any(v < 1 for v in values):
        raise ValueError(f"{name} must be a positive integer, or one for each of {rank} axes, not {value!r}")
    return values


class _PoolSame(nn.Module):
    """Pooling with SAME padding, for every input size: what Keras computes with ``padding="same"``.

    Args:
        kernel_size: Size of the window: one number, or one for each spatial axis.
        stride: Step of the window, likewise; the size of the window if left out.
    """

    rank: int
    pool: Callable[..., Tensor]

    def __init__(
        self, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None = None, **unknown: Any
    ) -> None:
        if unknown:
            _refuse(self, unknown)
        super().__init__()
        self.kernel_size = _each(kernel_size, self.rank, "kernel_size")
        self.stride = self.kernel_size if stride is None else _each(stride, self.rank, "stride")

    def extra_repr(self) -> str:
        """Return the settings that ``print(module)`` shows."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"

    def _pool(self, x: Tensor, value: float) -> Tensor:
        padded = pad_same(x, self.kernel_size, self.stride, (1,) * self.rank, value)
        return type(self).pool(padded, self.kernel_size, self.stride)


class _MaxPoolSame(_PoolSame):
    """The largest element of each window; padding is minus infinity, so that it never wins."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool: (batch, channels, *spatial) to (batch, channels, *ceil(spatial / stride))."""
        return self._pool(x, float("-inf"))


class _AvgPoolSame(_PoolSame):
    """The sum of each window, divided by the number of its elements that are data, not padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool: (batch, channels, *spatial) to (batch, channels, *ceil(spatial / stride))."""
        data = torch.ones((1, 1, *x.shape[x.ndim - self.rank :]), dtype=x.dtype, device=x.device)
        return self._pool(x, 0.0) / self._pool(data, 0.0)


class MaxPool1dSame(_MaxPoolSame):
    """Max pooling with SAME padding, on (batch, channels, length)."""

    rank = 1
    pool = staticmethod(F.max_pool1d)


class MaxPool2dSame(_MaxPoolSame):
    """Max pooling with SAME padding, on (batch, channels, height, width)."""

    rank = 2
    pool = staticmethod(F.max_pool2d)


class MaxPool3dSame(_MaxPoolSame):
    """Max pooling with SAME padding, on (batch, channels, depth, height, width)."""

    rank = 3
    pool = staticmethod(F.max_pool3d)


class AvgPool1dSame(_AvgPoolSame):
    """Average pooling with SAME padding, on (batch, channels, length)."""

    rank = 1
    pool = staticmethod(F.avg_pool1d)


class AvgPool2dSame(_AvgPoolSame):
    """Average pooling with SAME padding, on (batch, channels, height, width)."""

    rank = 2
    pool = staticmethod(F.avg_pool2d)


class AvgPool3dSame(_AvgPoolSame):
    """Average pooling with SAME padding, on (batch, channels, depth, height, width)."""

    rank = 3
    pool = staticmethod(F.avg_pool3d)

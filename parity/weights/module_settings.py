"""The settings that a Keras layer and its module must agree in; they are checked where the module has them."""

from collections.abc import Callable, Iterator, Sequence
from math import isclose
from typing import Any

from parity.models.keras_layers import activation_name

import keras
from torch import nn

Settings = Iterator[tuple[str, Any, Any]]
"""The name of each setting, the value that the Keras layer needs, and the value that the module has."""

SettingsOf = Callable[[keras.Layer, nn.Module], Settings]

MOMENTUM = "momentum (1 - Keras's)"
"""The setting that matters in training only: a port with another momentum predicts the same."""

_FIXED: dict[type[nn.Module], dict[str, Any]] = {
    nn.LSTM: {"activation": "tanh", "recurrent_activation": "sigmoid"},
    nn.LSTMCell: {"activation": "tanh", "recurrent_activation": "sigmoid"},
    nn.GRU: {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": True},
    nn.GRUCell: {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": True},
}


def none(layer: keras.Layer, module: nn.Module) -> Settings:
    """Yield nothing: the shapes say all."""
    yield from ()


def same_setting(expected: object, actual: object) -> bool:
    """Tell whether two values of a setting are the same; fractions may differ by rounding."""
    if isinstance(expected, float) and isinstance(actual, float):
        return isclose(expected, actual, rel_tol=1e-6)
    return bool(expected == actual)


def each_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """Return a setting for each of so many axes, of one number for all or one for each."""
    return (value,) * rank if isinstance(value, int) else tuple(value)


def depthwise_channels(layer: Any) -> int:
    """Return the number of input channels of a depthwise convolution, or of the first part of a SeparableConv."""
    kernel = layer.depthwise_kernel if hasattr(layer, "depthwise_kernel") else layer.kernel
    return int(kernel.shape[-2])


def convolution(layer: Any, module: nn.Module) -> Settings:
    """Yield stride, dilation and groups."""
    yield from _geometry(layer, module)
    yield from _read(module, "groups", getattr(layer, "groups", 1))


def depthwise(layer: Any, module: nn.Module) -> Settings:
    """Yield stride, dilation and groups of a depthwise convolution."""
    yield from _geometry(layer, module)
    yield from _read(module, "groups", depthwise_channels(layer))


def pointwise(layer: keras.Layer, module: nn.Module) -> Settings:
    """Yield the stride and groups of a convolution that is a matrix product for each pixel."""
    stride = getattr(module, "stride", None)
    if isinstance(stride, tuple):
        yield "stride", (1,) * len(stride), stride
    yield from _read(module, "groups", 1)


def batch_normalization(layer: Any, module: nn.Module) -> Settings:
    """Yield epsilon and momentum."""
    yield from _read(module, "eps", layer.epsilon)
    yield from ((MOMENTUM, due, found) for _, due, found in _read(module, "momentum", 1 - layer.momentum))


def layer_normalization(layer: Any, module: nn.Module) -> Settings:
    """Yield epsilon, and that the mean is subtracted."""
    yield from _read(module, "eps", layer.epsilon)
    if isinstance(module, nn.LayerNorm):
        yield "rms_scaling", getattr(layer, "rms_scaling", False), False


def rms_normalization(layer: Any, module: nn.Module) -> Settings:
    """Yield epsilon."""
    yield from _read(module, "eps", layer.epsilon)


def group_normalization(layer: Any, module: nn.Module) -> Settings:
    """Yield epsilon and the number of groups."""
    yield from _read(module, "eps", layer.epsilon)
    yield from _read(module, "num_groups", layer.groups)


def embedding(layer: keras.Layer, module: nn.Module) -> Settings:
    """Yield that no vector is made shorter."""
    yield from _read(module, "max_norm", None)


def simple_rnn(layer: Any, module: nn.Module) -> Settings:
    """Yield the activation."""
    for name in ("nonlinearity", "activation"):
        yield from _read(module, name, activation_name(layer))


def gated(layer: Any, module: nn.Module) -> Settings:
    """Yield the activations of LSTM and GRU, and GRU's side of the reset gate."""
    due = {"activation": activation_name(layer), "recurrent_activation": layer.recurrent_activation.__name__}
    if hasattr(layer, "reset_after"):
        due["reset_after"] = layer.reset_after
    fixed = next((values for kind, values in _FIXED.items() if isinstance(module, kind)), {})
    for name, value in due.items():
        if name in fixed:
            yield name, value, fixed[name]
        else:
            yield from _read(module, name, value)
    yield from _read(module, "proj_size", 0)


def heads(layer: Any, module: nn.Module) -> Settings:
    """Yield the number of heads of an attention, whose query, key and value have kernels (width, heads, key_dim)."""
    if isinstance(module, nn.MultiheadAttention) and layer.kernel.ndim == 3:
        yield from _read(module, "num_heads", int(layer.kernel.shape[1]))


def _geometry(layer: Any, module: Any) -> Settings:
    for name, due in (("stride", layer.strides), ("dilation", layer.dilation_rate)):
        found = getattr(module, name, None)
        if isinstance(found, int):
            yield from _read(module, name, due if isinstance(due, int) or len(set(due)) > 1 else due[0])
        elif isinstance(found, tuple) and len(found) == layer.rank:
            yield name, each_axis(due, layer.rank), found


def _read(module: nn.Module, name: str, due: Any) -> Settings:
    """Yield a setting if the module has it; a module of the user's own may use the name for something else."""
    found = getattr(module, name, _MISSING)
    if found is None or isinstance(found, bool | int | float | str | tuple):
        yield name, due, found


_MISSING = object()

"""How each Keras layer's weights lie in PyTorch: one table.

The shapes are those of Keras (https://keras.io/api/layers/) and of PyTorch (https://docs.pytorch.org/docs/stable/nn.html).
``spatial`` stands for (length), (height, width) or (depth, height, width); i and o are the numbers of input and output
channels, m is the depth multiplier.

| Keras layer                    | weight             | Keras shape       | PyTorch tensor | PyTorch shape          |
| ------------------------------ | ------------------ | ----------------- | -------------- | ---------------------- |
| Conv1D, Conv2D, Conv3D         | kernel             | (spatial, i/g, o) | weight         | (o, i/g, spatial)      |
| Conv1D/2D/3DTranspose          | kernel             | (spatial, o, i)   | weight         | (i, o, spatial)        |
| DepthwiseConv1D/2D             | kernel             | (spatial, i, m)   | weight         | (i m, 1, spatial)      |
| SeparableConv1D/2D             | depthwise_kernel   | (spatial, i, m)   | weight (1st)   | (i m, 1, spatial)      |
|                                | pointwise_kernel   | (1s, i m, o)      | weight (2nd)   | (o, i m, 1s)           |
| Dense                          | kernel             | (i, o)            | weight         | (o, i)                 |
| BatchNormalization             | gamma, beta        | (c)               | weight, bias   | (c)                    |
|                                | moving_mean        | (c)               | running_mean   | (c)                    |
|                                | moving_variance    | (c)               | running_var    | (c)                    |
| LayerNormalization, GroupNorm. | gamma, beta        | (c)               | weight, bias   | (c)                    |
| PReLU with shared spatial axes | alpha              | (1s, c)           | weight         | (c)                    |
| Embedding                      | embeddings         | (v, e)            | weight         | (v, e)                 |

A bias is (o) in both, and a SeparableConv has only one, which belongs to its second convolution.
"""

from collections.abc import Callable, Iterator, Sequence
from math import isclose
from typing import Any, NamedTuple

import keras
from torch import Tensor, nn

_Settings = Iterator[tuple[str, Any, Any]]
# The module is one of the kinds in the same row of the table, so it has the settings that are read.
_SettingsOf = Callable[[keras.Layer, Any], _Settings]


MOMENTUM = "momentum (1 - Keras's)"
"""The setting that matters in training only: a port with another momentum predicts the same."""


class Place(NamedTuple):
    """Where one kind of Keras weight goes.

    Attributes:
        tensor: Name of the PyTorch tensor within its module.
        modules: The kinds of module that may hold it.
        view: Takes the Keras tensor and returns a view of it in PyTorch's layout.
        settings: Takes the Keras layer and the module, and yields each setting that must agree: its name, the value
            that the Keras layer needs, and the value that the module has.
        part: Which of the layer's modules it is, for a layer that becomes several modules.
        kind: What to call these modules in a message, if not by their own names.
    """

    tensor: str
    modules: tuple[type[nn.Module], ...]
    view: Callable[[Tensor], Tensor]
    settings: _SettingsOf
    part: str = ""
    kind: str = ""

    @property
    def needed(self) -> str:
        """Return what to call the kinds of module that may hold it: "Conv2d"."""
        return self.kind or " or ".join(module.__name__ for module in self.modules)


def _unchanged(weight: Tensor) -> Tensor:
    return weight


def _kernel(weight: Tensor) -> Tensor:
    """View (*spatial, a, b) as (b, a, *spatial): the kernels of all convolutions, transposed ones too, and of Dense."""
    *spatial, a, b = range(weight.ndim)
    return weight.permute(b, a, *spatial)


def _depthwise_kernel(weight: Tensor) -> Tensor:
    """View (*spatial, i, m) as (i * m, 1, *spatial)."""
    *spatial, i, m = range(weight.ndim)
    return weight.permute(i, m, *spatial).flatten(0, 1).unsqueeze(1)


def _shared_alpha(weight: Tensor) -> Tensor:
    """View a shared alpha (1, ..., 1, c) as (c,). An alpha for each place keeps its shape, which fits no nn.PReLU."""
    return weight.flatten() if weight.numel() == weight.shape[-1] else weight


def _none(layer: keras.Layer, module: Any) -> _Settings:
    yield from ()


def each_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """Return a setting for each of so many axes, of one number for all or one for each."""
    return (value,) * rank if isinstance(value, int) else tuple(value)


def depthwise_channels(layer: Any) -> int:
    """Return the number of input channels of a depthwise convolution, or of the first part of a SeparableConv."""
    kernel = layer.depthwise_kernel if hasattr(layer, "depthwise_kernel") else layer.kernel
    return int(kernel.shape[-2])


def same_setting(expected: object, actual: object) -> bool:
    """Tell whether two values of a setting are the same; fractions may differ by rounding."""
    if isinstance(expected, float) and isinstance(actual, float):
        return isclose(expected, actual, rel_tol=1e-6)
    return bool(expected == actual)


def _geometry(layer: keras.Layer, module: Any) -> _Settings:
    rank = len(module.stride)
    yield "stride", each_axis(layer.strides, rank), module.stride
    yield "dilation", each_axis(layer.dilation_rate, rank), module.dilation


def _convolution(layer: keras.Layer, module: Any) -> _Settings:
    yield from _geometry(layer, module)
    yield "groups", getattr(layer, "groups", 1), module.groups


def _depthwise(layer: keras.Layer, module: Any) -> _Settings:
    yield from _geometry(layer, module)
    yield "groups", depthwise_channels(layer), module.groups


def _pointwise(layer: keras.Layer, module: Any) -> _Settings:
    yield "stride", (1,) * len(module.stride), module.stride
    yield "groups", 1, module.groups


def _batch_normalization(layer: keras.Layer, module: Any) -> _Settings:
    yield "eps", layer.epsilon, module.eps
    yield MOMENTUM, 1 - layer.momentum, module.momentum


def _layer_normalization(layer: keras.Layer, module: Any) -> _Settings:
    yield "eps", layer.epsilon, module.eps
    yield "rms_scaling", getattr(layer, "rms_scaling", False), False


def _group_normalization(layer: keras.Layer, module: Any) -> _Settings:
    yield "eps", layer.epsilon, module.eps
    yield "num_groups", layer.groups, module.num_groups


def _embedding(layer: keras.Layer, module: Any) -> _Settings:
    yield "max_norm", None, module.max_norm


def _with_bias(place: Place, kernel: str = "kernel") -> dict[str, Place]:
    return {kernel: place, "bias": place._replace(tensor="bias", view=_unchanged)}


def _normalization(modules: tuple[type[nn.Module], ...], settings: _SettingsOf) -> dict[str, Place]:
    weight = Place("weight", modules, _unchanged, settings)
    return {"gamma": weight, "beta": weight._replace(tensor="bias")}


_L = keras.layers
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_batch_normalization_places = {
    name: place._replace(kind="BatchNorm") for name, place in _normalization(_BATCH_NORMS, _batch_normalization).items()
}

_LAYOUTS: dict[type[keras.Layer], dict[str, Place]] = {
    _L.Dense: _with_bias(Place("weight", (nn.Linear,), _kernel, _none)),
    _L.BatchNormalization: _batch_normalization_places
    | {
        "moving_mean": _batch_normalization_places["gamma"]._replace(tensor="running_mean"),
        "moving_variance": _batch_normalization_places["gamma"]._replace(tensor="running_var"),
    },
    _L.LayerNormalization: _normalization((nn.LayerNorm,), _layer_normalization),
    _L.GroupNormalization: _normalization((nn.GroupNorm,), _group_normalization),
    _L.PReLU: {"alpha": Place("weight", (nn.PReLU,), _shared_alpha, _none)},
    _L.Embedding: {"embeddings": Place("weight", (nn.Embedding,), _unchanged, _embedding)},
}
for _layer, _module in (
    (_L.Conv1D, nn.Conv1d),
    (_L.Conv2D, nn.Conv2d),
    (_L.Conv3D, nn.Conv3d),
    (_L.Conv1DTranspose, nn.ConvTranspose1d),
    (_L.Conv2DTranspose, nn.ConvTranspose2d),
    (_L.Conv3DTranspose, nn.ConvTranspose3d),
):
    _LAYOUTS[_layer] = _with_bias(Place("weight", (_module,), _kernel, _convolution))
for _layer, _module in ((_L.DepthwiseConv1D, nn.Conv1d), (_L.DepthwiseConv2D, nn.Conv2d)):
    _LAYOUTS[_layer] = _with_bias(Place("weight", (_module,), _depthwise_kernel, _depthwise))
for _layer, _module in ((_L.SeparableConv1D, nn.Conv1d), (_L.SeparableConv2D, nn.Conv2d)):
    _depthwise_place = Place("weight", (_module,), _depthwise_kernel, _depthwise, part="depthwise")
    _pointwise_place = Place("weight", (_module,), _kernel, _pointwise, part="pointwise")
    _LAYOUTS[_layer] = {"depthwise_kernel": _depthwise_place} | _with_bias(_pointwise_place, "pointwise_kernel")


def find_layout(layer: keras.Layer) -> dict[str, Place] | None:
    """Return where each weight of a Keras layer goes, by the name of the weight, or None for a kind not covered."""
    return next((_LAYOUTS[kind] for kind in type(layer).__mro__ if kind in _LAYOUTS), None)


def covered_layers() -> list[str]:
    """Return the names of the kinds of Keras layer that this table covers."""
    return sorted(kind.__name__ for kind in _LAYOUTS)

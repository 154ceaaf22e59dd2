"""How each Keras layer's weights lie in PyTorch: one table.

The shapes are those of Keras (https://keras.io/api/layers/) and of PyTorch (https://docs.pytorch.org/docs/stable/nn.html).
``spatial`` stands for (length), (height, width) or (depth, height, width); i and o are the numbers of input and output
channels, m is the depth multiplier, u the number of units of a recurrent layer, h the number of heads.

| Keras layer                    | weight             | Keras shape       | PyTorch tensor | PyTorch shape          |
| ------------------------------ | ------------------ | ----------------- | -------------- | ---------------------- |
| Conv1D, Conv2D, Conv3D         | kernel             | (spatial, i/g, o) | weight         | (o, i/g, spatial)      |
| Conv1D/2D/3DTranspose          | kernel             | (spatial, o, i)   | weight         | (i, o, spatial)        |
| DepthwiseConv1D/2D             | kernel             | (spatial, i, m)   | weight         | (i m, 1, spatial)      |
| SeparableConv1D/2D             | depthwise_kernel   | (spatial, i, m)   | weight (1st)   | (i m, 1, spatial)      |
|                                | pointwise_kernel   | (1s, i m, o)      | weight (2nd)   | (o, i m, 1s)           |
| Dense                          | kernel             | (i, o)            | weight         | (o, i)                 |
| EinsumDense; in an attention:  |                    |                   |                |                        |
|   query, key, value            | kernel             | (i, h, o)         | weight         | (h o, i)               |
|   attention_output             | kernel             | (h, i, o)         | weight         | (o, h i)               |
| BatchNormalization             | gamma, beta        | (c)               | weight, bias   | (c)                    |
|                                | moving_mean        | (c)               | running_mean   | (c)                    |
|                                | moving_variance    | (c)               | running_var    | (c)                    |
| LayerNormalization, GroupNorm. | gamma, beta        | (c)               | weight, bias   | (c)                    |
| RMSNormalization               | scale              | (c)               | weight         | (c)                    |
| Normalization                  | mean, variance     | (c)               | of any name    | (c)                    |
| PReLU with shared spatial axes | alpha              | (1s, c), (c, 1s)  | weight         | (c)                    |
| Embedding                      | embeddings         | (v, e)            | weight         | (v, e)                 |
| SimpleRNN, LSTM, GRU           | kernel             | (i, gates u)      | weight_ih_l0   | (gates u, i)           |
|                                | recurrent_kernel   | (u, gates u)      | weight_hh_l0   | (gates u, u)           |
| SimpleRNN, LSTM                | bias               | (gates u)         | bias_ih_l0     | (gates u)              |
| GRU                            | bias               | (2, 3 u)          | bias_ih_l0     | (3 u)                  |
|                                |                    |                   | bias_hh_l0     | (3 u)                  |
| Attention, AdditiveAttention   | scale              | () or (c)         | of any name    | () or (c)              |

A bias is (o) in both, and a SeparableConv has only one, which belongs to its second convolution. Keras's LSTM has the
gates in PyTorch's order. Its GRU has update, reset, new (z, r, h), and PyTorch reset, update, new (r, z, n):
``keras/src/layers/rnn/gru.py`` and https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html.
"""

from collections.abc import Callable

from parity.recurrent import GRU, LSTM, SimpleRNN
from parity.weights.module_settings import (
    SettingsOf,
    batch_normalization,
    convolution,
    depthwise,
    embedding,
    group_normalization,
    layer_normalization,
    pointwise,
    rms_normalization,
)
from parity.weights.places import (
    Place,
    channels_moved,
    depthwise_kernel,
    kernel,
    shared_alpha,
    standard_deviation,
    unchanged,
)
from parity.weights.sequence_layouts import (
    CONVOLUTIONS,
    LSTM_PLACES,
    SIMPLE_RNN_PLACES,
    einsum_dense,
    gru,
    linear,
)

import keras
from torch import nn

Layout = dict[str, Place]

PYTORCH_KINDS = (
    nn.Linear,
    nn.Bilinear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    *(LSTM, GRU, SimpleRNN),
)
"""PyTorch's kinds of module with tensors. Each names its tensors; a module of another class may call them anything."""


def _with_bias(place: Place, kernel: str = "kernel") -> Layout:
    return {kernel: place, "bias": place._replace(tensor="bias", view=unchanged)}


def _normalization(modules: tuple[type[nn.Module], ...], settings: SettingsOf, kind: str = "") -> Layout:
    weight = Place("weight", modules, unchanged, settings, kind=kind)
    # Of a layer that normalizes along several axes; the one whose shape fits is taken.
    weight = weight._replace(otherwise=(weight._replace(view=channels_moved),))
    bias = weight._replace(tensor="bias")
    return {"gamma": weight, "beta": bias._replace(otherwise=(bias._replace(view=channels_moved, otherwise=()),))}


def _free(view: Callable, names: str = r"\w+") -> Place:
    """Return a place in a module of the user's own, or in no module of its own: PyTorch has none for the layer."""
    return Place("tensor", (), view, names=names)


_L = keras.layers
_batch_norm = _normalization(
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), batch_normalization, "BatchNorm"
)
_statistics = _batch_norm["gamma"]._replace(otherwise=())
_scale = _free(unchanged)

_LAYOUTS: dict[type[keras.Layer], Layout | Callable[[keras.Layer], Layout]] = {
    _L.Dense: linear(kernel),
    _L.EinsumDense: einsum_dense,
    _L.BatchNormalization: _batch_norm
    | {
        "moving_mean": _statistics._replace(tensor="running_mean"),
        "moving_variance": _statistics._replace(tensor="running_var"),
    },
    _L.LayerNormalization: _normalization((nn.LayerNorm,), layer_normalization),
    _L.GroupNormalization: _normalization((nn.GroupNorm,), group_normalization),
    _L.RMSNormalization: {"scale": Place("weight", (nn.RMSNorm,), unchanged, rms_normalization)},
    _L.Normalization: {
        "mean": _free(unchanged),
        # A tensor that is called std is taken to be one.
        "variance": _free(unchanged, r"(?!(\w*_)?std$)\w+")._replace(
            otherwise=(_free(standard_deviation, r"(\w*_)?std"),)
        ),
    },
    _L.PReLU: {"alpha": Place("weight", (nn.PReLU,), shared_alpha)},
    _L.Embedding: {"embeddings": Place("weight", (nn.Embedding,), unchanged, embedding)},
    _L.SimpleRNNCell: SIMPLE_RNN_PLACES,
    _L.LSTMCell: LSTM_PLACES,
    _L.GRUCell: gru,
    _L.Attention: {"scale": _scale, "concat_score_weight": _scale},
    _L.AdditiveAttention: {"scale": _scale},
}
for _layer, _module in (
    (_L.Conv1D, nn.Conv1d),
    (_L.Conv2D, nn.Conv2d),
    (_L.Conv3D, nn.Conv3d),
    (_L.Conv1DTranspose, nn.ConvTranspose1d),
    (_L.Conv2DTranspose, nn.ConvTranspose2d),
    (_L.Conv3DTranspose, nn.ConvTranspose3d),
):
    _also = (*CONVOLUTIONS, nn.Linear) if _module in CONVOLUTIONS else ()
    _LAYOUTS[_layer] = _with_bias(Place("weight", (_module,), kernel, convolution, also=_also))
for _layer, _module in ((_L.DepthwiseConv1D, nn.Conv1d), (_L.DepthwiseConv2D, nn.Conv2d)):
    _LAYOUTS[_layer] = _with_bias(Place("weight", (_module,), depthwise_kernel, depthwise, also=CONVOLUTIONS))
for _layer, _module in ((_L.SeparableConv1D, nn.Conv1d), (_L.SeparableConv2D, nn.Conv2d)):
    _depthwise = Place("weight", (_module,), depthwise_kernel, depthwise, part="depthwise", also=CONVOLUTIONS)
    _pointwise = Place("weight", (_module,), kernel, pointwise, part="pointwise", also=CONVOLUTIONS)
    _LAYOUTS[_layer] = {"depthwise_kernel": _depthwise} | _with_bias(_pointwise, "pointwise_kernel")

_INSIDE = {
    _L.SimpleRNNCell: _L.SimpleRNN,
    _L.LSTMCell: _L.LSTM,
    _L.GRUCell: _L.GRU,
}
# Weights that the layer keeps for its training, or for files of old; no prediction depends on them.
_WITHOUT_PLACE = {_L.Normalization: ("count",), _L.SpectralNormalization: ("vector_u",)}


def find_layout(layer: keras.Layer) -> Layout | None:
    """Return where each weight of a Keras layer goes, by the name of the weight, or None for a kind not covered.

    The weights of a recurrent layer are in its cell, those of an attention in the layers within it.
    """
    layout = next((_LAYOUTS[kind] for kind in type(layer).__mro__ if kind in _LAYOUTS), None)
    return layout(layer) if callable(layout) else layout


def needs_no_place(layer: keras.Layer, weight: str) -> bool:
    """Tell whether no prediction depends on a weight of a layer, so that it need not go anywhere."""
    return any(isinstance(layer, kind) and weight in names for kind, names in _WITHOUT_PLACE.items())


def covered_layers() -> list[str]:
    """Return the names of the kinds of Keras layer that this table covers; an attention consists of these."""
    return sorted(_INSIDE.get(kind, kind).__name__ for kind in _LAYOUTS)

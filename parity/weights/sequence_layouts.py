"""The layouts of recurrent layers, EinsumDense and attention; ``parity.weights.layouts`` has them in its table."""

import re
from functools import partial
from typing import Any

from parity.recurrent import GRU, LSTM, SimpleRNN
from parity.weights.module_settings import gated, heads, pointwise, simple_rnn
from parity.weights.places import Place, kernel, unchanged

import keras
import torch
from torch import Tensor, nn

# Of a layer in nn.LSTM: its number and direction, as in weight_ih_l1_reverse. A cell's tensors have none.
_SLOT = r"(_l\d+(_reverse)?)?"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ATTENTION_KERNEL = r"in_proj_weight|[qkv]_proj_weight"
"""The names of the tensors of nn.MultiheadAttention that hold the kernels of query, key and value."""


def reset_first(gates: Tensor) -> Tensor:
    """Return the gates (3 u, ...) of Keras's GRU, update, reset, new, in PyTorch's order: reset, update, new."""
    update, reset, new = gates.chunk(3)
    return torch.cat([reset, update, new])


def _gru_kernel(weight: Tensor) -> Tensor:
    """Return (i, 3 u) as (3 u, i), the gates in PyTorch's order."""
    return reset_first(kernel(weight))


def _gru_bias(weight: Tensor, row: int) -> Tensor:
    """Return one of the two rows of (2, 3 u), or (3 u,), the only bias of a GRU with ``reset_after=False``."""
    return reset_first(weight[row] if weight.ndim == 2 else weight)


def _cell(modules: tuple[type[nn.Module], ...], settings: Any) -> dict[str, Place]:
    def place(tensor: str) -> Place:
        kind = f"recurrent module, such as nn.{modules[0].__name__}"
        return Place(tensor, modules, kernel, settings, kind=kind, names=tensor + _SLOT)

    # PyTorch adds two biases. Either may have the layer's, as long as the other is 0.
    bias = place("bias_ih")._replace(view=unchanged, names="bias_[ih]h" + _SLOT)
    return {"kernel": place("weight_ih"), "recurrent_kernel": place("weight_hh"), "bias": bias}


def gru(layer: Any) -> dict[str, Place]:
    """Return where the weights of a GRU, or of its cell, go."""
    places = _cell((nn.GRU, nn.GRUCell, GRU), gated)
    places |= {name: places[name]._replace(view=_gru_kernel) for name in ("kernel", "recurrent_kernel")}
    bias = places["bias"]._replace(view=partial(_gru_bias, row=0), names="bias_ih" + _SLOT)
    if getattr(layer, "reset_after", True):
        again = bias._replace(tensor="bias_hh", view=partial(_gru_bias, row=1), names="bias_hh" + _SLOT)
        bias = bias._replace(beside=(again,))
    return places | {"bias": bias}


LSTM_PLACES = _cell((nn.LSTM, nn.LSTMCell, LSTM), gated)
SIMPLE_RNN_PLACES = _cell((nn.RNN, nn.RNNCell, SimpleRNN), simple_rnn)


def slot_of(tensor: str) -> str:
    """Return which layer and direction of a recurrent module a tensor belongs to: "_l1_reverse"; else nothing."""
    found = re.fullmatch(r"(?:weight|bias)_[ih]h(_l\d+(?:_reverse)?)", tensor)
    return found[1] if found else ""


def linear(view: Any) -> dict[str, Place]:
    """Return where kernel and bias of a layer go that is a matrix product on the last axis.

    Args:
        view: Takes the kernel and returns it in the layout of ``nn.Linear``.
    """
    weight = Place("weight", (nn.Linear,), view, pointwise, also=CONVOLUTIONS)
    joint = Place("in_proj_weight", (nn.MultiheadAttention,), view, heads, names=ATTENTION_KERNEL)
    bias = weight._replace(tensor="bias", view=_flat)
    joint_bias = joint._replace(tensor="in_proj_bias", view=_flat, names="")
    return {
        "kernel": weight._replace(otherwise=(joint,)),
        "bias": bias._replace(otherwise=(joint_bias,)),
    }


def _flat(bias: Tensor) -> Tensor:
    return bias.flatten()


def einsum_dense(layer: Any) -> dict[str, Place]:
    """Return where the weights of an EinsumDense go whose equation is a matrix product: nowhere if it is another.

    In ``abc,cde->abde`` the axes d and e of the kernel are new, and c is summed over: the kernel (c, d, e) becomes
    (d e, c). See https://keras.io/api/layers/core_layers/einsum_dense/.
    """
    found = re.fullmatch(r"(\.*\w*),(\w+)->(\.*\w*)", layer.equation.replace(" ", ""))
    if found is None:
        return {}
    taken, own, returned = (part.strip(".") for part in found.groups())
    new = [axis for axis in returned if axis in own and axis not in taken]
    summed = [axis for axis in taken if axis in own and axis not in returned]
    if sorted(new + summed) != sorted(own) or not new or not summed:
        return {}
    places = linear(partial(_as_matrix, order=[own.index(axis) for axis in new + summed], rows=len(new)))
    if layer.bias is not None and layer.bias.ndim != len(new):
        del places["bias"]  # a bias along the axes of the input is none of nn.Linear
    return places


def _as_matrix(weight: Tensor, order: list[int], rows: int) -> Tensor:
    """Return a kernel with its axes in another order as a matrix: so many axes are rows, the others columns."""
    return weight.permute(order).flatten(0, rows - 1).flatten(1)


def is_query_key_or_value(layer: keras.Layer) -> int | None:
    """Return 0, 1 or 2 for the query, key and value of an attention: the order of nn.MultiheadAttention."""
    names = ("query", "key", "value")
    return names.index(layer.name) if layer.name in names else None

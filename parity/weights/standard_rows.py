"""The rows that move a whole recurrent layer or attention into a module of PyTorch that computes the same."""

from collections.abc import Iterator

from parity.models.keras_layers import inner_layers
from parity.recurrent import Recurrent
from parity.weights.mapping import Row
from parity.weights.sequence_layouts import is_query_key_or_value

import keras
from torch import nn

_TENSORS = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh", "bias": "bias_ih"}
_CELLS = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)


def standard_rows(layer: keras.Layer, name: str, module: nn.Module, first: int = 0) -> list[Row]:
    """Return the rows for all weights of a layer, none if the module is of no kind that is known to do the same.

    Args:
        layer: A recurrent layer, a Bidirectional one, or an attention with heads.
        name: The module's name in the twin.
        module: The module.
        first: The number of the layer within the module, which may have several: 1 for ``weight_ih_l1``.
    """
    if isinstance(module, nn.MultiheadAttention):
        pairs = _of_attention(layer)
    elif isinstance(module, nn.RNNBase | Recurrent):
        pairs = _of_recurrent(layer, module, first)
    else:
        return []
    prefix = f"{name}." if name else ""
    return [Row(f"row {number}", path, f"{prefix}{tensor}") for number, (path, tensor) in enumerate(pairs)]


def _of_attention(layer: keras.Layer) -> Iterator[tuple[str, str]]:
    for kind, tensor in (("kernel", "weight"), ("bias", "bias")):
        for inner in inner_layers(layer):
            for weight in inner.weights if inner is not layer else ():
                if weight.name == kind and is_query_key_or_value(inner) is not None:
                    yield weight.path, f"in_proj_{tensor}"
                elif weight.name == kind and inner.name == "attention_output":
                    yield weight.path, f"out_proj.{tensor}"


def _of_recurrent(layer: keras.Layer, module: nn.Module, first: int) -> Iterator[tuple[str, str]]:
    both = isinstance(layer, keras.layers.Bidirectional)
    ways = [(layer.forward_layer, ""), (layer.backward_layer, "_reverse")] if both else [(layer, "")]
    tensors = dict(module.named_parameters(recurse=False))
    for one, way in ways:
        cells = [inner for inner in inner_layers(one) if isinstance(inner, _CELLS)]
        for number, cell in enumerate(cells, first):
            for weight in cell.weights:
                yield weight.path, f"{_TENSORS[weight.name]}_l{number}{way}"
                again = f"bias_hh_l{number}{way}"
                # A GRU that resets after the product has two biases in one weight.
                if weight.name == "bias" and weight.ndim == 2 and again in tensors:
                    yield weight.path, again

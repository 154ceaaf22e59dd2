"""The rows that move a whole recurrent layer or attention into a module of PyTorch that computes the same."""

from collections.abc import Container, Iterator, Sequence

from parity.models.keras_layers import CELLS, inner_layers, layers_of_attention
from parity.recurrent import Recurrent
from parity.weights.layouts import find_layout
from parity.weights.mapping import Row

import keras
from torch import nn

Pair = tuple[str, str]
"""The path of a Keras weight, empty for a constant, and the name of a tensor within a module."""


def standard_rows(layer: keras.Layer, name: str, module: nn.Module, first: int = 0) -> list[Row]:
    """Return the rows for all weights of a layer, none if the module is of no kind that is known to do the same.

    Args:
        layer: A recurrent layer, a Bidirectional one, or an attention with heads.
        name: The module's name in the twin.
        module: The module.
        first: The number of the layer within the module, which may have several: 1 for ``weight_ih_l1``.
    """
    if isinstance(module, nn.MultiheadAttention):
        layers = layers_of_attention(layer)
        pairs = attention_pairs(layers, dict(module.named_parameters())) if layers else iter(())
    elif isinstance(module, nn.RNNBase | Recurrent):
        pairs = _of_recurrent(layer, module, first)
    else:
        return []
    prefix = f"{name}." if name else ""
    return [Row(f"row {number}", path, f"{prefix}{tensor}") for number, (path, tensor) in enumerate(pairs)]


def attention_pairs(layers: Sequence[keras.Layer], tensors: Container[str]) -> Iterator[Pair]:
    """Yield what the weights of an attention fill in ``nn.MultiheadAttention``.

    Args:
        layers: The layers of the query, the key, the value and the output.
        tensors: The names of the module's tensors. If query, key and value are of different widths, their kernels are
            apart there.
    """
    apart = "in_proj_weight" not in tensors
    kernels = [f"{letter}_proj_weight" if apart else "in_proj_weight" for letter in "qkv"]
    for kind, names in (("kernel", [*kernels, "out_proj.weight"]), ("bias", ["in_proj_bias"] * 3 + ["out_proj.bias"])):
        for layer, name in zip(layers, names, strict=True):
            yield from ((weight.path, name) for weight in layer.weights if weight.name == kind)


def cell_pairs(cell: keras.Layer, slot: str, module: nn.Module, tensors: Container[str]) -> Iterator[Pair]:
    """Yield what the weights of a cell fill in a recurrent module, none if the module is of another kind.

    Args:
        cell: The cell of a recurrent layer.
        slot: Which layer and direction of the module it is: "_l1_reverse"; empty for a module that is a cell.
        module: The module.
        tensors: The names of its tensors.
    """
    layout = find_layout(cell) or {}
    for weight in cell.weights:
        place = layout[weight.name]
        # A GRU that resets after the product has two biases in one weight.
        beside = (one for one in place.beside if f"{one.tensor}{slot}" in tensors)
        yield from ((weight.path, f"{one.tensor}{slot}") for one in (place, *beside) if isinstance(module, one.modules))


def _of_recurrent(layer: keras.Layer, module: nn.Module, first: int) -> Iterator[Pair]:
    both = isinstance(layer, keras.layers.Bidirectional)
    ways = [(layer.forward_layer, ""), (layer.backward_layer, "_reverse")] if both else [(layer, "")]
    tensors = dict(module.named_parameters(recurse=False))
    for one, way in ways:
        cells = [inner for inner in inner_layers(one) if isinstance(inner, CELLS)]
        for number, cell in enumerate(cells, first):
            yield from cell_pairs(cell, f"_l{number}{way}", module, tensors)

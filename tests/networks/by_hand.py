"""Random weights for a Keras model, and its weights in PyTorch's layout, computed without the tool.

The layouts are those of https://docs.pytorch.org/docs/stable/nn.html, and of Keras's own ``backend/torch/rnn.py`` for
recurrent layers. Every function for a layer returns {name of a tensor in its module: tensor}.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def drawn(*shape: int, seed: int | tuple[int, ...] = 0) -> np.ndarray:
    """Return normal random numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def words(*shape: int, size: int, seed: int = 0) -> np.ndarray:
    """Return random words of a vocabulary of a size, none of which is 0."""
    return np.random.default_rng(seed).integers(1, size, shape)


def randomized(model: keras.Model, seed: int = 0) -> keras.Model:
    """Give a Keras model random weights under which the outputs of its layers are of the order of 1; return it."""
    inputs_of = {id(layer.kernel): _fan_in(layer) for layer in layers(model) if hasattr(layer, "kernel")}
    for number, variable in enumerate(model.weights):
        values = drawn(*variable.shape, seed=(seed, number))
        if variable.name in ("moving_variance", "variance"):
            values = 0.5 + np.abs(values)
        elif variable.name == "scale":
            values = 1 + values / 2
        elif variable.name.endswith("kernel"):
            fan_in = inputs_of.get(id(variable), math.prod(variable.shape[:-1]))
            values = values * np.float32(1 / math.sqrt(fan_in))
        elif variable.dtype.startswith(("int", "uint")):  # the state of a random generator
            continue
        variable.assign(values)
    return model


def layers(model: keras.Model | keras.Layer) -> Iterator[keras.Layer]:
    """Yield each layer within a model or a layer, at whatever depth."""
    yield from model._flatten_layers(include_self=False)


def _fan_in(layer: keras.Layer) -> int:
    """Return how many products an output of a layer with a kernel is the sum of."""
    shape = layer.kernel.shape
    if not isinstance(layer, keras.layers.EinsumDense):
        return math.prod(shape[:-1])
    names = layer.equation.split(",")[1].split("->")
    return math.prod(size for name, size in zip(names[0], shape, strict=True) if name not in names[1])


def values(layer: keras.Layer) -> Tensors:
    """Return the weights of a Keras layer by name, as Keras has them."""
    return {variable.name: torch.from_numpy(variable.numpy().copy()) for variable in layer.weights}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Put the name of a module before the names of tensors."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def dense(layer: keras.Layer) -> Tensors:
    """Return the tensors of the ``nn.Linear`` of a Dense layer: kernel (i, o) becomes (o, i)."""
    return convolution(layer)


def convolution(layer: keras.Layer) -> Tensors:
    """Return the tensors of a convolution: kernel (spatial, i, o) becomes (o, i, spatial)."""
    tensors = values(layer)
    weight = {"weight": tensors["kernel"].movedim((-1, -2), (0, 1)).contiguous()}
    return weight | ({"bias": tensors["bias"]} if "bias" in tensors else {})


def norm(layer: keras.Layer) -> Tensors:
    """Return the tensors of a normalization, and of a BatchNormalization its statistics."""
    tensors = values(layer)
    names = {"gamma": "weight", "scale": "weight", "beta": "bias"}
    names |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    found = {names[name]: tensor for name, tensor in tensors.items()}
    return found | ({"num_batches_tracked": torch.tensor(0)} if "moving_mean" in tensors else {})


def embedding(layer: keras.Layer) -> Tensors:
    """Return the tensor of an ``nn.Embedding``: the same (v, e)."""
    return {"weight": values(layer)["embeddings"]}


def _recurrent_cell(cell: keras.Layer, number: int, suffix: str) -> Tensors:
    """Return the tensors of one direction of one level of nn.RNN, nn.LSTM or nn.GRU.

    Kernel (i, gates * h) becomes (gates * h, i). A GRU has its gates in the order z, r, h; PyTorch has r, z, n. A GRU
    with ``reset_after`` has two biases (2, 3 h); the others have one, and PyTorch's second is 0.
    """
    tensors = values(cell)
    is_gru = isinstance(cell, keras.layers.GRUCell)
    units = cell.units

    def ordered(tensor: Tensor) -> Tensor:
        if is_gru:
            z, r, h = tensor.split(units, -1)
            tensor = torch.cat([r, z, h], -1)
        return tensor

    bias = tensors["bias"]
    biases = bias if bias.ndim == 2 else torch.stack([bias, torch.zeros_like(bias)])
    return {
        f"weight_ih_l{number}{suffix}": ordered(tensors["kernel"]).T.contiguous(),
        f"weight_hh_l{number}{suffix}": ordered(tensors["recurrent_kernel"]).T.contiguous(),
        f"bias_ih_l{number}{suffix}": ordered(biases[0]).contiguous(),
        f"bias_hh_l{number}{suffix}": ordered(biases[1]).contiguous(),
    }


def recurrent(*several: keras.Layer) -> Tensors:
    """Return the tensors of an nn.RNN, nn.LSTM or nn.GRU with one level for each of several layers or cells.

    A layer may be Bidirectional; its backward half has the suffix ``_reverse``.
    """
    tensors: Tensors = {}
    for number, layer in enumerate(several):
        if isinstance(layer, keras.layers.Bidirectional):
            tensors |= _recurrent_cell(layer.forward_layer.cell, number, "")
            tensors |= _recurrent_cell(layer.backward_layer.cell, number, "_reverse")
        else:
            tensors |= _recurrent_cell(getattr(layer, "cell", layer), number, "")
    return tensors


def _projection(part: keras.Layer) -> Tensors:
    """Return the tensors of a query, key or value: kernel (d, heads, key_dim) becomes (heads key_dim, d)."""
    tensors = values(part)
    weight = {"weight": tensors["kernel"].flatten(1).T.contiguous()}
    return weight | ({"bias": tensors["bias"].flatten()} if "bias" in tensors else {})


def attention(layer: keras.Layer) -> dict[str, Tensors]:
    """Return the tensors of the four nn.Linear of an attention: "query", "key", "value" and "output".

    The output's kernel (heads, key_dim, d) becomes (d, heads key_dim).
    """
    output = values(layer._output_dense)
    weight = {"weight": output["kernel"].flatten(0, 1).T.contiguous()}
    return {
        "query": _projection(layer._query_dense),
        "key": _projection(layer._key_dense),
        "value": _projection(layer._value_dense),
        "output": weight | ({"bias": output["bias"]} if "bias" in output else {}),
    }


def stacked(parts: Sequence[Tensors]) -> Tensors:
    """Stack the tensors of the same name along axis 0, in order."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def fused(layer: keras.Layer) -> Tensors:
    """Return the tensors of a Linear that computes query, key and value at once."""
    linears = attention(layer)
    return stacked([linears["query"], linears["key"], linears["value"]])


def torch_attention(layer: keras.Layer) -> Tensors:
    """Return the tensors of an ``nn.MultiheadAttention``."""
    packed = {f"in_proj_{name}": tensor for name, tensor in fused(layer).items()}
    return packed | under("out_proj", attention(layer)["output"])

"""Attention in all its forms, and what stands around it: the network, its twin and its mutants."""

import functools
from typing import Any

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, ported, probes_of
from course.mutants.tools import another_forward, exchange, put
from course.small_models import table

import keras
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS = 8, 2


def _keras_model(steps: int, others: int) -> keras.Model:
    start = keras_input(steps, WIDTH, name="series")
    other = keras_input(others, WIDTH, name="other")
    x = keras_layer("LayerNormalization", name="norm")(start)
    x = keras_layer("MultiHeadAttention", HEADS, 4, name="joint")(x, x)
    x = keras_layer("Add", name="skip")([start, x])
    y = keras_layer("MultiHeadAttention", HEADS, 6, value_dim=5, name="apart")(x, x, use_causal_mask=True)
    x = keras_layer("Add", name="again")([x, y])
    x = keras_layer("RMSNormalization", name="rms")(x)
    y = keras_layer("GroupQueryAttention", 4, 4, 2, name="groups")(x, x)
    x = keras_layer("Add", name="third")([x, y])
    y = keras_layer("MultiHeadAttention", HEADS, 4, name="cross")(x, other)
    x = keras_layer("Add", name="fourth")([x, y])
    y = keras_layer("AdditiveAttention", name="additive")([x, other])
    x = keras_layer("Add", name="fifth")([x, y])
    x = keras_layer("EinsumDense", "btc,cde->btde", (None, 3, 2), bias_axes="de", name="einsum")(x)
    return keras.Model([start, other], keras_layer("Reshape", (steps, 6), name="flat")(x), name="attention")


def split(x: Tensor, heads: int) -> Tensor:
    """Map (batch, time, heads * size) to (batch, heads, time, size)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """Map (batch, heads, time, size) to (batch, time, heads * size)."""
    return x.transpose(1, 2).flatten(2)


class Fused(nn.Module):
    """An attention with one matrix for query, key and value."""

    def __init__(self, sizes: tuple[int, int, int], heads: int, **how: Any) -> None:
        super().__init__()
        self.sizes, self.heads, self.how = sizes, heads, how
        self.qkv = nn.Linear(WIDTH, sum(sizes))
        self.proj = nn.Linear(sizes[2], WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to the same."""
        q, k, v = (split(part, self.heads) for part in self.qkv(x).split(self.sizes, -1))
        return self.proj(joined(F.scaled_dot_product_attention(q, k, v, **self.how)))


class Apart(nn.Module):
    """An attention with a matrix each for query, key and value."""

    def __init__(self, size: int, queries: int, keys: int) -> None:
        super().__init__()
        self.heads = (queries, keys)
        self.query = nn.Linear(WIDTH, queries * size)
        self.key = nn.Linear(WIDTH, keys * size)
        self.value = nn.Linear(WIDTH, keys * size)
        self.out = nn.Linear(queries * size, WIDTH)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Attend from (batch, time, width) to another such tensor."""
        q = split(self.query(x), self.heads[0])
        k, v = split(self.key(other), self.heads[1]), split(self.value(other), self.heads[1])
        return self.out(joined(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))


class Additive(nn.Module):
    """Keras's AdditiveAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, query: Tensor, value: Tensor) -> Tensor:
        """Attend from (batch, time, width) to another such tensor."""
        scores = (self.scale * torch.tanh(query[:, :, None] + value[:, None])).sum(-1)
        return scores.softmax(-1) @ value


class Attention(nn.Module):
    """The twin. Both inputs come as (batch, features, time)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, 1e-3)
        self.joint = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.apart = Fused((12, 12, 10), HEADS, is_causal=True)
        self.rms = nn.RMSNorm(WIDTH, 1e-6)
        self.groups = Apart(4, 4, 2)
        self.cross = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.additive = Additive()
        self.einsum = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Map (batch, width, time) and (batch, width, others) to (batch, 6, time)."""
        x, other = x.mT, other.mT
        y = self.norm(x)
        x = x + self.joint(y, y, y, need_weights=False)[0]
        x = self.rms(x + self.apart(x))
        x = x + self.groups(x, x)
        x = x + self.cross(x, other, other, need_weights=False)[0]
        x = x + self.additive(x, other)
        return self.einsum(x).mT


_INSIDE = {
    "joint": {"query": "in_proj_", "key": "in_proj_", "value": "in_proj_", "attention_output": "out_proj."},
    "apart": {"query": "qkv.", "key": "qkv.", "value": "qkv.", "attention_output": "proj."},
    "groups": {"query": "query.", "key": "key.", "value": "value.", "attention_output": "out."},
}
_INSIDE["cross"] = _INSIDE["joint"]


def _row(path: str) -> tuple[str, str]:
    """Return the row of a weight."""
    layer, *inside, name = path.split("/")
    tensor = "bias" if name in ("bias", "beta") else "weight"
    if layer == "additive":
        return path, "additive.scale"
    return path, f"{layer}.{_INSIDE[layer][inside[-1]] if inside else ''}{tensor}"


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    probes = probes_of(_keras_model, [(3, 6, 5), (2, 4, 7)])
    model = probes[0].keras_model
    rows = sorted((_row(weight.path) for weight in model.weights), key=_order)
    return ported(model.name, probes, Attention().double(), table(*rows))


def _order(row: tuple[str, str]) -> int:
    """Return where a row stands among those of one tensor: query, key, value."""
    inside = row[0].split("/")[-2]
    return ("query", "key", "value").index(inside) if inside in ("query", "key", "value") else 0


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "attention")


def _parts(tensor: Tensor, order: tuple[int, int, int]) -> None:
    """Put the three parts of a tensor into another order."""
    parts = tensor.chunk(3)
    put(tensor, torch.cat([parts[number] for number in order]))


@mutant("joint: value, query, key in one tensor", {"joint"}, "packed order")
def _(twin):
    _parts(twin.joint.in_proj_weight, (2, 0, 1))
    _parts(twin.joint.in_proj_bias, (2, 0, 1))


@mutant("joint: key and value exchanged in one tensor", {"joint"}, "key and value exchanged")
def _(twin):
    _parts(twin.joint.in_proj_weight, (0, 2, 1))
    _parts(twin.joint.in_proj_bias, (0, 2, 1))


@mutant("joint: its output not transposed", {"joint"}, "output not transposed")
def _(twin):
    put(twin.joint.out_proj.weight, twin.joint.out_proj.weight.T.clone())


@mutant("joint: kernels reshaped, not permuted", {"joint"}, "kernel not transposed")
def _(twin):
    kernels = [part.T.unflatten(1, (HEADS, 4)).reshape(WIDTH, WIDTH) for part in twin.joint.in_proj_weight.chunk(3)]
    put(twin.joint.in_proj_weight, torch.cat(kernels))


@mutant("joint: biases left at 0", {"joint"}, "bias missing")
def _(twin):
    put(twin.joint.in_proj_bias, 0.0)
    put(twin.joint.out_proj.bias, 0.0)


@mutant("joint: without batch_first", {"joint"}, "time and batch exchanged")
def _(twin):
    twin.joint.batch_first = False


@mutant("joint: its rows in the order key_dim, heads", {"joint"}, "head axes")
def _(twin):
    parts = [part.unflatten(0, (HEADS, 4)).transpose(0, 1).flatten(0, 1) for part in twin.joint.in_proj_weight.chunk(3)]
    put(twin.joint.in_proj_weight, torch.cat(parts))


@mutant("apart: no causal mask", {"apart"}, "mask ignored")
def _(twin):
    twin.apart.how = {}


@mutant("apart: not scaled", {"apart"}, "scale missing")
def _(twin):
    twin.apart.how = {"is_causal": True, "scale": 1.0}


@mutant("apart: scaled by the width", {"apart"}, "scale missing")
def _(twin):
    twin.apart.how = {"is_causal": True, "scale": WIDTH**-0.5}


@mutant("apart: key before query", {"apart"}, "packed order")
def _(twin):
    for tensor in (twin.apart.qkv.weight, twin.apart.qkv.bias):
        q, k, v = tensor.split(twin.apart.sizes)
        put(tensor, torch.cat([k, q, v]))


@mutant("apart: features split into key_dim, heads", {"apart"}, "head axes", in_forward=True)
def _(twin):
    def forward(self, x):
        parts = self.qkv(x).split(self.sizes, -1)
        q, k, v = (part.unflatten(-1, (-1, self.heads)).movedim(-1, 1) for part in parts)
        return self.proj(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))

    another_forward(twin.apart, forward)


@mutant("apart: its output not permuted", {"apart"}, "head axes")
def _(twin):
    weight = twin.apart.proj.weight
    put(weight, weight.unflatten(1, (HEADS, 5)).transpose(1, 2).flatten(1))


@mutant("groups: key and value exchanged", {"groups"}, "key and value exchanged")
def _(twin):
    exchange(twin.groups.key.weight, twin.groups.value.weight)
    exchange(twin.groups.key.bias, twin.groups.value.bias)


@mutant("groups: keys not scaled", {"groups"}, "scale missing", in_forward=True)
def _(twin):
    def forward(self, x, other):
        q = split(self.query(x), 4)
        k, v = split(self.key(other), 2), split(self.value(other), 2)
        return self.out(joined(F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=1.0)))

    another_forward(twin.groups, forward)


@mutant("groups: a causal mask", {"groups"}, "mask added", in_forward=True)
def _(twin):
    def forward(self, x, other):
        q = split(self.query(x), 4)
        k, v = split(self.key(other), 2), split(self.value(other), 2)
        return self.out(joined(F.scaled_dot_product_attention(q, k, v, enable_gqa=True, is_causal=True)))

    another_forward(twin.groups, forward)


@mutant("cross: its query kernel not transposed", {"cross"}, "kernel not transposed")
def _(twin):
    query, *rest = twin.cross.in_proj_weight.chunk(3)
    put(twin.cross.in_proj_weight, torch.cat([query.T, *rest]))


@mutant("additive: scale left at 0", {"additive"}, "weights hold other numbers")
def _(twin):
    put(twin.additive.scale, 0.0)


@mutant("einsum: its axes in the other order", {"einsum"}, "weights in another order")
def _(twin):
    put(twin.einsum.weight, twin.einsum.weight.unflatten(0, (3, 2)).transpose(0, 1).flatten(0, 1))
    put(twin.einsum.bias, twin.einsum.bias.unflatten(0, (3, 2)).transpose(0, 1).flatten(0, 1))


@mutant("rms: the mean subtracted", {"rms"}, "another normalization", in_forward=True)
def _(twin):
    another_forward(twin.rms, lambda self, x: F.layer_norm(x, (WIDTH,), self.weight, eps=self.eps))


@mutant("rms: epsilon 1e-2", {"rms"}, "epsilon")
def _(twin):
    twin.rms.eps = 1e-2


@mutant("norm: behind the attention", {"joint", "norm"}, "pre-norm for post-norm", in_forward=True)
def _(twin):
    def forward(self, x, other):
        x, other = x.mT, other.mT
        x = self.norm(x + self.joint(x, x, x, need_weights=False)[0])
        x = self.rms(x + self.apart(x))
        x = x + self.groups(x, x)
        x = x + self.cross(x, other, other, need_weights=False)[0]
        x = x + self.additive(x, other)
        return self.einsum(x).mT

    another_forward(twin, forward)

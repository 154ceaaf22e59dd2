"""Correct ports of models of sequences that are drawn at random: recurrent layers, attention and what stands with them.

A twin takes and returns (batch, time, features), as Keras does, and turns the axes where a module of PyTorch needs it.
"""

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import parity.recurrent as recurrent
from course.small_models import table
from parity import transfer
from tests.helpers.random_ports import PORTS, Steps
from tests.helpers.random_ports import Step as TwinStep
from tests.networks.by_hand import drawn, randomized, words

import keras
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["PORTS", "Sequence", "right_sequences"]


class Sequence(NamedTuple):
    """A random Keras model, its inputs, and a correct twin.

    Attributes:
        keras_model: The model.
        x: An array for each of its inputs.
        torch_x: The inputs of the twin: the same.
        twin: The twin, filled by ``transfer``, in eval mode.
        mapping: Which Keras weight fills which PyTorch tensor.
        within: The largest difference that rounding explains, relative to the largest output if that exceeds 1.
    """

    keras_model: keras.Model
    x: list[np.ndarray]
    torch_x: list[Tensor]
    twin: nn.Module
    mapping: pd.DataFrame
    within: float


class Value(NamedTuple):
    """The symbolic tensor of Keras, its place in the twin's list of values, and that of its mask, if it has one."""

    keras: keras.KerasTensor
    index: int
    mask: int | None = None

    @property
    def time(self) -> int:
        """Return the number of steps."""
        return self.keras.shape[1]

    @property
    def width(self) -> int:
        """Return the number of features."""
        return self.keras.shape[-1]


Assigned = list[tuple[Any, str]]  # Keras weights, each with the name of a tensor in its module

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "hard_silu": F.hardswish,
    "hard_tanh": F.hardtanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "mish": F.mish,
    "log_sigmoid": F.logsigmoid,
    "tanh_shrink": F.tanhshrink,
    "softmax": functools.partial(F.softmax, dim=-1),
    "log_softmax": functools.partial(F.log_softmax, dim=-1),
}
_MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda a, b: torch.cat([a, b], -1),
    "sum": torch.add,
    "mul": torch.mul,
    "ave": lambda a, b: (a + b) / 2,
}
_KINDS = {"LSTM": (nn.LSTM, 4), "GRU": (nn.GRU, 3), "SimpleRNN": (nn.RNN, 1)}


def _kernel_and_bias(layer: keras.Layer) -> Assigned:
    return [(layer.kernel, "weight"), *([(layer.bias, "bias")] if layer.bias is not None else [])]


def _recurrent(cell: Any, slot: str, prefix: str = "") -> Assigned:
    """Assign the weights of a cell to a direction and level, such as "l1_reverse", of a recurrent module."""
    rows = [(cell.kernel, f"{prefix}weight_ih_{slot}"), (cell.recurrent_kernel, f"{prefix}weight_hh_{slot}")]
    if cell.bias is not None:
        rows.append((cell.bias, f"{prefix}bias_ih_{slot}"))
        if len(cell.bias.shape) == 2:
            rows.append((cell.bias, f"{prefix}bias_hh_{slot}"))
    return rows


def _through_time_first(run: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Run a recurrent module that takes (time, batch, features)."""
    return run(x.transpose(0, 1))[0].transpose(0, 1)


def _packed(module: nn.RNNBase, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of a module for sequences of different lengths, and its last states."""
    y, state = module(pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False))
    y = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0]
    return y, state[0] if isinstance(state, tuple) else state


class Separate(nn.Module):
    """Attention with a Linear each for query, key, value and output; several heads may share a key and a value."""

    def __init__(self, width: int, heads: int, groups: int, head: int, value: int, bias: bool, causal: bool) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, heads * head, bias), nn.Linear(width, groups * head, bias)
        self.v, self.out = nn.Linear(width, groups * value, bias), nn.Linear(heads * value, width, bias)
        self.heads, self.groups, self.causal = heads, groups, causal

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Map (b, t, width) and (b, s, width) to (b, t, width)."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.k(memory).unflatten(-1, (self.groups, -1)).transpose(1, 2)
        v = self.v(memory).unflatten(-1, (self.groups, -1)).transpose(1, 2)
        k, v = (y.repeat_interleave(self.heads // self.groups, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Fused(nn.Module):
    """Attention with one Linear for query, key and value, written out."""

    def __init__(self, width: int, heads: int, head: int, bias: bool, causal: bool) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * heads * head, bias), nn.Linear(heads * head, width, bias)
        self.heads, self.scale, self.causal = heads, head**-0.5, causal

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Map (b, t, width) to (b, t, width); ``memory`` is the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), -math.inf)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class RMSNorm(nn.Module):
    """RMS normalization as language models have it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (..., width)."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class _Recipe:
    """Builds a Keras model and its twin side by side, one drawn layer after the other."""

    def __init__(self, draw_: Callable, dtype: str) -> None:
        self.draw, self.dtype = draw_, dtype
        self.names: Iterator[int] = itertools.count()
        self.inputs: list[keras.KerasTensor] = []
        self.modules: dict[str, nn.Module] = {}
        self.steps: list[TwinStep] = []
        self.assigned: list[tuple[Any, str]] = []

    # What all layers need.

    def one_of(self, *choices: Any) -> Any:
        """Draw one of some choices."""
        return self.draw(st.sampled_from(choices))

    def integer(self, least: int, most: int) -> int:
        """Draw an integer."""
        return self.draw(st.integers(least, most))

    def boolean(self) -> bool:
        """Draw yes or no."""
        return self.draw(st.booleans())

    def layer(self, kind: str, *args: Any, **settings: Any) -> Any:
        """Make a Keras layer with a name that no other has."""
        name = f"{kind.lower()}_{next(self.names)}"
        return getattr(keras.layers, kind)(*args, dtype=self.dtype, name=name, **settings)

    def input(self, *shape: int, dtype: str | None = None) -> Value:
        """Begin with an input."""
        self.inputs.append(keras.Input(shape, dtype=dtype or self.dtype, name=f"input_{next(self.names)}"))
        return Value(self.inputs[-1], len(self.inputs) - 1)

    def step(self, run: Callable, *takes: Value | int) -> int:
        """Add a step to the twin, a function of tensors, and return the index of its value."""
        indices = tuple(value.index if isinstance(value, Value) else value for value in takes)
        self.steps.append(TwinStep(lambda _, *tensors: run(*tensors), indices))
        return len(self.inputs) + len(self.steps) - 1

    def module(self, module: nn.Module) -> str:
        """Register a module in the twin and return its name."""
        name = self.draw(st.sampled_from("abcxyz")) + str(next(self.names))
        self.modules[name] = module.to(getattr(torch, self.dtype)).eval()
        return name

    def assign(self, name: str, assigned: Assigned) -> None:
        """Say which weights fill the tensors of a module."""
        self.assigned += [(weight, f"{name}.{tensor}") for weight, tensor in assigned]

    def run(self, name: str, way: Callable, *takes: Value | int) -> int:
        """Add a step that runs a module: ``way`` takes the module and tensors."""
        indices = tuple(value.index if isinstance(value, Value) else value for value in takes)
        self.steps.append(TwinStep(lambda twin, *tensors: way(getattr(twin, name), *tensors), indices))
        return len(self.inputs) + len(self.steps) - 1

    def function(self, layer: Any, x: Value, run: Callable[[Tensor], Tensor], keep_mask: bool = True) -> Value:
        """Add a layer without weights, and a function."""
        return Value(layer(x.keras), self.step(run, x), x.mask if keep_mask else None)

    # Layers of which each step is computed by itself. They are the ones that may stand behind a mask.

    def activation(self, x: Value) -> Value:
        """Add an activation."""
        name = self.one_of(*_ACTIVATIONS)
        return self.function(self.layer("Activation", name), x, _ACTIVATIONS[name])

    def dense(self, x: Value, width: int | None = None) -> Value:
        """Add a Dense layer, at times within TimeDistributed, as an EinsumDense or as a 1 x 1 convolution."""
        width, bias, name = width or self.integer(2, 7), self.boolean(), self.one_of(None, None, "relu", "tanh", "gelu")
        kinds = ["Dense", "Dense"] if x.mask is not None or len(x.keras.shape) < 3 else ["Dense", "Time", "Einsum"]
        kind = self.one_of(*kinds)
        if kind == "Einsum":
            shape = (x.time, width)
            settings = {"bias_axes": "d" if bias else None, "activation": name}
            layer = dense = self.layer("EinsumDense", "abc,cd->abd", shape, **settings)
        else:
            dense = self.layer("Dense", width, use_bias=bias, activation=name)
            layer = self.layer("TimeDistributed", dense) if kind == "Time" else dense
        y = layer(x.keras)
        if len(x.keras.shape) == 3 and self.integer(0, 4) == 0:
            module = self.module(nn.Conv1d(x.width, width, 1, bias=bias))
            index = self.run(module, lambda conv, x: conv(x.transpose(1, 2)).transpose(1, 2), x)
        else:
            module = self.module(nn.Linear(x.width, width, bias=bias))
            index = self.run(module, lambda linear, x: linear(x), x)
        self.assign(module, _kernel_and_bias(dense))
        return Value(y, self.step(_ACTIVATIONS[name], index) if name else index, x.mask)

    def normalization(self, x: Value) -> Value:
        """Add a normalization of each step."""
        kinds = ["Layer", *(["RMS", "Unit"] if x.mask is None else [])]
        kind, epsilon = self.one_of(*kinds), self.one_of(1e-3, 1e-2)
        if kind == "Unit":
            return self.function(self.layer("UnitNormalization"), x, lambda x: F.normalize(x, dim=-1))
        layer = self.layer(f"{kind}Normalization", epsilon=epsilon)
        y = layer(x.keras)
        own = kind == "RMS" and self.boolean()
        made = RMSNorm(x.width, epsilon) if own else getattr(nn, f"{kind}Norm")(x.width, eps=epsilon)
        module = self.module(made)
        weights = [(layer.scale, "weight")] if kind == "RMS" else [(layer.gamma, "weight"), (layer.beta, "bias")]
        self.assign(module, weights)
        return Value(y, self.run(module, lambda norm, x: norm(x), x), x.mask)

    def dropout(self, x: Value) -> Value:
        """Add dropout."""
        module = self.module(nn.Dropout(0.3))
        return Value(self.layer("Dropout", 0.3)(x.keras), self.run(module, lambda drop, x: drop(x), x), x.mask)

    def rescaling(self, x: Value) -> Value:
        """Add a Rescaling."""
        scale, offset = self.one_of(0.5, 1.7), self.one_of(0.0, -0.25)
        return self.function(self.layer("Rescaling", scale, offset), x, lambda x: x * scale + offset)

    # Recurrent layers.

    def recurrent(self, x: Value, last: bool = False) -> Value:
        """Add a recurrent layer of any kind, which returns all steps or the last."""
        ways = [self.one_direction, self.both_directions]
        ways += [self.stacked, self.cells] if x.mask is None else []
        return self.one_of(*ways)(x, last)

    def settings(self, plain: bool) -> tuple[str, dict[str, Any], bool]:
        """Draw a kind of layer, its settings, and whether PyTorch has it."""
        kind = self.one_of(*_KINDS)
        settings: dict[str, Any] = {"use_bias": self.boolean() or kind == "GRU"}
        if plain:
            return kind, settings, True
        if self.integer(0, 2) == 0:
            settings["activation"] = self.one_of("softsign", "sigmoid", "elu")
        if kind != "SimpleRNN" and self.integer(0, 2) == 0:
            settings["recurrent_activation"] = "hard_sigmoid"
        if kind == "GRU" and self.integer(0, 2) == 0:
            settings["reset_after"] = False
        return kind, settings, set(settings) == {"use_bias"}

    def recurrent_module(self, kind: str, settings: dict[str, Any], width: int, units: int) -> nn.Module:
        """Return a module of ``parity.recurrent``."""
        given = {name: value for name, value in settings.items() if name != "use_bias"}
        if kind == "GRU":
            given.setdefault("reset_after", True)
        return getattr(recurrent, kind)(width, units, settings["use_bias"], **given)

    def one_direction(self, x: Value, last: bool) -> Value:
        """Add a recurrent layer that reads forwards or backwards."""
        kind, settings, known = self.settings(plain=False)
        units, backwards, masked = self.integer(2, 6), self.boolean(), x.mask is not None
        layer = self.layer(kind, units, return_sequences=not last, go_backwards=backwards, **settings)
        y = layer(x.keras)
        packs = masked and last and not backwards
        if known and (packs or not masked):
            first = not masked and self.boolean()
            made = _KINDS[kind][0](x.width, units, bias=settings["use_bias"], batch_first=not first)
            module = self.module(made)
            if masked:
                index = self.run(module, lambda rnn, x, mask: _packed(rnn, x, mask)[1][0], x, x.mask)
                self.assign(module, _recurrent(layer.cell, "l0"))
                return Value(y, index)
            run = _through_time_first if first else lambda rnn, x: rnn(x)[0]
        else:
            module = self.module(self.recurrent_module(kind, settings, x.width, units))
            run = lambda rnn, x: rnn(x)[0]  # noqa: E731
        self.assign(module, _recurrent(layer.cell, "l0"))

        def way(rnn: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
            x = x.flip(1) if backwards else x
            if mask is not None and backwards:
                mask = mask.flip(1)
            y = run(rnn, x) if mask is None else rnn(x, mask=mask)[0]
            return y[:, -1] if last else y

        takes = (x, x.mask) if masked else (x,)
        mask = x.mask
        if masked and backwards and not last:  # Keras hands the mask on in the order of time: of no use to anybody
            mask = self.step(lambda mask: mask, x.mask)
            return Value(keras.ops.copy(y), self.run(module, way, *takes))
        return Value(y, self.run(module, way, *takes), None if last else mask)

    def both_directions(self, x: Value, last: bool) -> Value:
        """Add a Bidirectional layer, as one module or as two."""
        kind, settings, _ = self.settings(plain=True)
        units, merge = self.integer(2, 5), self.one_of(*_MERGES)
        inner = self.layer(kind, units, return_sequences=not last, **settings)
        layer = self.layer("Bidirectional", inner, merge_mode=merge)
        y, masked = layer(x.keras), x.mask is not None
        made = functools.partial(_KINDS[kind][0], x.width, units, bias=settings["use_bias"], batch_first=True)
        cells = layer.forward_layer.cell, layer.backward_layer.cell
        if not masked and self.boolean():
            there, back = self.module(made()), self.module(made())
            for module, cell in zip((there, back), cells, strict=True):
                self.assign(module, _recurrent(cell, "l0"))
            forwards = self.run(there, lambda rnn, x: rnn(x)[0], x)
            backwards = self.run(back, lambda rnn, x: rnn(x.flip(1))[0].flip(1), x)
            if last:
                index = self.step(lambda a, b: _MERGES[merge](a[:, -1], b[:, 0]), forwards, backwards)
            else:
                index = self.step(_MERGES[merge], forwards, backwards)
            return Value(y, index)
        module = self.module(made(bidirectional=True))
        self.assign(module, _recurrent(cells[0], "l0") + _recurrent(cells[1], "l0_reverse"))

        def way(rnn: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
            if mask is None:
                sequence, state = rnn(x)
                state = state[0] if isinstance(state, tuple) else state
            else:
                sequence, state = _packed(rnn, x, mask)
            if last:
                return _MERGES[merge](state[0], state[1])
            return sequence if merge == "concat" else _MERGES[merge](*sequence.chunk(2, -1))

        takes = (x, x.mask) if masked else (x,)
        return Value(y, self.run(module, way, *takes), None if last else x.mask)

    def stacked(self, x: Value, last: bool) -> Value:
        """Add two recurrent layers that are one module with two levels, of one direction or of both."""
        kind, settings, _ = self.settings(plain=True)
        units, both = self.integer(2, 5), self.boolean()
        y, layers = x.keras, []
        for level in range(2):
            layer = self.layer(kind, units, return_sequences=level == 0 or not last, **settings)
            layer = self.layer("Bidirectional", layer) if both else layer
            y = layer(y)
            layers.append(layer)
        made = _KINDS[kind][0](x.width, units, 2, bias=settings["use_bias"], batch_first=True, bidirectional=both)
        module = self.module(made)
        for level, layer in enumerate(layers):
            if both:
                self.assign(module, _recurrent(layer.forward_layer.cell, f"l{level}"))
                self.assign(module, _recurrent(layer.backward_layer.cell, f"l{level}_reverse"))
            else:
                self.assign(module, _recurrent(layer.cell, f"l{level}"))

        def way(rnn: nn.Module, x: Tensor) -> Tensor:
            sequence, state = rnn(x)
            state = state[0] if isinstance(state, tuple) else state
            if not last:
                return sequence
            return torch.cat([state[-2], state[-1]], 1) if both else state[-1]

        return Value(y, self.run(module, way, x))

    def cells(self, x: Value, last: bool) -> Value:
        """Add an RNN of one cell or of two."""
        kind, settings, _ = self.settings(plain=True)
        units, count = self.integer(2, 5), self.integer(1, 2)
        cells = [self.layer(f"{kind}Cell", units, **settings) for _ in range(count)]
        # A list of cells is stacked by a layer of Keras's default dtype.
        cell = self.layer("StackedRNNCells", cells) if count > 1 else cells[0]
        y = self.layer("RNN", cell, return_sequences=not last)(x.keras)
        module = self.module(_KINDS[kind][0](x.width, units, count, bias=settings["use_bias"], batch_first=True))
        for level, cell in enumerate(cells):
            self.assign(module, _recurrent(cell, f"l{level}"))
        return Value(y, self.run(module, lambda rnn, x: rnn(x)[0][:, -1] if last else rnn(x)[0], x))

    # Attention.

    def attention(self, x: Value) -> Value:
        """Add an attention of any kind that keeps the shape."""
        return self.one_of(self.several_heads, self.several_heads, self.grouped, self.scoring)(x)

    def several_heads(self, x: Value) -> Value:
        """Add a MultiHeadAttention of a sequence to itself."""
        heads, bias, causal = self.integer(1, 3), self.boolean(), self.boolean()
        fits = x.width % heads == 0
        style = self.one_of("separate", "fused", *(["torch", "torch"] if fits else []))
        head = x.width // heads if style == "torch" else self.integer(2, 4)
        value = head if style != "separate" else self.integer(2, 4)
        layer = self.layer("MultiHeadAttention", heads, head, value_dim=value, use_bias=bias)
        y = layer(x.keras, x.keras, use_causal_mask=causal)
        if style == "torch":
            module = self.module(nn.MultiheadAttention(x.width, heads, bias=bias, batch_first=True))

            def way(attention: nn.Module, x: Tensor) -> Tensor:
                if not causal:
                    return attention(x, x, x, need_weights=False)[0]
                ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
                return attention(x, x, x, attn_mask=ahead, need_weights=False)[0]

            names = [("in_proj_weight", "in_proj_bias")] * 3 + [("out_proj.weight", "out_proj.bias")]
        else:
            way = lambda attention, x: attention(x, x)  # noqa: E731
            if style == "fused":
                module = self.module(Fused(x.width, heads, head, bias, causal))
                names = [("qkv.weight", "qkv.bias")] * 3 + [("proj.weight", "proj.bias")]
            else:
                module = self.module(Separate(x.width, heads, heads, head, value, bias, causal))
                names = [(f"{part}.weight", f"{part}.bias") for part in ("q", "k", "v", "out")]
        self.assign(module, self.projections(layer, names))
        return Value(y, self.run(module, way, x))

    def grouped(self, x: Value) -> Value:
        """Add a GroupQueryAttention of a sequence to itself."""
        groups, repeats, head = self.integer(1, 2), self.integer(1, 3), self.integer(2, 4)
        bias, causal = self.boolean(), self.boolean()
        layer = self.layer("GroupQueryAttention", head, groups * repeats, groups, use_bias=bias)
        y = layer(x.keras, x.keras, use_causal_mask=causal)
        module = self.module(Separate(x.width, groups * repeats, groups, head, head, bias, causal))
        names = [(f"{part}.weight", f"{part}.bias") for part in ("q", "k", "v", "out")]
        self.assign(module, self.projections(layer, names))
        return Value(y, self.run(module, lambda attention, x: attention(x, x), x))

    def projections(self, layer: Any, names: list[tuple[str, str]]) -> Assigned:
        """Assign the weights of query, key, value and output, in this order."""
        parts = (layer._query_dense, layer._key_dense, layer._value_dense, layer._output_dense)
        rows = []
        for part, (kernel, bias) in zip(parts, names, strict=True):
            rows += [(part.kernel, kernel), *([(part.bias, bias)] if part.bias is not None else [])]
        return rows

    def scoring(self, x: Value) -> Value:
        """Add an Attention or AdditiveAttention without weights of a sequence to itself."""
        if self.boolean():
            layer = self.layer("Attention")
            run = lambda x: (x @ x.transpose(1, 2)).softmax(-1) @ x  # noqa: E731
        else:
            layer = self.layer("AdditiveAttention", use_scale=False)
            run = lambda x: torch.tanh(x[:, :, None] + x[:, None]).sum(-1).softmax(-1) @ x  # noqa: E731
        return Value(layer([x.keras, x.keras]), self.step(run, x))

    # What changes the axis of time.

    def convolution(self, x: Value) -> Value:
        """Add a convolution over time."""
        width, size, way = self.integer(2, 6), self.integer(1, 3), self.one_of("same", "causal")
        layer = self.layer("Conv1D", width, size, padding=way)
        module = self.module(nn.Conv1d(x.width, width, size))
        y = layer(x.keras)
        self.assign(module, _kernel_and_bias(layer))
        before = size - 1 if way == "causal" else (size - 1) // 2
        pad = (before, size - 1 - before)
        return Value(y, self.run(module, lambda conv, x: conv(F.pad(x.transpose(1, 2), pad)).transpose(1, 2), x))

    def batch_normalization(self, x: Value) -> Value:
        """Add a BatchNormalization."""
        layer = self.layer("BatchNormalization")
        y = layer(x.keras)
        module = self.module(nn.BatchNorm1d(x.width, 1e-3, 0.01))
        weights = [(layer.gamma, "weight"), (layer.beta, "bias")]
        weights += [(layer.moving_mean, "running_mean"), (layer.moving_variance, "running_var")]
        self.assign(module, weights)
        return Value(y, self.run(module, lambda norm, x: norm(x.transpose(1, 2)).transpose(1, 2), x))

    def resized(self, x: Value) -> Value:
        """Repeat, pad, crop, pool or turn the steps, or join two to one."""
        before, after = self.integer(0, 2), self.integer(0, 2)
        ways = ["up", "pad", "turn"]
        ways += ["crop"] if x.time > before + after else []
        ways += ["pool", "join"] if x.time % 2 == 0 else []
        way = self.one_of(*ways)
        if way == "up":
            return self.function(self.layer("UpSampling1D", 2), x, lambda x: x.repeat_interleave(2, 1))
        if way == "pad":
            layer = self.layer("ZeroPadding1D", (before, after))
            return self.function(layer, x, lambda x: F.pad(x, (0, 0, before, after)))
        if way == "crop":
            layer = self.layer("Cropping1D", (before, after))
            return self.function(layer, x, lambda x: x[:, before : x.shape[1] - after])
        if way == "turn":
            return self.function(self.layer("Permute", (2, 1)), x, lambda x: x.transpose(1, 2))
        if way == "pool":
            layer = self.layer(self.one_of("MaxPooling1D", "AveragePooling1D"), 2)
            pool = F.max_pool1d if type(layer).__name__.startswith("Max") else F.avg_pool1d
            return self.function(layer, x, lambda x: pool(x.transpose(1, 2), 2).transpose(1, 2))
        layer = self.layer("Reshape", (x.time // 2, 2 * x.width))
        return self.function(layer, x, lambda x: x.reshape(len(x), x.shape[1] // 2, -1))

    # Pieces of several layers.

    def residual(self, x: Value) -> Value:
        """Add a block beside a shortcut, with the normalization before or after."""
        pre = self.boolean()
        y = self.normalization(x) if pre else x
        y = self.attention(y) if self.boolean() else self.dense(self.dense(y), x.width)
        added = Value(self.layer("Add")([x.keras, y.keras]), self.step(torch.add, x, y))
        return added if pre else self.normalization(added)

    def summarized(self, x: Value) -> Value:
        """Add the mean of all steps, through a Dense layer, to each step."""
        mean = Value(self.layer("GlobalAveragePooling1D")(x.keras), self.step(lambda x: x.mean(1), x))
        mean, time = self.dense(mean), x.time
        again = Value(
            self.layer("RepeatVector", time)(mean.keras), self.step(lambda m: m.unsqueeze(1).expand(-1, time, -1), mean)
        )
        joined = self.step(lambda a, b: torch.cat([a, b], 2), x, again)
        return Value(self.layer("Concatenate")([x.keras, again.keras]), joined)

    def piece(self, x: Value) -> Value:
        """Add any layer or block: behind a mask only those that keep it."""
        pieces = [self.dense, self.activation, self.normalization, self.dropout, self.recurrent]
        if x.mask is None:
            pieces += [self.recurrent, self.attention, self.residual, self.convolution, self.resized, self.summarized]
            pieces += [self.batch_normalization, self.rescaling]
        return self.one_of(*pieces)(x)

    def pooled(self, x: Value) -> Value:
        """End the axis of time."""
        if self.boolean():
            return self.recurrent(x, last=True)
        if x.mask is not None:

            def average(x: Tensor, mask: Tensor) -> Tensor:
                kept = mask[..., None].to(x.dtype)
                return (x * kept).sum(1) / kept.sum(1)

            return Value(self.layer("GlobalAveragePooling1D")(x.keras), self.step(average, x, x.mask))
        way = self.one_of("Max", "Average")
        run = (lambda x: x.amax(1)) if way == "Max" else (lambda x: x.mean(1))
        return Value(self.layer(f"Global{way}Pooling1D")(x.keras), self.step(run, x))

    def begin(self, kind: str, time: int) -> Value:
        """Begin with words, with words and a mask, with series, or with series and a mask."""
        if kind.startswith("words"):
            start, width, masked = self.input(time, dtype="int32"), self.integer(2, 6), kind == "words, masked"
            layer = self.layer("Embedding", 12, width, mask_zero=masked)
            module = self.module(nn.Embedding(12, width))
            y = layer(start.keras)
            self.assign(module, [(layer.embeddings, "weight")])
            mask = self.step(lambda words: words != 0, start) if masked else None
            return Value(y, self.run(module, lambda table, words: table(words), start), mask)
        start = self.input(time, self.integer(2, 5))
        if kind == "series":
            return start
        mask = self.step(lambda x: (x != 0).any(-1), start)
        return Value(self.layer("Masking")(start.keras), start.index, mask)

    def close(self, outputs: list[Value]) -> tuple[keras.Model, Steps, pd.DataFrame]:
        """Return the Keras model, its twin, not yet filled, and the mapping."""
        results = [y.keras for y in outputs]
        model = keras.Model(self.inputs[0], results if len(results) > 1 else results[0], name="drawn")
        order = self.draw(st.permutations(list(self.modules)))
        modules = {name: self.modules[name] for name in order}
        twin = Steps(modules, self.steps, tuple(y.index for y in outputs))
        rows = [(weight.path, key) for weight, key in self.assigned]
        filled = {key for _, key in rows}
        return model, twin, table(*rows, *(("", key) for key in twin.state_dict() if key not in filled))


@st.composite
def right_sequences(draw_: Callable) -> Sequence:
    """Draw correct ports of models of sequences."""
    state = random.getstate()
    try:
        return _drawn_sequence(draw_)
    finally:
        # Keras has drawn seeds for initial values, which come to nothing here; Hypothesis wants none drawn.
        random.setstate(state)


def _drawn_sequence(draw_: Callable) -> Sequence:
    recipe = _Recipe(draw_, draw_(st.sampled_from(["float32", "float64"])))
    time, kind = (
        draw_(st.integers(3, 8)),
        draw_(st.sampled_from(["series", "series", "words", "words, masked", "masked"])),
    )
    x = recipe.begin(kind, time)
    for _ in range(draw_(st.integers(1, 5))):
        x = recipe.piece(x)
    outputs = [recipe.dense(recipe.pooled(x))] if draw_(st.booleans()) else [recipe.dense(x)]
    model, twin, mapping = recipe.close(outputs)
    seed, batch = draw_(st.integers(0, 2**16)), draw_(st.integers(2, 3))
    randomized(model, seed)
    transfer(model, twin.eval(), mapping)
    if kind.startswith("words"):
        array = words(batch, time, size=12, seed=seed)
    else:
        array = drawn(batch, time, model.inputs[0].shape[-1], seed=seed).astype(recipe.dtype)
    if "masked" in kind:
        lengths = np.random.default_rng(seed).integers(1, time + 1, batch)
        array[np.arange(time) >= lengths[:, None]] = 0
    torch_x = [torch.from_numpy(array.copy())]
    return Sequence(model, [array], torch_x, twin, mapping, 1e-6 if recipe.dtype == "float64" else 1e-4)

"""Recurrent modules and attention of a twin, seen with Keras's axes: what they take, and what Keras's layer returns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from parity.recurrent import Recurrent

import keras
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

RECURRENT_MODULES = (nn.RNNBase, Recurrent)
"""The modules that go through a sequence step by step, and return all steps and the last states."""

SEQUENCE_MODULES = (*RECURRENT_MODULES, nn.MultiheadAttention)
"""The modules that may have another order of axes than (batch, time, features), and that return several tensors."""

SEQUENCE_LAYERS = (keras.layers.RNN, keras.layers.Bidirectional)
"""Keras's recurrent layers, in one direction or both."""

MERGES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda a, b: torch.cat([a, b], -1),
    "sum": lambda a, b: a + b,
    "ave": lambda a, b: (a + b) / 2,
    "mul": lambda a, b: a * b,
}
"""How a Bidirectional layer merges (..., units) of its two directions, by its ``merge_mode``."""


class Seen(NamedTuple):
    """A tensor of the twin with the axes that Keras has.

    Attributes:
        tensor: The tensor.
        real: Shape (batch, time), true where there is a step; None if all are. A packed sequence has nothing else.
    """

    tensor: Tensor
    real: Tensor | None = None

    def value(self, value: Tensor) -> Tensor:
        """Return a Keras tensor (batch, time, features) with 0 where the twin has no step."""
        if self.real is None or value.ndim != 3 or value.shape[:2] != self.real.shape:
            return value
        return value.masked_fill(~self.real[..., None], 0)


def is_sequence_layer(layer: Any) -> bool:
    """Tell whether a layer is recurrent, in one direction or both."""
    return isinstance(layer, SEQUENCE_LAYERS)


def count_of_outputs(layer: Any, module: Any, found: int) -> int:
    """Return how many tensors a call returns, counted as Keras's layer does: states of two directions are apart."""
    recurrent = is_sequence_layer(layer) and isinstance(module, RECURRENT_MODULES)
    return len(_states_of(layer)) + 1 if recurrent else found


def taken(layer: Any, module: Any, tensors: Sequence[Tensor], position: int) -> Seen:
    """Return what a module takes, with Keras's axes.

    Args:
        layer: The Keras layer.
        module: Its twin. Only those of ``SEQUENCE_MODULES`` have other axes.
        tensors: All tensors that the module takes. Of a packed sequence these are its data and its sizes.
        position: Which of them.
    """
    tensor = tensors[position]
    if isinstance(module, nn.MultiheadAttention) and tensor.ndim == 3:
        return Seen(tensor if module.batch_first else tensor.transpose(0, 1))
    if not isinstance(module, RECURRENT_MODULES):
        return Seen(tensor)
    if position > 0:
        return Seen(tensor.squeeze(0) if tensor.ndim == 3 and len(tensor) == 1 else tensor)
    seen = _batch_first(module, tensors)
    if seen.tensor.ndim == 3 and getattr(layer, "go_backwards", False):
        return Seen(seen.tensor.flip(1), None if seen.real is None else seen.real.flip(1))
    return seen


def returned(layer: Any, module: Any, tensors: Sequence[Tensor], position: int) -> Seen:
    """Return what Keras's layer returns of what a module returns, with Keras's axes.

    Args:
        layer: The Keras layer. It says whether all steps are returned or the last, and how two directions are merged.
        module: Its twin.
        tensors: All tensors that the module returns.
        position: Which of the Keras layer's outputs.
    """
    if isinstance(module, nn.MultiheadAttention) and position == 0 and tensors[0].ndim == 3:
        return Seen(tensors[0] if module.batch_first else tensors[0].transpose(0, 1))
    if not isinstance(module, RECURRENT_MODULES) or not is_sequence_layer(layer):
        return Seen(tensors[position])
    steps = _batch_first(module, tensors)
    states = _last_states(module, tensors[4 if _is_packed(tensors) else 1 :])
    if position > 0:
        kinds = _states_of(layer)
        direction, kind = kinds[position - 1]
        return Seen(states[kind][direction])
    both = isinstance(layer, keras.layers.Bidirectional)
    if layer.return_sequences:
        ways = steps.tensor.chunk(2, -1) if both else (steps.tensor,)
    else:
        steps = steps._replace(real=None)
        ways = tuple(states[0])
    if not both:
        return Seen(ways[0], steps.real)
    if len(ways) < 2 or layer.merge_mode is None:
        return Seen(steps.tensor, steps.real)
    return Seen(MERGES[layer.merge_mode](*ways[:2]), steps.real)


def _is_packed(tensors: Sequence[Tensor]) -> bool:
    return len(tensors) > 1 and tensors[0].ndim == 2 and tensors[1].dtype == torch.int64 and tensors[1].ndim == 1


def _batch_first(module: Any, tensors: Sequence[Tensor]) -> Seen:
    """Return a sequence as (batch, time, features), that of a packed one with the steps that it has."""
    first = tensors[0]
    if _is_packed(tensors):
        order = [*tensors[2:4], None, None][:2]
        packed = PackedSequence(first, tensors[1].cpu(), order[0], order[1])
        padded, lengths = pad_packed_sequence(packed, batch_first=True)
        return Seen(padded, torch.arange(padded.shape[1])[None] < lengths[:, None])
    if first.ndim == 3 and not getattr(module, "batch_first", True):
        return Seen(first.transpose(0, 1))
    return Seen(first)


def _states_of(layer: Any) -> list[tuple[int, int]]:
    """Return the direction and the kind (0 the output, 1 the cell) of each state that a layer returns."""
    if not getattr(layer, "return_state", False):
        return []
    both = isinstance(layer, keras.layers.Bidirectional)
    inner = layer.forward_layer if both else layer
    kinds = 2 if isinstance(inner, keras.layers.LSTM) else 1
    return [(direction, kind) for direction in range(2 if both else 1) for kind in range(kinds)]


def _last_states(module: Any, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the last states of the last layer of a module: for each kind, one of each direction, (batch, units)."""
    if isinstance(module, Recurrent):
        return [[tensor] for tensor in tensors]
    directions = 2 if module.bidirectional else 1
    return [list(tensor[-directions:]) for tensor in tensors]

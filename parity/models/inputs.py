"""The inputs of both models, and how to restore both after a run."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

from parity.axes import torch_input
from parity.errors import ParityError
from parity.models.keras_graph import functional
from parity.models.keras_layers import inner_layers

import keras
import numpy as np
import torch
from keras import tree
from torch import Tensor, nn

Inputs = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]
TwinInputs = Tensor | Sequence[Tensor] | None

# With more inputs, not every combination of orders of axes is tried.
_MOST_MIXED = 4


def keras_inputs(model: keras.Model, x: Inputs) -> list[np.ndarray]:
    """Return an array for each input of a Keras model, in the order of ``model.inputs`` and with its dtype.

    Args:
        model: The Keras model.
        x: An array, or one for each of several inputs: in the order of ``model.inputs``, or by name.

    Raises:
        ParityError: If there are more or fewer arrays than inputs, or one has another shape, no examples, or a number
            that is not finite.
    """
    expected, struct = functional(model).inputs, functional(model)._inputs_struct
    if isinstance(x, Mapping):
        as_built = isinstance(struct, dict) and set(struct) <= set(x)
        missing = [] if as_built else [tensor.name for tensor in expected if tensor.name not in x]
        if missing:
            raise ParityError(model.name, [f"no input {name}" for name in missing])
        x = {key: x[key] for key in struct} if as_built else [x[tensor.name] for tensor in expected]
    arrays = [np.asarray(array) for array in ([x] if hasattr(x, "shape") else tree.flatten(x))]
    if len(arrays) != len(expected):
        raise ParityError(model.name, [f"inputs: {len(expected)} expected, {len(arrays)} found"])
    pairs = list(zip(expected, arrays, strict=True))
    faults = [f"input {tensor.name} {fault}" for tensor, array in pairs for fault in _input_faults(tensor, array)]
    if faults:
        raise ParityError(model.name, faults)
    return [np.asarray(array, tensor.dtype) for tensor, array in pairs]


def _input_faults(tensor: Any, array: np.ndarray) -> Iterator[str]:
    expected = tuple(tensor.shape)[1:]
    if array.dtype.kind not in "fiub":
        yield f"has no numbers, but {array.dtype}"
    elif array.ndim != 1 + len(expected) or any(
        size not in (None, found) for size, found in zip(expected, array.shape[1:], strict=True)
    ):
        yield f"has the shape {array.shape}, not {(None, *expected)}"
    elif array.size == 0:
        yield "is empty: nothing could differ"
    elif not np.isfinite(array).all():
        yield "has numbers that are not finite: what is computed from them could not differ"


def twin_inputs(
    model: nn.Module, arrays: Sequence[np.ndarray], torch_x: TwinInputs = None, as_keras: Sequence[bool] = ()
) -> list[Tensor]:
    """Return the inputs of a twin: channels at axis 1, with the twin's dtype. They are copies and may be overwritten.

    Args:
        model: The twin.
        arrays: An array for each input of the Keras model; with three axes or more, the last is that of the channels,
            unless the twin takes it as it is.
        torch_x: The twin's inputs, if they are not ``arrays`` with the channels moved to axis 1; examples on axis 0.
        as_keras: Whether the twin takes each input with Keras's axes, as ``takes_keras_axes`` found out.

    Raises:
        ParityError: If the twin is not on the CPU or has lazy modules, or ``torch_x`` has something else than tensors.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(map(nn.parameter.is_lazy, tensors)):
        raise ParityError(type(model).__name__, ["it has lazy modules: run it once, so that they take on their shapes"])
    devices = {tensor.device.type for tensor in tensors} - {"cpu"}
    if devices:
        raise ParityError(type(model).__name__, [f"it is on {', '.join(sorted(devices))}; move it to the CPU"])
    if torch_x is not None:
        inputs: Any = [torch_x] if isinstance(torch_x, Tensor) else torch_x
        if not isinstance(inputs, list | tuple) or not all(isinstance(tensor, Tensor) for tensor in inputs):
            raise ParityError(type(model).__name__, ["torch_x must be a tensor, or a list of tensors"])
        return [tensor.detach().clone() for tensor in inputs]
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    tensors = []
    for position, given in enumerate(arrays):
        # PyTorch does not take NumPy's bfloat16. Every bfloat16 is a float32.
        array = given if given.dtype.kind in "fiub" else given.astype(np.float32)
        moved = array.ndim > 2 and not any(as_keras[position : position + 1])
        tensor = torch_input(array) if moved else torch.from_numpy(array.copy())
        tensors.append(tensor.to(dtype) if tensor.is_floating_point() and dtype is not None else tensor)
    return tensors


def takes_keras_axes(
    model: nn.Module, arrays: Sequence[np.ndarray], first: Sequence[bool | None] = ()
) -> tuple[bool, ...]:
    """Tell of each input whether the twin takes it with Keras's axes, and not with the last one moved to axis 1.

    If Keras has the channels of an input first, as its layers say, so has the twin. Else the twin is run on two
    examples where more than one order is possible. A twin of sequences with ``nn.Linear``,
    ``nn.LSTM(batch_first=True)`` or attention takes (batch, length, features), as Keras does; one with ``nn.Conv1d``
    does not. With images whose channels Keras has last, this is not tried. Of the orders with which the twin runs, the
    first counts: the features of a sequence moved to axis 1. Call it inside ``unchanged``.

    Args:
        model: The twin.
        arrays: An array for each input of the Keras model.
        first: For each of them, whether Keras has its channels first, None if only a layer that permutes the axes says
            so: the twin may do without that layer. What is not said is False.
    """
    orders = [_orders(array, (*first, *[False] * len(arrays))[position]) for position, array in enumerate(arrays)]
    usual = tuple(order[0] for order in orders)
    other = tuple(order[-1] for order in orders)
    if usual == other:
        return usual
    few = [array[:2] for array in arrays]
    mixed = product(*orders) if len(arrays) <= _MOST_MIXED else ()
    for as_keras in dict.fromkeys([usual, other, *mixed]):
        if _runs(model, twin_inputs(model, few, as_keras=as_keras)):
            return as_keras
    return usual


def _orders(array: np.ndarray, first: bool | None) -> tuple[bool, ...]:
    """Return whether a twin may take an input with Keras's axes, the likeliest first."""
    if array.ndim < 3:
        return (False,)
    if first is None:
        return (True, False)
    if first:
        return (True,)
    return (False, True) if array.ndim == 3 else (False,)


def _runs(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception:  # whatever a twin raises: the run that is recorded will say it
        return False
    return True


@contextmanager
def unchanged(keras_model: keras.Model, torch_model: nn.Module, training: bool = False) -> Iterator[None]:
    """Let both models run, and then restore their statistics, modes and attributes, and PyTorch's random numbers.

    Args:
        keras_model: The Keras model.
        torch_model: The twin.
        training: Put the twin into training mode, except for modules whose output is random there.
    """
    buffers = [(buffer, buffer.clone()) for buffer in torch_model.buffers()]
    state = [(variable, variable.numpy()) for variable in keras_model.non_trainable_variables] if training else []
    losses = [(layer._losses, list(layer._losses)) for layer in inner_layers(keras_model)]
    modules = list(torch_model.modules())
    modes = [getattr(module, "training", None) for module in modules]  # a frozen module of TorchScript has none
    attributes_of_modules = [vars(module) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    containers: list[Any] = list(attributes_of_modules)
    for attributes in attributes_of_modules:
        containers += [value for value in attributes.values() if isinstance(value, dict | list | set)]
    contents = [copy.copy(container) for container in containers]
    for attributes in attributes_of_modules:  # a hook on gradients replaces its module's inputs and outputs
        attributes["_backward_hooks"].clear()
        attributes["_backward_pre_hooks"].clear()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if training and not torch_model.training:
                torch_model.train()
            for module in modules if training else ():
                module.training = module.training and not isinstance(module, nn.modules.dropout._DropoutNd)
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            if mode is not None:
                module.training = mode
        for container, content in zip(containers, contents, strict=True):
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for variable, value in state:
            variable.assign(value)
        for collected, before in losses:
            collected[:] = before

"""The order of axes: Keras has the channels last, PyTorch has them first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parity.errors import ParityError

import numpy as np
import torch
from torch import Tensor


def channels_first(x: Any) -> Any:
    """Return a view of an array or tensor (batch, *spatial, channels) as (batch, channels, *spatial)."""
    return x.movedim(-1, 1) if isinstance(x, Tensor) else np.moveaxis(x, -1, 1)


def channels_last(x: Any) -> Any:
    """Return a view of an array or tensor (batch, channels, *spatial) as (batch, *spatial, channels)."""
    return x.movedim(1, -1) if isinstance(x, Tensor) else np.moveaxis(x, 1, -1)


def torch_input(x: np.ndarray) -> Tensor:
    """Copy an array (batch, *spatial, channels) into a tensor (batch, channels, *spatial).

    It is contiguous, as the tensors of a PyTorch program are: a module that overwrites a view of its input shows.
    """
    return torch.from_numpy(channels_first(x).copy())


def run_torch(module: Callable[..., Any], x: np.ndarray | Sequence[np.ndarray]) -> Any:
    """Run a PyTorch module on an array (batch, *spatial, channels) and return its output in the same order of axes.

    Args:
        module: A module or function from (batch, channels, *spatial) to (batch, channels, *spatial). It may take
            several such tensors, and return several, as a tuple, a list or a dictionary.
        x: The input, in Keras's order of axes; a list or tuple of them for a module that takes several, in its order.

    Returns:
        The output (batch, *spatial, channels), an array; several as a list or a dictionary of arrays.

    Raises:
        ParityError: If the module returns something else than tensors.
    """
    with torch.no_grad():
        inputs = x if isinstance(x, list | tuple) else [x]
        return _as_arrays(module(*map(torch_input, inputs)), type(module).__name__)


def _as_arrays(output: Any, module: str) -> Any:
    if isinstance(output, Mapping):
        return {name: _as_arrays(part, module) for name, part in output.items()}
    if isinstance(output, list | tuple):
        return [_as_arrays(part, module) for part in output]
    if not isinstance(output, Tensor):
        raise ParityError(module, [f"it returns a {type(output).__name__}, not a tensor; let it return tensors only"])
    return channels_last(output).numpy() if output.ndim > 1 else output.numpy()

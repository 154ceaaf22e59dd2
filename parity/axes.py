"""The order of axes: Keras has the channels last, PyTorch has them first."""

from collections.abc import Callable
from typing import Any

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


def run_torch(module: Callable[[Tensor], Tensor], x: np.ndarray) -> np.ndarray:
    """Run a PyTorch module on an array (batch, *spatial, channels) and return its output in the same order of axes.

    Args:
        module: A module or function from (batch, channels, *spatial) to (batch, channels, *spatial).
        x: The input, in Keras's order of axes.

    Returns:
        The output (batch, *spatial, channels).
    """
    with torch.no_grad():
        return channels_last(module(torch_input(x))).numpy()

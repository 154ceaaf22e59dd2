"""Keras's tensors and weights as PyTorch tensors."""

from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack


def as_tensor(value: Any) -> Tensor:
    """Return a tensor or a weight of Keras as a PyTorch tensor on the CPU; it shares the memory where that is possible.

    Args:
        value: A tensor of Keras's backend, or a ``keras.Variable``.
    """
    if isinstance(value, keras.Variable):
        value = value.value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if keras.backend.backend() == "tensorflow":
        if hasattr(value, "read_value"):  # a tf.Variable
            value = value.read_value()
        if "CPU" in value.device:
            return from_dlpack(value)
    return torch.from_numpy(np.array(value))

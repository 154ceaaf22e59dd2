"""Compare two trainings step by step: what each framework holds after a step, in the same layout and order."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from parity.weights.layouts import find_layout

import keras
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn


class Snapshot(NamedTuple):
    """What one training step leaves; ``history`` stacks those of several steps along a new first axis.

    The vectors are in PyTorch's layout, their tensors in the order of the mapping.

    Attributes:
        loss: The loss, computed before the update.
        gradients: The gradients (number of weights,); zeros for a weight that has none.
        weights: All weights (number of weights,) after the update.
        statistics: The running means and variances of batch normalization (number of statistics,) after the step.
    """

    loss: np.ndarray
    gradients: np.ndarray
    weights: np.ndarray
    statistics: np.ndarray


def keras_snapshot(model: keras.Model, mapping: pd.DataFrame, loss: Any, gradients: Sequence[Any]) -> Snapshot:
    """Take a snapshot of a Keras model that has just been updated.

    Args:
        model: The model; none of its layers holds other layers.
        mapping: The columns ``keras`` and ``torch``, as ``parity.read_mapping`` returns them.
        loss: The loss of the step.
        gradients: Its gradients, in the order of ``model.trainable_variables`` and in Keras's layout.
    """
    layers = {weight.path: layer for layer in model.layers for weight in layer.weights}
    names = dict(_named(mapping))

    def by_name(variables: Sequence[keras.Variable], values: Sequence[Any]) -> dict[str, np.ndarray]:
        found = {}
        for variable, value in zip(variables, values, strict=True):
            view = find_layout(layers[variable.path])[variable.name].view
            found[names[variable.path]] = view(torch.tensor(keras.ops.convert_to_numpy(value))).numpy()
        return found

    return _snapshot(
        mapping, loss, by_name(model.weights, model.weights), by_name(model.trainable_variables, gradients)
    )


def torch_step(
    model: nn.Module, mapping: pd.DataFrame, loss: Tensor, optimizers: Iterable[torch.optim.Optimizer]
) -> Snapshot:
    """Update a PyTorch model by the gradients of a loss, and take a snapshot.

    Args:
        model: The twin of a Keras model. Gradients that it has are dropped.
        mapping: The mapping that ``keras_snapshot`` was given.
        loss: A tensor with one number, computed by the model.
        optimizers: Each updates the parameters that it was given.
    """
    model.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    tensors = {name: tensor.numpy(force=True) for name, tensor in model.state_dict().items()}
    gradients = {
        name: weight.grad.numpy(force=True) for name, weight in model.named_parameters() if weight.grad is not None
    }
    return _snapshot(mapping, loss.item(), tensors, gradients)


def history(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Stack the snapshots of several steps: each part gets a first axis (step)."""
    return Snapshot(*(np.stack(part) for part in zip(*snapshots, strict=True)))


def distances(a: Iterable[Snapshot], b: Iterable[Snapshot]) -> pd.DataFrame:
    """Return the largest absolute differences of two trainings: a row for each step, from 1, a column for each part.

    NaN in a snapshot gives NaN, which is within no bound. Snapshots are compared as they come, and not kept.

    Args:
        a: The snapshots of one training, step by step.
        b: Those of the other.

    Raises:
        ValueError: If one training has more steps, or snapshots have different shapes.
    """
    rows = {}
    for step, (one, other) in enumerate(zip_longest(a, b), 1):
        if one is None or other is None:
            raise ValueError(f"step {step}: one of the trainings has ended before")
        for part, x, y in zip(Snapshot._fields, one, other, strict=True):
            if x.shape != y.shape:
                raise ValueError(f"step {step}, {part}: shapes {x.shape} and {y.shape} cannot be compared")
        rows[step] = [np.abs(x - y).max() for x, y in zip(one, other, strict=True)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=Snapshot._fields)


def split(model: nn.Module, *patterns: str) -> list[list[nn.Parameter]]:
    """Split a model's parameters by name: a list for each regular expression, and a last one for the rest.

    A parameter goes to the first expression that its name begins with.
    """
    lists: list[list[nn.Parameter]] = [[] for _ in range(len(patterns) + 1)]
    for name, parameter in model.named_parameters():
        matching = (number for number, pattern in enumerate(patterns) if re.match(pattern, name))
        lists[next(matching, len(patterns))].append(parameter)
    return lists


def _named(mapping: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield (Keras path, PyTorch name) of each tensor that a Keras weight fills."""
    return ((path, name) for path, name in zip(mapping["keras"], mapping["torch"], strict=True) if path)


def _snapshot(
    mapping: pd.DataFrame, loss: Any, tensors: dict[str, np.ndarray], gradients: dict[str, np.ndarray]
) -> Snapshot:
    names = [name for _, name in _named(mapping)]
    statistics = [name for name in names if name.endswith(("running_mean", "running_var"))]
    weights = [name for name in names if name not in statistics]

    def joined(names: list[str], value: Callable[[str], np.ndarray]) -> np.ndarray:
        # This copies; the model's own tensors are changed in place by the next step.
        return np.concatenate([value(name).ravel() for name in names])

    return Snapshot(
        np.asarray(float(loss)),
        joined(weights, lambda name: gradients[name] if name in gradients else np.zeros_like(tensors[name])),
        joined(weights, tensors.__getitem__),
        joined(statistics, tensors.__getitem__),
    )

"""The exercises of notebook 08: a mapping and a flatten order."""

from collections.abc import Iterator, Sequence
from numbers import Integral
from textwrap import shorten

from course.exercises.report import report
from parity import ParityError, transfer
from parity.axes import torch_input
from parity.weights.mapping import COLUMNS

import keras
import numpy as np
import pandas as pd
import torch
from torch import nn


def check_mapping_rows(
    answer: dict[str, str], keras_model: keras.Model, torch_model: nn.Module, remaining: pd.DataFrame
) -> None:
    """Check the PyTorch keys given for the Keras weights that a mapping lacks; "?" is not attempted.

    The models agree only if the answer and the rows that remain are the whole mapping.
    """

    def run():
        if answer is None:
            return None
        faults = list(_row_faults(answer))
        if isinstance(answer, dict) and answer and all(_is_open(key) for key in answer.values()):
            return None
        if faults:
            raise ParityError("answer", faults)
        index = [f"{number} of the answer" for number in range(1, 1 + len(answer))]
        rows = pd.DataFrame(list(answer.items()), index=index, columns=COLUMNS)
        return _transferred(keras_model, torch_model, pd.concat([remaining, rows]), {})

    report("Mapping", {"these rows": [(_in_words(answer), run)]}, answer)


def check_flatten(
    answer: dict[str, tuple[int, ...]], keras_model: keras.Model, torch_model: nn.Module, mapping: pd.DataFrame
) -> None:
    """Check the argument ``flatten`` of ``transfer`` for a twin that flattens channels first; {} is not attempted."""

    def run():
        if answer is None or (isinstance(answer, dict) and not answer):
            return None
        faults = list(_shape_faults(answer))
        if faults:
            raise ParityError("answer", faults)
        return _transferred(keras_model, torch_model, mapping, answer)

    report("Flatten", {"this twin": [(shorten(str(answer), width=80, placeholder=" …"), run)]}, answer)


def _row_faults(answer: object) -> Iterator[str]:
    """Yield what keeps an answer from being a PyTorch key for each Keras weight."""
    if not isinstance(answer, dict):
        yield f"a dict is due, not of type {type(answer).__name__}"
        return
    for weight, key in answer.items():
        if _is_open(key):
            yield f"{weight} has no tensor yet"
        elif not isinstance(key, str):
            yield f"{weight}: a text is due, such as 'block1.conv1.weight', not of type {type(key).__name__}"


def _is_open(key: object) -> bool:
    return key is None or (isinstance(key, str) and key.strip() in ("", "?"))


def _shape_faults(answer: object) -> Iterator[str]:
    """Yield what keeps an answer from being a shape for each layer."""
    if not isinstance(answer, dict):
        yield f"a dict is due, not of type {type(answer).__name__}: a layer's name, and a shape"
        return
    for layer, shape in answer.items():
        if not isinstance(layer, str):
            yield f"a layer is given by its name, a text, not of type {type(layer).__name__}"
        elif not isinstance(shape, Sequence | np.ndarray) or not all(isinstance(n, Integral) for n in shape):
            yield f"{layer}: the shape is due as whole numbers in a tuple, not {shape!r}"


def _in_words(answer: object) -> str:
    return f"{len(answer)} rows" if isinstance(answer, dict) else type(answer).__name__


def _transferred(
    keras_model: keras.Model, torch_model: nn.Module, mapping: pd.DataFrame, flatten: dict[str, tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """Move the weights and return the outputs of both models on noise, side by side in one array each."""
    transfer(keras_model, torch_model, mapping, flatten)
    x = np.random.default_rng(0).random((2, *keras_model.input_shape[1:]), dtype=np.float32)
    with torch.no_grad():
        outputs = torch_model(torch_input(x.astype(np.float64)))
    return np.concatenate(keras_model(x), axis=1), torch.cat(outputs, dim=1).numpy()

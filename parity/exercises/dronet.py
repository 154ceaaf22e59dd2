"""The exercises of notebook 08: a mapping and a flatten order."""

from parity.exercises.report import report
from parity.faults import ParityError
from parity.layouts import channels_first
from parity.mapping import COLUMNS
from parity.transfer import transfer

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
        open_rows = list(answer.values()).count("?")
        if open_rows == len(answer):
            return None
        if open_rows:
            raise ParityError("answer", [f"{open_rows} of {len(answer)} rows are still '?'"])
        rows = pd.DataFrame(list(answer.items()), columns=COLUMNS)
        return _transferred(keras_model, torch_model, pd.concat([remaining, rows], ignore_index=True), {})

    report("Mapping", {"these rows": [(f"{len(answer)} rows", run)]})


def check_flatten(
    answer: dict[str, tuple[int, ...]], keras_model: keras.Model, torch_model: nn.Module, mapping: pd.DataFrame
) -> None:
    """Check the argument ``flatten`` of ``transfer`` for a twin that flattens channels first; {} is not attempted."""

    def run():
        return _transferred(keras_model, torch_model, mapping, answer) if answer else None

    report("Flatten", {"this twin": [(str(answer), run)]})


def _transferred(
    keras_model: keras.Model, torch_model: nn.Module, mapping: pd.DataFrame, flatten: dict[str, tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """Move the weights and return the outputs of both models on noise, side by side in one array each."""
    transfer(keras_model, torch_model, mapping, flatten)
    x = np.random.default_rng(0).random((2, *keras_model.input_shape[1:]), dtype=np.float32)
    with torch.no_grad():
        outputs = torch_model(torch.from_numpy(channels_first(x).astype(np.float64)))
    return np.concatenate(keras_model(x), axis=1), torch.cat(outputs, dim=1).numpy()

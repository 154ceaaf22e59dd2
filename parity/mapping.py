"""Read or propose a mapping: which Keras weight fills which PyTorch tensor."""

import csv
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from parity.faults import ParityError

import keras
import numpy as np
import pandas as pd
from torch import Tensor, nn

COLUMNS = ["keras", "torch"]


def read_mapping(path: str | PathLike[str]) -> pd.DataFrame:
    """Read a mapping from a CSV file.

    Args:
        path: A UTF-8 file with the columns ``keras`` (the path of a Keras weight, such as ``conv2d_1/kernel``) and
            ``torch`` (the key of a tensor in the state dict). The keras field is empty for a tensor that no Keras
            weight fills, such as ``bn1.num_batches_tracked``.

    Returns:
        A table with those two columns of text, whose index is the line number in the file.

    Raises:
        ParityError: If the file cannot be read, has other columns, or has a row of another length or without a
            PyTorch key. Whether the names exist is for ``parity.transfer.transfer`` to say, which has the models.
    """
    path = Path(path)
    rows, faults = {}, []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if header != COLUMNS:
                raise ParityError(path.name, [f"line 1: the columns must be {COLUMNS}, not {header}"])
            for row in reader:
                line = reader.line_num
                row = [field.strip() for field in row]
                if not any(row):
                    continue
                if len(row) != len(COLUMNS):
                    faults.append(f"line {line}: {len(COLUMNS)} fields expected, {len(row)} found: {row}")
                elif not row[1]:
                    faults.append(f"line {line}: the torch field is empty (keras: {row[0]})")
                else:
                    rows[line] = row
    except OSError as error:
        raise ParityError(path.name, [f"the file cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ParityError(path.name, [f"the file is not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    except csv.Error as error:
        raise ParityError(path.name, [f"line {reader.line_num}: not CSV: {error}"]) from error
    if not rows and not faults:
        faults.append("the file has no rows")
    if faults:
        raise ParityError(path.name, faults)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS)
    table.index.name = "line"
    table.attrs["source"] = path.name
    return table


class Proposal(NamedTuple):
    """What ``propose_mapping`` found. A layer is called by the path of its weights, less the last part: ``dense_1``.

    Attributes:
        mapping: A row for each tensor of the twin whose Keras layer is certain, as ``read_mapping`` returns it, in the
            order of the twin's state dict.
        undecided: The modules that may be the twin of a layer, for each layer where numbers cannot decide; one alone
            is not certain either.
        unmatched: For each layer without a twin: why; the first is where the numbers stopped agreeing.
        flatten: What ``parity.transfer.transfer`` takes as ``flatten``: layers whose features the twin has flattened
            channels first, and the shape (*spatial, channels) that Keras flattens.
        by_name: The layers that numbers could not decide and equal names did, with their modules.
    """

    mapping: pd.DataFrame
    undecided: dict[str, list[str]]
    unmatched: dict[str, str]
    flatten: dict[str, tuple[int, ...]]
    by_name: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.mapping)} rows"]
        lines += [f"{layer}: {module}, by its name" for layer, module in self.by_name.items()]
        lines += [f"{layer}: undecided: {' or '.join(modules)}" for layer, modules in self.undecided.items()]
        lines += [f"{layer}: {why}" for layer, why in self.unmatched.items()]
        return "\n  ".join(lines)


def propose_mapping(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray],
    names: Mapping[str, str] | None = None,
    torch_x: Sequence[Tensor] | None = None,
) -> Proposal:
    """Find the twin of each Keras layer by what it takes. Neither model is changed, and the twin's weights are ignored.

    A layer's twin is the module of fitting kind and shapes that takes the same numbers, once all before it are found
    and filled. Of several such modules, those remain with which every later layer finds a twin, too. If more than one
    remains, equal names decide; else the reader does, by ``names`` or in the file. The order in which a model returns
    its outputs decides nothing: two heads fed by one tensor stay open. So do layers that others cannot be told from
    after a great many trials.

    A row is never a guess: if the twin equals the Keras model under some mapping, that mapping has the row. With a
    mistake in the twin, such as another epsilon, no later module takes the right numbers; see ``unmatched`` and
    ``parity.trace.trace``.

    To keep it: ``propose_mapping(...).mapping.to_csv("keras_torch_mapping.csv", index=False)``. To use it at once:
    ``transfer(keras_model, torch_model, proposal.mapping, proposal.flatten)``, which refuses an incomplete one.

    Args:
        keras_model: A Functional or a built Sequential model.
        torch_model: The twin, a module whose ``forward`` takes as many tensors as the Keras model has inputs.
        x: An input of the Keras model: an array (batch, *spatial, channels), or one for each of several inputs. The
            first two examples are used. Random numbers tell layers apart better than zeros.
        names: The twins that the reader knows: {layer: module}, such as ``{"dense_1": "steer"}``; for a SeparableConv
            two, ``{"sep/depthwise": "a", "sep/pointwise": "b"}``.
        torch_x: The twin's inputs, if they are not ``x`` with the channels moved to axis 1.

    Raises:
        ParityError: If no mapping can be complete, with every fault: a Keras model without a graph, a kind of layer
            that is not covered, a layer that no module fits or that none is left for, a module that is never called or
            left over, a tensor of the twin that no layer fills, or ``names`` that are unknown, do not fit, or that the
            numbers contradict.
    """
    # Imported here, because what it stands on reads mappings and imports this module.
    from parity.propose import propose

    return propose(keras_model, torch_model, x, names or {}, torch_x)

"""Read a mapping, which says which Keras weight fills which PyTorch tensor, and return its rows."""

import csv
import difflib
from collections.abc import Collection, Iterable, Iterator
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from parity.errors import ParityError

import pandas as pd

COLUMNS = ["keras", "torch"]
HOW = "how"
"""The name of a third column, which a mapping may have."""

AS_IT_IS, BY_HAND, NOT_FROM_KERAS = "as it is", "by hand", "not from Keras"
_HOW = ("", AS_IT_IS, BY_HAND, NOT_FROM_KERAS)


class Row(NamedTuple):
    """One row of a mapping.

    Attributes:
        label: What to call the row in a message: "line 3" of a file, else "row 3".
        keras: The path of a Keras weight; empty for a tensor that no Keras weight fills.
        torch: The key of a tensor in the twin's state dict; empty if the weight is no tensor there.
        how: How the weight goes there: empty for the layout of its layer; ``AS_IT_IS``, copied in Keras's shape;
            ``BY_HAND``, filled by the user; ``NOT_FROM_KERAS``, a tensor that has nothing to do with Keras.
    """

    label: str
    keras: str
    torch: str
    how: str = ""

    @property
    def module(self) -> str:
        """Return the name of the module that has the tensor. The twin itself has an empty name."""
        return self.torch.rpartition(".")[0]

    @property
    def owner(self) -> str:
        """Return what to call that module in a message."""
        return self.module or "the model"

    @property
    def tensor(self) -> str:
        """Return the name of the tensor within its module."""
        return self.torch.rpartition(".")[2]


def read_mapping(path: str | PathLike[str]) -> pd.DataFrame:
    """Read a mapping from a CSV file.

    Args:
        path: A UTF-8 file with the columns ``keras`` (the path of a Keras weight, such as ``conv2d_1/kernel``) and
            ``torch`` (the key of a tensor in the state dict). The keras field is empty for a tensor that no Keras
            weight fills, such as ``bn1.num_batches_tracked``. Several rows may have the same PyTorch key: the Keras
            weights then fill it one behind the other along axis 0, in the order of the rows, as query, key and value
            fill ``attention.in_proj_weight``. A third column ``how`` may say of a row "as it is" (the weight is copied
            in the shape that it has in Keras), "by hand" (whoever ports the model fills it; the torch field may be
            empty) or "not from Keras" (a buffer or a head that the Keras model has not).

    Returns:
        A table with those columns of text, whose index is the line number in the file.

    Raises:
        ParityError: If the file cannot be read, has other columns, or has a row of another length or without a
            PyTorch key. Whether the names exist is for ``parity.transfer`` to say, which has the models.
    """
    path = Path(path)
    rows, faults = {}, []
    try:
        # Decoded at once: of a file that is decoded piece by piece, an error tells the place within the piece.
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.reader(StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        if header not in (COLUMNS, [*COLUMNS, HOW]):
            raise ParityError(path.name, [f"line 1: {_wrong_columns(header)}"])
        for row in reader:
            line = reader.line_num
            row = [field.strip() for field in row]
            if not any(row):
                continue
            if len(row) != len(header):
                faults.append(f"line {line}: {len(header)} fields expected, {len(row)} found: {row}")
            elif fault := _fault_of(Row("", *row)):
                faults.append(f"line {line}: {fault}")
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
    table = pd.DataFrame.from_dict(rows, orient="index", columns=header)
    table.index.name = "line"
    table.attrs["source"] = path.name
    return table


def mapping_rows(mapping: pd.DataFrame) -> list[Row]:
    """Return the rows of a mapping.

    Args:
        mapping: A table with the columns ``keras`` and ``torch``, as ``read_mapping`` returns it.

    Raises:
        ParityError: If it has other columns, or a row that does not say what goes where.
    """
    if list(mapping.columns) not in (COLUMNS, [*COLUMNS, HOW]):
        raise ParityError(source_of(mapping), [_wrong_columns(list(mapping.columns))])
    kind = mapping.index.name or "row"
    texts = mapping.fillna("").astype(str)
    rows = [Row(f"{kind} {index}", *fields) for index, *fields in texts.itertuples()]
    faults = [f"{row.label}: {fault}" for row in rows if (fault := _fault_of(row))]
    if faults:
        raise ParityError(source_of(mapping), faults)
    return rows


def _wrong_columns(found: list[str]) -> str:
    return f"the columns must be {COLUMNS}, not {found}"


def _fault_of(row: Row) -> str:
    """Return what is wrong with a row by itself; nothing if it says what goes where."""
    if row.how not in _HOW:
        return f"the field {HOW} is {row.how!r}; it may be empty, {AS_IT_IS!r}, {BY_HAND!r} or {NOT_FROM_KERAS!r}"
    if not row.torch and not (row.how == BY_HAND and row.keras):
        return f"the torch field is empty (keras: {row.keras})"
    if row.how == AS_IT_IS and not row.keras:
        return f"{row.torch} is to be copied as it is, but the keras field is empty"
    if row.how == NOT_FROM_KERAS and row.keras:
        return f"{row.torch} is said not to be from Keras, but the keras field is {row.keras}"
    return ""


def unknown_names(rows: Iterable[Row], weights: Collection[str], tensors: Collection[str]) -> Iterator[str]:
    """Yield a fault for each name in a mapping that the models do not have, with the nearest that they have.

    Args:
        rows: The rows of the mapping.
        weights: The paths of the Keras weights.
        tensors: The keys of the twin's state dict.
    """
    for row in rows:
        for what, name, names in (("Keras weight", row.keras, weights), ("PyTorch tensor", row.torch, tensors)):
            if name and name not in names:
                close = difflib.get_close_matches(name, list(names), n=1)
                yield f"{row.label}: there is no {what} {name}" + (f"; did you mean {close[0]}?" if close else "")


def source_of(mapping: pd.DataFrame) -> str:
    """Return what to call a mapping in a message: the name of its file, if it was read from one."""
    return str(mapping.attrs.get("source", "mapping"))

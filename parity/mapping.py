"""Read a mapping: which Keras weight fills which PyTorch tensor."""

import csv
from os import PathLike
from pathlib import Path

from parity.faults import ParityError

import pandas as pd

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

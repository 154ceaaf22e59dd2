"""The rows of a mapping one by one, and names that the models do not have."""

from parity import ParityError, read_mapping
from parity.weights.mapping import COLUMNS, Row, mapping_rows, source_of, unknown_names

import numpy as np
import pandas as pd
import pytest


@pytest.mark.parametrize(
    ("torch", "module", "owner", "tensor"),
    [
        ("conv.weight", "conv", "conv", "weight"),
        ("features.0.conv.bias", "features.0.conv", "features.0.conv", "bias"),
        ("scale", "", "the model", "scale"),
    ],
)
def test_a_row_knows_the_module_and_the_tensor(torch, module, owner, tensor):
    row = Row("line 2", "a/kernel", torch)
    assert (row.module, row.owner, row.tensor) == (module, owner, tensor)


def test_the_rows_of_a_table_are_called_by_its_index():
    table = pd.DataFrame([["a/kernel", "a.weight"], ["", "n.x"]], columns=COLUMNS)
    assert mapping_rows(table) == [Row("row 0", "a/kernel", "a.weight"), Row("row 1", "", "n.x")]
    assert mapping_rows(table[1:]) == [Row("row 1", "", "n.x")]
    table.index = ["one", "two"]
    assert [row.label for row in mapping_rows(table)] == ["row one", "row two"]


def test_the_rows_of_a_file_are_called_by_their_lines(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text("keras,torch\n\na/kernel,a.weight\n,n.x\n", encoding="utf-8")
    mapping = read_mapping(path)
    assert mapping_rows(mapping) == [Row("line 3", "a/kernel", "a.weight"), Row("line 4", "", "n.x")]
    assert source_of(mapping) == "names.csv"


@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA, ""])
def test_a_tensor_that_no_weight_fills_has_an_empty_path(nothing):
    table = pd.DataFrame({"keras": ["a/kernel", nothing], "torch": ["a.weight", "n.x"]})
    assert [row.keras for row in mapping_rows(table)] == ["a/kernel", ""]


def test_names_are_text():
    (row,) = mapping_rows(pd.DataFrame({"keras": [1], "torch": [2.5]}))
    assert row == Row("row 0", "1", "2.5")


def test_the_table_is_left_as_it_was():
    table = pd.DataFrame({"keras": [None], "torch": ["n.x"]})
    mapping_rows(table)
    assert table.keras[0] is None


@pytest.mark.parametrize("columns", [["torch", "keras"], ["keras"], ["keras", "torch", "note"], ["Keras", "Torch"]])
def test_other_columns_are_refused(columns):
    table = pd.DataFrame([["a"] * len(columns)], columns=columns)
    with pytest.raises(ParityError, match=r"^mapping: 1 fault") as caught:
        mapping_rows(table)
    assert caught.value.faults == [f"the columns must be ['keras', 'torch'], not {columns}"]
    table.attrs["source"] = "mine.csv"
    with pytest.raises(ParityError, match=r"^mine\.csv: 1 fault"):
        mapping_rows(table)


WEIGHTS, TENSORS = ["conv_1/kernel", "conv_1/bias", "dense/kernel"], {"conv.weight": 0, "conv.bias": 0}


@pytest.mark.parametrize(
    ("keras", "torch", "faults"),
    [
        ("conv_1/kernel", "conv.weight", []),
        ("", "conv.bias", []),
        ("conv_2/kernel", "conv.weight", ["there is no Keras weight conv_2/kernel; did you mean conv_1/kernel?"]),
        ("conv_1/bias", "conv.biases", ["there is no PyTorch tensor conv.biases; did you mean conv.bias?"]),
        ("conv_1/bias", "zzz", ["there is no PyTorch tensor zzz"]),
        ("conv.weight", "conv_1/kernel", ["there is no Keras weight conv.weight", "there is no PyTorch tensor conv_1"]),
        ("", "", []),
    ],
)
def test_a_name_that_the_models_do_not_have_is_a_fault_with_the_nearest(keras, torch, faults):
    found = list(unknown_names([Row("line 7", keras, torch)], WEIGHTS, TENSORS))
    assert len(found) == len(faults)
    for fault, expected in zip(found, faults, strict=True):
        assert fault.startswith(f"line 7: {expected}")
        assert ("did you mean" in fault) == ("did you mean" in expected)


def test_all_rows_are_looked_at_in_their_order():
    rows = [Row("line 2", "x", "conv.weight"), Row("line 3", "conv_1/bias", "conv.bias"), Row("line 4", "", "y")]
    found = list(unknown_names(rows, WEIGHTS, TENSORS))
    assert found == ["line 2: there is no Keras weight x", "line 4: there is no PyTorch tensor y"]

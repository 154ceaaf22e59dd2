"""The README says what the notebooks and the frameworks say."""

import inspect
import re

from parity.layouts import covered_layers, find_layout

import keras
import nbformat
import pytest
from anatomy import NOTEBOOKS, ROOT
from torch import nn

README = (ROOT / "README.md").read_text(encoding="utf-8")
SERIES = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
# The notebook whose pitfall is each of these mistakes, which notebook 08 plants one by one.
MISTAKES = {
    "01": "kernel height and width",
    "03": "epsilon 1e-5",
    "04": "stem: padding=2",
    "05": "shortcut overwritten",
    "06": "flattened channels first",
    "07": "heads exchanged",
}


def rows(section):
    """Return the rows of all tables of a section, each a list of its fields."""
    text = re.search(rf"^#+ {section}\n(.*?)(?=^##|\Z)", README, flags=re.MULTILINE | re.DOTALL).group(1)
    table = [[field.strip() for field in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in table if not set("".join(row)) <= set("-| ")]


def notebook_rows():
    return {row[0][1:3]: row for row in rows("The notebooks")[1:]}


def first_column_in_08(header):
    """Return, by row, the first column of the stored table of notebook 08 that has a column of this name."""
    notebook = nbformat.read(NOTEBOOKS / "08_dronet.ipynb", as_version=4)
    texts = [
        output.get("data", {}).get("text/plain", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    # pandas puts the columns that do not fit below the first ones.
    lines = next(text for text in texts if header in text).split("\n\n")[0].splitlines()[1:]
    return dict(re.match(r"(.*?)  +(\S+)", line).groups() for line in lines)


def test_every_notebook_is_in_the_table():
    assert [row[0] for row in notebook_rows().values()] == [f"[{p.name[:2]}](notebooks/{p.name})" for p in SERIES]


@pytest.mark.parametrize("path", SERIES, ids=[path.stem for path in SERIES])
def test_minutes_are_those_of_the_notebook(path):
    title = nbformat.read(path, as_version=4).cells[0].source
    minutes = re.search(r"Read: (\d+) minutes?\. \w+: (\d+)", title).groups()
    assert notebook_rows()[path.name[:2]][2] == "{} + {} min".format(*minutes)


@pytest.mark.parametrize("number", MISTAKES)
def test_errors_are_those_of_notebook_08(number):
    assert notebook_rows()[number][-1] == first_column_in_08("steering RMSE, 200")[MISTAKES[number]]


def test_the_error_without_a_mistake_is_that_of_notebook_08():
    assert f"Without a mistake it is {first_column_in_08('steering RMSE, 200')['no mistake']}." in README


def test_the_share_that_a_signed_check_passes_is_that_of_notebook_08():
    verdicts = first_column_in_08("signed difference, one image")
    assert verdicts.pop("no mistake") == "passes"
    passed = list(verdicts.values()).count("passes")
    assert notebook_rows()["00"][-1] == f"a check with a sign passes {passed} of {len(verdicts)} mistakes"


def test_the_error_of_all_mistakes_is_that_of_notebook_08():
    error = first_column_in_08("logit, 200")["naive port"]
    assert notebook_rows()["08"][-1] == f"all nine mistakes at once: {error} off"


def test_the_cheat_sheet_has_every_layer_and_weight_that_is_converted():
    sheet = {row[0]: row for row in rows("Cheat sheet")}
    for name in covered_layers():
        row = next(row for layers, row in sheet.items() if re.search(rf"\b{name}\b", layers))
        for weight, place in find_layout(getattr(keras.layers, name).__new__(getattr(keras.layers, name))).items():
            fields = sheet["any, `bias`"] if weight == "bias" else row
            assert f"`{weight}`" in fields[1]
            assert f"`{place.tensor}`" in fields[2]


def test_the_defaults_of_the_cheat_sheet_are_those_of_the_frameworks():
    sheet = {row[0]: row[-1] for row in rows("Cheat sheet")}

    def default(function, argument):
        return inspect.signature(function).parameters[argument].default

    layers, numbers = keras.layers, {}
    for name, module in (
        ("BatchNormalization", nn.BatchNorm2d),
        ("LayerNormalization", nn.LayerNorm),
        ("GroupNormalization", nn.GroupNorm),
    ):
        numbers[name] = [default(getattr(layers, name), "epsilon"), default(module, "eps")]
    numbers["BatchNormalization"] += [
        default(layers.BatchNormalization, "momentum"),
        default(nn.BatchNorm2d, "momentum"),
    ]
    numbers["GroupNormalization"].append(default(layers.GroupNormalization, "groups"))
    numbers["LeakyReLU"] = [default(layers.LeakyReLU, "negative_slope"), default(nn.LeakyReLU, "negative_slope")]
    for name, expected in numbers.items():
        assert [float(number) for number in re.findall(r"\d+(?:\.\d+)?", sheet[name])] == expected

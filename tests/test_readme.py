"""The README says what the notebooks and the frameworks say."""

import inspect
import re
import tomllib

from course.pages.anatomy import NOTEBOOKS, OFFICIAL, ROOT, pages
from course.verdicts import PASSES
from parity.padding import Conv2dSame
from parity.weights.layouts import covered_layers, find_layout
from tests.helpers.models import fill

import keras
import nbformat
import numpy as np
import pytest
import torch
from torch import nn

README = (ROOT / "README.md").read_text(encoding="utf-8")
SERIES = pages()
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


def test_no_table_is_torn():
    """A blank line in a table makes text of the rows after it."""
    for block in re.findall(r"(?:^\|.*\n)+", README, flags=re.MULTILINE):
        assert re.fullmatch(r"[|: -]+", block.splitlines()[1]), block


def test_every_notebook_is_in_the_table():
    assert [row[0] for row in notebook_rows().values()] == [
        f"[{p.name[:2]}]({p.relative_to(ROOT).as_posix()})" for p in SERIES
    ]


@pytest.mark.parametrize("path", SERIES, ids=[path.stem for path in SERIES])
def test_minutes_are_those_of_the_notebook(path):
    title = nbformat.read(path, as_version=4).cells[0].source
    exercises = re.search(r"Exercises: (\d+) minutes?\.", title)
    minutes = (re.search(r"Reading: (\d+) minutes?\.", title)[1], exercises[1] if exercises else 0)
    assert notebook_rows()[path.name[:2]][2] == "{} + {} min".format(*minutes)


@pytest.mark.parametrize("number", MISTAKES)
def test_errors_are_those_of_notebook_08(number):
    assert notebook_rows()[number][-1] == first_column_in_08("steering RMSE, 200")[MISTAKES[number]]


def test_the_error_without_a_mistake_is_that_of_notebook_08():
    assert f"Without a mistake it is {first_column_in_08('steering RMSE, 200')['no mistake']}." in README


def test_the_share_that_a_signed_check_passes_is_that_of_notebook_08():
    passes, _ = PASSES.split()
    verdicts = first_column_in_08("one image")
    assert verdicts.pop("no mistake") == passes
    passed = list(verdicts.values()).count(passes)
    assert notebook_rows()["00"][-1] == f"a signed check of one image passes {passed} of {len(verdicts)} mistakes"


def test_the_error_of_all_mistakes_is_that_of_notebook_08():
    error = first_column_in_08("steering, 200")["naive port"]
    said = f"five mistakes at once: at 200 \N{MULTIPLICATION SIGN} 200 the steering is up to {error} off"
    assert notebook_rows()["08"][-1] == said


def test_the_steering_with_exchanged_heads_is_that_of_notebook_09():
    cells = nbformat.read(NOTEBOOKS / OFFICIAL, as_version=4).cells
    printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    least, most = re.search(r"steering from (\S+) to (\S+)", printed).groups()
    assert notebook_rows()["09"][-1] == f"heads exchanged: it steers {least} to {most}"


def test_the_mistakes_that_pass_usual_checks_are_those_of_notebook_10():
    cells = nbformat.read(NOTEBOOKS / "further" / "11_which_check_catches_which_bug.ipynb", as_version=4).cells
    printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    passed, count, checks = re.search(r"(\d+) of (\d+) mutants pass (.*):", printed).groups()
    networks = len(re.findall(r"^agree .* \w+, right ", printed, flags=re.MULTILINE))
    assert (len(checks.split(", ")), networks) == (4, 8)
    said = f"{passed} of {count} mistakes, in DroNet and seven small networks, pass four usual checks"
    assert notebook_rows()["11"][-1] == said


def test_the_errors_of_the_hunt_are_those_of_notebook_11():
    cells = nbformat.read(NOTEBOOKS / "further" / "10_hunt_the_divergence.ipynb", as_version=4).cells
    printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    mended = re.findall(r"^DIFFERENT +(\S+)  (.*), steering +\(4, 1\)", printed, flags=re.MULTILINE)
    names = ["naive", "kernels mended", "ReLU mended", "epsilon mended", "heads mended"]
    assert [name for _, name in mended[:5]] == names
    said = f"the steering is {mended[0][0]} off with six mistakes, {mended[4][0]} with two of them left"
    assert notebook_rows()["10"][-1] == said


def test_the_mistakes_that_no_loss_and_no_weight_shows_are_those_of_notebook_12():
    ends = {"loss": 0, "weights": 2}
    tables = [
        output["data"]["text/plain"].splitlines()
        for cell in nbformat.read(NOTEBOOKS / "further" / "12_training_parity.ipynb", as_version=4).cells
        for output in cell.get("outputs", [])
        if "text/plain" in output.get("data", {})
    ]
    largest = next(table for table in tables if "statistics" in table[0] and "gradients" in table[0])
    fields = [re.split(r"  +", line.replace("< 1e-12", "<")) for line in largest[1:]]
    mistakes = fields[:10]
    calm = [row[0] for row in mistakes if all(row[1 + at] == "<" for at in ends.values())]
    assert notebook_rows()["12"][-1] == f"{len(calm)} of {len(mistakes)} mistakes show in no loss and no weight"


def test_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert set(re.findall(r"torch==[\d.]*\d", README)) == {pin for pin in constraints if pin.startswith("torch==")}
    tested = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert f"With Python {', '.join(tested[:-1])} or {tested[-1]} (" in README
    assert project["requires-python"] == f">={tested[0]}"


def test_the_cheat_sheet_has_every_layer_and_weight_that_is_converted():
    sheet = {row[0]: row for row in rows("Cheat sheet")}
    for name in covered_layers():
        row = next(row for layers, row in sheet.items() if re.search(rf"\b{name}\b", layers))
        for weight, place in find_layout(getattr(keras.layers, name).__new__(getattr(keras.layers, name))).items():
            fields = sheet["any, `bias`"] if weight == "bias" else row
            assert f"`{weight}`" in fields[1]
            assert f"`{place.tensor}`" in fields[2]


def test_the_axes_of_the_cheat_sheet_are_those_that_transfer_and_keras_have():
    sheet = {row[0]: " ".join(row[1:]) for row in rows("Cheat sheet")}
    sizes = {"i": 4, "m": 3, "h": 2, "w": 5, "l": 5}

    def reordered(row, call):
        expressions = re.findall(rf"`({call})`", sheet[row])
        ranks = [len(re.search(r"permute\((.*?)\)", expression)[1].split(",")) for expression in expressions]
        tensors = [torch.rand(*(2, 5, 4, 3) if rank == 4 else (5, 4, 3, 2, 6)[:rank]) for rank in ranks]
        return [
            (tensor, eval(f"tensor.{expression}", {"tensor": tensor, **sizes}))
            for tensor, expression in zip(tensors, expressions, strict=True)
        ]

    for row, call, name, ranks in (
        ("Conv1D, Conv2D, Conv3D", r"permute\([\d, ]+\)", "Conv{}D", (1, 2, 3)),
        ("DepthwiseConv1D, DepthwiseConv2D", r"permute\([\d, ]+\)\.reshape\(.*?\)", "DepthwiseConv{}D", (1, 2)),
    ):
        for rank, (kernel, weight) in zip(ranks, reordered(row, call), strict=True):
            layer = getattr(keras.layers, name.format(rank))
            assert torch.equal(weight, find_layout(layer.__new__(layer))["kernel"].view(kernel))
    [(images, moved)] = reordered("images (batch, h, w, c)", r"permute\(.*?\)")
    assert torch.equal(moved, images.movedim(-1, 1))
    [(maps, features)] = reordered("Flatten", r"permute\(.*?\)\.flatten\(1\)")
    assert np.array_equal(features, keras.layers.Flatten()(maps.movedim(1, -1).numpy()))


@pytest.mark.parametrize("mistake", ["none", "padding", "epsilon"])
def test_the_code_for_your_own_model_runs_and_can_fail(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = keras.Input((None, None, 2))
    maps = keras.layers.Conv2D(3, 3, 2, "same", name="conv")(images)
    model = fill(keras.Model(images, keras.layers.BatchNormalization(name="norm")(maps)))
    model.save("weights.h5")
    twin = nn.Sequential()
    twin.add_module("conv", Conv2dSame(2, 3, 3, 2) if mistake != "padding" else nn.Conv2d(2, 3, 3, 2, padding=1))
    twin.add_module("norm", nn.BatchNorm2d(3, eps=1e-3, momentum=0.01))
    propose, convert, find = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    batches = [np.random.default_rng(0).normal(size=(2, n, n, 2)).astype("float32") for n in (9, 10)]
    names = {"keras_model": model, "torch_model": twin, "batches": batches, "images": batches[0]}
    exec(propose, names)
    table = re.search(r"```\n(keras,torch\n.*?)```", README, flags=re.DOTALL)[1]
    assert (tmp_path / "mapping.csv").read_text() == table
    if mistake == "padding":
        with pytest.raises(AssertionError):
            exec(convert, names)
        return
    exec(convert, names)
    capsys.readouterr()
    if mistake == "epsilon":
        twin.norm.eps = 1e-5
    exec(find, names)
    said = re.search(r"```\n(norm .*?)```", README, flags=re.DOTALL)[1]
    assert capsys.readouterr().out.endswith(said if mistake == "epsilon" else "no layer diverges\n")


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
    slopes = layers.LeakyReLU, keras.activations.get("leaky_relu"), nn.LeakyReLU
    numbers["LeakyReLU"] = [default(slope, "negative_slope") for slope in slopes]
    prelu = layers.PReLU()
    prelu.build((None, 2))
    numbers["PReLU with `shared_axes`"] = [prelu.alpha.numpy()[0], nn.PReLU().weight.item()]
    for name, expected in numbers.items():
        assert [float(number) for number in re.findall(r"\d+(?:\.\d+)?", sheet[name])] == expected

"""The notebooks as pages, and the guard that no unrun cell passes."""

import copy
import re
import subprocess
import sys

from course.pages.anatomy import (
    NOTEBOOKS,
    OFFICIAL,
    ROOT,
    link_faults,
    minutes_to_read,
    output_faults,
    page_faults,
    pages,
    solution_of,
)

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

SERIES = pages()
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *NOTEBOOKS.glob("*.md"), *SERIES, *SOLUTIONS]


def read(path):
    return nbformat.read(path, as_version=4)


def names(paths):
    return {"argvalues": paths, "ids": [str(path.relative_to(ROOT)) for path in paths]}


@pytest.mark.parametrize("path", **names([*SERIES, *SOLUTIONS]))
def test_outputs_are_clean(path):
    assert list(output_faults(read(path))) == []


@pytest.mark.parametrize("path", **names(SERIES))
def test_page_has_all_its_parts(path):
    assert list(page_faults(read(path), path)) == []


@pytest.mark.parametrize("path", **names([path for path in SERIES if path.name != OFFICIAL]))
def test_solution_is_right(path):
    solution = read(solution_of(path))
    printed = "".join(output.get("text", "") for cell in solution.cells for output in cell.get("outputs", []))
    exercises = set(re.findall(r"\bcheck_\w+(?=\()", "".join(cell.source for cell in read(path).cells)))
    assert exercises
    assert exercises <= set(re.findall(r"\bcheck_\w+(?=\()", "".join(cell.source for cell in solution.cells)))
    assert printed.count(": right; ") >= len(exercises)


@pytest.mark.parametrize("path", **names(PAGES))
def test_links_resolve(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    assert list(link_faults(text, path.parent)) == []


def broken(change):
    notebook = copy.deepcopy(read(SERIES[0]))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    change(cells)
    return notebook


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda cells: cells[0].update(execution_count=None), "without having been run"),
        (lambda cells: cells[0].outputs.append(new_output("stream", name="stderr", text="x")), "stderr"),
        (lambda cells: cells[0].outputs.append(new_output("stream", text="in /home/me/x.py")), "path"),
        (lambda cells: cells[0].outputs.append(new_output("stream", text="<f at 0x7f00aa112233>")), "address"),
        (lambda cells: cells[0].outputs.append(new_output("stream", text="UserWarning: x")), "warning"),
        (lambda cells: cells[0].outputs.append(new_output("error", ename="E", evalue="e")), "error"),
        (lambda cells: cells[0].outputs.append(new_output("display_data", {"image/png": "x"})), "alternative text"),
    ],
)
def test_broken_outputs_are_seen(change, fault):
    assert any(fault in found for found in output_faults(broken(change)))


@pytest.mark.parametrize(
    ("find", "replace", "fault"),
    [
        ("## Why", "## Because", "headings"),
        ("## Predict", "### Predict", "headings"),
        ("</details>", "", "folds"),
        ("## Why", "#### Why", "headings"),
        ("## Why", "# Why", "headings"),
        ("## Predict", "## More\n\n#### Deep\n\n## Predict", "skip a level"),
        ("# 00. ", "# 01. ", "title"),
        (f"solutions/{solution_of(SERIES[0]).name}", "solutions/other.ipynb", "solutions"),
        ("Reading: ", "Read: ", "minutes"),
        ("Exercises: ", "Practise: ", "minutes for the exercises"),
        ("## Why", "## Why" + " word" * 900, "minutes are stated"),
    ],
)
def test_broken_pages_are_seen(find, replace, fault):
    notebook = copy.deepcopy(read(SERIES[0]))
    for cell in notebook.cells:
        cell.source = cell.source.replace(find, replace)
    assert any(fault in found for found in page_faults(notebook, SERIES[0]))


PREDICTION = """## Predict

Which?

1. One.
2. Two.
3. Three.

<details><summary>Answer</summary>

**2.** Because.

1: This is wrong.

3: This, too.

</details>

## See it go wrong
"""


@pytest.mark.parametrize(
    ("find", "replace", "fault"),
    [
        ("", "", ""),
        ("3: This, too.", "", "nothing of the options [3]"),
        ("1: This is wrong.", "The first is wrong.", "nothing of the options [1]"),
        ("**2.** Because", "2: Because", "the one right option"),
        ("1: This", "**1.** This", "the one right option"),
        ("2. Two.\n3. Three.", "2. Two.", "has 2 options"),
        ("1. One.\n2. Two.\n3. Three.", "Yes or no?", "has 0 options"),
    ],
)
def test_the_answer_to_the_prediction_speaks_of_every_option(find, replace, fault):
    notebook = copy.deepcopy(read(SERIES[4]))
    first = next(number for number, cell in enumerate(notebook.cells) if "## Predict" in cell.source)
    assert SERIES[4].name.startswith("04")
    before = notebook.cells[first].source.partition("## Predict")[0]
    notebook.cells[first].source = before + PREDICTION.replace(find, replace)
    found = [text for text in page_faults(notebook, SERIES[4]) if "option" in text]
    assert [fault in text for text in found] == [True] * bool(fault)


def test_pages_are_in_the_order_of_their_numbers():
    assert [path.name[:2] for path in SERIES] == [f"{number:02}" for number in range(len(SERIES))]
    assert {path.parent for path in SERIES} == {NOTEBOOKS, NOTEBOOKS / "further"}
    assert {solution_of(path) for path in SERIES if path.name != OFFICIAL} == set(SOLUTIONS)


def test_a_heading_between_the_others_is_no_fault():
    notebook = copy.deepcopy(read(SERIES[0]))
    for cell in notebook.cells:
        cell.source = cell.source.replace("## Why", "## May be skipped\n\n### Part\n\n## Why")
    assert list(page_faults(notebook, SERIES[0])) == []


def test_minutes_are_those_of_words_lines_and_figures():
    picture = new_output("display_data", {"image/png": "x"})
    prose = new_markdown_cell("## Title\n\n" + "word " * 178 + "[link](https://example.org)")
    code = new_code_cell("import os\n\n" + "x = 1\n" * 20, outputs=[picture])
    hidden = new_code_cell("x = 1\n" * 100, metadata={"tags": ["hide-input"]}, outputs=[picture])
    for cells, minutes in (([prose], 1), ([code], 3), ([hidden], 1), ([prose, code, hidden], 4)):
        assert minutes_to_read(new_notebook(cells=cells)) == minutes
    prose.source += " word"
    assert minutes_to_read(new_notebook(cells=[prose])) == 2


def test_a_missing_final_check_is_seen():
    notebook = copy.deepcopy(read(SERIES[0]))
    for cell in notebook.cells:
        cell.metadata.pop("tags", None)
    assert any("final-check" in found for found in page_faults(notebook, SERIES[0]))


def test_dead_links_are_seen():
    faults = list(link_faults("[a](nowhere.md) [b](http://example.org) [c](https://example.org)", ROOT))
    assert len(faults) == 2


def test_strict_nbval_fails_what_it_should(tmp_path):
    """Run pytest on a planted notebook: a final check cannot fail, another does so by accident, a cell never ran."""
    cells = [new_code_cell("naive, fixed = 3, 4", execution_count=1)]
    checks = ("assert fixed == 4", "assert fixed > 2", "assert int('4' if fixed == 4 else 'x')")
    for count, check in enumerate(checks, 2):
        cells.append(new_code_cell(check, execution_count=count, metadata={"tags": ["final-check"]}))
    cells.append(new_code_cell("assert fixed == 4", execution_count=5))
    for count, text in ((6, "2\n"), (7, "3\n"), (None, ""), (9, "2\n")):
        cells.append(new_code_cell("print(1 + 1)", execution_count=count))
        cells[-1].outputs = [new_output("stream", name="stdout", text=text)] if text else []
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "planted.ipynb")
    command = [sys.executable, "-m", "pytest", "-n0", "-rA", "--cold-kernels", "-c", str(ROOT / "pyproject.toml")]
    result = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    line = r"^(PASSED|FAILED|ERROR) \S*planted\.ipynb::Cell (\d)(, with the naive port)?"
    found = re.findall(line, result.stdout, flags=re.MULTILINE)
    outcomes = {(int(cell), bool(naive)): outcome for outcome, cell, naive in found}
    expected = dict.fromkeys([(cell, False) for cell in range(9)], "PASSED") | {
        (6, False): "FAILED",
        (7, False): "ERROR",
    }
    expected |= {(1, True): "PASSED", (2, True): "FAILED", (3, True): "FAILED"}
    assert outcomes == expected, result.stdout
    assert "the final check passes the naive port" in result.stdout
    assert "saved without having been run" in result.stdout

"""The README, and the page on how to take the course, say what the notebooks and the frameworks say."""

import re
import tomllib

from course.pages.anatomy import MINUTES, NOTEBOOKS, OFFICIAL, ROOT, pages

import nbformat
import pytest

README = (ROOT / "README.md").read_text(encoding="utf-8")
QUESTIONS = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
COURSE = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
# The notebook whose pitfall is each of these mistakes, which notebook 08 plants one by one.
MISTAKES = {
    "01": "kernel height and width",
    "03": "epsilon 1e-5",
    "04": "stem: padding=2",
    "05": "shortcut overwritten",
    "06": "flattened channels first",
    "07": "heads exchanged",
}


def table(text, first_header):
    """Return the rows of the table whose first header this is, each a list of its fields."""
    block = re.search(rf"^\| {re.escape(first_header)} \|.*\n((?:\|.*\n)+)", text, flags=re.MULTILINE)[1]
    return [[field.strip() for field in line.strip("|").split(" | ")] for line in block.splitlines()[1:]]


def minutes(path):
    """Return the minutes that a page states: reading, exercises."""
    title = nbformat.read(path, as_version=4).cells[0].source
    exercises = re.search(r"Exercises: (\d+) minutes?\.", title)
    return int(MINUTES.search(title)[1]), int(exercises[1]) if exercises else 0


def title(path):
    """Return the title of a page without its number: what stands before the colon."""
    return re.match(r"# \d\d\. (.*)", nbformat.read(path, as_version=4).cells[0].source)[1].split(":")[0]


def printed_in(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def page(number):
    (path,) = (path for path in pages() if path.name.startswith(number))
    return path


def first_column_in_08(header):
    """Return, by row, the first column of the stored table of notebook 08 that has a column of this name."""
    notebook = nbformat.read(page("08"), as_version=4)
    texts = [
        output.get("data", {}).get("text/plain", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    # pandas puts the columns that do not fit below the first ones.
    lines = next(text for text in texts if header in text).split("\n\n")[0].splitlines()[1:]
    return dict(re.match(r"(.*?)  +(\S+)", line).groups() for line in lines)


@pytest.mark.parametrize("text", [README, COURSE], ids=["README", "notebooks/README"])
def test_no_table_is_torn(text):
    """A blank line in a table makes text of the rows after it."""
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert re.fullmatch(r"[|: -]+", block.splitlines()[1]), block


def test_every_page_is_in_the_table_with_its_title_and_its_minutes():
    expected = [
        [
            f"[{path.name[:2]}. {title(path)}]({path.relative_to(ROOT).as_posix()})",
            "{} + {}".format(*minutes(path)),
        ]
        for path in pages()
    ]
    assert [[row[0], row[2]] for row in table(README, "page")] == expected


def test_the_hours_of_the_course_are_those_of_its_pages():
    read, practise = (sum(minutes(path)[kind] for path in pages()) for kind in range(2))
    said = f"All pages take {round(read / 60)} hours to read with their code, and {round(practise / 60)} to practise."
    assert said in " ".join(README.split())


def test_the_minutes_of_the_path_for_a_deadline_are_those_of_its_pages():
    (row,) = (row for row in table(COURSE, "you have") if "deadline" in row[0])
    numbers = re.findall(r"\[(\d\d)\]", row[1])
    total = sum(minutes(page(number))[0] for number in numbers)
    assert f"{total} minutes" in row[1]
    assert total < 180


def test_the_picture_of_the_readme_is_in_a_folder_that_jupyterlab_serves():
    path = re.search(r"!\[[^\]]{40,}\]\((.*?)\)", README)[1]
    assert (ROOT / path).is_file()
    assert not any(part.startswith(".") for part in path.split("/"))


def test_the_code_of_the_readme_prints_what_is_said(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    said = re.search(r"```python\n.*?```\n+```\n(.*?)```", README, flags=re.DOTALL)[1]
    exec(code, {})
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("number", MISTAKES)
def test_errors_are_those_of_notebook_08(number):
    rows = {row[1][1:3]: row for row in table(COURSE, "mistake")}
    assert rows[number][-1] == first_column_in_08("steering RMSE, 200")[MISTAKES[number]]


def test_the_error_without_a_mistake_is_that_of_notebook_08():
    error = first_column_in_08("steering RMSE, 200")["no mistake"]
    assert f"without a mistake the error is {error}." in " ".join(COURSE.split())


def test_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert set(re.findall(r"torch==[\d.]*\d", QUESTIONS)) == {pin for pin in constraints if pin.startswith("torch==")}
    tested = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    for text in (README, QUESTIONS):
        assert f"You need Python {', '.join(tested[:-1])} or {tested[-1]}" in text
    assert project["requires-python"] == f">={tested[0]}"


def test_notebook_09_is_the_one_that_needs_a_download():
    assert page("09").name == OFFICIAL
    assert "notebook 09" in QUESTIONS

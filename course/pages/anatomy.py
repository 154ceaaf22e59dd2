"""What every notebook of the course must have, and what none may have; and how long it takes to read one."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from math import ceil
from pathlib import Path

from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
OFFICIAL = "09_official_weights.ipynb"
"""The notebook that needs a file from outside the project. It is a case study: read and run, without exercises."""

# In this order; a page may have others between them.
HEADINGS = [
    r"# \d\d\. .+",
    r"## What you'll do",
    r"## Two (layers|models) that should agree",
    r"## Predict",
    r"## See it go wrong",
    r"## Why",
    r"## Fix it",
    r"## Check that the check can fail",
    r"## Your turn",
    r"## In practice",
    r"## In this notebook you",
]
CASE_STUDY = [HEADINGS[0], HEADINGS[1], HEADINGS[-1]]
HIDDEN = "hide-input"
"""The tag of a cell that is not the lesson: set-up, a table, a plot. The site folds it."""
WORDS_A_MINUTE, SECONDS_A_LINE, SECONDS_A_FIGURE = 180, 6, 30
MINUTES = re.compile(r"Reading: (\d+) minutes?\.")
MACHINE = re.compile(
    r"(/|\\)(home|root|tmp|work|Users|usr|opt|private)\b|site-packages|ipykernel_\d|\b[A-Z]:\\|0x[0-9a-f]{6,}"
)
WARNING = re.compile(r"\b\w*Warning\b|\bWARNING\b")
GITHUB = ("../../actions/", "../../deployments/")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def output_faults(notebook: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with stored outputs: any notebook, solutions too."""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if cell.execution_count is None:
            yield f"cell {number} was saved without having been run"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {number} stores an error"
            if output.get("name") == "stderr":
                yield f"cell {number} stores what went to stderr"
            data = output.get("data", {})
            texts = [output.get("text", ""), *(value for kind, value in data.items() if kind.startswith("text/"))]
            for text in texts:
                if MACHINE.search(text):
                    yield f"cell {number} stores a path or an address of a machine: {MACHINE.search(text).group()}"
                if WARNING.search(text):
                    yield f"cell {number} stores a warning"
            if "image/png" in data and len(output.metadata.get("image/png", {}).get("alt", "").split()) < 8:
                yield f"cell {number} has a figure without alternative text of at least eight words"


def lines_of_code(source: str) -> int:
    """Return how many lines of a cell a reader has to follow: those that are neither empty nor of an import."""
    imports = {
        line
        for node in ast.parse(source).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    return sum(bool(line.strip()) for number, line in enumerate(source.splitlines(), 1) if number not in imports)


def minutes_to_read(notebook: NotebookNode) -> int:
    """Return how many minutes it takes to read a page with its code, rounded up.

    Reckoned are the words of the prose, without the addresses of links, the lines of code that a reader follows, and
    the figures. The code of cells tagged ``HIDDEN`` is left out.
    """
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    words = re.sub(r"\]\([^)]*\)|<[^>]+>|[#*`|]", " ", prose).split()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    lines = sum(lines_of_code(cell.source) for cell in code if HIDDEN not in cell.metadata.get("tags", ()))
    figures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.get("outputs", ()))
    return ceil(len(words) / WORDS_A_MINUTE + (lines * SECONDS_A_LINE + figures * SECONDS_A_FIGURE) / 60)


def pages() -> list[Path]:
    """Return the notebooks of the course in their order, those of the second part last."""
    return sorted(
        [*NOTEBOOKS.glob("[0-9]*.ipynb"), *NOTEBOOKS.glob("further/[0-9]*.ipynb")], key=lambda path: path.name
    )


def solution_of(page: Path) -> Path:
    """Return where the solutions of a page are: under another name, so that two open tabs have two titles."""
    return NOTEBOOKS / "solutions" / f"{page.stem}_solutions.ipynb"


def page_faults(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Yield what is wrong with the page: headings, minutes, figures, exercises, links; notebooks of the course."""
    practised = path.name != OFFICIAL
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    yield from _heading_faults(prose, HEADINGS if practised else CASE_STUDY)
    if practised:
        yield from _prediction_faults(prose)
    if not prose.startswith(f"# {path.name[:2]}. "):
        yield f"the title does not begin with the number {path.name[:2]}"
    if not any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs):
        yield "no figure"
    if prose.count("<details>") != prose.count("</details>") or prose.count("<details>") < 1 + practised:
        yield "folds: an answer and a hint are expected"
    stated = MINUTES.search(notebook.cells[0].source)
    if not stated:
        yield "no minutes to read it"
    elif int(stated[1]) != minutes_to_read(notebook):
        yield f"{stated[1]} minutes are stated, {minutes_to_read(notebook)} are needed"
    if practised and not re.search(r"Exercises: \d+ minutes?\.", notebook.cells[0].source):
        yield "no minutes for the exercises"
    tagged = sum("final-check" in cell.metadata.get("tags", ()) for cell in code)
    if tagged != 1:
        yield f"{tagged} cells are tagged final-check"
    if practised and not any("not attempted yet" in output.get("text", "") for cell in code for output in cell.outputs):
        yield "no exercise that says it was not attempted yet"
    links = {target.split("#")[0] for target in LINK.findall(prose)}
    if practised and not any(target.endswith(f"solutions/{solution_of(path).name}") for target in links):
        yield "no link to the solutions"


def prediction(prose: str) -> tuple[list[str], str, dict[int, str]]:
    """Return what a page asks under "Predict", in Markdown: the options, the fold, and what it says of each option.

    The fold begins with the right option, ``**3.** because ...``; the others follow, each in a paragraph of its own,
    ``1: because ...``.

    Args:
        prose: The Markdown of the page.
    """
    asked = re.search(r"^## Predict\n(.*?)(?=^## |\Z)", prose, flags=re.MULTILINE | re.DOTALL)
    question, _, fold = (asked[1] if asked else "").partition("<details>")
    options = re.findall(r"^\d\. (.*)$", question, flags=re.MULTILINE)
    said = re.findall(r"^(?:\*\*(\d)\.\*\*|(\d):) (.*)$", fold, flags=re.MULTILINE)
    return options, fold, {int(right or other): why for right, other, why in said}


def _prediction_faults(prose: str) -> Iterator[str]:
    options, fold, said = prediction(prose)
    if len(options) < 3:
        yield f"the prediction has {len(options)} options"
    if len(re.findall(r"^\*\*\d\.\*\* ", fold, flags=re.MULTILINE)) != 1:
        yield "the answer does not begin with the one right option, such as **3.**"
    missing = set(range(1, len(options) + 1)) - said.keys()
    if missing:
        yield f"the answer says nothing of the options {sorted(missing)}"


def _heading_faults(prose: str, expected: list[str]) -> Iterator[str]:
    # A comment in a block of code is no heading.
    text = re.sub(r"^```.*?^```", "", prose, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ .*$", text, flags=re.MULTILINE)
    rest = iter(headings)
    for pattern in expected:
        if not any(re.fullmatch(pattern, heading) for heading in rest):
            yield f"the headings lack {pattern}, or have it in another place: {headings}"
            return
    levels = [len(heading.split(" ")[0]) for heading in headings]
    if levels.count(1) != 1 or any(after > before + 1 for before, after in pairwise(levels)):
        yield f"the headings skip a level, or there are two titles: {headings}"


def link_faults(text: str, folder: Path) -> Iterator[str]:
    """Yield each link within the project that leads nowhere. The README may lead to GitHub's own pages, too."""
    elsewhere = ("https://", "#", "mailto:", *(GITHUB if folder == ROOT else ()))
    for target in LINK.findall(text):
        if target.startswith("http://"):
            yield f"{target} is not https"
        elif not target.startswith(elsewhere) and not (folder / target.split("#")[0]).exists():
            yield f"{target} leads nowhere"

"""What every notebook of the series must have, and what none may have."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
OFFICIAL = "09_official_weights.ipynb"
"""The notebook that needs a file from outside the project."""

HEADINGS = [
    r"# .+: .+",
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
CELLS = range(20, 27)
WORDS = range(600, 901)
LINES = 12
MACHINE = re.compile(
    r"(/|\\)(home|root|tmp|work|Users|usr|opt|private)\b|site-packages|ipykernel_\d|\b[A-Z]:\\|0x[0-9a-f]{6,}"
)
WARNING = re.compile(r"\b\w*Warning\b|\bWARNING\b")
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


def page_faults(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Yield what is wrong with the page: headings, lengths, figures, exercises, links; notebooks of the series."""
    practised = path.name != OFFICIAL  # it is read and run: it has no exercises
    expected = [heading for heading in HEADINGS if practised or "Your turn" not in heading]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^#+ .*$", prose, flags=re.MULTILINE)
    if len(headings) != len(expected) or not all(map(re.fullmatch, expected, headings)):
        yield f"the headings are {headings}"
    if len(notebook.cells) not in CELLS:
        yield f"{len(notebook.cells)} cells"
    if len(prose.split()) not in WORDS:
        yield f"{len(prose.split())} words of prose"
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and lines_of_code(cell.source) > LINES:
            yield f"cell {number} has {lines_of_code(cell.source)} lines of code"
    if not any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs):
        yield "no figure"
    if prose.count("<details>") != prose.count("</details>") or prose.count("<details>") < 1 + practised:
        yield "folds: an answer and a hint are expected"
    if not re.search(rf"Read: \d+ minutes\. {'Practise' if practised else 'Run'}: \d+", prose):
        yield "no minutes to read and to practise"
    tagged = sum("final-check" in cell.metadata.get("tags", ()) for cell in code)
    if tagged != 1:
        yield f"{tagged} cells are tagged final-check"
    if "**For the cheat sheet:**" not in prose:
        yield "no line for the cheat sheet"
    if practised and not any("not attempted yet" in output.get("text", "") for cell in code for output in cell.outputs):
        yield "no exercise that says it was not attempted yet"
    if practised and f"solutions/{path.name}" not in LINK.findall(prose):
        yield "no link to the solutions"


def link_faults(text: str, folder: Path) -> Iterator[str]:
    """Yield each link within the project that leads nowhere."""
    for target in LINK.findall(text):
        if target.startswith("http://"):
            yield f"{target} is not https"
        elif not target.startswith(("https://", "#", "mailto:")) and not (folder / target.split("#")[0]).exists():
            yield f"{target} leads nowhere"

"""The pages of a class: without outputs and solutions, and with the answers out of sight until the vote is over."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from course.classroom.routes import page_of
from course.classroom.sections import Section, sections_of
from course.pages.anatomy import HIDDEN, NOTEBOOKS, ROOT
from course.pages.clean_save import METADATA

import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook

CLOSED = "jp-MarkdownHeadingCollapsed"
"""What JupyterLab notes in a heading whose section is closed. Running all cells runs those of closed sections, too."""

FOLDED = "source_hidden"
"""What JupyterLab notes in a cell of code that is folded to one line. It runs as any other."""

_FOLD = re.compile(r"<details>.*?</details>", flags=re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_PATH_IN_CODE = re.compile(r'"((?:\.\./)+[^"]+)"')
_BEFORE_AND_AFTER = re.compile(r" Previous: \[[^\]]*\]\([^)]*\)\. Next: \[[^\]]*\]\([^)]*\)\.")
_NOTE = (
    "> **In class.** Run the cells down to *Predict*, and vote. The sections behind it are closed, because they show "
    "the answer. Open one with its button, *cells hidden*, when the class gets there. Cells of code that show "
    "one line and three dots are no part of the lesson: run them. A click on the dots unfolds them.\n>\n"
    "> **Lost?** Click into the first cell of code under *Your turn*. Then choose *Run*, *Run All Above Selected "
    "Cell*. This also runs what is closed, and takes up to two minutes."
)
_FOR_READERS = (
    re.compile(
        r"(?<=^\*)Reading: \d+ minutes?\.(?: Exercises: \d+ minutes?\.| No exercises\.)(?: (?=P|N))?", re.MULTILINE
    ),
    re.compile(r"\*\*In a hurry\?\*\* .*(?:\n\n```(?:.*\n)*?```)?\n*"),
    re.compile(r"The \[solutions?\]\([^)]*\) also shows? some wrong answers.*\n*"),
    re.compile(r"^\*\*\n\n", re.MULTILINE),  # nothing is left of the line of minutes
)
"""What a page says to who reads it alone: its minutes, a way past the vote, and the solutions."""
_VOTE = "*Vote. The answer is at the end of the next section.*"


def write_pages(numbers: Sequence[str], folder: Path) -> list[Path]:
    """Write the pages of a class into a folder.

    Args:
        numbers: The numbers of the pages, in the order of the class.
        folder: Where to; it is made if it is not there.

    Returns:
        The files.

    Raises:
        FileExistsError: One of the files is there already. Nothing was written.
    """
    files = {page_of(number): folder / page_of(number).name for number in numbers}
    there = [file.name for file in files.values() if file.exists()]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(
            f"{folder.name} has {there[0]}{more} already, with somebody's work perhaps, so nothing was written; "
            "name another folder, such as --to class-b"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for page, file in files.items():
        copy = copy_for_class(page, files)
        file.write_text(nbformat.writes(copy) + "\n", encoding="utf-8", newline="\n")
    return list(files.values())


def copy_for_class(page: Path, files: dict[Path, Path]) -> nbformat.NotebookNode:
    """Return the copy of a page for a class.

    Args:
        page: The page.
        files: By page of the class, in order, the file that its copy is written to.
    """
    sections = sections_of(nbformat.read(page, as_version=4))
    _close_behind_the_vote(sections)
    cells = [cell for section in sections for cell in section.cells]
    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = _with_paths(cell.source, page, files[page])
            if HIDDEN in cell.metadata.get("tags", ()):
                cell.metadata["jupyter"] = {FOLDED: True}
        else:
            cell.source = _with_links(cell.source, page, files)
    cells = [cell for cell in cells if cell.source]
    cells.insert(1, new_markdown_cell(_NOTE, id="in-class"))
    return new_notebook(cells=cells, metadata=dict(METADATA))


def _close_behind_the_vote(sections: list[Section]) -> None:
    """Close what stands behind Predict, but for the exercises, and move its answer to the end of the next section.

    What follows the question in its own section belongs to the next one: the class stops at the question.
    """
    vote = next(index for index, section in enumerate(sections) if section.heading == "Predict")
    question = sections[vote].cells[0]
    answer = _FOLD.search(question.source)[0]
    asked, _, rest = question.source.partition(answer)
    question.source = asked + _VOTE
    moved = [*_parted(question, "", rest.strip()), *sections[vote].cells[1:]]
    sections[vote].cells[1:] = []
    ends = [index for index in range(vote + 2, len(sections)) if sections[index].level <= 2]
    sections[ends[0] - 1].cells.append(new_markdown_cell(f"**The vote.**\n\n{answer}", id="vote-answer"))
    for section in sections[vote + 1 :]:
        if section.level == 2 and section.heading != "Your turn":
            # A closed heading stays in sight with its whole cell, so it needs a cell of its own.
            first = section.cells[0]
            heading, _, rest = first.source.partition("\n")
            section.cells[:1] = _parted(first, heading, rest.strip())
            section.cells[0].metadata[CLOSED] = True
    sections[vote + 1].cells[1:1] = moved


def _parted(cell: nbformat.NotebookNode, *texts: str) -> Iterator[nbformat.NotebookNode]:
    """Yield a cell of text as several, one for each text that is not empty."""
    for number, text in enumerate(texts):
        if text:
            yield new_markdown_cell(text, id=f"{cell['id']}-{'ab'[number]}", metadata=dict(cell.metadata))


def _with_paths(source: str, page: Path, file: Path) -> str:
    """Let the paths in code lead to the project's files from where the copy is."""

    def moved(found: re.Match[str]) -> str:
        target = (page.parent / found[1]).resolve()
        return f'"{_path(target, file)}"' if target.exists() else found[0]

    return _PATH_IN_CODE.sub(moved, source)


def _with_links(text: str, page: Path, files: dict[Path, Path]) -> str:
    """Let links lead to the pages of the class and to the project's files; those to the solutions become plain."""

    def moved(found: re.Match[str]) -> str:
        words, target = found.groups()
        if target.startswith(("https://", "#", "mailto:")):
            return found[0]
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve()
        if goal.is_relative_to(NOTEBOOKS / "solutions"):
            return words
        return f"[{words}]({_path(files.get(goal, goal), files[page])}{'#' * bool(anchor)}{anchor})"

    text = _BEFORE_AND_AFTER.sub(_neighbours(page, files), text)
    for words in _FOR_READERS:
        text = words.sub("", text)
    return _LINK.sub(moved, text).strip()


def _neighbours(page: Path, files: dict[Path, Path]) -> str:
    """Return links to the pages of the class before and after a page."""
    order = list(files)
    place = order.index(page)
    parts = []
    for word, index in (("Previous", place - 1), ("Next", place + 1)):
        if 0 <= index < len(order):
            target = Path(os.path.relpath(order[index], page.parent)).as_posix()
            parts.append(f" {word}: [{order[index].name[:2]}]({target}).")
    return "".join(parts)


def _path(target: Path, file: Path) -> str:
    """Return the way from the folder of a file to a target, as it is written in links."""
    return Path(os.path.relpath(target.resolve(), file.parent.resolve())).as_posix()


def is_for_a_class(folder: Path) -> bool:
    """Tell whether git and the site leave a folder out: it lies in the project, in a folder named class or class-..."""
    folder = folder.resolve()
    return folder.is_relative_to(ROOT) and folder.relative_to(ROOT).as_posix().startswith("class")

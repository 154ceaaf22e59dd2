"""What a slide can take from a notebook: its title, cells, prediction and exercises."""

import ast
import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from course.pages.anatomy import prediction, solution_of
from course.slides import SlideError

import nbformat
from nbformat import NotebookNode

_LINK = re.compile(r"\[([^\]]*)\]\([^)\s]+\)")
# Up to the fold with its hint.
_EXERCISE = re.compile(
    r"^\*\*(?:\d\. )?(?P<title>[^*\n]+) \((?P<minutes>\d+) minutes\)\.\*\* (?P<text>.+?)(?=\n\n<details>|\n\n\*\*|\Z)",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Picture:
    """A figure that a cell has stored, as PNG, and the text for those who cannot see it."""

    png: bytes
    alt: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, which a PNG has at the beginning."""
        return int.from_bytes(self.png[16:20], "big"), int.from_bytes(self.png[20:24], "big")


@dataclass(frozen=True)
class Exercise:
    """An exercise without its hints, in Markdown."""

    title: str
    minutes: int
    text: str


class Page:
    """A notebook of the course and its solutions, asked for their parts by the ids of the cells."""

    def __init__(self, path: Path):
        """Read a notebook as it is stored, and its solutions."""
        self.name = path.name
        self._cells = nbformat.read(path, as_version=4).cells
        self._prose = "\n\n".join(cell.source for cell in self._cells if cell.cell_type == "markdown")
        if solution_of(path).is_file():
            self._cells += nbformat.read(solution_of(path), as_version=4).cells

    def title(self) -> tuple[str, str]:
        """Return the title and the symptom: what stands before and behind the colon of the first heading."""
        title, _, symptom = self._cells[0].source.splitlines()[0].removeprefix("# ").partition(": ")
        return title, symptom

    def picture(self, cell_id: str) -> Picture:
        """Return the figure that a cell shows."""
        for output in self._cell(cell_id).get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                return Picture(base64.b64decode(png), output.metadata["image/png"]["alt"])
        raise SlideError(f"cell {cell_id} of {self.name} shows no picture")

    def code(self, cell_id: str, names: list[str]) -> str:
        """Return the code of a cell: all of it, or the statements that define these names.

        Args:
            cell_id: The id of the cell.
            names: Variables, functions, classes, or methods such as ``"Block.forward"``; none for the whole cell.
        """
        cell = self._cell(cell_id)
        if cell.cell_type != "code":
            raise SlideError(f"cell {cell_id} of {self.name} has no code")
        if not names:
            return cell.source
        defined = dict(_definitions(cell.source))
        gone = [name for name in names if name not in defined]
        if gone:
            raise SlideError(f"cell {cell_id} of {self.name} does not define {', '.join(gone)}")
        pieces = [defined[name] for name in names]
        is_block = any("\n" in piece for piece in pieces)
        return ("\n\n\n" if is_block else "\n").join(pieces)

    def output(self, cell_id: str) -> NotebookNode:
        """Return what a cell prints, or the table that it returns: the first output that has text and no picture."""
        for output in self._cell(cell_id).get("outputs", []):
            data = output.get("data", {})
            if "text" in output or ("text/plain" in data and not {"image/png", "text/markdown"} & set(data)):
                return output
        raise SlideError(f"cell {cell_id} of {self.name} prints nothing")

    def items(self, cell_id: str) -> str:
        """Return the list in a cell of text, in Markdown."""
        found = re.findall(r"^(?:-|\d\.) .*$", self._cell(cell_id).source, flags=re.MULTILINE)
        if not found:
            raise SlideError(f"cell {cell_id} of {self.name} has no list")
        return _unlinked("\n".join(found))

    def question(self) -> tuple[str, list[str]]:
        """Return the question under "Predict" and its options, in Markdown."""
        asked = re.search(r"^## Predict\n+(.*?)\n+1\. ", self._prose, flags=re.MULTILINE | re.DOTALL)
        options, _, _ = prediction(self._prose)
        if not asked or not options:
            raise SlideError(f"{self.name} has no prediction")
        return _unlinked(asked[1]), [_unlinked(option) for option in options]

    def reasons(self) -> tuple[int, dict[int, str]]:
        """Return the number of the right option, and what the page says of each option, in Markdown."""
        _, fold, said = prediction(self._prose)
        right = re.search(r"^\*\*(\d)\.\*\* ", fold, flags=re.MULTILINE)
        if not right:
            raise SlideError(f"{self.name} does not say which option is right")
        return int(right[1]), {number: _unlinked(why) for number, why in sorted(said.items())}

    def exercise(self, number: int) -> Exercise:
        """Return an exercise; the first one is number 1."""
        _, _, turn = self._prose.partition("\n## Your turn\n")
        found = list(_EXERCISE.finditer(turn))
        if not 1 <= number <= len(found):
            raise SlideError(f"{self.name} has {len(found)} exercises, none with the number {number}")
        one = found[number - 1]
        return Exercise(one["title"], int(one["minutes"]), _unlinked(one["text"]))

    def _cell(self, cell_id: str) -> NotebookNode:
        for cell in self._cells:
            if cell.id == cell_id:
                return cell
        raise SlideError(f"{self.name} has no cell {cell_id}")


def _unlinked(markdown: str) -> str:
    """Return Markdown with the words of its links only: a link within the project leads nowhere from a slide."""
    return _LINK.sub(r"\1", markdown)


def _definitions(source: str) -> Iterator[tuple[str, str]]:
    """Yield the names that code defines at its top level, methods too, each with the source of its statement.

    The docstring of a function is left out, because a slide has a heading that says what it does.
    """
    lines = source.splitlines()

    def text(node: ast.stmt) -> str:
        wanted = set(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            wanted -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        return dedent("\n".join(lines[number - 1] for number in sorted(wanted)))

    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            yield from ((name.id, text(node)) for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, text(node)
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    yield f"{node.name}.{member.name}", text(member)

"""A page as a list of sections: what stands under each heading."""

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field

from nbformat import NotebookNode

_HEADING = re.compile(r"(#{1,6}) (.+)")


@dataclass
class Section:
    """A heading and the cells under it, up to the next heading of any level.

    Attributes:
        heading: The heading without its signs, such as ``Predict``.
        level: How many signs it has: 1 for the title.
        cells: Its cells. The first one is Markdown and begins with the heading.
    """

    heading: str
    level: int
    cells: list[NotebookNode] = field(default_factory=list)


def sections_of(notebook: NotebookNode) -> list[Section]:
    """Return the sections of a page. A cell of text with several headings is cut at each of them.

    The cells are copies. What is cut off a cell has its id with a number, so ids stay unique.
    """
    found: list[Section] = []
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            found[-1].cells.append(deepcopy(cell))
            continue
        for number, text in enumerate(_cut(cell.source)):
            piece = deepcopy(cell)
            piece.source = text
            if number:
                piece["id"] = f"{cell['id']}-{number + 1}"
            heading = _HEADING.match(text)
            if heading:
                found.append(Section(heading[2], len(heading[1])))
            found[-1].cells.append(piece)
    return found


def _cut(text: str) -> Iterator[str]:
    """Yield the parts of a text that begin with a heading, and what stands before the first of them."""
    lines: list[str] = []
    in_code = False
    for line in text.splitlines():
        in_code ^= line.startswith("```")
        if not in_code and _HEADING.match(line) and any(part.strip() for part in lines):
            yield "\n".join(lines).strip()
            lines = []
        lines.append(line)
    yield "\n".join(lines).strip()

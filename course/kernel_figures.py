"""Figures of pages 01 and 02: how the axes of a kernel lie in an array, and what a wrong order does to them."""

from course.figures import KERAS, RIGHT, WRONG

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

__all__ = ["letters_moved", "table_of_tables", "texts", "weighted_sum"]

_EMPTY = "#e4e4e4"
_GAP = 0.7


def table_of_tables(axes: Axes, marked: np.ndarray, letters: str, title: str, color: str) -> None:
    """Draw an array of four axes as a table of tables: the first two axes outside, the last two inside.

    Two arrows at the last small table say which axes it has.

    Args:
        axes: Where to draw.
        marked: Truth values; an element that is true is coloured.
        letters: The letters of the four axes.
        title: Title of the drawing.
        color: The colour of the marked elements.
    """
    rows, columns, inner_rows, inner_columns = marked.shape
    height, width = inner_rows + _GAP, inner_columns + _GAP
    for (row, column, inner_row, inner_column), is_marked in np.ndenumerate(marked):
        corner = (column * width + inner_column, row * height + inner_row)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=color if is_marked else _EMPTY, edgecolor="white"))
    for row in range(rows):
        axes.text(-0.4, row * height + inner_rows / 2, f"{letters[0]} = {row}", ha="right", va="center")
    for column in range(columns):
        axes.text(column * width + inner_columns / 2, -0.4, f"{letters[1]} = {column}", ha="center", va="bottom")
    left, top = (columns - 1) * width, (rows - 1) * height
    axes.text(left + inner_columns / 2, top + inner_rows + 0.9, f"{letters[3]} →", ha="center", va="center")
    axes.text(left + inner_columns + 0.3, top + inner_rows / 2, f"{letters[2]} ↓", ha="left", va="center")
    axes.set_xlim(-3.4, columns * width + 1.3)
    axes.set_ylim(rows * height + 0.9, -1.8)
    axes.set_aspect("equal", anchor="NW")
    axes.set_title(title)
    axes.axis("off")


def letters_moved(axes: Axes, old: str, new: str, wanted: str, title: str) -> None:
    """Draw where each letter of a layout goes, as arrows; one that should go elsewhere has the colour of mistakes.

    Args:
        axes: Where to draw.
        old: The letters of the old layout; they stand above, with their places.
        new: The same letters in the new order; they stand below, with the places that they come from.
        wanted: The same letters in the right order.
        title: Title of the drawing.
    """
    box = {"ha": "center", "va": "center", "color": "white", "fontsize": 14}
    for place, letter in enumerate(old):
        axes.text(place, 1, letter, bbox={"boxstyle": "round", "fc": KERAS["color"]}, **box)
        axes.text(place, 1.45, str(place), ha="center", va="center")
    for place, letter in enumerate(new):
        color = (RIGHT if letter == wanted[place] else WRONG)["color"]
        style = "-" if letter == wanted[place] else ":"
        arrow = {"arrowstyle": "->", "color": color, "linewidth": 2, "linestyle": style}
        axes.annotate("", (place, 0.22), (old.index(letter), 0.8), arrowprops=arrow)
        axes.text(place, 0, letter, bbox={"boxstyle": "round", "fc": color}, **box)
        axes.text(place, -0.45, str(old.index(letter)), ha="center", va="center")
    axes.set_xlim(-0.5, len(old) - 0.5)
    axes.set_ylim(-0.7, 1.7)
    axes.set_title(title)
    axes.axis("off")


def texts(axes: Axes, found: np.ndarray, wanted: np.ndarray, title: str, role: dict[str, str]) -> None:
    """Draw a table of texts; one that is not the wanted one has a cross and the colour of mistakes.

    Args:
        axes: Where to draw.
        found: Texts (rows, columns).
        wanted: The texts that should stand there, of the same shape.
        title: Title of the drawing.
        role: Whose texts they are where they are right: ``KERAS`` or ``RIGHT``.
    """
    for (row, column), text in np.ndenumerate(found):
        is_right = text == wanted[row, column]
        color = (role if is_right else WRONG)["color"]
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=color, edgecolor="white"))
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color="white", fontsize=14)
        if not is_right:
            axes.plot(column + 0.85, row + 0.15, "x", color="white", markersize=7)
    axes.set_xlim(0, found.shape[1])
    axes.set_ylim(found.shape[0], 0)
    axes.set_aspect("equal", anchor="NW")
    axes.set_title(title)
    axes.axis("off")


def weighted_sum(
    axes: Axes, matrix: np.ndarray, x: np.ndarray, by_column: bool, title: str, role: dict[str, str]
) -> float:
    """Draw how an input and a matrix make output 0, and return this output.

    Args:
        axes: Where to draw.
        matrix: Numbers (rows, columns).
        x: The input: a number for each row, or for each column.
        by_column: Output 0 is the input times column 0; else, times row 0.
        title: Title of the drawing.
        role: The colour of the numbers that make output 0.
    """
    weights = matrix[:, 0] if by_column else matrix[0]
    for (row, column), value in np.ndenumerate(matrix):
        is_used = column == 0 if by_column else row == 0
        face, ink = (role["color"], "white") if is_used else (_EMPTY, "black")
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=face, edgecolor="white"))
        axes.text(column + 0.5, row + 0.5, f"{value:g}", ha="center", va="center", color=ink, fontsize=13)
    for place, value in enumerate(x):
        left, top = (-1.4, place) if by_column else (place, -1.4)
        axes.add_patch(Rectangle((left, top), 1, 1, facecolor="white", edgecolor="black"))
        axes.text(left + 0.5, top + 0.5, f"{value:g}", ha="center", va="center", fontsize=12)
    output = float(weights @ x)
    products = " + ".join(f"{value:g}·{weight:g}" for value, weight in zip(x, weights, strict=True))
    rows, columns = matrix.shape
    axes.text(columns / 2 - 0.7, rows + 0.3, f"{products}\n= {output:g}", ha="center", va="top", fontsize=12)
    axes.set_xlim(-1.5, columns + 0.1)
    axes.set_ylim(rows + 1.05, -1.5)
    axes.set_aspect("equal")
    axes.set_title(title)
    axes.axis("off")
    return output

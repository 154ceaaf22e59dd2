"""Figures of page 01: how the four axes of a kernel lie in an array, and what a wrong order does to them."""

from course.figures import KERAS, RIGHT, WRONG

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

__all__ = ["letters_moved", "table_of_tables", "texts"]

_EMPTY = "#e4e4e4"
_GAP = 0.7


def table_of_tables(axes: Axes, marked: np.ndarray, letters: str, title: str, color: str) -> None:
    """Draw an array of four axes as a table of tables: the first two axes outside, the last two inside.

    Args:
        axes: Where to draw.
        marked: Truth values; an element that is true is coloured.
        letters: The letters of the first two axes.
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
    axes.set_xlim(-3.4, columns * width)
    axes.set_ylim(rows * height, -1.8)
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
    axes.set_aspect("equal")
    axes.set_title(title)
    axes.axis("off")

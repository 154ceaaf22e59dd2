"""Figures: arrays and padding drawn element by element, tables as pictures, and how they reach a notebook.

Importing this module sets how figures look on all pages: at most seven inches wide, with letters that can be read on a
phone. Three styles say what a line or a mark stands for, the same on each page: Keras, a right port, a wrong one. They
differ in colour, mark and line, and each colour has a contrast of at least 3 to 1 on white.
"""

from collections.abc import Sequence
from io import BytesIO

from parity.tracing.plot import KERAS, RIGHT, WRONG

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

__all__ = [
    "DARK",
    "KERAS",
    "LIGHT",
    "MIDDLE",
    "NEUTRAL",
    "RIGHT",
    "WRONG",
    "boxes",
    "error_by_size",
    "marks",
    "road",
    "show",
    "windows",
]

# Three steps of cividis, which people with any colour vision tell apart by lightness.
DARK, MIDDLE, LIGHT = "#00224e", "#666970", "#d2be59"
PALE_GREY = "#b0b0b0"
_HATCHED = {"facecolor": "white", "hatch": "///"}
if hasattr(Rectangle, "set_hatchcolor"):  # Colab's Matplotlib 3.10 hatches in the colour of the edge
    _HATCHED["hatchcolor"] = PALE_GREY

NEUTRAL = {"color": "#555555", "marker": "D", "linestyle": "-."}
"""The style of a port of which nothing is said yet."""

WIDTH = 7.0
"""The width of a figure in inches, and the most that one may have."""

plt.rcParams.update(
    {
        "figure.figsize": (WIDTH, 3.4),
        "figure.constrained_layout.use": True,
        # On a phone a figure is half as wide as here, and so are its letters.
        "font.size": 12,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook, and below it a text that says what it shows.

    Args:
        figure: The figure; it is closed, so that it is not displayed twice.
        alt: What the figure shows, in one or two sentences. It stands below the figure for all readers, in the metadata
            of the output for the pages that are made from a notebook, and in place of the figure where only text is
            shown.

    Raises:
        ValueError: If the figure is wider than ``WIDTH``.
    """
    if figure.get_figwidth() > WIDTH:
        raise ValueError(
            f"the figure is {figure.get_figwidth():g} inches wide; at most {WIDTH:g} can be read on a phone"
        )
    image = BytesIO()
    # No date and no version: a second run gives the same bytes.
    figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)
    data = {"image/png": image.getvalue(), "text/plain": alt}
    display(data, metadata={"image/png": {"alt": alt, "width": int(110 * figure.get_figwidth())}}, raw=True)
    display({"text/markdown": f"*{alt}*", "text/plain": alt}, raw=True)


def boxes(axes: Axes, array: np.ndarray, title: str, shade: np.ndarray | None = None) -> None:
    """Draw a small array as boxes with its numbers or texts written in them.

    Args:
        axes: Where to draw.
        array: Numbers or texts (rows, columns), or (columns,) for a single row.
        title: Title of the drawing.
        shade: Numbers of the same shape; a box is the lighter the larger its number is. The array itself if left out.
    """
    array = np.atleast_2d(array)
    shade = (array if shade is None else np.atleast_2d(shade)).astype(float)
    low, high = shade.min(), shade.max()
    for (row, column), value in np.ndenumerate(array):
        lightness = (shade[row, column] - low) / ((high - low) or 1)
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=plt.cm.cividis(lightness), edgecolor="black"))
        color = "white" if lightness < 0.5 else "black"
        axes.text(column + 0.5, row + 0.5, value, ha="center", va="center", fontsize=11, color=color)
    axes.set_xlim(-0.05, array.shape[1] + 0.05)
    axes.set_ylim(array.shape[0] + 0.05, -0.05)
    axes.set_aspect("equal")
    axes.set_title(title, loc="left", fontsize=11.5)
    axes.axis("off")


def windows(
    axes: Axes, size: int, kernel: int, stride: int, padding: tuple[int, int], title: str, role: dict[str, str] = KERAS
) -> None:
    """Draw one axis of a padded input and which of its elements each output reads.

    Args:
        axes: Where to draw.
        size: Number of elements of the input; they are drawn as boxes with their indices.
        kernel: Size of the kernel.
        stride: Step of the kernel; each of its positions is drawn as a bar under the elements that it reads.
        padding: Number of padding elements (before, after); they are drawn hatched, with a 0 in them.
        title: Title of the drawing.
        role: Whose layer it is: ``KERAS``, ``RIGHT`` or ``WRONG``.
    """
    before, after = padding
    for index in range(-before, size + after):
        is_data = 0 <= index < size
        box = {"facecolor": "#e4e4e4"} if is_data else _HATCHED
        axes.add_patch(Rectangle((index, 0), 1, 1, edgecolor="black", linewidth=1, **box))
        axes.text(index + 0.5, 0.5, f"x{index}" if is_data else "0", ha="center", va="center")
    starts = range(-before, size + after - kernel + 1, stride)
    for number, start in enumerate(starts):
        y = -0.75 - 0.7 * number
        axes.add_patch(Rectangle((start + 0.08, y), kernel - 0.16, 0.6, facecolor=role["color"]))
        axes.text(start + kernel / 2, y + 0.3, f"output {number}", ha="center", va="center", color="white", fontsize=11)
    axes.set_xlim(-1.1, size + 1.1)
    axes.set_ylim(-0.7 * len(starts) - 0.15, 1.1)
    axes.set_aspect("equal")
    axes.set_title(title)
    axes.axis("off")


def error_by_size(axes: Axes, sizes: Sequence[int], errors: Sequence[float], within: float) -> None:
    """Plot the largest difference for each image size: a disc where the outputs agree, a cross elsewhere.

    Args:
        axes: Where to draw.
        sizes: Sizes of the images, in pixels.
        errors: The largest absolute difference at each.
        within: The largest difference that is agreement; such points are drawn at zero.
    """
    right = [size for size, error in zip(sizes, errors, strict=True) if error <= within]
    wrong = [(size, error) for size, error in zip(sizes, errors, strict=True) if error > within]
    axes.axhline(0, color="black", linewidth=0.8)
    look = {"linestyle": "none", "markersize": 8, "markeredgewidth": 2}
    if wrong:
        axes.vlines(*zip(*wrong, strict=True), ymax=0, color=PALE_GREY, linewidth=1)
        axes.plot(*zip(*wrong, strict=True), label="different", **(WRONG | look))
    axes.plot(right, [0] * len(right), label="agree", **(RIGHT | look))
    for size in right:
        axes.annotate(str(size), (size, 0), xytext=(0, 11), textcoords="offset points", ha="center", rotation=90)
    axes.set_xlabel("height and width of the image, in pixels")
    axes.set_ylabel("largest |Keras - PyTorch|")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes.spines["bottom"].set_visible(False)


def road(axes: Axes, image: np.ndarray, steering: dict[str, float], roles: dict[str, dict[str, str]]) -> None:
    """Show a scene with one line for each steering angle, from the middle of the bottom upwards.

    Args:
        axes: Where to draw.
        image: A grey image (height, width, 1), values in [0, 1].
        steering: Steering by label, positive to the right; 1 leans 60 degrees, and no line leans farther.
        roles: The role of a label, such as ``KERAS``; a label without one is drawn as a broad white line.
    """
    height, width = image.shape[:2]
    axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
    for label, value in steering.items():
        angle = np.radians(60 * np.clip(value, -1, 1))
        length = 0.45 * height
        x = [width / 2, width / 2 + length * np.sin(angle)]
        y = [height - 1, height - 1 - length * np.cos(angle)]
        if label in roles:
            look = {"linewidth": 3, "markersize": 9, "markeredgewidth": 3, "markevery": [1]} | roles[label]
            edge = "white"
        else:
            look = {"linewidth": 9, "color": "white"}
            edge = "black"
        outline = [patheffects.Stroke(linewidth=look["linewidth"] + 2, foreground=edge), patheffects.Normal()]
        axes.plot(x, y, label=label, path_effects=outline, **look)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.axis("off")


def marks(axes: Axes, table: pd.DataFrame, log: bool = False) -> None:
    """Plot a table as marks: a row for each index, from the top down, and a kind of mark for each column.

    Args:
        axes: Where to draw.
        table: Numbers; at most three columns.
        log: Make the axis logarithmic.
    """
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    rows = np.arange(len(table))[::-1]
    kinds = (("s", DARK), ("o", LIGHT), ("D", "white"))
    for (name, column), (marker, color), shift in zip(table.items(), kinds, (0.13, -0.13, 0), strict=False):
        axes.plot(column, rows + shift, marker, color=color, markeredgecolor="black", markersize=8, label=name)
    axes.set_yticks(rows, table.index)
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(table.columns))

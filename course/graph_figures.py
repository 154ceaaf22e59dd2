"""Figures of a Keras model: its layers with arrows between them, and which entry of a file fills which layer."""

from collections.abc import Mapping, Sequence

from course.figures import RIGHT, WRONG

import keras
from matplotlib.axes import Axes

_ARROW = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}


def layer_graph(axes: Axes, model: keras.Model, places: Mapping[str, tuple[float, float]], title: str) -> None:
    """Draw layers of a model as boxes with their names, and an arrow from each layer to those that read its output.

    Args:
        axes: Where to draw; it shows columns 0 to the largest, and rows -0.6 to the largest plus 0.6.
        model: The model, functional. It says which layer reads which, and which activation a layer has.
        places: The layers to draw: for each name its column and its row.
        title: Title of the drawing.
    """
    drawn = {}
    for name, place in places.items():
        activation = getattr(model.get_layer(name), "activation", None)
        inside = "" if activation in (None, keras.activations.linear) else f"\n{activation.__name__}"
        box = {"boxstyle": "round,pad=0.4", "facecolor": "#e4e4e4", "edgecolor": "black"}
        drawn[name] = axes.text(*place, f"{name}{inside}", ha="center", va="center", bbox=box)
    for giver, start in places.items():
        for taker, end in places.items():
            if model.get_layer(taker).input is model.get_layer(giver).output:
                patches = {"patchA": drawn[giver].get_bbox_patch(), "patchB": drawn[taker].get_bbox_patch()}
                axes.annotate("", end, start, arrowprops=_ARROW | patches)
    columns, rows = zip(*places.values(), strict=True)
    axes.set_xlim(min(columns) - 0.5, max(columns) + 0.5)
    axes.set_ylim(min(rows) - 0.6, max(rows) + 0.6)
    axes.set_title(title)
    axes.axis("off")


def entries_to_layers(axes: Axes, entries: Sequence[str], layers: Sequence[str], title: str) -> None:
    """Draw which layer takes which entry of a file by position: an arrow from the k-th entry to the k-th layer.

    Entries stand at the left and layers at the right, both in the order of the entries. So an arrow is level where a
    layer takes the entry of its own name, and arrows cross where layers take each other's.

    Args:
        axes: Where to draw.
        entries: Names of the file's entries, in the order of the file.
        layers: The same names, in the order in which the model has its layers.
        title: Title of the drawing.
    """
    row = {name: -number for number, name in enumerate(entries)}
    for name, y in row.items():
        axes.text(-0.04, y, name, ha="right", va="center")
        axes.text(1.04, y, name, ha="left", va="center")
    for entry, layer in zip(entries, layers, strict=True):
        role = RIGHT if entry == layer else WRONG
        arrow = {"arrowstyle": "-|>", "linewidth": 2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 15}
        style = {"color": role["color"], "linestyle": "-" if entry == layer else "--"}
        axes.annotate("", (1, row[layer]), (0, row[entry]), arrowprops=arrow | style)
    axes.set_xlim(-1.3, 2.3)
    axes.set_ylim(0.5 - len(entries), 0.5)
    axes.set_title(title)
    axes.axis("off")

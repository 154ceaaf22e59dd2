"""The drawn graph is the model's, and arrows cross where layers take each other's entries."""

from course.figures import RIGHT, WRONG
from course.graph_figures import entries_to_layers, layer_graph

import keras
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure


@pytest.fixture
def axes():
    return Figure().subplots()


def arrows(axes):
    """Return the annotations that are arrows: their start, their end and their colour."""
    found = [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
    return [(text.xyann, text.xy, text.arrow_patch.get_edgecolor()) for text in found]


def test_an_arrow_goes_to_each_layer_that_reads_another(axes):
    """Broken: an arrow to each later column, or none from a layer that two others read."""
    x = inputs = keras.Input((3,), name="input")
    x = keras.layers.Dense(3, name="a")(x)
    left, right = keras.layers.Dense(3, name="b", activation="tanh")(x), keras.layers.Dense(3, name="c")(x)
    end = keras.layers.ReLU(name="d")(left)
    places = {"a": (0, 0.5), "b": (1, 1), "c": (1, 0), "d": (2, 1)}
    layer_graph(axes, keras.Model(inputs, [end, right]), places, "the graph")
    pairs = {(start, end) for start, end, _ in arrows(axes)}
    assert pairs == {(places["a"], places["b"]), (places["a"], places["c"]), (places["b"], places["d"])}
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["a", "b\ntanh", "c", "d"]
    assert axes.get_title(loc="left") == "the graph" or axes.get_title() == "the graph"


def test_an_arrow_is_level_where_a_layer_takes_its_own_entry_and_crosses_where_not(axes):
    """Broken: both columns drawn in their own order, so that all arrows are level."""
    entries_to_layers(axes, ["a", "b", "c"], ["a", "c", "b"], "title")
    (own, first, second) = arrows(axes)
    assert [(start[1], end[1]) for start, end, _ in (own, first, second)] == [(0, 0), (-1, -2), (-2, -1)]
    assert same_color(own[2], RIGHT["color"])
    assert same_color(first[2], WRONG["color"])
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["a", "a", "b", "b", "c", "c"]

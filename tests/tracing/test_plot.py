"""What is drawn of a trace: each artist stands for a number in the table."""

from math import inf, nan

from parity.models.rounding import TIMES_NOISE
from parity.tracing.plot import RIGHT, WRONG, error_by_layer
from parity.tracing.verdicts import TRACE_COLUMNS, Kind

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex


def traced(*rows):
    """Return a trace: of each row (layer, outputs, noise, verdict) are given."""
    filled = [
        (name, "Dense", name, (2,), (2,), 0.0, outputs, noise, str(verdict), "", "")
        for name, outputs, noise, verdict in rows
    ]
    return pd.DataFrame(filled, columns=TRACE_COLUMNS)


BEFORE = traced(
    ("a", 1e-7, 2e-7, Kind.AGREES),
    ("unseen", nan, 2e-7, Kind.NOT_PAIRED),
    ("b", 0.5, 4e-7, Kind.DIVERGES),
    ("words", 1e-7, 0.0, Kind.AGREES),
    ("c", 0.25, 8e-7, Kind.DIFFERENT_BEFORE),
    ("-", nan, nan, Kind.NOT_PAIRED),
)
AFTER = traced(("c", 3e-7, 8e-7, Kind.AGREES), ("a", 1e-7, 2e-7, Kind.AGREES), ("b", 2e-7, 4e-7, Kind.AGREES))


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def points(axes, marker):
    """Return the (x, y) of each of the markers, None if there are none of the kind."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    assert len(lines) <= 1
    return [tuple(point) for point in zip(*lines[0].get_data(), strict=True)] if lines else None


def dashed(axes):
    return [float(line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() == "--"]


def test_a_row_for_each_layer_that_was_seen_from_the_top_down(axes):
    error_by_layer(axes, BEFORE)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "words", "c"]
    assert list(axes.get_yticks()) == [0, 1, 2, 3]
    bottom, top = axes.get_ylim()
    assert bottom > 3
    assert top < -0.5
    assert axes.get_xscale() == "log"


def test_the_noise_is_a_bar_within_which_a_difference_is_no_mistake(axes):
    error_by_layer(axes, BEFORE)
    left = axes.get_xlim()[0]
    assert left == pytest.approx(2e-7 / 30)
    bars = axes.patches
    assert [bar.get_y() + bar.get_height() / 2 for bar in bars] == pytest.approx([0, 1, 2, 3])
    assert [bar.get_x() for bar in bars] == pytest.approx([left] * 4)
    noise = [2e-7, 4e-7, left, 8e-7]  # of whole numbers there is none
    assert [bar.get_width() for bar in bars] == pytest.approx([TIMES_NOISE * one for one in noise])


def test_a_cross_for_each_layer_before_and_a_disc_after(axes):
    error_by_layer(axes, BEFORE, AFTER)
    assert points(axes, WRONG["marker"]) == [(1e-7, 0), (0.5, 1), (1e-7, 2), (0.25, 3)]
    discs = points(axes, RIGHT["marker"])
    assert [y for _, y in discs] == [0, 1, 2, 3]
    assert [x for x, _ in discs][:2] == [1e-7, 2e-7]  # by the name of the layer, not by its row
    assert np.isnan(discs[2][0])
    assert discs[3][0] == 3e-7
    cross, disc = (next(line for line in axes.lines if line.get_marker() == marker) for marker in "xo")
    assert (to_hex(cross.get_color()), to_hex(disc.get_color())) == (WRONG["color"], RIGHT["color"])
    assert cross.get_zorder() > disc.get_zorder()
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"rounding", "before", "after"}


def test_without_a_second_trace_there_are_no_discs(axes):
    error_by_layer(axes, BEFORE)
    assert points(axes, RIGHT["marker"]) is None
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"rounding", "before"}


@pytest.mark.parametrize(
    ("kind", "marked"), [(Kind.DIVERGES, True), (Kind.TAKES_OTHER, True), (Kind.NOT_PAIRED, False)]
)
def test_a_dashed_line_is_drawn_above_the_first_divergence(axes, kind, marked):
    rows = [("a", 1e-7, 2e-7, Kind.AGREES), ("unseen", nan, 2e-7, Kind.NOT_PAIRED), ("b", 0.5, 2e-7, kind)]
    error_by_layer(axes, traced(*rows, ("c", 0.5, 2e-7, Kind.DIFFERENT_BEFORE)))
    assert dashed(axes) == ([0.5] if marked else [])
    assert [text.get_text() for text in axes.texts] == (["first divergence"] if marked else [])


def test_of_several_divergences_it_is_the_first_and_of_none_there_is_no_line(axes):
    error_by_layer(axes, traced(*((name, 0.5, 1e-7, Kind.DIVERGES) for name in "abc")))
    assert dashed(axes) == [-0.5]
    axes.clear()
    error_by_layer(axes, AFTER)
    assert dashed(axes) == []


def test_what_is_0_or_infinite_is_drawn_at_the_edge(axes):
    error_by_layer(
        axes,
        traced(("a", 0.0, 3e-7, Kind.AGREES), ("b", 0.5, 3e-7, Kind.DIVERGES), ("c", inf, 3e-7, Kind.DIFFERENT_BEFORE)),
    )
    left, right = axes.get_xlim()
    assert (left, right) == (pytest.approx(1e-8), pytest.approx(5.0))
    assert [x for x, _ in points(axes, WRONG["marker"])] == pytest.approx([2 * left, 0.5, right / 2])


def test_the_table_is_left_as_it_is(axes):
    before = BEFORE.copy()
    error_by_layer(axes, BEFORE, AFTER)
    pd.testing.assert_frame_equal(BEFORE, before)

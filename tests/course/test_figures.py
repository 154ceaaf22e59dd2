"""Each drawing draws what it is given: its marks, boxes and texts, not its pixels."""

from io import BytesIO

from course import figures

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure
from PIL import Image


@pytest.fixture
def axes():
    return Figure().subplots()


def texts(axes):
    return [text.get_text() for text in axes.texts]


def lightness(color):
    return np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722))


def line(axes, label):
    """Return the plotted line of a label."""
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return found


def test_show_displays_the_same_bytes_each_time_with_a_text_and_closes_the_figure(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda data, **more: shown.append((data, more)))
    for _ in range(2):
        figure, axes = plt.subplots()
        axes.plot([0, 1], [0, 1])
        figures.show(figure, "A line.")
        assert not plt.fignum_exists(figure.number)
    (picture, settings), (caption, _), *again = shown
    assert again[0][0] == picture
    assert all(more["raw"] for _, more in shown)
    assert settings["metadata"]["image/png"]["alt"] == picture["text/plain"] == caption["text/plain"] == "A line."
    assert caption["text/markdown"] == "*A line.*"
    assert Image.open(BytesIO(picture["image/png"])).width > settings["metadata"]["image/png"]["width"] > 100


def test_a_figure_that_is_too_wide_for_a_phone_is_refused():
    with pytest.raises(ValueError, match="8 inches wide"):
        figures.show(plt.figure(figsize=(8, 3)), "A wide one.")


def contrast_on_white(color):
    """Return the contrast with white: https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 1.05 / (np.dot(linear, (0.2126, 0.7152, 0.0722)) + 0.05)


def test_keras_right_and_wrong_ports_differ_in_color_mark_and_line():
    roles = [figures.KERAS, figures.RIGHT, figures.WRONG, figures.NEUTRAL]
    for trait in ("color", "marker", "linestyle"):
        assert len({role[trait] for role in roles}) == 4
    assert all(contrast_on_white(role["color"]) >= 3 for role in roles)


def test_boxes_write_each_number_in_its_box_the_lighter_the_larger(axes):
    array = np.array([[1, 2, 3], [4, 5, 6]])
    figures.boxes(axes, array, "a kernel")
    assert [(patch.get_x(), patch.get_y()) for patch in axes.patches] == [(c, r) for r in range(2) for c in range(3)]
    assert [(*text.get_position(), text.get_text()) for text in axes.texts] == [
        (column + 0.5, row + 0.5, str(array[row, column])) for row in range(2) for column in range(3)
    ]
    shades = [lightness(patch.get_facecolor()[:3]) for patch in axes.patches]
    assert shades == sorted(shades)
    assert shades[0] < shades[-1]
    for patch, text in zip(axes.patches, axes.texts, strict=True):  # each number can be read
        assert abs(lightness(patch.get_facecolor()[:3]) - lightness(text.get_color())) > 0.3
    assert axes.get_title(loc="left") == "a kernel"
    assert axes.yaxis_inverted()


def test_boxes_take_texts_in_one_row_with_shades_of_their_own(axes):
    figures.boxes(axes, np.array(["x", "y"]), "a row", shade=np.array([7, 2]))
    assert texts(axes) == ["x", "y"]
    first, second = (lightness(patch.get_facecolor()[:3]) for patch in axes.patches)
    assert first > second


def test_boxes_of_equal_numbers_can_be_drawn(axes):
    figures.boxes(axes, np.ones((1, 2)), "equal")
    assert same_color(axes.patches[0].get_facecolor(), axes.patches[1].get_facecolor())


def test_windows_show_what_each_output_reads(axes):
    figures.windows(axes, size=4, kernel=3, stride=2, padding=(1, 0), title="one axis")
    assert texts(axes) == ["0", "x0", "x1", "x2", "x3", "output 0", "output 1"]
    boxes, bars = axes.patches[:5], axes.patches[5:]
    assert [patch.get_x() for patch in boxes] == [-1, 0, 1, 2, 3]
    assert [bool(patch.get_hatch()) for patch in boxes] == [True] + 4 * [False]
    np.testing.assert_allclose([(bar.get_x(), bar.get_width()) for bar in bars], [(-0.92, 2.84), (1.08, 2.84)])
    low, high = axes.get_ylim()
    assert all(low < bar.get_y() < bar.get_y() + bar.get_height() < 0 < 1 < high for bar in bars)
    assert {bar.get_facecolor()[:3] for bar in bars} == {to_rgb(figures.KERAS["color"])}
    assert axes.get_title(loc="left") == "one axis"


def test_windows_have_the_color_of_who_pads(axes):
    figures.windows(axes, 4, 3, 2, (1, 0), "one axis", figures.WRONG)
    assert axes.patches[-1].get_facecolor()[:3] == to_rgb(figures.WRONG["color"])


def test_error_by_size_tells_sizes_that_agree_from_those_that_do_not(axes):
    figures.error_by_size(axes, [7, 8, 9, 10], [1e-13, 0.5, 0.0, 0.25], within=1e-12)
    agree, different = line(axes, "agree"), line(axes, "different")
    assert (list(agree.get_xdata()), list(agree.get_ydata())) == ([7, 9], [0, 0])
    assert (list(different.get_xdata()), list(different.get_ydata())) == ([8, 10], [0.5, 0.25])
    assert texts(axes) == ["7", "9"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["different", "agree"]


def test_error_by_size_has_no_cross_where_all_agree(axes):
    figures.error_by_size(axes, [7, 8], [0.0, 0.0], within=1e-12)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["agree"]


def test_road_leans_as_far_as_each_steering(axes):
    steering = {"truth": 0.0, "Keras": 1.0, "port": -0.5, "far off": -7.0}
    roles = {"Keras": figures.KERAS, "port": figures.RIGHT, "far off": figures.WRONG}
    figures.road(axes, np.zeros((40, 60, 1)), steering, roles)
    for label, value in steering.items():
        (x0, x1), (y0, y1) = line(axes, label).get_data()
        assert (x0, y0) == (30, 39)  # the middle of the bottom
        assert np.degrees(np.arctan2(x1 - x0, y0 - y1)) == pytest.approx(60 * max(value, -1))
    assert all(same_color(line(axes, label).get_color(), role["color"]) for label, role in roles.items())
    assert line(axes, "truth").get_color() == "white"
    (image,) = axes.images
    assert image.get_array().shape == (40, 60)
    assert image.get_clim() == (0, 1)


@pytest.mark.parametrize("log", [False, True])
def test_marks_are_a_row_for_each_index_and_a_kind_for_each_column(axes, log):
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}, index=["first", "second", "third"])
    figures.marks(axes, table, log=log)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second", "third"]
    assert list(axes.get_yticks()) == [2, 1, 0]
    for name in table:
        assert list(line(axes, name).get_xdata()) == list(table[name])
        np.testing.assert_allclose(line(axes, name).get_ydata(), [2, 1, 0], atol=0.2)
    assert line(axes, "a").get_marker() != line(axes, "b").get_marker()
    assert axes.get_xscale() == ("log" if log else "linear")

"""What the checks of page 01 say of answers, right and wrong; and what its figures draw."""

from course.exercises.e01_kernels import check_convolution_weight, check_depthwise_weight
from course.figures import KERAS, RIGHT, WRONG
from course.kernel_figures import letters_moved, table_of_tables, texts

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from torch import nn


def moved(kernel):
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def merged(kernel):
    height, width, inputs, multiplier = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(inputs * multiplier, 1, height, width)


def reshaped(kernel):
    *spatial, inputs, outputs = kernel.shape
    return kernel.reshape(outputs, inputs, *spatial)


def in_place(kernel):
    """It overwrites the kernel that it is given; the next case has its own."""
    result = moved(kernel).copy()
    kernel[:] = 0
    return result


@pytest.mark.parametrize(
    "answer",
    [
        moved,
        in_place,
        lambda kernel: moved(kernel).tolist(),
        lambda kernel: torch.tensor(kernel).movedim((-1, -2), (0, 1)),
        lambda kernel: nn.Parameter(torch.tensor(moved(kernel))),
    ],
)
def test_right_weights_of_a_convolution_are_right(answer, capsys):
    check_convolution_weight(answer)
    assert capsys.readouterr().out == "✓ Any convolution: right; it equals Keras in all 6 cases\n"


@pytest.mark.parametrize(
    "answer", [lambda kernel: moved(kernel).astype("float32"), lambda kernel: torch.FloatTensor(moved(kernel))]
)
def test_a_weight_in_float32_is_right_and_called_rounded(answer, capsys):
    """The right numbers, rounded: what most people would write for a model in float32."""
    check_convolution_weight(answer)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "✓ Any convolution: right; it equals Keras in all 6 cases"
    assert "float32" in second


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        # All axes reversed: right where there is one spatial axis only.
        (
            lambda kernel: kernel.T,
            "right for Conv1D; wrong for Conv2D (kernel 3 x 5, 2 to 4 channels): the weight has the shape",
        ),
        # The right shape, cut out of memory as it lies.
        (
            reshaped,
            "wrong for Conv1D (kernel 3, 2 to 4 channels): the weight has all numbers of the kernel, but in another",
        ),
        # The kernel turned by 180 degrees, which only shows in the numbers.
        (lambda kernel: np.flip(moved(kernel), -1), "but in another order"),
        # Four axes only.
        (lambda kernel: kernel.transpose(3, 2, 0, 1), "wrong for Conv1D (kernel 3, 2 to 4 channels): ValueError"),
        # A method that arrays do not have.
        (lambda kernel: kernel.permute(3, 2, 0, 1), "AttributeError"),
        # The numbers changed.
        (lambda kernel: 2 * moved(kernel), "other numbers, by up to"),
        # Rounded to whole numbers.
        (lambda kernel: moved(kernel).astype(int), "of type int64"),
        # Axes exchanged that are alike in the first case of two dimensions only in number.
        (lambda kernel: np.moveaxis(kernel, (-2, -1), (0, 1)), "the weight has the shape (2, 4, 3), not (4, 2, 3)"),
        # The permutation instead of the weight.
        (lambda kernel: (3, 2, 0, 1), "the weight has the shape (4,)"),
        (lambda kernel: float("nan") * moved(kernel), "NaN"),
    ],
)
def test_wrong_weights_of_a_convolution_are_wrong(answer, said, capsys):
    check_convolution_weight(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("✗ Any convolution: ")
    assert said in printed


@pytest.mark.parametrize(
    "answer",
    [
        merged,
        lambda kernel: torch.tensor(kernel).permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1),
        lambda kernel: np.concatenate([kernel[:, :, k].transpose(2, 0, 1) for k in range(kernel.shape[2])])[:, None],
    ],
)
def test_right_depthwise_weights_are_right(answer, capsys):
    check_depthwise_weight(answer)
    assert capsys.readouterr().out == "✓ Depthwise: right; it equals Keras in all 6 cases\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        # The outputs of all inputs, one after another, instead of all outputs of each input.
        (
            lambda kernel: kernel.transpose(3, 2, 0, 1).reshape(-1, 1, *kernel.shape[:2]),
            "right for multiplier 1; wrong for multipliers over 1 (kernel 2 x 5, 4 channels, multiplier 2): "
            "the weight has all numbers of the kernel, but in another order",
        ),
        # Not merged.
        (lambda kernel: kernel.transpose(2, 3, 0, 1), "the weight has the shape (4, 2, 2, 5), not (8, 1, 2, 5)"),
        # Height and width exchanged.
        (lambda kernel: merged(kernel.transpose(1, 0, 2, 3)), "wrong for multiplier 1"),
        # As the kernel lies in memory.
        (lambda kernel: kernel.reshape(-1, 1, *kernel.shape[:2]), "wrong for multiplier 1"),
    ],
)
def test_wrong_depthwise_weights_are_wrong(answer, said, capsys):
    check_depthwise_weight(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("✗ Depthwise: ")
    assert said in printed


@pytest.mark.parametrize("check", [check_convolution_weight, check_depthwise_weight])
def test_a_forgotten_return_is_told_from_no_attempt(check, capsys):
    def forgetful(kernel):
        moved(kernel)

    check(forgetful)
    assert "is a `return` missing?" in capsys.readouterr().out
    check(lambda kernel: None)
    assert "not attempted yet" in capsys.readouterr().out


@pytest.fixture
def axes():
    return Figure().subplots()


def test_a_table_of_tables_colours_what_is_marked(axes):
    marked = np.zeros((2, 3, 4, 5), dtype=bool)
    marked[1, 2, 3, 4] = True
    table_of_tables(axes, marked, "hwio", "title", KERAS["color"])
    coloured = [box for box in axes.patches if same_color(box.get_facecolor(), KERAS["color"])]
    assert len(axes.patches) == marked.size
    assert [(box.get_x(), box.get_y()) for box in coloured] == [(2 * 5.7 + 4, 1 * 4.7 + 3)]
    outside, inside = {"h = 0", "h = 1", "w = 0", "w = 1", "w = 2"}, {"i ↓", "o →"}
    assert outside | inside == {text.get_text() for text in axes.texts}


def test_letters_that_should_go_elsewhere_have_the_colour_of_mistakes(axes):
    letters_moved(axes, "hwio", "oiwh", "oihw", "title")
    boxes = [text for text in axes.texts if text.get_text() in set("hwio")]
    wrong = {text.get_text() for text in boxes if same_color(text.get_bbox_patch().get_facecolor(), WRONG["color"])}
    places = [text.get_text() for text in axes.texts if text.get_text().isdigit()]
    assert wrong == {"w", "h"}
    assert places == [*"0123", *"3210"]


def test_texts_that_stand_elsewhere_have_a_cross(axes):
    texts(axes, np.array([["a", "b"], ["c", "d"]]), np.array([["a", "c"], ["b", "d"]]), "title", RIGHT)
    crosses = [tuple(float(value[0]) for value in line.get_data()) for line in axes.lines]
    assert crosses == [(1.85, 0.15), (0.85, 1.15)]
    assert sum(same_color(box.get_facecolor(), RIGHT["color"]) for box in axes.patches) == 2

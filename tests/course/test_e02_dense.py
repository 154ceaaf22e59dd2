"""What the checks of page 02 say of answers, right and wrong; and what its figure draws."""

from course.exercises.e02_dense import check_fill_linear, check_pointwise_weight
from course.figures import KERAS
from course.kernel_figures import weighted_sum

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from torch import nn


def compare_shapes(linear, kernel, bias):
    assert kernel.T.shape == linear.weight.shape
    assert bias.shape == linear.bias.shape


def copied_alone(linear, kernel, bias):
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(kernel.T))
        linear.bias.copy_(torch.tensor(bias))
    return linear


def copied_and_compared(linear, kernel, bias):
    """Both parameters are overwritten in place, but the shapes are compared first."""
    compare_shapes(linear, kernel, bias)
    return copied_alone(linear, kernel, bias)


def copied_then_compared(linear, kernel, bias):
    """The shapes are compared last: there is an error, too."""
    copied_alone(linear, kernel, bias)
    compare_shapes(linear, kernel, bias)
    return linear


def written_into_slices(linear, kernel, bias):
    compare_shapes(linear, kernel, bias)
    with torch.no_grad():
        linear.weight[:] = torch.from_numpy(kernel.T)
        linear.bias[:] = torch.from_numpy(bias)
    return linear


def new_parameters(linear, kernel, bias):
    compare_shapes(linear, kernel, bias)
    linear.weight = nn.Parameter(torch.tensor(kernel.T).double())
    linear.bias = nn.Parameter(torch.tensor(bias).double())
    return linear


def in_other_words(linear, weights, biases):
    """The reader's names of the arguments are not those of the page."""
    return copied_and_compared(linear, weights, biases)


def loaded(linear, kernel, bias):
    linear.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})
    return linear


def loaded_from_another(linear, kernel, bias):
    """Another Linear is filled with load_state_dict, and then copied."""
    other = loaded(nn.Linear(*kernel.shape), kernel, bias)
    with torch.no_grad():
        linear.weight.copy_(other.weight)
        linear.bias.copy_(other.bias)
    return linear


def bias_compared(linear, kernel, bias):
    assert bias.shape == linear.bias.shape
    return copied_alone(linear, kernel, bias)


def float32_kept(linear, kernel, bias):
    linear.weight.data = torch.tensor(kernel.T)
    linear.bias.data = torch.tensor(bias)
    return linear


def without_no_grad(linear, kernel, bias):
    linear.weight.copy_(torch.tensor(kernel.T))
    return linear


def transposed_if_needed(linear, kernel, bias):
    return copied_alone(linear, kernel.T if kernel.shape == linear.weight.shape else kernel, bias)


def shared(linear, kernel, bias):
    linear.weight.data = torch.from_numpy(kernel.T).double()
    linear.bias.data = torch.from_numpy(bias).double()
    return linear


def shared_bias(linear, kernel, bias):
    copied_alone(linear, kernel, bias)
    linear.bias.data = torch.from_numpy(bias).double()
    return linear


def filled_and_forgotten(linear, kernel, bias):
    copied_and_compared(linear, kernel, bias)


def another(linear, kernel, bias):
    return copied_alone(nn.Linear(*kernel.shape, dtype=torch.float64), kernel, bias)


def bias_forgotten(linear, kernel, bias):
    return copied_alone(linear, kernel, 0 * bias)


@pytest.mark.parametrize(
    "answer", [copied_and_compared, copied_then_compared, written_into_slices, new_parameters, in_other_words]
)
def test_right_ways_to_fill_are_right(answer, capsys):
    check_fill_linear(answer)
    assert capsys.readouterr().out == "✓ Fill a Linear: right; it equals Keras in all 10 cases\n"


def test_a_fill_through_float32_is_right_and_called_rounded(capsys):
    """The right numbers, rounded on the way."""

    def rounded(linear, kernel, bias):
        return copied_and_compared(linear, kernel.astype("float32"), bias.astype("float32"))

    check_fill_linear(rounded)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "✓ Fill a Linear: right; it equals Keras in all 10 cases"
    assert "rounded to float32" in second


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        # A square kernel is not transposed.
        (transposed_if_needed, "right for layers that are not square; wrong for square layers (4 -> 4): other numbers"),
        # The weight shares the memory of the array.
        (
            shared,
            "float32 arrays; wrong for arrays that change afterwards (3 -> 5): the weight and the bias of the Linear "
            "changed together with the arrays, because they share memory",
        ),
        # Only the bias shares its memory.
        (
            shared_bias,
            "wrong for arrays that change afterwards (3 -> 5): the bias of the Linear changed together with the arrays",
        ),
        # The way that the exercise forbids, also by a detour.
        (loaded, "(3 -> 5): it calls load_state_dict, but the exercise asks for `.copy_()`"),
        (loaded_from_another, "it calls load_state_dict"),
        # It broadcasts a bias of shape (1,).
        (
            copied_alone,
            "wrong for a bias of the wrong shape (3 -> 5): a bias of shape (1,) raises no error",
        ),
        # It broadcasts a kernel of shape (1, 5).
        (
            bias_compared,
            "a bias of the wrong shape; wrong for a kernel of the wrong shape (3 -> 5): a kernel of shape (1, 5)",
        ),
        # It keeps float32.
        (float32_kept, "square layers; wrong for float32 arrays"),
        # Not transposed at all.
        (
            lambda linear, kernel, bias: copied_alone(linear, kernel.T, bias),
            "wrong for layers that are not square (3 -> 5): RuntimeError",
        ),
        # Recorded, which PyTorch refuses.
        (without_no_grad, "a leaf Variable that requires grad"),
        # It fills the layer, but returns nothing.
        (filled_and_forgotten, "it returns None, not the Linear that it was given; is a `return` missing?"),
        # It fills another layer.
        (another, "it returns a value of type Linear, not the Linear that it was given"),
        # It returns the layer as it was.
        (lambda linear, kernel, bias: linear, "the Linear still has the weight that it had before"),
        (bias_forgotten, "other numbers"),
    ],
)
def test_wrong_ways_to_fill_are_wrong(answer, said, capsys):
    check_fill_linear(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("✗ Fill a Linear: ")
    assert said in printed


@pytest.mark.parametrize(
    "answer",
    [
        lambda kernel: kernel.T[:, :, None, None],
        lambda kernel: kernel.T[..., None, None],
        lambda kernel: kernel.permute(1, 0).unsqueeze(-1).unsqueeze(-1),
        lambda kernel: kernel.T.reshape(kernel.shape[1], kernel.shape[0], 1, 1),
        lambda kernel: nn.Parameter(kernel.T[..., None, None]),
    ],
)
def test_right_pointwise_weights_are_right(answer, capsys):
    check_pointwise_weight(answer)
    assert capsys.readouterr().out == "✓ 1 x 1 convolution: right; it equals Keras in all 6 cases\n"


def test_a_pointwise_weight_in_float32_is_right_and_called_rounded(capsys):
    """The right numbers, rounded."""
    check_pointwise_weight(lambda kernel: kernel.T[..., None, None].float())
    first, second = capsys.readouterr().out.splitlines()
    assert first == "✓ 1 x 1 convolution: right; it equals Keras in all 6 cases"
    assert "float32" in second


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        # The right shape, cut out of memory as it lies.
        (
            lambda kernel: kernel.reshape(kernel.shape[1], kernel.shape[0], 1, 1),
            "the weight has all numbers of the kernel, but in another order",
        ),
        # The numbers changed.
        (lambda kernel: 2 * kernel.T[..., None, None], "other numbers, by up to"),
        # All four axes reversed.
        (
            lambda kernel: kernel[..., None, None].T,
            "its shape is (1, 1, 5, 3), not (5, 3, 1, 1); `.T` reverses all axes",
        ),
        # Not transposed.
        (lambda kernel: kernel[..., None, None], "its shape is (3, 5, 1, 1), not (5, 3, 1, 1)"),
        # Not transposed where it fits.
        (
            lambda kernel: (kernel if kernel.shape[0] == kernel.shape[1] else kernel.T)[..., None, None],
            "right for kernels that are not square; wrong for square kernels (4 -> 4): the weight has all",
        ),
        # One axis too few.
        (lambda kernel: kernel.T[..., None], "its shape is (5, 3, 1), not (5, 3, 1, 1)"),
        (lambda kernel: kernel.T.numpy()[..., None, None], "it returns a value of type ndarray, not a tensor"),
        (lambda kernel: kernel.T[..., None, None].int(), "it is of type torch.int32"),
    ],
)
def test_wrong_pointwise_weights_are_wrong(answer, said, capsys):
    check_pointwise_weight(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("✗ 1 x 1 convolution: ")
    assert said in printed


def test_a_forgotten_return_is_told_from_no_attempt(capsys):
    def forgetful(kernel):
        kernel.T[..., None, None]

    check_pointwise_weight(forgetful)
    assert "is a `return` missing?" in capsys.readouterr().out
    check_pointwise_weight(lambda kernel: None)
    check_fill_linear(lambda linear, kernel, bias: None)
    assert capsys.readouterr().out.count("not attempted yet") == 2


@pytest.mark.parametrize(("by_column", "output"), [(True, 741), (False, 321)])
def test_a_weighted_sum_marks_what_it_adds(by_column, output):
    axes = Figure().subplots()
    matrix = np.arange(1.0, 10.0).reshape(3, 3)
    x = np.array([1.0, 10.0, 100.0])
    assert weighted_sum(axes, matrix, x, by_column, "title", KERAS) == output
    used = {(box.get_x(), box.get_y()) for box in axes.patches if same_color(box.get_facecolor(), KERAS["color"])}
    assert used == {(0, place) if by_column else (place, 0) for place in range(3)}
    assert any(f"= {output}" in text.get_text() for text in axes.texts)


def test_load_state_dict_works_again_after_the_check(capsys):
    """It is switched off only while the answer runs, whether the answer is right, wrong or raises an error."""
    for answer in (copied_and_compared, loaded, without_no_grad):
        check_fill_linear(answer)
    loaded(nn.Linear(3, 5), np.ones((3, 5)), np.ones(5))

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


def tensors(kernel, bias):
    return {"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)}


def loaded(linear, kernel, bias, **settings):
    linear.load_state_dict(tensors(kernel, bias), **settings)
    return linear


def copied_and_checked(linear, kernel, bias):
    """Both parameters are overwritten in place, but the shape is compared first."""
    assert bias.shape == linear.bias.shape
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(kernel.T))
        linear.bias.copy_(torch.tensor(bias))
    return linear


def new_parameters(linear, kernel, bias):
    if bias.shape != (kernel.shape[1],):
        raise ValueError("the bias has the wrong shape")
    linear.weight = nn.Parameter(torch.tensor(kernel.T).double())
    linear.bias = nn.Parameter(torch.tensor(bias).double())
    return linear


def copied_alone(linear, kernel, bias):
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(kernel.T))
        linear.bias.copy_(torch.tensor(bias))
    return linear


def without_no_grad(linear, kernel, bias):
    linear.weight.copy_(torch.tensor(kernel.T))
    return linear


def transposed_if_needed(linear, kernel, bias):
    return loaded(linear, kernel.T if kernel.shape == linear.weight.shape else kernel, bias)


def shared(linear, kernel, bias):
    linear.weight.data = torch.from_numpy(kernel.T).double()
    linear.bias.data = torch.from_numpy(bias).double()
    return linear


def shared_bias(linear, kernel, bias):
    loaded(linear, kernel, bias)
    linear.bias.data = torch.from_numpy(bias).double()
    return linear


def filled_and_forgotten(linear, kernel, bias):
    loaded(linear, kernel, bias)


def another(linear, kernel, bias):
    return loaded(nn.Linear(*kernel.shape, dtype=torch.float64), kernel, bias)


def bias_forgotten(linear, kernel, bias):
    return loaded(linear, kernel, 0 * bias)


@pytest.mark.parametrize("answer", [loaded, copied_and_checked, new_parameters])
def test_right_ways_to_fill_are_right(answer, capsys):
    check_fill_linear(answer)
    assert capsys.readouterr().out == "✓ Fill a Linear: right; it equals Keras in all 9 cases\n"


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
        # Arrays where tensors are wanted.
        (
            lambda linear, kernel, bias: linear.load_state_dict({"weight": kernel.T, "bias": bias}),
            "TypeError: load_state_dict takes tensors, not NumPy arrays",
        ),
        # It broadcasts a bias of shape (1,).
        (
            copied_alone,
            "wrong for a bias of the wrong shape (3 -> 5): a bias of shape (1,) for 5 outputs raises no error",
        ),
        # It keeps float32.
        (lambda *given: loaded(*given, assign=True), "square layers; wrong for float32 arrays"),
        # Not transposed at all.
        (
            lambda linear, kernel, bias: loaded(linear, kernel.T, bias),
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

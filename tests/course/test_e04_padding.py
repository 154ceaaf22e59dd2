"""The checks of page 04 accept every right answer, and say for which trait a wrong one is wrong."""

from course.exercises.e04_padding import check_average_pool_same, check_same_padding
from parity.padding import AvgPool2dSame, pad_same, same_padding

import numpy as np
import pytest
import torch
import torch.nn.functional as F


def padded(x, kernel, stride, **more):
    (top, bottom), (left, right) = (same_padding(size, kernel, stride) for size in x.shape[2:])
    return F.pad(x, (left, right, top, bottom), **more)


def by_share(x, kernel, stride):
    ones = torch.ones_like(x)
    return F.avg_pool2d(padded(x, kernel, stride), kernel, stride) / F.avg_pool2d(
        padded(ones, kernel, stride), kernel, stride
    )


def by_sums(x, kernel, stride):
    size = (kernel, kernel), (stride, stride), (1, 1)
    total, count = (
        F.lp_pool2d(pad_same(part, *size), 1, kernel, stride) for part in (x.clamp(min=0), torch.ones_like(x))
    )
    negative = F.lp_pool2d(pad_same((-x).clamp(min=0), *size), 1, kernel, stride)
    return (total - negative) / count


def by_module(x, kernel, stride):
    return AvgPool2dSame(kernel, stride)(x)


def zeros_counted(x, kernel, stride):
    return F.avg_pool2d(padded(x, kernel, stride), kernel, stride)


def both_sides(x, kernel, stride):
    return F.avg_pool2d(x, kernel, stride, (kernel - 1) // 2, count_include_pad=False)


def kernel_forgotten(x, kernel, stride):
    return by_share(x, 3, 2)


def maximum(x, kernel, stride):
    return F.max_pool2d(padded(x, kernel, stride, value=-torch.inf), kernel, stride)


def forgetful(x, kernel, stride):
    by_share(x, kernel, stride)


@pytest.mark.parametrize("answer", [by_share, by_sums, by_module])
def test_right_average_poolings_are_accepted(answer, capsys):
    check_average_pool_same(answer)
    assert capsys.readouterr().out.startswith("✓ Average pooling: right; ")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (zeros_counted, "✗ Average pooling: wrong for odd sizes"),
        (zeros_counted, "the divisor counts the padding, too"),
        (both_sides, "wrong for even sizes"),
        (both_sides, "the padding is the same on both sides"),
        (kernel_forgotten, "wrong for other kernels and strides"),
        (maximum, "✗ Average pooling: wrong for odd sizes"),
        (forgetful, "is a `return` missing?"),
        (lambda x, kernel, stride: by_share(x, kernel, stride).numpy(), "it returns ndarray, not a tensor"),
        (lambda x, kernel, stride: by_share(x, kernel, stride).float(), "it returns torch.float32"),
        (lambda x, kernel, stride: F.avg_pool2d(x, kernel, stride), "its shape is"),
        (lambda x, kernel, stride: 1 / 0, "ZeroDivisionError"),
        (lambda x, kernel, stride: None, "not attempted yet"),
    ],
)
def test_wrong_average_poolings_are_told_where(answer, said, capsys):
    check_average_pool_same(answer)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [
        same_padding,
        lambda *setting: list(same_padding(*setting)),
        lambda *setting: torch.tensor(same_padding(*setting)),
        lambda *setting: np.array(same_padding(*setting)),
    ],
)
def test_right_paddings_are_accepted(answer, capsys):
    check_same_padding(answer)
    assert capsys.readouterr().out.startswith("✓ Dilation: right; ")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda n, k, s, d: same_padding(n, k, s), "wrong for dilation over 1"),
        (lambda n, k, s, d: same_padding(n, k * d, s), "wrong for dilation over 1"),
        (lambda n, k, s, d: same_padding(n, k, s, d)[::-1], "wrong for dilation 1"),
        (lambda n, k, s, d: (k // 2, k // 2), "wrong for dilation 1"),
        (lambda n, k, s, d: same_padding(n, k, s, d)[::-1], "the total is right, the sides are not"),
        (lambda n, k, s, d: (same_padding(n, k, s, d)[0] + (s > 1), same_padding(n, k, s, d)[1]), "another total"),
        (lambda n, k, s, d: sum(same_padding(n, k, s, d)), "not two integers"),
        (lambda n, k, s, d: tuple(float(x) for x in same_padding(n, k, s, d)), "not two integers"),
        (lambda n, k, s, d: (-1, 2), "negative padding"),
        (lambda n, k, s, d: None, "not attempted yet"),
    ],
)
def test_wrong_paddings_are_told_where(answer, said, capsys):
    check_same_padding(answer)
    assert said in capsys.readouterr().out

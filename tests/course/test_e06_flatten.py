"""What the checks of page 06 say: right answers in any form are right, and a wrong order is named."""

from course.exercises.e06_flatten import check_decoder, check_feature_order

import pytest
import torch


def order(h, w, c):
    return torch.arange(h * w * c).reshape(h, w, c).permute(2, 0, 1).flatten()


def decoder(kernel, bias, h, w, c):
    index = order(h, w, c)
    return kernel.T[index], bias[index]


def width_first(h, w, c):
    return torch.arange(h * w * c).reshape(h, w, c).permute(2, 1, 0).flatten()


def reorder_rows(kernel, h, w, c):
    """As on the page, for a Dense behind a Flatten."""
    return kernel.reshape(h, w, c, -1).permute(2, 0, 1, 3).flatten(0, 2)


def decode_with(index, kernel, bias):
    return kernel.T[index], bias[index]


@pytest.mark.parametrize(
    "answer",
    [
        order,
        lambda *shape: order(*shape).tolist(),
        lambda *shape: tuple(order(*shape).tolist()),
        lambda *shape: order(*shape).numpy(),
        lambda *shape: order(*shape).int(),
    ],
)
def test_a_right_order_is_right_in_any_form(answer, capsys):
    check_feature_order(answer)
    assert capsys.readouterr().out == "✓ BatchNormalization: right; it equals Keras in all 3 cases\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda h, w, c: torch.arange(h * w * c), "changes nothing"),
        (lambda *shape: order(*shape).argsort(), "the way back"),
        (width_first, "c, w, h"),
        (lambda h, w, c: torch.arange(h * w * c).flip(0), "other numbers"),
        (lambda *shape: order(*shape).double(), "not integers"),
        (lambda *shape: order(*shape)[None], "the shape (1, 15)"),
        (lambda *shape: order(*shape)[:-1], "the shape (14,)"),
        (lambda *shape: 0 * order(*shape), "each number from 0 to 14 once"),
        (lambda *shape: [], "the shape (0,)"),
        (lambda *shape: print(end=""), "is a `return` missing?"),
        (lambda *shape: None, "not attempted yet"),
    ],
)
def test_a_wrong_order_is_named(answer, said, capsys):
    check_feature_order(answer)
    printed = capsys.readouterr().out
    assert said in printed
    assert ": right; it" not in printed


@pytest.mark.parametrize(
    "answer",
    [
        decoder,
        lambda *given: list(decoder(*given)),
        lambda *given: [part.numpy() for part in decoder(*given)],
        lambda *given: [torch.nn.Parameter(part) for part in decoder(*given)],
        lambda kernel, bias, *shape: (reorder_rows(kernel.T, *shape), reorder_rows(bias, *shape).flatten()),
    ],
)
def test_a_right_decoder_is_right_in_any_form(answer, capsys):
    check_decoder(answer)
    assert capsys.readouterr().out == "✓ Decoder: right; it equals Keras in all 6 cases\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda kernel, bias, h, w, c: (kernel.T, bias), "zeros (1 x 5 x 3): the outputs stay in Keras's order"),
        (lambda kernel, bias, h, w, c: (kernel.T.float(), bias.float()), "the outputs stay in Keras's order"),
        # The page's function, on the wrong axis of the kernel.
        (
            lambda kernel, bias, *shape: (reorder_rows(kernel, *shape), bias[order(*shape)]),
            "zeros (1 x 5 x 3): this reorders the rows of the kernel; here the rows are the inputs",
        ),
        (lambda kernel, bias, *shape: decode_with(order(*shape).argsort(), kernel, bias), "this is the way back"),
        (lambda kernel, bias, *shape: decode_with(width_first(*shape), kernel, bias), "(4 x 6 x 3): this is the order"),
        (lambda kernel, bias, *shape: decode_with(order(*shape).flip(0), kernel, bias), "other numbers"),
        (
            lambda kernel, bias, h, w, c: (kernel.T[order(h, w, c)], bias),
            "right for a bias of zeros; wrong for a random bias (1 x 5 x 3): the biases stay in Keras's order",
        ),
        (
            lambda kernel, bias, *shape: (kernel.T[order(*shape)], bias[order(*shape).argsort()]),
            "wrong for a random bias (1 x 5 x 3): this is the way back",
        ),
        (lambda kernel, bias, h, w, c: (kernel[:, order(h, w, c)], bias), "the weight has the shape (5, 15)"),
        (lambda kernel, bias, h, w, c: (kernel.T, bias[:-1]), "the bias has the shape (14,)"),
        (lambda *given: [part.float() for part in decoder(*given)], "right, but computed in torch.float32"),
        (lambda *given: decoder(*given)[0], "not the pair"),
        (lambda *given: print(end=""), "is a `return` missing?"),
        (lambda *given: None, "not attempted yet"),
    ],
)
def test_a_wrong_decoder_is_named(answer, said, capsys):
    check_decoder(answer)
    printed = capsys.readouterr().out
    assert said in printed
    assert ": right; it" not in printed

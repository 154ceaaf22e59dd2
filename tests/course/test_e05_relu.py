"""What the checks of page 05 say: right answers in any form are right, and for a wrong one the trait is named."""

from course.exercises.e05_relu import check_block, check_wrong_in_place

import pytest
import torch
import torch.nn.functional as F

BLOCKS = {
    "A": lambda net, x: net.conv(net.relu(x)) + x,
    "B": lambda net, x: net.conv(net.relu(net.bn(x))) + x,
    "C": lambda net, x: net.conv(net.relu(net.dropout(x))) + x,
}


@pytest.mark.parametrize("answer", [{"A", "C"}, ["C", "A"], "AC", {"A": 1, "C": 1}])
def test_the_right_letters_are_right_in_any_form(answer, capsys):
    check_wrong_in_place(answer, BLOCKS)
    assert capsys.readouterr().out == "✓ Wrong in place: right; all 3 blocks\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"A"}, "✗ Wrong in place: one letter is missing\n"),
        (set(), "✗ Wrong in place: 2 letters are missing\n"),
        ({"A", "B", "C"}, "✗ Wrong in place: you name B, but its output equals Keras's\n"),
        ({"B"}, "✗ Wrong in place: you name B, but its output equals Keras's; 2 letters are missing\n"),
        ({"X"}, "the answer must be a set of letters out of A, B, C"),
        (5, "the answer must be a set of letters out of A, B, C"),
        (None, "not attempted yet"),
    ],
)
def test_wrong_letters_are_named(answer, said, capsys):
    check_wrong_in_place(answer, BLOCKS)
    assert said in capsys.readouterr().out


def test_to_name_all_blocks_does_not_reveal_the_answer(capsys):
    blocks = BLOCKS | {"D": BLOCKS["B"]}
    check_wrong_in_place(blocks, blocks)
    said = "✗ Wrong in place: you name B, but its output equals Keras's (and so for 1 more that you name)\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (lambda net, x: net.relu(net.cnv(x)), "AttributeError"),
        (lambda net, x: net.relu(x) if isinstance(x, torch.Tensor) else x, "even if its ReLU works out of place"),
    ],
)
def test_a_block_that_the_reader_broke_is_said_to_be_wrong(block, said, capsys):
    check_wrong_in_place({"A"}, {"A": block})
    assert said in capsys.readouterr().out


OVERWRITTEN = "the output is that of relu(s) + ...: the shortcut s or its name is overwritten before the sum reads it"
TRAIN = "other numbers; do both branches use what net.dropout returned, in one call?"


def right(net, x):
    shortcut = net.dropout(x)
    out = net.conv1(F.relu(shortcut))
    out = net.conv2(F.relu(out, inplace=True))
    out += shortcut
    return out


def only_the_sum_in_place(net, x):
    shortcut = net.dropout(x)
    return net.conv2(F.relu(net.conv1(F.relu(shortcut)))).add_(shortcut)


def only_the_relu_in_place(net, x):
    shortcut = net.dropout(x)
    return shortcut + net.conv2(F.relu(net.conv1(F.relu(shortcut)), inplace=True))


def sum_by_out(net, x):
    shortcut = net.dropout(x)
    out = net.conv2(F.relu(net.conv1(F.relu(shortcut))))
    return torch.add(out, shortcut, out=out)


@pytest.mark.parametrize("answer", [right, only_the_sum_in_place, only_the_relu_in_place, sum_by_out])
def test_a_right_block_is_right_whatever_it_does_in_place(answer, capsys):
    check_block(answer)
    assert capsys.readouterr().out == "✓ Residual block: right; it does all that is asked in all 8 cases\n"


def overwrites_the_shortcut(net, x):
    shortcut = net.dropout(x)
    return net.conv2(F.relu(net.conv1(F.relu(shortcut, inplace=True)))) + shortcut


def overwrites_a_copy(net, x):
    shortcut = net.dropout(x).clone()
    return net.conv2(F.relu(net.conv1(F.relu(shortcut, inplace=True)), inplace=True)) + shortcut


def gives_its_name_to_the_relu(net, x):
    shortcut = F.relu(net.dropout(x))
    out = net.conv2(F.relu(net.conv1(shortcut)))
    out += shortcut
    return out


def forgets_the_second_relu(net, x):
    shortcut = net.dropout(x)
    out = net.conv2(net.conv1(F.relu(shortcut)))
    out += shortcut
    return out


def overwrites_the_input(net, x):
    shortcut = net.dropout(x)
    shortcut += net.conv2(F.relu(net.conv1(F.relu(shortcut))))
    return shortcut


def restores_the_input(net, x):
    copy = x.clone()
    out = net.conv1(F.relu(net.dropout(x), inplace=True))
    x.copy_(copy)
    return net.conv2(F.relu(out)) + net.dropout(x)


def adds_x(net, x):
    out = net.conv2(F.relu(net.conv1(F.relu(net.dropout(x)))))
    out += x
    return out


def calls_dropout_twice(net, x):
    out = net.conv2(F.relu(net.conv1(F.relu(net.dropout(x)))))
    out += net.dropout(x)
    return out


def without_dropout(net, x):
    out = net.conv2(F.relu(net.conv1(F.relu(x))))
    out += x
    return out


def nothing_in_place(net, x):
    shortcut = net.dropout(x)
    return net.conv2(F.relu(net.conv1(F.relu(shortcut)))) + shortcut


def something_else_in_place(net, x):
    torch.zeros(1).add_(1)
    return nothing_in_place(net, x)


def sum_into_a_copy(net, x):
    shortcut = net.dropout(x).clone()
    shortcut += net.conv2(F.relu(net.conv1(F.relu(shortcut))))
    return shortcut


def relu_of_a_copy(net, x):
    shortcut = net.dropout(x)
    return net.conv2(F.relu(net.conv1(F.relu(shortcut.clone(), inplace=True)))) + shortcut


def forgets_to_return(net, x):
    right(net, x)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (overwrites_the_shortcut, "wrong for the output (2 x 5 x 7 x 3): " + OVERWRITTEN),
        (overwrites_a_copy, "wrong for the output (2 x 5 x 7 x 3): " + OVERWRITTEN),
        (gives_its_name_to_the_relu, "wrong for the output (2 x 5 x 7 x 3): " + OVERWRITTEN),
        (forgets_the_second_relu, "wrong for the output (2 x 5 x 7 x 3): other numbers"),
        (
            overwrites_the_input,
            "right for the output; wrong for the caller's x (2 x 5 x 7 x 3): it is overwritten, and",
        ),
        (restores_the_input, "wrong for the caller's x (2 x 5 x 7 x 3): it is overwritten for a while"),
        (adds_x, "right for the output, the caller's x; wrong for train mode (2 x 5 x 7 x 3): " + TRAIN),
        (calls_dropout_twice, "right for the output, the caller's x; wrong for train mode (2 x 5 x 7 x 3): " + TRAIN),
        (without_dropout, "right for the output, the caller's x; wrong for train mode (2 x 5 x 7 x 3): " + TRAIN),
        (nothing_in_place, "wrong for what may stay (2 x 5 x 7 x 3): no operation works in place"),
        # In place, but on a copy of the shortcut.
        (sum_into_a_copy, "(2 x 5 x 7 x 3): no operation works in place on what conv1 or conv2 returned"),
        (relu_of_a_copy, "(2 x 5 x 7 x 3): no operation works in place on what conv1 or conv2 returned"),
        (something_else_in_place, "wrong for what may stay (2 x 5 x 7 x 3): no operation works in place"),
        (forgets_to_return, "is a `return` missing?"),
        (lambda net, x: (right(net, x), x), "it returns tuple, not a tensor"),
        (lambda net, x: right(net, x).float(), "right, but computed in torch.float32"),
        (lambda net, x: overwrites_the_shortcut(net, x).float(), OVERWRITTEN),
        (lambda net, x: forgets_the_second_relu(net, x).float(), "other numbers"),
        (lambda net, x: right(net, x)[:1], "shape"),
        (lambda net, x: None, "not attempted yet"),
    ],
)
def test_for_a_wrong_block_the_trait_is_named(answer, said, capsys):
    check_block(answer)
    printed = capsys.readouterr().out
    assert said in printed
    assert ": right; it" not in printed

"""The exercises of notebook 12: which answers their checks accept, and what they say of the others."""

from course.exercises.e12_training_losses import check_train_mode, check_weighted_loss

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def right_loss(outputs, labels, weights):
    return (weights * F.huber_loss(outputs[:, 0], labels, reduction="none")).mean()


def said_of(check, answer, capsys):
    check(answer)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [
        right_loss,
        lambda o, y, w: (w[:, None] * F.huber_loss(o, y[:, None], reduction="none")).mean(),
        lambda o, y, w: (w * F.smooth_l1_loss(o.squeeze(1), y, reduction="none")).sum() / len(y),
        lambda o, y, w: F.huber_loss(o, y[:, None], weight=w[:, None]),  # of this loss PyTorch takes the plain mean
        lambda o, y, w: torch.dot(w, nn.HuberLoss(reduction="none")(o.flatten(), y)) / w.numel(),
    ],
)
def test_right_losses_are_right(answer, capsys):
    assert said_of(check_weighted_loss, answer, capsys) == "✓ Weighted loss: right; it equals Keras in all 4 cases\n"


def test_a_loss_in_float32_is_right_and_told_to_be_coarse(capsys):
    said = said_of(check_weighted_loss, lambda *tensors: right_loss(*(t.float() for t in tensors)), capsys)
    assert said.startswith("✓ Weighted loss: right; it equals Keras in all 4 cases\n")
    assert "float32" in said


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        # Each output meets each label; PyTorch warns of it.
        (lambda o, y, w: (w * (o - y) ** 2).mean(), "wrong for weights of 1"),
        # The same with Huber's loss: for want of an axis there are 25 losses, and the line asks for it.
        (lambda o, y, w: (w * F.huber_loss(o, y, reduction="none")).mean(), "are the shapes of outputs, labels and"),
        (lambda o, y, w: (w * F.huber_loss(o, y[:, None], reduction="none")).mean(), "are the shapes of outputs,"),
        # The mean of the weighted losses, each loss with each weight: right while the weights are equal.
        (
            lambda o, y, w: (w * F.huber_loss(o, y[:, None], reduction="none")).mean(),
            "right for weights of 1, equal weights; wrong for unequal weights",
        ),
        # The mean that cross_entropy takes: divided by the sum of the weights.
        (lambda o, y, w: right_loss(o, y, w) * len(y) / w.sum(), "right for weights of 1; wrong for equal weights"),
        # PyTorch's own weight, which divides by the sum of the weights in this loss and not in Huber's.
        (lambda o, y, w: F.mse_loss(o[:, 0], y, weight=w), "wrong for weights of 1"),
        (lambda o, y, w: F.huber_loss(o[:, 0], y), "right for weights of 1; wrong for equal weights"),
        # The mean of the losses times the mean of the weights.
        (lambda o, y, w: F.huber_loss(o[:, 0], y) * w.mean(), "right for weights of 1, equal weights; wrong for"),
        # The absolute error; a parabola all over; the sum.
        (lambda o, y, w: (w * F.l1_loss(o[:, 0], y, reduction="none")).mean(), "wrong for weights of 1"),
        (lambda o, y, w: (w * (o[:, 0] - y) ** 2).mean() / 2, "wrong for weights of 1"),
        (lambda o, y, w: right_loss(o, y, w) * len(y), "wrong for weights of 1"),
        (lambda o, y, w: w * F.huber_loss(o[:, 0], y, reduction="none"), "the shape (5,); it must be a single number"),
        (lambda o, y, w: right_loss(o, y, w).item(), "the loss is a float, not a tensor"),
        (lambda o, y, w: right_loss(o, y, w).detach(), "the loss has no gradient"),
        (lambda o, y, w: right_loss(o.detach().requires_grad_(), y, w), "no gradient reaches the outputs"),
        (lambda o, y, w: o / 0, "the loss has the shape (5, 1)"),
        (lambda o, y, w: F.nothing(o), "AttributeError"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_wrong_losses_are_wrong(answer, line, capsys):
    said = said_of(check_weighted_loss, answer, capsys)
    assert said.startswith("✗ Weighted loss: ")
    assert line in said
    assert "float32" not in said


def forgetful_loss(o, y, w):
    """Compute the loss, and forget the `return`."""
    right_loss(o, y, w)


def test_a_loss_without_return_is_no_missing_attempt(capsys):
    assert "is a `return` missing?" in said_of(check_weighted_loss, forgetful_loss, capsys)
    assert said_of(check_weighted_loss, lambda o, y, w: None, capsys) == "… Weighted loss: not attempted yet\n"


def right_mode(model):
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()
    return model


def in_place(model):
    """Return nothing: what counts is the mode of each module."""
    right_mode(model)


def by_name(model):
    model.train()
    for _, module in model.named_modules():
        if type(module) is nn.BatchNorm2d and not any(p.requires_grad for p in module.parameters()):
            module.train(False)
    return model


@pytest.mark.parametrize("answer", [right_mode, in_place, by_name])
def test_right_modes_are_right(answer, capsys):
    said = said_of(check_train_mode, answer, capsys)
    assert said == "✓ Training mode: right; each module is in the right mode in all 6 cases\n"


def only_frozen_names(model):
    """Set all modules to inference whose parameters are frozen, a convolution, too."""
    model.train()
    for module in model.modules():
        if not any(p.requires_grad for p in module.parameters(recurse=False)):
            module.eval()
    return model


def frozen_modules(model):
    model.train()
    for module in model.modules():
        parameters = list(module.parameters(recurse=False))
        if parameters and not parameters[0].requires_grad:
            module.eval()
    return model


def children_only(model):
    model.train()
    for module in model.children():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()
    return model


def train_last(model):
    right_mode(model)
    return model.train()


def freezes_all(model):
    right_mode(model)
    return model.requires_grad_(False)


def another(model):
    return right_mode(nn.Sequential(*model.children()))


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (lambda model: model.train(), "BatchNorm2d bn1 runs in training, and should run as at inference"),
        (lambda model: model.eval(), "the model itself runs as at inference, and should run in training"),
        (only_frozen_names, "runs as at inference, and should run in training"),
        (frozen_modules, "a frozen layer that is no BatchNorm"),
        (children_only, "right for no frozen layer, a frozen layer; wrong for a frozen layer inside another module"),
        (train_last, "right for no frozen layer; wrong for a frozen layer"),
        (freezes_all, "it changes which parameters require a gradient"),
        (another, "it returns another module"),
        (lambda model: model.nothing(), "AttributeError"),
    ],
)
def test_wrong_modes_are_wrong(answer, line, capsys):
    said = said_of(check_train_mode, answer, capsys)
    assert said.startswith("✗ Training mode: ")
    assert line in said


def test_no_mode_is_not_attempted(capsys):
    assert said_of(check_train_mode, lambda model: None, capsys) == "… Training mode: not attempted yet\n"

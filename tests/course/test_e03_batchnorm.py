"""Answers to the exercises of notebook 03, right and wrong, and what the checks say of them.

The wrong ones are: a setting that is PyTorch's, assumed or copied; a mode; a vector that is missing or exchanged; a
port that is right in inference only (folding); a variance corrected in the wrong part, by the wrong N, from no copy,
with momentum in Keras's sense, or not at all. Each natural mistake is told what it is.
"""

from course.exercises.e03_batchnorm import check_my_batchnorm, check_training_step

import pytest
import torch
from torch import nn

NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def right(layer, names=NAMES, dtype=torch.float64):
    module = nn.BatchNorm2d(layer.moving_mean.shape[0], layer.epsilon, 1 - layer.momentum, dtype=dtype)
    state = module.state_dict()
    for vector in layer.weights:
        state[names[vector.name]] = torch.tensor(vector.numpy())
    module.load_state_dict(state)
    return module.eval()


def not_affine(layer):
    module = nn.BatchNorm2d(4, layer.epsilon, 1 - layer.momentum, affine=False, dtype=torch.float64)
    module.running_mean.copy_(torch.tensor(layer.moving_mean.numpy()))
    module.running_var.copy_(torch.tensor(layer.moving_variance.numpy()))
    return module.eval()


def without_affine(layer):
    return right(layer) if layer.scale or layer.center else not_affine(layer)


def not_affine_if_one_is_missing(layer):
    return right(layer) if layer.scale and layer.center else not_affine(layer)


def by_position(layer):
    module = right(layer)
    state = nn.BatchNorm2d(4).state_dict()
    for name, vector in zip(NAMES.values(), layer.weights, strict=False):
        state[name] = torch.tensor(vector.numpy())
    module.load_state_dict(state)
    return module


def sevens_for_gamma(layer):
    module = right(layer)
    nn.init.constant_(module.weight, 7)
    return module


def in_a_sequential(layer):
    return nn.Sequential(right(layer)).eval()


def with_setting(name, value):
    def answer(layer):
        module = right(layer)
        setattr(module, name, value(layer))
        return module

    return answer


def folded(layer):
    module = right(layer)
    module.running_var += layer.epsilon - 1e-5
    module.eps = 1e-5
    return module


def folded_with_momentum_copied(layer):
    module = folded(layer)
    module.momentum = layer.momentum
    return module


def exchanged(layer):
    return right(layer, NAMES | {"beta": "running_mean", "moving_mean": "bias"})


def in_float32(layer):
    return right(layer, dtype=torch.float32)


def wrong_in_float32(layer):
    return exchanged(layer).float()


def no_gamma(layer):
    module = right(layer)
    nn.init.ones_(module.weight)
    return module


def forgotten_return(layer):
    right(layer)


@pytest.mark.parametrize("answer", [right, without_affine])
def test_any_layer_accepts(answer, capsys):
    check_my_batchnorm(answer)
    assert capsys.readouterr().out == "✓ Any layer: right; it equals Keras in all 9 cases\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            with_setting("eps", lambda _: 1e-5),
            "wrong for defaults (no settings): other numbers; eps is 1e-05, not 0.001",
        ),
        (
            with_setting("eps", lambda _: 1e-3),
            "right for defaults; wrong for epsilon (epsilon=1.001e-05): other numbers; eps is 0.001, not 1.001e-05",
        ),
        (with_setting("momentum", lambda layer: layer.momentum), "other numbers; momentum is 0.99, not 0.01"),
        (with_setting("momentum", lambda _: 0.01), "(momentum=0.9, 5 training steps): other numbers; momentum is 0.01"),
        (with_setting("momentum", lambda _: None), "other numbers; momentum is None, not 0.01"),
        (with_setting("training", lambda _: True), "the module is in train mode"),
        (
            folded,
            "right for defaults, epsilon, scale, center; wrong for training (no settings, 5 training steps): "
            "other numbers; eps is 1e-05, not 0.001 (folding the difference into running_var helps in inference only)",
        ),
        (folded_with_momentum_copied, "other numbers; momentum is 0.99, not 0.01"),
        (exchanged, "wrong for defaults (no settings): other numbers; bias is moving_mean, not beta"),
        (no_gamma, "wrong for defaults (no settings): other numbers; weight is 1, not gamma"),
        (sevens_for_gamma, "wrong for defaults (no settings): other numbers; weight is not gamma"),
        (not_affine_if_one_is_missing, "wrong for scale, center (scale=False): other numbers; bias is 0, not beta"),
        (by_position, "wrong for scale, center (scale=False): other numbers; weight is beta, not 1"),
        (in_float32, "right, but computed in float32"),
        (wrong_in_float32, "wrong for defaults (no settings): other numbers, by up to"),
        (lambda layer: layer.weights, "it returns list, not an nn.BatchNorm2d"),
        (in_a_sequential, "it returns Sequential, not an nn.BatchNorm2d"),
        (forgotten_return, "is a `return` missing?"),
    ],
)
def test_any_layer_refuses(answer, said, capsys):
    check_my_batchnorm(answer)
    line = capsys.readouterr().out
    assert line.startswith("✗ Any layer: ")
    assert said in line


def by_parts(module, x):
    old_part = (1 - module.momentum) * module.running_var
    y = module(x)
    n = x.numel() // x.shape[1]
    module.running_var = old_part + (module.running_var - old_part) * (n - 1) / n
    return y


def from_the_batch(module, x):
    old = module.running_var.clone()
    y = module(x)
    with torch.no_grad():
        module.running_var.copy_((1 - module.momentum) * old + module.momentum * x.var((0, 2, 3), correction=0))
    return y


def nothing(module, x):
    return module(x)


def everything(module, x):
    y = module(x)
    n = x.numel() // x.shape[1]
    module.running_var *= (n - 1) / n
    return y


def upside_down(module, x):
    old_part = (1 - module.momentum) * module.running_var
    y = module(x)
    n = x.numel() // x.shape[1]
    module.running_var = old_part + (module.running_var - old_part) * n / (n - 1)
    return y


def default_momentum(module, x):
    old_part = 0.99 * module.running_var
    y = module(x)
    n = x.numel() // x.shape[1]
    module.running_var = old_part + (module.running_var - old_part) * (n - 1) / n
    return y


def default_momentum_from_the_batch(module, x):
    old = module.running_var.clone()
    y = module(x)
    module.running_var = 0.99 * old + 0.01 * x.var((0, 2, 3), unbiased=False)
    return y


def one_n(module, x):
    """Take the N of the first batch for that of all."""
    old_part = (1 - module.momentum) * module.running_var
    y = module(x)
    module.running_var = old_part + (module.running_var - old_part) * 11 / 12
    return y


def without_clone(module, x):
    old = module.running_var
    y = module(x)
    n = x.numel() // x.shape[1]
    module.running_var = (1 - module.momentum) * old + (module.running_var - (1 - module.momentum) * old) * (n - 1) / n
    return y


def without_clone_from_the_batch(module, x):
    old = module.running_var
    y = module(x)
    module.running_var = (1 - module.momentum) * old + module.momentum * x.var((0, 2, 3), correction=0)
    return y


def images_counted(module, x):
    old_part = (1 - module.momentum) * module.running_var
    y = module(x)
    n = x.shape[0]
    module.running_var = old_part + (module.running_var - old_part) * (n - 1) / n
    return y


def all_of_old(module, x):
    old = module.running_var.clone()
    y = module(x)
    n = x.numel() // x.shape[1]
    module.running_var = old + (module.running_var - old) * (n - 1) / n
    return y


def momentum_of_keras(module, x):
    old_part = module.momentum * module.running_var
    y = module(x)
    n = x.numel() // x.shape[1]
    module.running_var = old_part + (module.running_var - old_part) * (n - 1) / n
    return y


def momentum_of_keras_from_the_batch(module, x):
    old = module.running_var.clone()
    y = module(x)
    module.running_var = module.momentum * old + (1 - module.momentum) * x.var((0, 2, 3), correction=0)
    return y


def wrong_output(module, x):
    by_parts(module, x)
    return module(x)


@pytest.mark.parametrize("answer", [by_parts, from_the_batch])
def test_training_step_accepts(answer, capsys):
    check_training_step(answer)
    assert capsys.readouterr().out == "✓ Training step: right; it equals Keras in all 4 cases\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (nothing, "running variance differs by up to 0.00098; the same as without a correction: it has no effect"),
        (everything, "running variance differs by up to 0.04; the old part must not change"),
        (upside_down, "the new part is too large in PyTorch, and this makes it larger"),
        (default_momentum, "right for one step, 20 steps; wrong for momentum (momentum=0.9, 5 steps)"),
        (default_momentum, "momentum is not always 0.01: take `module.momentum`"),
        (default_momentum_from_the_batch, "right for one step, 20 steps; wrong for momentum (momentum=0.9, 5 steps)"),
        (default_momentum_from_the_batch, "momentum is not always 0.01: take `module.momentum`"),
        (one_n, "right for one step; wrong for 20 steps (no settings, 20 steps): running variance differs"),
        (without_clone, "running variance differs by up to 0.00057; is `old` a copy?"),
        (without_clone_from_the_batch, "is `old` a copy?"),
        (images_counted, "N counts rows and columns, too, not only images"),
        (all_of_old, "the old part is (1 - momentum) * old, not all of `old`"),
        (momentum_of_keras, "in PyTorch, momentum is the share of the new"),
        (momentum_of_keras_from_the_batch, "in PyTorch, momentum is the share of the new"),
        (wrong_output, "running mean differs"),
        (lambda module, x: (module(x), 1), "it returns tuple, not a tensor"),
        (lambda module, x: print(end=""), "is a `return` missing?"),
    ],
)
def test_training_step_refuses(answer, said, capsys):
    check_training_step(answer)
    line = capsys.readouterr().out
    assert line.startswith("✗ Training step: ")
    assert said in line

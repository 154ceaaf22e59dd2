"""The exercises of notebook 12: a weighted loss, and training mode with frozen BatchNorm layers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from course.exercises.coarse import Coarse
from course.exercises.report import Case, is_empty, not_attempted, report
from parity import ParityError

import keras
import numpy as np
import tensorflow as tf
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def check_weighted_loss(answer: _Loss) -> None:
    """Check a loss of (outputs, labels, weights) against Keras's Huber, in its value and its gradients.

    The outputs are (batch, 1), the labels and the weights (batch,).
    """
    coarse = Coarse()
    report(
        "Weighted loss",
        {
            "weights of 1": _loss_cases(answer, coarse, [(1.0, 1.0, 1.0, 1.0, 1.0)]),
            "equal weights": _loss_cases(answer, coarse, [(2.0, 2.0, 2.0, 2.0, 2.0)]),
            "unequal weights": _loss_cases(answer, coarse, [(1.0, 3.0, 0.5, 1.0, 2.0), (0.0, 1.0, 4.0, 0.0, 7.0)]),
        },
        answer,
    )
    coarse.say()


def _loss_cases(answer: _Loss, coarse: Coarse, all_weights: list[tuple[float, ...]]) -> Iterator[Case]:
    for weights in all_weights:
        run = partial(_loss_case, answer, coarse, np.array(weights))
        yield f"weights {', '.join(f'{weight:g}' for weight in weights)}", run


def _loss_case(answer: _Loss, coarse: Coarse, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    rng = np.random.default_rng(0)
    # Errors on both sides of 1, where the loss turns from a parabola into a line.
    outputs, labels = 2 * rng.normal(size=(len(weights), 1)), rng.normal(size=len(weights))
    x = torch.tensor(outputs, requires_grad=True)
    loss = answer(x, torch.tensor(labels), torch.tensor(weights))
    if loss is None:
        return None
    if not isinstance(loss, Tensor):
        raise ParityError("loss", [f"the loss is a {type(loss).__name__}, not a tensor"])
    if loss.ndim:
        raise ParityError("loss", [f"the loss has the shape {tuple(loss.shape)}; it must be a single number"])
    if not loss.requires_grad:
        raise ParityError("loss", ["the loss has no gradient: it cannot be trained"])
    loss.backward()
    if x.grad is None:
        raise ParityError("loss", ["no gradient reaches the outputs"])
    expected = _keras_loss(outputs, labels, weights)
    if _is_broadcast(loss.item(), expected[-1], outputs, labels, weights):
        raise ParityError("loss", ["other numbers; are the shapes of outputs, labels and weights equal?"])
    return coarse.outputs(expected, np.append(x.grad.numpy(), loss.item()))


def _is_broadcast(found: float, expected: float, outputs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> bool:
    """Return whether a wrong loss is the mean over pairs that broadcasting made, for want of a second axis."""
    x, y, w = torch.tensor(outputs), torch.tensor(labels), torch.tensor(weights)
    one_by_one = F.huber_loss(x[:, 0], y, reduction="none")
    pairs = F.huber_loss(*torch.broadcast_tensors(x, y), reduction="none")
    means = [(w * pairs).mean(), (w[:, None] * pairs).mean(), (w * one_by_one[:, None]).mean()]
    return abs(found - expected) > 1e-6 and any(abs(found - float(mean)) < 1e-6 for mean in means)


def _keras_loss(outputs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Keras's gradients, flat, and behind them its loss."""
    x = tf.constant(outputs)
    loss = keras.losses.Huber(dtype="float64")
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(labels, x, sample_weight=weights)
    return np.append(tape.gradient(value, x).numpy(), value.numpy())


def check_train_mode(answer: Callable[[nn.Module], Any]) -> None:
    """Check a function that sets a model to training, but for the BatchNorm layers in it that are frozen.

    What counts is the mode of each module afterwards. The function may return the model, or nothing.
    """
    exercise = "Training mode"
    if is_empty(answer):
        not_attempted(exercise)
        return
    report(
        exercise,
        {
            "no frozen layer": [("all layers are trained", partial(_mode_case, answer, []))],
            "a frozen layer": [
                ("one BatchNorm of two", partial(_mode_case, answer, ["bn1"])),
                ("after an epoch of training", partial(_mode_case, answer, ["bn1"], epochs=2)),
            ],
            "a frozen layer inside another module": [
                ("in a block", partial(_mode_case, answer, ["block.1"])),
                ("all BatchNorm layers", partial(_mode_case, answer, ["bn1", "block.1"])),
            ],
            "a frozen layer that is no BatchNorm": [
                ("dropout and a convolution are in training", partial(_mode_case, answer, ["conv", "bn1"])),
            ],
        },
        answer,
        finding="each module is in the right mode",
    )


def _mode_case(answer: Callable[[nn.Module], Any], frozen: list[str], epochs: int = 1) -> tuple[Any, Any]:
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 2, 3))
    model.add_module("bn1", nn.BatchNorm2d(2))
    model.add_module("drop", nn.Dropout(0.5))
    model.add_module("block", nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)))
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    model.eval()
    for _ in range(epochs):
        returned = answer(model)
    if isinstance(returned, nn.Module) and returned is not model:
        raise ParityError("answer", ["it returns another module than the one that it was given"])
    if [parameter.requires_grad for parameter in model.parameters()] != trained:
        raise ParityError("answer", ["it changes which parameters require a gradient; only the modes are asked for"])
    for name, module in model.named_modules():
        due = not (name in frozen and isinstance(module, nn.BatchNorm2d))
        if module.training != due:
            words = {True: "in training", False: "as at inference"}
            label = f"{type(module).__name__} {name}" if name else "the model itself"
            raise ParityError("answer", [f"{label} runs {words[module.training]}, and should run {words[due]}"])
    return np.ones(1), np.ones(1)

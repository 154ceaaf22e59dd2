"""The exercises of notebook 12: a weighted loss and decoupled decay."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from course.exercises.report import Case, report
from parity import ParityError

import keras
import numpy as np
import tensorflow as tf
import torch
from torch import Tensor

_Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
_Optimizer = Callable[[Iterable[Tensor], float, float, float], torch.optim.Optimizer]


def check_class_weights(answer: _Loss) -> None:
    """Check a loss of (logits, labels, weights) against Keras's, in its value and its gradients.

    The logits are (batch, classes), the labels (batch,) and integers, and weights has a number for each class.
    """
    report(
        "Class weights",
        {
            "equal weights": _loss_cases(answer, [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]),
            "unequal weights": _loss_cases(answer, [(1.0, 3.0, 0.5), (0.0, 1.0, 4.0)]),
        },
        answer,
    )


def check_decoupled_decay(answer: _Optimizer) -> None:
    """Check a function of (parameters, rate, momentum, decay) that returns a PyTorch optimizer.

    It must train as keras.optimizers.SGD(rate, momentum=momentum, weight_decay=decay) does, its rate constant.
    """
    report(
        "Decoupled decay",
        {
            "no momentum": _decay_cases(answer, [(0.125, 0.0, 0.25, 5)]),
            "momentum": _decay_cases(answer, [(0.125, 0.875, 0.25, 20), (0.0625, 0.5, 1.0, 20)]),
            "no decay": _decay_cases(answer, [(0.125, 0.875, 0.0, 20)]),
        },
        answer,
    )


def _loss_cases(answer: _Loss, all_weights: list[tuple[float, ...]]) -> Iterator[Case]:
    for weights in all_weights:
        yield f"weights {', '.join(f'{w:g}' for w in weights)}", partial(_loss_case, answer, np.array(weights))


def _loss_case(answer: _Loss, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    logits = 2 * np.random.default_rng(0).normal(size=(7, 3))
    labels = np.array([0, 1, 1, 2, 0, 1, 2])
    x = torch.tensor(logits, requires_grad=True)
    loss = answer(x, torch.tensor(labels), torch.tensor(weights))
    if loss is None:
        return None
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        raise ParityError("loss", ["the loss must be one number, a tensor with a gradient"])
    loss.backward()
    return _keras_loss(logits, labels, weights), np.append(x.grad.numpy(), loss.item())


def _keras_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Keras's gradients, flat, and behind them its loss."""
    x = tf.constant(logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(labels, x, sample_weight=weights[labels])
    return np.append(tape.gradient(value, x).numpy(), value.numpy())


def _decay_cases(answer: _Optimizer, settings: list[tuple[float, float, float, int]]) -> Iterator[Case]:
    for rate, momentum, decay, steps in settings:
        words = f"rate {rate:g}, momentum {momentum:g}, decay {decay:g}, {steps} step{'s' * (steps > 1)}"
        yield words, partial(_decay_case, answer, rate, momentum, decay, steps)


def _decay_case(
    answer: _Optimizer, rate: float, momentum: float, decay: float, steps: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Train two weights of different shapes on a bowl whose bottom is at 1; return them after each step, joined."""
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=(2, 3)), rng.normal(size=4)]
    slopes = [rng.uniform(0.5, 2, start.shape) for start in starts]
    parameters = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    optimizer = answer(parameters, rate, momentum, decay)
    if optimizer is None:
        return None
    keras_optimizer = keras.optimizers.SGD(rate, momentum=momentum, weight_decay=decay)
    variables = [keras.Variable(start, dtype="float64") for start in starts]
    expected, found = [], []
    for _ in range(steps):
        gradients = [slope * (variable - 1) for slope, variable in zip(slopes, variables, strict=True)]
        keras_optimizer.apply(gradients, variables)
        expected += [variable.numpy().ravel() for variable in variables]
        for slope, parameter in zip(slopes, parameters, strict=True):
            parameter.grad = torch.tensor(slope) * (parameter.detach() - 1)
        optimizer.step()
        found += [parameter.detach().numpy().ravel().copy() for parameter in parameters]
    return np.concatenate(expected), np.concatenate(found)

"""The exercises of notebook 13: a velocity for PyTorch, and decoupled decay."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from course.exercises.coarse import Coarse
from course.exercises.report import Case, report
from parity import ParityError

import keras
import numpy as np
import torch
from torch import Tensor

_Optimizer = Callable[[Iterable[Tensor], float, float, float], torch.optim.Optimizer]


def check_velocity(answer: Callable[[Tensor, float], Tensor]) -> None:
    """Check a function of (velocity, rate): Keras's velocity, turned into PyTorch's momentum_buffer.

    A training that Keras begins and PyTorch goes on with must be the one that Keras alone would have done.
    """
    coarse = Coarse()
    report(
        "Velocity",
        {
            "a rate of 1": _velocity_cases(answer, coarse, [(1.0, 0.5)]),
            "other rates": _velocity_cases(answer, coarse, [(0.125, 0.875), (0.25, 0.5)]),
        },
        answer,
    )
    coarse.say()


def check_decoupled_decay(answer: _Optimizer) -> None:
    """Check a function of (parameters, rate, momentum, decay) that returns a PyTorch optimizer.

    It must train as keras.optimizers.SGD(rate, momentum=momentum, weight_decay=decay) does. Its decay must follow when
    a schedule changes the rate; that is tried without momentum, where no velocity has to be scaled.
    """
    report(
        "Decoupled decay",
        {
            "no momentum": _decay_cases(answer, [(0.125, 0.0, 0.25, 5)]),
            "momentum": _decay_cases(answer, [(0.125, 0.875, 0.25, 20), (0.0625, 0.5, 1.0, 20)]),
            "no decay": _decay_cases(answer, [(0.125, 0.875, 0.0, 20)]),
            "a rate that changes": [("rate 0.125, then 0.5", partial(_decay_case, answer, (0.125, 0.5), 0.0, 0.25, 5))],
        },
        answer,
    )


class _Bowls:
    """Two weights of different shapes, each on a bowl whose bottom is at 1."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.starts = [rng.normal(size=(2, 3)), rng.normal(size=4)]
        self.slopes = [rng.uniform(0.125, 0.5, start.shape) for start in self.starts]

    def train_keras(
        self, optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable], steps: int
    ) -> np.ndarray:
        """Return both weights after each step, joined."""
        path = []
        for _ in range(steps):
            gradients = [slope * (variable - 1) for slope, variable in zip(self.slopes, variables, strict=True)]
            optimizer.apply(gradients, variables)
            path += [variable.numpy().ravel() for variable in variables]
        return np.concatenate(path)

    def train_torch(self, optimizer: Any, parameters: list[torch.nn.Parameter], steps: int) -> np.ndarray:
        """Return both weights after each step, joined."""
        path = []
        for _ in range(steps):
            for slope, parameter in zip(self.slopes, parameters, strict=True):
                parameter.grad = torch.tensor(slope) * (parameter.detach() - 1)
            optimizer.step()
            path += [parameter.detach().numpy().ravel().copy() for parameter in parameters]
        return np.concatenate(path)


def _velocity_cases(answer: Callable, coarse: Coarse, settings: list[tuple[float, float]]) -> Iterator[Case]:
    for rate, momentum in settings:
        yield f"rate {rate:g}, momentum {momentum:g}", partial(_velocity_case, answer, coarse, rate, momentum)


def _velocity_case(
    answer: Callable, coarse: Coarse, rate: float, momentum: float
) -> tuple[np.ndarray, np.ndarray] | None:
    bowls = _Bowls()
    keras_optimizer = keras.optimizers.SGD(rate, momentum=momentum)
    variables = [keras.Variable(start, dtype="float64") for start in bowls.starts]
    bowls.train_keras(keras_optimizer, variables, 3)
    parameters = [torch.nn.Parameter(torch.tensor(variable.numpy())) for variable in variables]
    optimizer = torch.optim.SGD(parameters, rate, momentum=momentum)
    for parameter, velocity in zip(parameters, keras_optimizer.momentums, strict=True):
        buffer = answer(torch.tensor(velocity.numpy()), rate)
        if buffer is None:
            return None
        found = optimizer.state[parameter]["momentum_buffer"] = _as_buffer(buffer, velocity.numpy())
        # The rate of each old step is in Keras's velocity: it must be taken out, neither left in nor put in again.
        for power in (0, 1):
            if rate != 1 and np.allclose(found, -velocity.numpy() * rate**power, rtol=1e-6, atol=0):
                raise ParityError("answer", ["other numbers; is the rate still in it?"])
    expected = bowls.train_keras(keras_optimizer, variables, 3)
    return coarse.outputs(expected, bowls.train_torch(optimizer, parameters, 3))


def _as_buffer(buffer: Any, velocity: np.ndarray) -> Tensor:
    try:
        found = torch.as_tensor(buffer, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise ParityError("answer", [f"it returns a {type(buffer).__name__}, not a tensor"]) from None
    if found.shape != velocity.shape:
        raise ParityError("answer", [f"its shape is {tuple(found.shape)}, that of the velocity {velocity.shape}"])
    # With a velocity of the wrong sign the weights would go back where they came from.
    if torch.sign(found).equal(torch.sign(torch.tensor(velocity))):
        raise ParityError("answer", ["it has the sign of Keras's velocity; look at the signs in both formulas"])
    return found


def _decay_cases(answer: _Optimizer, settings: list[tuple[float, float, float, int]]) -> Iterator[Case]:
    for rate, momentum, decay, steps in settings:
        words = f"rate {rate:g}, momentum {momentum:g}, decay {decay:g}, {steps} step{'s' * (steps > 1)}"
        yield words, partial(_decay_case, answer, (rate,), momentum, decay, steps)


def _decay_case(
    answer: _Optimizer, rates: tuple[float, ...], momentum: float, decay: float, steps: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Train as many steps with each rate, one after another; return Keras's path and the answer's."""
    rate, *later_rates = rates
    bowls = _Bowls()
    parameters = [torch.nn.Parameter(torch.tensor(start)) for start in bowls.starts]
    optimizer = answer(parameters, rate, momentum, decay)
    if optimizer is None:
        return None
    if not callable(getattr(optimizer, "step", None)):
        raise ParityError("answer", [f"it returns a {type(optimizer).__name__}, not an optimizer"])
    try:
        found = bowls.train_torch(optimizer, parameters, steps)
        for later_rate in later_rates:
            for group in optimizer.param_groups:
                group["lr"] = later_rate
            found = np.append(found, bowls.train_torch(optimizer, parameters, steps))
    except RuntimeError as error:
        # PyTorch's own words have the address of a function in them.
        if "must return None" in str(error):
            raise ParityError("answer", ["a hook returns something; PyTorch wants it to return nothing"]) from None
        raise

    def by_keras(decay: float) -> np.ndarray:
        variables = [keras.Variable(start, dtype="float64") for start in bowls.starts]
        keras_optimizer = keras.optimizers.SGD(rate, momentum=momentum, weight_decay=decay)
        path = bowls.train_keras(keras_optimizer, variables, steps)
        for later_rate in later_rates:
            keras_optimizer.learning_rate = later_rate
            path = np.append(path, bowls.train_keras(keras_optimizer, variables, steps))
        return path

    if decay and np.abs(found - by_keras(0.0)).max() < 1e-12:
        raise ParityError("answer", ["the decay has no effect: it trains as without"])
    return by_keras(decay), found

"""The exercises of notebook 11: a check that lets no mistake through, and mistakes that one of two checks misses."""

import copy
from collections.abc import Callable
from functools import cache
from textwrap import shorten
from typing import Any, NoReturn

from course.exercises.report import in_words, is_empty, is_right, not_attempted, wrong
from course.mutants import MUTANTS, Mutant, load_network
from course.mutants.bench import Pair
from course.mutants.tools import another_forward
from parity import channels_last
from parity.padding import MaxPool2dSame, pad_same

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL = ("encoder", "dense", "residual", "pooling", "flat", "heads", "nested")


def check_my_check(answer: Callable[[Pair, nn.Module], bool]) -> None:
    """Check a function of (pair, port): it must pass right ports and catch mistakes that show when a port predicts.

    It is tried on the right ports of seven small networks, and on all their mutants but those that show in training
    only, and on one more, which only negative numbers at another size bring out. A mutant at which it raises an error
    is caught.
    """
    pairs = _pairs()
    mutants = [m for m in MUTANTS if m.network in pairs and m.shows != "training"]
    mutants.append(_NEW)

    def says(pair: Pair, port: nn.Module) -> Any:
        said = answer(pair, port)
        return bool(said) if isinstance(said, np.bool_ | torch.Tensor) and said.ndim == 0 else said

    for name, pair in pairs.items():
        try:
            said = says(pair, pair.right())
        except Exception as error:
            wrong("My check", f"wrong; the right port of {name} must pass, and your check stops: {in_words(error)}")
            return
        if said is None:
            if is_empty(answer):
                not_attempted("My check")
            else:
                wrong("My check", "wrong; it returned None; is a `return` missing?")
            return
        if not isinstance(said, bool):
            wrong("My check", f"wrong; for the right port of {name} it returned {_short(said)}: return True or False")
            return
        if not said:
            wrong(
                "My check", f"wrong; it refuses the right port of {name}: your check says {said} where it must say True"
            )
            return
    through = []
    for mutant in mutants:
        pair = pairs[mutant.network]
        try:
            said = says(pair, mutant.plant(pair.right()))
        except Exception:
            continue
        which = f"{mutant.network}: {mutant.name}"
        if not isinstance(said, bool):
            wrong("My check", f"wrong; for {which} it returned {_short(said)}: return True or False")
            return
        if said:
            through.append(which)
    if through:
        wrong("My check", f"wrong; it lets {len(through)} of {len(mutants)} mutants through, the first is {through[0]}")
    else:
        is_right("My check", f"it passes {len(pairs)} right ports and catches all {len(mutants)} mutants")


def check_hides_from_noise(answer: Callable[[nn.Module], nn.Module]) -> None:
    """Check a mistake in the port of "encoder": the noise image must pass it, and the training step catch it."""
    _check_hides("My mistake", answer, passing="noise image", catching="training step")


def check_hides_from_training(answer: Callable[[nn.Module], nn.Module]) -> None:
    """Check a mistake in the port of "encoder": the training step must pass it, and the noise image catch it."""
    _check_hides("My other mistake", answer, passing="training step", catching="noise image")


def _check_hides(exercise: str, answer: Callable[[nn.Module], nn.Module], passing: str, catching: str) -> None:
    """Check a mistake that one of the two checks must pass, and the other one catch."""
    judged = _judged(exercise, answer)
    if judged is None:
        return
    difference, different = judged
    found = {"noise image": difference or "", "training step": _listed(different) if different else ""}
    if found[passing] and found[catching]:
        wrong(exercise, f"wrong; the {catching} catches it, but so does the {passing}: {found[passing]}")
    elif found[passing]:
        wrong(exercise, f"wrong; it is the other way round, for the {passing} catches it: {found[passing]}")
    elif found[catching]:
        is_right(exercise, f"the {passing} passes it, and the {catching} catches it: {found[catching]}")
    else:
        wrong(exercise, f"wrong; the {passing} passes it, but the {catching} passes it, too")


def _judged(exercise: str, answer: Callable) -> tuple[str | None, list[str]] | None:
    """Return what the noise image and the training step find in a port that was changed; None if there is no such port.

    Each of the two tries a port of its own: a port that is in training mode changes while it runs.
    """
    pair = _pairs()["encoder"]

    def changed() -> nn.Module:
        port = pair.right()
        said = answer(port)
        return port if said is None else said

    try:
        port, another = changed(), changed()
    except Exception as error:
        wrong(exercise, f"wrong; your function stops: {in_words(error)}")
        return None
    if is_empty(answer):
        not_attempted(exercise)
        return None
    if another is port:
        another = copy.deepcopy(port)
    if not isinstance(port, nn.Module):
        wrong(exercise, f"wrong; it returned {_short(port)}: return the port")
        return None
    try:
        difference = _seen_by_noise(pair, port)
        step, expected = _training_step(pair, another), _training_step(pair, pair.right())
    except Exception as error:
        wrong(exercise, f"wrong; the port must still run, and it stops: {in_words(error)}")
        return None
    different = _different(step, expected)
    if difference is None and different and _same_numbers(step, expected):
        wrong(exercise, f"wrong; the port computes the same as before, only names changed: {_listed(different)}")
        return None
    return difference, different


def _seen_by_noise(pair: Pair, port: nn.Module) -> str | None:
    """Return in words what the noise image of the page finds, or None."""
    keras_outputs, torch_outputs = pair.both(port)
    if [y.shape for y in keras_outputs] != [y.shape for y in torch_outputs]:
        return f"the outputs have the shapes {[y.shape for y in torch_outputs]}"
    for a, b in zip(keras_outputs, torch_outputs, strict=True):
        if not np.allclose(b, a, atol=1e-4):
            return f"the outputs differ by up to {np.abs(a - b).max():.2g}"
    return None


def _training_step(pair: Pair, port: nn.Module) -> dict[str, np.ndarray]:
    """Return what the training step of the page compares. A right port has the numbers of Keras in all of it."""
    port.double().train()
    rates = []
    for module in port.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            rates.append(module.p)
            module.p = 0.0
    made = {"dropout rates": np.sort([rate for rate in rates if rate > 0])}
    y = port(*pair.torch_inputs("images"))
    outputs = [channels_last(output) for output in (y if isinstance(y, list | tuple) else (y,))]
    loss = torch.zeros(())
    for number, output in enumerate(outputs):
        made[f"output {number}"] = output.detach().numpy()
        loss = loss + (output * torch.tensor(np.random.default_rng(number).normal(size=output.shape))).sum()
    if loss.requires_grad:
        loss.backward()
    for name, parameter in port.named_parameters():
        if parameter.grad is not None:
            made[f"gradient {name}"] = parameter.grad.numpy()
    return made | {name: x.numpy() for name, x in port.named_buffers() if name.endswith("running_mean")}


def _different(step: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[str]:
    """Return the names of what differs; like the page, without the gradients of parameters that Keras does not have."""
    scale = max(np.abs(value).max(initial=0) for value in expected.values())
    names = [*expected, *(name for name in step if name not in expected and not name.startswith("gradient"))]
    return [name for name in names if not _near(step.get(name), expected.get(name), scale)]


def _same_numbers(step: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Tell whether two steps have the same numbers in the same order, whatever their names."""
    scale = max(np.abs(value).max(initial=0) for value in expected.values())
    pairs = zip(step.values(), expected.values(), strict=False)
    return len(step) == len(expected) and all(_near(a, b, scale) for a, b in pairs)


def _near(a: np.ndarray | None, b: np.ndarray | None, scale: float) -> bool:
    if a is None or b is None or a.shape != b.shape:
        return False
    return bool(np.abs(a - b).max(initial=0) <= 1e-6 * scale)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


@cache
def _pairs() -> dict[str, Pair]:
    """Return the small networks, which keep what Keras returned, for all checks of this process."""
    pairs = {name: Pair(load_network(name)) for name in _SMALL}
    for pair in pairs.values():
        pair.trace = _no_trace
    return pairs


def _padded_with_zeros_at_other_sizes(port: nn.Module) -> nn.Module:
    """Let the max pooling choose an added zero, but only where height or width is even."""
    assert isinstance(port.largest, MaxPool2dSame)
    right = port.largest.forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if x.shape[2] % 2 and x.shape[3] % 2:
            return right(x)
        return F.max_pool2d(pad_same(x, (3, 3), (2, 2), (1, 1)), 3, 2)

    another_forward(port.largest, forward)
    return port


# A check with negative numbers, and another one at other sizes, let it through between them.
_NEW = Mutant(
    "largest: padded with zeros at even sizes",
    "pooling",
    _padded_with_zeros_at_other_sizes,
    frozenset({"largest"}),
    "padding value",
    "negative inputs",
)


def _no_trace(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError("this exercise is about a check without the trace")


def _short(value: Any) -> str:
    return shorten(str(value), width=80, placeholder=" …")

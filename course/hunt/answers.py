"""Hints, and the checks of what a learner found and fixed."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

from course.exercises.report import Case, is_empty, is_right, not_attempted, report, say, wrong
from course.hunt.drawing import broken_port, keras_side, mistakes
from course.mutants import Mutant, load_network
from parity import CAUSES, ParityError, first_divergence, run_torch, trace

import keras
import numpy as np
import torch
from torch import nn

# Two names of one thing: that of the pair of layers, and that of each of them.
_ALIKE = {"heads exchanged", "weights of another layer"}

_SHOWS = {
    "always": "at every size",
    "other size": "at some sizes of the input, and not at others",
    "negative inputs": "if there are negative numbers where the mistake is",
}


def hint(seed: int, number: int = 1) -> None:
    """Print a hint: 1 says how many mistakes there are, 2 where they are, 3 what they are.

    Args:
        seed: The seed of the hunt.
        number: Which hint.

    Raises:
        ParityError: There is no such seed, or no such hint.
    """
    planted = mistakes(seed)
    if number == 1:
        count = "is 1 mistake" if len(planted) == 1 else f"are {len(planted)} mistakes"
        say(f"Hint 1: there {count}.")
        for shows, several in Counter(mistake.shows for mistake in planted).items():
            say(f"  {several} can be seen {_SHOWS[shows]}.")
    elif number == 2:
        say("Hint 2: the layers are")
        for mistake in planted:
            say(f"  {' or '.join(sorted(mistake.layers))}")
    elif number == 3:
        say("Hint 3: the mistakes are")
        for mistake in planted:
            say(f"  {' or '.join(sorted(mistake.layers))}: {mistake.cause} ({_explained(mistake)})")
    else:
        raise ParityError("hunt", [f"there is no hint {number}; take 1, 2 or 3"])


def check_found(seed: int, found: Mapping[str, str]) -> None:
    """Say of each mistake that a learner names whether it is one, and how many are left.

    Args:
        seed: The seed of the hunt.
        found: By name of a Keras layer, the cause; one of ``parity.CAUSES``.
    """
    if not found:
        not_attempted("Found")
        return
    left, done = list(mistakes(seed)), []
    layers = [layer.name for layer in _all_layers(keras_side(seed)[0])]
    explained, problems = [], []
    for layer, cause in found.items():
        here = [mistake for mistake in left if mistake.accepts(layer)]
        same = [mistake for mistake in here if _means(mistake, cause)]
        if same:
            left.remove(same[0])
            done.append(same[0])
            explained.append(f"  {layer}: {cause}, which means here: {same[0].name} ({_explained(same[0])})")
        elif any(mistake.accepts(layer) and _means(mistake, cause) for mistake in done):
            explained.append(f"  {layer}: the other side of the same mistake")
        elif layer.split("/")[-1].split(" ")[0] not in layers:
            problems.append(f"the Keras model has no layer {layer!r}; its layers are {', '.join(layers)}")
        elif cause not in CAUSES:
            problems.append(f"{cause!r} is not in the list of causes")
        elif here:
            problems.append(f"there is a mistake at {layer}, and it is not {cause!r}")
        else:
            problems.append(f"there is no mistake at {layer}, or its place is another")
    for problem in problems:
        wrong("Found", problem)
    if left and not problems:
        more = "1 more mistake" if len(left) == 1 else f"{len(left)} more mistakes"
        wrong("Found", f"right so far, and there {'is' if len(left) == 1 else 'are'} {more}")
    if not left and not problems:
        is_right("Found", "these are all mistakes")
    for line in explained:
        say(line)


def check_fixed(seed: int, answer: Callable[[nn.Module], nn.Module | None]) -> None:
    """Check a function that fixes the port of a seed and returns it, or fixes it in place and returns None.

    The fixed port is traced at every size, with small and with large numbers of both signs. Every layer has to agree,
    and so have the outputs.
    """
    network = load_network(mistakes(seed)[0].network)
    fixed = cache(partial(_fixed, seed, answer))
    groups = {f"size {size}": _cases(seed, size, fixed) for size in range(len(network.probes))}
    report("Fixed", groups, answer, "every layer agrees with Keras", within=network.within)


def _means(mistake: Mutant, cause: str) -> bool:
    """Tell whether a learner's word for a mistake is right."""
    return mistake.cause == cause or {mistake.cause, cause} <= _ALIKE


def _explained(mistake: Mutant) -> str:
    """Return where a mistake is explained."""
    where = CAUSES[mistake.cause]
    return f"page {where}" if where.isdigit() else f"the {where}"


def _all_layers(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _all_layers(layer)
        else:
            yield layer


def _fixed(seed: int, answer: Callable[[nn.Module], nn.Module | None]) -> nn.Module | None:
    """Return the port that an answer has fixed; None if there is nothing in the answer yet."""
    port = broken_port(seed)
    returned = answer(port)
    if returned is None:
        return None if is_empty(answer) else port
    if not isinstance(returned, nn.Module):
        raise ParityError("port", [f"it returned {type(returned).__name__}, not the port; return the port, or nothing"])
    return returned


def _cases(seed: int, size: int, fixed: Callable[[], nn.Module | None]) -> Iterator[Case]:
    for words, scale in (("small numbers", 0.1), ("numbers about 1", 1.0), ("large numbers", 5.0)):
        yield words, partial(_compared, seed, size, scale, fixed)


def _compared(
    seed: int, size: int, scale: float, fixed: Callable[[], nn.Module | None]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the outputs of the Keras model and of the fixed port."""
    port = fixed()
    if port is None:
        return None
    gone = sorted(set(load_network(mistakes(seed)[0].network).mapping.torch) - port.state_dict().keys())
    if gone:
        raise ParityError("port", [f"it has no {gone[0]} any more; put the new module where the old one was"])
    if any(parameter.dtype == torch.float32 for parameter in port.parameters()):
        raise ParityError("port", ["a module of the port computes in float32, the port in float64; try .double()"])
    model, x, mapping = keras_side(seed, size)
    inputs = [_scaled(array, scale) for array in x] if isinstance(x, list) else _scaled(x, scale)
    divergence = first_divergence(trace(model, port, inputs, mapping))
    if divergence is not None:
        raise ParityError("port", [str(divergence)])
    return _in_one_row(model(inputs, training=False)), _in_one_row(run_torch(port, inputs))


def _scaled(array: np.ndarray, scale: float) -> np.ndarray:
    """Return larger or smaller numbers; words of a vocabulary stay what they are."""
    return array * scale if array.dtype.kind == "f" else array


def _in_one_row(outputs: object) -> np.ndarray:
    """Return all numbers of an output, or of several: the trace has compared the shapes."""
    several = outputs if isinstance(outputs, list | tuple) else [outputs]
    return np.concatenate([np.asarray(output).ravel() for output in several])

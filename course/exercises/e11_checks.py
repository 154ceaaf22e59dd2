"""The exercises of notebook 11: a check that lets no mistake through, and the causes that inference cannot show."""

from collections.abc import Callable, Iterable
from functools import cache
from textwrap import shorten
from typing import Any, NoReturn

from course.exercises.report import in_words, is_empty, is_right, not_attempted, wrong
from course.mutants import CAUSES, MUTANTS, load_network
from course.mutants.bench import Pair

import numpy as np
import torch
from torch import nn

_SMALL = ("encoder", "dense", "residual", "pooling", "flat", "heads", "nested")


def check_my_check(answer: Callable[[Pair, nn.Module], bool]) -> None:
    """Check a function of (pair, port): it must pass right ports and catch mistakes that show when a port predicts.

    It is tried on the right ports of seven small networks, and on all their mutants but those that show in training
    only. A mutant at which it raises an error is caught.
    """
    pairs = _pairs()
    mutants = [m for m in MUTANTS if m.network in pairs and m.shows != "training"]

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


def check_causes_of_training(answer: Iterable[str] | None) -> None:
    """Check a set of causes: those of which no mutant changes an output at inference."""
    if answer is None:
        not_attempted("Causes")
        return
    try:
        named = {answer} if isinstance(answer, str) else set(map(str, answer))
    except TypeError:
        wrong("Causes", "wrong; answer with a set of names")
        return
    unknown = sorted(named - set(CAUSES))
    if unknown:
        wrong("Causes", f"wrong; not among the causes: {_short(', '.join(unknown))}")
        return
    shown, hidden = _shown_and_hidden()
    for cause in sorted(named - hidden):
        wrong("Causes", f"wrong; {cause} changes outputs at inference")
        return
    if named != hidden:
        wrong("Causes", f"wrong; {len(hidden - named)} more cannot be seen at inference")
    else:
        is_right("Causes", f"the other {len(shown)} causes show at inference")


@cache
def _pairs() -> dict[str, Pair]:
    """Return the small networks, which keep what Keras returned, for all checks of this process."""
    pairs = {name: Pair(load_network(name)) for name in _SMALL}
    for pair in pairs.values():
        pair.trace = _no_trace
    return pairs


def _no_trace(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError("this exercise is about a check without the trace")


def _short(value: Any) -> str:
    return shorten(str(value), width=80, placeholder=" …")


@cache
def _shown_and_hidden() -> tuple[set[str], set[str]]:
    """Return the causes that change an output at inference, and those that do not."""
    pairs = _pairs()
    mutants = [m for m in MUTANTS if m.network in pairs]
    shown = {m.cause for m in mutants if _shows(pairs[m.network], m.plant(pairs[m.network].right()))}
    # Of the slow networks, what their mutants say of themselves, which the tests hold, is taken for true.
    shown |= {m.cause for m in MUTANTS if m.network not in pairs and m.shows != "training"}
    return shown, {m.cause for m in mutants} - shown


def _shows(pair: Pair, port: Any) -> bool:
    """Tell whether a port's outputs differ from Keras's by more than rounding at any size."""
    for size in pair.sizes:
        for a, b in zip(*pair.both(port, "images", size, exact=True), strict=True):
            if not np.abs(a - b).max() <= 1e-6 * np.abs(a).max():
                return True
    return False

"""The exercises of notebook 10: a check that lets no mistake through, and the causes that inference cannot show."""

from collections.abc import Callable, Iterable
from typing import Any

from parity.exercises.mutants import Pair, load_mutants, passes
from parity.exercises.report import in_words

import numpy as np
from torch import nn

_SMALL = ("encoder", "dense", "residual", "pooling", "flat", "heads", "nested")


def check_my_check(answer: Callable[[Pair, nn.Module], bool]) -> None:
    """Check a function of (pair, port): it must pass right ports and catch mistakes that show when a port predicts.

    It is tried on the right ports of seven small networks, and on all their mutants but those that show in training
    only. A mutant at which it raises an error is caught.
    """
    library = load_mutants()
    pairs = {name: Pair(library.networks()[name]) for name in _SMALL}
    for name, pair in pairs.items():
        try:
            said = answer(pair, pair.right())
        except Exception as error:
            said = in_words(error)
        if said is None and name == _SMALL[0]:
            print("My check: not attempted yet")
            return
        if not isinstance(said, bool | np.bool_) or not said:
            print(f"My check: wrong; the right port of {name} must pass: {said}, not True")
            return
    mutants = [m for m in library.MUTANTS if m.network in pairs and m.shows != "training"]
    through = [m for m in mutants if passes(answer, pairs[m.network], m.plant(pairs[m.network].right()))]
    if through:
        which = f"{through[0].network}: {through[0].name}"
        print(f"My check: wrong; it lets {len(through)} of {len(mutants)} mutants through, the first is {which}")
    else:
        print(f"My check: right; it passes {len(pairs)} right ports and catches all {len(mutants)} mutants")


def check_causes_of_training(answer: Iterable[str] | None) -> None:
    """Check a set of causes: those of which no mutant changes an output at inference."""
    if answer is None:
        print("Causes: not attempted yet")
        return
    library = load_mutants()
    named = set(map(str, answer if isinstance(answer, set | frozenset | list | tuple) else [answer]))
    unknown = sorted(named - set(library.CAUSES))
    if unknown:
        print(f"Causes: wrong; not among the causes: {', '.join(unknown)}")
        return
    pairs = {name: Pair(library.networks()[name]) for name in _SMALL}
    mutants = [m for m in library.MUTANTS if m.network in pairs]
    shown = {m.cause for m in mutants if _shows(pairs[m.network], m.plant(pairs[m.network].right()))}
    # Of the slow networks, what the tests say is taken for true.
    shown |= {m.cause for m in library.MUTANTS if m.network not in pairs and m.shows != "training"}
    hidden = {m.cause for m in mutants} - shown
    for cause in sorted(named - hidden):
        print(f"Causes: wrong; {cause} changes outputs at inference")
        return
    if named != hidden:
        print(f"Causes: wrong; {len(hidden - named)} more cannot be seen at inference")
    else:
        print(f"Causes: right; the other {len(shown)} causes show at inference")


def _shows(pair: Pair, port: Any) -> bool:
    """Tell whether a port's outputs differ from Keras's by more than rounding at any size."""
    for size in pair.sizes:
        for a, b in zip(*pair.both(port, "images", size, exact=True), strict=True):
            if not np.abs(a - b).max() <= 1e-6 * np.abs(a).max():
                return True
    return False

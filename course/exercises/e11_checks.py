"""The exercise of notebook 11: a check that lets no mistake through."""

from collections.abc import Callable
from functools import cache
from textwrap import shorten
from typing import Any, NoReturn

from course.exercises.report import in_words, is_empty, is_right, not_attempted, wrong
from course.mutants import MUTANTS, Mutant, load_network
from course.mutants.bench import Pair
from course.mutants.tools import another_forward
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

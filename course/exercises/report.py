"""Run the cases of an exercise and print one line: not attempted yet, what is still wrong, or right."""

from collections.abc import Callable, Iterable
from textwrap import shorten
from typing import Any

from parity import ParityError, largest_difference

# A group of cases that share a trait ("even sizes"): for each, its arguments in words, and what runs it and returns
# the outputs of Keras and of the answer, or None for an answer that returned None.
Case = tuple[str, Callable[[], tuple[Any, Any] | None]]

_NONE = "it returned None"


def report(exercise: str, groups: dict[str, Iterable[Case]]) -> None:
    """Run all cases; print what is right, and the first that is not."""
    right, count = [], 0
    for trait, cases in groups.items():
        for case, run in cases:
            problem = _problem(run)
            if problem == _NONE and not count:
                print(f"{exercise}: not attempted yet")
                return
            if problem:
                so_far = f"right for {', '.join(right)}; " if right else ""
                print(f"{exercise}: {so_far}wrong for {trait} ({case}): {problem}")
                return
            count += 1
        right.append(trait)
    print(f"{exercise}: right; it equals Keras" + (f" in all {count} cases" if count > 1 else ""))


def in_words(error: Exception) -> str:
    """Return the kind of an error and its message in one line, shortened; the message may be empty."""
    return shorten(f"{type(error).__name__}: {error}".removesuffix(": "), width=250, placeholder=" …")


def _problem(run: Callable[[], tuple[Any, Any] | None]) -> str:
    """Return what is wrong with one case, or nothing. A mistake of the reader must not stop the notebook."""
    try:
        outputs = run()
        if outputs is None:
            return _NONE
        difference = largest_difference(*outputs)
    except ParityError as error:
        more = f"; and {len(error.faults) - 2} more" if len(error.faults) > 2 else ""
        return "; ".join(error.faults[:2]) + more
    except Exception as error:
        return in_words(error)
    return "" if difference < 1e-12 else f"other numbers, by up to {difference:.2g}"

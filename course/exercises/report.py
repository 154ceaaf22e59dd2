"""Run the cases of an exercise and print what came out: not attempted yet, what is still wrong, or right."""

import dis
import linecache
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

from parity import ParityError, largest_difference

# A group of cases that share a trait ("even sizes"): for each, its arguments in words, and what runs it and returns
# the outputs of Keras and of the answer, or None for an answer that returned None.
Case = tuple[str, Callable[[], tuple[Any, Any] | None]]

WIDTH = 76
"""How many columns a line may have: more are out of sight on a projector, on a phone and on the site."""

_NONE = "it returned None"
# What a function consists of that only returns None, in every Python from 3.11 on.
_IDLE = {"RESUME", "COPY_FREE_VARS", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "NOP"}


def report(
    exercise: str,
    groups: dict[str, Iterable[Case]],
    answer: Callable | None = None,
    finding: str = "it equals Keras",
    within: float = 1e-12,
) -> None:
    """Run all cases; print what is right, and the first that is not.

    Args:
        exercise: Its name, which the line begins with.
        groups: The cases, by the trait that they share.
        answer: The reader's function. If it returns None, this tells whether there is nothing in it yet.
        finding: What holds of an answer that is right in all cases.
        within: The largest difference that rounding explains.
    """
    right, count = [], 0
    for trait, cases in groups.items():
        for case, run in cases:
            problem = _problem(run, within)
            if problem == _NONE and not count and (answer is None or is_empty(answer)):
                not_attempted(exercise)
                return
            if problem:
                so_far = f"right for {', '.join(right)}; " if right else ""
                hint = "; is a `return` missing?" if problem == _NONE else ""
                wrong(exercise, f"{so_far}wrong for {trait} ({case}): {problem}{hint}")
                return
            count += 1
        right.append(trait)
    is_right(exercise, finding + (f" in all {count} cases" if count > 1 else ""))


def is_right(exercise: str, why: str) -> None:
    """Print that an answer is right."""
    say(f"✓ {exercise}: right; {why}")


def wrong(exercise: str, what: str) -> None:
    """Print what is wrong with an answer."""
    say(f"✗ {exercise}: {what}")


def not_attempted(exercise: str) -> None:
    """Print that there is no answer yet."""
    say(f"… {exercise}: not attempted yet")


def say(text: str) -> None:
    """Print a text in lines of at most ``WIDTH`` columns; those after the first are indented."""
    print(fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def is_empty(answer: Callable) -> bool:
    """Return whether a function does nothing but return None, as the page has it; True for what is no function."""
    code = getattr(answer, "__code__", None)
    if code is None:
        return True
    instructions = list(dis.get_instructions(code))
    loaded = [
        instruction.argval for instruction in instructions if instruction.opname in ("LOAD_CONST", "RETURN_CONST")
    ]
    return {instruction.opname for instruction in instructions} <= _IDLE and set(loaded) <= {None, ...}


def in_words(error: Exception) -> str:
    """Return an error in one line, shortened: its kind, its message, and the line of the reader's cell, if any."""
    said = shorten(f"{type(error).__name__}: {error}".removesuffix(": "), width=250, placeholder=" …")
    # A cell is compiled under the name of a file that does not exist.
    cells = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and not Path(frame.filename).exists()
    ]
    if not cells:
        return said
    source = linecache.getline(cells[-1].filename, cells[-1].lineno or 0).strip()
    return f"{said} (line {cells[-1].lineno}{f': {source}' if source else ''})"


def _problem(run: Callable[[], tuple[Any, Any] | None], within: float) -> str:
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
    return "" if difference < within else f"other numbers, by up to {difference:.2g}"

"""The timetables of docs/teaching, made of the minutes that the pages need.

``python -m course.classroom.timetable`` writes them again; ``make record`` does so, too.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from course.classroom.routes import LEFT_OUT, NOT_IN_CLASS, Lesson, page_of
from course.classroom.sections import Section, sections_of
from course.pages.anatomy import ROOT, minutes_to_read

import nbformat
from nbformat.v4 import new_notebook

GUIDE = ROOT / "docs" / "teaching" / "index.md"
TALK = 5
"""Minutes for the vote on a page and for what is said about it."""
_EXERCISE = re.compile(r"^\*\*(?:\d\. )?[^*\n]*\((\d+) minutes?\)\.\*\*", flags=re.MULTILINE)
_TABLE = "<!-- timetable: {} -->\n\n{}\n<!-- end -->"


@dataclass(frozen=True)
class Slot:
    """A part of a day without a page.

    Attributes:
        what: What happens, as the timetable says it.
        minutes: How long it takes.
    """

    what: str
    minutes: int


OPENING = "[Opening](#the-first-ten-minutes)"
CLOSING = "Exit paper, cheat sheet, where to look things up"
BREAK, LUNCH = "Break", "Lunch"

TIMETABLES: dict[str, tuple[str, tuple[Slot | Lesson, ...]]] = {
    "90 minutes": (
        "10:00",
        (Slot(OPENING, 5), Lesson("00", (2,)), Lesson("04", (1,)), Slot(CLOSING, 10)),
    ),
    "two hours": (
        "10:00",
        (Slot(OPENING, 10), Lesson("00", (2,)), Slot(BREAK, 10), Lesson("04", (1, 2)), Slot(CLOSING, 15)),
    ),
    "half a day": (
        "09:00",
        (
            Slot(OPENING, 10),
            Lesson("00", (2,)),
            Lesson("01", (1,)),
            Slot(BREAK, 15),
            Lesson("04", (1,)),
            Slot(f"{BREAK}; shut down the kernels of the pages before", 10),
            Lesson("10", (1,)),
            Slot(CLOSING, 15),
        ),
    ),
    "day 1": (
        "09:00",
        (
            Slot(f"{OPENING}; the survey before", 20),
            Lesson("00", (1, 2)),
            Slot(BREAK, 15),
            Lesson("01", (1, 2)),
            Lesson("02", (2,)),
            Slot(BREAK, 10),
            Lesson("03", (1,)),
            Slot(LUNCH, 60),
            Lesson("04", (1, 2)),
            Lesson("05", (1, 2)),
            Slot(BREAK, 20),
            Lesson("06", (1, 2)),
            Slot(BREAK, 10),
            Lesson("07", (1,)),
            Slot("Looking back: which of today's mistakes would your own tests have found?", 15),
        ),
    ),
    "day 2": (
        "09:00",
        (
            Slot("Questions of the day before", 10),
            Lesson("08", (1,)),
            Slot(BREAK, 15),
            Lesson("09"),
            Lesson("10", (1,)),
            Slot(BREAK, 10),
            Slot("[A broken port for each learner](hunt.md)", 40),
            Slot(LUNCH, 60),
            Lesson("11", (1,)),
            Lesson("12", (1,)),
            Slot(BREAK, 20),
            Lesson("13", (1,)),
            Slot(BREAK, 10),
            Slot("A layer or a model of one's own, with [Your own model](../your-own-model.md)", 45),
            Slot("[Quiz](quiz.md), exit paper, the survey after", 25),
        ),
    ),
}
"""By name, when it begins, and its parts in order."""


def exercise_minutes(number: str) -> list[int]:
    """Return the minutes that a page states for each of its exercises."""
    notebook = nbformat.read(page_of(number), as_version=4)
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [int(minutes) for minutes in _EXERCISE.findall(prose)]


def shown(number: str) -> list[Section]:
    """Return the sections of a page that a class goes through."""
    kept: list[Section] = []
    without = 0  # the level of the section that is left out with all in it, or 0
    for section in sections_of(nbformat.read(page_of(number), as_version=4)):
        if without and section.level > without:
            continue
        leave = section.heading.startswith(NOT_IN_CLASS) or section.heading in LEFT_OUT.get(number, ())
        without = section.level if leave else 0
        if not leave:
            kept.append(section)
    return kept


def minutes_in_class(part: Slot | Lesson) -> int:
    """Return how long a part takes. For a page, that is rounded up to five minutes.

    It is the time to read what is shown, by the measure of the pages, with the stated minutes of the exercises, and
    with ``TALK``.
    """
    if isinstance(part, Slot):
        return part.minutes
    cells = [cell for section in shown(part.page) for cell in section.cells]
    stated = exercise_minutes(part.page)
    exercises = sum(stated[number - 1] for number in part.exercises)
    return 5 * ceil((minutes_to_read(new_notebook(cells=cells)) + exercises + TALK) / 5)


def clock(name: str) -> Iterator[tuple[int, Slot | Lesson]]:
    """Yield the parts of a timetable, each with the minute of the day at which it begins, and last its end."""
    begin, parts = TIMETABLES[name]
    now = 60 * int(begin[:2]) + int(begin[3:])
    for part in parts:
        yield now, part
        now += minutes_in_class(part)
    yield now, Slot("End", 0)


def table(name: str) -> str:
    """Return a timetable in Markdown."""
    lines = ["| clock | minutes | what |", "| --- | --- | --- |"]
    for now, part in clock(name):
        minutes = minutes_in_class(part) or ""
        lines.append(f"| {now // 60:02}:{now % 60:02} | {minutes} | {_words(part)} |")
    return "\n".join(lines) + "\n"


def _words(part: Slot | Lesson) -> str:
    if isinstance(part, Slot):
        return part.what
    page = page_of(part.page)
    title = nbformat.read(page, as_version=4).cells[0].source.split("\n")[0].removeprefix("# ").split(":")[0]
    link = f"**[{title}](pages.md#{anchor(part.page)})**"
    if not part.exercises:
        return f"{link}, told as a story"
    stated = exercise_minutes(part.page)
    several = "exercises" if len(part.exercises) > 1 else "exercise"
    numbers = " and ".join(map(str, part.exercises))
    chosen = f"{several} {numbers}" if len(stated) > 1 else "its exercise"
    return f"{link}; {chosen}, {sum(stated[number - 1] for number in part.exercises)} minutes"


def anchor(number: str) -> str:
    """Return the name of a page's heading in pages.md, as GitHub and the site make it."""
    title = nbformat.read(page_of(number), as_version=4).cells[0].source.split("\n")[0].removeprefix("# ").split(":")[0]
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def with_tables(text: str) -> str:
    """Return a page of the guide with its timetables made anew."""
    pattern = _TABLE.format("(.+)", "(?:.*\n)*?")
    return re.sub(pattern, lambda found: _TABLE.format(found[1], table(found[1])), text)


def main() -> None:
    """Write the timetables into the guide."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else GUIDE
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()

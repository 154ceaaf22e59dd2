"""The timetables of docs/teaching, made of the minutes that the pages need.

``python -m course.classroom.timetable`` writes them again; ``make record`` does so, too.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from course.classroom.routes import LEFT_OUT, NOT_IN_CLASS, ROUTES, TRY_IT, Lesson, page_of
from course.classroom.sections import Section, sections_of
from course.pages.anatomy import MINUTES, ROOT, minutes_to_read

import nbformat
from nbformat.v4 import new_notebook

GUIDE = ROOT / "docs" / "teaching" / "index.md"
TALK = 8
"""Minutes for what no page states: the vote (2), a second vote (2), the talk after the exercise (3), a new page (1)."""
PAGES = GUIDE.with_name("pages.md")
SLIDES = ROOT / "docs" / "teaching" / "slides"
_EXERCISE = re.compile(r"^\*\*(?:\d\. )?[^*\n]*\((\d+) minutes?\)\.\*\*", flags=re.MULTILINE)
_TRY_IT = re.compile(rf"{re.escape(TRY_IT)}.*?(?:</details>|\Z)", flags=re.DOTALL)
_NOTES = re.compile(r"^Notes, (\d+) minutes?:$", flags=re.MULTILINE)
_ON_A_SLIDE = re.compile(r"^@exercise (\d)$", flags=re.MULTILINE)
_LATE = re.compile(r"^## (\d\d)\. .*\n(?:(?!## ).*\n)*?\*\*Late\?\*\* (?:(\d+) minutes?|A minute): (.*)$", re.MULTILINE)
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
CLOSING = "[Exit paper](exit-paper.md) (10 minutes), its answers, cheat sheet"
BREAK, LUNCH = "Break", "Lunch"

TIMETABLES: dict[str, tuple[str, tuple[Slot | Lesson, ...]]] = {
    "90 minutes": (
        "10:00",
        (Slot(OPENING, 10), Lesson("00", (2,)), Lesson("04", (2,), ("Pooling pads, too",)), Slot(CLOSING, 15)),
    ),
    "two hours": (
        "10:00",
        (
            Slot(OPENING, 10),
            Lesson("00", (2,)),
            Slot(BREAK, 10),
            Lesson("04", (1, 2)),
            Slot(f"{CLOSING}, the symptoms on the board", 20),
        ),
    ),
    "two hours, a hunt at home": (
        "10:00",
        (
            Slot(OPENING, 10),
            Lesson("00", (2,)),
            Slot(BREAK, 10),
            Lesson("10", (1,)),
            Slot("[A broken port for each learner](hunt.md#as-homework), to do at home", 10),
        ),
    ),
    "half a day": (
        "09:00",
        (
            Slot(OPENING, 10),
            Lesson("00", (2,)),
            Lesson("01", (1,)),
            Slot(BREAK, 10),
            Lesson("04", (1,)),
            Slot(f"{BREAK}; shut down the kernels of the pages before", 10),
            Lesson("10", (1,)),
            Slot(f"{CLOSING}, the symptoms on the board", 20),
        ),
    ),
    "day 1": (
        "09:00",
        (
            Slot(f"{OPENING}; who could not install sits with a neighbour", 15),
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
            Slot("A layer or a model [of one's own](#a-model-of-ones-own)", 45),
            Slot("[Quiz](quiz.md) (15 minutes), the survey after (5), the symptoms on the board", 25),
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
    """Return how long a part takes. For a page, that is rounded up to five minutes."""
    if isinstance(part, Slot):
        return part.minutes
    return 5 * ceil(minutes_needed(part) / 5)


def minutes_needed(lesson: Lesson) -> int:
    """Return the minutes of a page before they are rounded up.

    It is the time to read what is shown, by the measure of the pages and without what is to be tried, with the stated
    minutes of the exercises, and with ``TALK``.
    """
    stated = exercise_minutes(lesson.page)
    exercises = sum(stated[number - 1] for number in lesson.exercises)
    sections = [section for section in shown(lesson.page) if section.heading not in lesson.without]
    return minutes_to_show(sections) + exercises + TALK


def minutes_to_show(sections: list[Section]) -> int:
    """Return the minutes to read some sections without what is to be tried, rounded up."""
    cells = [cell for section in sections for cell in section.cells]
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = _TRY_IT.sub("", cell.source)
    return minutes_to_read(new_notebook(cells=cells))


def slides() -> str:
    """Return the table of the minutes with slides and without, in Markdown."""
    lines = ["| page | exercises | with all slides | in a timetable |", "| --- | --- | --- | --- |"]
    for path in sorted(SLIDES.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        exercises = tuple(int(number) for number in _ON_A_SLIDE.findall(text))
        minutes = sum(int(said) for said in _NOTES.findall(text))
        minutes += sum(exercise_minutes(path.stem)[number - 1] for number in exercises)
        numbers = " and ".join(map(str, exercises))
        lines.append(f"| {path.stem} | {numbers} | {minutes} | {minutes_in_class(Lesson(path.stem, exercises))} |")
    return "\n".join(lines) + "\n"


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


def late() -> dict[str, tuple[int, str]]:
    """Return by page how many minutes its row *Late?* gives back, as pages.md says it, and what the row says."""
    text = PAGES.read_text(encoding="utf-8")
    return {number: (int(minutes or 1), said) for number, minutes, said in _LATE.findall(text)}


def spare() -> str:
    """Return the table of what a timetable has to spare, in Markdown."""
    lines = ["| timetable | rounding leaves | the rows *Late?* give back |", "| --- | --- | --- |"]
    given = late()
    for name, (_, parts) in TIMETABLES.items():
        lessons = [part for part in parts if isinstance(part, Lesson)]
        left = [(part.page, minutes_in_class(part) - minutes_needed(part)) for part in lessons]
        back = [(part.page, given[part.page][0]) for part in lessons if part.page in given and not part.without]
        lines.append(f"| {name} | {_each(left)} | {_each(back)} |")
    return "\n".join(lines) + "\n"


def _each(minutes: list[tuple[str, int]]) -> str:
    """Return a sum and what it is made of."""
    parts = ", ".join(f"{page}: {number}" for page, number in minutes)
    return f"{sum(number for _, number in minutes)} minutes ({parts})"


def preparation() -> str:
    """Return the table of how long it takes to work through the pages of each route, in Markdown."""
    lines = ["| route | reading | exercises |", "| --- | --- | --- |"]
    for route, numbers in ROUTES.items():
        texts = [nbformat.read(page_of(number), as_version=4).cells[0].source for number in numbers]
        reading = sum(int(MINUTES.search(text)[1]) for text in texts)
        exercises = sum(sum(exercise_minutes(number)) for number in numbers)
        lines.append(f"| `{route}` | {_long(reading)} | {_long(exercises)} |")
    return "\n".join(lines) + "\n"


def _long(minutes: int) -> str:
    """Return a time in words."""
    hours, rest = divmod(minutes, 60)
    parts = [f"{hours} hour{'s' * (hours > 1)}"] * bool(hours) + [f"{rest} minute{'s' * (rest > 1)}"] * bool(rest)
    return " ".join(parts)


MADE = {"preparation": preparation, "spare": spare, "slides": slides}
"""By name, the tables of the guide that are no timetables."""


def with_tables(text: str) -> str:
    """Return a page of the guide with its timetables made anew."""
    pattern = _TABLE.format("(.+)", "(?:(?!<!--).*\n)*?").replace("\n<!-- end", "\n?<!-- end")

    def made(found: re.Match[str]) -> str:
        name = found[1]
        return _TABLE.format(name, MADE[name]() if name in MADE else table(name))

    return re.sub(pattern, made, text)


def main() -> None:
    """Write the timetables into the guide."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else GUIDE
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()

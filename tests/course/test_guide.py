"""The guide for teachers says what the pages have, what their checks say, and how long a class takes."""

import re
from itertools import pairwise

from course.classroom.routes import LEFT_OUT, NOT_IN_CLASS, ROUTES, Lesson, page_of
from course.classroom.sections import sections_of
from course.classroom.timetable import (
    GUIDE,
    TIMETABLES,
    Slot,
    anchor,
    clock,
    exercise_minutes,
    minutes_in_class,
    shown,
    with_tables,
)
from course.hunt.drawing import CASES, mistakes
from course.pages.anatomy import MINUTES, ROOT, link_faults, minutes_to_read, pages, prediction

import nbformat
import pytest

TEACHING = ROOT / "docs" / "teaching"
PAGES = (TEACHING / "pages.md").read_text(encoding="utf-8")
INDEX = GUIDE.read_text(encoding="utf-8")
HUNT = (TEACHING / "hunt.md").read_text(encoding="utf-8")
NUMBERS = [path.name[:2] for path in pages()]
PART = dict(re.findall(r"^## (\d\d)\. .*\n((?:(?!## ).*\n)*)", PAGES, flags=re.MULTILINE))


def rows(text, first):
    """Return the rows of the table whose first header this is."""
    block = re.search(rf"^\| {first} \|.*\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    return [[field.strip() for field in line.strip("|\n").split(" | ")] for line in block[1].splitlines()[1:]]


def sections(number):
    return sections_of(nbformat.read(page_of(number), as_version=4))


def prose(number):
    cells = nbformat.read(page_of(number), as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def has_picture(cell):
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


# --- Page by page ---------------------------------------------------------------------------------------------------


def test_the_guide_has_every_page_in_order_under_its_title():
    assert list(PART) == NUMBERS
    headings = re.findall(r"^## (\d\d\. .*)$", PAGES, flags=re.MULTILINE)
    assert headings == [prose(number).split("\n")[0].removeprefix("# ").split(":")[0] for number in NUMBERS]
    assert re.sub(r"[^\w -]", "", headings[4].lower()).replace(" ", "-") == anchor("04")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_right_answer_of_the_vote_is_that_of_the_page(number):
    _, fold, _ = prediction(prose(number))
    right = re.search(r"^\*\*(\d)\.\*\*", fold, flags=re.MULTILINE)[1]
    assert re.search(r"^\*\*Vote\.\*\* Right is (\d)\b", PART[number], flags=re.MULTILINE)[1] == right


@pytest.mark.parametrize("number", NUMBERS)
def test_the_cells_to_show_are_on_the_page(number):
    found = sections(number)
    for where, _ in rows(PART[number], "show"):
        heading, what = re.fullmatch(r"\*(.+?)\*: (?:`(.+)`|the picture)", where).groups()
        cells = [cell for section in found if section.heading == heading for cell in section.cells]
        assert cells, f"page {number} has no section {heading!r}"
        if what:
            assert any(cell.cell_type == "code" and what in cell.source for cell in cells), where
        else:
            assert any(has_picture(cell) for cell in cells), where


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_left_out_is_on_the_page_and_the_same_in_the_timetable(number):
    headings = [section.heading for section in sections(number)]
    said = re.search(r"^\*\*Left out in class:\*\* (.*)$", PART[number], flags=re.MULTILINE)
    named = re.findall(r"\*([^*]+)\*", said[1]) if said else []
    assert named == list(LEFT_OUT.get(number, ()))
    late = re.search(r"^\*\*Late\?\*\* (.*)$", PART[number], flags=re.MULTILINE)[1]
    for heading in [*named, *re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", late)]:
        assert heading in headings, f"page {number} has no section {heading!r}"


def test_what_no_class_reads_is_at_the_end_of_each_page():
    for number in NUMBERS:
        kept = [section.heading for section in shown(number)]
        left = [section.heading for section in sections(number) if section.heading not in kept]
        assert "Predict" in kept, number
        assert any(heading.startswith(NOT_IN_CLASS[-1]) for heading in left), number


@pytest.mark.parametrize("number", NUMBERS)
def test_there_is_something_to_discuss(number):
    assert re.search(r"^\*\*Aim\.\*\* .{20}", PART[number], flags=re.MULTILINE)
    assert re.search(r"^\*\*Discuss\.\*\* .{20}", PART[number], flags=re.MULTILINE)


# --- Timetables -----------------------------------------------------------------------------------------------------


def test_the_timetables_are_those_that_the_pages_need():
    assert INDEX.count("<!-- timetable: ") == len(TIMETABLES)
    assert with_tables(INDEX) == INDEX, "python -m course.classroom.timetable writes them anew"


@pytest.mark.parametrize(
    ("name", "latest"),
    [("90 minutes", "11:30"), ("two hours", "12:00"), ("half a day", "12:30"), ("day 1", "17:00"), ("day 2", "17:00")],
)
def test_a_timetable_fits(name, latest):
    *_, (end, _) = clock(name)
    assert end <= 60 * int(latest[:2]) + int(latest[3:])


@pytest.mark.parametrize("name", TIMETABLES)
def test_nobody_sits_longer_than_100_minutes_without_a_break(name):
    begins = [now for now, _ in clock(name)][:1]
    for now, part in clock(name):
        if isinstance(part, Slot) and part.what.startswith(("Break", "Lunch", "End")):
            assert now - begins[-1] <= 100, part
            begins.append(now + part.minutes)


def test_each_route_has_its_pages_in_a_timetable():
    def numbers(*names):
        return tuple(part.page for name in names for part in TIMETABLES[name][1] if isinstance(part, Lesson))

    assert numbers("90 minutes") == numbers("two hours") == ROUTES["90min"]
    assert numbers("half a day") == ROUTES["half-day"]
    assert numbers("day 1", "day 2") == ROUTES["two-days"] == tuple(NUMBERS)


def test_the_routes_of_the_guide_are_those_of_the_command():
    said = {row[0].strip("`"): row[1] for row in rows(INDEX, "route")}
    assert said == {
        route: "00 to 13" if len(numbers) == len(NUMBERS) else ", ".join(numbers) for route, numbers in ROUTES.items()
    }


@pytest.mark.parametrize("number", NUMBERS)
def test_the_minutes_of_exercises_add_up_to_those_that_the_page_states(number):
    stated = re.search(r"Exercises: (\d+) minutes?\.", prose(number))
    assert sum(exercise_minutes(number)) == (int(stated[1]) if stated else 0)


def test_half_a_day_fits_a_learner_who_reads_every_word():
    """The minutes that the pages state, with the exercises of the timetable, fit between the breaks."""
    lessons = [part for part in TIMETABLES["half a day"][1] if isinstance(part, Lesson)]
    slots = [part for part in TIMETABLES["half a day"][1] if isinstance(part, Slot)]
    reading = sum(int(MINUTES.search(prose(lesson.page))[1]) for lesson in lessons)
    exercises = sum(exercise_minutes(lesson.page)[number - 1] for lesson in lessons for number in lesson.exercises)
    assert reading + exercises + sum(slot.minutes for slot in slots) <= 210


def test_a_page_in_class_takes_what_is_shown_the_exercise_and_the_talk(monkeypatch):
    notebook = nbformat.read(page_of("04"), as_version=4)
    whole = minutes_to_read(notebook)
    without = minutes_in_class(Lesson("04"))
    assert without <= whole + 5 + 4
    assert minutes_in_class(Lesson("04", (1, 2))) - without in (15, 20)
    monkeypatch.setattr("course.classroom.timetable.TALK", 25)
    assert minutes_in_class(Lesson("04")) == without + 20


def test_anchors_and_minutes_are_of_sections_with_all_that_is_in_them():
    headings = [section.heading for section in shown("06")]
    assert "With `transfer`" not in headings
    assert "Fix it" in headings
    assert all(after > before for before, after in pairwise(now for now, _ in clock("day 1")))


# --- The hunt -------------------------------------------------------------------------------------------------------


def test_the_seeds_of_the_guide_have_two_mistakes_or_one():
    assert CASES > 600
    twenty = re.search(r"These twenty have two.*?: ([\d,\s]+)\.", HUNT)[1]
    seeds = [int(seed) for seed in re.findall(r"\d+", twenty)]
    assert len(seeds) == 20
    assert {len(mistakes(seed)) for seed in seeds} == {2}
    single = re.search(r"Seeds (\d+), (\d+) and (\d+) have a single one", HUNT).groups()
    assert {len(mistakes(int(seed))) for seed in single} == {1}


# --- Numbers that the guide quotes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "quoted", "printed"),
    [
        ("00", "1.00000, six times", r"(?:(?s:.*?)passes   1\.00000){6}(?!(?s:.*)passes   1\.00000)"),
        ("04", "672 of 672", "672 of 672 outputs differ"),
        ("02", "741 and 321", r"(?s)741\..*321\."),
        ("08", "2, 1.6, 2.3, 6.9", r"(?s)naive port +2 .*1\.6 .*2\.3 .*6\.9 "),
        ("09", "a steering of 9", r"steering from 8\.9 to 10\.1"),
        ("11", "12 of 61", "12 of 61 mutants pass"),
    ],
)
def test_a_number_of_the_guide_is_in_the_outputs_of_the_page(number, quoted, printed):
    assert quoted in PART[number]
    outputs = [
        output for cell in nbformat.read(page_of(number), as_version=4).cells for output in cell.get("outputs", [])
    ]
    text = "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)
    assert re.search(printed, text)


@pytest.mark.parametrize("path", sorted(TEACHING.glob("*.md")), ids=lambda path: path.stem)
def test_every_link_of_the_guide_leads_somewhere(path):
    assert list(link_faults(path.read_text(encoding="utf-8"), path.parent)) == []

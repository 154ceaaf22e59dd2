"""The guide for teachers says what the pages have, what their checks say, and how long a class takes."""

import json
import re
from itertools import pairwise

from course.classroom.routes import LEFT_OUT, NOT_IN_CLASS, ROUTES, Lesson, page_of
from course.classroom.sections import sections_of
from course.classroom.timetable import (
    GUIDE,
    MADE,
    TALK,
    TIMETABLES,
    Slot,
    anchor,
    clock,
    exercise_minutes,
    late,
    minutes_in_class,
    minutes_needed,
    minutes_to_show,
    shown,
    slides,
    with_tables,
)
from course.hunt.drawing import CASES, mistakes
from course.pages.anatomy import MINUTES, ROOT, link_faults, minutes_to_read, pages, prediction
from course.slides.deck import decks
from parity import compare, propose_mapping, run_torch, transfer
from parity.padding import Conv2dSame, same_padding

import keras
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_notebook
from torch import nn

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


def cells_shown(number):
    return [cell for section in shown(number) for cell in section.cells]


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


@pytest.mark.parametrize("number", NUMBERS)
def test_a_row_late_says_how_many_minutes_its_sections_take(number):
    if number == "09":
        assert "**Late?** Leave the page out." in PART[number]
        return
    minutes, said = late()[number]
    named = re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", said)
    assert named
    kept = shown(number)
    assert set(named) <= {section.heading for section in kept}, "what is left out anyway gives nothing back"
    assert minutes == minutes_to_show([section for section in kept if section.heading in named])


def test_who_is_late_runs_what_is_left_out():
    for text in (PAGES, INDEX):
        assert re.search(r"\*\*.*[Kk]eep it closed[,]? and run it all the same", text, flags=re.DOTALL)


def test_the_pages_with_a_second_vote_are_those_that_the_guide_names():
    named = re.search(r"Seven pages have one: ([\d, and]+)\.", INDEX)[1]
    assert re.findall(r"\d\d", named) == [number for number in NUMBERS if "Vote again: " in PART[number]]
    assert len(re.findall(r"\d\d", named)) == 7


# --- Timetables -----------------------------------------------------------------------------------------------------


def test_the_timetables_are_those_that_the_pages_need():
    assert sorted(re.findall(r"<!-- timetable: (.+) -->", INDEX)) == sorted([*TIMETABLES, *MADE])
    assert with_tables(INDEX) == INDEX, "python -m course.classroom.timetable writes them anew"


def test_a_table_takes_no_other_place_than_its_own():
    empty = re.sub(r"(<!-- timetable: .+ -->\n\n)(?:(?!<!--).*\n)*?(?=<!-- end -->)", r"\1", INDEX)
    assert "| clock |" not in empty
    assert with_tables(empty) == INDEX


def test_the_minutes_with_slides_are_those_of_the_decks():
    rows_of = [line.strip("| ").split(" | ") for line in slides().splitlines()[2:]]
    assert {row[0]: int(row[2]) for row in rows_of} == {number: deck.minutes for number, deck in decks().items()}
    assert all(0 <= int(row[2]) - int(row[3]) <= 8 for row in rows_of), (
        "the decks and the timetables have drifted apart"
    )


@pytest.mark.parametrize("path", sorted((TEACHING / "slides").glob("*.md")), ids=lambda path: path.stem)
def test_the_slides_have_the_steps_and_the_minutes_of_the_guide(path):
    """A vote of two minutes by fingers, three minutes of talk, and slides to leave out."""
    text = path.read_text(encoding="utf-8")
    assert "@question\n\nNotes, 2 minutes:\n\nBy fingers, all at once and without talking." in text
    assert "\nNotes, 3 minutes:\n\nThe minutes of the exercise come first" in text
    assert "Late?" in text
    assert "hands" not in text


@pytest.mark.parametrize("name", TIMETABLES)
def test_a_second_exercise_is_in_the_timetables_of_which_the_guide_says_so(name):
    several = any(len(part.exercises) > 1 for part in TIMETABLES[name][1] if isinstance(part, Lesson))
    assert several == (name in ("two hours", "day 1"))
    assert "Only two hours and the first of two days have one" in INDEX


@pytest.mark.parametrize(
    ("name", "latest"),
    [
        ("90 minutes", "11:30"),
        ("two hours", "12:00"),
        ("two hours, a hunt at home", "12:00"),
        ("half a day", "12:30"),
        ("day 1", "17:00"),
        ("day 2", "17:00"),
    ],
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
    assert without <= whole + TALK + 4
    assert minutes_in_class(Lesson("04", (1, 2))) - without in (15, 20)
    assert minutes_needed(Lesson("04", (2,), ("Pooling pads, too",))) < minutes_needed(Lesson("04", (2,)))
    assert minutes_needed(Lesson("00")) < minutes_to_read(new_notebook(cells=cells_shown("00"))) + TALK, (
        "without Try it"
    )
    monkeypatch.setattr("course.classroom.timetable.TALK", TALK + 20)
    assert minutes_in_class(Lesson("04")) == without + 20


def test_anchors_and_minutes_are_of_sections_with_all_that_is_in_them():
    headings = [section.heading for section in shown("06")]
    assert "With `transfer`" not in headings
    assert "Fix it" in headings
    assert all(after > before for before, after in pairwise(now for now, _ in clock("day 1")))


# --- The hunt -------------------------------------------------------------------------------------------------------


def test_the_seeds_of_the_guide_have_two_mistakes_or_one():
    assert CASES > 600
    commands = re.findall(r"^python -m course\.hunt ([\d ]+) --(?:to|key)\b", HUNT, flags=re.MULTILINE)
    twenty = commands[0]
    assert commands.count(twenty) == 2, "the key is of the same seeds"
    seeds = [int(seed) for seed in twenty.split()]
    assert f"class/hunt_{seeds[0]}.ipynb to class/hunt_{seeds[-1]}.ipynb" in HUNT
    assert len(seeds) == 20
    assert {len(mistakes(seed)) for seed in seeds} == {2}
    twelve = re.search(r"take these twelve: ([\d, ]+)\.", HUNT)[1]
    planted = [mistakes(int(seed)) for seed in twelve.split(", ")]
    assert len(planted) == 12
    assert {len(several) for several in planted} == {2}
    assert {mistake.cause for several in planted for mistake in several} == {
        *("height and width exchanged", "activation missing", "epsilon", "padding", "flatten order", "heads exchanged")
    }
    single = re.search(r"Seeds (\d+), (\d+) and (\d+)\s+have a single one", HUNT).groups()
    assert {len(mistakes(int(seed))) for seed in single} == {1}


# --- What is said in answer to the questions --------------------------------------------------------------------------


def test_two_sizes_can_be_enough_for_five_strides():
    def read(size):
        for _ in range(5):
            yield size % 2
            size = -(-size // 2)

    pairs = [tuple(map(int, pair)) for pair in re.findall(r"(\d{3}) and (\d{3})\b", PART["04"])]
    assert pairs[:3] == [(192, 193), (224, 225), (200, 201)]
    assert [all(a != b for a, b in zip(read(one), read(other), strict=True)) for one, other in pairs[:3]] == [
        *(True, True, False)
    ]


def test_a_kernel_of_4_with_a_padding_of_1_is_silent_at_even_sizes_only():
    assert "At 225 even the shapes differ, 113 in Keras and 112 in PyTorch" in PART["04"]
    assert same_padding(224, 4, 2) == (1, 1)
    assert -(-225 // 2) == 113
    assert (225 + 2 - 4) // 2 + 1 == 112


def test_the_second_vote_of_page_01():
    assert "for a kernel (1, 5, 2, 4)" in PART["01"]
    assert np.zeros((1, 5, 2, 4)).T.shape == (4, 2, 5, 1)


def test_the_small_model_for_people_without_one_can_be_ported():
    code = re.search(r"^```python\n(.*?)^```", INDEX, flags=re.MULTILINE | re.DOTALL)[1]
    made = {}
    exec(code, made)  # the code of a page of ours
    model = made["model"]
    port = nn.Sequential(
        Conv2dSame(3, 8, 3, stride=2),
        nn.BatchNorm2d(8, eps=1e-3, momentum=0.01),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
    images = np.random.default_rng(0).normal(size=(2, 14, 15, 3)).astype("float32")
    transfer(model, port, propose_mapping(model, port, images).mapping)
    assert compare("small", keras.ops.convert_to_numpy(model(images)), run_torch(port, images), within=1e-4)


def test_the_exit_paper_asks_for_pages_that_half_a_day_does_not_teach():
    paper = (TEACHING / "exit-paper.md").read_text(encoding="utf-8")
    asked = re.findall(r"^\*\*\d: \d\.\*\*.*Page \[(\d\d)\]", paper, flags=re.MULTILINE)
    assert len(asked) == 6
    assert not {*asked} & {*ROUTES["half-day"]}
    assert {*asked} <= {*ROUTES["two-days"]}
    fixes = json.dumps(nbformat.read(page_of("10"), as_version=4))
    assert "def fix_epsilon" in fixes
    assert "def fix_flatten" in fixes


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

"""What the checks of the exercises say, and that each notebook has its own."""

import linecache
import re

from course.exercises.report import WIDTH, in_words, is_empty, report, wrong
from course.pages.anatomy import OFFICIAL, ROOT, pages
from parity import ParityError

import numpy as np
import pytest


def fails(error):
    raise error


RIGHT, WRONG, NONE = (lambda: (np.ones(2), np.ones(2))), (lambda: (np.ones(2), np.zeros(2))), (lambda: None)


@pytest.mark.parametrize(
    ("runs", "line"),
    [
        ([RIGHT], "✓ Task: right; it equals Keras"),
        ([RIGHT, RIGHT], "✓ Task: right; it equals Keras in all 2 cases"),
        ([NONE, RIGHT], "… Task: not attempted yet"),
        (
            [RIGHT, NONE],
            "✗ Task: right for trait 0; wrong for trait 1 (case 1): it returned None; is a `return` missing?",
        ),
        ([WRONG], "✗ Task: wrong for trait 0 (case 0): other numbers, by up to 1"),
        ([RIGHT, WRONG], "✗ Task: right for trait 0; wrong for trait 1 (case 1): other numbers, by up to 1"),
        (
            [lambda: (np.ones(2), np.array([1, np.inf]))],
            "✗ Task: wrong for trait 0 (case 0): other numbers, by up to inf",
        ),
        ([lambda: fails(KeyError())], "✗ Task: wrong for trait 0 (case 0): KeyError"),
        ([lambda: fails(NotImplementedError())], "✗ Task: wrong for trait 0 (case 0): NotImplementedError"),
        ([lambda: fails(RuntimeError("a:\n\tb"))], "✗ Task: wrong for trait 0 (case 0): RuntimeError: a: b"),
        ([lambda: fails(ParityError("csv", list("abcd")))], "✗ Task: wrong for trait 0 (case 0): a; b; and 2 more"),
    ],
)
def test_report_prints_one_line(runs, line, capsys):
    report("Task", {f"trait {n}": [(f"case {n}", run)] for n, run in enumerate(runs)})
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize(
    "answer", [np.full(2, np.nan), np.ones(3), np.ones((2, 1)), np.array([]), "text", 1j * np.ones(2)]
)
def test_report_never_calls_these_right(answer, capsys):
    report("Task", {"trait": [("case", lambda: (np.ones(2), answer))]})
    assert "✗ Task: wrong for trait (case): " in capsys.readouterr().out


def test_a_long_message_is_wrapped(monkeypatch, capsys):
    monkeypatch.undo()
    told = "wrong for even sizes (6 x 8): " + "other numbers, " * 10 + "averages-that-count-the-padding " + 90 * "x"
    wrong("Task", told)
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith("✗ Task: wrong for even sizes")
    assert all(line.startswith("  ") for line in more)
    assert [len(line) > WIDTH for line in (first, *more)] == [False] * len(more) + [True]  # a word is not torn
    assert " ".join([first, *(line.strip() for line in more)]) == f"✗ Task: {told}"
    wrong("Task", "short")
    assert capsys.readouterr().out == "✗ Task: short\n"


def test_a_forgotten_return_is_not_taken_for_no_attempt(capsys):
    def forgetful(x):
        x + 1

    for answer, line in (
        (lambda x: None, "… Task: not attempted yet"),
        (forgetful, "✗ Task: wrong for trait (case): it returned None; is a `return` missing?"),
    ):
        report("Task", {"trait": [("case", NONE)]}, answer)
        assert capsys.readouterr().out == line + "\n"


def test_a_function_is_empty_if_it_only_returns_none():
    def documented(x):
        """It says what is due."""

    def dotted(x): ...

    def passed(x):
        pass

    def one(x):
        return 1

    def called(x):
        print(x)

    def assigned(x):
        y = 3  # noqa: F841

    assert all(map(is_empty, (documented, dotted, passed, lambda x: None, {"a": "b"})))
    assert not any(map(is_empty, (one, called, assigned)))


def test_an_error_of_the_reader_has_its_line():
    source = "def answer(x):\n    y = 2\n    return x / (y - 2)\n"
    names = {}
    exec(compile(source, "<cell 1>", "exec"), names)
    with pytest.raises(ZeroDivisionError) as caught:
        names["answer"](1)
    assert in_words(caught.value) == "ZeroDivisionError: division by zero (line 3)"
    linecache.cache["<cell 1>"] = (len(source), None, source.splitlines(keepends=True), "<cell 1>")
    assert in_words(caught.value) == "ZeroDivisionError: division by zero (line 3: return x / (y - 2))"


def test_each_notebook_with_exercises_has_a_module_of_its_number_and_uses_all_its_checks():
    modules = {path.name[1:3]: path for path in (ROOT / "course" / "exercises").glob("e*.py")}
    notebooks = {path.name[:2]: path for path in pages() if path.name != OFFICIAL}
    assert modules.keys() == notebooks.keys()
    for number, path in modules.items():
        checks = set(re.findall(r"^def (check_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
        page = notebooks[number].read_text(encoding="utf-8")
        assert checks
        assert checks <= set(re.findall(r"\bcheck_\w+(?=\()", page)), path.name
        assert f"from course.exercises.{path.stem} import" in page

"""The pages of a class run, answer nothing before the vote, lead nowhere wrong, and never take the place of others."""

import json
import re

from course.classroom.__main__ import main
from course.classroom.copies import CLOSED, FOLDED, copy_for_class, is_for_a_class, write_pages
from course.classroom.routes import ROUTES, page_of
from course.classroom.sections import sections_of
from course.pages.anatomy import HIDDEN, LINK, NOTEBOOKS, ROOT, link_faults

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The copies of all pages, by number, in a folder of the depth of class/."""
    folder = tmp_path_factory.mktemp("project") / "class"
    return {path.name[:2]: path for path in write_pages(ROUTES["two-days"], folder)}


def cells_of(path):
    return nbformat.read(path, as_version=4).cells


def text_of(path, kind="markdown"):
    return "\n\n".join(cell.source for cell in cells_of(path) if cell.cell_type == kind)


@pytest.mark.parametrize("number", ROUTES["two-days"])
def test_no_page_holds_an_output_or_a_solution(copies, number):
    notebook = nbformat.read(copies[number], as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert "solutions/" not in json.dumps(notebook)
    assert not (copies[number].parent / "solutions").exists()


@pytest.mark.parametrize("number", ROUTES["two-days"])
def test_nothing_in_sight_answers_the_vote(copies, number):
    """Behind Predict every section is closed but the exercises, and its answer is in the first of them, folded."""
    sections = sections_of(nbformat.read(copies[number], as_version=4))
    [vote] = [place for place, section in enumerate(sections) if section.heading == "Predict"]
    assert all(CLOSED not in cell.metadata for section in sections[: vote + 1] for cell in section.cells)
    question = "\n".join(cell.source for cell in sections[vote].cells)
    assert "Vote." in question
    assert "<details>" not in question
    behind = [section for section in sections[vote + 1 :] if section.level == 2]
    for section in behind:
        first = section.cells[0]
        assert first.metadata.get(CLOSED, False) == (section.heading != "Your turn"), section.heading
        if section.heading != "Your turn":
            assert first.source == f"## {section.heading}", "a closed heading stays in sight with its whole cell"
    original = "\n\n".join(cell.source for cell in cells_of(page_of(number)) if cell.cell_type == "markdown")
    fold = re.search(r"^## Predict\n.*?(<details>.*?</details>)", original, flags=re.MULTILINE | re.DOTALL)[1]
    ends = [place for place in range(vote + 2, len(sections)) if sections[place].level == 2]
    assert sections[ends[0] - 1].cells[-1].source.startswith("**The vote.**\n\n<details>")
    assert fold.splitlines()[2][:20] in sections[ends[0] - 1].cells[-1].source


@pytest.mark.parametrize("number", ROUTES["two-days"])
def test_the_class_stops_at_the_question_and_all_code_behind_it_runs_with_the_next_section(copies, number):
    """Page 00 makes its eight ports behind the question: who ran the cells down to it would not have them."""
    sections = sections_of(nbformat.read(copies[number], as_version=4))
    [vote] = [place for place, section in enumerate(sections) if section.heading == "Predict"]
    [question] = sections[vote].cells
    assert question.source.endswith("*Vote. The answer is at the end of the next section.*")
    assert sections[vote + 1].level == 2
    assert sections[vote + 1].cells[0].metadata[CLOSED]


def test_the_ports_of_page_00_are_made_behind_the_closed_heading(copies):
    cells = cells_of(copies["00"])
    places = [
        next(place for place, cell in enumerate(cells) if what in cell.source) for what in ("## See it", "broken =")
    ]
    assert places[0] < places[1]
    assert cells[places[1] - 1].source.startswith("The next cell makes the eight ports.")


@pytest.mark.parametrize("number", ROUTES["two-days"])
def test_what_is_no_part_of_the_lesson_is_folded_and_nothing_else(copies, number):
    cells = [cell for cell in cells_of(copies[number]) if cell.cell_type == "code"]
    folded = [cell.metadata.get("jupyter", {}).get(FOLDED, False) for cell in cells]
    assert folded == [HIDDEN in cell.metadata.get("tags", ()) for cell in cells]
    assert any(folded)
    assert not all(folded)


@pytest.mark.parametrize("number", ROUTES["two-days"])
def test_what_is_said_to_lonely_readers_is_left_out(copies, number):
    said = text_of(page_of(number))
    here = text_of(copies[number])
    assert "*Reading: " in said
    for words in ("*Reading:", "In a hurry?", "some wrong answers", "> **Lost?** Click into the first cell under"):
        assert words not in here
    assert here.count("```") % 2 == 0
    for kept in ("## What you'll do", "## Your turn", "**Try it.**"):
        assert here.count(kept) == said.count(kept)


@pytest.mark.parametrize("number", ROUTES["two-days"])
def test_all_else_of_a_page_is_there(copies, number):
    """Its code, line for line, its exercises and their hints."""
    page = page_of(number)
    here, there = (
        re.sub(r'"(?:\.\./)[^"]*?(course/weights/|keras_torch_mapping)', r'"\1', text_of(path, "code"))
        for path in (copies[number], page)
    )
    assert here.splitlines() == there.splitlines()
    assert text_of(copies[number]).count("<details>") == text_of(page).count("<details>")


@pytest.mark.parametrize("number", ROUTES["two-days"])
def test_every_link_of_a_copy_leads_somewhere(copies, number):
    file = copies[number]
    text = text_of(file)
    assert list(link_faults(text, file.parent)) == []
    for target in LINK.findall(text):
        if target.endswith(".ipynb") and not target.startswith("https://"):
            assert (file.parent / target).resolve().parent == file.parent, "a page of the class, not one with outputs"


def test_in_a_route_the_pages_follow_each_other(tmp_path):
    files = write_pages(ROUTES["half-day"], tmp_path / "class")
    assert [file.name[:2] for file in files] == ["00", "01", "04", "10"]
    lines = [re.search(r"^\*(?:Previous|Next): .*\*$", text_of(file), flags=re.MULTILINE)[0] for file in files]
    assert re.findall(r"Previous: \[(\d\d)\]|Next: \[(\d\d)\]", " ".join(lines)) == [
        *[("", "01")],
        *[("00", ""), ("", "04")],
        *[("01", ""), ("", "10")],
        *[("04", "")],
    ]
    [alone] = write_pages(["04"], tmp_path / "alone")
    assert not re.search(r"^\*+$", text_of(alone), flags=re.MULTILINE), "no line of minutes without minutes"
    assert "[03](" in text_of(files[0]), "a page that is not of the class is linked where it is"
    assert list(link_faults(text_of(files[0]), files[0].parent)) == []


def test_a_page_of_a_class_runs(tmp_path):
    """The last page of half a day, which reads weights and a table of the project."""
    [file] = write_pages(["10"], tmp_path / "class")
    notebook = nbformat.read(file, as_version=4)
    last = max(place for place, cell in enumerate(notebook.cells) if "check_fixed_twin(my_fix)" in cell.source)
    short = next(place for place, cell in enumerate(notebook.cells) if "other_model, other_x =" in cell.source)
    kept = [*notebook.cells[:short], notebook.cells[last]]
    notebook = new_notebook(cells=kept, metadata=notebook.metadata)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(file.parent)}}).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    assert "not attempted yet" in printed


def test_the_work_of_others_is_never_written_over(tmp_path):
    folder = tmp_path / "class"
    write_pages(["00", "04"], folder)
    work = folder / page_of("04").name
    work.write_text("somebody's work", encoding="utf-8")
    (folder / page_of("00").name).unlink()
    with pytest.raises(FileExistsError, match=r"class has 04_same_padding\.ipynb already.*nothing was written"):
        write_pages(["00", "04"], folder)
    assert work.read_text(encoding="utf-8") == "somebody's work"
    assert not (folder / page_of("00").name).exists()


@pytest.mark.parametrize("folder", ["notebooks", "docs/class", "/elsewhere/class", ".", "../class"])
def test_only_a_folder_that_git_and_the_site_leave_out_will_do(folder, capsys):
    assert not is_for_a_class(ROOT / folder)
    with pytest.raises(SystemExit):
        main(["--to", str(ROOT / folder)])
    assert "name a folder in it such as class-b" in capsys.readouterr().err
    assert is_for_a_class(ROOT / "class")
    assert is_for_a_class(ROOT / "class-b" / "monday")


def test_an_unknown_route_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--route", "3h"])
    assert "invalid choice: '3h' (choose from" in capsys.readouterr().err


def test_any_pages_can_be_chosen(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("course.classroom.__main__.is_for_a_class", lambda folder: True)
    main(["--pages", "10", "00", "10", "--to", str(tmp_path / "class")])
    assert [path.name[:2] for path in sorted((tmp_path / "class").iterdir())] == ["00", "10"]
    assert re.search(r"Next: \[10\]", text_of(tmp_path / "class" / page_of("00").name))
    for wrong in (["--pages", "14"], ["--pages"], ["--pages", "00", "--route", "90min"]):
        with pytest.raises(SystemExit):
            main(wrong)
    assert "not allowed with argument" in capsys.readouterr().err


def test_git_and_the_site_leave_the_folder_out():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "/class*/" in ignored
    assert '"class*"' in (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")


def test_a_text_is_cut_at_its_headings_and_not_in_code():
    text = "# Title\n\nWords.\n\n## Part\n\n```python\n# a comment\n```\n\n### Deeper\nMore."
    notebook = new_notebook(cells=[new_markdown_cell(text, id="a"), new_code_cell("1", id="b")])
    found = sections_of(notebook)
    assert [(section.heading, section.level) for section in found] == [("Title", 1), ("Part", 2), ("Deeper", 3)]
    assert [cell["id"] for section in found for cell in section.cells] == ["a", "a-2", "a-3", "b"]
    assert "# a comment" in found[1].cells[0].source


def test_a_copy_leaves_the_page_as_it_was():
    page = page_of("04")
    before = page.read_bytes()
    copy_for_class(page, {page: NOTEBOOKS.parent / "class" / page.name})
    assert page.read_bytes() == before

"""The sheets of a class print on one A4 page each, in letters that can be read, and the exit paper without answers."""

import re
import zlib

from course import handout
from course.handout import NOT_ON_PAPER, SHEETS, as_html, count_pages, find_browser, main

import pytest

POINTS = r"[-.\d]+"
A4 = {"handout": (842, 595), "exit-paper": (595, 842)}
browser_needed = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium here: on Debian, apt-get install chromium"
)


@pytest.fixture(scope="module")
def pdfs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handout")
    main(["--to", str(folder)])
    return {path.stem: path.read_bytes() for path in folder.glob("*.pdf")}


def letter_sizes(pdf):
    """Return the sizes of the letters in a PDF of Chromium, in points."""
    sizes = []
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, flags=re.DOTALL):
        try:
            text = zlib.decompress(stream).decode("latin1")
        except zlib.error:
            continue
        scales = [1.0]
        for line in text.splitlines():
            if line == "q":
                scales.append(scales[-1])
            elif line == "Q" and len(scales) > 1:  # a font may have such a line, too
                scales.pop()
            elif found := re.fullmatch(rf"({POINTS}) 0 0 {POINTS} {POINTS} {POINTS} cm", line):
                scales[-1] *= float(found[1])
            for size in re.findall(rf"({POINTS}) Tf", line):
                sizes.append(float(size) * scales[-1])
    return sizes


@browser_needed
@pytest.mark.parametrize("name", SHEETS)
def test_a_sheet_is_one_page_of_a4(pdfs, name):
    assert count_pages(pdfs[name]) == 1
    box = re.search(rb"/MediaBox \[0 0 ([.\d]+) ([.\d]+)\]", pdfs[name]).groups()
    assert tuple(round(float(side)) for side in box) == A4[name]


@browser_needed
@pytest.mark.parametrize("name", SHEETS)
def test_its_letters_have_at_least_7_points(pdfs, name):
    sizes = letter_sizes(pdfs[name])
    assert len(sizes) > 30
    assert min(sizes) > 6.99


@browser_needed
def test_a_sheet_that_is_too_long_is_refused(tmp_path, monkeypatch, capsys):
    long = tmp_path / "cheat-sheet.md"
    long.write_text(SHEETS["handout"].read_text(encoding="utf-8") * 2, encoding="utf-8")
    monkeypatch.setitem(handout.SHEETS, "handout", long)
    with pytest.raises(SystemExit):
        main(["--to", str(tmp_path)])
    assert "has 2 pages; shorten cheat-sheet.md" in capsys.readouterr().err


@pytest.mark.parametrize("name", SHEETS)
def test_all_words_of_the_source_are_on_the_sheet(name):
    parts = re.split(r"^(?=## )", SHEETS[name].read_text(encoding="utf-8"), flags=re.MULTILINE)
    kept = [part for part in parts if part.split("\n")[0].removeprefix("## ") not in NOT_ON_PAPER[name]]
    assert len(parts) - len(kept) == len(NOT_ON_PAPER[name]), "what is left out is there"
    source = "".join(kept)
    source = re.sub(r"\]\([^)]*\)|```\w*|keras\.layers\.|^\d\. ", "", source, flags=re.MULTILINE)
    shown = re.sub(r"<[^>]+>", " ", as_html(name).replace("<wbr>", "").split("<body", 1)[1].split(">", 1)[1])
    words = r"[A-Za-z0-9]+"
    assert re.findall(words, shown.replace("&quot;", '"')) == re.findall(words, source)


def test_the_exit_paper_holds_no_answer():
    assert "Answers" in SHEETS["exit-paper"].read_text(encoding="utf-8")
    assert "Answers" not in as_html("exit-paper")
    assert "PyTorch compares shapes" not in as_html("exit-paper")


def test_without_a_chromium_a_page_is_left_for_any_browser(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(handout, "find_browser", lambda: None)
    main(["--to", str(tmp_path)])
    said = capsys.readouterr().out
    for name in SHEETS:
        page = tmp_path / f"{name}.html"
        assert f"Open {page} in a browser" in said
        assert page.read_text(encoding="utf-8") == as_html(name)
    assert not list(tmp_path.glob("*.pdf"))

"""The cheat sheet prints on one A4 page, in letters that can be read."""

import re
import zlib

from course import handout
from course.handout import SHEET, as_html, count_pages, find_browser, main

import pytest

POINTS = r"[-.\d]+"
browser_needed = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium here: on Debian, apt-get install chromium"
)


@pytest.fixture(scope="module")
def pdf(tmp_path_factory):
    path = tmp_path_factory.mktemp("handout") / "sheet.pdf"
    main(["--to", str(path)])
    return path.read_bytes()


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
            elif line == "Q":
                scales.pop()
            elif found := re.fullmatch(rf"({POINTS}) 0 0 {POINTS} {POINTS} {POINTS} cm", line):
                scales[-1] *= float(found[1])
            for size in re.findall(rf"({POINTS}) Tf", line):
                sizes.append(float(size) * scales[-1])
    return sizes


@browser_needed
def test_the_cheat_sheet_is_one_page_of_a4_across(pdf):
    assert count_pages(pdf) == 1
    width, height = re.search(rb"/MediaBox \[0 0 ([.\d]+) ([.\d]+)\]", pdf).groups()
    assert (round(float(width)), round(float(height))) == (842, 595)


@browser_needed
def test_its_letters_have_at_least_7_points(pdf):
    sizes = letter_sizes(pdf)
    assert len(sizes) > 100
    assert min(sizes) > 6.99


@browser_needed
def test_a_sheet_that_is_too_long_is_refused(tmp_path, monkeypatch, capsys):
    long = tmp_path / "cheat-sheet.md"
    long.write_text(SHEET.read_text(encoding="utf-8") * 2, encoding="utf-8")
    monkeypatch.setattr(handout, "SHEET", long)
    with pytest.raises(SystemExit):
        main(["--to", str(tmp_path / "sheet.pdf")])
    assert "has 2 pages; shorten cheat-sheet.md" in capsys.readouterr().err


def test_all_words_of_the_cheat_sheet_are_on_it():
    source = re.sub(r"\]\([^)]*\)|```\w*|keras\.layers\.", "", SHEET.read_text(encoding="utf-8"))
    shown = re.sub(r"<[^>]+>", " ", as_html().replace("<wbr>", "").split("<body>")[1])
    words = r"[A-Za-z0-9]+"
    assert re.findall(words, shown.replace("&quot;", '"')) == re.findall(words, source)


def test_without_a_chromium_a_page_is_left_for_any_browser(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(handout, "find_browser", lambda: None)
    main(["--to", str(tmp_path / "sheet.pdf")])
    page = tmp_path / "sheet.html"
    assert f"Open {page} in a browser" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == as_html()
    assert not (tmp_path / "sheet.pdf").exists()

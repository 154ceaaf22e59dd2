"""The slides: what they take from the pages, and how they look in a real browser, opened without a server.

The tests in a browser are skipped where Playwright, a Chromium or reveal.js is missing. ``make slides`` installs
reveal.js.
"""

import json
import re

from course.figures import KERAS, RIGHT, WRONG
from course.pages.anatomy import NOTEBOOKS, ROOT
from course.slides import SlideError
from course.slides.__main__ import HERE, NEEDED, REVEAL, write
from course.slides.deck import SOURCE, decks, read_deck
from course.slides.page import Page
from tests.helpers.browser import opened_tab, skipped_without, started

import nbformat
import pytest

DECKS = decks()
PADDING = NOTEBOOKS / "04_same_padding.ipynb"

in_a_browser = [
    *skipped_without("playwright", "axe_playwright_python"),
    pytest.mark.skipif(not (REVEAL / NEEDED[0]).is_file(), reason="no reveal.js here: make slides, with npm"),
]


def browsing(test):
    """Mark a test that needs a browser and reveal.js."""
    for mark in in_a_browser:
        test = mark(test)
    return test


def deck_of(tmp_path, body, notes="Notes, 2 minutes:\n"):
    path = tmp_path / "04.md"
    path.write_text(f"## One\n\nNotes, 1 minute:\n\n---\n\n{body}\n\n{notes}", encoding="utf-8")
    return read_deck(path, Page(PADDING))


# --- What a deck is made of -----------------------------------------------------------------------------------------


def test_the_pages_that_are_taught_most_have_slides():
    assert list(DECKS) == ["04", "06", "07", "08", "10"]


@pytest.mark.parametrize("number", DECKS)
def test_a_deck_asks_shows_explains_fixes_and_checks(number):
    source = (SOURCE / f"{number}.md").read_text(encoding="utf-8")
    parts = ["@title", "@question", "@reasons", "@answer", "## Which check would have caught it?", "@exercise"]
    places = [source.index(part) for part in [*parts, "## To discuss"]]
    assert places == sorted(places)
    assert re.search(r"^## The cause", source, flags=re.MULTILINE)
    assert re.search(r"^## (The )?[Ff]ix", source, flags=re.MULTILINE)
    assert len(DECKS[number].pictures) >= 2
    assert 8 <= len(DECKS[number].slides) <= 14
    assert all(slide.minutes and slide.notes for slide in DECKS[number].slides)


@pytest.mark.parametrize("number", DECKS)
def test_code_and_outputs_can_be_read_from_the_last_row(number):
    for slide in DECKS[number].slides:
        for kind, html in re.findall(r'<pre class="(\w+)[^"]*"><code>(.*?)</code></pre>', slide.body, flags=re.DOTALL):
            lines = re.sub(r"<[^>]+>|&\w+;", lambda tag: "x" * tag[0].startswith("&"), html).splitlines()
            assert len(lines) <= 11, f"{kind} of {len(lines)} lines"
            assert max(map(len, lines)) <= 76, html


def test_the_slide_changes_with_the_page(tmp_path):
    notebook = nbformat.read(PADDING, as_version=4)
    code = next(cell for cell in notebook.cells if cell.id == "padding-16")
    code.source = code.source.replace("total // 2", "total // 3")
    nbformat.write(notebook, tmp_path / PADDING.name)
    (tmp_path / "04.md").write_text("@code padding-16\n\nNotes, 1 minute:\n", encoding="utf-8")
    [slide] = read_deck(tmp_path / "04.md", Page(tmp_path / PADDING.name)).slides
    assert "total // 3" in re.sub(r"<[^>]+>", "", slide.body)


def test_code_is_taken_by_name(tmp_path):
    page = Page(PADDING)
    assert page.code("padding-20", ["fixed"]).startswith("def fixed(x):\n    padded = ")
    assert page.code("padding-06", ["naive"]) == "naive = nn.Conv2d(2, 4, (3, 5), stride=2, padding=(1, 2))"
    forward = Page(NOTEBOOKS / "08_dronet.ipynb").code("dronet-naive-block", ["NaiveBlock.forward"])
    assert forward.startswith("def forward(self, x):\n    x = ")
    deck = deck_of(tmp_path, "@code padding-20 pad_like_keras fixed")
    assert "\n\n<span" in deck.slides[1].body  # one empty line between them
    assert "\n\n\n" not in deck.slides[1].body


def test_an_exercise_brings_its_minutes_and_no_hint(tmp_path):
    slide = deck_of(tmp_path, "@exercise 2").slides[1]
    assert "Dilation" in slide.body
    assert "Hint" not in slide.body
    assert slide.minutes == 2 + Page(PADDING).exercise(2).minutes == 7


def test_the_right_option_and_all_reasons_are_those_of_the_page(tmp_path):
    slide = deck_of(tmp_path, "@question\n\n@answer", "Notes, 2 minutes:\n\n@reasons\n").slides[1]
    assert slide.body.count("<li>") == slide.notes.count("<li>") == 4
    assert "<strong>✓ 4.</strong> All of them" in slide.body
    assert "<strong>4, right:</strong> Along the 16 columns" in slide.notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("@picture padding-99", "04_same_padding.ipynb has no cell padding-99"),
        ("@picture padding-16", "cell padding-16 of 04_same_padding.ipynb shows no picture"),
        ("@output padding-18", "cell padding-18 of 04_same_padding.ipynb prints nothing"),
        ("@code padding-15", "cell padding-15 of 04_same_padding.ipynb has no code"),
        ("@code padding-20 pad fixed", "cell padding-20 of 04_same_padding.ipynb does not define pad"),
        ("@list padding-07b", "04_same_padding.ipynb has no cell padding-07b"),
        ("@list padding-08b", "cell padding-08b of 04_same_padding.ipynb has no list"),
        ("@exercise 3", "04_same_padding.ipynb has 2 exercises, none with the number 3"),
        ("@exercise first", "04_same_padding.ipynb has 2 exercises, none with the number 0"),
        ("@picture", "@picture: missing a required argument: 'cell"),
        ("@answer 3", "@answer 3: too many positional arguments"),
        ("@figure padding-18", "@figure is unknown; there are @title, "),
        ("Notes, 1 minute:", 'a slide has one line such as "Notes, 3 minutes:"'),
    ],
)
def test_what_is_gone_or_misspelt_is_one_clear_error(tmp_path, line, message):
    with pytest.raises(SlideError) as caught:
        deck_of(tmp_path, line)
    assert str(caught.value).startswith(f"04.md, slide 2: {message}")


def test_a_page_without_a_prediction_is_an_error(tmp_path):
    cell = nbformat.v4.new_markdown_cell("# 14. Recurrent layers: no prediction yet")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "14.ipynb")
    page = Page(tmp_path / "14.ipynb")
    assert page.title() == ("14. Recurrent layers", "no prediction yet")
    with pytest.raises(SlideError, match=r"^14.ipynb has no prediction$"):
        page.question()
    with pytest.raises(SlideError, match=r"does not say which option is right"):
        page.reasons()


def test_without_reveal_the_error_says_what_to_do(tmp_path):
    with pytest.raises(SlideError, match=r"^reveal.js is not installed: run npm ci in course/slides"):
        write(tmp_path / "slides", reveal=tmp_path)
    assert not (tmp_path / "slides").exists()


def test_packages_are_pinned_and_no_registry_is_named():
    package = json.loads((HERE / "package.json").read_text(encoding="utf-8"))
    lock = json.loads((HERE / "package-lock.json").read_text(encoding="utf-8"))
    installed = {name: entry for name, entry in lock["packages"].items() if name}
    assert {f"node_modules/{name}" for name in package["dependencies"]} == set(installed)
    for name, entry in installed.items():
        assert entry["version"] == package["dependencies"][name.removeprefix("node_modules/")]
        assert entry["integrity"].startswith("sha512-")
        assert "resolved" not in entry
    for file in HERE.iterdir():
        assert not file.is_file() or "://" not in file.read_text(encoding="utf-8"), file.name
    assert "node_modules/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_colours_are_those_of_the_figures():
    style = (HERE / "slides.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(keras|right|wrong): (#\w+);", style))
    assert colours == {"keras": KERAS["color"], "right": RIGHT["color"], "wrong": WRONG["color"]}


# --- In a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "slides"
    write(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    with started() as chromium:
        yield chromium


@pytest.fixture
def tab(browser):
    with opened_tab(browser, 1280, 720) as page:
        page.on("requestfailed", lambda request: page.faults.append(request.url))
        yield page


def open_deck(tab, slides, number, query=""):
    tab.goto((slides / f"{number}.html").as_uri() + query)
    tab.wait_for_function("Reveal.isReady()")


# What reaches over the edges of the slide, which fills the window, and which pictures are not drawn, have no text, or
# are drawn so small that their letters (25 pixels as they are stored) have less than 13.
FAULTS = """() => {
  const slide = Reveal.getCurrentSlide().querySelector(".slide");
  const found = [];
  for (const part of slide.querySelectorAll("*")) {
    const box = part.getBoundingClientRect();
    if (box.right > innerWidth - 40 || box.bottom > innerHeight - 20 || part.scrollWidth > part.clientWidth + 1
        && getComputedStyle(part).display === "block") found.push(part.outerHTML.slice(0, 200));
  }
  for (const picture of slide.querySelectorAll("img")) {
    if (!picture.naturalWidth || picture.alt.split(" ").length < 8) found.push(picture.outerHTML);
    const box = picture.getBoundingClientRect();
    const scale = Math.min(box.width / picture.naturalWidth, box.height / picture.naturalHeight);
    if (scale < 0.5) found.push(`${picture.src}: drawn at ${scale}`);
  }
  return found;
}"""


def show_each(tab, number):
    """Show one slide after the other, and yield their numbers."""
    for index in range(len(DECKS[number].slides)):
        tab.evaluate(f"Reveal.slide({index})")
        tab.wait_for_function("[...Reveal.getCurrentSlide().querySelectorAll('img')].every(i => i.complete)")
        yield index + 1


@browsing
@pytest.mark.parametrize("number", DECKS)
def test_every_slide_fits_and_nothing_comes_from_outside(tab, slides, number):
    open_deck(tab, slides, number)
    assert tab.evaluate("Reveal.getTotalSlides()") == len(DECKS[number].slides)
    for slide in show_each(tab, number):
        headings = tab.locator("section.present :is(h1, h2, h3)").evaluate_all("all => all.map(h => h.tagName)")
        assert headings == ["H1" if slide == 1 else "H2"]
        assert tab.evaluate(FAULTS) == [], f"slide {slide}"
    assert tab.faults == []


@browsing
@pytest.mark.parametrize("number", DECKS)
def test_axe_finds_nothing_serious(tab, slides, number):
    from axe_playwright_python.sync_playwright import Axe

    open_deck(tab, slides, number, "?print-pdf")  # all slides at once
    tab.wait_for_function(f"document.querySelectorAll('.pdf-page').length == {len(DECKS[number].slides)}")
    found = Axe().run(tab).response["violations"]
    assert {one["id"]: one["nodes"][0]["html"] for one in found if one["impact"] in ("serious", "critical")} == {}


@browsing
def test_the_notes_open_in_a_window_of_their_own(tab, slides):
    open_deck(tab, slides, "04", "#/3")
    with tab.expect_popup() as opened:
        tab.keyboard.press("s")
    notes = opened.value.locator(".speaker-controls-notes")
    notes.get_by_text("add a size that somebody names").wait_for()
    assert not tab.locator("aside.notes").first.is_visible()


@browsing
@pytest.mark.parametrize("number", DECKS)
def test_a_deck_prints_a_page_for_each_slide(tab, slides, number):
    open_deck(tab, slides, number, "?print-pdf")
    tab.wait_for_function("document.querySelectorAll('.pdf-page').length > 0")
    pdf = tab.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type /Page\b", pdf)) == len(DECKS[number].slides)


@browsing
def test_the_first_page_lists_all_decks(tab, slides):
    tab.goto((slides / "index.html").as_uri())
    targets = tab.locator("a").evaluate_all("all => all.map(a => a.getAttribute('href').split('?')[0])")
    assert set(targets) == {f"{number}.html" for number in DECKS}
    for number, deck in DECKS.items():
        row = tab.locator("tr", has=tab.locator(f"a[href='{number}.html']"))
        assert row.locator("td").nth(2).inner_text() == str(deck.minutes)
    assert tab.faults == []

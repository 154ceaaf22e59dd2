"""The site, built from the stored notebooks and opened in a real browser from its folder, without a server.

Skipped where the packages of the extra ``site`` or a Chromium are missing; CI has both.
"""

import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlparse

from course.pages.anatomy import NOTEBOOKS, OFFICIAL, ROOT, pages, prediction, solution_of
from parity.padding import same_padding
from tests.helpers.browser import opened_tab, skipped_without, started

import nbformat
import numpy as np
import pytest

pytestmark = skipped_without("sphinx", "myst_nb", "sphinx_book_theme", "playwright")

NOTEBOOK_PAGES = [path.relative_to(ROOT).with_suffix("").as_posix() for path in pages()]
SOLUTION_PAGES = [
    solution_of(path).relative_to(ROOT).with_suffix("").as_posix() for path in pages() if path.name != OFFICIAL
]
TEXT_PAGES = [
    *(f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")),
    *(f"docs/teaching/{path.stem}" for path in (ROOT / "docs" / "teaching").glob("*.md")),
    "notebooks/README",
]
ALL_PAGES = [*TEXT_PAGES, *NOTEBOOK_PAGES, *SOLUTION_PAGES]
PREDICTING = [page for page in NOTEBOOK_PAGES if not page.endswith(OFFICIAL.removesuffix(".ipynb"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-E",
        "-b",
        "html",
        "-c",
        "docs",
        ".",
        folder,
    ]
    result = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def browser(site):
    with started() as chromium:
        yield chromium


@pytest.fixture
def tab(browser):
    with opened_tab(browser, 1200, 900) as page:
        yield page


def address(site, page):
    return (site / f"{page}.html").as_uri()


def test_the_site_is_small(site):
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert size < 25e6


def test_the_folder_opens_at_the_landing_page(tab, site):
    tab.goto((site / "index.html").as_uri())
    tab.wait_for_url(re.compile("docs/index.html"))
    assert tab.locator("h1:visible").inner_text().startswith("Keras to PyTorch")


@pytest.mark.parametrize("page", ALL_PAGES)
def test_a_page_loads_without_error_and_nothing_from_outside(tab, site, page):
    tab.goto(address(site, page))
    assert tab.locator("h1:visible").count() == 1
    missing = tab.evaluate(
        "[...document.querySelectorAll('main img')].filter(i => !i.alt || !i.naturalWidth).map(i => i.src)"
    )
    assert missing == []
    alts = tab.evaluate("[...document.querySelectorAll('main img')].map(i => i.alt)")
    assert not any(re.search(r"\.(png|svg)$", alt) for alt in alts)
    nothing = "[...document.querySelectorAll('.cell_output pre')].filter(pre => !pre.textContent.trim()).length"
    assert tab.evaluate(nothing) == 0
    for width in (1200, 400):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        # A name that is broken after each letter makes a narrow and high head of a row.
        heads = "[...document.querySelectorAll('.dataframe tbody th')].filter(th => th.textContent.length > 3)"
        assert tab.evaluate(f"{heads}.filter(th => th.offsetWidth < th.offsetHeight).map(th => th.textContent)") == []
    assert tab.faults == []


@pytest.mark.parametrize("page", ALL_PAGES)
def test_axe_finds_nothing_serious(tab, site, page):
    from axe_playwright_python.sync_playwright import Axe

    tab.goto(address(site, page))
    found = Axe().run(tab).response["violations"]
    serious = {one["id"]: one["nodes"][0]["html"] for one in found if one["impact"] in ("serious", "critical")}
    assert serious == {}


class Links(HTMLParser):
    """The targets of links, and the names that links may lead to, of one page."""

    def __init__(self):
        super().__init__()
        self.targets, self.names = [], set()

    def handle_starttag(self, tag, attrs):
        """Note an address or a name."""
        attributes = dict(attrs)
        self.names |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and attributes.get("href"):
            self.targets.append(attributes["href"])


def links_of(path):
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


def test_every_link_within_the_site_leads_somewhere(site):
    parsed = {path: links_of(path) for path in site.rglob("*.html")}
    assert len(parsed) > len(ALL_PAGES)
    dead = []
    for path, links in parsed.items():
        for target in links.targets:
            url = urlparse(target)
            if url.scheme:
                continue
            goal = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not goal.is_file() or (
                url.fragment
                and goal.suffix == ".html"
                and goal in parsed
                and unquote(url.fragment) not in parsed[goal].names
            ):
                dead.append(f"{path.relative_to(site)}: {target}")
    assert dead == []


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("odd pixel padding same", "notebooks/04_same_padding"),
        ("cannot assign module before Module.__init__() call", "docs/symptoms"),
        ("modified by an inplace operation", "docs/symptoms"),
        ("propose_mapping", "docs/your-own-model"),
    ],
)
def test_the_search_finds(tab, site, words, page):
    tab.goto((site / "search.html").as_uri() + f"?q={words.replace(' ', '+')}")
    tab.locator(f"#search-results a[href*='{page}']").first.wait_for()
    found = tab.evaluate("[...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))")
    assert not any("solutions" in target for target in found)


def predicted(page):
    cells = nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    options, fold, _ = prediction(prose)
    return options, int(re.search(r"^\*\*(\d)\.\*\*", fold, flags=re.MULTILINE)[1])


@pytest.mark.parametrize("page", PREDICTING)
def test_a_prediction_can_be_made(tab, site, page):
    options, right = predicted(page)
    tab.goto(address(site, page))
    buttons = tab.locator(".prediction-option")
    assert buttons.count() == len(options)
    outputs = tab.locator("section#see-it-go-wrong .cell_output")
    assert not any(output.is_visible() for output in outputs.all())
    wrong = 1 if right != 1 else 2
    buttons.nth(wrong - 1).click()
    assert tab.locator(".prediction-why").nth(wrong - 1).inner_text().startswith("✗ No.")
    assert all(output.is_visible() for output in outputs.all())
    buttons.nth(right - 1).click()
    said = tab.locator(".prediction-why").nth(right - 1).inner_text()
    assert said.startswith("✓ Right.")
    assert len(said) > 40
    assert tab.locator(".prediction-right").count() == tab.locator(".prediction-wrong").count() == 1


def test_an_output_can_be_seen_without_a_prediction(tab, site):
    tab.goto(address(site, "notebooks/04_same_padding"))
    tab.locator(".prediction-cover").first.click()
    assert all(output.is_visible() for output in tab.locator("section#see-it-go-wrong .cell_output").all())
    assert tab.locator(".prediction-cover").count() == 0


def test_without_scripts_the_page_is_whole(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address(site, "notebooks/04_same_padding"))
    assert page.locator("section#predict details").count() == 1
    assert all(output.is_visible() for output in page.locator("section#see-it-go-wrong .cell_output").all())
    context.close()


def test_folds_are_closed_and_open(tab, site):
    tab.goto(address(site, "notebooks/04_same_padding"))
    fold = tab.locator("section#predict details")
    assert not fold.locator("p").first.is_visible()
    fold.locator("summary").click()
    assert fold.locator("p").first.is_visible()


def test_dark_mode_is_dark(tab, site):
    tab.goto(address(site, "notebooks/04_same_padding"))
    background = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(background)
    tab.locator(".theme-switch-button:visible").click()
    tab.locator("[data-mode=dark]:visible").last.click()
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert tab.evaluate(background) != light
    assert tab.faults == []


def test_a_notebook_can_be_downloaded_as_it_is(tab, site):
    tab.goto(address(site, "notebooks/04_same_padding"))
    target = tab.locator("a[href$='04_same_padding.ipynb']").first.get_attribute("href")
    stored = (site / "notebooks" / target).resolve()
    assert stored.read_bytes() == (NOTEBOOKS / "04_same_padding.ipynb").read_bytes()


# --- Explorers ------------------------------------------------------------------------------------------------------


def test_the_explorer_of_padding_computes_what_parity_does(tab, site):
    tab.goto(address(site, "notebooks/04_same_padding"))
    settings = [(n, k, s, d) for n in range(1, 15) for k in range(1, 8) for s in range(1, 5) for d in range(1, 4)]
    found = tab.evaluate("settings => settings.map(s => paddingExplorer.samePadding(...s))", settings)
    assert [tuple(pair) for pair in found] == [same_padding(*setting) for setting in settings]


def reads(size, kernel, stride, dilation, padding):
    """Return which elements each output reads; an element of the padding is None."""
    padded = [None] * padding[0] + list(range(size)) + [None] * padding[1]
    reach = (kernel - 1) * dilation + 1
    return [padded[start : start + reach : dilation] for start in range(0, len(padded) - reach + 1, stride)]


def test_the_verdict_of_the_explorer_is_that_of_the_elements_read(tab, site):
    tab.goto(address(site, "notebooks/04_same_padding"))
    settings = [(n, k, s, d) for n in range(1, 15) for k in range(1, 8) for s in range(1, 5) for d in range(1, 4)]
    said = tab.evaluate("settings => settings.map(s => paddingExplorer.paddingVerdict(...s)[0])", settings)
    expected = []
    for size, kernel, stride, dilation in settings:
        half = ((kernel - 1) * dilation + 1) // 2
        keras = reads(size, kernel, stride, dilation, same_padding(size, kernel, stride, dilation))
        port = reads(size, kernel, stride, dilation, (half, half))
        expected.append("loud" if len(keras) != len(port) else "right" if keras == port else "silent")
    assert said == expected
    assert set(said) == {"loud", "right", "silent"}


def test_the_sliders_of_padding_move_the_verdict(tab, site):
    tab.goto(address(site, "notebooks/04_same_padding"))
    explorer = tab.locator("#explorer-padding")
    verdict = explorer.locator(".explorer-verdict")
    assert verdict.inner_text().startswith("✗ Silent.")
    explorer.locator("input[name=size]").focus()
    tab.keyboard.press("ArrowLeft")
    assert verdict.inner_text().startswith("✓")
    assert explorer.locator("svg rect").count() > 10


def test_the_explorer_of_flatten_computes_what_numpy_does(tab, site):
    tab.goto(address(site, "notebooks/06_flatten_order"))
    for shape in [(h, w, c) for h in range(1, 5) for w in range(1, 5) for c in range(1, 5)]:
        channels_first = np.arange(np.prod(shape)).reshape(shape[2], *shape[:2])
        expected = np.moveaxis(channels_first, 0, -1).ravel()
        assert tab.evaluate("shape => flattenExplorer.flattenOrder(shape)", shape) == expected.tolist()
        kept = int((expected == np.arange(expected.size)).sum())
        assert tab.evaluate("shape => flattenExplorer.flattenKept(shape)", shape) == kept
    explorer = tab.locator("#explorer-flatten")
    explorer.locator("input[name=channels]").focus()
    for _ in range(2):
        tab.keyboard.press("ArrowLeft")
    assert explorer.locator(".explorer-verdict").inner_text().startswith("✓")


# --- The quiz -------------------------------------------------------------------------------------------------------


def test_each_question_of_the_quiz_can_be_answered(tab, site):
    tab.goto(address(site, "docs/teaching/quiz"))
    questions = tab.locator("section[id^=quiz] > section")
    assert questions.count() == 10
    for question in questions.all():
        options = question.locator(".prediction-option")
        assert options.count() == 4
        for option in options.all():
            option.click()
        said = question.locator(".prediction-why").all_inner_texts()
        assert sorted(text.split(".")[0] for text in said) == ["✓ Right", "✗ No", "✗ No", "✗ No"]
        assert min(map(len, said)) > 20
    assert tab.locator(".prediction-cover").count() == 0
    assert tab.faults == []


def test_without_scripts_the_quiz_has_its_folds(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address(site, "docs/teaching/quiz"))
    assert page.locator("section[id^=quiz] > section > details").count() == 10
    assert page.locator("section[id^=quiz] > section > ol > li").count() == 40
    context.close()

"""Print what a class gets on paper: ``make handout``.

``handout.pdf`` is docs/cheat-sheet.md on one A4 page, without the sections that a class does not need, and
``exit-paper.pdf`` is docs/teaching/exit-paper.md without its answers. Both are printed by Chromium, in the largest
letters that fit. Where there is none, the same pages are left as HTML, which any browser prints.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from course.pages.anatomy import ROOT

from markdown_it import MarkdownIt

SHEETS = {"handout": ROOT / "docs" / "cheat-sheet.md", "exit-paper": ROOT / "docs" / "teaching" / "exit-paper.md"}
STYLE = ROOT / "docs" / "teaching" / "handout.css"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
NOT_ON_PAPER = {
    "handout": (
        "The rows of a mapping",
        "Recurrent layers",
        "Attention",
        "Masks",
        "Keras models with the channels first",
        "Causes that `diagnose` names",
    ),
    "exit-paper": ("Answers",),
}
"""By sheet, the headings of the sections that are left out."""
LETTERS = {
    "handout": [(7.6, 1.16), (7.4, 1.16), (7.2, 1.14), (7.1, 1.12), (7, 1.1), (7, 1.06)],
    "exit-paper": [(10, 1.35)],
}
"""By sheet, the sizes of letters to try, in points, and how high a line is, in letters. The first that fits is used."""


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says.

    Raises:
        SystemExit: A PDF could not be made, or does not fit on one page.
    """
    parser = argparse.ArgumentParser(prog="python -m course.handout", description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="where to write; the current folder")
    folder = parser.parse_args(arguments).to
    folder.mkdir(parents=True, exist_ok=True)
    browser = find_browser()
    for name, source in SHEETS.items():
        if browser is None:
            to = folder / f"{name}.html"
            to.write_text(as_html(name), encoding="utf-8")
            print(f"There is no Chromium here, so there is no PDF. Open {to} in a browser and print it: one page, A4.")
            continue
        to = folder / f"{name}.pdf"
        for place in range(len(LETTERS[name])):
            print_page(browser, as_html(name, place), to)
            count = count_pages(to.read_bytes())
            if count == 1:
                break
        else:
            parser.error(f"{to} has {count} pages; shorten {source.name}, or change {STYLE.name}")
        print(to)


def find_browser() -> str | None:
    """Return the Chromium to print with: what the variable CHROMIUM names, or the first one on the path."""
    return next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *_BROWSERS))), None)


def as_html(name: str, place: int = -1) -> str:
    """Return a sheet as a page of its own. Links are left out, for paper has none; their words stay.

    Args:
        name: Its key in ``SHEETS``.
        place: Which of its ``LETTERS``; the smallest.
    """
    letters, lines = LETTERS[name][place]
    text = SHEETS[name].read_text(encoding="utf-8")
    for heading in NOT_ON_PAPER[name]:
        text = re.sub(rf"^## {re.escape(heading)}\n(?:(?!## ).*\n)*", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    body = MarkdownIt("commonmark").enable("table").render(text)
    body = body.replace("keras.layers.", "")  # the column is called Keras, and paper is narrow
    # A long call may break behind a dot, a bracket or an underscore, and nowhere else.
    body = re.sub(r"<code>(.*?)</code>", lambda code: re.sub(r"(?<=[._(])(?=[A-Za-z])", "<wbr>", code[0]), body)
    title = re.search(r"^# (.*)$", text, flags=re.MULTILINE)[1]
    style = f":root {{ --letters: {letters}pt; --lines: {lines}; }}\n{STYLE.read_text(encoding='utf-8')}"
    head = f'<meta charset="utf-8"><title>{title}</title><style>\n{style}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body class="{name}">\n{body}</body></html>\n'


def print_page(browser: str, page: str, to: Path) -> None:
    """Let Chromium print a page into a PDF."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        path.write_text(page, encoding="utf-8")
        command = [browser, "--headless", "--disable-gpu", "--no-pdf-header-footer", f"--user-data-dir={folder}/user"]
        if getattr(os, "geteuid", lambda: 1)() == 0:
            command.append("--no-sandbox")  # root has no sandbox to run in, and the page is our own
        command += [f"--print-to-pdf={to.resolve()}", path.as_uri()]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if result.returncode or not to.is_file():
        sys.exit(f"{browser} made no PDF: {result.stderr.strip()}")


def count_pages(pdf: bytes) -> int:
    """Return how many pages a PDF of Chromium has."""
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


if __name__ == "__main__":
    main(sys.argv[1:])

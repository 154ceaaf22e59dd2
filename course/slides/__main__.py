"""Make the slides: ``python -m course.slides``; ``make slides`` also installs reveal.js, which shows them."""

import shutil
import sys
from html import escape
from pathlib import Path
from string import Template

from course.pages.anatomy import ROOT
from course.slides import SlideError
from course.slides.deck import Deck, Slide, decks

HERE = Path(__file__).parent
REVEAL = HERE / "node_modules" / "reveal.js"
NEEDED = ("dist/reset.css", "dist/reveal.css", "dist/reveal.js", "dist/plugin/notes.js", "LICENSE")

_DECK = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="stylesheet" href="reveal/dist/reset.css">
<link rel="stylesheet" href="reveal/dist/reveal.css">
<link rel="stylesheet" href="slides.css">
</head>
<body>
<main class="deck"><div class="reveal"><div class="slides">
$slides
</div></div></main>
<script src="reveal/dist/reveal.js"></script>
<script src="reveal/dist/plugin/notes.js"></script>
<script>
Reveal.initialize({
  width: 1280, height: 720, margin: 0, maxScale: 4, center: false, transition: "none",
  hash: true, slideNumber: "c/t", controlsLayout: "edges", pdfMaxPagesPerSlide: 1, plugins: [RevealNotes],
});
</script>
</body>
</html>
""")
_SLIDE = Template("""<section data-timing="$seconds">
<div class="$layout">
$body</div>
<aside class="notes">
<p>$minutes min.</p>
$notes</aside>
</section>
""")
_INDEX = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Slides</title>
<link rel="stylesheet" href="slides.css">
</head>
<body class="index">
<main>
<h1>Slides</h1>
<p>Open a deck and press S for the notes, F for the full screen, O to see all slides. To print a deck, open "to print"
and print that page; its paper has the size of the slides.</p>
<table>
<thead><tr><th>page</th><th>slides</th><th>minutes, with the exercises</th><th>on paper</th></tr></thead>
<tbody>
$rows</tbody>
</table>
</main>
</body>
</html>
""")
_ROW = Template("""<tr><td><a href="$number.html">$title</a></td><td>$count</td><td>$minutes</td>
<td><a href="$number.html?print-pdf">to print</a>,
<a href="$number.html?print-pdf&amp;showNotes=separate-page">with the notes</a></td></tr>
""")


def write(folder: Path, reveal: Path = REVEAL) -> dict[str, Deck]:
    """Write all decks into a folder, with what they are shown with; they open without a server.

    Args:
        folder: Where to write. What is there is removed.
        reveal: The folder with the package reveal.js.

    Returns:
        The decks by the numbers of their pages.

    Raises:
        SlideError: If reveal.js is not there, or a deck asks for what its page does not have.
    """
    if not (reveal / NEEDED[0]).is_file():
        raise SlideError("reveal.js is not installed: run npm ci in course/slides, or make slides")
    made = decks()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "pictures").mkdir(parents=True)
    for name in NEEDED:
        target = folder / "reveal" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(reveal / name, target)
    shutil.copyfile(HERE / "slides.css", folder / "slides.css")
    rows = []
    for number, deck in made.items():
        slides = "".join(_section(slide) for slide in deck.slides)
        html = _DECK.substitute(title=escape(deck.title), slides=slides)
        (folder / f"{number}.html").write_text(html, encoding="utf-8")
        for name, picture in deck.pictures.items():
            (folder / "pictures" / name).write_bytes(picture.png)
        count, title = len(deck.slides), escape(deck.title)
        rows.append(_ROW.substitute(number=number, title=title, count=count, minutes=deck.minutes))
    (folder / "index.html").write_text(_INDEX.substitute(rows="".join(rows)), encoding="utf-8")
    return made


def _section(slide: Slide) -> str:
    layout = "slide beside" if slide.beside else "slide"
    return _SLIDE.substitute(
        seconds=60 * slide.minutes, layout=layout, body=slide.body, minutes=slide.minutes, notes=slide.notes
    )


def main() -> None:
    """Make all decks and say how long each takes."""
    folder = ROOT / "_site" / "slides"
    try:
        made = write(folder)
    except SlideError as error:
        sys.exit(str(error))
    for number, deck in made.items():
        print(f"_site/slides/{number}.html: {len(deck.slides)} slides, {deck.minutes} minutes")


if __name__ == "__main__":
    main()

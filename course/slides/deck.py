"""How a deck is written, and what becomes of it.

A deck is Markdown. A line ``---`` ends a slide. ``Notes, 3 minutes:`` says how long a slide takes, and begins what only
the teacher sees. A line that begins with @ takes something from the page, or from its solutions:

=================================  ===================================================================
``@title``                         the title of the page and its symptom
``@question``                      the question under "Predict", with its options
``@answer``                        the right option
``@reasons``                       for the notes: what the page says of each option
``@list cell``                     the list in a cell of text
``@picture cell``                  the figure of a cell, with its alternative text
``@code cell``                     the code of a cell
``@code cell name Class.method``   what the cell defines under these names
``@output cell``                   what a cell prints, or its table
``@exercise 1``                    an exercise; its minutes are added to those of the slide
=================================  ===================================================================
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from inspect import signature
from pathlib import Path

from course.pages.anatomy import ROOT, pages
from course.slides import SlideError
from course.slides.page import Page, Picture
from course.verdicts import CAUGHT, PASSES

from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

SOURCE = ROOT / "docs" / "teaching" / "slides"

_TAKE = re.compile(r"^@(\w+) ?(.*)$", re.MULTILINE)
_NOTES = re.compile(r"^Notes, (\d+) minutes?:$", re.MULTILINE)
_VERDICT = re.compile(r"^(DIFFERENT|agree)\b", re.MULTILINE)
_MARKDOWN = MarkdownIt("commonmark").enable("table")
TALL = 1.6
"""A picture whose width is less than so many heights stands beside the text, any other below it."""
WIDE = 64
"""How many columns of large letters fit on a slide. Of smaller ones there are 76."""


@dataclass
class Slide:
    """One slide, as HTML."""

    body: str
    notes: str
    minutes: int
    beside: bool = False


@dataclass
class Deck:
    """The slides for a page."""

    title: str
    symptom: str
    slides: list[Slide]
    pictures: dict[str, Picture] = field(default_factory=dict)
    """The pictures by the names of their files."""

    @property
    def minutes(self) -> int:
        """How long all slides take, exercises included."""
        return sum(slide.minutes for slide in self.slides)


def decks() -> dict[str, Deck]:
    """Return all decks by the numbers of their pages.

    Raises:
        SlideError: If a deck has no page, or asks for what its page does not have.
    """
    notebooks = {path.name[:2]: path for path in pages()}
    made = {}
    for source in sorted(SOURCE.glob("[0-9]*.md")):
        if source.stem not in notebooks:
            raise SlideError(f"{source.name}: there is no notebook with the number {source.stem}")
        made[source.stem] = read_deck(source, Page(notebooks[source.stem]))
    return made


def read_deck(path: Path, page: Page) -> Deck:
    """Return the deck that a Markdown file describes.

    Raises:
        SlideError: If a slide has no notes, or asks for what the page does not have. The error names the slide.
    """
    deck = Deck(*page.title(), slides=[])
    for number, text in enumerate(re.split(r"^---\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE), 1):
        try:
            deck.slides.append(_Reader(deck, page).read(text))
        except SlideError as error:
            raise SlideError(f"{path.name}, slide {number}: {error}") from None
    return deck


class _Reader:
    """Makes one slide."""

    def __init__(self, deck: Deck, page: Page):
        self.deck, self.page = deck, page
        self.minutes = 0
        self.beside = False
        self.takers: dict[str, Callable[..., str]] = {
            "title": self._title,
            "question": self._question,
            "answer": self._answer,
            "reasons": self._reasons,
            "list": self.page.items,
            "picture": self._picture,
            "code": self._code,
            "output": self._output,
            "exercise": self._exercise,
        }

    def read(self, text: str) -> Slide:
        parts = _NOTES.split(text)
        if len(parts) != 3:
            raise SlideError('a slide has one line such as "Notes, 3 minutes:"')
        body, minutes, notes = parts
        body, notes = self._html(body), self._html(notes)
        has_text = re.sub(r"<h2>.*?</h2>|<img[^>]*>|\s", "", body) != ""
        return Slide(body, notes, int(minutes) + self.minutes, self.beside and has_text)

    def _html(self, text: str) -> str:
        return _MARKDOWN.render(_TAKE.sub(self._take, text))

    def _take(self, line: re.Match[str]) -> str:
        kind, arguments = line[1], line[2].split()
        if kind not in self.takers:
            raise SlideError(f"@{kind} is unknown; there are @{', @'.join(self.takers)}")
        try:
            signature(self.takers[kind]).bind(*arguments)
        except TypeError as error:
            raise SlideError(f"{line[0]}: {error}") from None
        return self.takers[kind](*arguments)

    def _title(self) -> str:
        return f"# {self.deck.title}\n\n{self.deck.symptom[:1].upper()}{self.deck.symptom[1:]}"

    def _question(self) -> str:
        question, options = self.page.question()
        return "\n".join([question, "", *(f"{number}. {option}" for number, option in enumerate(options, 1))])

    def _answer(self) -> str:
        right, _ = self.page.reasons()
        _, options = self.page.question()
        return f"**✓ {right}.** {options[right - 1]}"

    def _reasons(self) -> str:
        right, said = self.page.reasons()
        return "\n".join(f"- **{number}{', right' if number == right else ''}:** {why}" for number, why in said.items())

    def _picture(self, cell: str) -> str:
        picture = self.page.picture(cell)
        # The hash: a browser that has an older picture in store does not show that one.
        name = f"{cell}-{hashlib.sha256(picture.png).hexdigest()[:8]}.png"
        self.deck.pictures[name] = picture
        width, height = picture.size
        self.beside |= width < TALL * height
        return _block(
            f'<img class="picture" src="pictures/{name}" alt="{escape(picture.alt)}" width="{width}" height="{height}">'
        )

    def _code(self, cell: str, *names: str) -> str:
        source = self.page.code(cell, list(names)).replace("\n\n\n", "\n\n")
        inner = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True))
        return _preformatted("code", source, inner)

    def _output(self, cell: str) -> str:
        output = self.page.output(cell)
        table = re.search(r"<table.*?</table>", output.get("data", {}).get("text/html", ""), flags=re.DOTALL)
        if table:
            plain = re.sub(r' (border|class|style)="[^"]*"', "", table[0])
            for words, kind in ((CAUGHT, "caught"), (PASSES, "passes")):
                plain = plain.replace(f"<td>{words[0]}", f'<td class="{kind}">{words[0]}')
            return _block(plain)
        text = (output["text"] if "text" in output else output.data["text/plain"]).rstrip()
        inner = _VERDICT.sub(r'<span class="\1">\1</span>', escape(text, quote=False))
        return _preformatted("output", text, inner)

    def _exercise(self, number: str) -> str:
        exercise = self.page.exercise(int(number) if number.isdigit() else 0)
        self.minutes += exercise.minutes
        return f"**{exercise.title}** ({exercise.minutes} minutes)\n\n{exercise.text}"


def _preformatted(kind: str, text: str, html: str) -> str:
    """Return code or an output; its letters are smaller if it has more than ``WIDE`` columns."""
    width = max(map(len, text.splitlines()))
    return _block(f'<pre class="{kind}{" wide" if width > WIDE else ""}"><code>{html.rstrip()}</code></pre>')


def _block(html: str) -> str:
    """Return HTML as a block of Markdown, which leaves it as it is."""
    return f"\n\n{html}\n\n"

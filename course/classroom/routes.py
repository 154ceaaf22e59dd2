"""What a class takes: the pages of each route, the exercises, the sections that are left for reading at home."""

from dataclasses import dataclass
from pathlib import Path

from course.pages.anatomy import pages

ROUTES = {
    "90min": ("00", "04"),
    "half-day": ("00", "01", "04", "10"),
    "two-days": tuple(path.name[:2] for path in pages()),
}
"""By name of a route, the numbers of its pages."""


@dataclass(frozen=True)
class Lesson:
    """A page in a class.

    Attributes:
        page: The number of the page.
        exercises: Which of its exercises the class does, from 1 on.
        without: The headings of sections that this class runs and does not talk about.
    """

    page: str
    exercises: tuple[int, ...] = ()
    without: tuple[str, ...] = ()


NOT_IN_CLASS = ("Your turn", "In practice", "Beyond the lesson", "In this notebook you")
"""How the sections begin that no class reads. The exercises are in the first; their minutes are counted apart."""

TRY_IT = "**Try it.**"
"""How the experiments between the sections begin. They are for readers at home, and for the fast ones in class."""

LEFT_OUT = {"02": ("A third way to write a weight",)}
"""By page, the headings of further sections that are left for reading at home."""


def page_of(number: str) -> Path:
    """Return the notebook with this number.

    Raises:
        KeyError: There is none.
    """
    return {path.name[:2]: path for path in pages()}[number]

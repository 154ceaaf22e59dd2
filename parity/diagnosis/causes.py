"""The only list of causes that can be named, and of what explains each: a page of the course, or the cheat sheet."""

from typing import NamedTuple

CHEAT_SHEET = "cheat sheet"
"""What explains the causes that no page explains: ``docs/cheat-sheet.md`` has a row for each."""

CAUSES = {
    "kernel axes permuted": "01",
    "kernel flipped": CHEAT_SHEET,
    "height and width exchanged": "01",
    "depthwise order": CHEAT_SHEET,
    "groups": CHEAT_SHEET,
    "weights in another order": "01",
    "input axes exchanged": CHEAT_SHEET,
    "kernel not transposed": "02",
    "epsilon": "03",
    "BatchNormalization vectors exchanged": "03",
    "statistics left at 0 and 1": CHEAT_SHEET,
    "train mode": "03",
    "momentum": "03",
    "padding": "04",
    "padding value": "04",
    "padding counted": "04",
    "stride or dilation": CHEAT_SHEET,
    "another pooling": CHEAT_SHEET,
    "overwritten in place": "05",
    "flatten order": "06",
    "weights of another layer": "07",
    "heads exchanged": "07",
    "weights hold other numbers": CHEAT_SHEET,
    "bias missing": CHEAT_SHEET,
    "bias added twice": CHEAT_SHEET,
    "activation missing": CHEAT_SHEET,
    "another activation": CHEAT_SHEET,
    "another slope": CHEAT_SHEET,
    "axis": CHEAT_SHEET,
    "another skip": CHEAT_SHEET,
    "input scaled": CHEAT_SHEET,
    "channels reversed": CHEAT_SHEET,
    "precision": CHEAT_SHEET,
    "gate order": CHEAT_SHEET,
    "recurrent activation": CHEAT_SHEET,
    "reset_after": CHEAT_SHEET,
    "direction": CHEAT_SHEET,
    "reversed output": CHEAT_SHEET,
    "another step": CHEAT_SHEET,
    "another merge": CHEAT_SHEET,
    "time and batch exchanged": CHEAT_SHEET,
    "mask ignored": CHEAT_SHEET,
    "mask inverted": CHEAT_SHEET,
    "mask added": CHEAT_SHEET,
    "packed order": CHEAT_SHEET,
    "head axes": CHEAT_SHEET,
    "output not transposed": CHEAT_SHEET,
    "key and value exchanged": CHEAT_SHEET,
    "scale missing": CHEAT_SHEET,
    "another normalization": CHEAT_SHEET,
    "pre-norm for post-norm": CHEAT_SHEET,
    "activation in another place": CHEAT_SHEET,
    "interpolation": CHEAT_SHEET,
    "order of pixel blocks": CHEAT_SHEET,
    "local response normalization": CHEAT_SHEET,
    "normalization missing": CHEAT_SHEET,
    "unbiased variance": CHEAT_SHEET,
    "another operation": CHEAT_SHEET,
    "output scaled": CHEAT_SHEET,
    "dropout rate": "12",
    "gradient stopped": CHEAT_SHEET,
    "layer frozen": "12",
}
"""Each known cause, and the number of the notebook that explains it, or ``CHEAT_SHEET``."""


class Cause(NamedTuple):
    """What explains a difference.

    Attributes:
        cause: One of ``CAUSES``.
        detail: What was found, in a few words.
        notebook: Number of the notebook that explains it, None if none does: then the cheat sheet has it.
        takes_other: Whether it tells that the twin's layer takes another input although that input was not seen.
        step: The step that it is about, if it is not the one that diverges first because that one's twin does it, too.
    """

    cause: str
    detail: str
    notebook: str | None
    takes_other: bool = False
    step: int | None = None

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        where = f"see the {CHEAT_SHEET}" if self.notebook is None else f"notebook {self.notebook}"
        return f"{self.cause}{detail}: {where}"


class Untried(NamedTuple):
    """What was not tried, because there was too much of it.

    Attributes:
        what: How much there was, and how much of it was tried.
    """

    what: str


def known_cause(cause: str, detail: str = "") -> Cause:
    """Return one of ``CAUSES`` with what was found and the number of its notebook, if it has one."""
    explained_in = CAUSES[cause]
    return Cause(cause, detail, None if explained_in == CHEAT_SHEET else explained_in)

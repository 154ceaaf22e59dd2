"""The causes that can be named, and the page of the course that explains each. This is the only list of them."""

from typing import NamedTuple

CAUSES = {
    "kernel axes permuted": "01",
    "kernel flipped": "01",
    "height and width exchanged": "01",
    "depthwise order": "01",
    "groups": "01",
    "input axes exchanged": "01",
    "kernel not transposed": "02",
    "epsilon": "03",
    "BatchNormalization vectors exchanged": "03",
    "statistics left at 0 and 1": "03",
    "train mode": "03",
    "momentum": "03",
    "padding": "04",
    "padding value": "04",
    "padding counted": "04",
    "stride or dilation": "04",
    "another pooling": "04",
    "overwritten in place": "05",
    "activation missing": "05",
    "another activation": "05",
    "another slope": "05",
    "axis": "05",
    "flatten order": "06",
    "weights of another layer": "07",
    "heads exchanged": "07",
    "weights not moved": "07",
    "bias missing": "07",
    "another skip": "07",
    "input scaled": "08",
    "channels reversed": "08",
    "precision": "08",
    "dropout rate": "12",
    "gradient stopped": "12",
    "layer frozen": "12",
}
"""Each known cause, and the number of the notebook that explains it."""


class Cause(NamedTuple):
    """What explains a difference.

    Attributes:
        cause: One of ``CAUSES``.
        detail: What was found, in a few words.
        notebook: Number of the notebook that explains it.
    """

    cause: str
    detail: str
    notebook: str

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.cause}{detail}: notebook {self.notebook}"


def known_cause(cause: str, detail: str = "") -> Cause:
    """Return one of ``CAUSES`` with what was found and the number of its notebook."""
    return Cause(cause, detail, CAUSES[cause])

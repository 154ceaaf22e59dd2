"""What a search for a mapping has found."""

from collections import Counter
from typing import NamedTuple

from parity.models.alignment import largest
from parity.proposal.failures import Failure

import torch
from torch import Tensor

CALL = " (call "
"""A failure in a later call is named after the part, followed by this and the number of the call."""


class Round(NamedTuple):
    """One round of the search.

    Attributes:
        matched: The module of each part that has one.
        module_inputs: The input of each module, call by call.
    """

    matched: dict[str, str]
    module_inputs: dict[str, list[Tensor]]


class Found(NamedTuple):
    """The result of a search.

    Attributes:
        options: The modules that may be the twin of each part. None stands among them if the part may have no twin.
        failing: The parts, and later calls of shared parts, for which no module is right.
        flattened: For a part and a module: the shape of the features, if the twin has flattened them channels first.
        blocked: For each part that could not be reached: why.
    """

    options: dict[str, set[str | None]]
    failing: dict[str, Failure]
    flattened: dict[tuple[str, str], tuple[int, ...] | None]
    blocked: dict[str, str]

    @property
    def decided(self) -> dict[str, str]:
        """Return the module of each part that has one for certain."""
        single = {label: next(iter(modules)) for label, modules in self.options.items() if len(modules) == 1}
        return {label: module for label, module in single.items() if module is not None}


def part_of(label: str) -> str:
    """Return the label of the part that has failed, also if it has failed in a later call."""
    return label.partition(CALL)[0]


def call_of(label: str) -> int:
    """Return the number of the call in which a part has failed."""
    return int(label.rpartition(CALL)[2].removesuffix(")")) if CALL in label else 1


def union(found: list[Found]) -> Found:
    """Return the common result of several trials, none of which was shown to be wrong."""
    first, *others = found
    options = {
        label: modules.union(*(other.options[label] for other in others)) for label, modules in first.options.items()
    }
    failing: dict[str, Failure] = {}
    blocked: dict[str, str] = {}
    for trial in found:
        failing |= trial.failing
        blocked |= trial.blocked
    for label, failure in failing.items():
        # A failure that is structural in one trial only may come from that trial's choice.
        structural = all(label in trial.failing and trial.failing[label].structural for trial in found)
        failing[label] = failure._replace(structural=structural)
    return Found(options, failing, first.flattened, blocked)


def is_close(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors of the twin differ by rounding only; the tolerance is an estimate, not measured."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    return a.shape == b.shape and largest(a - b) <= torch.finfo(a.dtype).eps ** 0.5 * largest(a)


def equal_names(found: Found) -> dict[str, str]:
    """Return the undecided layers with one candidate that has the layer's name, and these candidates."""
    named = {}
    for label, options in found.options.items():
        dotted = label.replace("/", ".")
        alike = [name for name in options if name and f".{name}".endswith(f".{dotted}")]
        if len(options) > 1 and None not in options and len(alike) == 1:
            named[label] = alike[0]
    count = Counter(named.values())
    return {label: name for label, name in named.items() if count[name] == 1}

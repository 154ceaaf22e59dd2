"""Why a layer finds no module, in words."""

from collections.abc import Mapping
from math import isfinite
from typing import NamedTuple


class Failure(NamedTuple):
    """Why a layer finds no module.

    Attributes:
        why: The reason, in words.
        structural: Whether it is for want of modules, not a matter of numbers.
    """

    why: str
    structural: bool = False


def module_name(name: str) -> str:
    """Return what to call a module; the name of the model itself is empty."""
    return name or "the model"


def promised_to_another(module: str, part: str) -> Failure:
    """Return that the right module is another layer's by name."""
    why = f"{module_name(module)} takes what it takes, but by name it is the twin of {part}"
    return Failure(why, structural=True)


def none_left(holders: Mapping[str, str]) -> Failure:
    """Return that all fitting modules are taken.

    Args:
        holders: The layer that has each of them.
    """
    taken = ", ".join(f"{module_name(module)} is the twin of {part}" for module, part in holders.items())
    return Failure(f"no module is left that fits: {taken}", structural=True)


def none_agrees(nearest: Mapping[str, float], tolerance: float, look: Mapping[str, str], known: str = "") -> Failure:
    """Return that no module takes what the layer takes, which comes nearest, and where to look.

    Args:
        nearest: For each module that fits: the difference from what the layer takes.
        tolerance: The difference that rounding explains.
        look: The layers just before it, and their modules.
        known: How the module is known, if it is: "by name", or "in this call" of a shared layer.
    """
    module = min(nearest, key=nearest.__getitem__)
    called, difference = module_name(module), nearest[module]
    problem = "no module takes what it takes"
    if known == "in this call":
        problem = f"{called} does not take what it takes in this call"
    elif known == "by name":
        problem = f"by name it is {called}, which does not take what it takes"
    off = f"{difference:.2g} off, where rounding explains {tolerance:.1g}"
    what = f"{called} comes nearest, {off}" if isfinite(difference) else "none takes a tensor of that shape"
    places = ", ".join(f"{part} ({module_name(other)})" for part, other in look.items())
    where = f"{places} and what follows" if places else "what the twin does to its input"
    return Failure(f"{problem}: {what}; look at {where}")

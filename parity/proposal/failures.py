"""Why a layer finds no module, in words."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import NamedTuple


class Failure(NamedTuple):
    """Why a layer finds no module.

    Attributes:
        why: The reason, in words.
        structural: Whether there are too few modules for the layers, whatever the numbers are.
        numbers: Whether there are modules, but none takes the same numbers.
        other_sizes: Whether none of them even takes a tensor of the same size.
    """

    why: str
    structural: bool = False
    numbers: bool = False
    other_sizes: bool = False


def module_name(name: str) -> str:
    """Return what to call a module in a message: its name, which is empty for the model itself."""
    return name or "the model"


def promised_to_another(module: str, part: str) -> Failure:
    """Return the failure of a layer whose right module is, by name, the twin of another part."""
    why = f"{module_name(module)} takes what it takes, but by name it is the twin of {part}"
    return Failure(why, structural=True)


def none_left(holders: Mapping[str, str]) -> Failure:
    """Return the failure of a layer whose fitting modules are all twins of other parts.

    Args:
        holders: The part that each of these modules is the twin of.
    """
    twins = ", ".join(f"{module_name(module)} is the twin of {part}" for module, part in holders.items())
    return Failure(f"no module is left that fits: {twins}", structural=True)


def none_agrees(nearest: Mapping[str, float], tolerance: float, look: Mapping[str, str], known: str = "") -> Failure:
    """Return the failure of a layer whose input no module takes: which module comes nearest, and where to look.

    Args:
        nearest: The difference between the layer's input and each fitting module's.
        tolerance: The largest difference that rounding explains.
        look: The layers just before it, and their modules.
        known: How its module is known, if it is: "by name", or "in this call" of a shared layer.
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
    places = ", ".join(f"{part} ({module_name(before)})" for part, before in look.items())
    where = f"{places} and what follows" if places else "what the twin does to its input"
    return Failure(f"{problem}: {what}; look at {where}", numbers=True)


def returns_another(module: str, difference: float, tolerance: float, shapes: Sequence[tuple[int, ...]]) -> str:
    """Return what is said of a module that takes what its layer takes, and returns something else.

    Args:
        module: The module.
        difference: The largest difference between its output and the layer's; infinite if their shapes do not fit.
        tolerance: The largest difference that rounding explains.
        shapes: The shapes of the layer's output and of the module's.
    """
    taken = f"{module_name(module)} takes what it takes, and returns"
    if isfinite(difference):
        return f"{taken} something else, {difference:.2g} off, where rounding explains {tolerance:.1g}"
    due, found = shapes
    return f"{taken} another shape, {found}, where Keras's layer returns {due}"

"""Modes and settings that a layer and its twin may not share."""

import copy
from collections.abc import Iterator
from typing import Any

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, run_modules
from parity.diagnosis.geometry import convolved, pads_due
from parity.models.alignment import alignments, largest
from parity.weights.layouts import Place, find_layout

_SETTINGS = {
    "eps": "epsilon",
    "momentum": "momentum",
    "stride": "stride or dilation",
    "dilation": "stride or dilation",
    "groups": "groups",
    "num_groups": "groups",
}


def by_mode(evidence: Evidence) -> Iterator[Cause]:
    """Yield that the twin is in training mode, if it agrees in evaluation mode, or the other way round."""
    # Where the modules agree in the mode that they are in, the fault is between or behind them.
    alone = evidence.agrees(run_modules(copy.deepcopy(evidence.modules), evidence.twin_inputs))
    for training, how in ((False, "eval()"), (True, "train()")):
        if not alone and any(module.training != training for module in evidence.modules):
            modules = [module.train(training) for module in copy.deepcopy(evidence.modules)]
            if evidence.agrees(run_modules(modules, evidence.twin_inputs)):
                yield known_cause("train mode", f"it agrees after {how}")
                return
    if dropped(evidence):
        yield known_cause("train mode", "some elements are 0, the others larger, as dropout makes them")


def dropped(evidence: Evidence) -> bool:
    """Tell whether some elements of the twin are 0 and all others larger by one factor, as dropout makes them."""
    for view, twin, _ in alignments(evidence.value, evidence.twin):
        zero = (twin == 0) & (view != 0)
        kept = (twin != 0) & (view != 0)
        if not bool(zero.any()) or not bool(kept.any()):
            continue
        factor = float((twin[kept] / view[kept]).median())
        if factor > 1.01 and largest(twin[kept] - factor * view[kept]) <= 4 * evidence.tolerance + 1e-6 * largest(twin):
            return True
    return False


def other_settings(evidence: Evidence) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which the twin differs: what the Keras layer needs, and what the twin has."""
    found = {}
    layout = find_layout(evidence.step.layer) if evidence.step and not evidence.step.is_activation else None
    for variable in getattr(evidence.step.layer, "weights", []) if layout else []:
        place = layout.get(variable.name)
        module = evidence.actual.get(variable.path, (None,))[0]
        if not isinstance(place, Place) or not isinstance(module, place.modules):
            continue
        for name, due, actual in place.settings(evidence.step.layer, module):
            numbers = isinstance(due, float) and isinstance(actual, float)
            if abs(due - actual) > 1e-6 * abs(due) if numbers else due != actual:
                found[name.split(" ")[0]] = (due, actual)
    return found


def by_settings(evidence: Evidence) -> Iterator[Cause]:
    """Yield each setting with which the layer agrees."""
    for name, (due, actual) in other_settings(evidence).items():
        if name not in _SETTINGS:
            continue
        detail = f"{name} is {actual}, not {due}"
        modules = copy.deepcopy(evidence.modules)
        for module in modules:
            if hasattr(module, name):
                setattr(module, name, due)
        moves = name in ("stride", "dilation")  # and with them the padding that is due
        if evidence.agrees(
            convolved(evidence, pads_due(evidence)) if moves else run_modules(modules, evidence.twin_inputs)
        ):
            yield known_cause(_SETTINGS[name], detail)

"""Causes in the mode and the settings of a layer's twin."""

from collections.abc import Iterator, Sequence
from typing import Any

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, copied, run_modules
from parity.diagnosis.geometry import right_convolution
from parity.diagnosis.weights import repair_of
from parity.models.alignment import alignments, largest
from parity.weights.module_settings import same_setting

from torch import nn

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
    # If the modules agree in the mode that they are in, the fault is in a function between or after them.
    modules_agree = evidence.agrees(run_modules(copied(evidence.modules), evidence.twin_inputs))
    for training, how in ((False, "eval()"), (True, "train()")):
        if not modules_agree and any(module.training != training for module in evidence.modules):
            modules = [module.train(training) for module in copied(evidence.modules)]
            if evidence.agrees(run_modules(modules, evidence.twin_inputs)):
                yield known_cause("train mode", f"it agrees after {how}")
                return
    if dropped(evidence):
        yield known_cause("train mode", "some elements are 0, the others larger, as dropout makes them")


def dropped(evidence: Evidence) -> bool:
    """Tell whether some elements of the twin are 0 and all others larger by one factor, as dropout makes them."""
    for value, twin, _ in alignments(evidence.value, evidence.twin):
        zero = (twin == 0) & (value != 0)
        nonzero = (twin != 0) & (value != 0)
        if not bool(zero.any()) or not bool(nonzero.any()):
            continue
        factor = float((twin[nonzero] / value[nonzero]).median())
        tolerance = 4 * evidence.tolerance + 1e-6 * largest(twin)
        if factor > 1.01 and largest(twin[nonzero] - factor * value[nonzero]) <= tolerance:
            return True
    return False


def other_settings(evidence: Evidence) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which the twin differs: the value that the Keras layer needs, and the twin's value."""
    if evidence.step is None or evidence.step.is_activation:
        return {}
    found = {}
    for fill in evidence.fills.values():
        for name, expected, actual in fill.place.settings(fill.weight.layer, fill.module):
            if not same_setting(expected, actual):
                found[name.split(" ")[0]] = (expected, actual)
    return found


def put_right(modules: Sequence[nn.Module], name: str, value: Any) -> list[nn.Module]:
    """Return copies of modules with another value of a setting, where they have it."""
    copies = copied(modules)
    for module in copies:
        if hasattr(module, name):
            setattr(module, name, value)
    return copies


def wrong_settings(evidence: Evidence) -> Iterator[tuple[str, Any, Cause]]:
    """Yield the name of each wrong setting that can be a cause, the value that is due, and the cause."""
    for name, (expected, actual) in other_settings(evidence).items():
        if name in _SETTINGS:
            yield name, expected, known_cause(_SETTINGS[name], f"{name} is {actual}, not {expected}")


def by_settings(evidence: Evidence) -> Iterator[Cause]:
    """Yield each wrong setting that, set right, makes the layer agree."""
    for name, expected, cause in wrong_settings(evidence):
        if name in ("stride", "dilation"):
            # They also change how much padding is right, so what is due is computed anew. It tells nothing of weights.
            output = right_convolution(evidence) if repair_of(evidence) is None else None
        else:
            output = run_modules(put_right(evidence.modules, name, expected), evidence.twin_inputs)
        if evidence.agrees(output):
            yield cause

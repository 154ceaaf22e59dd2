"""Two causes in one layer: one of them is undone in the layer's modules, and the other has to explain what is left."""

from collections.abc import Callable, Iterator

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, agree_within, copied, run_modules
from parity.diagnosis.settings import put_right, wrong_settings
from parity.diagnosis.weights import causes_of, repair_of

import torch
from torch import Tensor, nn

Explain = Callable[[Evidence], list[Cause]]


def as_two(evidence: Evidence, explain: Explain) -> list[Cause]:
    """Return two causes that together explain a difference; none if there are no such two.

    Only what can be undone in the modules is tried as one of the two: their weights, their settings, their mode.

    Args:
        evidence: The layer that diverges. No single cause explains it.
        explain: Returns the single causes that explain a difference.
    """
    made = run_modules(copied(evidence.modules), evidence.twin_inputs)
    # Else the fault, or one of them, is in a function between or after the modules.
    if made is None or made.shape != evidence.twin.shape or not _same(evidence, made):
        return []
    for modules, causes in _repairs(evidence):
        twin = run_modules(copied(modules), evidence.twin_inputs)
        if twin is None or evidence.agrees(twin) or torch.equal(twin, made):
            continue
        found = explain(_with_modules(evidence, modules)._replace(twin=twin))
        if found:
            return [*causes, *(cause for cause in found if cause.cause not in {one.cause for one in causes})]
    return []


def _same(evidence: Evidence, made: Tensor) -> bool:
    return agree_within(evidence.twin, made, evidence.tolerance)


def _repairs(evidence: Evidence) -> Iterator[tuple[list[nn.Module], list[Cause]]]:
    """Yield copies of a layer's modules in which one thing was put right, and what that was."""
    repair = repair_of(evidence)
    if repair is not None:
        yield repair.modules, list(causes_of(evidence, repair))
    for name, value, cause in wrong_settings(evidence):
        yield put_right(evidence.modules, name, value), [cause]
    for training, found in ((False, "training"), (True, "evaluation")):
        if any(module.training != training for module in evidence.modules):
            modules = [module.train(training) for module in copied(evidence.modules)]
            yield modules, [known_cause("train mode", f"it runs in {found} mode")]


def _with_modules(evidence: Evidence, modules: list[nn.Module]) -> Evidence:
    """Return evidence with copies in place of the modules, which have the layer's weights at the same places."""
    copies = {id(module): other for module, other in zip(evidence.modules, modules, strict=True)}
    places = {path: (copies.get(id(module), module), name) for path, (module, name) in evidence.places.items()}
    return evidence._replace(modules=modules, places=places)

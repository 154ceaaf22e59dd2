"""The weights of a port: what each should be in the twin, where it is, and what fills what."""

from collections.abc import Container, Mapping

from parity.models.keras_graph import Step
from parity.models.sequences import SEQUENCE_MODULES
from parity.tracing.port import Port
from parity.weights.fills import Fill, Weight, fills, twin_tensors
from parity.weights.sequence_layouts import slot_of
from parity.weights.standard_rows import standard_rows

from torch import Tensor, nn


def weights_of(port: Port, step: Step | None) -> tuple[dict[str, Tensor], dict[str, tuple[nn.Module, str]]]:
    """Return every weight in PyTorch's layout, and where in the twin those of one step are.

    A weight of which several tensors have a share is there several times: "gru/bias", "gru/bias in bias_hh_l0".
    """
    weights: dict[str, Tensor] = {}
    places: dict[str, tuple[nn.Module, str]] = {}
    modules = dict(port.twin.named_modules(remove_duplicate=False))
    own = {id(variable) for variable in (step.weights if step is not None else [])}
    for fill in port.fills:
        if isinstance(fill, Fill):
            name = name_of(fill, weights)
            weights[name] = fill.value.clone()
        else:
            weight = port.weights[fill.row.keras]
            place = (weight.layout or {}).get(weight.variable.name)
            if place is None:
                continue
            name = fill.row.keras
            weights[name] = place.view(weight.value.clone())
        if id(port.weights[fill.row.keras].variable) in own:
            places[name] = (modules[fill.row.module], fill.row.tensor)
    return weights, places


def name_of(fill: Fill, known: Container[str]) -> str:
    """Return what to call what a row moves: the path of the weight; with its tensor, if that is known already."""
    path = fill.row.keras
    return f"{path} in {fill.row.tensor}" if path in known else path


def fills_of(port: Port, step: Step | None) -> dict[str, Fill]:
    """Return what each weight of a step's layer fills, by the name of ``name_of``.

    If the mapping lacks some rows of a recurrent layer, or of an attention, whose twin is PyTorch's module for it, they
    are those that such a module has.
    """
    own = {variable.path for variable in (step.weights if step is not None else [])}
    found = _named([fill for fill in port.fills if isinstance(fill, Fill) and fill.row.keras in own])
    if step is None or not found or step.is_activation:
        return found
    one = next((fill for fill in found.values() if isinstance(fill.module, SEQUENCE_MODULES)), None)
    if one is None:
        return found
    slots = [slot_of(fill.row.tensor) for fill in found.values()]
    first = min((int(slot.split("_")[1][1:]) for slot in slots if slot), default=0)
    rows = standard_rows(step.layer, one.row.module, one.module, first)
    tensors = twin_tensors(port.twin)
    if not rows or any(row.torch not in tensors or row.keras not in port.weights for row in rows):
        return found
    weights: dict[str, Weight] = port.weights
    modules: dict[str, nn.Module] = dict(port.twin.named_modules(remove_duplicate=False))
    whole = _named([fill for fill in fills(rows, weights, tensors, modules) if isinstance(fill, Fill)])
    return whole if len(whole) > len(found) else found


def _named(several: list[Fill]) -> dict[str, Fill]:
    found: dict[str, Fill] = {}
    for fill in several:
        found[name_of(fill, found)] = fill
    return found


def grouped_by_path(several: Mapping[str, Fill]) -> dict[str, list[Fill]]:
    """Return what each weight fills, by its path."""
    found: dict[str, list[Fill]] = {}
    for fill in several.values():
        found.setdefault(fill.row.keras, []).append(fill)
    return found

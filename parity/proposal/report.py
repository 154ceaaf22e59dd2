"""What ``propose_mapping`` returns."""

from collections.abc import Collection, Iterator, Mapping
from math import prod
from typing import NamedTuple

from parity.proposal.onward import Onward
from parity.proposal.parts import OWN, Part
from parity.proposal.search import Search
from parity.weights.mapping import AS_IT_IS, BY_HAND, COLUMNS, HOW, NOT_FROM_KERAS

import pandas as pd
from torch import Tensor


class Proposal(NamedTuple):
    """What ``propose_mapping`` found. A layer is called by the path of its weights, less the last part: ``dense_1``.

    Attributes:
        mapping: A row for each tensor of the twin whose Keras layer is certain, as ``read_mapping`` returns it, in the
            order of the twin's state dict.
        undecided: For each layer where numbers cannot decide: the modules that may be its twin. A module that stands
            there alone is not certain either.
        unmatched: For each layer without a twin: why it has none.
        flatten: What ``parity.transfer`` takes as ``flatten``: layers whose features the twin has flattened
            channels first, and the shape (*spatial, channels) that Keras flattens.
        by_name: The layers that numbers could not decide and equal names did, with their modules.
        parts_at: For each layer at which the twin parts from the Keras model: how. Either its module returns something
            else than the layer, or no module takes what the layer takes, because of what the twin does before it.
        behind: The layers behind these places. Their rows are right if nothing else is wrong with the twin.
        left_over: For each module with tensors that no layer fills: why.
    """

    mapping: pd.DataFrame
    undecided: dict[str, list[str]]
    unmatched: dict[str, str]
    flatten: dict[str, tuple[int, ...]]
    by_name: dict[str, str]
    parts_at: dict[str, str]
    behind: list[str]
    left_over: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.mapping)} rows"]
        lines += [f"{layer}: {module}, by its name" for layer, module in self.by_name.items()]
        lines += [f"{layer}: undecided: {' or '.join(modules)}" for layer, modules in self.undecided.items()]
        lines += [f"the twin parts at {layer}: {why}" for layer, why in self.parts_at.items()]
        if self.behind:
            behind = ", ".join(self.behind)
            lines.append(f"behind a mistake or a layer without a twin, so right if nothing else is wrong: {behind}")
        lines += [f"{layer}: {why}" for layer, why in self.unmatched.items()]
        lines += self.left_over.values()
        lines += [
            f"{layer}: the twin flattens {shape} channels first; give transfer the flatten of this proposal"
            for layer, shape in self.flatten.items()
        ]
        return "\n  ".join(lines)


def make_proposal(search: Search, onward: Onward, by_name: dict[str, str], not_covered: dict[str, str]) -> Proposal:
    """Return the proposal that a search amounts to.

    Args:
        search: The search.
        onward: What it has found.
        by_name: The parts that equal names have decided, with their modules.
        not_covered: What of the Keras model cannot be moved, by part.
    """
    parts, twin, found = search.parts, search.twin, onward.found
    order = list(twin.tensors)
    undecided = {
        label: sorted((name for name in modules if name is not None), key=order.index)
        for label, modules in found.options.items()
        if len(modules) > 1
    }
    unmatched = {label: failure.why for label, failure in found.failing.items() if label not in undecided}
    unmatched |= {label: why for label, why in found.blocked.items() if found.options[label] == {None}}
    unmatched |= not_covered
    for label, name in ((label, name) for label, name in onward.stands.items() if not search.fits[label]):
        way_on = ", and is to be filled by hand" if label in not_covered else ""
        if not way_on and _has_room_for_more(parts[label], twin.tensors[name]):
            way_on = ", and has room for more layers: write a row for each of them, in the order of its rows"
        unmatched[label] += f"; {twin.describe(name)} takes what it takes{way_on}"
    flatten = {}
    for label, modules in found.options.items():
        shapes = {found.flattened.get((label, name)) for name in modules if name is not None}
        shape = shapes.pop() if len(shapes) == 1 else None
        if shape:
            flatten[parts[label].layer.name] = shape
    left_over = dict(_left_over(search, onward))
    # Where a layer that could be moved has no twin, a module that is left over may be the one that should have been.
    known = not unmatched.keys() - not_covered.keys()
    mapping = _mapping(search, onward, not_covered, left_over if known else {})
    return Proposal(mapping, undecided, unmatched, flatten, by_name, onward.parts_at, onward.behind, left_over)


def _mapping(
    search: Search, onward: Onward, not_covered: Mapping[str, str], left_over: Collection[str]
) -> pd.DataFrame:
    """Return the mapping of a proposal. It has the third column if a row needs it.

    Args:
        search: The search.
        onward: What it has found.
        not_covered: The parts that the user has to fill.
        left_over: The modules that are not from Keras.
    """
    parts, twin = search.parts, search.twin
    owner = {name: parts[label] for label, name in onward.found.decided.items()}
    by_hand = [part for label, part in parts.items() if label in not_covered and not part.is_covered]
    stands = {name: parts[label] for label, name in onward.stands.items() if label in not_covered}
    rows: list[tuple[str, str, str]] = []
    preset = {key: weight.variable.path for weights in twin.preset.values() for key, weight in weights.items()}
    for name, tensors in twin.tensors.items():
        keys = {tensor: f"{name}.{tensor}" if name else tensor for tensor in tensors}
        rows += [(preset[key], key, AS_IT_IS) for key in keys.values() if key in preset]
        keys = {own: key for own, key in keys.items() if key not in preset}
        if name in owner:
            how = AS_IT_IS if owner[name].kind == OWN else ""
            rows += [(path, keys[own], how if path else "") for path, own in twin.rows(owner[name], name) or []]
        elif name in stands:
            paths = _alike(stands[name], {own: tensors[own] for own in keys})
            rows += [(paths.get(own, ""), key, BY_HAND) for own, key in keys.items()]
        elif name in left_over:
            fits = any(name in names for names in search.fits.values())
            # What fits no layer may belong to one that is not covered, as long as nothing stands for that one.
            open_ = not fits and any(part.label not in onward.stands for part in by_hand)
            rows += [("", key, BY_HAND if open_ and name in twin.calls else NOT_FROM_KERAS) for key in keys.values()]
    said = {path for path, *_ in rows}
    rows += [(w.path, "", BY_HAND) for part in by_hand for w in part.layer.weights if w.path not in said]
    columns = [*COLUMNS, HOW] if any(how for *_, how in rows) else COLUMNS
    # Numbered as the lines of the file will be.
    lines = pd.RangeIndex(2, 2 + len(rows), name="line")
    mapping = pd.DataFrame([row[: len(columns)] for row in rows], index=lines, columns=columns, dtype=str)
    mapping.attrs["source"] = "proposal"
    return mapping


def _alike(part: Part, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the weight of a layer that each tensor seems to be for: the only one with as many numbers."""
    found = {}
    for own, tensor in tensors.items():
        weights = [weight.path for weight in part.layer.weights if prod(weight.shape) == tensor.numel()]
        if len(weights) == 1 and sum(other.numel() == tensor.numel() for other in tensors.values()) == 1:
            found[own] = weights[0]
    return found


def _has_room_for_more(part: Part, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether each weight of a part may be some rows of a tensor, as of two heads in one Linear."""
    shapes = {name: tuple(part.value(name).shape) for name in part.weights}
    return bool(shapes) and all(
        name in tensors and shape[1:] == tuple(tensors[name].shape[1:]) and shape[0] < len(tensors[name])
        for name, shape in shapes.items()
    )


def _left_over(search: Search, onward: Onward) -> Iterator[tuple[str, str]]:
    """Yield each module that is no layer's twin, and why."""
    options, twin = onward.found.options, search.twin
    preset = {key for weights in twin.preset.values() for key in weights}
    wanted = {name for modules in options.values() for name in modules} | {*onward.stands.values()}
    for name, tensors in twin.tensors.items():
        fitting = [label for label, names in search.fits.items() if name in names]
        if name in wanted or all((f"{name}.{own}" if name else own) in preset for own in tensors):
            continue
        if not fitting:
            yield name, f"{twin.describe(name)} fits no Keras layer: {shapes_of(tensors)}"
        elif name not in twin.calls:
            yield name, f"{twin.describe(name)} is never called"
        elif all(None not in options[label] for label in fitting):
            yield name, f"{twin.describe(name)} is left over: all layers have other twins"


def shapes_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the names and shapes of tensors, in words."""
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())

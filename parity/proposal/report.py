"""What ``propose_mapping`` returns."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from parity.proposal.onward import Onward
from parity.proposal.search import Search
from parity.weights.mapping import COLUMNS

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
            lines.append(
                f"behind a mistake or a layer without a twin, so right only if nothing else is wrong: {', '.join(self.behind)}"
            )
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
    owner = {name: parts[label] for label, name in found.decided.items()}
    rows = []
    for name, tensors in twin.tensors.items():
        if name not in owner:
            continue
        weights = owner[name].weights
        for tensor in tensors:
            path = weights[tensor][0].path if tensor in weights else ""
            rows.append((path, f"{name}.{tensor}" if name else tensor))
    # Numbered as the lines of the file will be.
    mapping = pd.DataFrame(rows, index=pd.RangeIndex(2, 2 + len(rows), name="line"), columns=COLUMNS, dtype=str)
    mapping.attrs["source"] = "proposal"
    undecided = {
        label: sorted((name for name in modules if name is not None), key=order.index)
        for label, modules in found.options.items()
        if len(modules) > 1
    }
    unmatched = {label: failure.why for label, failure in found.failing.items() if label not in undecided}
    unmatched |= {label: why for label, why in found.blocked.items() if found.options[label] == {None}}
    unmatched |= not_covered
    for label, name in onward.stands.items():
        unmatched[label] += f"; {twin.describe(name)} takes what it takes"
    flatten = {}
    for label, modules in found.options.items():
        shapes = {found.flattened.get((label, name)) for name in modules if name is not None}
        shape = shapes.pop() if len(shapes) == 1 else None
        if shape:
            flatten[parts[label].layer.name] = shape
    left_over = dict(_left_over(search, onward))
    return Proposal(mapping, undecided, unmatched, flatten, by_name, onward.parts_at, onward.behind, left_over)


def _left_over(search: Search, onward: Onward) -> Iterator[tuple[str, str]]:
    """Yield each module that is no layer's twin, and why."""
    options, twin = onward.found.options, search.twin
    wanted = {name for modules in options.values() for name in modules} | {*onward.stands.values()}
    for name, tensors in twin.tensors.items():
        fitting = [label for label, names in search.fits.items() if name in names]
        if name in wanted:
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

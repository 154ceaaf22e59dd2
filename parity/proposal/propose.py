"""Propose a mapping: find the module of the twin that belongs to each Keras layer, by the inputs of the modules."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from parity.errors import ParityError
from parity.models.inputs import Inputs, TwinInputs, keras_inputs, takes_keras_axes, twin_inputs, unchanged
from parity.models.keras_channels import channels_of, input_axes
from parity.models.keras_graph import keras_graph, with_graph
from parity.proposal.layers import Part, keras_dtype, keras_parts
from parity.proposal.search import Found, Search
from parity.proposal.twin import TwinCopy
from parity.weights.mapping import COLUMNS

import keras
import pandas as pd
from torch import Tensor, nn

# A few examples are enough to tell layers apart, and the copy of the twin runs many times.
_EXAMPLES = 2


class Proposal(NamedTuple):
    """What ``propose_mapping`` found. A layer is called by the path of its weights, less the last part: ``dense_1``.

    Attributes:
        mapping: A row for each tensor of the twin whose Keras layer is certain, as ``read_mapping`` returns it, in the
            order of the twin's state dict.
        undecided: For each layer where numbers cannot decide: the modules that may be its twin. A module that stands
            there alone is not certain either.
        unmatched: For each layer without a twin: why it has none. The first is where the numbers stop agreeing.
        flatten: What ``parity.transfer`` takes as ``flatten``: layers whose features the twin has flattened
            channels first, and the shape (*spatial, channels) that Keras flattens.
        by_name: The layers that numbers could not decide and equal names did, with their modules.
    """

    mapping: pd.DataFrame
    undecided: dict[str, list[str]]
    unmatched: dict[str, str]
    flatten: dict[str, tuple[int, ...]]
    by_name: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.mapping)} rows"]
        lines += [f"{layer}: {module}, by its name" for layer, module in self.by_name.items()]
        lines += [f"{layer}: undecided: {' or '.join(modules)}" for layer, modules in self.undecided.items()]
        lines += [f"{layer}: {why}" for layer, why in self.unmatched.items()]
        lines += [
            f"{layer}: the twin flattens {shape} channels first; give transfer the flatten of this proposal"
            for layer, shape in self.flatten.items()
        ]
        return "\n  ".join(lines)


def propose_mapping(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    names: Mapping[str, str] | None = None,
    *,
    torch_x: TwinInputs = None,
) -> Proposal:
    """Find the twin of each Keras layer by what it takes. Neither model is changed, and the twin's weights are ignored.

    A layer's twin is the module of a fitting kind and shapes that takes the same numbers, once all layers before it
    have their twins and these are filled. Of several such modules, those remain with which every later layer finds a
    twin, too. If more than one remains, equal names decide, or else the user, by ``names`` or in the file. The order
    in which a model returns its outputs decides nothing: two heads with the same input stay undecided. So do layers
    that cannot be told apart after a great many trials.

    A row is never a guess: if the twin equals the Keras model under some mapping, that mapping has the row. With a
    mistake in the twin, such as another epsilon, no later module takes the right numbers; see ``unmatched`` and
    ``parity.trace``.

    To store it: ``propose_mapping(...).mapping.to_csv("keras_torch_mapping.csv", index=False)``. To use it at once:
    ``transfer(keras_model, torch_model, proposal.mapping, proposal.flatten)``, which refuses an incomplete mapping.

    Args:
        keras_model: A Functional or a built Sequential model.
        torch_model: The twin, a module whose ``forward`` takes as many tensors as the Keras model has inputs.
        x: An input of the Keras model: an array, with the axes that the model takes, or one for each of several inputs.
            The first two examples are used. Random numbers tell layers apart better than zeros.
        names: The twins that you know: {layer: module}, such as ``{"dense_1": "steer"}``. A SeparableConv has two:
            ``{"sep/depthwise": "a", "sep/pointwise": "b"}``.
        torch_x: The twin's inputs, if they are neither ``x`` with the channels on axis 1 nor, for sequences, ``x``
            itself.

    Raises:
        ParityError: If no mapping can be complete, with every fault: a Keras model without a graph, a kind of layer
            that is not covered, a layer that no module fits or that none is left for, a module that is never called or
            left over, a tensor of the twin that no layer fills, or ``names`` that are unknown, do not fit, or that the
            numbers contradict.
    """
    keras_model = with_graph(keras_model, x)
    graph = keras_graph(keras_model)
    arrays = [array[:_EXAMPLES] for array in keras_inputs(keras_model, x)]
    parts, faults = keras_parts(graph, arrays)
    twin = TwinCopy(torch_model, keras_dtype(keras_model))
    with unchanged(keras_model, torch_model):
        first = list(input_axes(graph, channels_of(graph)))
        as_keras = takes_keras_axes(twin.model, arrays, first) if torch_x is None else ()
        tensors = [tensor[:_EXAMPLES] for tensor in twin_inputs(twin.model, arrays, torch_x, as_keras)]
        twin.inputs = [tensor.to(twin.dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
        fits = {label: twin.fitting(part) for label, part in parts.items()}
        named = {label: twin.canonical.get(module, module) for label, module in (names or {}).items()}
        faults += _faults(parts, fits, twin)
        faults += _name_faults(parts, fits, twin, named)
        if faults:
            raise ParityError("proposal", faults)
        found = Search(parts, fits, twin, named).run()
        by_name = _equal_names(found)
        if by_name:
            found_by_name = Search(parts, fits, twin, named | by_name).run()
            if len(found_by_name.failing) <= len(found.failing):
                found = found_by_name
            else:  # the names contradict each other or the numbers, so they decide nothing
                by_name = {}
    hopeless = [label for label, failure in found.failing.items() if failure.structural]
    hopeless += [label for label in named if found.options[label] == {None} and label in found.failing]
    left_over = _left_over(found, twin)
    if hopeless or left_over:
        raise ParityError("proposal", [*(f"{label}: {f.why}" for label, f in found.failing.items()), *left_over])
    return _proposal(parts, twin, found, by_name)


def _faults(parts: dict[str, Part], fits: dict[str, list[str]], twin: TwinCopy) -> Iterator[str]:
    """Yield a fault for each part and each module that can be in no mapping, whatever the numbers are."""
    for label, part in parts.items():
        if not fits[label]:
            shapes = _shapes({name: part.value(name) for name in part.weights})
            place = next(iter(part.weights.values()))[1]
            yield f"{label}: no module fits; it needs a {place.needed} with {shapes}"
    fitting = {name for names in fits.values() for name in names}
    called = twin.inputs_of_modules({})
    for name in twin.tensors:
        if name not in fitting:
            yield f"{twin.describe(name)} fits no Keras layer: {_shapes(twin.tensors[name])}"
        elif name not in called:
            yield f"{twin.describe(name)} is never called"


def _name_faults(
    parts: dict[str, Part], fits: dict[str, list[str]], twin: TwinCopy, fixed: Mapping[str, str]
) -> Iterator[str]:
    count = Counter(fixed.values())
    for label, name in fixed.items():
        if label not in parts:
            yield f"names: the Keras model has no layer {label} with weights; it has {', '.join(parts)}"
        elif name not in twin.tensors:
            yield f"names: the twin has no module {name} with tensors"
        elif name not in fits[label]:
            yield f"names: {twin.describe(name)} does not fit {label}"
        if count[name] > 1:
            yield f"names: {name} is given to {label} and to another"


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())


def _left_over(found: Found, twin: TwinCopy) -> list[str]:
    """Return a fault for each module that is no layer's twin, if every layer has a twin."""
    if any(None in options for options in found.options.values()):
        return []
    wanted = {name for options in found.options.values() for name in options}
    return [
        f"{twin.describe(name)} is left over: all layers have other twins"
        for name in twin.tensors
        if name not in wanted
    ]


def _equal_names(found: Found) -> dict[str, str]:
    """Return the undecided layers with one candidate that has the layer's name, and these candidates."""
    named = {}
    for label, options in found.options.items():
        dotted = label.replace("/", ".")
        alike = [name for name in options if name and f".{name}".endswith(f".{dotted}")]
        if len(options) > 1 and None not in options and len(alike) == 1:
            named[label] = alike[0]
    count = Counter(named.values())
    return {label: name for label, name in named.items() if count[name] == 1}


def _proposal(parts: dict[str, Part], twin: TwinCopy, found: Found, by_name: dict[str, str]) -> Proposal:
    order = list(twin.tensors)
    decided = {label: next(iter(modules)) for label, modules in found.options.items() if len(modules) == 1}
    owner = {name: parts[label] for label, name in decided.items() if name is not None}
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
    flatten = {}
    for label, modules in found.options.items():
        shapes = {found.flattened.get((label, name)) for name in modules if name is not None}
        shape = shapes.pop() if len(shapes) == 1 else None
        if shape:
            flatten[parts[label].layer.name] = shape
    return Proposal(mapping, undecided, unmatched, flatten, by_name)

"""Causes in recurrent layers: their weights, masks, directions and activations, and which step is taken of them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, agree_within, short_name
from parity.diagnosis.moved import grouped_by_path
from parity.diagnosis.variants import Said, each_cause_once, first_that_explains, step_of_kind, weights_of_twin
from parity.models.alignment import largest
from parity.models.keras_graph import Step
from parity.models.keras_layers import CELLS, activation_name, inner_layers
from parity.models.keras_variants import (
    Variant,
    activation_settings,
    last_cells,
    mask_of,
    output_of,
    steps_reversed,
    two_ways,
)
from parity.models.sequences import MERGES, SEQUENCE_LAYERS, SEQUENCE_MODULES, is_sequence_layer
from parity.recurrent import GRU
from parity.weights.fills import Fill
from parity.weights.sequence_layouts import slot_of

import keras
import torch
from torch import Tensor, nn

_GATES = {keras.layers.LSTMCell: "ifco", keras.layers.GRUCell: "zrh"}
_ACTIVATIONS = ("tanh", "relu", "sigmoid", "linear", "softsign", "elu", "selu", "hard_sigmoid", "gelu")
# At most so many steps are looked at as the step that a twin takes in place of the last.
_MOST_STEPS = 64


def by_recurrent_weights(evidence: Evidence) -> Iterator[Cause]:
    """Yield what is wrong with the weights of a recurrent layer, if Keras's layer with these returns the twin's."""
    step = step_of_kind(evidence, SEQUENCE_LAYERS)
    if step is None:
        return
    fills, layers = evidence.fills_by_path(), [step.layer]
    actual, wrong = weights_of_twin(fills)
    value, tolerance = output_of(step, evidence.inputs, Variant(weights=actual)), evidence.tolerance
    # One module may do several layers; then only what the last of them returns is seen.
    for one in evidence.behind:
        if not is_sequence_layer(one.step.layer) or value is None:
            break
        behind = grouped_by_path(one.fills)
        more, wrong_behind = weights_of_twin(behind)
        value, tolerance = output_of(one.step, [value, *evidence.inputs[1:]], Variant(weights=more)), one.tolerance
        fills, actual, wrong = fills | behind, actual | more, wrong + wrong_behind
        layers.append(one.step.layer)
    if not wrong or value is None or not agree_within(value, evidence.twin, tolerance):
        return
    yield from each_cause_once(_of_weight(fills, path, actual[path], layers) for path in wrong)


def by_recurrence(evidence: Evidence) -> Iterator[Cause]:
    """Yield the setting, the mask or the direction with which a recurrent layer returns what the twin returns."""
    step = step_of_kind(evidence, SEQUENCE_LAYERS)
    if step is None:
        return
    found = list(first_that_explains(step, evidence.inputs, _variants(step, evidence), _directions(evidence)))
    yield from found
    if not found and evidence.explains(_with_the_other_reset(evidence)):
        due = getattr(_cell(step.layer), "reset_after", True)
        yield known_cause("reset_after", f"reset_after is {not due}, not {due}")


def by_mask(evidence: Evidence) -> Iterator[Cause]:
    """Yield that a layer that follows a mask, such as an average over time, is without it, or has the opposite."""
    step = evidence.step
    if step is None or step.is_activation or not step.masks or not evidence.inputs:
        return
    yield from first_that_explains(step, evidence.inputs, _of_mask(step, evidence), [evidence])


def by_time_and_batch(evidence: Evidence) -> Iterator[Cause]:
    """Yield that a module takes its sequence with the axes of time and examples exchanged."""
    module = evidence.modules[0] if evidence.modules else None
    if not isinstance(module, SEQUENCE_MODULES) or evidence.twin.ndim != 3:
        return
    backwards = getattr(evidence.step.layer if evidence.step is not None else None, "go_backwards", False)
    seen = steps_reversed(evidence.twin) if backwards else evidence.twin
    if _same(evidence, seen.transpose(0, 1)):
        yield known_cause("time and batch exchanged", time_and_batch(evidence))
    elif _same(evidence, steps_reversed(evidence.twin)):
        yield known_cause("direction", f"it takes the steps {'as they are' if backwards else 'in reversed order'}")


def time_and_batch(evidence: Evidence) -> str:
    """Return in words that a module takes its sequence with the axes of time and examples exchanged."""
    batch_first = getattr(evidence.modules[0], "batch_first", True) if evidence.modules else True
    found = "(time, batch, features)" if batch_first else "(batch, time, features)"
    return f"batch_first is {batch_first}, and it takes {found}"


def by_step_taken(evidence: Evidence) -> Iterator[Cause]:
    """Yield which step, which order of steps or which merge of a recurrent layer before is taken."""
    before = _recurrent_before(evidence)
    if before is None:
        return
    backwards = getattr(evidence.step.layer if evidence.step is not None else None, "go_backwards", False)
    if backwards and _same(evidence, steps_reversed(evidence.twin)):
        return  # it is this layer that goes the wrong way
    step, values = before
    layer, ways = step.layer, two_ways(step, values)
    backwards = getattr(layer, "go_backwards", False)
    merged = MERGES[layer.merge_mode](*ways) if len(ways) == 2 and layer.merge_mode else ways[0]
    if layer.return_sequences:
        half = [ways[0], steps_reversed(ways[1])] if len(ways) == 2 else [ways[0]]
        wrong = MERGES[layer.merge_mode](*half) if len(half) == 2 and layer.merge_mode else half[0]
        if len(ways) == 2 and layer.merge_mode == "concat" and evidence.explains(torch.cat(ways[::-1], -1)):
            yield known_cause("direction", f"the two directions of {step.name} are exchanged")
            return
        for found in (steps_reversed(merged), wrong, merged):
            due = steps_reversed(ways[0]) if backwards else merged
            if not torch.equal(found, due) and evidence.explains(found):
                yield known_cause("reversed output", f"the steps of {step.name} are in another order than Keras's")
                return
    else:
        cells = last_cells(step, values)
        if cells is not None and evidence.explains(cells):
            yield known_cause("another step", f"the cell of {step.name} is taken, not its output")
            return
        for words, value in _each_step(step, values, merged):
            if evidence.explains(value) and not agree_within(evidence.value, value, evidence.tolerance):
                end = ", in both directions" if len(ways) == 2 else ""
                yield known_cause("another step", f"{words}{end}")
                return
        if len(ways) == 2 and evidence.explains(MERGES[layer.merge_mode](ways[1][:, 0], ways[0][:, -1])):
            yield known_cause("direction", f"the two directions of {step.name} are exchanged")
            return
    if len(ways) == 2 and layer.merge_mode:
        ends = ways if layer.return_sequences else [ways[0][:, -1], ways[1][:, 0]]
        for name, merge in MERGES.items():
            if name != layer.merge_mode and evidence.explains(merge(*ends)):
                yield known_cause("another merge", f"the directions are merged by {name}, not by {layer.merge_mode}")
                return


def _each_step(step: Step, values: Sequence[Tensor], sequence: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield in words that each step of what a recurrent layer returns is taken, the last first, and that step.

    At a masked step Keras returns once more what it has returned before, and a packed sequence of PyTorch's is 0 there.
    """
    mask = mask_of(step, values)
    for time in range(sequence.shape[1] - 1, max(-1, sequence.shape[1] - 1 - _MOST_STEPS), -1):
        is_last = time == sequence.shape[1] - 1
        taken = f"step {time + 1} of {sequence.shape[1]} of {step.name} is taken"
        yield taken + ("" if is_last else ", not the last"), sequence[:, time]
        if mask is not None:
            where_it_ends = ", which is 0 where a sequence ends before it"
            yield taken + where_it_ends, sequence[:, time] * mask[:, time, None].to(sequence.dtype)


def _same(evidence: Evidence, found: Tensor) -> bool:
    """Tell whether a tensor agrees with the Keras tensor as it is, axis by axis."""
    return found.shape == evidence.value.shape and largest(found - evidence.value) <= evidence.tolerance


def _directions(evidence: Evidence) -> list[Evidence]:
    """Return the evidence, or one for each direction of a module that does the work of two layers."""
    size, found = evidence.value.shape[-1], evidence.twin
    if found.ndim != evidence.value.ndim or found.shape[-1] != 2 * size:
        return [evidence]
    return [evidence._replace(twin=half) for half in found.split(size, -1)]


def _recurrent_before(evidence: Evidence) -> tuple[Step, list[Tensor]] | None:
    """Return the recurrent step whose output the twin should take, and its inputs."""
    step = evidence.before
    if step is None or not is_sequence_layer(step.layer) or not evidence.inputs_before:
        return None
    return step, list(evidence.inputs_before)


def _cell(layer: Any) -> Any:
    """Return the first cell within a recurrent layer."""
    return next((inner for inner in inner_layers(layer) if isinstance(inner, CELLS)), layer)


def _are_two_ways(layers: Sequence[Any], path: str, other: str) -> bool:
    """Tell whether two weights, by their paths, belong to the two directions of one of some layers."""
    for layer in layers:
        if isinstance(layer, keras.layers.Bidirectional):
            ways = [{weight.path for weight in way.weights} for way in (layer.forward_layer, layer.backward_layer)]
            if any(path in one and other in two for one, two in (ways, ways[::-1])):
                return True
    return False


def _of_weight(several: Mapping[str, list[Fill]], path: str, found: Tensor, layers: Sequence[Any]) -> Said:
    """Return the cause, and in words what is wrong with one weight.

    Args:
        several: What each weight fills.
        path: The path of the weight.
        found: What the twin has in its place, in Keras's layout.
        layers: The layers that the weights belong to.
    """
    fill, right, short = several[path][0], several[path][0].weight.value, short_name(path)
    gates = next((names for kind, names in _GATES.items() if isinstance(fill.weight.layer, kind)), "")
    if short == "bias":
        if not bool(found.any()):
            return "bias missing", f"bias is 0 in {slot_of(fill.row.tensor) or fill.row.module}"
        doubled = right.sum(0).expand_as(right) if right.ndim == 2 else 2 * right
        if torch.allclose(found, doubled) or (right.ndim == 2 and torch.equal(found, right[:1].expand_as(right))):
            return "bias added twice", "both of PyTorch's biases have it"
        summed = torch.stack([right.sum(0), torch.zeros_like(right[0])]) if right.ndim == 2 else None
        if summed is not None and torch.allclose(found, summed):
            return "weights hold other numbers", "the two biases are added up in bias_ih, and bias_hh is 0"
    if gates:
        parts = right.unflatten(-1, (len(gates), -1))
        for order in permutations(range(len(gates))):
            if list(order) != sorted(order) and torch.equal(found, parts[..., list(order), :].flatten(-2)):
                twin, due = ("".join(names) for names in _orders(gates, order))
                return "gate order", f"the gates are in the order {twin}, not {due}"
    for other, fills in several.items():
        value = fills[0].weight.value
        if other != path and short_name(other) == short and torch.equal(found, value.to(found.dtype)):
            if _are_two_ways(layers, path, other):
                return "direction", f"{short} of one direction is that of the other"
            return "weights of another layer", f"{short} is {other}"
    if right.ndim == 2 and right.shape[0] == right.shape[1] and torch.equal(found, right.T):
        return "kernel not transposed", f"{short}, {tuple(right.shape)} either way"
    if gates and right.ndim == 2 and right.shape[0] * len(gates) == right.shape[1]:
        each = right.unflatten(-1, (len(gates), -1)).movedim(1, 0)
        if torch.equal(found, each.mT.movedim(0, 1).flatten(1)):
            return "kernel not transposed", f"{short}, gate by gate"
    if torch.equal(found.flatten().sort().values, right.flatten().sort().values):
        return "weights in another order", short
    return "weights hold other numbers", short


def _orders(gates: str, order: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Return the order in which the twin has the gates, and the right one, as PyTorch counts them."""
    torch_order = [1, 0, 2] if gates == "zrh" else [0, 1, 2, 3]
    due = [gates[gate] for gate in torch_order]
    return [gates[order[gate]] for gate in torch_order], due


def _variants(step: Step, evidence: Evidence) -> Iterator[tuple[str, str, Variant]]:
    """Yield each variant of a recurrent layer, with the cause and the words for it."""
    cell = _cell(step.layer)
    yield from _of_mask(step, evidence)
    x = evidence.inputs[0]
    yield "time and batch exchanged", time_and_batch(evidence), Variant(inputs={0: x.transpose(0, 1)})
    states = [slot for slot in range(1, len(evidence.inputs)) if slot not in step.masks]
    if states:
        zero = {slot: torch.zeros_like(evidence.inputs[slot]) for slot in states}
        yield (
            "another skip",
            "it begins with states of 0, not with those that Keras's layer takes",
            Variant(inputs=zero),
        )
    backwards = getattr(step.layer, "go_backwards", False)
    how = "forward" if backwards else "backward"
    yield "direction", f"it goes {how} through the steps", Variant(inputs={0: steps_reversed(x)})
    if getattr(step.layer, "return_sequences", False):
        yield "reversed output", "the steps come in the other order", Variant(twin_of=steps_reversed)
        yield (
            "direction",
            f"it goes {how} through the steps",
            Variant(inputs={0: steps_reversed(x)}, twin_of=steps_reversed),
        )
    for name, cause in (("recurrent_activation", "recurrent activation"), ("activation", "another activation")):
        if hasattr(cell, name):
            due = activation_name(cell) if name == "activation" else getattr(cell, name).__name__
            for found, variant in activation_settings(name, _ACTIVATIONS):
                yield cause, f"{found}, not {due}", variant
            old = Variant(settings={name: lambda x: keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)})
            yield cause, f"hard_sigmoid as in Keras 2, not {due}", old


def _of_mask(step: Step, evidence: Evidence) -> Iterator[tuple[str, str, Variant]]:
    """Yield the variants of a layer without its mask, and with the opposite."""
    for slot in step.masks:
        name = next((name for name in step.node.arguments.kwargs if "mask" in name), "mask")
        yield "mask ignored", "it goes through all steps, also those that are masked", Variant(arguments={name: None})
        opposite = Variant(inputs={slot: ~evidence.inputs[slot].bool()})
        yield "mask inverted", "it leaves out the steps that are not masked", opposite


def _with_the_other_reset(evidence: Evidence) -> Tensor | None:
    """Return what a GRU returns that applies its reset gate on the other side of the matrix product."""
    step, cell = evidence.step, _cell(evidence.step.layer if evidence.step else None)
    if step is None or not isinstance(cell, keras.layers.GRUCell) or isinstance(step.layer, keras.layers.Bidirectional):
        return None
    x = evidence.inputs[0]
    recurrent = cell.recurrent_activation.__name__
    try:
        other = GRU(x.shape[-1], cell.units, True, activation_name(cell), recurrent, reset_after=not cell.reset_after)
    except ValueError:  # an activation that the module has not
        return None
    other = other.to(x.dtype)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        for fill in evidence.fills.values():
            tensor = f"{fill.place.tensor}_l0"
            if isinstance(getattr(other, tensor, None), nn.Parameter):
                getattr(other, tensor).copy_(fill.value)
        mask = mask_of(step, evidence.inputs)
        steps = [None if one is None else steps_reversed(one) if step.layer.go_backwards else one for one in (x, mask)]
        sequence, (last, *_) = other(steps[0], mask=steps[1])
    return sequence if step.layer.return_sequences else last

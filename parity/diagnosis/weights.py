"""Causes in the weights of a layer's twin: what went wrong when they were moved."""

from collections.abc import Iterator
from itertools import chain, combinations, permutations
from math import prod
from typing import NamedTuple

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, copied, run_modules, short_name
from parity.diagnosis.inside import folded_into
from parity.diagnosis.order import other_orders
from parity.diagnosis.variants import explaining_weights
from parity.models.keras_channels import as_in_keras
from parity.weights.flattened import channels_first_features, counts_features
from parity.weights.module_settings import depthwise_channels

import keras
import torch
from torch import Tensor, nn

# So many numbers of a tensor tell whether it is from the Keras model.
_SOME = 8


class Repair(NamedTuple):
    """The modules of a layer's twin with the right weights, and what was put right in them.

    Attributes:
        modules: Copies of the modules.
        different: Each weight that differed: its path, what was in the twin, and what should be.
        extra: Tensors that the Keras layer does not have and that did something, by name.
    """

    modules: list[nn.Module]
    different: list[tuple[str, Tensor, Tensor]]
    extra: dict[str, Tensor]


def by_weights(evidence: Evidence) -> Iterator[Cause]:
    """Yield what went wrong with the weights, if the layer agrees with the right ones."""
    repair = repair_of(evidence)
    if repair is not None and evidence.agrees(run_modules(repair.modules, evidence.twin_inputs)):
        yield from causes_of(evidence, repair)


def by_weights_of_functions(evidence: Evidence) -> Iterator[Cause]:
    """Yield what went wrong with the weights of functions, if Keras's layer with these returns what the twin has."""
    step = evidence.step
    if step is None or step.is_activation or evidence.modules or not evidence.fills or not evidence.inputs:
        return
    if explaining_weights(step, evidence)[1]:
        both = ((path, fill.tensor.detach(), fill.value) for path, fill in evidence.fills.items())
        different = [(path, found, right.to(found.dtype)) for path, found, right in both if not _equal(found, right)]
        yield from causes_of(evidence, Repair([], different, {}))


def repair_of(evidence: Evidence) -> Repair | None:
    """Return a layer's modules with the right weights; None if they have these, or if it has no modules."""
    if not evidence.places or not evidence.modules or folded_into(evidence):
        return None
    different: list[tuple[str, Tensor, Tensor]] = []
    repaired = copied(evidence.modules)
    filled = set()
    for path, (module, name) in evidence.places.items():
        # If the second call of a shared layer is another module, the layer's weights are in the first module.
        index = next((i for i, other in enumerate(evidence.modules) if other is module), 0)
        right = _right_weight(evidence, path)
        filled.add((index, name))
        tensors = dict(repaired[index].named_parameters()) | dict(repaired[index].named_buffers())
        if name not in tensors or tensors[name].shape != right.shape:
            continue
        actual = tensors[name].detach().clone()
        if not torch.equal(actual, right.to(actual.dtype)):
            different.append((path, actual, right.to(actual.dtype)))
            with torch.no_grad():
                tensors[name].copy_(right)
    extra: dict[str, Tensor] = {}
    for index, module in enumerate(repaired):
        for name, parameter in module.named_parameters():
            neutral = 1.0 if name == "weight" else 0.0
            if (index, name) not in filled and not bool((parameter == neutral).all()):
                extra[name] = parameter.detach().clone()
                with torch.no_grad():
                    parameter.fill_(neutral)
    return Repair(repaired, different, extra) if different or extra else None


def causes_of(evidence: Evidence, repair: Repair) -> Iterator[Cause]:
    """Yield what went wrong with the weights that were put right.

    Args:
        evidence: The layer that diverges.
        repair: What ``repair_of`` returned for it.
    """
    _, different, extra = repair
    values = [actual for _, actual, _ in different] + list(extra.values())
    misplaced = [
        (path, actual, right)
        for path, actual, right in different
        if any(_equal(actual, right_elsewhere) for _, _, right_elsewhere in different)
    ]
    if misplaced and all(any(_equal(value, right) for value in values) for _, _, right in different):
        # All the right values are there, but at other places. What is at the remaining place is no second mistake.
        different, extra = misplaced, {}
    if not misplaced and len(different) == len(evidence.places):
        not_moved = _not_moved(evidence, different)
        if not_moved:
            yield known_cause("weights hold other numbers", not_moved)
            different = []
    named = set()
    for path, actual, right in different:
        cause = _cause_of(evidence, path, actual, right)
        if cause.cause not in named:
            named.add(cause.cause)
            yield cause
    if extra:
        for name in extra:
            neutral = 1 if name == "weight" else 0
            detail = f"{name}, which the Keras layer has not, is not {neutral}"
            yield known_cause("weights hold other numbers", detail)


def _not_moved(evidence: Evidence, different: list[tuple[str, Tensor, Tensor]]) -> str:
    """Return in words that none of a layer's weights was moved, nothing if some may have been.

    Args:
        evidence: The layer that diverges.
        different: The path of each of its weights, the tensor in the twin, and the right one.
    """
    names = [short_name(path) for path, _, _ in different]
    causes = {_cause_of(evidence, *one).cause for one in different}
    unexplained = causes <= {"weights hold other numbers", "bias missing", "statistics left at 0 and 1"}
    if not unexplained or all(name.startswith("moving_") for name in names):
        return ""
    constant = [bool((actual == actual.flatten()[0]).all()) for _, actual, _ in different if actual.numel() > 1]
    said = " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
    if len(constant) == len(different) > 1 and all(constant):
        numbers = sorted({float(actual.flatten()[0]) for _, actual, _ in different}, reverse=True)
        return f"{said} are {' and '.join(f'{number:g}' for number in numbers)} throughout, not moved"
    if len(different) == 1 or any(_is_from_keras(evidence, actual) for _, actual, _ in different):
        return ""
    return f"{said} have nothing in common with any weight of the Keras model, not moved"


def _is_from_keras(evidence: Evidence, actual: Tensor) -> bool:
    """Tell whether a weight of the Keras model has one of some numbers of a tensor. Zeros and ones do not count."""
    numbers = actual.flatten()
    numbers = numbers[(numbers != 0) & (numbers != 1)]
    some = numbers[:: max(1, len(numbers) // _SOME)][:_SOME]
    return any(bool(torch.isin(weight.to(some.dtype), some).any()) for weight in evidence.weights.values())


def _right_weight(evidence: Evidence, path: str) -> Tensor:
    """Return a weight as it should be in the twin, given the order in which the twin takes features."""
    right = evidence.weights[path]
    if evidence.flattened and evidence.channels_first and _is_by_feature(evidence, path):
        return channels_first_features(right, evidence.flattened)
    return right


def _is_by_feature(evidence: Evidence, path: str) -> bool:
    """Tell whether a weight of the layer has a number or a row for each of the flattened features that it takes."""
    if evidence.step is None or not evidence.flattened or path not in evidence.places:
        return False
    by_feature = counts_features(evidence.step.layer, short_name(path))
    return by_feature and evidence.weights[path].shape[-1] == prod(evidence.flattened)


def _cause_of(evidence: Evidence, path: str, actual: Tensor, right: Tensor) -> Cause:
    """Return what went wrong with one weight.

    Args:
        evidence: The layer that diverges.
        path: The path of the weight.
        actual: The weight in the twin.
        right: The weight as it should be there.
    """
    short, (actual, right) = short_name(path), map(torch.atleast_1d, (actual, right))
    normalizes = evidence.step is not None and isinstance(evidence.step.layer, keras.layers.BatchNormalization)
    other_weights = {p: torch.atleast_1d(_right_weight(evidence, p)) for p in evidence.places if p != path}
    if short in ("moving_mean", "moving_variance") and bool((actual == (short == "moving_variance")).all()):
        return known_cause("statistics left at 0 and 1", f"{short} is {int(short == 'moving_variance')} throughout")
    for other, value in other_weights.items():
        if _equal(actual, value) and short not in ("kernel", "bias"):
            cause = "BatchNormalization vectors exchanged" if normalizes else "weights of another layer"
            return known_cause(cause, f"{short} holds {short_name(other)}")
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(actual, right.to(dtype).to(actual.dtype)):
            return known_cause("precision", f"{short} rounded to {str(dtype).removeprefix('torch.')}")
    wrong = (actual != right).nonzero()[:, 0].unique()
    if short in ("bias", "beta") and bool((actual[actual != right] == 0).all()):
        return known_cause("bias missing", f"{short} is 0 in {_count(evidence, wrong, right)}")
    for other, value in evidence.weights.items():
        if other not in evidence.places and value.shape == actual.shape and torch.equal(actual, value.to(actual.dtype)):
            return known_cause("weights of another layer", f"{short} is {other}")
    if right.ndim > 1 and _equal(actual[wrong], right[wrong].flip(1)):
        return known_cause("channels reversed", f"{short} takes the last channel first")
    rank = right.ndim
    for axes in chain.from_iterable(combinations(range(2, rank), n) for n in range(1, rank - 1)):
        if torch.equal(actual[wrong], right[wrong].flip(axes)):
            return known_cause("kernel flipped", f"along its axes {axes}, in {_count(evidence, wrong, right)}")
    for order in permutations(range(2, rank)):
        if list(order) != list(range(2, rank)) and _equal(actual, right.permute(0, 1, *order)):
            return known_cause("height and width exchanged", "in the kernel")
    return _cause_of_order(evidence, path, actual, right)


def _cause_of_order(evidence: Evidence, path: str, actual: Tensor, right: Tensor) -> Cause:
    """Return the other order in which a weight has the right numbers, or that it has other numbers."""
    short = short_name(path)
    if evidence.flattened and _is_by_feature(evidence, path):
        keras_order = evidence.weights[path].reshape(-1, *evidence.flattened)
        for order, reordered in other_orders(keras_order, all_orders=True):
            if _equal(actual, reordered.reshape(right.shape)):
                *spatial, channels = range(len(order))
                twin = (channels, *spatial) if evidence.channels_first else (*spatial, channels)
                detail = f"{short} has its features in the order {order}, the twin in {twin}"
                return known_cause("flatten order", detail)
        channels, *spatial = evidence.flattened
        moved = channels_first_features(evidence.weights[path], (*spatial, channels))
        if evidence.features_first and _equal(actual, moved):
            return known_cause("flatten order", f"{short} is reordered, and Keras has flattened channels first already")
    if right.ndim == 2 and _equal(actual, right.T):
        return known_cause("kernel not transposed", f"{tuple(right.shape)} either way")
    layer = evidence.step.layer if evidence.step else None
    if (
        isinstance(layer, keras.layers.Dense)
        and right.ndim > 2
        and _equal(actual, right.transpose(0, 1).reshape(right.shape))
    ):
        return known_cause("kernel not transposed", f"reshaped to {tuple(right.shape)}")
    if right.ndim > 2 and right.shape[1] == 1 and "epthwise" in type(layer).__name__ + short:
        by_channel = right.unflatten(0, (depthwise_channels(layer), -1))
        if _equal(actual, by_channel.transpose(0, 1).flatten(0, 1)):
            return known_cause("depthwise order", "channels and multiplier are in the other order")
    groups = getattr(layer, "groups", 1)
    if groups > 1 and right.shape[0] % groups == 0:
        for parts in ((groups, -1), (right.shape[0] // groups, -1)):
            if _equal(actual, right.unflatten(0, parts).transpose(0, 1).flatten(0, 1)):
                return known_cause("groups", "the outputs of the groups are interleaved")
    for order in permutations(range(right.ndim)):
        if _equal(actual, right.permute(order).reshape(right.shape)):
            return known_cause("kernel axes permuted", "its axes are in another order, or reshaped instead of permuted")
    wrong = (actual != right).nonzero()[:, 0].unique()
    alike = [other for other in evidence.places if short_name(other) == short]
    name = "/".join(path.split("/")[-2:]) if len(alike) > 1 else short
    where = f"{name}, in {_count(evidence, wrong, right)}" if len(right) > 1 else name
    if torch.equal(actual.flatten().sort().values, right.to(actual.dtype).flatten().sort().values):
        return known_cause("weights in another order", where)
    # Whether these are the initial ones cannot be known.
    return known_cause("weights hold other numbers", where)


def _count(evidence: Evidence, wrong: Tensor, weight: Tensor) -> str:
    """Return in how many of the parts along its first axis a weight is wrong, "10 of its 12 channels"."""
    layer = type(evidence.step.layer) if evidence.step else keras.Layer
    others = "channels" if layer.__module__.startswith("keras.") else "rows"
    part = {"Dense": "units", "Embedding": "vectors"}.get(layer.__name__, others)
    return f"{len(wrong)} of its {weight.shape[0]} {part}"


def order_in_other_weights(evidence: Evidence) -> Iterator[Cause]:
    """Yield that a weight of another layer has its features in Keras's order, and the twin channels first."""
    if not evidence.flattened or not evidence.channels_first:
        return
    for path, (module, name) in evidence.places.items():
        actual = dict(module.named_parameters()).get(name)
        others = (value for other, value in evidence.weights.items() if other not in evidence.places)
        if actual is None or not _is_by_feature(evidence, path):
            continue
        if any(_equal(value, actual) and not _equal(_channels_first(evidence, value), actual) for value in others):
            *spatial, channels = range(len(evidence.flattened))
            found = f"{short_name(path)} has its features in the order {(*spatial, channels)}"
            yield known_cause("flatten order", f"{found}, the twin in {(channels, *spatial)}")
            return


def _channels_first(evidence: Evidence, weight: Tensor) -> Tensor:
    return channels_first_features(weight, evidence.flattened or ())


def by_bias(evidence: Evidence) -> Iterator[Cause]:
    """Yield that a function of the twin adds no bias, or adds it twice, or that Keras adds it along the wrong axis."""
    bias = next(
        (weight for path, weight in evidence.weights.items() if path in evidence.places and path.endswith("/bias")),
        None,
    )
    if bias is None or bias.shape != evidence.value.shape[-1:] or not bool(bias.any()):
        return
    for sign, cause, detail in ((-1, "bias missing", "it is not added"), (1, "bias added twice", "")):
        if evidence.explains(evidence.value + sign * bias.to(evidence.value.dtype)):
            yield known_cause(cause, detail)
            return
    in_keras, own = as_in_keras(evidence.value, evidence.axis), evidence.axis % evidence.value.ndim
    if own != in_keras.ndim - 1 and in_keras.shape[-1] == len(bias):
        along_last = bias.to(in_keras.dtype)
        along_own = along_last.reshape(-1, *[1] * (in_keras.ndim - 1 - own))
        if evidence.explains_in_keras(in_keras - along_last + along_own):
            last = in_keras.ndim - 1
            yield known_cause("axis", f"the twin is right; Keras adds the bias along axis {last}, not {own}, {_WHY}")


_WHY = "as Keras 3.15 on TensorFlow does where both are as long as the bias"


def _equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors have the same shape and numbers, whatever their dtypes."""
    return a.shape == b.shape and torch.equal(a, b.to(a.dtype))

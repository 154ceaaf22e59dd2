"""Causes in attention: how its weights were moved, its scale, its masks, and what it takes as query, key and value."""

from collections.abc import Iterator
from math import sqrt
from typing import Any

from parity.diagnosis.causes import Cause
from parity.diagnosis.evidence import Evidence
from parity.diagnosis.recurrence import time_and_batch
from parity.diagnosis.variants import Said, each_cause_once, explaining_weights, first_that_explains, step_of_kind
from parity.models.keras_graph import Step
from parity.models.keras_layers import WITH_HEADS
from parity.models.keras_variants import Variant, scale_settings
from parity.weights.fills import Fill

import keras
import torch
from torch import Tensor

_ATTENTION = (*WITH_HEADS, keras.layers.Attention, keras.layers.AdditiveAttention)


def by_attention_weights(evidence: Evidence) -> Iterator[Cause]:
    """Yield what is wrong with the weights of an attention, if Keras's layer with these returns the twin's."""
    step = step_of_kind(evidence, _ATTENTION)
    if step is None or not evidence.fills:
        return
    fills = evidence.fills_by_path()
    actual, wrong = explaining_weights(step, evidence)
    exchanged = {path: _whose(path, actual[path], fills) for path in wrong}
    yield from each_cause_once(_of_weight(path, actual[path], fills[path], exchanged) for path in wrong)


def by_attention(evidence: Evidence) -> Iterator[Cause]:
    """Yield the scale, the mask or the order of inputs with which an attention returns what the twin returns."""
    step = step_of_kind(evidence, _ATTENTION)
    if step is None:
        return
    found = list(first_that_explains(step, evidence.inputs, _variants(step, evidence), [evidence]))
    part = None if found else _where_something_is_left(step, evidence)
    yield from found if part is None else first_that_explains(step, part.inputs, _inverted(step, part), [part])


def _where_something_is_left(step: Step, evidence: Evidence) -> Evidence | None:
    """Return the evidence of those examples in which inverted masks leave something to attend to, if not all do.

    Where nothing is left, each framework returns something of its own.
    """
    left = torch.ones(len(evidence.value), dtype=torch.bool)
    if any(len(x) != len(left) or x.ndim < 2 for x in (*evidence.inputs, evidence.twin)):
        return None
    for slot in step.masks:
        left &= (~evidence.inputs[slot].bool()).any(-1).reshape(len(left), -1).all(1)
    if bool(left.all()) or not bool(left.any()):
        return None
    inputs = [x[left] for x in evidence.inputs]
    return evidence._replace(inputs=inputs, value=evidence.value[left], twin=evidence.twin[left], behind=())


def _layer_of(path: str) -> str:
    """Return which of an attention's layers a weight belongs to: "query"."""
    return path.split("/")[-2]


def _whose(path: str, found: Tensor, fills: dict[str, list[Fill]]) -> str:
    """Return the layer, of the same attention, whose weight stands in the place of another; nothing if none does."""
    for other, several in fills.items():
        right = several[0].weight.value
        if other != path and right.shape == found.shape and torch.equal(found, right.to(found.dtype)):
            return _layer_of(other)
    return ""


def _of_weight(path: str, found: Tensor, several: list[Fill], exchanged: dict[str, str]) -> Said:
    """Return the cause, and in words what is wrong with one weight of an attention.

    Args:
        path: The path of the weight.
        found: What the twin has in its place, in Keras's layout.
        several: What the weight fills.
        exchanged: For each wrong weight: whose weight stands in its place.
    """
    right, layer, short = several[0].weight.value, _layer_of(path), path.rpartition("/")[2]
    if exchanged[path]:
        pairs = {(_layer_of(one), other) for one, other in exchanged.items() if other}
        if pairs == {("key", "value"), ("value", "key")}:
            return "key and value exchanged", f"{short} of {layer} is that of {exchanged[path]}"
        return "packed order", f"in the place of {layer} is {exchanged[path]}"
    if short == "bias" and not bool(found.any()):
        return "bias missing", f"bias of {layer} is 0"
    if short == "bias" and right.ndim == 2 and torch.equal(found.flatten(), right.T.flatten().to(found.dtype)):
        return "head axes", f"bias {tuple(right.shape)} of {layer} is flattened in another order"
    matrix = several[0].value
    laid = several[0].tensor.detach()
    if matrix.ndim == laid.ndim == 2:
        if matrix.shape[0] == matrix.shape[1] and torch.equal(laid, matrix.T.to(laid.dtype)):
            cause = "output not transposed" if "output" in layer else "kernel not transposed"
            return cause, f"kernel of {layer}, {tuple(matrix.shape)} either way"
        if any(torch.equal(laid, other.to(laid.dtype)) for other in _flattened_otherwise(right, matrix)):
            return "head axes", f"kernel {tuple(right.shape)} of {layer} is flattened in another order"
    if torch.equal(found.flatten().sort().values, right.flatten().sort().values.to(found.dtype)):
        return "weights in another order", f"{short} of {layer}"
    return "weights hold other numbers", f"{short} of {layer}"


def _flattened_otherwise(kernel: Tensor, matrix: Tensor) -> Iterator[Tensor]:
    """Yield a kernel with heads as a matrix of the same shape, its axes in another order or only reshaped."""
    if kernel.ndim != 3:
        return
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        reshaped = kernel.permute(order).reshape(matrix.shape)
        yield reshaped
        transposed = kernel.permute(order).reshape(matrix.shape[::-1]).T
        yield transposed


def _variants(step: Step, evidence: Evidence) -> Iterator[tuple[str, str, Variant]]:
    """Yield each variant of an attention, with the cause and the words for it."""
    kwargs: dict[str, Any] = step.node.arguments.kwargs
    slots = [slot for slot in range(len(evidence.inputs)) if slot not in step.masks]
    if isinstance(step.layer, WITH_HEADS):
        # A mask is (batch, 1, time) or (batch, time, time).
        turned = {
            slot: evidence.inputs[slot].transpose(0, 1 if slot in slots else -1) for slot in (*slots, *step.masks)
        }
        yield "time and batch exchanged", time_and_batch(evidence), Variant(inputs=turned)
    for name, due in scale_settings(step.layer).items():
        yield "scale missing", f"the scores are not divided by {1 / due:g}", Variant(settings={name: 1.0})
        width = evidence.inputs[0].shape[-1]
        for found, what in ((1 / sqrt(width), "the width"), (due**2, "key_dim, not its square root")):
            yield (
                "scale missing",
                f"the scores are divided by {1 / found:g}, of {what}",
                Variant(settings={name: found}),
            )
    if not isinstance(step.layer, WITH_HEADS):
        queries = Variant(settings={"_apply_scores": _softmax_over_queries})
        yield "axis", "the softmax is along the queries, not along the keys", queries
    if isinstance(step.layer, keras.layers.Attention):
        by_root = 1 / sqrt(evidence.inputs[0].shape[-1])
        scaled = Variant(inputs={0: evidence.inputs[0] * by_root})
        yield (
            "scale missing",
            "the scores are divided by the root of the width, which Keras's Attention does not",
            scaled,
        )
    masks = {name: None for name in kwargs if "mask" in name and name != "use_causal_mask"}
    if masks:
        yield "mask ignored", "it attends to what is masked", Variant(arguments=masks)
        yield from _inverted(step, evidence)
        for name in masks if len(masks) > 1 else ():
            yield "mask ignored", f"it does not follow {name}", Variant(arguments={name: None})
    causal = bool(kwargs.get("use_causal_mask", False))
    what = "it attends to later steps" if causal else "it attends to no later step, where Keras's layer does"
    yield "mask ignored" if causal else "mask added", what, Variant(arguments={"use_causal_mask": not causal})
    if causal and masks:
        every = masks | {"use_causal_mask": False}
        yield "mask ignored", "it attends to later steps and to what is masked", Variant(arguments=every)
    names = ["query", "value", "key"][: len(slots)]
    for a in range(len(slots)):
        for b in range(a + 1, len(slots)):
            exchange = {slots[a]: evidence.inputs[slots[b]], slots[b]: evidence.inputs[slots[a]]}
            yield "key and value exchanged", f"it takes the {names[b]} as the {names[a]}", Variant(inputs=exchange)
    if isinstance(step.layer, WITH_HEADS):
        yield from _of_heads(step, evidence)


def _inverted(step: Step, evidence: Evidence) -> Iterator[tuple[str, str, Variant]]:
    """Yield the variants with all masks inverted, and with each of them."""
    for chosen in (step.masks, *({slot} for slot in step.masks)):
        inverted = {slot: ~evidence.inputs[slot].bool() for slot in chosen}
        yield "mask inverted", "it attends to what is masked, and to nothing else", Variant(inputs=inverted)


def _softmax_over_queries(scores: Any, value: Any, scores_mask: Any = None, training: bool = False) -> tuple[Any, Any]:
    """Do what Keras's Attention and AdditiveAttention do with their scores (batch, queries, keys), but for the axis."""
    if scores_mask is not None:
        # As in Keras, which subtracts so much, because 65504 is the largest float16.
        much = 65504.0 if scores.dtype == "float16" else 1e9
        scores = keras.ops.where(scores_mask, scores, scores - much)
    weights = keras.ops.softmax(scores, axis=-2)
    return keras.ops.matmul(weights, value), weights


def _of_heads(step: Step, evidence: Evidence) -> Iterator[tuple[str, str, Variant]]:
    """Yield the variants of an attention with heads: how they are split, and along which axis the softmax is."""
    weights = {path: several[0].weight.value for path, several in evidence.fills_by_path().items()}
    inward = {path: _split_otherwise(value, 1) for path, value in weights.items() if _is_inward(path)}
    outward = {
        path: _split_otherwise(value, 0) for path, value in weights.items() if path.endswith("attention_output/kernel")
    }
    yield "key and value exchanged", "the projected key is taken as the value", Variant(weights=_exchanged(weights))
    words = "the features are split into (key_dim, heads), not into (heads, key_dim)"
    yield "head axes", words, Variant(weights=inward)
    yield "head axes", words, Variant(weights=inward | outward)
    yield "head axes", "the heads are put together in another order", Variant(weights=outward)
    yield "packed order", "its rows are read as (heads, 3, key_dim)", Variant(weights=_heads_first(weights))
    detail = "the keys and values are repeated as a whole, not one by one"
    yield "head axes", detail, Variant(weights=_repeated_as_a_whole(weights))
    for axis in (-2, 1):
        scores = Variant(settings={"axis": axis}, arguments={"return_attention_scores": True})
        name = {-2: "the queries", 1: "the heads"}[axis]
        yield "axis", f"the softmax is along {name}, not along the keys", scores


def _exchanged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of key and value, each in the place of the other, where their shapes allow it."""
    found = {}
    for path, value in weights.items():
        other = path.replace("/key/", "/value/") if "/key/" in path else path.replace("/value/", "/key/")
        if other != path and other in weights and weights[other].shape == value.shape:
            found[path] = weights[other]
    return found


def _heads_first(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of query, key and value as read from one tensor whose rows are (heads, 3, key_dim)."""
    found: dict[str, Tensor] = {}
    for name, axis in (("kernel", 1), ("bias", 0)):
        paths = [path for part in ("query", "key", "value") for path in weights if path.endswith(f"/{part}/{name}")]
        if len(paths) != 3 or len({weights[path].shape for path in paths}) != 1:
            continue
        heads, size = weights[paths[0]].shape[axis : axis + 2]
        rows = torch.cat([weights[path].flatten(axis) for path in paths], axis).unflatten(axis, (heads, 3, size))
        found |= {path: rows.select(axis + 1, part).contiguous() for part, path in enumerate(paths)}
    return found


def _repeated_as_a_whole(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the queries in the order in which they meet keys that are repeated as a whole."""
    found: dict[str, Tensor] = {}
    query = next((value for path, value in weights.items() if path.endswith("/query/kernel")), None)
    key = next((value for path, value in weights.items() if path.endswith("/key/kernel")), None)
    if query is None or key is None or query.shape[1] == key.shape[1]:
        return found
    order = sorted(range(query.shape[1]), key=lambda head: head % key.shape[1])
    for path, value in weights.items():
        for ending, axis in (("/query/kernel", 1), ("/query/bias", 0), ("/attention_output/kernel", 0)):
            if path.endswith(ending):
                found[path] = value.index_select(axis, torch.tensor(order))
    return found


def _is_inward(path: str) -> bool:
    return any(f"/{name}/" in path for name in ("query", "key", "value"))


def _split_otherwise(weight: Tensor, first: int) -> Tensor:
    """Return a weight whose axes (heads, key_dim), the first of which is given, are read as (key_dim, heads)."""
    first = min(first, weight.ndim - 2)
    heads, size = weight.shape[first : first + 2]
    flat = weight.flatten(first, first + 1)
    return flat.unflatten(first, (size, heads)).transpose(first, first + 1).contiguous()

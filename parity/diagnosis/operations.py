"""Causes in functions without weights: another operation than Keras's, other axes of it, a factor.

What a Lambda or a layer of the user's own computes is not known: it is taken for the first operation that returns what
the layer returns.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from itertools import chain, combinations, groupby, islice
from math import prod
from typing import Any

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, Function, result_of
from parity.models.alignment import alignments, largest
from parity.models.keras_graph import Step, activates

import keras
import torch
from torch import Tensor

# What is taken for the same numbers when it is found out what a Lambda computes. Mistakes are larger by far.
_SAME = 1e-5
# Of axes that give the same numbers, so many are named.
_MOST_SAID = 3

_UNARY: dict[str, Function] = {
    "its input as it is": torch.clone,
    "abs": torch.abs,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "negative": torch.neg,
    "sign": torch.sign,
    "sin": torch.sin,
    "cos": torch.cos,
}
_MERGES: dict[str, Function] = {
    "sum": lambda *xs: reduce(torch.add, xs),
    "mean": lambda *xs: reduce(torch.add, xs) / len(xs),
    "product": lambda *xs: reduce(torch.mul, xs),
    "maximum": lambda *xs: reduce(torch.maximum, xs),
    "minimum": lambda *xs: reduce(torch.minimum, xs),
}
_OF_TWO: dict[str, Function] = {
    "difference": torch.sub,
    "reversed difference": lambda a, b: b - a,
    "absolute difference": lambda a, b: (a - b).abs(),
    "squared difference": lambda a, b: (a - b).square(),
    "quotient": torch.div,
    "reversed quotient": lambda a, b: b / a,
}
_REDUCTIONS: dict[str, Function] = {
    "sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "maximum": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "minimum": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "L2 norm": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "L1 norm": lambda x, axes, keep: torch.linalg.vector_norm(x, 1, axes, keep),
    "variance": lambda x, axes, keep: x.var(axes, correction=0, keepdim=keep),
    "unbiased variance": lambda x, axes, keep: _unbiased(x, axes, keep),
    "standard deviation": lambda x, axes, keep: x.std(axes, correction=0, keepdim=keep),
    "unbiased standard deviation": lambda x, axes, keep: _unbiased(x, axes, keep).sqrt(),
}
# What Keras's layers and operations compute, by the name of their class.
_KINDS = {
    **{"Absolute": "abs", "Abs": "abs", "Square": "square", "Sqrt": "sqrt", "Rsqrt": "rsqrt", "Exp": "exp"},
    **{"Reciprocal": "reciprocal", "Expm1": "expm1", "Log": "log", "Log1p": "log1p", "Negative": "negative"},
    **{"Sign": "sign", "Sin": "sin", "Cos": "cos"},
    **{"Add": "sum", "Average": "mean", "Multiply": "product", "Maximum": "maximum", "Minimum": "minimum"},
    **{"Subtract": "difference", "Divide": "quotient", "TrueDivide": "quotient"},
}
_REDUCING = {
    **{"Sum": "sum", "Mean": "mean", "Max": "maximum", "Amax": "maximum", "Min": "minimum", "Amin": "minimum"},
    **{"Var": "variance", "Std": "standard deviation", "Norm": "L2 norm"},
}
# The factor with which each of the inputs of a sum is due.
_DUE_FACTORS: Mapping[str, Function] = {
    "sum": lambda count: torch.ones(count),
    "mean": lambda count: torch.full((count,), 1 / count),
    "difference": lambda count: torch.tensor([1.0, -1.0]),
}


def _unbiased(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Return the unbiased variance along axes; a single number has none."""
    if prod(x.shape[axis] for axis in axes) == 1:
        return x.mean(axes, keepdim=keep) * torch.nan
    return x.var(axes, correction=1, keepdim=keep)


def axis_sets(rank: int, first: int = 0) -> Iterator[tuple[int, ...]]:
    """Yield each choice of axes of a tensor, from an axis on."""
    return chain.from_iterable(combinations(range(first, rank), count) for count in range(1, rank - first + 1))


def is_unknown(step: Step) -> bool:
    """Tell whether it is not known what a step computes: a Lambda, or a layer of the user's own."""
    return isinstance(step.layer, keras.layers.Lambda) or not type(step.layer).__module__.startswith("keras.")


def same(a: Tensor | None, b: Tensor) -> bool:
    """Tell whether two tensors in Keras's order of axes have the same shape and the same numbers."""
    return a is not None and a.shape == b.shape and largest(a.double() - b.double()) <= _SAME * largest(b)


def identified(evidence: Evidence, functions: Mapping[str, Function]) -> str | None:
    """Return the name of the first function that returns what the Keras layer returns."""
    return next((n for n, f in functions.items() if same(result_of(f, evidence.inputs), evidence.value)), None)


def _floats(evidence: Evidence) -> bool:
    return all(x.is_floating_point() for x in (*evidence.inputs, evidence.value))


def by_operation(evidence: Evidence) -> Iterator[Cause]:
    """Yield another operation, element by element, or a factor, that gives what the twin has."""
    step, inputs = evidence.step, evidence.inputs
    if step is None or step.weights or activates(step) or not inputs or not _floats(evidence):
        return
    two = len(inputs) == len({*step.inputs}) == 2  # not a tensor with itself, as in x * x
    functions = _UNARY if len(inputs) == 1 else _MERGES | (_OF_TWO if two or evidence.composed else {})
    unknown = evidence.composed or is_unknown(step)
    own = identified(evidence, functions) if unknown else _KINDS.get(type(step.layer).__name__)
    if own not in functions:
        return
    for name, function in functions.items():
        if name != own and evidence.gives(function):
            yield known_cause("another operation", f"{name}, not {own}")
            return
    if evidence.onward is None:
        yield from _by_factors(evidence, own, functions[own])


def _by_factors(evidence: Evidence, own: str, function: Function) -> Iterator[Cause]:
    """Yield the factor of the output, or those of the inputs of a sum, with which the twin agrees.

    Args:
        evidence: The layer.
        own: The name of what it computes.
        function: What it computes.
    """
    inputs = evidence.inputs
    for value, twin, _ in alignments(evidence.value, evidence.twin):
        if value.shape != twin.shape or not all(bool(x.isfinite().all()) for x in (*inputs, value, twin)):
            continue
        factor = fitted([value], twin)[0]
        if factor and abs(factor - 1) > _SAME and evidence.gives(lambda *xs, by=factor: by * function(*xs)):
            yield known_cause("output scaled", f"{factor:.4g} times what it should be")
            return
        if own in _DUE_FACTORS and value.shape == evidence.value.shape:
            found = fitted([x.expand(value.shape) for x in inputs], twin)
            if evidence.gives(lambda *xs, by=found: reduce(torch.add, (a * x for a, x in zip(by, xs, strict=True)))):
                due = _DUE_FACTORS[own](len(inputs)).tolist()
                yield _without(evidence, found, due) or known_cause(
                    "output scaled", f"its inputs are taken {_times(found)} times, not {_times(due)}"
                )
                return


def _without(evidence: Evidence, found: Sequence[float], due: Sequence[float]) -> Cause | None:
    """Return that a sum leaves inputs out, if the factors that were found are those that are due, or 0."""
    left_out = [slot for slot, factor in enumerate(found) if abs(factor) < _SAME]
    rest = [(a, b) for slot, (a, b) in enumerate(zip(found, due, strict=True)) if slot not in left_out]
    if evidence.step is None or not left_out or any(abs(a - b) > _SAME for a, b in rest):
        return None
    names = {number: step.name for step in evidence.run.graph.steps for number in step.outputs}
    due_names = [names.get(evidence.step.inputs[slot]) for slot in left_out]
    words = [
        f"its input {slot + 1}, " + (f"the output of {name}" if name else "an input of the model")
        for slot, name in zip(left_out, due_names, strict=True)
    ]
    return known_cause("another skip", f"without {'; '.join(words)}")


def fitted(xs: Sequence[Tensor], y: Tensor) -> list[float]:
    """Return the factors with which the sum of tensors is nearest to another."""
    columns = torch.stack([x.double().flatten() for x in xs], 1)
    return torch.linalg.lstsq(columns, y.double().flatten()[:, None]).solution[:, 0].tolist()


def _times(factors: Sequence[float]) -> str:
    """Return factors in words, without the rounding of their last digits."""
    return " and ".join(f"{round(factor, 5) + 0.0:.4g}" for factor in factors)


def by_reduction(evidence: Evidence) -> Iterator[Cause]:
    """Yield other axes, or another reduction, with which an operation that reduces axes gives what the twin has."""
    step = evidence.step
    if step is None or len(evidence.inputs) != 1 or not _floats(evidence):
        return
    layer, x = step.layer, evidence.inputs_in_keras()[0]
    own = _reduction_of(layer) if evidence.onward is not None or not isinstance(layer, keras.layers.Layer) else None
    if own is None:
        return
    due, keep = _due_axes(layer, x.ndim), bool(getattr(layer, "keepdims", False))
    # Nothing is reduced along axes of length 1.
    others = [axes for axes in axis_sets(x.ndim) if axes != due and any(x.shape[axis] > 1 for axis in axes)]
    unlike = partial(_unlike, due)
    for _, alike in groupby(sorted(others, key=unlike), unlike):
        found = [
            axes for axes in alike if evidence.gives_in_keras(lambda x, axes=axes: _REDUCTIONS[own](x, axes, keep))
        ]
        if found:
            said = " or ".join(axes_in_words(axes, x.ndim) for axes in found[:_MOST_SAID])
            yield known_cause("axis", f"the {own} along {said}, not {due}")
            return
    for name, function in _REDUCTIONS.items():
        if name != own and evidence.gives_in_keras(lambda x, function=function: function(x, due, keep)):
            if type(layer).__name__.startswith("Global"):
                words = {"mean": "average"}
                found_one, due_one = words.get(name, name), words.get(own, own)
                yield known_cause("another pooling", f"{found_one} of all pixels, not {due_one}")
                return
            cause = "unbiased variance" if name == f"unbiased {own}" else "another operation"
            yield known_cause(cause, f"{name}, not {own}")
            return


def _unlike(due: tuple[int, ...], axes: tuple[int, ...]) -> tuple[bool, int]:
    """Return how unlikely it is that a twin has these axes: rather as many as are due, and not the batch."""
    return 0 in axes, abs(len(axes) - len(due))


def _reduction_of(layer: Any) -> str | None:
    kind = type(layer).__name__
    if kind == "Norm":
        return {None: "L2 norm", 2: "L2 norm", "fro": "L2 norm", 1: "L1 norm"}.get(layer.ord)
    if kind.startswith("Global"):
        return "maximum" if "Max" in kind else "mean"
    return _REDUCING.get(kind)


def _due_axes(layer: Any, rank: int) -> tuple[int, ...]:
    if isinstance(layer, keras.layers.Layer):
        return tuple(range(1, rank - 1)) if layer.data_format == "channels_last" else tuple(range(2, rank))
    axis = layer.axis
    if axis is None:
        return tuple(range(rank))
    return tuple(sorted(one % rank for one in (axis if isinstance(axis, list | tuple) else [axis])))


def axes_in_words(axes: tuple[int, ...], rank: int) -> str:
    """Return axes of a tensor in words, with a remark if the batch is one of them."""
    if len(axes) == rank:
        return f"{axes}, all of the batch together"
    return f"{axes}, the batch among them" if 0 in axes else str(axes)


def by_element(evidence: Evidence) -> Iterator[Cause]:
    """Yield what the twin takes of an axis where the Keras model takes one element, such as the first token."""
    step = evidence.step
    if step is None or len(evidence.inputs) != 1 or type(step.layer).__name__ not in ("GetItem", "Lambda", "Take"):
        return
    x, value = evidence.inputs_in_keras()[0], evidence.value_in_keras()
    if value.ndim != x.ndim - 1 or not _floats(evidence):
        return
    for axis in range(1, x.ndim):
        due = next((i for i in range(x.shape[axis]) if same(x.select(axis, i), value)), None)
        if due is not None:
            yield from islice(_of_axis(evidence, axis, due), 1)


def _of_axis(evidence: Evidence, axis: int, due: int) -> Iterator[Cause]:
    """Yield another element of an axis, or a reduction of the axis, that gives what the twin has."""
    size = evidence.inputs_in_keras()[0].shape[axis]
    for element in sorted({0, 1, size // 2, size - 2, size - 1} & {*range(size)} - {due}):
        if evidence.gives_in_keras(lambda x, element=element: x.select(axis, element)):
            yield known_cause("another operation", f"element {element} of axis {axis}, not element {due}")
    for name, function in _REDUCTIONS.items():
        if evidence.gives_in_keras(lambda x, function=function: function(x, (axis,), False)):
            yield known_cause("another operation", f"the {name} of axis {axis}, not its element {due}")

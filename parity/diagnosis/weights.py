"""What may have been done to the weights of a layer on their way into the twin."""

import copy
from collections.abc import Iterator
from itertools import chain, combinations, permutations
from math import prod

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, run_modules
from parity.diagnosis.order import other_orders
from parity.weights.flattened import channels_first_features

import torch
from torch import Tensor


def by_weights(evidence: Evidence) -> Iterator[Cause]:
    """Yield what was done to the weights, if the layer agrees with the right ones."""
    if not evidence.actual or not evidence.modules:
        return
    different: list[tuple[str, Tensor, Tensor]] = []
    repaired = copy.deepcopy(evidence.modules)
    filled = set()
    for path, (module, name) in evidence.actual.items():
        # A shared layer whose second call is another module has its weights in the first.
        at = next((i for i, other in enumerate(evidence.modules) if other is module), 0)
        due = _due(evidence, path)
        filled.add((at, name))
        tensor = dict(repaired[at].named_parameters()) | dict(repaired[at].named_buffers())
        if name not in tensor or tensor[name].shape != due.shape:
            continue
        actual = tensor[name].detach().clone()
        if not torch.equal(actual, due.to(actual.dtype)):
            different.append((path, actual, due.to(actual.dtype)))
            with torch.no_grad():
                tensor[name].copy_(due)
    extra: dict[str, Tensor] = {}
    for at, module in enumerate(repaired):
        for name, parameter in module.named_parameters():
            neutral = 1.0 if name == "weight" else 0.0
            if (at, name) not in filled and not bool((parameter == neutral).all()):
                extra[name] = parameter.detach().clone()
                with torch.no_grad():
                    parameter.fill_(neutral)
    if not (different or extra) or not evidence.agrees(run_modules(repaired, evidence.twin_inputs)):
        return
    values = [actual for _, actual, _ in different] + list(extra.values())
    misplaced = [one for one in different if any(_equal(one[1], due) for _, _, due in different)]
    if misplaced and all(any(_equal(value, due) for value in values) for _, _, due in different):
        # All the right values are there, at other places; what is at the place left over is no second mistake.
        different, extra = misplaced, {}
    seen = set()
    for path, actual, due in different:
        cause = _name_of(evidence, path, actual, due)
        if cause.cause not in seen:
            seen.add(cause.cause)
            yield cause
    if extra:
        yield known_cause("weights not moved", f"{', '.join(extra)}: Keras has none, and the twin's are not neutral")


def _due(evidence: Evidence, path: str) -> Tensor:
    """Return what a weight should be in the twin, given the order of the features that the twin takes."""
    due = evidence.weights[path]
    if evidence.flattened and evidence.channels_first and due.shape[-1] == prod(evidence.flattened):
        return channels_first_features(due, evidence.flattened)
    return due


def _name_of(evidence: Evidence, path: str, actual: Tensor, due: Tensor) -> Cause:
    """Return what was done to a weight that the twin has otherwise than it should."""
    short = path.rpartition("/")[2]
    own = {other: _due(evidence, other) for other in evidence.actual if other != path}
    if short in ("moving_mean", "moving_variance") and bool((actual == (short == "moving_variance")).all()):
        return known_cause("statistics left at 0 and 1", f"{short} is {int(short == 'moving_variance')} throughout")
    for other, value in own.items():
        if torch.equal(actual, value.to(actual.dtype)) and short not in ("kernel", "bias"):
            return known_cause("BatchNormalization vectors exchanged", f"{short} holds {other.rpartition('/')[2]}")
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(actual, due.to(dtype).to(actual.dtype)):
            return known_cause("precision", f"{short} rounded to {str(dtype).removeprefix('torch.')}")
    wrong = (actual != due).nonzero()[:, 0].unique()
    if short in ("bias", "beta") and bool((actual[actual != due] == 0).all()):
        return known_cause("bias missing", f"{short} is 0 in {_some(wrong, due)}")
    for other, value in evidence.weights.items():
        if other not in evidence.actual and value.shape == actual.shape and torch.equal(actual, value.to(actual.dtype)):
            return known_cause("weights of another layer", f"{short} is {other}")
    if due.ndim > 1 and _equal(actual[wrong], due[wrong].flip(1)):
        return known_cause("channels reversed", f"{short} takes the last channel first")
    rank = due.ndim
    for axes in chain.from_iterable(combinations(range(2, rank), n) for n in range(1, rank - 1)):
        if torch.equal(actual[wrong], due[wrong].flip(axes)):
            return known_cause("kernel flipped", f"along its axes {axes}, in {_some(wrong, due)}")
    for order in permutations(range(2, rank)):
        if list(order) != list(range(2, rank)) and _equal(actual, due.permute(0, 1, *order)):
            return known_cause("height and width exchanged", "in the kernel")
    return _name_of_order(evidence, short, actual, due)


def _name_of_order(evidence: Evidence, short: str, actual: Tensor, due: Tensor) -> Cause:
    """Return in what other order a weight has the right numbers."""
    if evidence.flattened and due.shape[-1] == prod(evidence.flattened):
        path = next(path for path in evidence.actual if path.endswith(f"/{short}"))
        plain = evidence.weights[path].reshape(-1, *evidence.flattened)
        for order, other in other_orders(plain, all_orders=True):
            if _equal(actual, other.reshape(due.shape)):
                count = range(len(order))
                due = (count[-1], *count[:-1]) if evidence.channels_first else tuple(count)
                return known_cause("flatten order", f"{short} has its features in the order {order}, the twin in {due}")
    if due.ndim == 2 and _equal(actual, due.T):
        return known_cause("kernel not transposed", f"{tuple(due.shape)} either way")
    layer = evidence.step.layer if evidence.step else None
    if due.ndim > 2 and due.shape[1] == 1 and "epthwise" in type(layer).__name__ + short:
        inputs = getattr(layer, "depthwise_kernel", getattr(layer, "kernel", None)).shape[-2]
        if _equal(actual, due.unflatten(0, (inputs, -1)).transpose(0, 1).flatten(0, 1)):
            return known_cause("depthwise order", "channels and multiplier are in the other order")
    groups = getattr(layer, "groups", 1)
    if groups > 1 and due.shape[0] % groups == 0:
        for parts in ((groups, -1), (due.shape[0] // groups, -1)):
            if _equal(actual, due.unflatten(0, parts).transpose(0, 1).flatten(0, 1)):
                return known_cause("groups", "the outputs of the groups are interleaved")
    for order in permutations(range(due.ndim)):
        if _equal(actual, due.permute(order).reshape(due.shape)):
            return known_cause("kernel axes permuted", "its axes are in another order, or reshaped instead of permuted")
    wrong = (actual != due).nonzero()[:, 0].unique()
    return known_cause("weights not moved", f"{short} holds other numbers in {_some(wrong, due)}")


def _some(wrong: Tensor, due: Tensor) -> str:
    return f"{len(wrong)} of {due.shape[0]}"


def by_bias(evidence: Evidence) -> Iterator[Cause]:
    """Yield that a function of the twin adds no bias, or adds it twice."""
    bias = next(
        (weight for path, weight in evidence.weights.items() if path in evidence.actual and path.endswith("/bias")),
        None,
    )
    if bias is None or bias.shape != evidence.value.shape[-1:] or not bool(bias.any()):
        return
    for sign, cause, detail in (
        (-1, "bias missing", "it is not added"),
        (1, "weights not moved", "the bias is added twice"),
    ):
        if evidence.explains(evidence.value + sign * bias.to(evidence.value.dtype)):
            yield known_cause(cause, detail)
            return


def _equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors have the same shape and numbers, whatever their dtypes."""
    return a.shape == b.shape and torch.equal(a, b.to(a.dtype))

"""Modes, settings, padding and pooling that a layer and its twin may not share."""

import copy
from collections.abc import Iterator
from itertools import product
from typing import Any

from parity.case import Cause, Evidence, known_cause, padded, run_modules
from parity.layouts import Place, find_layout
from parity.overlay import largest, views
from parity.padding import same_padding

import torch
import torch.nn.functional as F
from torch import Tensor

_SETTINGS = {
    "eps": "epsilon",
    "momentum": "momentum",
    "stride": "stride or dilation",
    "dilation": "stride or dilation",
    "groups": "groups",
    "num_groups": "groups",
}


def by_mode(evidence: Evidence) -> Iterator[Cause]:
    """Yield that the twin is in training mode, if it agrees in evaluation mode, or the other way round."""
    # Where the modules agree in the mode that they are in, the fault is between or behind them.
    alone = evidence.agrees(run_modules(copy.deepcopy(evidence.modules), evidence.twin_inputs))
    for training, how in ((False, "eval()"), (True, "train()")):
        if not alone and any(module.training != training for module in evidence.modules):
            modules = [module.train(training) for module in copy.deepcopy(evidence.modules)]
            if evidence.agrees(run_modules(modules, evidence.twin_inputs)):
                yield known_cause("train mode", f"it agrees after {how}")
                return
    if dropped(evidence):
        yield known_cause("train mode", "some elements are 0, the others larger, as dropout makes them")


def dropped(evidence: Evidence) -> bool:
    """Tell whether some elements of the twin are 0 and all others larger by one factor, as dropout makes them."""
    for view, twin, _ in views(evidence.value, evidence.twin, None, None):
        zero = (twin == 0) & (view != 0)
        kept = (twin != 0) & (view != 0)
        if not bool(zero.any()) or not bool(kept.any()):
            continue
        factor = float((twin[kept] / view[kept]).median())
        if factor > 1.01 and largest(twin[kept] - factor * view[kept]) <= 4 * evidence.tolerance + 1e-6 * largest(twin):
            return True
    return False


def other_settings(evidence: Evidence) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which the twin differs: what the Keras layer needs, and what the twin has."""
    found = {}
    layout = find_layout(evidence.step.layer) if evidence.step and not evidence.step.is_activation else None
    for variable in getattr(evidence.step.layer, "weights", []) if layout else []:
        place = layout.get(variable.name)
        module = evidence.actual.get(variable.path, (None,))[0]
        if not isinstance(place, Place) or not isinstance(module, place.modules):
            continue
        for name, due, actual in place.settings(evidence.step.layer, module):
            numbers = isinstance(due, float) and isinstance(actual, float)
            if abs(due - actual) > 1e-6 * abs(due) if numbers else due != actual:
                found[name.split(" ")[0]] = (due, actual)
    return found


def by_settings(evidence: Evidence) -> Iterator[Cause]:
    """Yield each setting with which the layer agrees."""
    for name, (due, actual) in other_settings(evidence).items():
        if name not in _SETTINGS:
            continue
        detail = f"{name} is {actual}, not {due}"
        modules = copy.deepcopy(evidence.modules)
        for module in modules:
            if hasattr(module, name):
                setattr(module, name, due)
        moves = name in ("stride", "dilation")  # and with them the padding that is due
        if evidence.agrees(
            _convolved(evidence, _pads_due(evidence)) if moves else run_modules(modules, evidence.twin_inputs)
        ):
            yield known_cause(_SETTINGS[name], detail)


def _spatial(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Return kernel size, stride and dilation of a convolution or pooling layer."""
    kernel = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    if kernel is None:
        return None
    rank = len(kernel)
    dilation = getattr(layer, "dilation_rate", 1)
    dilation = (dilation,) * rank if isinstance(dilation, int) else tuple(dilation)
    return tuple(kernel), tuple(layer.strides), dilation


def _pads_due(evidence: Evidence) -> list[tuple[int, int]]:
    """Return how many elements Keras adds (before, after) along each axis."""
    kernel, stride, dilation = _spatial(evidence.step.layer)
    sizes = evidence.inputs[0].shape[1:-1]
    if evidence.step.layer.padding == "same":
        return [same_padding(*axis) for axis in zip(sizes, kernel, stride, dilation, strict=True)]
    if evidence.step.layer.padding == "causal":
        return [((k - 1) * d, 0) for k, d in zip(kernel, dilation, strict=True)]
    return [(0, 0)] * len(kernel)


def _other_pads(evidence: Evidence) -> Iterator[list[tuple[int, int]]]:
    """Yield every other padding with which the output has the shape of the twin's."""
    kernel, stride, dilation = _spatial(evidence.step.layer)
    sizes = evidence.inputs[0].shape[1:-1]
    outputs = evidence.twin.shape[2:]
    due = _pads_due(evidence)
    each = []
    for n, k, s, d, o in zip(sizes, kernel, stride, dilation, outputs, strict=True):
        reach = (k - 1) * d + 1
        pairs = [(b, a) for b in range(reach + 1) for a in range(reach + 1) if (n + b + a - reach) // s + 1 == o]
        each.append(pairs)
    if max(map(len, each), default=0) > 40:
        each = [[pair for pair in pairs if abs(pair[0] - pair[1]) <= 2] for pairs in each]
    for pads in product(*each):
        if list(pads) != due:
            yield list(pads)


def _channels_first_input(evidence: Evidence) -> Tensor:
    dtype = evidence.twin.dtype
    return evidence.inputs[0].movedim(-1, 1).to(dtype)


def _kernels(evidence: Evidence) -> tuple[Tensor, Tensor | None, int] | None:
    """Return weight, bias and groups of a convolution, right for PyTorch."""
    if len({id(module) for module, _ in evidence.actual.values()}) != 1:
        return None
    by_name = {path.rpartition("/")[2]: weight for path, weight in evidence.weights.items() if path in evidence.actual}
    weight = next((value for name, value in by_name.items() if "kernel" in name), None)
    if weight is None or weight.ndim != evidence.value.ndim:
        return None
    groups = evidence.inputs[0].shape[-1] // weight.shape[1]
    return weight.to(evidence.twin.dtype), by_name.get("bias"), groups


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _convolved(evidence: Evidence, pads: list[tuple[int, int]], mode: str = "constant") -> Tensor | None:
    """Return what the Keras layer's convolution makes of its input with another padding, channels first."""
    kernels = _kernels(evidence)
    if kernels is None or "Transpose" in type(evidence.step.layer).__name__:
        return None
    weight, bias, groups = kernels
    _, stride, dilation = _spatial(evidence.step.layer)
    x = padded(_channels_first_input(evidence), pads, mode)
    return _CONVOLUTIONS[len(stride)](x, weight, bias, stride, 0, dilation, groups)


def by_padding(evidence: Evidence) -> Iterator[Cause]:
    """Yield the padding with which a convolution gives what the twin has."""
    if (
        evidence.step is None
        or evidence.step.is_activation
        or not evidence.inputs
        or _spatial(evidence.step.layer) is None
    ):
        return
    if _kernels(evidence) is None or evidence.twin.ndim != evidence.value.ndim:
        return
    if "Transpose" in type(evidence.step.layer).__name__:
        yield from _by_cropping(evidence)
        return
    due = _pads_due(evidence)
    for pads in _other_pads(evidence):
        if evidence.explains(_channels_last(_convolved(evidence, pads))):
            yield known_cause("padding", f"{pads} is added, not {due}")
            return
    for mode in ("reflect", "replicate", "circular"):
        sizes = evidence.inputs[0].shape[1:-1]
        if any(max(pair) >= size for pair, size in zip(due, sizes, strict=True)):
            continue
        if evidence.explains(_channels_last(_convolved(evidence, due, mode))):
            yield known_cause("padding value", f"the padding is no zeros, it is {mode}")
            return


def _by_cropping(evidence: Evidence) -> Iterator[Cause]:
    """Yield the crop with which a transposed convolution gives what the twin has."""
    weight, bias, _ = _kernels(evidence)
    kernel, stride, dilation = _spatial(evidence.step.layer)
    whole = _TRANSPOSED[len(stride)](_channels_first_input(evidence), weight, bias, stride, 0, 0, 1, dilation)
    # Beyond the result there is only the bias.
    room = max((k - 1) * d + s for k, s, d in zip(kernel, stride, dilation, strict=True))
    rest = torch.zeros(whole.shape[1], dtype=whole.dtype) if bias is None else bias.to(whole.dtype)
    rest = rest.reshape(1, -1, *[1] * len(stride))
    whole = padded(whole - rest, [(0, room)] * len(stride)) + rest
    sizes = evidence.twin.shape[2:]
    ranges = [range(min(room, have - want) + 1) for have, want in zip(whole.shape[2:], sizes, strict=True)]
    for starts in product(*ranges):
        part = whole
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), 2):
            part = part.narrow(axis, start, size)
        if evidence.explains(_channels_last(part)):
            yield known_cause("padding", f"{starts} elements are cropped before the result")
            return


def by_pooling(evidence: Evidence) -> Iterator[Cause]:
    """Yield the pooling that gives what the twin has."""
    layer = evidence.step.layer if evidence.step else None
    if not hasattr(layer, "pool_size") or evidence.twin.ndim != evidence.value.ndim or not evidence.inputs:
        return
    kernel, stride, _ = _spatial(layer)
    due, is_max = _pads_due(evidence), "Max" in type(layer).__name__
    for module in evidence.modules:
        for name, wanted in (("kernel_size", kernel), ("stride", stride), ("dilation", (1,) * len(kernel))):
            actual = getattr(module, name, wanted)
            actual = (actual,) * len(kernel) if isinstance(actual, int) else tuple(actual)
            if actual != wanted:
                yield known_cause("stride or dilation", f"{name} is {actual}, not {wanted}")
                return
    for pads in [due, *_other_pads(evidence)]:
        for name, y in _pooled(evidence, kernel, stride, pads):
            if not evidence.explains(_channels_last(y)):
                continue
            if evidence.twin.shape[2:] != y.shape[2:]:
                yield known_cause("padding", "the right windows, and more at the end, as with ceil_mode")
            elif ("max" in name) != is_max:
                yield known_cause("another pooling", name)
            elif pads == due and name == "max, zeros":
                yield known_cause("padding value", "zeros, where minus infinity is due")
            elif pads == due and name == "average, padding counted":
                yield known_cause("padding counted", "the average counts elements of padding")
            else:
                yield known_cause("padding", f"{pads} is added, not {due}; {name}")
            return
    if getattr(evidence.modules[0], "ceil_mode", False) if evidence.modules else False:
        yield known_cause("padding", "ceil_mode adds a window at the end")
    elif not evidence.modules:
        for other, step in product(range(2, max(kernel) + 2), range(1, max(stride) + 2)):
            for pads in (due, [(0, 0)] * len(kernel), [(other // 2, other // 2)] * len(kernel)):
                if any(n + sum(pair) < other for n, pair in zip(evidence.inputs[0].shape[1:-1], pads, strict=True)):
                    continue
                for name, y in _pooled(evidence, (other,) * len(kernel), (step,) * len(kernel), pads):
                    if (
                        ("max" in name) == is_max
                        and evidence.twin.shape == y.shape
                        and evidence.explains(_channels_last(y))
                    ):
                        yield known_cause("stride or dilation", f"windows of {other} in steps of {step}")
                        return


def _pooled(evidence: Evidence, kernel: Any, stride: Any, pads: list[tuple[int, int]]) -> Iterator[tuple[str, Tensor]]:
    rank = len(kernel)
    maximum = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    x = _channels_first_input(evidence)
    yield "max", maximum(padded(x, pads, value=float("-inf")), kernel, stride)
    yield "max, zeros", maximum(padded(x, pads), kernel, stride)
    counted = average(padded(x, pads), kernel, stride)
    yield "average", counted / average(padded(torch.ones_like(x), pads), kernel, stride)
    yield "average, padding counted", counted


def _channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.movedim(1, -1)

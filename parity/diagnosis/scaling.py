"""Causes in layers that scale what the model is fed: Rescaling and Normalization."""

from collections.abc import Iterator
from functools import partial

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, Function
from parity.diagnosis.inputs import line
from parity.models.alignment import alignments
from parity.tensors import as_tensor
from parity.tracing.op_families import SCALES, names_of_step

import keras
import torch
from torch import Tensor


def by_scale(evidence: Evidence) -> Iterator[Cause]:
    """Yield the other formula with which a layer that scales gives what the twin has."""
    step = evidence.step
    if step is None or len(evidence.inputs) != 1 or not evidence.inputs[0].is_floating_point():
        return
    if evidence.composed:
        yield from _by_all_of_them(evidence)
        return
    # Where a Rescaling is seen by itself, its factor and its offset can be told: see ``by_numbers``.
    if isinstance(step.layer, keras.layers.Rescaling) and evidence.onward is not None:
        formulas = _rescalings(step.layer, evidence.inputs_in_keras()[0])
    elif isinstance(step.layer, keras.layers.Normalization):
        formulas = _normalizations(step.layer, evidence.inputs_in_keras()[0])
    else:
        return
    for name, function in formulas.items():
        if evidence.gives_in_keras(function):
            cause = "channels reversed" if name.endswith("in reverse order") else "input scaled"
            yield known_cause(cause, name)
            return


def _by_all_of_them(evidence: Evidence) -> Iterator[Cause]:
    """Yield what the twin has in the place of several layers that scale, one after the other."""
    step, x = evidence.step, evidence.inputs[0]
    if step is None or not names_of_step(step) & SCALES:
        return
    if evidence.gives(torch.clone):
        yield known_cause("input scaled", "its input as it is, neither rescaled nor normalized")
        return
    axes = tuple(range(x.ndim - 1))
    due = line(x.double(), evidence.value.double(), axes, evidence.tolerance)
    for value, twin, _ in alignments(x, evidence.twin, window=True):
        found = line(value.double(), twin.double(), axes, evidence.tolerance)
        if due is not None and found is not None and evidence.gives(partial(_along, found)):
            yield known_cause("input scaled", f"its input {_in_words(*found)}, not {_in_words(*due)}")
            return


def _along(factor_and_offset: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    factor, offset = factor_and_offset
    return factor.to(x.dtype) * x + offset.to(x.dtype)


def _in_words(factor: Tensor, offset: Tensor) -> str:
    """Return a factor and an offset in words, one for all channels if these are alike."""
    return f"times {_each(factor)} plus {_each(offset)}"


def _each(number: Tensor) -> str:
    numbers = number.flatten().tolist()
    if max(numbers) - min(numbers) <= 1e-5 * max(map(abs, numbers)):
        return f"{numbers[0]:.4g}"
    return f"({', '.join(f'{one:.4g}' for one in numbers)})"


def _rescalings(layer: keras.layers.Rescaling, x: Tensor) -> dict[str, Function]:
    scale, offset = (torch.as_tensor(number, dtype=x.dtype) for number in (layer.scale, layer.offset))
    due = f"{_said(scale)} times its input" + (f" plus {_said(offset)}" if bool(offset.any()) else "")
    found: dict[str, Function] = {f"its input as it is, not {due}": torch.clone}
    if bool(offset.any()):
        found[f"without the offset of {_said(offset)}"] = lambda x: scale * x
        found[f"without the scale of {_said(scale)}"] = lambda x: x + offset
        found["the offset before the scale"] = lambda x: scale * (x + offset)
        found[f"the offset of {_said(offset)} is subtracted"] = lambda x: scale * x - offset
    found[f"divided by {_said(scale)}, not multiplied by it"] = lambda x: x / scale + offset
    found[f"scaled twice by {_said(scale)}"] = lambda x: scale * (scale * x + offset) + offset
    for name, factor, plus in (("1/255", 1 / 255, 0.0), ("1/127.5 and -1", 1 / 127.5, -1.0), ("1/256", 1 / 256, 0.0)):
        found[f"{name}, not {due}"] = lambda x, factor=factor, plus=plus: factor * x + plus
    return found


def _normalizations(layer: keras.layers.Normalization, x: Tensor) -> dict[str, Function]:
    mean, variance = (as_tensor(number).to(x.dtype) for number in (layer.mean, layer.variance))
    deviation = variance.sqrt().clamp_min(keras.config.epsilon())
    if layer.invert:
        return {"the inverse of it": lambda x: (x - mean) / deviation, "its input as it is": torch.clone}
    found: dict[str, Function] = {
        "divided by the variance, not by its root, the standard deviation": lambda x: (x - mean) / variance,
        "divided by the root of the standard deviation": lambda x: (x - mean) / deviation.sqrt(),
        "not divided by the standard deviation": lambda x: x - mean,
        "the mean is not subtracted": lambda x: x / deviation,
        "its input as it is, not normalized": torch.clone,
        "multiplied by the standard deviation, not divided by it": lambda x: (x - mean) * deviation,
        "the mean is subtracted after the division": lambda x: x / deviation - mean,
        "the mean is added, not subtracted": lambda x: (x + mean) / deviation,
        "mean and standard deviation are exchanged": lambda x: (x - deviation) / mean,
        "normalized twice": lambda x: ((x - mean) / deviation - mean) / deviation,
    }
    if mean.numel() > 1:
        channels = tuple(axis for axis, size in enumerate(mean.shape) if size > 1)
        found["one mean for all channels, not one for each"] = lambda x: (x - mean.mean()) / deviation
        found["one standard deviation for all channels, not one for each"] = lambda x: (x - mean) / deviation.mean()
        found["mean and variance in reverse order"] = lambda x: (x - mean.flip(channels)) / deviation.flip(channels)
        found["the mean in reverse order"] = lambda x: (x - mean.flip(channels)) / deviation
        found["the variance in reverse order"] = lambda x: (x - mean) / deviation.flip(channels)
    return found


def _said(number: Tensor) -> str:
    return f"{float(number):.4g}" if number.numel() == 1 else "one for each channel"

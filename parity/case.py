"""A layer that diverges, all that is known of it, and the causes that can be named."""

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

from parity.graph import Step, StepIndex
from parity.overlay import largest, views
from parity.runs import Run

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CAUSES = {
    "kernel axes permuted": "01",
    "kernel flipped": "01",
    "height and width exchanged": "01",
    "depthwise order": "01",
    "groups": "01",
    "input axes exchanged": "01",
    "kernel not transposed": "02",
    "epsilon": "03",
    "BatchNormalization vectors exchanged": "03",
    "statistics left at 0 and 1": "03",
    "train mode": "03",
    "momentum": "03",
    "padding": "04",
    "padding value": "04",
    "padding counted": "04",
    "stride or dilation": "04",
    "another pooling": "04",
    "overwritten in place": "05",
    "activation missing": "05",
    "another activation": "05",
    "another slope": "05",
    "axis": "05",
    "flatten order": "06",
    "weights of another layer": "07",
    "heads exchanged": "07",
    "weights not moved": "07",
    "bias missing": "07",
    "another skip": "07",
    "input scaled": "08",
    "channels reversed": "08",
    "precision": "08",
    "dropout rate": "12",
    "gradient stopped": "12",
    "layer frozen": "12",
}
"""Each known cause, and the number of the notebook that explains it."""
_HUGE = 1e30


class Cause(NamedTuple):
    """What explains a difference.

    Attributes:
        cause: One of ``CAUSES``.
        detail: What was found, in a few words.
        notebook: Number of the notebook that explains it.
    """

    cause: str
    detail: str
    notebook: str


class Evidence(NamedTuple):
    """All that is known of a layer that diverges.

    Attributes:
        run: Both models as they ran.
        index: The step; the one after the last is the model's return.
        step: The step itself, None for the model's return.
        modules: The twin's modules that hold the layer's weights, or the one that plays its part; may be empty.
        inputs: What the Keras layer takes.
        twin_inputs: What its twin takes, with the axes as the twin has them; may be empty.
        value: What the Keras layer returns; where the twin takes another input, what the layer takes.
        twin: What the twin has instead.
        tolerance: The largest difference that rounding explains.
        flattened: The shape that the features it takes were flattened from, None if they were not.
        channels_first: Whether the twin has those features channels first.
        weights: Every Keras weight that can be moved: its path, and the values in PyTorch's layout.
        actual: By the path of each of the layer's weights: the module, and the name of the tensor in it.
        others: Other tensors of the Keras model, of the shape of what it takes.
    """

    run: Run
    index: StepIndex
    step: Step | None
    modules: list[nn.Module]
    inputs: list[Tensor]
    twin_inputs: list[Tensor]
    value: Tensor
    twin: Tensor
    tolerance: float
    flattened: tuple[int, ...] | None
    channels_first: bool
    weights: dict[str, Tensor]
    actual: dict[str, tuple[nn.Module, str]]
    others: dict[str, Tensor]

    def agrees(self, twin: Tensor | None) -> bool:
        """Tell whether a tensor in the twin's order of axes is what the Keras layer returns."""
        return twin is not None and agree_within(self.value, twin, self.tolerance, self.flattened)

    def explains(self, value: Tensor | None) -> bool:
        """Tell whether a tensor in Keras's order of axes is what the twin has."""
        return value is not None and agree_within(value, self.twin, self.tolerance, window=True)


def known_cause(cause: str, detail: str = "") -> Cause:
    """Return one of ``CAUSES`` with what was found and the number of its notebook."""
    return Cause(cause, detail, CAUSES[cause])


def run_modules(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Tensor | None:
    """Return what modules, one after the other, make of what the twin took; None if they cannot."""
    if not modules or not inputs:
        return None
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x = modules[0](*(tensor.clone() for tensor in inputs))
            for module in modules[1:]:
                x = module(x)
            return x if isinstance(x, Tensor) else None
    except (RuntimeError, ValueError, IndexError):
        return None


def agree_within(
    value: Tensor, twin: Tensor, tolerance: float, flattened: tuple[int, ...] | None = None, window: bool = False
) -> bool:
    """Tell whether a Keras tensor and the twin's agree in one of the ways to lay one over the other; see ``views``."""
    # Infinities cannot be subtracted; where both tensors have one, they agree.
    value, twin = (torch.nan_to_num(tensor, nan=torch.nan, posinf=_HUGE, neginf=-_HUGE) for tensor in (value, twin))
    aligned = views(value, twin, None, flattened, window)
    return any(largest(view - other) <= tolerance for view, other, _ in aligned)


def equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors have the same shape and numbers, whatever their dtypes."""
    return a.shape == b.shape and torch.equal(a, b.to(a.dtype))


def padded(x: Tensor, pads: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Return (batch, channels, *spatial) with (before, after) elements more along each spatial axis."""
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, mode=mode, value=value) if mode == "constant" else F.pad(x, flat, mode=mode)


def other_orders(x: Tensor, all_orders: bool = False) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield a tensor (batch, ...) flattened with its axes in each other order, and that order."""
    axes = range(1, x.ndim)
    for order in permutations(axes):
        if all_orders or list(order) != list(axes):
            yield tuple(axis - 1 for axis in order), x.permute(0, *order).flatten(1)

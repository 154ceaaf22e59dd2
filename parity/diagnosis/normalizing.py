"""Causes in normalizations: of a function, of a module of the user's own, and of neighbouring channels."""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, Function
from parity.diagnosis.operations import axes_in_words, axis_sets, is_unknown, same
from parity.models.alignment import alignments, largest

import keras
import torch
from torch import Tensor

# Numbers that people add to a variance, or to its root.
_EPSILONS = (1e-5, 1e-3, 1e-6, 1e-7, 1e-8, 1e-12, 0.0)


def _standardized(x: Tensor, axes: tuple[int, ...], correction: int = 0) -> Tensor:
    if prod(x.shape[axis] for axis in axes) <= correction:
        return torch.full_like(x, torch.nan)  # it has no unbiased variance
    return (x - x.mean(axes, keepdim=True)) / x.std(axes, correction=correction, keepdim=True)


def _to_range(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    return (x - low) / (high - low)


_NORMS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "the L2 norm": lambda x, axes: x / torch.linalg.vector_norm(x, 2, axes, True),
    "the L1 norm": lambda x, axes: x / torch.linalg.vector_norm(x, 1, axes, True),
    "the sum": lambda x, axes: x / x.sum(axes, keepdim=True),
    "the largest size": lambda x, axes: x / torch.linalg.vector_norm(x, torch.inf, axes, True),
    "mean and standard deviation": _standardized,
    "mean and unbiased standard deviation": lambda x, axes: _standardized(x, axes, 1),
    "the mean alone": lambda x, axes: x - x.mean(axes, keepdim=True),
    "the squared L2 norm": lambda x, axes: x / x.square().sum(axes, keepdim=True),
    "smallest and largest": _to_range,
}


def by_norm(evidence: Evidence) -> Iterator[Cause]:
    """Yield another norm, or the same along other axes, with which a function that normalizes gives what the twin has.

    Which norm it is, and along which axes, is seen in what the Keras layer returns.
    """
    step = evidence.step
    if step is None or step.weights or len(evidence.inputs) != 1 or not evidence.inputs[0].is_floating_point():
        return
    named = type(step.layer).__name__ in ("UnitNormalization", "Normalize")
    if not (named or evidence.composed or is_unknown(step)):
        return
    x, value = evidence.inputs_in_keras()[0], evidence.value_in_keras()
    if x.shape != value.shape or x.ndim < 2:
        return
    choices = [(name, axes) for name in _NORMS for axes in axis_sets(x.ndim)]
    # The last axes first: where the others have the length 1, several choices are the same.
    due = next(((n, a) for n, a in reversed(choices) if 0 not in a and same(_NORMS[n](x, a), value)), None)
    if due is None:
        return
    own, due_axes = due
    if evidence.gives_in_keras(torch.clone):
        yield known_cause("normalization missing", f"by {own} along {due_axes}")
        return
    for name, axes in sorted(choices, key=lambda choice: choice[0] != own):
        if (name, axes) == due or not evidence.gives_in_keras(lambda x, f=_NORMS[name], axes=axes: f(x, axes)):
            continue
        found = axes_in_words(axes, x.ndim)
        if name == own:
            yield known_cause("axis", f"{own} is along {found}, not {due_axes}")
        elif "unbiased" in name and own == name.replace("unbiased ", ""):
            yield known_cause("unbiased variance", "the variance is divided by n - 1, not by n")
        else:
            yield known_cause("another normalization", f"by {name} along {found}, not by {own} along {due_axes}")
        return


class _Formula(NamedTuple):
    """How a normalization may be computed otherwise than Keras does.

    Attributes:
        cause: The cause that it is.
        detail: What is said of it.
        normal: Takes the input, its mean, its variance, its unbiased variance and epsilon.
    """

    cause: str
    detail: str
    normal: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


_FORMULAS = (
    _Formula(
        "unbiased variance",
        "the variance is divided by n - 1, not by n",
        lambda x, mean, var, unbiased, eps: (x - mean) / (unbiased + eps).sqrt(),
    ),
    _Formula(
        "unbiased variance",
        "the variance is divided by n - 1, not by n, and epsilon is added to its root",
        lambda x, mean, var, unbiased, eps: (x - mean) / (unbiased.sqrt() + eps),
    ),
    _Formula(
        "epsilon",
        "it is added to the standard deviation, not to the variance",
        lambda x, mean, var, unbiased, eps: (x - mean) / (var.sqrt() + eps),
    ),
    _Formula(
        "another normalization",
        "the mean is not subtracted",
        lambda x, mean, var, unbiased, eps: x / (var + eps).sqrt(),
    ),
    _Formula(
        "another normalization",
        "by the root of the mean square, without subtracting the mean",
        lambda x, mean, var, unbiased, eps: x / (var + mean.square() + eps).sqrt(),
    ),
    _Formula(
        "another normalization",
        "it is divided by the variance, not by its root",
        lambda x, mean, var, unbiased, eps: (x - mean) / (var + eps),
    ),
    _Formula(
        "another normalization",
        "it is not divided by the standard deviation",
        lambda x, mean, var, unbiased, eps: x - mean,
    ),
    _Formula("normalization missing", "only scale and offset are there", lambda x, mean, var, unbiased, eps: x),
)


def by_formula(evidence: Evidence) -> Iterator[Cause]:
    """Yield the other formula with which a normalization with weights gives what the twin has."""
    step = evidence.step
    statistics = None if step is None or len(evidence.inputs) != 1 else _statistics(evidence)
    if step is None or statistics is None:
        return
    x, (mean, var, unbiased), due = evidence.inputs_in_keras()[0], statistics, step.layer.epsilon
    weights = evidence.weights_of_layer()
    channels = [-1 if axis == _channel_axis(step.layer) % x.ndim else 1 for axis in range(x.ndim)]

    def scaled(y: Tensor) -> Function:
        for name, merge in (("gamma", torch.mul), ("beta", torch.add)):
            if name in weights:
                weight = weights[name].to(y.dtype)
                y = merge(y, weight.reshape(channels) if weight.ndim == 1 else weight)
        return lambda *_: y

    for epsilon in _EPSILONS:
        if epsilon != due and evidence.gives_in_keras(scaled((x - mean) / (var + epsilon).sqrt())):
            yield known_cause("epsilon", f"epsilon is {epsilon:g}, not {due:g}")
            return
    for cause, detail, normal in _FORMULAS:
        for epsilon in dict.fromkeys((due, *_EPSILONS)):
            if evidence.gives_in_keras(scaled(normal(x, mean, var, unbiased, epsilon))):
                yield known_cause(cause, detail)
                return


def _channel_axis(layer: Any) -> int:
    axis = layer.axis if not isinstance(layer.axis, list | tuple) else layer.axis[-1]
    return int(axis)


def _statistics(evidence: Evidence) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the mean, the variance and the unbiased variance that a layer normalizes with; None if it does not."""
    layer, x = evidence.step.layer if evidence.step else None, evidence.inputs_in_keras()[0]
    if isinstance(layer, keras.layers.LayerNormalization):
        axes = tuple(axis % x.ndim for axis in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]))
    elif isinstance(layer, keras.layers.BatchNormalization):
        axes = tuple(axis for axis in range(x.ndim) if axis != layer.axis % x.ndim)
        if not evidence.run.training:
            moving = [evidence.weights_of_layer().get(f"moving_{name}") for name in ("mean", "variance")]
            shape = [1 if axis in axes else -1 for axis in range(x.ndim)]
            mean, var = (None if one is None else one.to(x.dtype).reshape(shape) for one in moving)
            return None if mean is None or var is None else (mean, var, var)
    else:
        return None
    mean = x.mean(axes, keepdim=True)
    var, count = x.var(axes, correction=0, keepdim=True), prod(x.shape[axis] for axis in axes)
    return mean, var, var * count / max(1, count - 1)


class _Response(NamedTuple):
    """A local response normalization: x / (bias + alpha * sum of the squares of neighbouring channels) ** beta."""

    before: int
    after: int
    alpha: float
    beta: float
    bias: float

    def of(self, x: Tensor) -> Tensor:
        return x.double() / (self.bias + self.alpha * _neighbours(x, self.before, self.after)) ** self.beta

    def __str__(self) -> str:
        size = self.before + self.after + 1
        numbers = {"alpha": self.alpha * size, "beta": self.beta, "k": self.bias}
        return f"size {size}, " + ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())


def _neighbours(x: Tensor, before: int, after: int) -> Tensor:
    """Return for each channel of (..., channels) the sum of the squares of so many channels before and behind it."""
    square = torch.nn.functional.pad(x.double().square(), (before, after))
    return square.unfold(-1, before + after + 1, 1).sum(-1)


# At so many elements the numbers are fitted, and within this share of the largest they have to fit.
_FITTED, _NEAR = 4096, 1e-3
_MOST_NEIGHBOURS, _BETAS = 8, (0.75, 0.5, 1.0, 0.25, 0.6, 0.7, 0.8, 0.9, 1.25, 1.5, 2.0)


def by_local_response(evidence: Evidence) -> Iterator[Cause]:
    """Yield the other size and numbers of a local response normalization. Both are found out from the outputs."""
    step = evidence.step
    if step is None or not is_unknown(step) or len(evidence.inputs) != 1 or evidence.onward is not None:
        return
    x, value = evidence.inputs[0], evidence.value
    if x.shape != value.shape or x.ndim < 3 or not x.is_floating_point():
        return
    most = min(_MOST_NEIGHBOURS, x.shape[-1] - 1)
    even = [(radius, radius) for radius in range(most + 1)]
    # PyTorch's window of an even size has one channel more before than behind.
    uneven = [(radius + 1, radius) for radius in range(most)]
    due = _fitted(x, value, even, lambda y: same(y, value.double()))
    for found_value, twin, _ in alignments(value, evidence.twin) if due is not None else ():
        if found_value.shape != value.shape:
            continue
        found = _fitted(x, twin, [*uneven, *even], lambda y: evidence.explains(y.to(value.dtype)))
        if found is not None:
            yield known_cause("local response normalization", f"{found}, not {due}")
            return


def _fitted(x: Tensor, y: Tensor, windows: list[tuple[int, int]], fits: Callable[[Tensor], bool]) -> _Response | None:
    """Return the local response normalization with which one tensor gives another, None if none does."""
    usable = ((x.abs() > 0.05 * largest(x)) & (x * y > 0)).flatten().nonzero()[:, 0]
    if len(usable) < 8:
        return None
    some = usable[:: max(1, len(usable) // _FITTED)]
    ratio = x.double().flatten()[some] / y.double().flatten()[some]
    for before, after in windows:
        columns = torch.stack([torch.ones_like(ratio), _neighbours(x, before, after).flatten()[some]], 1)
        for beta in _BETAS:
            due = (ratio ** (1 / beta))[:, None]
            bias, alpha = torch.linalg.lstsq(columns, due).solution
            near = largest(bias + alpha * columns[:, 1:] - due) <= _NEAR * largest(due)
            response = _Response(before, after, float(alpha), beta, float(bias))
            if near and response.bias > 0 and response.alpha > 0 and fits(response.of(x)):
                return response
    return None

"""How far two equal models may differ: the rounding errors of each operation, and the noise that they cause.

Most operations change each element by at most one unit of rounding of the tensor's largest element. ``RULES`` has a row
for each operation that rounds differently. A new operation is a new row, with its source.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp, isfinite, log1p, prod, sqrt
from typing import Any, NamedTuple

from parity.models.alignment import largest
from parity.models.keras_channels import stated_axis
from parity.models.keras_graph import Step, function_of
from parity.tensors import as_tensor

import keras
import numpy as np
import torch
from torch import Tensor

# The noise is measured with rounding errors drawn once, at random. Those of another run may be several times as large:
# on 200 right ports drawn at random 2.5 times at the most, as benchmarks/noise.py measures. The rest is room for other
# processors and for worse luck; mistakes are larger by far.
TIMES_NOISE = 32
# Gradients go through the whole model and back, and have more noise than one draw shows.
TIMES_GRADIENT_NOISE = 8 * TIMES_NOISE
# The norm of the noise of many numbers varies less than the largest number does.
TIMES_NORM_OF_NOISE = 3
# Statistics are means of numbers: they have at most the noise of these.
TIMES_STATISTICS_NOISE = 4
# From this number on PyTorch's softplus returns its input, which is off by so much.
_SOFTPLUS_FROM, _SOFTPLUS_OFF = 20, log1p(exp(-20))


def _never(layer: Any) -> bool:
    return False


def _always(layer: Any) -> bool:
    return True


def _if_not_plain(layer: Any) -> bool:
    """Tell whether a ReLU has a slope, a threshold or a largest value."""
    return isinstance(layer, keras.layers.ReLU) and bool(layer.negative_slope or layer.threshold or layer.max_value)


def _if_interpolating(layer: Any) -> bool:
    """Tell whether a layer that resizes does more than repeat pixels."""
    return getattr(layer, "interpolation", "") != "nearest"


def _if_float32_rounds_its_numbers(layer: Any) -> bool:
    """Tell whether float32 has not exactly a scale, or what an attention multiplies its queries with."""
    names = ("scale", "offset", "_inverse_sqrt_key_dim", "_inverse_sqrt_head_dim")
    numbers = [np.float64(getattr(layer, name, 0)) for name in names]
    return any((number.astype("float32") != number).any() for number in numbers)


def _nothing(function: Any, x: Any) -> float:
    return 0.0


def _largest_input(function: Any, x: Any) -> float:
    return largest(as_tensor(x))


def _alpha_if_negative(function: Any, x: Any) -> float:
    return abs(getattr(function, "alpha", 1.0)) if keras.ops.min(x, initial=0) < 0 else 0.0


def _softplus_error(function: Any, x: Any) -> float:
    return _SOFTPLUS_OFF / unit_of(x) if keras.ops.max(x, initial=0) > _SOFTPLUS_FROM else 0.0


def _scaled_mean(layer: Any, x: Any) -> float:
    if not isinstance(layer, keras.layers.BatchNormalization) or not layer.built:
        return 0.0
    mean, variance = (as_tensor(weight).double() for weight in (layer.moving_mean, layer.moving_variance))
    gamma = as_tensor(layer.gamma).double() if layer.scale else 1.0
    found = largest(mean * gamma / (variance + layer.epsilon).sqrt())
    return found if isfinite(found) else 0.0


class Rounding(NamedTuple):
    """How an operation rounds, if its errors are not one unit of rounding of its largest element.

    Attributes:
        source: Why it rounds so.
        least: Takes the layer or function and its input, and returns the size of a number. Every output has at least
            the rounding error of a number of this size, however small the output is itself.
        float32_constant: Takes the layer or function, and tells whether TensorFlow computes it with a constant in
            float32, whatever the dtype.
        selects: Whether it selects some of its inputs' numbers, or scales them, by their size. An output has an error
            as large as that of the inputs, or none: that depends on which numbers are selected.
        adds: Whether it adds up its inputs. A sum may be near 0 although its terms are not.
        reduces: Whether it adds up the elements of its input; see ``adds``.
        by_statistics: Whether ``least`` depends on stored statistics, which are not used in training.
    """

    source: str
    least: Callable[[Any, Any], float] = _nothing
    float32_constant: Callable[[Any], bool] = _never
    selects: bool = False
    adds: bool = False
    reduces: bool = False
    by_statistics: bool = False


_SELECTS = "It may select another element where rounding differs."
_SUM = "Its error is that of the terms, not one unit of its own size."
_OVER_ELEMENTS = Rounding("The mean of numbers of both signs may be 0. " + _SUM, least=_largest_input, reduces=True)
_EXP_MINUS_ONE = Rounding(
    "Below 0 TensorFlow 2.21.0 computes exp(x) - 1, PyTorch expm1(x), which keeps more digits near 0.",
    least=_alpha_if_negative,
)

# The names are those of Keras's layers, operations and activations, in lower case and without "_".
RULES: Mapping[str, Rounding] = {
    "softplus": Rounding(
        "PyTorch's is the identity from 20 on: https://docs.pytorch.org/docs/stable/generated/torch.nn.Softplus.html",
        least=_softplus_error,
    ),
    "elu": _EXP_MINUS_ONE,
    "selu": _EXP_MINUS_ONE,
    "tanhshrink": Rounding("x - tanh(x): numbers of the size of x cancel.", least=_largest_input),
    "gelu": Rounding(
        "x (1 + erf(x / sqrt(2))) / 2: numbers of the size of x cancel, and TensorFlow 2.21.0 has sqrt(2) in float32.",
        least=_largest_input,
        float32_constant=_always,
    ),
    **dict.fromkeys(
        ("upsampling2d", "resizing"),
        Rounding("TensorFlow 2.21.0 interpolates with float32 weights.", float32_constant=_if_interpolating),
    ),
    "relu": Rounding(_SELECTS + " TensorFlow 2.21.0 has its settings in float32.", _nothing, _if_not_plain, True),
    "leakyrelu": Rounding(_SELECTS + " TensorFlow 2.21.0 has the slope in float32.", _nothing, _always, True),
    **dict.fromkeys(
        ("rescaling", "multiheadattention", "groupedqueryattention"),
        Rounding(
            "TensorFlow 2.21.0 makes float32 of their factors first.", float32_constant=_if_float32_rounds_its_numbers
        ),
    ),
    **dict.fromkeys(
        ("relu6", "prelu", "hardtanh", "hardsigmoid", "softshrink", "clip", "max", "min", "maxpool"),
        Rounding(_SELECTS, selects=True),
    ),
    **dict.fromkeys(("maximum", "minimum"), Rounding(_SELECTS, selects=True)),
    **{name.lower(): Rounding(_SELECTS, selects=True) for name in vars(keras.layers) if "MaxPool" in name},
    "batchnormalization": Rounding(
        "x * scale + (beta - mean * scale), in both: numbers of the size of mean * scale cancel.",
        least=_scaled_mean,
        by_statistics=True,
    ),
    "mean": _OVER_ELEMENTS,
    "sum": _OVER_ELEMENTS,
    **{name.lower(): _OVER_ELEMENTS for name in vars(keras.layers) if "AveragePool" in name},
    "add": Rounding(_SUM, adds=True),
    "subtract": Rounding(_SUM, adds=True),
    "average": Rounding(_SUM, least=_largest_input, adds=True),
}
_NO_RULE = Rounding("One unit of rounding of the largest element.")


def rule_of(step: Step) -> Rounding:
    """Return the rule of ``RULES`` for what a step computes: a layer, one of its bases, an operation or a function."""
    return next((RULES[name] for name in _names(step) if name in RULES), _NO_RULE)


def has_float32_constants(step: Step) -> bool:
    """Tell whether TensorFlow computes a step with a constant in float32, whatever the dtype."""
    return rule_of(step).float32_constant(function_of(step))


class Errors(NamedTuple):
    """How large the rounding errors of a step's outputs are.

    Attributes:
        float32: Whether the step is computed with a constant in float32.
        terms: How many numbers are added up, one by one, for each element.
        least: The errors are at least those of a tensor with an element of this size.
    """

    float32: bool = False
    terms: float = 1
    least: float = 0


def errors_of(step: Step, inputs: Sequence[Any], outputs: Sequence[Any], training: bool) -> Errors:
    """Return how large the rounding errors of a step's outputs are.

    Args:
        step: The step.
        inputs: The step's inputs, as Keras tensors.
        outputs: The step's outputs, as Keras tensors.
        training: Whether it runs in training mode.
    """
    rule = rule_of(step)
    uses_others = rule.by_statistics and training and not step.frozen
    least = rule.least(function_of(step), inputs[0]) if inputs and not uses_others else 0.0
    return Errors(has_float32_constants(step), _terms(step, inputs, outputs, training), least)


_USUAL = Errors()
# So many random numbers are drawn for a tensor. A larger one has them again and again, which is much faster. It is a
# prime, so that a sum along an axis hardly meets the same one twice.
_DRAWN = 262139


def perturbed_tensor(tensor: Any, seed: int | tuple[int, ...], errors: Errors = _USUAL) -> Any:
    """Return a Keras tensor with each element moved at random, as by a rounding error.

    Args:
        tensor: The tensor. A tensor of whole numbers is returned as it is.
        seed: Seed of the random numbers.
        errors: How large the errors are.
    """
    if not is_float(tensor) or not prod(tensor.shape):
        return tensor
    dtype, unit = keras.backend.standardize_dtype(tensor.dtype), unit_of(tensor)
    if errors.float32:
        unit = max(unit, torch.finfo(torch.float32).eps)
    # The errors of a long sum are a random walk. In a very long sum of similar numbers they all have the same sign.
    unit *= max(1, sqrt(errors.terms) / 16, errors.terms / 1024)
    values = as_tensor(tensor)
    size = max(errors.least, largest(values))
    if not isfinite(size):
        size = max(errors.least, largest(values[values.isfinite()]))
    # NumPy draws much faster than Keras does, but cannot draw numbers of two bytes.
    drawn = np.float64 if dtype == "float64" else np.float32
    noise = np.random.default_rng(seed).random(min(values.numel(), _DRAWN), drawn)
    noise -= 0.5
    noise *= 2 * unit * size
    moved = _with_repeated(values, torch.from_numpy(noise).to(values.dtype))
    return keras.ops.convert_to_tensor(moved.to(torch.promote_types(moved.dtype, torch.float32)).numpy(), dtype)


def _with_repeated(values: Tensor, noise: Tensor) -> Tensor:
    """Return the sum of a tensor and the numbers of a row, which are used again and again."""
    flat = values.reshape(-1)
    moved, whole = torch.empty_like(flat), len(flat) - len(flat) % len(noise)
    torch.add(flat[:whole].view(-1, len(noise)), noise, out=moved[:whole].view(-1, len(noise)))
    torch.add(flat[whole:], noise[: len(flat) - whole], out=moved[whole:])
    return moved.reshape(values.shape)


def usual_move(step: Step, moves: Sequence[float], inputs: Sequence[Any], output: Any) -> float:
    """Return how far rounding errors usually move an output that adds or selects numbers; 0 for any other output.

    A sum may be near 0 although its terms are not: its error is that of the terms. A maximum is one of many numbers,
    which may by chance be one that has hardly moved. And ReLU may by chance select none that has moved.

    Args:
        step: The step.
        moves: How far rounding errors have moved each of the step's inputs, at the most.
        inputs: The step's inputs, as Keras tensors.
        output: One of the step's outputs.
    """
    gain = _gain(step, inputs, output) if is_float(output) else 0.0
    if not gain:
        return 0.0
    units = [unit_of(output) * largest(as_tensor(tensor).double()) for tensor in inputs]
    return gain * max([0.0, *units, *moves]) / 2


def _gain(step: Step, inputs: Sequence[Any], output: Any) -> float:
    """Return the factor by which a step that adds or selects magnifies the errors of its inputs; 0 for any other."""
    if hasattr(step.layer, "kernel") and not step.is_activation:
        # The norm of the weights of one unit or filter, on average.
        kernel = keras.ops.convert_to_numpy(keras.ops.cast(step.layer.kernel, "float32"))
        rank = len(output.shape)
        said = stated_axis(step, rank)
        return float(np.linalg.norm(kernel.ravel())) / sqrt(output.shape[rank - 1 if said is None else said])
    rule = rule_of(step)
    if rule.adds or rule.selects:
        return 1.0
    shares = prod(inputs[0].shape) / max(1, prod(output.shape)) if inputs else 0
    if not rule.reduces or shares <= 1:
        return 0.0
    return sqrt(shares) if "sum" in _names(step) else 1 / sqrt(shares)


def _terms(step: Step, inputs: Sequence[Any], outputs: Sequence[Any], training: bool) -> float:
    """Return how many numbers a step adds up, one by one, for each element of its output, as the shapes tell.

    Matrix products, and so Dense layers and convolutions, are added up in blocks and count as one.
    """
    if not inputs or "Max" in type(step.layer).__name__ or hasattr(step.layer, "kernel"):
        return 1
    count = prod(inputs[0].shape)
    if training and isinstance(step.layer, keras.layers.BatchNormalization):
        return count / inputs[0].shape[step.layer.axis]
    return max(1, count / max(1, prod(outputs[0].shape)))


def _names(step: Step) -> list[str]:
    """Return the names to look up in ``RULES``: of a function, or of a layer's class and its bases."""
    function = function_of(step)
    named = [function] if hasattr(function, "__name__") else type(function).__mro__
    return [one.__name__.lower().replace("_", "") for one in named]


def noise_of(exact: Tensor, perturbed: Tensor) -> float:
    """Return the rounding noise to expect in a tensor: how far the exact and the perturbed tensor are apart.

    It is at least one unit of rounding of the largest element, because one draw may by chance move little.
    """
    if not exact.is_floating_point():
        return 0.0
    difference, size = largest(exact - perturbed), largest(exact)
    if not isfinite(difference) or not isfinite(size):
        finite = exact.isfinite() & perturbed.isfinite()
        difference, size = largest((exact - perturbed)[finite]), largest(exact[finite])
    return max(difference, torch.finfo(exact.dtype).eps * size)


def is_float(tensor: Any) -> bool:
    """Tell whether a Keras tensor holds floating-point numbers."""
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype))


def unit_of(tensor: Any) -> float:
    """Return the unit of rounding of a Keras tensor's dtype."""
    return torch.finfo(getattr(torch, keras.backend.standardize_dtype(tensor.dtype))).eps

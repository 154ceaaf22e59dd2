"""The exercise of notebook 10: a twin with mistakes that nobody names."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from math import prod

from course.exercises.report import Case, is_empty, report
from course.small_models import TENSORS
from parity import ParityError, first_divergence, run_torch, trace, transfer
from parity.padding import AvgPool2dSame, Conv2dSame
from parity.weights.mapping import COLUMNS

import keras
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MODULES = {
    "stem": "stem",
    "stem_norm": "stem_norm",
    "depthwise": "depthwise",
    "down": "down",
    "down_norm": "down_norm",
    "mixed": "mixed",
    "classes": "classes",
}


def exercise_at(height: int, width: int, seed: int = 0) -> tuple[keras.Model, np.ndarray]:
    """Return the Keras model of the exercise for images of a size, with the same weights at each, and two images.

    Args:
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.
        seed: Seed of the images.

    Returns:
        A model from (batch, height, width, 3) to (batch, 4), probabilities of four classes, that computes in float64;
        and noise of both signs, (2, height, width, 3).
    """
    return _model(height, width), _images(height, width, seed)


def _images(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, height, width, 3))


def _model(height: int, width: int) -> keras.Model:
    layers, settings = keras.layers, {"dtype": "float64"}
    image = keras.Input((height, width, 3), name="image", dtype="float64")
    x = layers.Conv2D(6, (3, 5), padding="same", name="stem", **settings)(image)
    x = layers.BatchNormalization(name="stem_norm", **settings)(x)
    # A power of two: Keras rounds a slope to float32, even in float64.
    stem = layers.LeakyReLU(0.25, name="leaky", **settings)(x)
    x = layers.DepthwiseConv2D((3, 3), padding="same", depth_multiplier=2, name="depthwise", **settings)(stem)
    x = layers.Concatenate(name="joined", **settings)([stem, x])
    x = layers.AveragePooling2D(3, strides=2, padding="same", name="pool", **settings)(x)
    x = layers.Conv2D(8, (3, 3), strides=2, padding="same", name="down", **settings)(x)
    x = layers.BatchNormalization(name="down_norm", **settings)(x)
    x = layers.Activation("elu", name="elu", **settings)(x)
    x = layers.GlobalAveragePooling2D(name="average", **settings)(x)
    x = layers.Dense(8, name="mixed", **settings)(x)
    x = layers.Activation("tanh", name="tanh", **settings)(x)
    x = layers.Dense(4, name="classes", **settings)(x)
    model = keras.Model(image, layers.Activation("softmax", name="softmax", **settings)(x), name="exercise")
    rng = np.random.default_rng(5)
    for variable in model.weights:
        values = rng.normal(size=variable.shape)
        if variable.name == "kernel":
            inputs = 9 if "depthwise" in variable.path else prod(variable.shape[:-1])
            values *= 2 / np.sqrt(inputs)
        variable.assign(1 + np.abs(values) if variable.name == "moving_variance" else values)
    return model


# Kept for this module alone. A reader gets a model of their own from exercise_at, and may change it.
_kept_model = cache(_model)


class ExerciseTwin(nn.Module):
    """The twin of the model that ``exercise_at`` returns, less the mistakes that ``broken_twin`` makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2dSame(3, 6, (3, 5))
        self.stem_norm = nn.BatchNorm2d(6, eps=1e-3, momentum=0.01)
        self.leaky = nn.LeakyReLU(0.25)
        self.depthwise = Conv2dSame(6, 12, 3, groups=6)
        self.pool = AvgPool2dSame(3, 2)
        self.down = Conv2dSame(18, 8, 3, stride=2)
        self.down_norm = nn.BatchNorm2d(8, eps=1e-3, momentum=0.01)
        self.elu = nn.ELU()
        self.mixed = nn.Linear(8, 8)
        self.tanh = nn.Tanh()
        self.classes = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to (batch, 4)."""
        stem = self.leaky(self.stem_norm(self.stem(x)))
        x = self.pool(torch.cat([stem, self.depthwise(stem)], dim=1))
        x = self.elu(self.down_norm(self.down(x)))
        x = self.tanh(self.mixed(x.mean((2, 3))))
        return F.softmax(self.classes(x), dim=1)


def exercise_mapping() -> pd.DataFrame:
    """Return which Keras weight fills which tensor of the twin, as ``parity.mapping.read_mapping`` would."""
    rows = [(v.path, f"{_MODULES[v.path.split('/')[0]]}.{TENSORS[v.name]}") for v in _kept_model(9, 9).weights]
    rows += [("", f"{name}.num_batches_tracked") for name in ("stem_norm", "down_norm")]
    return pd.DataFrame(rows, columns=COLUMNS)


def broken_twin() -> ExerciseTwin:
    """Return the twin in float64, in evaluation mode, with mistakes. None raises an error."""
    twin = ExerciseTwin().double().eval()
    transfer(_kept_model(9, 9), twin, exercise_mapping())
    # Who does the exercise had better not read on: from here to the end of this function are the mistakes.
    with torch.no_grad():
        norm = twin.stem_norm
        norm.weight.data, norm.bias.data = norm.bias.data, norm.weight.data
        twin.leaky = nn.LeakyReLU().eval()
        kernel = twin.depthwise.weight
        kernel.copy_(kernel.unflatten(0, (6, 2)).transpose(0, 1).flatten(0, 1).clone())
        twin.pool = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False).eval()
        twin.mixed.weight.copy_(twin.mixed.weight.T.clone())
    return twin


def check_fixed_twin(answer: Callable[[ExerciseTwin], nn.Module | None]) -> None:
    """Check a function that fixes a broken twin and returns it, or fixes it in place and returns None.

    The fixed twin is traced at several sizes: every layer must agree, and so must the outputs. A function with nothing
    in it is not attempted; one that leaves the twin as it was is told so.
    """
    mapping = exercise_mapping()
    fixed = cache(partial(_fixed, answer))
    sizes = {"odd sizes": [(13, 9), (19, 11)], "even sizes": [(12, 10)], "mixed sizes": [(15, 12), (18, 7)]}
    report("Fixed twin", {trait: _cases(fixed, mapping, several) for trait, several in sizes.items()}, answer)


def _cases(
    fixed: Callable[[], nn.Module | None], mapping: pd.DataFrame, sizes: Iterable[tuple[int, int]]
) -> Iterator[Case]:
    for size in sizes:
        yield " x ".join(map(str, size)), partial(_compared, fixed, mapping, size)


def _compared(
    fixed: Callable[[], nn.Module | None], mapping: pd.DataFrame, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the outputs of the Keras model and of the fixed twin."""
    twin = fixed()
    if twin is None:
        return None
    dtypes = {parameter.dtype for parameter in twin.parameters()} - {torch.float64}
    if dtypes:
        coarse = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ParityError("twin", [f"the twin computes in {coarse}, and Keras in float64; try twin.double()"])
    model = _kept_model(*size)
    # Small, common and large numbers: each activation is seen in its flat and in its steep parts.
    x = np.concatenate([_images(*size, seed) * scale for seed, scale in ((1, 0.1), (2, 1.0), (3, 5.0))])
    traced = trace(model, twin, x, mapping)
    faults = list(_faults(traced))
    if faults:
        gained = _agreeing_before(traced) - _agreeing_before(trace(model, broken_twin(), x, mapping))
        # With layers that are not called the first fault says more.
        if len(faults) == 1 and gained > 0:
            layers = "1 layer more agrees" if gained == 1 else f"{gained} layers more agree"
            faults.append(f"{layers} than in the broken twin")
        raise ParityError("twin", faults)
    return np.asarray(model(x)), run_torch(twin, x)


def _fixed(answer: Callable[[ExerciseTwin], nn.Module | None]) -> nn.Module | None:
    twin = broken_twin()
    returned = answer(twin)
    if returned is not None and not isinstance(returned, nn.Module):
        raise ParityError("twin", [f"it returned {type(returned).__name__}, not the twin; return the twin, or nothing"])
    if returned is not None and not set(_MODULES.values()) <= dict(returned.named_modules()).keys():
        raise ParityError("twin", [f"it returned {type(returned).__name__}, not the twin; return the twin, or nothing"])
    if (returned is None or returned is twin) and _same(twin, broken_twin()):
        if returned is None and is_empty(answer):
            return None
        raise ParityError(
            "twin", ["it has changed nothing in the twin; assign to the twin's modules, their settings or .data"]
        )
    return twin if returned is None else returned


def _same(a: nn.Module, b: nn.Module) -> bool:
    """Tell whether two twins have the same modules, settings and tensors, and return the same."""
    x = _images(12, 10, seed=0)
    tensors, others = a.state_dict(), b.state_dict()
    if repr(a) != repr(b) or tensors.keys() != others.keys():
        return False
    if not all(torch.equal(tensor, others[name]) for name, tensor in tensors.items()):
        return False
    return [m.training for m in a.modules()] == [m.training for m in b.modules()] and np.array_equal(
        run_torch(a, x), run_torch(b, x)
    )


def _faults(traced: pd.DataFrame) -> Iterator[str]:
    """Yield what keeps a twin from being fixed: the first layer that diverges, or layers that are not called.

    What lies between layers with weights may be written in many ways; it is right if the next layer takes what it
    should.
    """
    rows = traced[traced.layer.isin(_MODULES) | traced.layer.str.startswith("output ")]
    missing = list(rows.layer[rows.verdict == "not paired"])
    if missing:
        yield from (f"{layer}: its twin is not called any more" for layer in missing)
    elif not (rows.verdict == "agree").all():
        yield str(first_divergence(traced))


def _agreeing_before(traced: pd.DataFrame) -> int:
    """Return how many layers agree before the first one that diverges."""
    divergence = first_divergence(traced)
    if divergence is None:
        return 0
    before = traced[: list(traced.layer).index(divergence.layer)]
    return int((before.verdict == "agree").sum())

"""The exercise of notebook 11: a twin with mistakes that nobody names."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import prod

from parity.exercises.report import Case, report
from parity.faults import ParityError
from parity.layouts import run_torch
from parity.mapping import COLUMNS
from parity.padding import AvgPool2dSame, Conv2dSame
from parity.trace import UNSEEN, first_divergence, trace
from parity.transfer import transfer

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
_TENSORS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def exercise_model(height: int, width: int) -> keras.Model:
    """Return the Keras model of the exercise, with the same weights at each size.

    Args:
        height: Height of its input, in pixels.
        width: Width of its input, in pixels.

    Returns:
        A model from (batch, height, width, 3) to (batch, 4), probabilities of four classes; it computes in float64.
    """
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


def exercise_images(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return two images of noise of both signs, (2, height, width, 3), in float64."""
    return np.random.default_rng(seed).normal(size=(2, height, width, 3))


class ExerciseTwin(nn.Module):
    """The twin of ``exercise_model``, less the mistakes that ``broken_twin`` makes."""

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
    rows = [(v.path, f"{_MODULES[v.path.split('/')[0]]}.{_TENSORS[v.name]}") for v in exercise_model(9, 9).weights]
    rows += [("", f"{name}.num_batches_tracked") for name in ("stem_norm", "down_norm")]
    return pd.DataFrame(rows, columns=COLUMNS)


def broken_twin() -> ExerciseTwin:
    """Return the twin in float64, in evaluation mode, with mistakes. None raises an error."""
    twin = ExerciseTwin().double().eval()
    transfer(exercise_model(9, 9), twin, exercise_mapping())
    # Who mends the twin had better not read on: from here to the end of this function are the mistakes.
    with torch.no_grad():
        norm = twin.stem_norm
        norm.weight.data, norm.bias.data = norm.bias.data, norm.weight.data
        twin.leaky = nn.LeakyReLU().eval()
        kernel = twin.depthwise.weight
        kernel.copy_(kernel.unflatten(0, (6, 2)).transpose(0, 1).flatten(0, 1).clone())
        twin.pool = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False).eval()
        twin.mixed.weight.copy_(twin.mixed.weight.T.clone())
    return twin


def check_mended(answer: Callable[[ExerciseTwin], nn.Module | None]) -> None:
    """Check a function that mends a broken twin and returns it, or mends it in place and returns None.

    The mended twin is traced at several sizes: every layer must agree, and so must the outputs. A function that
    returns None and leaves the twin as it was is not attempted.
    """
    mapping = exercise_mapping()
    report(
        "Mended twin",
        {
            "odd sizes": _cases(answer, mapping, [(13, 9), (17, 11)]),
            "even sizes": _cases(answer, mapping, [(12, 10), (20, 14)]),
            "mixed sizes": _cases(answer, mapping, [(15, 12), (18, 7)]),
        },
    )


def _cases(answer: Callable, mapping: pd.DataFrame, sizes: Iterable[tuple[int, int]]) -> Iterator[Case]:
    for size in sizes:
        yield " x ".join(map(str, size)), partial(_compared, answer, mapping, size)


def _compared(answer: Callable, mapping: pd.DataFrame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the outputs of the Keras model and of the mended twin, side by side for images of two kinds."""
    twin = _mended(answer, size)
    if twin is None:
        return None
    model = exercise_model(*size)
    # Large numbers beside small ones: what an epsilon changes shows in the small ones only.
    images = [exercise_images(*size, seed=seed) * scale for seed, scale in ((1, 1.0), (2, 0.01), (3, 10.0))]
    faults = {fault: None for x in images for fault in _faults(trace(model, twin, x, mapping))}
    if faults:
        raise ParityError("twin", list(faults))
    return np.concatenate([model(x) for x in images]), np.concatenate([run_torch(twin, x) for x in images])


def _mended(answer: Callable, size: tuple[int, int]) -> nn.Module | None:
    twin = broken_twin()
    mended = answer(twin)
    if mended is not None and not isinstance(mended, nn.Module):
        raise ParityError("twin", [f"the twin is due, not of type {type(mended).__name__}"])
    if mended is None and _same(twin, broken_twin(), size):
        return None
    return twin if mended is None else mended


def _same(a: nn.Module, b: nn.Module, size: tuple[int, int]) -> bool:
    """Tell whether two twins have the same modules and return the same."""
    x = exercise_images(*size)
    return repr(a) == repr(b) and np.array_equal(run_torch(a, x), run_torch(b, x), equal_nan=True)


def _faults(traced: pd.DataFrame) -> Iterator[str]:
    """Yield what is wrong with the first layer that diverges, and each layer with weights that is never called."""
    divergence = first_divergence(traced)
    if divergence is not None:
        yield str(divergence)
    for row in traced[traced.layer.isin(_MODULES)].itertuples():
        if row.verdict == UNSEEN:
            yield f"{row.layer}: its twin is not called any more"

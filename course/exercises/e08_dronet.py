"""The exercises of notebook 08: a block written from its Keras layers, and the shape that DroNet flattens."""

import copy
from collections.abc import Callable, Iterable, Iterator
from operator import index
from textwrap import shorten
from typing import Any

from course.exercises.report import Case, is_empty, report
from course.small_models import TENSORS
from keras_model import resnet8
from parity import ParityError, channels_first, diagnose, largest_difference, transfer
from parity.axes import torch_input
from parity.weights.mapping import COLUMNS

import keras
import numpy as np
import pandas as pd
import torch
from keras import layers
from torch import Tensor, nn


def keras_block() -> keras.Model:
    """Return the block of exercise 1 in float64, for maps (batch, height, width, 4) of any size, with random weights.

    Not one of its settings is that of a DroNet block, and its two branches part in another place.
    """
    maps = keras.Input((None, None, 4), dtype="float64", name="maps")
    x = layers.Conv2D(6, 1, use_bias=False, dtype="float64", name="squeeze")(maps)
    x = layers.BatchNormalization(epsilon=0.01, momentum=0.9, dtype="float64", name="norm")(x)
    x = layers.Activation("relu", dtype="float64", name="relu_1")(x)
    wide = layers.Conv2D(6, (3, 5), strides=2, padding="same", dtype="float64", name="wide")(x)
    pool = layers.MaxPooling2D(3, strides=2, padding="same", dtype="float64", name="pool")(x)
    x = layers.Add(dtype="float64", name="add")([wide, pool])
    x = layers.Activation("relu", dtype="float64", name="relu_2")(x)
    model = keras.Model(maps, x, name="block")
    rng = np.random.default_rng(8)
    for weight in model.weights:
        # Small variances, in which another epsilon shows.
        positive = weight.name in ("moving_variance", "gamma")
        weight.assign(rng.uniform(0.05, 0.5, weight.shape) if positive else rng.normal(0, 0.4, weight.shape))
    return model


def check_block(answer: type[nn.Module] | nn.Module) -> None:
    """Check a module that computes what ``keras_block`` does, its layers called as those of Keras are."""
    model = keras_block()
    traits = {"odd sizes": [(13, 15)], "even sizes": [(14, 16)], "odd and even": [(13, 16), (14, 15)]}
    sizes = [size for group in traits.values() for size in group]
    if not any(_agrees(run) for _, run in _block_cases(answer, model, sizes)):
        traits = {"every size that was tried": sizes}
    groups: dict[str, Iterable[Case]] = {"its layers and settings": [_settings_case(answer, model)]}
    groups |= {trait: _block_cases(answer, model, group) for trait, group in traits.items()}
    report("Block", groups, finding=_note_on_bias(answer) + "it equals Keras")


def check_flatten_shape(answer: Callable[[int, int], tuple[int, int, int]]) -> None:
    """Check a function of (height, width) of DroNet's images that returns the shape that Keras flattens."""
    traits = {
        "200 x 200": [(200, 200)],
        "images that are not square": [(200, 120), (120, 160)],
        "odd sizes": [(201, 187), (77, 133)],
        "other sizes": [(226, 164), (227, 99)],
    }
    report("Shape", {trait: [_shape_case(answer, *size) for size in sizes] for trait, sizes in traits.items()}, answer)


def _agrees(run: Callable[[], Any]) -> bool:
    """Tell whether a case of ``_block_cases`` is right. What is wrong with it is said later."""
    try:
        return run() is not None
    except Exception:
        return False


def _note_on_bias(answer: Any) -> str:
    """Return what to say of a bias that Keras's layer does without; nothing if the answer has none."""
    try:
        bias = _module(answer).squeeze.bias
    except Exception:
        return ""
    if bias is None:
        return ""
    return "but squeeze has a bias, which Keras's has not (it is 0 now, and training would change it: bias=False); "


def _settings_case(answer: Any, model: keras.Model) -> Case:
    def run():
        port = _module(answer)
        if not port.state_dict() and is_empty(type(port).forward):
            return None
        transfer(model, port, _mapping(model, port), training=True)
        return np.zeros(1), np.zeros(1)

    return "as the weights are moved", run


def _block_cases(answer: Any, model: keras.Model, sizes: Iterable[tuple[int, int]]) -> Iterator[Case]:
    for height, width in sizes:
        x = np.random.default_rng(height + width).normal(size=(3, height, width, 4))

        def run(x=x):
            port = _module(answer)
            mapping = _mapping(model, port)
            transfer(model, port, mapping, training=True)
            with torch.no_grad():
                output = port(torch_input(x))
            if output is None:
                return None
            if not isinstance(output, Tensor):
                raise ParityError("answer", [f"forward returns a {type(output).__name__}, not a tensor"])
            expected = channels_first(np.asarray(model(x)))
            if output.shape != expected.shape:
                raise ParityError("answer", [f"its output has the shape {tuple(output.shape)}, not {expected.shape}"])
            difference = largest_difference(expected, output)
            if difference > 1e-12:
                found = "; ".join(line.strip() for line in str(diagnose(model, port, x, mapping)).splitlines())
                raise ParityError("answer", [f"other numbers, by up to {difference:.2g}. diagnose says: {found}"])
            return expected, output

        yield f"{height} x {width}", run


def _module(answer: Any) -> nn.Module:
    """Return the reader's module in float64 and inference mode; an answer is a class, or a module."""
    if isinstance(answer, type) and issubclass(answer, nn.Module):
        return answer().double().eval()
    if isinstance(answer, nn.Module):
        return copy.deepcopy(answer).double().eval()
    raise ParityError("answer", ["a class is due that inherits from nn.Module"])


def _mapping(model: keras.Model, port: nn.Module) -> pd.DataFrame:
    """Return the rows for a port whose modules are called as the Keras layers are."""
    keys = set(port.state_dict())
    rows = []
    for weight in model.weights:
        layer, name = weight.path.split("/")
        rows.append((weight.path, f"{layer}.{TENSORS[name]}"))
    due = {key for _, key in rows}
    missing = sorted({key.split(".")[0] for key in due - keys})
    if missing:
        seen = ", ".join(sorted({key.rpartition(".")[0] for key in keys}))
        seen = f"the modules with weights are {seen}" if seen else "nor any other, as in a list or made in forward"
        name = missing[0]
        raise ParityError(
            "answer", [f"PyTorch sees no module {name} with these weights ({seen}); set self.{name} in __init__"]
        )
    # A bias that Keras does without becomes 0, and so does a counter.
    rows += [("", key) for key in port.state_dict() if key not in due]
    return pd.DataFrame(rows, columns=COLUMNS)


def _shape_case(answer: Callable, height: int, width: int) -> Case:
    def run():
        shape = answer(height, width)
        if shape is None:
            return None
        expected = tuple(resnet8(width, height, 1, 1).get_layer("flatten_1").input.shape[1:])
        found = _as_shape(shape)
        if found != expected:
            raise ParityError("answer", [_in_words(found, expected)])
        return np.array(expected), np.array(found)

    return f"height {height}, width {width}", run


def _as_shape(answer: Any) -> tuple[int, ...]:
    shown = shorten(repr(answer), 60, placeholder=" …")
    try:
        numbers = tuple(map(index, answer))
    except TypeError:
        raise ParityError("answer", [f"it returns {shown}, not three integers (rows, columns, channels)"]) from None
    if len(numbers) != 3:
        raise ParityError("answer", [f"it returns {shown}: {len(numbers)} numbers, not (rows, columns, channels)"])
    return numbers


def _in_words(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    rows, columns, channels = expected
    why = f"it returns {found}, and Keras flattens {expected}"
    if found == (channels, rows, columns):
        return f"{why}: yours is PyTorch's order of axes"
    if found == (columns, rows, channels):
        return f"{why}: rows and columns are exchanged"
    return why

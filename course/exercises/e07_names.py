"""The exercises of notebook 07: which layer is whose twin, and weights by name."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from course.exercises.report import report
from parity import ParityError, transfer
from parity.weights.mapping import COLUMNS

import keras
import numpy as np
import pandas as pd
import torch
from torch import nn

_HIDDEN = 9


def check_layer_pairs(answer: dict[str, str], keras_model: keras.Model, torch_model: nn.Module) -> None:
    """Check the PyTorch module given for each Dense layer, by name; "?" is not attempted.

    Both models map (batch, 6) to two heads, the turn and the stop, (batch, 6) each. Their weights are replaced.
    """
    rng = np.random.default_rng(0)
    keras_model.set_weights([rng.normal(size=weight.shape) for weight in keras_model.weights])
    x = rng.normal(size=(5, 6))

    def run(head: int):
        if answer is None or all(module == "?" for module in answer.values()):
            return None
        faults = list(_pairing_faults(answer, keras_model, torch_model))
        if faults:
            raise ParityError("answer", faults)
        names = (("kernel", "weight"), ("bias", "bias"))
        rows = [(f"{layer}/{a}", f"{module}.{b}") for layer, module in answer.items() for a, b in names]
        transfer(keras_model, torch_model, pd.DataFrame(rows, columns=COLUMNS))
        with torch.no_grad():
            return np.asarray(keras_model(x)[head]), torch_model(torch.from_numpy(x))[head]

    report(
        "Layer pairs", {"the stop": [("output 1", lambda: run(1))], "the turn": [("output 0", lambda: run(0))]}, answer
    )


def check_loading(answer: Callable[[list[str], dict[str, np.ndarray]], Sequence[np.ndarray] | None]) -> None:
    """Check a function of (paths, stored) that returns the stored array of each path, in the order of the paths.

    ``paths`` are those of a model's weights, such as dense_1/kernel; the keys of ``stored`` are the names in a legacy
    weight file, such as dense_1/kernel:0, in the file's order. A path that the file lacks is due an error.
    """
    heads = [f"dense_{_HIDDEN + 1}", f"dense_{_HIDDEN + 2}"]
    writer = _two_heads(heads, sigmoid_apart=True)
    rng = np.random.default_rng(0)
    writer.set_weights([rng.normal(size=weight.shape) for weight in writer.weights])
    x = rng.normal(size=(5, 3))
    expected = np.hstack(writer(x))

    def ask(model: keras.Model) -> list | None:
        # The answer gets its own copies: it may change them.
        stored = {f"{weight.path}:0": weight.numpy() for weight in writer.weights}
        values = answer([weight.path for weight in model.weights], stored)
        if values is None:
            return None
        return list(values) if isinstance(values, Iterable) else [values]

    def filled(model: keras.Model):
        values = ask(model)
        if values is None:
            return None
        faults = [
            f"an array {tuple(weight.shape)} is due for {weight.path}, not {_in_words(value)}"
            for weight, value in zip(model.weights, values, strict=False)
            if weight.shape != np.shape(value)
        ]
        if len(values) != len(model.weights):
            faults.insert(0, f"{len(model.weights)} arrays are due, not {len(values)}")
        if faults:
            raise ParityError("answer", faults)
        model.set_weights(values)
        return expected, np.hstack(model(x))

    def refused(model: keras.Model):
        # Only an error of the answer itself counts, not what filling a model from its values would raise.
        try:
            values = ask(model)
        except Exception:
            return expected, expected
        if values is None:
            return None
        raise ParityError("answer", ["the file lacks dense_12, and no error was raised"])

    same = _two_heads(heads, sigmoid_apart=True)
    fused = _two_heads(heads, sigmoid_apart=False)
    renamed = _two_heads([heads[0], "dense_12"], sigmoid_apart=True)
    report(
        "Loading by name",
        {
            "the graph that wrote the file": [("sigmoid a layer of its own", lambda: filled(same))],
            "another order of layers": [("sigmoid in the Dense layer", lambda: filled(fused))],
            "a missing layer": [("dense_12 instead of dense_11", lambda: refused(renamed))],
        },
        answer,
    )


def _pairing_faults(answer: dict[str, str], keras_model: keras.Model, torch_model: nn.Module) -> Iterator[str]:
    """Yield what keeps an answer from being a module for each layer."""
    layers = [layer.name for layer in keras_model.layers if layer.weights]
    modules = [name for name, _ in torch_model.named_children()]
    for layer, module in answer.items():
        if layer not in layers:
            yield f"there is no layer {layer}"
        elif module == "?":
            yield f"{layer} still has '?'"
        elif module not in modules:
            yield f"{layer}: write one of {', '.join(modules)}, not {_in_words(module)}"
    yield from (f"{layer} has no module" for layer in sorted(set(layers) - answer.keys()))
    for module in modules:
        if list(answer.values()).count(module) > 1:
            yield f"{module} is given for more than one layer"


def _in_words(value: object) -> str:
    if value is None or isinstance(value, str | int):
        return repr(value)
    return f"an array {np.shape(value)}" if np.shape(value) else type(value).__name__


def _two_heads(heads: Sequence[str], sigmoid_apart: bool) -> keras.Model:
    """Build a float64 network from (batch, 3) to two heads (batch, 3), one with a sigmoid; all kernels are (3, 3)."""
    x = inputs = keras.Input((3,), dtype="float64")
    for number in range(1, 1 + _HIDDEN):
        x = keras.layers.Dense(3, activation="tanh", name=f"dense_{number}", dtype="float64")(x)
    first = keras.layers.Dense(3, name=heads[0], dtype="float64")(x)
    activation = None if sigmoid_apart else "sigmoid"
    second = keras.layers.Dense(3, activation=activation, name=heads[1], dtype="float64")(x)
    if sigmoid_apart:
        second = keras.layers.Activation("sigmoid", dtype="float64")(second)
    return keras.Model(inputs, [first, second])

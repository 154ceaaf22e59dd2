"""The exercises of notebook 07: a graph that fits a file by position, and a loader that refuses what it cannot fill."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from course.exercises.report import report
from parity import ParityError, largest_difference

import h5py
import keras
import numpy as np

_ENTRIES = ["dense_1", "dense_4", "dense_3", "dense_2"]
_FLOAT32 = 1e-5  # what float32 may round, of outputs up to about 10


def check_graph(answer: Callable[[], keras.Model | None]) -> None:
    """Check a function that returns a model into which a file's entries fall rightly by position.

    The model maps (batch, 3) to three outputs (batch, 3): dense_2, the sigmoid of dense_3, the softmax of dense_4, each
    of the ReLU of dense_1. The file has the entries dense_1, dense_4, dense_3, dense_2.
    """
    rng = np.random.default_rng(0)
    stored = {layer: {"kernel": rng.normal(size=(3, 3)), "bias": rng.normal(size=3)} for layer in _ENTRIES}
    x = rng.normal(size=(5, 3))

    def filled(fill: Callable[[keras.Model], None], parts: slice):
        model = answer if isinstance(answer, keras.Model) else answer()
        if model is None:
            return None
        _require_graph(model)
        fill(model)
        with warnings.catch_warnings():
            # Keras has something to say of keras.Model([inputs], ...), which is right, too.
            warnings.simplefilter("ignore")
            outputs = model(x)
        if isinstance(outputs, dict):
            raise ParityError("answer", ["a list of outputs is due, not a dict"])
        outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        if len(outputs) != 3:
            raise ParityError("answer", [f"three outputs are due, not {len(outputs)}"])
        expected, found = _three_heads(x, stored), [np.asarray(y) for y in outputs]
        _require_order(expected, found)
        return _as_exact(np.stack(expected[parts]), np.stack(found[parts]))

    def by_name(model: keras.Model) -> None:
        for layer, arrays in stored.items():
            model.get_layer(layer).set_weights([arrays["kernel"], arrays["bias"]])

    def by_position(model: keras.Model) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "weights.h5"
            _write(path, stored)
            model.load_weights(path)
        order = [layer.name for layer in model.layers if layer.weights]
        if order != _ENTRIES:
            faults = [
                f"{layer} gets {entry}'s weights"
                for layer, entry in zip(order, _ENTRIES, strict=True)
                if layer != entry
            ]
            raise ParityError("answer", [f"Keras has the layers in the order {', '.join(order)}", *faults])

    heads = ("dense_2", "the sigmoid of dense_3", "the softmax of dense_4")
    report(
        "The graph",
        {
            "what it computes": [
                (f"output {number}, {head}", lambda at=slice(number, number + 1): filled(by_name, at))
                for number, head in enumerate(heads)
            ],
            "loading by position": [("all weights", lambda: filled(by_position, slice(3)))],
        },
        answer,
        "all outputs and weights are right",
    )


def check_values(
    answer: Callable[[keras.Model, dict[str, np.ndarray], dict[str, str]], Sequence[np.ndarray] | None],
) -> None:
    """Check a function of (model, stored, names) that returns the arrays for the model's weights, in their order.

    ``stored`` has a file's arrays by their names, such as dense_1/kernel; ``names`` says what each layer of the model
    is called in the file. A weight that the file lacks, or that no weight of the model uses, is due an error.
    """
    rng = np.random.default_rng(0)
    same = {f"dense_{number}": f"dense_{number}" for number in range(1, 12)}
    from_zero = {f"dense_{number - 1}" if number > 1 else "dense": f"dense_{number}" for number in range(1, 12)}
    writer = _two_heads(list(same), sigmoid_apart=True)
    writer.set_weights([rng.normal(size=weight.shape) for weight in writer.weights])
    x = rng.normal(size=(5, 3))
    expected = np.hstack(writer(x))
    whole = {weight.path: weight.numpy() for weight in writer.weights}

    def ask(model: keras.Model, stored: dict[str, np.ndarray], names: dict[str, str]) -> list | None:
        # The answer gets its own copies: it may change them.
        values = answer(model, {name: array.copy() for name, array in stored.items()}, dict(names))
        if values is None:
            return None
        for kind, word in ((dict, "dict"), (keras.Model, "model")):
            if isinstance(values, kind):
                raise ParityError("answer", [f"a list of arrays is due, not a {word}"])
        return list(values) if isinstance(values, Iterable) else [values]

    def filled(names: dict[str, str], sigmoid_apart: bool):
        model = _two_heads(list(names), sigmoid_apart)
        values = ask(model, whole, names)
        if values is None:
            return None
        faults = [
            f"an array {tuple(weight.shape)} is due for {weight.path}, not {_in_words(value)}"
            for weight, value in zip(model.weights, values, strict=False)
            if weight.shape != np.shape(value)
        ]
        if len(values) != len(model.weights):
            faults.insert(0, f"{len(model.weights)} arrays are due, not {len(values)}")
        wrong = [
            f"{weight.path} of the model gets other numbers than {_entry(weight.path, names)} of the file"
            for weight, value in zip(model.weights, values, strict=False)
            if not faults and not np.array_equal(whole[_entry(weight.path, names)], value)
        ]
        if faults or wrong:
            raise ParityError("answer", faults + wrong)
        model.set_weights(values)
        return expected, np.hstack(model(x))

    def refused(what: str, stored: dict[str, np.ndarray], names: dict[str, str] = same):
        # Only an error of the answer itself counts, not what filling a model from its values would raise.
        try:
            values = ask(_two_heads(list(names), sigmoid_apart=True), stored, names)
        except Exception:
            return expected, expected
        if values is None:
            return None
        raise ParityError("answer", [f"{what}, and no error was raised"])

    lacking = {name: array for name, array in whole.items() if name != "dense_11/bias"}
    twice = same | {"dense_11": "dense_10"}  # as many weights as the file has, and yet one layer of the file is unused
    more = whole | {"dense_12/kernel": np.ones((3, 3)), "dense_12/bias": np.ones(3)}
    report(
        "The loader",
        {
            "the graph that wrote the file": [("the same names", lambda: filled(same, sigmoid_apart=True))],
            "another order of layers": [("the sigmoid in its Dense layer", lambda: filled(same, sigmoid_apart=False))],
            "other names": [("dense for dense_1, and so on", lambda: filled(from_zero, sigmoid_apart=True))],
            "a weight that is missing": [
                ("no dense_11/bias", lambda: refused("the file lacks dense_11/bias", lacking))
            ],
            "a weight that is left over": [
                ("dense_12 in the file", lambda: refused("dense_12 is left over", more)),
                ("two layers use dense_10", lambda: refused("dense_11 is left over", whole, twice)),
            ],
        },
        answer,
        "it returns the right arrays or raises an error, as it should,",
    )


def _require_graph(model: object) -> None:
    """Raise an error that says why something is not a model with the four layers of the file."""
    if not isinstance(model, keras.Model):
        raise ParityError("answer", [f"a keras.Model is due, not {type(model).__name__}"])
    names = [layer.name for layer in model.layers if layer.weights]
    faults = [f"no layer with weights is called {name}" for name in sorted(set(_ENTRIES) - set(names))]
    faults += [f"{name} has weights, and is not in the file" for name in names if name not in _ENTRIES]
    for layer in model.layers:
        shapes = [tuple(weight.shape) for weight in layer.weights]
        if layer.name in _ENTRIES and shapes != [(3, 3), (3,)]:
            faults.append(f"{layer.name}: a kernel (3, 3) and a bias (3,) are due, not {shapes}")
    if faults:
        raise ParityError("answer", faults)


def _three_heads(x: np.ndarray, stored: dict[str, dict[str, np.ndarray]]) -> list[np.ndarray]:
    """Compute what the model of ``check_graph`` computes."""

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ stored[name]["kernel"] + stored[name]["bias"]

    features = np.maximum(dense("dense_1", x), 0)
    powers = np.exp(dense("dense_4", features))
    return [
        dense("dense_2", features),
        1 / (1 + np.exp(-dense("dense_3", features))),
        powers / powers.sum(axis=1, keepdims=True),
    ]


def _require_order(expected: list[np.ndarray], found: list[np.ndarray]) -> None:
    """Raise an error if the outputs are the right ones in another order."""

    def same(one: np.ndarray, other: np.ndarray) -> bool:
        return one.shape == other.shape and largest_difference(one, other) < _FLOAT32

    places = [[at for at, output in enumerate(found) if same(head, output)] for head in expected]
    faults = [
        f"your output {at[0]} is what output {head} should be"
        for head, at in enumerate(places)
        if len(at) == 1 and at != [head]
    ]
    if faults and all(len(at) == 1 for at in places):
        raise ParityError("answer", [f"{faults[0]}; keep the order of the outputs"])


def _as_exact(expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two outputs to compare: a model in float32 is right as far as float32 goes."""
    if found.dtype == np.float32 and found.shape == expected.shape and largest_difference(expected, found) < _FLOAT32:
        return expected, expected
    return expected, found


def _write(path: Path, stored: dict[str, dict[str, np.ndarray]]) -> None:
    """Write a legacy weight file, its entries in the order of ``stored``."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in stored]
        for layer, arrays in stored.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}:0".encode() for name in arrays]
            for name, array in arrays.items():
                group[f"{layer}/{name}:0"] = array


def _entry(path: str, names: dict[str, str]) -> str:
    """Return the name in the file of a weight of the model."""
    layer, weight = path.split("/")
    return f"{names[layer]}/{weight}"


def _in_words(value: object) -> str:
    if value is None or isinstance(value, str | int):
        return repr(value)
    return f"an array {np.shape(value)}" if np.shape(value) else type(value).__name__


def _two_heads(layers: Sequence[str], sigmoid_apart: bool) -> keras.Model:
    """Build a float64 network from (batch, 3) to two heads (batch, 3), one with a sigmoid; all kernels are (3, 3)."""
    x = inputs = keras.Input((3,), dtype="float64")
    for name in layers[:-2]:
        x = keras.layers.Dense(3, activation="tanh", name=name, dtype="float64")(x)
    first = keras.layers.Dense(3, name=layers[-2], dtype="float64")(x)
    activation = None if sigmoid_apart else "sigmoid"
    second = keras.layers.Dense(3, activation=activation, name=layers[-1], dtype="float64")(x)
    if sigmoid_apart:
        second = keras.layers.Activation("sigmoid", dtype="float64")(second)
    return keras.Model(inputs, [first, second])

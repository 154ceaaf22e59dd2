"""Read the weight files that Keras 1 and Keras 2 wrote, and fill a Keras model from one by the names of the layers."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from parity.errors import ParityError

import h5py
import keras
import numpy as np

# The names that Keras 1 and Keras 2 gave to weights, and those that Keras 3 gives.
_FORMER_NAMES = {
    "W": "kernel",
    "b": "bias",
    "depthwise_kernel": "kernel",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}


def read_legacy_weights(path: str | PathLike[str]) -> dict[str, dict[str, np.ndarray]]:
    """Read a legacy HDF5 weight file, such as Keras 1 and Keras 2 wrote.

    Args:
        path: The file: either weights alone or a whole model, as ``save_weights`` and ``save`` of Keras 2 wrote them.

    Returns:
        {layer: {name of a weight: array}} for each layer that has weights, with the file's names, in the file's order.

    Raises:
        ParityError: If the file cannot be read, is of another format, or was written with the Theano backend.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            if not any(name.startswith("layer_names") for name in root.attrs):
                hint = (
                    "; it looks like Keras 3's .weights.h5, which Model.load_weights reads" if "layers" in file else ""
                )
                raise ParityError(path.name, [f"not a legacy Keras weight file: no attribute layer_names{hint}"])
            if root.attrs.get("backend", b"tensorflow") in (b"theano", "theano"):
                raise ParityError(path.name, ["written with the Theano backend, which stores kernels flipped"])
            layers = {}
            for layer in _names_in(root, "layer_names"):
                layers[layer] = {
                    weight: np.asarray(root[layer][weight][()]) for weight in _names_in(root[layer], "weight_names")
                }
    except ParityError:
        raise
    except FileNotFoundError as error:
        raise ParityError(path.name, ["the file does not exist"]) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ParityError(path.name, [f"not a readable HDF5 weight file: {error}"]) from error
    return {layer: weights for layer, weights in layers.items() if weights}


def _names_in(group: h5py.Group, attribute: str) -> list[str]:
    """Return a list of names stored as an attribute, which Keras splits (name0, name1, ...) when it is long."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(f"{attribute}{len(parts)}")
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in group.attrs[part]]


def load_keras_weights(model: keras.Model, path: str | PathLike[str]) -> None:
    """Fill a Keras model from a legacy HDF5 weight file, by the names of the layers, and check that it was filled.

    Keras 1 and Keras 2 wrote such files. ``Model.load_weights`` reads them by position unless told otherwise: the k-th
    layer with weights gets the k-th entry of the file, whatever the two are called.

    Args:
        model: A built model, whose layers have the names that they have in the file.
        path: The file: either weights alone or a whole model, as ``save_weights`` and ``save`` of Keras 2 wrote them.

    Raises:
        ParityError: If the file cannot be read; if a layer of the model is not in the file or a layer of the file not
            in the model; if a layer's weights have other names or another shape. It names each of them, and leaves
            the model as it was.
    """
    path = Path(path)
    stored = read_legacy_weights(path)
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    faults = [f"layer {name} of the model is not in the file" for name in layers.keys() - stored.keys()]
    faults += [f"layer {name} of the file is not in the model" for name in stored.keys() - layers.keys()]
    if not layers:
        faults.append("the model has no weights; build it first")
    reached = {id(weight) for layer in layers.values() for weight in layer.weights}
    faults += [
        f"weight {weight.path} of the model is in no layer that its name tells apart"
        for weight in model.weights
        if id(weight) not in reached
    ]
    pairs: list[tuple[keras.Variable, np.ndarray]] = []
    for name in [name for name in layers if name in stored]:
        try:
            pairs += _pair_weights(layers[name], stored[name])
        except ParityError as error:
            faults += error.faults
    if faults:
        raise ParityError(path.name, sorted(faults))
    before = [variable.numpy() for variable, _ in pairs]
    try:
        for variable, value in pairs:
            variable.assign(value)
        wrong = [
            f"weight {variable.path} is not what the file holds"
            for variable, value in pairs
            if not np.array_equal(variable.numpy(), value.astype(variable.numpy().dtype), equal_nan=True)
        ]
        if wrong:
            raise ParityError(path.name, wrong)
    except BaseException:
        for (variable, _), value in zip(pairs, before, strict=True):
            variable.assign(value)
        raise


def _pair_weights(layer: keras.Layer, stored: dict[str, np.ndarray]) -> list[tuple[keras.Variable, np.ndarray]]:
    """Pair the weights of a layer with the arrays of the file by the last parts of their names."""
    variables = {weight.path: weight for weight in layer.weights}
    in_model, in_file = _short_names(variables), _short_names(stored)
    if in_model.keys() != in_file.keys():
        in_file = _short_names(stored, layer.name)
    if in_model.keys() != in_file.keys():
        raise ParityError(
            layer.name, [f"layer {layer.name}: the model has {sorted(in_model)}, the file has {sorted(in_file)}"]
        )
    pairs = [(variables[path], stored[in_file[short]]) for short, path in in_model.items()]
    faults = [
        f"weight {variable.path}: shape {tuple(variable.shape)} in the model, {value.shape} in the file"
        for variable, value in pairs
        if tuple(variable.shape) != value.shape
    ]
    faults += [
        f"weight {variable.path}: no numbers in the file" for variable, value in pairs if value.dtype.kind != "f"
    ]
    if faults:
        raise ParityError(layer.name, faults)
    return pairs


def _short_names(names: Iterable[str], former_layer: str | None = None) -> dict[str, str]:
    """Return {short name: name}. A short name is the end of a name (a/b/c:0), as long as it takes to tell them apart.

    Args:
        names: The names of the weights of one layer.
        former_layer: The layer's name, if the weights have the names of Keras 1 or 2. They get those of Keras 3.
    """
    split = {name: name.split(":")[0].split("/") for name in names}
    if former_layer is not None:
        for parts in split.values():
            last = parts[-1].removeprefix(f"{former_layer}_")
            parts[-1] = _FORMER_NAMES.get(last, last)
    for depth in range(1, 1 + max(map(len, split.values()))):
        short = {"/".join(parts[-depth:]): name for name, parts in split.items()}
        if len(short) == len(split):
            break
    return short

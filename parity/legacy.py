"""Read the weight files that Keras 1 and Keras 2 wrote, tensor by tensor."""

from os import PathLike
from pathlib import Path

from parity.faults import ParityError

import h5py
import numpy as np


def read_legacy_weights(path: str | PathLike[str]) -> dict[str, dict[str, np.ndarray]]:
    """Read a legacy HDF5 weight file, such as Keras 1 and Keras 2 wrote.

    Args:
        path: The file: either weights alone or a whole model, as ``save_weights`` and ``save`` of Keras 2 wrote them.

    Returns:
        For each layer that has weights, in the order of the file: its arrays by their names in the file.

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
            for layer in _names(root, "layer_names"):
                layers[layer] = {
                    weight: np.asarray(root[layer][weight][()]) for weight in _names(root[layer], "weight_names")
                }
    except ParityError:
        raise
    except FileNotFoundError as error:
        raise ParityError(path.name, ["the file does not exist"]) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ParityError(path.name, [f"not a readable HDF5 weight file: {error}"]) from error
    return {layer: weights for layer, weights in layers.items() if weights}


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """Return a list of names stored as an attribute, which Keras splits (name0, name1, ...) when it is long."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(f"{attribute}{len(parts)}")
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in group.attrs[part]]

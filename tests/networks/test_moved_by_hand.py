"""With a mapping that a person wrote, each tensor is moved bit for bit, and the right twin raises no alarm."""

from parity import diagnose, transfer
from tests.networks.base import build, networks

import numpy as np
import pandas as pd
import pytest
import torch

BY_HAND = [network for network in networks() if network.fill_by_hand]


def mapping_of(network, model, tensors):
    """Return the mapping that a person would write who knows what each tensor of the twin is to be.

    The weights are random, so a Keras weight belongs to a tensor if at least half of the numbers of the smaller of the
    two are in both. Weights that are stacked come in the order in which they stand in the tensor.
    """
    layers = [layer for layer in model.layers if not type(layer).__module__.startswith("keras.")]
    # What such a layer has itself; what layers of Keras's within it have, is moved as theirs.
    own = {weight.path for layer in layers for weight in layer.weights if weight.path.count("/") == 1}
    weights = [(variable.path, variable.numpy().ravel()) for variable in model.weights]
    rows = []
    for key, tensor in tensors.items():
        numbers, found = tensor.numpy().ravel(), []
        for path, values in weights if numbers.any() else ():
            places = np.flatnonzero(np.isin(numbers, values))
            if 2 * places.size >= min(values.size, numbers.size):
                found.append((places[0], path))
        paths = [path for _, path in sorted(found)] or [""]
        rows += [(path, key, "as it is" if path in own else "") for path in paths]
    return pd.DataFrame(rows, columns=["keras", "torch", "how"], dtype=str)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("network", BY_HAND, ids=[network.name for network in BY_HAND])
def test_each_tensor_is_moved_bit_for_bit_and_the_twin_is_quiet(network, dtype):
    built = build(network, dtype)
    tensors = network.fill_by_hand(built.keras_model)
    assert tensors.keys() == built.twin.state_dict().keys()
    mapping = mapping_of(network, built.keras_model, tensors)
    transfer(built.keras_model, built.twin, mapping)
    moved = built.twin.state_dict()
    assert [key for key, due in tensors.items() if not torch.equal(due, moved[key])] == []
    found = diagnose(built.keras_model, built.twin, built.x, mapping, torch_x=built.torch_x)
    assert str(found) == "no layer diverges"

"""The twins are right: with weights that were moved by hand, they compute what Keras computes."""

from collections.abc import Mapping

from parity.axes import torch_input
from tests.networks.base import build, networks

import numpy as np
import pytest
import torch

BY_HAND = [network for network in networks() if network.fill_by_hand]


def outputs(model, x):
    """Return the outputs of a Keras model or of a twin as arrays, in the order of their names if they have names."""
    with torch.no_grad():
        y = model(*x) if isinstance(model, torch.nn.Module) else model(x if len(x) > 1 else x[0], training=False)
    if isinstance(y, Mapping):
        y = [y[name] for name in sorted(y)]
    return [np.asarray(one) for one in (y if isinstance(y, list | tuple) else [y])]


def twin_takes(built):
    """Return the inputs of a twin: those that the network gives, else Keras's with the axes that the twin takes."""
    if built.torch_x is not None:
        return built.torch_x
    dtype = next(built.twin.parameters()).dtype
    for moved in (torch_input, torch.from_numpy):
        tensors = [moved(x) if x.ndim > 2 else torch.from_numpy(x) for x in built.x]
        tensors = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
        try:
            outputs(built.twin, tensors)
        except RuntimeError:
            continue
        return tensors
    raise AssertionError("the twin takes the inputs of Keras neither as they are nor with channels at axis 1")


def compared(built):
    """Return (what Keras computes, what the twin computes with the same axes) for each output of a network."""
    expected, found = outputs(built.keras_model, built.x), outputs(built.twin, twin_takes(built))
    return [(a, b if a.shape == b.shape else np.moveaxis(b, 1, -1)) for a, b in zip(expected, found, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("network", BY_HAND, ids=[network.name for network in BY_HAND])
def test_the_twin_computes_what_keras_computes(network, dtype):
    built = build(network, dtype)
    within = network.within if dtype == "float32" else network.within_float64
    built.twin.load_state_dict(network.fill_by_hand(built.keras_model))
    for a, b in compared(built):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == dtype
        assert np.abs(a).max() > 1e-3
        assert np.ptp(a) > 1e-2 * np.abs(a).max()
        assert np.abs(a - b).max() <= within * np.abs(a).max()


@pytest.mark.parametrize("network", BY_HAND, ids=[network.name for network in BY_HAND])
def test_a_mistake_changes_what_the_twin_computes(network):
    """A mistake that changes nothing could not be found; and that planting it leaves no other twin changed."""
    built = build(network, "float64")  # where rounding is far below any mistake
    tensors = network.fill_by_hand(built.keras_model)
    built.twin.load_state_dict(tensors)
    right, x = outputs(built.twin, twin_takes(built)), twin_takes(built)
    for mistake in network.mistakes:
        twin = network.twin().double().eval()
        twin.load_state_dict(tensors)
        wrong = outputs(mistake.plant(twin), x)
        differences = [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(right, wrong, strict=True)]
        # An attention to nothing is NaN, which is no difference that is 1e-6 or less.
        assert not all(difference <= 1e-6 for difference in differences), mistake.name
    for a, b in zip(right, outputs(built.twin, x), strict=True):
        assert (a == b).all()

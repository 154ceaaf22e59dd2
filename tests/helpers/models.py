"""Small Keras models with random weights, twins of them, their mappings, and every byte of a model."""

import re

from course.small_models import TENSORS, draw, fill, fill_scaled, pair_up, table
from parity import ParityError, readable, transfer

import keras
import numpy as np
import pytest
import torch
from torch import nn

__all__ = [
    "ROUNDING",
    "TENSORS",
    "Twin",
    "conv",
    "draw",
    "fill",
    "fill_scaled",
    "float64_model",
    "in_float64",
    "layer",
    "model_of",
    "moved",
    "norm",
    "pair_up",
    "ported",
    "refused",
    "rows_for",
    "separable",
    "sequential",
    "snapshot",
    "spoil",
    "table",
    "twin_output",
    "verdicts",
    "x_of",
]

ROUNDING = 1e-12


def spoil(module):
    """Give every tensor of a PyTorch model a value that no test wants."""
    for tensor in module.state_dict().values():
        tensor.fill_(7)
    return module.eval()


def sequential(shape, *layers, dtype="float64"):
    """Return a Keras model of these layers with random weights."""
    return fill(keras.Sequential([keras.Input(shape, dtype=dtype), *layers]))


def rows_for(model, module):
    """Return the right mapping of a model with one layer to a module: (Keras path, PyTorch key) for each tensor."""
    keys = list(module.state_dict())
    rows = []
    for variable in model.weights:
        key = TENSORS[variable.name]
        rows.append((variable.path, key if key in keys else f"pointwise.{key}"))
    filled = {key for _, key in rows}
    return rows + [("", key) for key in keys if key not in filled]


def moved(layer, module, shape):
    """Give a Keras layer for inputs of a shape (without batch) random weights, and move them into its twin."""
    model = sequential(shape, layer, dtype=layer.dtype)
    transfer(model, spoil(module), table(*rows_for(model, module)))
    return module


def twin_output(module, x):
    """Return what a PyTorch module makes of channels-last input, channels last."""
    with torch.no_grad():
        y = module(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
    return np.moveaxis(y.numpy(), 1, -1)


def snapshot(model):
    """Return every byte of a Keras or PyTorch model's tensors, by name; a meta tensor has none."""
    if isinstance(model, nn.Module):
        tensors = {k: None if v.is_meta else v.detach() for k, v in model.state_dict().items()}
    else:
        tensors = {variable.path: torch.tensor(variable.numpy()) for variable in model.weights}
    return {
        name: None if t is None else (t.dtype, t.shape, t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


def in_float64(model):
    """Return a Keras model of the same architecture and names that computes in float64."""
    return keras.models.clone_model(
        model,
        input_tensors=keras.Input(model.input_shape[1:], dtype="float64"),
        clone_function=lambda layer: type(layer).from_config(layer.get_config() | {"dtype": "float64"}),
    )


class Twin(nn.Module):
    """A twin made of modules and of one function, which takes the twin and its inputs."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *x, **more):
        """Call the function that this twin was made of."""
        return self.run(self, *x, **more)


def norm(channels, kind=nn.BatchNorm2d):
    return kind(channels, eps=1e-3, momentum=0.01)


def x_of(*shape, seed=0):
    return draw(*shape, seed=seed).astype("float32")


def model_of(shape, function, dtype=None):
    """Return the Keras model that a function makes of one input, with random weights."""
    x = keras.Input(shape, dtype=dtype)
    return fill_scaled(keras.Model(x, function(x)))


def ported(model, twin, *names, **renamed):
    """Give a twin the weights of a Keras model; return the twin and the mapping."""
    mapping = pair_up(model, twin, dict.fromkeys(names) | {name: name for name in names} | renamed)
    transfer(model, twin, mapping)
    return twin.eval(), mapping


def verdicts(traced):
    """Return the verdict on each layer, and after a colon its note."""
    return dict(zip(traced.layer, readable(traced).verdict, strict=True))


def conv(name, filters=4, **more):
    """Return a convolution of 3 x 3 pixels, padded."""
    return keras.layers.Conv2D(filters, 3, padding="same", name=name, **more)


def refused(model, twin, mapping, faults, **kwargs):
    """Assert that a transfer is refused with exactly these faults, given as patterns, and that it changes nothing."""
    before = snapshot(model), snapshot(twin)
    with pytest.raises(ParityError) as caught:
        transfer(model, twin, mapping, **kwargs)
    assert (snapshot(model), snapshot(twin)) == before
    found = caught.value.faults
    for pattern in faults:
        assert [fault for fault in found if re.search(pattern, fault)], f"no fault {pattern} in {found}"
    unexpected = [fault for fault in found if not any(re.search(pattern, fault) for pattern in faults)]
    assert not unexpected
    assert str(caught.value).startswith(f"{mapping.attrs.get('source', 'mapping')}: {len(found)} fault")
    assert all(fault in str(caught.value) for fault in found)


def layer(kind, *args, dtype="float64", **kwargs):
    return getattr(keras.layers, kind)(*args, dtype=dtype, **kwargs)


def separable(kind, filters, *kernel, channels=3, multiplier=2, **kwargs):
    depthwise = kind(channels, channels * multiplier, *kernel, groups=channels, bias=False, **kwargs)
    modules = nn.Sequential()
    modules.add_module("depthwise", depthwise)
    modules.add_module("pointwise", kind(channels * multiplier, filters, 1))
    return modules


def float64_model(shape, function):
    """Return a Keras model that computes in float64, where rounding is far below any mistake."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        return model_of(shape, function, "float64")
    finally:
        keras.config.set_dtype_policy(policy)

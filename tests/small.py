"""Small Keras models and twins of them, each made of one function."""

from course.small_models import draw as numbers
from course.small_models import fill_scaled, pair_up
from parity import readable, transfer

import keras
from torch import nn


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
    return numbers(*shape, seed=seed).astype("float32")


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

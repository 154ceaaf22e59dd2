"""Settings are compared where a module has them, and left alone where a name means something else."""

import parity.recurrent as recurrent
from parity.weights import module_settings as settings
from tests.helpers.models import layer

import pytest
from torch import nn


def differing(check, keras_layer, module):
    found = {name: (due, actual) for name, due, actual in check(keras_layer, module)}
    return {name: both for name, both in found.items() if not settings.same_setting(*both)}


class Own(nn.Module):
    """A module of one's own with settings of its own."""

    def __init__(self, **values):
        super().__init__()
        for name, value in values.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("check", "made", "module", "expected"),
    [
        (settings.convolution, layer("Conv2D", 2, 3, strides=2), nn.Conv2d(3, 2, 3, 2), {}),
        (settings.convolution, layer("Conv2D", 2, 3, strides=2), nn.Conv2d(3, 2, 3), {"stride": ((2, 2), (1, 1))}),
        (settings.convolution, layer("Conv2D", 2, 3, strides=2), Own(stride=2, groups=1), {}),
        (settings.convolution, layer("Conv2D", 2, 3, strides=2), Own(stride=1), {"stride": (2, 1)}),
        (settings.convolution, layer("Conv2D", 2, 3), Own(groups=nn.Linear(1, 1)), {}),
        (settings.convolution, layer("Conv1D", 2, 3, strides=2), nn.Conv2d(3, 2, (3, 1), (2, 1)), {}),
        (settings.layer_normalization, layer("LayerNormalization"), Own(eps=1e-5), {"eps": (1e-3, 1e-5)}),
        (settings.layer_normalization, layer("LayerNormalization"), Own(), {}),
        (settings.pointwise, layer("Dense", 2), nn.Linear(3, 2), {}),
        (settings.pointwise, layer("Dense", 2), nn.Conv2d(3, 2, 1, 2), {"stride": ((1, 1), (2, 2))}),
        (settings.gated, layer("LSTM", 2), nn.LSTM(3, 2), {}),
        (settings.gated, layer("LSTM", 2), nn.LSTM(3, 2, proj_size=1), {"proj_size": (0, 1)}),
        (settings.gated, layer("GRU", 2), nn.GRU(3, 2), {}),
        (settings.gated, layer("GRU", 2, reset_after=False), nn.GRU(3, 2), {"reset_after": (False, True)}),
        (settings.gated, layer("GRU", 2, reset_after=False), recurrent.GRU(3, 2), {}),
        (settings.simple_rnn, layer("SimpleRNN", 2), nn.RNN(3, 2), {}),
        (
            settings.simple_rnn,
            layer("SimpleRNN", 2),
            nn.RNN(3, 2, nonlinearity="relu"),
            {"nonlinearity": ("tanh", "relu")},
        ),
    ],
)
def test_the_settings_that_differ(check, made, module, expected):
    assert differing(check, made, module) == expected

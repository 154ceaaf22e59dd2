"""A ZeroPadding layer of Keras and the padding of the twin's convolution are one thing: both are said together."""

from course.small_models import draw, fill_scaled, pair_up
from parity import diagnose, transfer

import keras
import pytest
from keras import layers as L
from torch import nn


class Padded(nn.Module):
    """A twin without a layer for the padding, or with one."""

    def __init__(self, padding, before=None):
        super().__init__()
        self.before = before
        self.conv = nn.Conv2d(3, 4, 3, 2, padding=padding)

    def forward(self, x):
        """Map (batch, 3, h, w) to (batch, 4, h', w')."""
        return self.conv(x if self.before is None else self.before(x))


def said(zeros, padding, twin, size=(9, 8)):
    start = keras.Input((*size, 3), dtype="float64")
    x = L.ZeroPadding2D(zeros, name="pad", dtype="float64")(start)
    x = L.Conv2D(4, 3, strides=2, padding=padding, name="conv", dtype="float64")(x)
    model = fill_scaled(keras.Model(start, x))
    twin = twin.double().eval()
    mapping = pair_up(model, twin, {"conv": "conv"})
    transfer(model, twin, mapping)
    return str(diagnose(model, twin, draw(2, *size, 3), mapping))


@pytest.mark.parametrize(
    ("zeros", "padding", "twin", "found", "due"),
    [
        (((0, 1), (0, 1)), "valid", 1, "[(1, 1), (1, 1)]", "[(0, 1), (0, 1)]"),  # MobileNet
        (((3, 2), (3, 2)), "valid", 3, "[(3, 3), (3, 3)]", "[(3, 2), (3, 2)]"),
        (((2, 1), (1, 2)), "valid", 1, "[(1, 1), (1, 1)]", "[(2, 1), (1, 2)]"),
        (((1, 1), (1, 1)), "same", 1, "[(1, 1), (1, 1)]", "[(2, 2), (1, 2)]"),
    ],
)
def test_the_padding_of_both_layers_is_what_is_due(zeros, padding, twin, found, due):
    first, why = said(zeros, padding, Padded(twin)).splitlines()
    assert first.startswith("conv (conv): its inputs agree, its outputs do not: its shape is (2, 4, ")
    assert why == f"  padding (padding is {found}, not {due}, as pad has it): notebook 04"


def test_a_right_padding_in_the_convolution_is_no_divergence():
    assert said(((1, 1), (1, 1)), "valid", Padded(1)) == "no layer diverges"


def test_a_twin_with_a_layer_for_the_padding_is_told_of_the_convolution_alone():
    text = said(((0, 1), (0, 1)), "same", Padded(1, nn.ZeroPad2d((0, 1, 0, 1))), (8, 9))
    assert "not [(1, 1), (0, 1)]): notebook 04" in text
    assert "pad has it" not in text

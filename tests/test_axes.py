"""The axis of the channels moves, and the others keep their order."""

from parity import channels_first, channels_last
from parity.axes import torch_input
from tests.helpers.models import draw

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_channel_axis_moves_and_the_others_keep_their_order(kind):
    x = kind(draw(2, 3, 4, 5))
    first = channels_first(x)
    assert first.shape == (2, 5, 3, 4)
    assert first[1, 4, 2, 3] == x[1, 2, 3, 4]
    assert channels_last(first).shape == (2, 3, 4, 5)
    assert (channels_last(first) == x).all()


def test_torch_input_is_a_contiguous_copy():
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 1)):
        x = draw(*shape, seed=1)
        tensor = torch_input(x)
        assert tensor.is_contiguous()
        assert np.array_equal(tensor, np.moveaxis(x, -1, 1))
        tensor.zero_()
        assert x.all()

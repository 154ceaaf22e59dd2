"""The axis of the channels moves, and the others keep their order."""

from parity import ParityError, channels_first, channels_last, run_torch
from parity.axes import torch_input
from tests.helpers.models import draw

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("several", [list, tuple])
def test_run_torch_hands_over_several_inputs_in_their_order(several):
    image, words = np.arange(24.0).reshape(1, 3, 2, 4), np.array([[5, 7]])

    def module(image, words):
        assert image.shape == (1, 4, 3, 2)
        assert words.dtype == torch.int64
        return 2 * image, words

    doubled, same = run_torch(module, several([image, words]))
    np.testing.assert_array_equal(doubled, 2 * image)
    np.testing.assert_array_equal(same, words)


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


def test_run_torch_returns_several_outputs_in_the_order_of_axes_of_keras():
    x = np.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4)

    def module(images):
        return images, {"sum": images.sum((2, 3)), "parts": [2 * images, images.sum()]}

    first, named = run_torch(module, x)
    assert np.array_equal(first, x)
    assert np.array_equal(named["sum"], x.sum((1, 2)))
    assert np.array_equal(named["parts"][0], 2 * x)
    assert named["parts"][1] == x.sum()


@pytest.mark.parametrize("output", [None, "text", 1.0, np.ones(2)])
def test_run_torch_says_what_a_module_returns_that_is_no_tensor(output):
    with pytest.raises(ParityError, match=f"it returns a {type(output).__name__}, not a tensor"):
        run_torch(lambda images: (images, output), np.ones((1, 2, 2, 1)))

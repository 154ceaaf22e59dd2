"""SAME padding: the geometry against its definition, the layers against Keras itself.

On a CPU, TensorFlow itself keeps some tests from the plain way:

- It has no kernel for a dilated transposed convolution. XLA has, so these layers are compiled with it.
- Its kernels for 3D break its own rule where a stride leaves two or more elements unread: they take the padding, which
  is then negative, for cropping, and skip elements. XLA and the kernels for 1D and 2D keep to the rule, and so
  does ``parity.padding``. These layers are compiled with XLA too.
- It has no float64 kernels for 3D pooling, which is compared in float32.
"""

import itertools
import math

from parity import largest_difference, padding
from parity.padding import pad_same, same_padding
from tests.helpers.models import ROUNDING, draw, moved, twin_output

import keras
import pytest
import tensorflow as tf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


def examples(number):
    return settings(max_examples=number, deadline=None)


def each_axis(rank, largest):
    return st.tuples(*[st.integers(1, largest)] * rank)


@st.composite
def geometries(draw_, rank, dilated=True):
    """Sizes, all different, with a kernel, and a stride or a dilation: Keras refuses both at once."""
    sizes = tuple(draw_(st.lists(st.integers(1, 9), min_size=rank, max_size=rank, unique=True)))
    kernel, once = draw_(each_axis(rank, 5)), (1,) * rank
    if dilated and draw_(st.booleans()):
        return sizes, kernel, once, draw_(each_axis(rank, 3))
    return sizes, kernel, draw_(each_axis(rank, 4)), once


def skips_elements(sizes, kernel, stride):
    """Tell whether the stride leaves two or more elements unread at the end of some axis, in three dimensions."""
    unread = [n - (-(-n // s) - 1) * s - k for n, k, s in zip(sizes, kernel, stride, strict=True)]
    return len(sizes) == 3 and max(unread) >= 2


def check(layer, module, sizes, channels, compiled=False):
    """Move the weights, if there are any, and compare the outputs for two images."""
    module = module.to(getattr(torch, layer.dtype))
    if "Pooling" not in type(layer).__name__:
        moved(layer, module, (*sizes, channels))
    x = draw(2, *sizes, channels, seed=1).astype(layer.dtype)
    call = tf.function(layer, jit_compile=True, autograph=False) if compiled else layer
    expected = call(tf.constant(x)).numpy()
    assert largest_difference(expected, twin_output(module, x)) < (ROUNDING if layer.dtype == "float64" else 1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
@examples(25)
def test_convolution_equals_keras(rank, data):
    sizes, kernel, stride, dilation = data.draw(geometries(rank))
    layer = getattr(keras.layers, f"Conv{rank}D")(
        5, kernel, strides=stride, dilation_rate=dilation, padding="same", dtype="float64"
    )
    module = getattr(padding, f"Conv{rank}dSame")(3, 5, kernel, stride=stride, dilation=dilation)
    check(layer, module, sizes, 3, compiled=skips_elements(sizes, kernel, stride))


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
@examples(6)
def test_grouped_convolution_equals_keras(rank, data):
    sizes, kernel, stride, dilation = data.draw(geometries(rank))
    groups = data.draw(st.integers(2, 3))
    layer = getattr(keras.layers, f"Conv{rank}D")(
        3 * groups, kernel, strides=stride, dilation_rate=dilation, groups=groups, padding="same", dtype="float64"
    )
    module = getattr(padding, f"Conv{rank}dSame")(
        2 * groups, 3 * groups, kernel, stride=stride, dilation=dilation, groups=groups
    )
    check(layer, module, sizes, 2 * groups)


@pytest.mark.parametrize("rank", [1, 2])
@given(data=st.data())
@examples(25)
def test_depthwise_convolution_equals_keras(rank, data):
    sizes, kernel, _, dilation = data.draw(geometries(rank))
    # Keras takes a stride together with a dilation here, but TensorFlow only the same stride for all axes.
    stride = (data.draw(st.integers(1, 4)),) * rank
    multiplier = data.draw(st.integers(2, 3))
    layer = getattr(keras.layers, f"DepthwiseConv{rank}D")(
        kernel, stride, depth_multiplier=multiplier, dilation_rate=dilation, padding="same", dtype="float64"
    )
    module = getattr(padding, f"Conv{rank}dSame")(
        3, 3 * multiplier, kernel, stride=stride, dilation=dilation, groups=3, bias=True
    )
    check(layer, module, sizes, 3)


@pytest.mark.parametrize("rank", [1, 2])
@given(data=st.data())
@examples(15)
def test_separable_convolution_equals_keras(rank, data):
    sizes, kernel, _, dilation = data.draw(geometries(rank))
    stride = (data.draw(st.integers(1, 4)),) * rank
    layer = getattr(keras.layers, f"SeparableConv{rank}D")(
        5, kernel, strides=stride, depth_multiplier=2, dilation_rate=dilation, padding="same", dtype="float64"
    )
    same = getattr(padding, f"Conv{rank}dSame")
    module = nn.Sequential()
    module.add_module("depthwise", same(3, 6, kernel, stride=stride, dilation=dilation, groups=3, bias=False))
    module.add_module("pointwise", same(6, 5, 1))
    check(layer, module, sizes, 3)


def transposed(rank, kernel, stride, dilation):
    layer = getattr(keras.layers, f"Conv{rank}DTranspose")(
        5, kernel, strides=stride, dilation_rate=dilation, padding="same", dtype="float64"
    )
    return layer, getattr(padding, f"ConvTranspose{rank}dSame")(3, 5, kernel, stride=stride, dilation=dilation)


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
@examples(25)
def test_transposed_convolution_equals_keras(rank, data):
    sizes, kernel, stride, dilation = data.draw(geometries(rank, dilated=False))
    check(*transposed(rank, kernel, stride, dilation), sizes, 3)


@pytest.mark.parametrize(
    ("sizes", "kernel", "dilation"),
    [((7,), (4,), (3,)), ((2,), (3,), (4,)), ((7, 5), (3, 2), (2, 3)), ((4, 3, 5), (3, 2, 4), (2, 3, 1))],
)
def test_dilated_transposed_convolution_equals_keras(sizes, kernel, dilation):
    check(*transposed(len(sizes), kernel, (1,) * len(sizes), dilation), sizes, 3, compiled=True)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Max", "Avg"])
@given(data=st.data())
@examples(20)
def test_pooling_equals_keras(kind, rank, data):
    sizes, kernel, stride, _ = data.draw(geometries(rank, dilated=False))
    name = {"Max": "MaxPooling", "Avg": "AveragePooling"}[kind]
    layer = getattr(keras.layers, f"{name}{rank}D")(
        kernel, strides=stride, padding="same", dtype="float32" if rank == 3 else "float64"
    )
    module = getattr(padding, f"{kind}Pool{rank}dSame")(kernel, stride)
    check(layer, module, sizes, 3, compiled=skips_elements(sizes, kernel, stride))


@pytest.mark.parametrize("kind", ["Max", "Avg"])
def test_a_stride_that_skips_elements_starts_at_the_first(kind):
    """Where TensorFlow's 3D kernels start at the second; hypothesis need not come by here."""
    x = torch.arange(1.0, 10.0).reshape(1, 1, 9, 1, 1)
    assert getattr(padding, f"{kind}Pool3dSame")((1, 1, 1), (3, 1, 1))(x).flatten().tolist() == [1.0, 4.0, 7.0]


@pytest.mark.parametrize("kind", ["Max", "Avg"])
def test_pooling_of_constants_below_zero_ignores_the_padding(kind):
    """Padding with zeros would win, or would be counted."""
    x = torch.full((2, 3, 4, 6), -2.0, dtype=torch.float64)
    y = getattr(padding, f"{kind}Pool2dSame")((3, 4), (2, 3))(x)
    assert y.shape == (2, 3, 2, 2)
    assert largest_difference(y, torch.full_like(y, -2.0)) < ROUNDING


@pytest.mark.parametrize("kind", ["Max", "Avg"])
def test_pooling_steps_by_its_window_unless_told_otherwise(kind):
    layer = getattr(padding, f"{kind}Pool2dSame")((2, 3))
    assert layer(torch.zeros(1, 1, 5, 7)).shape == (1, 1, 3, 3)
    assert repr(layer) == f"{kind}Pool2dSame(kernel_size=(2, 3), stride=(2, 3))"


@pytest.mark.parametrize("kernel", [0, -1, (2,), (2, 3, 4), (2, 0)])
def test_pooling_refuses_a_window_that_is_none(kernel):
    with pytest.raises(ValueError, match="kernel_size must be a positive integer"):
        padding.MaxPool2dSame(kernel)
    with pytest.raises(ValueError, match="stride must be a positive integer"):
        padding.AvgPool2dSame(2, kernel)


def test_geometry_is_the_least_padding_with_the_odd_element_after():
    """The definition, by counting positions of the kernel one by one."""
    tried = 0
    for size, kernel, stride, dilation in itertools.product(range(1, 16), range(1, 8), range(1, 6), range(1, 4)):
        reach = dilation * (kernel - 1) + 1
        total = next(t for t in itertools.count() if len(range(0, size + t - reach + 1, stride)) == -(-size // stride))
        before, after = same_padding(size, kernel, stride, dilation)
        assert before + after == total
        assert after - before in (0, 1)
        tried += 1
    assert tried == 15 * 7 * 5 * 3


@given(size=st.integers(1, 10**6), kernel=st.integers(1, 999), stride=st.integers(1, 99), dilation=st.integers(1, 99))
@examples(200)
def test_geometry_gives_the_promised_output_size(size, kernel, stride, dilation):
    before, after = same_padding(size, kernel, stride, dilation)
    assert 0 <= before <= after <= before + 1
    assert (size + before + after - dilation * (kernel - 1) - 1) // stride + 1 == math.ceil(size / stride)


@pytest.mark.parametrize("name", ["size", "kernel", "stride", "dilation"])
@pytest.mark.parametrize("value", [0, -3])
def test_geometry_refuses_what_is_not_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not {value}"):
        same_padding(**({"size": 5, "kernel": 3, "stride": 2, "dilation": 1} | {name: value}))


def test_each_axis_gets_its_own_padding():
    """F.pad takes the last axis first: exchanged axes would give the shape (1, 2, 3) here."""
    x = torch.arange(1.0, 3.0).reshape(1, 2, 1)
    y = pad_same(x, (1, 2), (1, 1), (1, 1), value=-5)
    assert y.tolist() == [[[1.0, -5.0], [2.0, -5.0]]]


def test_nothing_is_copied_where_no_padding_is_needed():
    x = torch.zeros(2, 3, 4, 6)
    assert pad_same(x, (2, 3), (2, 3), (1, 1)) is x


def test_layers_take_an_image_without_batch():
    x = torch.from_numpy(draw(3, 5, 4))
    conv = padding.Conv2dSame(3, 2, (3, 2), stride=2, dtype=torch.float64)
    transpose = padding.ConvTranspose2dSame(3, 2, (3, 2), stride=2, dtype=torch.float64)
    for layer in (conv, transpose):
        assert largest_difference(layer(x), layer(x[None])[0]) < ROUNDING


def test_layers_have_the_state_dict_of_the_layer_they_replace():
    assert list(padding.Conv2dSame(3, 4, 2).state_dict()) == list(nn.Conv2d(3, 4, 2).state_dict())
    assert list(padding.ConvTranspose2dSame(3, 4, 2).state_dict()) == list(nn.ConvTranspose2d(3, 4, 2).state_dict())


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("Conv2dSame", {"strides": 2}, "Conv2dSame: PyTorch says `stride`, not `strides`"),
        ("Conv1dSame", {"dilation_rate": 2}, "Conv1dSame: PyTorch says `dilation`, not `dilation_rate`"),
        ("ConvTranspose2dSame", {"use_bias": False}, "ConvTranspose2dSame: PyTorch says `bias`, not `use_bias`"),
        ("Conv2dSame", {"padding": 1}, "Conv2dSame: it takes no `padding`, because SAME padding decides it"),
        ("Conv2dSame", {"activation": "relu"}, "Conv2dSame: it has no argument `activation`"),
    ],
)
def test_convolutions_say_which_argument_they_do_not_take(kind, arguments, said):
    """By itself, Python would name the class that they have in common, which no user knows."""
    with pytest.raises(TypeError, match=f"^{said}$"):
        getattr(padding, kind)(3, 4, 5, **arguments)


def test_pooling_says_which_argument_it_does_not_take():
    with pytest.raises(TypeError, match=r"^MaxPool2dSame: PyTorch says `stride`, not `strides`$"):
        padding.MaxPool2dSame(3, strides=2)
    with pytest.raises(TypeError, match=r"^AvgPool1dSame: it takes no `padding`, because SAME padding decides it$"):
        padding.AvgPool1dSame(3, padding=1)

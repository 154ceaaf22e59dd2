"""What Keras holds becomes a PyTorch tensor of the same numbers, dtype and shape."""

from parity.tensors import as_tensor

import keras
import numpy as np
import pytest
import torch
from keras import ops


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_a_tensor_of_keras_has_the_same_numbers_dtype_and_shape(dtype, shape):
    numbers = (np.arange(np.prod(shape)) % 2).reshape(shape)
    found = as_tensor(ops.convert_to_tensor(numbers, dtype))
    assert found.dtype == getattr(torch, dtype)
    assert tuple(found.shape) == shape
    np.testing.assert_array_equal(found.double(), numbers)
    assert found.device.type == "cpu"


def test_a_tensor_shares_its_memory_where_that_is_possible():
    tensor = ops.convert_to_tensor(np.random.default_rng(0).random((50, 50)))
    one, other = as_tensor(tensor), as_tensor(tensor)
    assert one.data_ptr() == other.data_ptr()


@pytest.mark.parametrize("take", [lambda v: v, lambda v: v.value], ids=["variable", "its value"])
def test_a_weight_is_read_as_it_is_now(take):
    variable = keras.Variable(np.arange(6.0).reshape(2, 3), dtype="float32")
    first = as_tensor(take(variable))
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    variable.assign(-variable.numpy())
    assert as_tensor(take(variable)).tolist() == [[0, -1, -2], [-3, -4, -5]]


def test_the_weights_of_a_layer_are_read():
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    assert torch.equal(as_tensor(layer.kernel), torch.from_numpy(layer.kernel.numpy()))


def test_an_array_is_copied():
    array = np.ones((2, 3))
    found = as_tensor(array)
    array[:] = 0
    assert found.tolist() == [[1] * 3] * 2
    assert found.dtype == torch.float64


def test_a_tensor_of_pytorch_is_detached_and_not_copied():
    tensor = torch.ones(2, 3, requires_grad=True)
    found = as_tensor(tensor)
    assert not found.requires_grad
    assert found.data_ptr() == tensor.data_ptr()

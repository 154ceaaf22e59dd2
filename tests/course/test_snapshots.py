"""Snapshots of a training: the right tensors, in the right layout and order, and differences that cannot hide."""

from course.snapshots import Snapshot, distances, history, keras_snapshot, split, torch_step
from parity import transfer
from parity.axes import torch_input

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import torch
from torch import nn

MAPPING = pd.DataFrame(
    [
        ("out/kernel", "3.weight"),
        ("out/bias", "3.bias"),
        ("norm/moving_variance", "1.running_var"),
        ("norm/gamma", "1.weight"),
        ("norm/beta", "1.bias"),
        ("norm/moving_mean", "1.running_mean"),
        ("", "1.num_batches_tracked"),
        ("conv/kernel", "0.weight"),
        ("conv/bias", "0.bias"),
    ],
    columns=["keras", "torch"],
)
PARTS = list(Snapshot._fields)


@pytest.fixture
def twins():
    """Return a Keras model (4, 5, 2) -> (3,) and its twin; every weight is random, every axis of another size."""
    keras.utils.set_random_seed(0)
    images = x = keras.Input((4, 5, 2), dtype="float64")
    for layer in (
        keras.layers.Conv2D(6, (2, 3), dtype="float64", name="conv"),
        keras.layers.BatchNormalization(dtype="float64", name="norm"),
        keras.layers.GlobalAveragePooling2D(dtype="float64"),
        keras.layers.Dense(3, dtype="float64", name="out"),
    ):
        x = layer(x)
    keras_model = keras.Model(images, x)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    norm = nn.BatchNorm2d(6, eps=1e-3, momentum=1 - 0.99)
    torch_model = nn.Sequential(nn.Conv2d(2, 6, (2, 3)), norm, pool, nn.Linear(6, 3)).double()
    rng = np.random.default_rng(0)
    for weight in keras_model.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    transfer(keras_model, torch_model, MAPPING)
    return keras_model, torch_model.train()


def train(keras_model, torch_model, steps=3):
    """Train both by plain gradient descent; return the snapshots of both."""
    keras_sgd = keras.optimizers.SGD(0.125)
    torch_sgd = torch.optim.SGD(torch_model.parameters(), 0.125)
    rng = np.random.default_rng(1)
    snapshots = []
    for _ in range(steps):
        x = rng.normal(size=(7, 4, 5, 2))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras_model(x, training=True) ** 2)
        gradients = tape.gradient(loss, keras_model.trainable_variables)
        keras_sgd.apply(gradients, keras_model.trainable_variables)
        twin_loss = (torch_model(torch_input(x)) ** 2).mean()
        snapshots.append(
            (
                keras_snapshot(keras_model, MAPPING, loss, gradients),
                torch_step(torch_model, MAPPING, twin_loss, [torch_sgd]),
            )
        )
    return zip(*snapshots, strict=True)


def test_equal_trainings_agree_but_for_the_running_variance(twins):
    found = distances(*train(*twins))
    assert list(found.columns) == PARTS
    assert list(found.index) == [1, 2, 3]
    assert found[["loss", "gradients", "weights"]].max(axis=None) < 1e-12
    # PyTorch divides by N - 1, and N = 7 * 3 * 3: apart, but little.
    assert (found["statistics"] > 1e-6).all()


def test_snapshot_holds_each_tensor_once_in_the_order_of_the_mapping(twins):
    keras_model, torch_model = twins
    kernels = {layer.name: layer.kernel.numpy() for layer in keras_model.layers if hasattr(layer, "kernel")}
    gradients = [np.full(weight.shape, number) for number, weight in enumerate(keras_model.trainable_variables)]
    found = keras_snapshot(keras_model, MAPPING, 2.5, gradients)
    assert found.loss == 2.5
    assert found.weights.size == found.gradients.size == sum(p.numel() for p in torch_model.parameters())
    np.testing.assert_array_equal(found.weights[:18], kernels["out"].T.ravel())
    np.testing.assert_array_equal(found.weights[33:105], kernels["conv"].transpose(3, 2, 0, 1).ravel())
    # conv: 0, 1; norm: 2, 3; out: 4, 5
    np.testing.assert_array_equal(found.gradients, np.repeat([4.0, 5, 2, 3, 0, 1], [18, 3, 6, 6, 72, 6]))
    norm = keras_model.get_layer("norm")
    np.testing.assert_array_equal(found.statistics, np.append(norm.moving_variance, norm.moving_mean))


def test_snapshot_does_not_change_with_the_model(twins):
    keras_model, torch_model = twins
    loss = (torch_model(torch_input(np.ones((7, 4, 5, 2)))) ** 2).mean()
    zeros = [np.zeros(weight.shape) for weight in keras_model.trainable_variables]
    snapshots = [torch_step(torch_model, MAPPING, loss, []), keras_snapshot(keras_model, MAPPING, 0, zeros)]
    before = [[part.copy() for part in snapshot] for snapshot in snapshots]
    with torch.no_grad():
        for tensor in (*torch_model.parameters(), *torch_model.buffers()):
            tensor += 1
        for parameter in torch_model.parameters():
            parameter.grad += 1
    for weight in keras_model.weights:
        weight.assign(weight + 1)
    for snapshot, parts in zip(snapshots, before, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(snapshot, parts, strict=True))


@pytest.mark.parametrize("frozen", [True, False])
def test_weight_without_a_gradient_counts_as_zeros(twins, frozen):
    _, torch_model = twins
    torch_model[0].requires_grad_(not frozen)
    loss = (torch_model(torch_input(np.random.default_rng(2).normal(size=(7, 4, 5, 2)))) ** 2).mean()
    found = torch_step(torch_model, MAPPING, loss, [])
    assert (found.gradients[33:105] == 0).all() == frozen
    assert found.gradients[:33].any()


def zeros(steps):
    """Return snapshots that hold nothing but zeros."""
    return [Snapshot(np.zeros(()), *(np.zeros(3) for _ in PARTS[1:])) for _ in range(steps)]


def test_difference_in_one_number_of_one_step_is_found():
    for part in PARTS:
        other = zeros(2)
        getattr(other[1], part).flat[-1] = -0.5
        expected = pd.DataFrame(0.0, index=[1, 2], columns=PARTS)
        expected.loc[2, part] = 0.5
        pd.testing.assert_frame_equal(distances(zeros(2), iter(other)), expected)
        getattr(other[1], part).flat[-1] = np.nan
        assert not distances(zeros(2), other).loc[2, part] < 1


def test_trainings_that_cannot_be_compared_are_refused():
    one, other = zeros(2), zeros(2)
    other[1] = other[1]._replace(statistics=np.zeros(1))
    with pytest.raises(ValueError, match="step 2, statistics"):
        distances(one, other)
    for steps in (1, 3):
        with pytest.raises(ValueError, match=f"step {min(steps, 2) + 1}: one of the trainings has ended"):
            distances(one, zeros(steps))


def test_history_stacks_the_snapshots_of_all_steps():
    first, second = zeros(1)[0], zeros(1)[0]._replace(loss=np.ones(()), weights=np.full(3, 2.0))
    found = history([first, second])
    np.testing.assert_array_equal(found.loss, [0, 1])
    np.testing.assert_array_equal(found.weights, [[0, 0, 0], [2, 2, 2]])
    assert found.statistics.shape == (2, 3)


def test_split_puts_each_parameter_in_one_list(twins):
    _, torch_model = twins
    kernels, out, rest = split(torch_model, r"\d\.weight", "3")
    assert [tuple(kernel.shape) for kernel in kernels] == [(6, 2, 2, 3), (6,), (3, 6)]
    assert [id(p) for p in out] == [id(torch_model[3].bias)]
    assert {id(p) for p in rest} == {id(torch_model[0].bias), id(torch_model[1].bias)}

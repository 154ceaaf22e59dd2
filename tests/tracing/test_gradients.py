"""Gradients of both models against numbers that are worked out by hand or by finite differences, in float64."""

from parity import ParityError
from parity.models.inputs import unchanged
from parity.models.keras_graph import keras_graph
from parity.tracing.gradients import keras_gradients, twin_gradients
from parity.tracing.port import make_port
from parity.tracing.side_by_side import run
from tests.helpers.models import Twin, float64_model, norm, ported, snapshot, x_of

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

X = x_of(3, 4).astype("float64")
A, ACTIVATION, B = 1, 2, 3  # what each step returns


def two_dense(x):
    return L.Dense(2, name="b")(L.Dense(5, activation="tanh", name="a")(x))


@pytest.fixture
def dense():
    return float64_model((4,), two_dense)


def by_hand(model, factors, x=X):
    """Return the gradients of two dense layers: of what each step returns, and of each weight."""
    first, offset, second, _ = [weight.numpy() for weight in model.weights]
    y = np.tanh(x @ first + offset)
    of_activation = factors @ second.T
    of_a = of_activation * (1 - y**2)
    tensors = {B: factors, ACTIVATION: of_activation, A: of_a}
    weights = {"a/kernel": x.T @ of_a, "a/bias": of_a.sum(0), "b/kernel": y.T @ factors, "b/bias": factors.sum(0)}
    return tensors, weights


def close(tensor, due):
    np.testing.assert_allclose(tensor.numpy(), due, rtol=1e-9, atol=1e-11)


def test_the_gradients_of_a_keras_model(dense):
    found = keras_gradients(keras_graph(dense), [X])
    (factors,) = found.factors
    assert factors.shape == (3, 2)
    assert len(np.unique(factors)) == 6
    tensors, weights = by_hand(dense, factors.numpy())
    assert found.tensors.keys() == tensors.keys()  # the model's input is none of them
    for number, due in tensors.items():
        close(found.tensors[number][0], due)
    assert found.weights.keys() == weights.keys()
    for path, due in weights.items():
        close(found.weights[path][0], due)
    close(found.outputs[0], dense(X).numpy())
    kernel, offset = dense.get_layer("a").get_weights()
    assert found.sizes[A] == pytest.approx(np.abs(X @ kernel + offset).max())
    assert found.sizes[0] == pytest.approx(np.abs(X).max())
    assert found.gains == {}


def test_the_second_of_each_pair_has_other_rounding_errors(dense):
    graph = keras_graph(dense)
    found, again, other = (keras_gradients(graph, [X], seed) for seed in (0, 0, 1))
    for pairs in (found.tensors, found.weights):
        for name, (exact, perturbed) in pairs.items():
            if name not in (B, "b/bias"):
                assert 0 < float((exact - perturbed).abs().max()) < 1e-12
    kernel = "a/kernel"
    assert torch.equal(found.weights[kernel][1], again.weights[kernel][1])
    assert torch.equal(found.weights[kernel][0], other.weights[kernel][0])
    assert not torch.equal(found.weights[kernel][1], other.weights[kernel][1])


def test_a_weight_that_is_not_trained_has_none_and_those_before_it_have_the_same(dense):
    graph = keras_graph(dense)
    free = keras_gradients(graph, [X])
    dense.get_layer("b").trainable = False
    found = keras_gradients(graph, [X])
    assert (found.weights["b/kernel"], found.weights["b/bias"]) == (None, None)
    close(found.weights["a/kernel"][0], free.weights["a/kernel"][0].numpy())


def test_of_an_embedding_the_gradient_is_dense():
    x = keras.Input((3,), dtype="int32")
    model = keras.Model(x, L.Embedding(4, 2, name="e")(x))
    words = np.array([[0, 2, 2]], "int32")
    found = keras_gradients(keras_graph(model), [words])
    factors = found.factors[0].numpy()[0]
    close(
        found.weights["e/embeddings"][0],
        np.stack([factors[0], 0 * factors[0], factors[1] + factors[2], 0 * factors[0]]),
    )
    assert found.tensors.keys() == {1}


def test_whole_numbers_have_no_gradient():
    x = keras.Input((4,))
    argmax = keras.ops.argmax(L.Dense(3, name="d")(x), 1)
    assert keras_gradients(keras_graph(keras.Model(x, argmax)), [X.astype("float32")]) is None
    both = keras.Model(x, [argmax, L.Dense(2, name="e")(x)])
    found = keras_gradients(keras_graph(both), [X.astype("float32")])
    assert float(found.factors[0].abs().max()) == 0
    assert float(found.factors[1].abs().min()) > 0
    assert found.weights["d/kernel"] is None
    assert found.weights["e/kernel"] is not None


def test_there_are_none_without_tensorflow(dense, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    assert keras_gradients(keras_graph(dense), [X]) is None


def normalized(x):
    return L.BatchNormalization(name="norm")(L.Dense(4, name="a")(x))


def test_batch_normalization_is_differentiated_as_in_training():
    model = float64_model((4,), normalized)
    x = x_of(7, 4, seed=3).astype("float64")
    before = snapshot(model)
    twin, _ = ported(model, Twin(lambda t, x: x, a=nn.Linear(4, 4), norm=norm(4, nn.BatchNorm1d)), "a", "norm")
    with unchanged(model, twin, training=True):
        found = keras_gradients(keras_graph(model), [x])
    assert snapshot(model) == before
    values = {weight.path: weight.numpy() for weight in model.weights}
    factors = found.factors[0].numpy()

    def loss(path, moved):
        w = values | {path: moved}
        y = x @ w["a/kernel"] + w["a/bias"]
        y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-3) * w["norm/gamma"] + w["norm/beta"]
        return float((y * factors).sum())

    for path in ("a/kernel", "norm/gamma", "norm/beta"):
        due = np.zeros_like(values[path])
        for place in np.ndindex(due.shape):
            step = np.zeros_like(due)
            step[place] = 1e-5
            due[place] = (loss(path, values[path] + step) - loss(path, values[path] - step)) / 2e-5
        np.testing.assert_allclose(found.weights[path][0].numpy(), due, rtol=1e-5, atol=1e-7)
    assert found.weights["norm/moving_mean"] is found.weights["norm/moving_variance"] is None
    variance = (x @ values["a/kernel"] + values["a/bias"]).var(0)
    gain = (np.abs(values["norm/gamma"]) / np.sqrt(variance + 1e-3)).max()
    assert found.gains == {2: pytest.approx(gain)}


def test_the_gain_of_a_normalization_without_a_scale_and_of_images():
    model = float64_model((3, 2, 4), lambda x: L.BatchNormalization(scale=False, name="norm")(x))
    x = x_of(5, 3, 2, 4).astype("float64")
    found = keras_gradients(keras_graph(model), [x])
    assert found.gains == {1: pytest.approx((1 / np.sqrt(x.var((0, 1, 2)) + 1e-3)).max())}


def port_of(model, run=lambda t, x: t.b(t.a(x).tanh())):
    twin, mapping = ported(model, Twin(run, a=nn.Linear(4, 5), b=nn.Linear(5, 2)).double(), "a", "b")
    return make_port(model, twin.train(), X, mapping)


def both(port):
    in_keras = keras_gradients(port.graph, port.inputs)
    return in_keras, twin_gradients(port, run(port, training=True), in_keras)


def test_the_gradients_of_a_twin(dense):
    port = port_of(dense)
    in_keras, found = both(port)
    tensors, weights = by_hand(dense, in_keras.factors[0].numpy())
    assert found.tensors.keys() == tensors.keys()
    for number, due in tensors.items():
        close(found.tensors[number], due)
    assert found.weights.keys() == {"a.weight", "a.bias", "b.weight", "b.bias"}
    for path, due in weights.items():
        close(found.weights[path.replace("/", ".").replace("kernel", "weight")], due.T)
    assert all(parameter.grad is None for parameter in port.twin.parameters())


def test_they_go_through_a_layer_that_is_not_trained(dense):
    port = port_of(dense)
    port.twin.b.requires_grad_(False)
    in_keras, found = both(port)
    _, weights = by_hand(dense, in_keras.factors[0].numpy())
    assert found.weights.keys() == {"a.weight", "a.bias"}
    close(found.weights["a.weight"], weights["a/kernel"].T)
    assert not any(parameter.requires_grad for parameter in port.twin.b.parameters())
    assert all(parameter.requires_grad for parameter in port.twin.a.parameters())


def test_where_the_graph_is_cut_there_is_none(dense):
    in_keras, found = both(port_of(dense, lambda t, x: t.b(t.a(x).tanh().detach())))
    tensors, weights = by_hand(dense, in_keras.factors[0].numpy())
    assert (found.weights["a.weight"], found.tensors[A], found.tensors[ACTIVATION]) == (None, None, None)
    close(found.tensors[B], tensors[B])
    close(found.weights["b.weight"], weights["b/kernel"].T)


def test_a_twin_that_lacks_an_output_has_none_at_all():
    model = float64_model((4,), lambda x: [L.Dense(5, name="a")(x), L.Dense(2, name="b")(x)])
    modules = {"a": nn.Linear(4, 5), "b": nn.Linear(4, 2)}
    twin, mapping = ported(model, Twin(lambda t, x: t.a(x), **modules).double(), *modules)
    _, found = both(make_port(model, twin, X, mapping))
    assert found == ({}, {})


def test_outputs_are_weighed_in_keras_order_of_axes():
    model = float64_model((3, 2, 4), lambda x: L.Conv2D(5, 1, name="a")(x))
    twin, mapping = ported(model, Twin(lambda t, x: t.a(x), a=nn.Conv2d(4, 5, 1)).double(), "a")
    x = x_of(2, 3, 2, 4).astype("float64")
    port = make_port(model, twin, x, mapping)
    in_keras, found = both(port)
    factors = in_keras.factors[0].numpy()
    close(found.weights["a.weight"][:, :, 0, 0], np.einsum("bhwi,bhwo->oi", x, factors))
    close(found.weights["a.bias"], factors.sum((0, 1, 2)))
    close(in_keras.weights["a/kernel"][0][0, 0], np.einsum("bhwi,bhwo->io", x, factors))


class NoWayBack(torch.autograd.Function):
    """A function that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        """Return the same."""
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        """Fail."""
        raise RuntimeError("there is no way back\nat all")


def test_gradients_that_cannot_be_computed_are_one_clear_error(dense):
    port = port_of(dense, lambda t, x: t.b(NoWayBack.apply(t.a(x).tanh())))
    port.twin.b.bias.requires_grad_(False)
    with pytest.raises(ParityError, match=r"its gradients cannot be computed: there is no way back$"):
        both(port)
    assert not port.twin.b.bias.requires_grad


def test_with_as_many_steps_as_features_the_output_is_weighed_in_the_order_of_its_axes():
    model = float64_model((4, 4), lambda x: L.Dense(4, name="a")(x))
    twin, mapping = ported(model, Twin(lambda twin, x: twin.a(x), a=nn.Linear(4, 4)).double(), "a")
    x = x_of(2, 4, 4).astype("float64")
    port = make_port(model, twin, x, mapping, torch.from_numpy(x))
    with unchanged(model, twin, training=True):
        in_keras = keras_gradients(port.graph, port.inputs)
        found = twin_gradients(port, run(port, training=True), in_keras)
    close(found.weights["a.weight"], in_keras.weights["a/kernel"][0].T)

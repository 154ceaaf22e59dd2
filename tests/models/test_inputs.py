"""Both models are left as they were, even by an error, and bad input is one clear error."""

from parity import ParityError, diagnose, first_divergence, trace
from parity.axes import torch_input
from tests.helpers.models import Twin, model_of, norm, ported
from tests.helpers.residual import NAMES, X, in_place, plain, residual_twin, state

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_not_even_by_an_error(error, training):
    def layers(x):
        x = L.Conv2D(4, 3, activation=L.LeakyReLU(negative_slope=0.5), activity_regularizer="l2", name="first")(x)
        return L.Dense(2, activation="tanh", name="out")(L.Flatten()(L.BatchNormalization(name="norm")(x)))

    def run(t, x):
        t.last, t.count, t.memory["x"] = x, t.count + 1, x
        t.buffer = t.buffer + x.mean()
        t.average.mul_(x.mean())
        x = t.norm(F.leaky_relu(t.first(x.mul_(1)), 0.5)) + 0 * torch.rand(1)
        if error and len(x) > 2:
            raise error("in the middle")
        return t.out(x.permute(0, 2, 3, 1).flatten(1)).tanh()

    model = model_of((8, 8, 3), layers)
    twin = Twin(run, first=nn.Conv2d(3, 4, 3), norm=norm(4), out=nn.Linear(144, 2))
    twin, mapping = ported(model, twin, "first", "norm", "out")
    twin.count, twin.memory = 0, {}
    for name in ("buffer", "average"):
        twin.register_buffer(name, torch.ones(1), persistent=False)
    for parameter in twin.parameters():
        parameter.grad = torch.ones_like(parameter)
    twin.train()
    twin.norm.eval()
    given = [torch_input(X)]
    before, buffers, x = state(model, twin), list(twin.buffers()), given[0].clone()
    if error is None:
        found = first_divergence(trace(model, twin, X, mapping, torch_x=given, training=training))
        assert (found and found.layer) == ("norm" if training else None)  # which does not train in the twin
    else:
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ParityError, match="in the middle"):
            diagnose(model, twin, X, mapping, torch_x=given, training=training)
    assert state(model, twin) == before
    assert all(one is other for one, other in zip(twin.buffers(), buffers, strict=True))
    assert (twin.buffer, twin.average, twin.count, twin.memory) == (1, 1, 0, {})
    assert torch.equal(given[0], x)
    assert not vars(given[0])


class OwnCall(keras.Model):
    """A functional model whose own call() does more than its graph."""

    def __init__(self):
        x = keras.Input((8, 8, 3))
        super().__init__(x, L.ReLU()(x))

    def call(self, x, training=None):
        """Twice what the graph computes, if the numbers are positive."""
        return 2 * super().call(x) if float(keras.ops.sum(x)) > 0 else x


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keras_model": OwnCall}, "a OwnCall has no graph"),
        ({"keras_model": lambda: keras.Sequential([L.Dense(2)])}, "a Sequential has no graph"),
        ({"torch_model": lambda: keras.Sequential([L.Dense(2)])}, "it is no torch.nn.Module"),
        ({"torch_model": lambda: residual_twin(plain).to("meta")}, "it is on meta; move it to the CPU"),
        ({"torch_model": lambda: residual_twin(plain, lazy=nn.LazyLinear(2))}, "it has lazy modules"),
        ({"torch_model": lambda: residual_twin(lambda t, x: t.out(x))}, "it stops in out: RuntimeError"),
        ({"torch_model": lambda: residual_twin(lambda t, x: plain(t, x + 0 if len(x) > 2 else x))}, "what it calls"),
        ({"x": lambda: X[..., :2]}, r"has the shape \(3, 8, 8, 2\), not \(None, 8, 8, 3\)"),
        ({"x": lambda: {"image": X}}, "no input "),
        ({"x": lambda: np.array([["a"]])}, "has no numbers, but <U1"),
        ({"torch_x": lambda: [X]}, "torch_x must be a tensor, or a list of tensors"),
    ],
)
def test_an_error_says_what_is_wrong(model, change, said):
    twin, mapping = ported(model, residual_twin(plain), *NAMES)
    arguments = {"keras_model": model, "torch_model": twin, "x": X, "mapping": mapping}
    with pytest.raises(ParityError, match=said):
        trace(**arguments | {name: make() for name, make in change.items()})


def test_gradients_that_cannot_be_computed_are_an_error(model):
    twin, mapping = ported(model, residual_twin(in_place, act=nn.ReLU(inplace=True)), *NAMES)
    twin.run = lambda t, x: plain(t, x.clone()).sigmoid_().square().add_(plain(t, x).exp().mul_(0).exp_())
    assert trace(model, twin, X, mapping) is not None

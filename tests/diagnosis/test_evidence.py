"""What is gathered of a layer that diverges, and when two tensors agree."""

from math import inf, nan

from parity.diagnosis import needed
from parity.diagnosis.evidence import agree_within, gather, run_modules
from parity.models.rounding import TIMES_NOISE
from parity.tracing.port import make_port
from parity.tracing.trace import run_and_judge
from parity.tracing.verdicts import STARTS
from tests.helpers.models import Twin, model_of, ported, x_of

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn


def layers(x):
    x = L.Conv2D(3, 1, activation="relu", name="a")(x)
    x = L.Conv2D(3, 1, name="b")(x)
    return L.Dense(2, name="c")(L.Flatten(name="flat")(L.Add(name="sum")([x, L.Conv2D(3, 1, name="side")(x)])))


def right(t, x):
    x = t.b(t.a(x).relu())
    return t.c((x + t.side(x)).flatten(1))


def diverging(plant=lambda t: None, call=right):
    """Return the port, what came of running it, and the first verdict that starts a divergence."""
    model = model_of((4, 5, 2), layers)
    sizes = {"a": (2, 3), "b": (3, 3), "side": (3, 3)}
    modules = {name: nn.Conv2d(*size, 1) for name, size in sizes.items()} | {"c": nn.Linear(60, 2)}
    twin, mapping = ported(model, Twin(call, **modules), *modules)
    with torch.no_grad():
        kernel = twin.c.weight.unflatten(1, (4, 5, 3)).permute(0, 3, 1, 2).flatten(1)
        twin.c.weight.copy_(kernel)
        plant(twin)
    port = make_port(model, twin, x_of(2, 4, 5, 2), mapping)
    run, verdicts = run_and_judge(port)
    first = next(verdict for verdict in verdicts if verdict.kind in STARTS)
    return port, run, gather(port, run, first)


def test_a_layer_that_returns_something_else():
    port, run, found = diverging(lambda t: t.b.bias.add_(1))
    assert (found.run, found.step.name, found.at_step) == (run, "b", 2)
    assert found.modules == [port.twin.b]
    assert found.value.shape == (2, 4, 5, 3)
    assert found.twin.shape == (2, 3, 4, 5)
    np.testing.assert_allclose((found.twin.movedim(1, -1) - found.value).numpy(), 1, atol=1e-5)
    assert len(found.inputs) == len(found.twin_inputs) == 1
    np.testing.assert_allclose(found.twin_inputs[0].movedim(1, -1).numpy(), found.inputs[0].numpy(), atol=1e-5)
    assert float(found.inputs[0].min()) == 0  # it is what ReLU returns
    assert found.tolerance == TIMES_NOISE * run.noise[found.step.outputs[0]]
    assert (found.flattened, found.channels_first) == (None, False)


def test_the_weights_are_those_of_all_layers_and_where_its_own_are():
    port, _, found = diverging(lambda t: t.b.bias.add_(1))
    assert {path.partition("/")[0] for path in found.weights} == {"a", "b", "c", "side"}
    kernel = port.keras_model.get_layer("b").kernel.numpy()
    np.testing.assert_array_equal(found.weights["b/kernel"].numpy(), kernel.transpose(3, 2, 0, 1))
    assert found.places == {"b/kernel": (port.twin.b, "weight"), "b/bias": (port.twin.b, "bias")}


def test_an_activation_has_no_weights():
    _, _, found = diverging(call=lambda t, x: t.c(((y := t.b(t.a(x).tanh())) + t.side(y)).flatten(1)))
    assert (found.step.name, found.places) == ("a activation", {})
    assert found.modules == []


def test_other_tensors_of_its_shape_are_those_that_it_may_have_taken():
    _, _, found = diverging(call=lambda t, x: t.c(((y := t.b(t.a(x).relu())) - t.side(y)).flatten(1)))
    assert found.step.name == "sum"
    # Neither what it takes nor what it returns is another tensor.
    assert found.others.keys() == {"a", "a activation"}
    assert all(tensor.shape == (2, 4, 5, 3) for tensor in found.others.values())
    assert not torch.equal(found.others["a"], found.others["a activation"])


def test_a_layer_whose_only_input_agrees_has_taken_no_other():
    _, _, found = diverging(lambda t: t.b.bias.add_(1))
    assert (found.step.name, found.others) == ("b", {})


def test_of_a_layer_whose_twin_takes_something_else_that_is_what_differs():
    _, run, found = diverging(call=lambda t, x: t.c(((y := t.b(t.a(x).relu())) + t.side(y + 1)).flatten(1)))
    assert found.step.name == "side"
    np.testing.assert_allclose((found.twin.movedim(1, -1) - found.value).numpy(), 1, atol=1e-5)
    assert torch.equal(found.value, found.inputs[0])
    assert found.tolerance == TIMES_NOISE * run.noise[found.step.inputs[0]]
    assert {"a", "a activation", "sum"} <= found.others.keys()


def test_of_a_merge_it_is_the_input_that_differs_and_the_other_may_be_meant():
    _, _, found = diverging(call=lambda t, x: t.c(((y := t.b(t.a(x).relu())) + 3 * t.side(y)).flatten(1)))
    assert found.step.name == "sum"
    assert len(found.inputs) == 2
    assert len(found.twin_inputs) == 2


def test_the_models_return_is_no_step():
    _, _, found = diverging(call=lambda t, x: 2 * right(t, x))
    assert (found.step, found.inputs, found.twin_inputs, found.modules) == (None, [], [], [])
    np.testing.assert_allclose(found.twin.numpy(), 2 * found.value.numpy(), rtol=1e-4, atol=1e-5)


def test_features_that_are_flattened_channels_first_are_told():
    _, _, found = diverging(lambda t: t.c.bias.add_(1))
    assert (found.step.name, found.flattened, found.channels_first) == ("c", (4, 5, 3), True)


def test_of_a_large_model_the_nearest_of_the_others_are_kept(monkeypatch):
    monkeypatch.setattr(needed, "STORED_NUMBERS", 2 * 4 * 5 * 3)
    _, _, found = diverging(call=lambda t, x: t.c(((y := t.b(t.a(x).relu())) - t.side(y)).flatten(1)))
    assert found.others.keys() == {"a activation"}


def test_inputs_of_the_model_are_called_by_their_place():
    starts = [keras.Input((4,)) for _ in range(2)]
    model = keras.Model(starts, [L.Dense(4, name=name)(start) for name, start in zip("de", starts, strict=True)])
    twin = Twin(lambda t, x, y: (t.d(y), t.e(y)), d=nn.Linear(4, 4), e=nn.Linear(4, 4))
    twin, mapping = ported(model, twin, "d", "e")
    port = make_port(model, twin, [x_of(2, 4), x_of(2, 4, seed=1)], mapping)
    run, verdicts = run_and_judge(port)
    found = gather(port, run, next(verdict for verdict in verdicts if verdict.kind in STARTS))
    assert found.step.name == "d"
    assert {name for name in found.others if name.startswith("input")} == {"input 2"}
    assert torch.equal(found.others["input 2"], found.twin)


def evidence():
    return diverging(lambda t: t.b.bias.add_(1))[2]


def test_agreeing_is_with_keras_and_explaining_is_of_the_twin():
    found = evidence()
    moved = found.value + 1
    assert found.agrees(found.value.movedim(-1, 1))
    assert not found.agrees(found.twin)
    assert found.explains(moved)
    assert not found.explains(found.value)
    assert not found.agrees(None)
    assert not found.explains(None)


V = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("value", "twin", "tolerance", "agrees"),
    [
        (V, V.movedim(-1, 1), 0.0, True),
        (V, V + 0.5, 0.5, True),
        (V, V + 0.5, 0.49, False),
        (V, V[:1], 99.0, False),
        (torch.tensor([1.0, inf]), torch.tensor([1.0, inf]), 0.0, True),
        (torch.tensor([1.0, inf]), torch.tensor([1.0, -inf]), 9.0, False),
        (torch.tensor([1.0, inf]), torch.tensor([1.0, 2.0]), 9.0, False),
        (torch.tensor([1.0, nan]), torch.tensor([1.0, nan]), 9.0, False),
    ],
)
def test_two_tensors_agree_in_one_of_the_ways_to_align_them(value, twin, tolerance, agrees):
    assert agree_within(value, twin, tolerance) is agrees


def test_features_may_be_channels_first_and_one_may_have_a_border():
    features = V.movedim(-1, 1).flatten(1)
    assert agree_within(V.flatten(1), features, 0.0, flattened=(3, 4))
    assert not agree_within(V.flatten(1), features, 0.0)
    bordered = nn.functional.pad(V.movedim(-1, 1), (1, 1))
    assert agree_within(V, bordered, 0.0, window=True)
    assert not agree_within(V, bordered, 0.0)


class Two(nn.Module):
    """A module that returns no tensor by itself."""

    def forward(self, x):
        """Return it twice."""
        return x, x


def test_modules_are_run_one_after_the_other():
    double, add = nn.Linear(2, 2, bias=False), nn.ReLU()
    with torch.no_grad():
        double.weight.copy_(-2 * torch.eye(2))
    x = torch.tensor([[1.0, -3.0]])
    assert run_modules([double, add], [x]).tolist() == [[0, 6]]
    assert run_modules([add, double], [x]).tolist() == [[-2, 0]]
    assert run_modules([nn.Bilinear(2, 2, 3)], [x, x]).shape == (1, 3)
    assert not run_modules([double], [x]).requires_grad


def test_what_they_take_is_left_as_it_is_and_so_are_the_random_numbers():
    x, state = torch.tensor([[1.0, -3.0]]), torch.get_rng_state()
    run_modules([nn.ReLU(inplace=True), nn.Dropout(0.5)], [x])
    assert x.tolist() == [[1, -3]]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("modules", "inputs"),
    [
        ([], [V]),
        ([nn.ReLU()], []),
        ([nn.Linear(5, 2)], [V.float()]),
        ([Two()], [V]),
        ([nn.Embedding(3, 2)], [V.long()]),
    ],
    ids=["no module", "no input", "another shape", "no tensor", "no such word"],
)
def test_nothing_comes_of_what_cannot_be_run(modules, inputs):
    assert run_modules(modules, inputs) is None

"""Both models run side by side: what is compared, how near it is, what is stored, and what is forgotten."""

import weakref
from math import inf

from parity import ParityError
from parity.models.alignment import distance
from parity.models.rounding import TIMES_NOISE
from parity.tracing import side_by_side
from parity.tracing.pairing import Spot
from parity.tracing.port import make_port
from parity.tracing.side_by_side import run, tensors_at
from tests.helpers.models import Twin, float64_model, norm, ported, snapshot, x_of

import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

SIZES = {"a": (4, 6), "b": (6, 5), "c": (5, 2)}


def three_dense(x):
    x = L.ReLU(name="relu")(L.Dense(6, name="a")(x))
    return L.Dense(2, name="c")(L.Dense(5, name="b")(x))


@pytest.fixture(scope="module")
def dense():
    return float64_model((4,), three_dense)


def twin_of(dense, run=lambda t, x: t.c(t.b(t.a(x).relu())), training=False):
    twin, mapping = ported(
        dense, Twin(run, **{name: nn.Linear(*size) for name, size in SIZES.items()}).double(), *SIZES
    )
    return make_port(dense, twin.train(training), x_of(3, 4).astype("float64"), mapping)


def by_hand(port):
    """Return what each layer returns, computed by NumPy."""
    kernel, offset, *rest = [weight.numpy() for weight in port.keras_model.weights]
    a = port.inputs[0] @ kernel + offset
    b = np.maximum(a, 0) @ rest[0] + rest[1]
    return {1: a, 2: np.maximum(a, 0), 3: b, 4: b @ rest[2] + rest[3]}


def test_all_that_both_models_compute_is_compared(dense):
    port = twin_of(dense)
    found = run(port)
    assert not found.training
    assert found.inputs.keys() == {(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)}
    assert found.outputs.keys() == {1, 2, 3, 4}
    assert all(one.agrees for one in [*found.inputs.values(), *found.outputs.values()])
    assert found.shapes == {0: (3, 4), 1: (3, 6), 2: (3, 6), 3: (3, 5), 4: (3, 2)}
    assert found.outputs[3].shape == (3, 5)
    assert found.outputs[2].spot == Spot(1, "out", 0)
    assert found.inputs[2, 0].spot in (Spot(1, "out", 0), Spot(2, "in", 0))
    assert (found.stored, found.flattened) == ({}, {})
    assert [call.name for call in found.calls] == ["a", "relu", "b", "c"]
    values = by_hand(port)
    for number, value in values.items():
        size = np.finfo(float).eps * np.abs(value).max()
        assert size * 0.999 <= found.noise[number] < 100 * size
        assert found.outputs[number].tolerance == TIMES_NOISE * found.noise[number]
    value, returned = found.returned[0]
    np.testing.assert_allclose(value.numpy(), values[4], atol=1e-12)
    np.testing.assert_allclose(returned.numpy(), values[4], atol=1e-12)


def test_the_difference_is_the_largest_and_only_what_diverges_first_is_stored(dense):
    port = twin_of(dense)
    with torch.no_grad():
        port.twin.b.bias[2] += 0.5
        port.twin.b.bias[3] -= 0.25
    found = run(port)
    assert found.outputs[3].difference == pytest.approx(0.5, abs=1e-12)
    assert [number for number, one in found.outputs.items() if not one.agrees] == [3, 4]
    assert [one.agrees for _, one in sorted(found.inputs.items())] == [True, True, True, False, False]
    assert found.stored.keys() == {3}  # the last layer's input differs: what it returns says nothing new
    value, twin = found.stored[3]
    np.testing.assert_allclose(value.numpy(), by_hand(port)[3], atol=1e-12)
    np.testing.assert_allclose((twin - value).numpy(), [[0, 0, 0.5, -0.25, 0]] * 3, atol=1e-12)


@pytest.mark.parametrize(("room", "stored"), [(14, 0), (15, 1), (29, 1), (30, 2)])
def test_no_more_is_stored_than_there_is_room_for(dense, monkeypatch, room, stored):
    """Two tensors of 15 numbers diverge."""
    model = float64_model((4,), lambda x: [L.Dense(5, name=name)(x) for name in ("a", "b")])
    modules = {name: nn.Linear(4, 5) for name in ("a", "b")}
    twin, mapping = ported(model, Twin(lambda t, x: (t.a(x), t.b(x)), **modules).double(), *modules)
    with torch.no_grad():
        twin.a.bias.add_(1)
        twin.b.bias.add_(1)
    monkeypatch.setattr(side_by_side, "STORED_NUMBERS", room)
    found = run(make_port(model, twin, x_of(3, 4), mapping))
    assert len(found.stored) == stored


def test_shapes_that_do_not_fit_are_infinitely_far_apart(dense):
    port = twin_of(dense, lambda t, x: t.c(t.b(t.a(x).relu()))[:, :1])
    found = run(port)
    assert found.inputs[4, 0].difference == inf
    assert found.inputs[4, 0].note == "shapes do not fit"
    assert found.inputs[4, 0].shape == (3, 1)


def test_of_several_consumers_the_nearest_counts_for_what_the_twin_has_no_call_for():
    model = float64_model((4,), lambda x: [L.Dense(4, name=n)(y) for y in [L.ReLU(name="relu")(x)] for n in "ab"])
    modules = {name: nn.Linear(4, 4) for name in "ab"}
    twin = Twin(lambda t, x: (t.a(torch.special.expit(x)), t.b(torch.cumsum(x, 1))), **modules).double()
    twin, mapping = ported(model, twin, *modules)
    port = make_port(model, twin, x_of(3, 4), mapping)
    found = run(port)
    x = port.inputs[0]
    relu, far, near = np.maximum(x, 0), np.cumsum(x, 1), 1 / (1 + np.exp(-x))
    due = {"a": np.abs(relu - near).max(), "b": np.abs(relu - far).max()}
    steps = {step.name: index for index, step in enumerate(found.graph.steps)}
    assert {name: found.inputs[steps[name], 0].difference for name in "ab"} == pytest.approx(due)
    assert due["a"] < due["b"]
    assert found.outputs[found.graph.steps[0].outputs[0]].difference == pytest.approx(due["a"])


def test_channels_first_and_flattened_features_are_aligned():
    model = float64_model((4, 3, 2), lambda x: L.Dense(2, name="d")(L.Flatten(name="f")(L.Conv2D(3, 1, name="c")(x))))
    modules = {"c": nn.Conv2d(2, 3, 1), "d": nn.Linear(36, 2)}
    twin = Twin(lambda t, x: t.d(t.c(x).flatten(1)), **modules).double()
    twin, mapping = ported(model, twin, *modules)
    kernel = twin.d.weight.detach().unflatten(1, (4, 3, 3)).permute(0, 3, 1, 2).flatten(1)
    twin.d.weight.data.copy_(kernel)
    found = run(make_port(model, twin, x_of(3, 4, 3, 2), mapping))
    assert found.flattened == {2: (4, 3, 3)}
    assert found.outputs[1].agrees
    assert (found.outputs[1].note, found.outputs[1].shape) == ("", (3, 3, 4, 3))
    assert found.inputs[2, 0].agrees
    assert found.inputs[2, 0].note == "flattened channels first"
    assert found.outputs[3].agrees


def dropping(x):
    return L.Dense(2, name="b")(L.Dropout(0.5, name="drop")(L.BatchNormalization(name="norm")(x)))


def test_in_training_nothing_is_dropped_and_all_stays_as_it_was():
    model = float64_model((4,), dropping)

    def call(t, x):
        return t.b(nn.functional.dropout(t.norm(x), 0.5, t.training))

    twin = Twin(call, norm=norm(4, nn.BatchNorm1d), b=nn.Linear(4, 2)).double()
    twin, mapping = ported(model, twin, "norm", "b")
    port = make_port(model, twin, x_of(9, 4).astype("float64"), mapping)
    before, state = (snapshot(model), snapshot(twin)), torch.get_rng_state()
    plain, trained = run(port), run(port, training=True)
    assert trained.training
    assert all(one.agrees for found in (plain, trained) for one in found.outputs.values())
    assert (snapshot(model), snapshot(twin)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in twin.modules())
    x = port.inputs[0]
    layer = model.get_layer("norm")
    due = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) * layer.gamma.numpy() + layer.beta.numpy()
    np.testing.assert_allclose(tensors_at(port, trained, 0).keras[1].numpy(), due, atol=1e-10)
    np.testing.assert_allclose(tensors_at(port, trained, 0).outputs[1].numpy(), due, atol=1e-10)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(tensors_at(port, plain, 0).keras[1].numpy(), due, atol=1e-10)


def test_a_twin_that_calls_others_when_it_runs_again_is_refused(dense):
    def fickle(t, x):
        t.count = getattr(t, "count", 0) + len(x)
        x = t.a(x)
        return t.c(t.b(x.relu() if len(x) == 2 else x.tanh()))

    with pytest.raises(ParityError, match="what it calls depends on the number of examples"):
        run(twin_of(dense, fickle))


def chain(depth):
    def layers(x):
        for number in range(depth):
            x = L.Dense(4, name=f"d{number}")(x)
        return x

    model = float64_model((4,), layers)
    names = [f"d{number}" for number in range(depth)]
    twin = nn.Sequential()
    for name in names:
        twin.add_module(name, nn.Linear(4, 4))
    twin, mapping = ported(model, twin.double(), *names)
    return make_port(model, twin, x_of(3, 4).astype("float64"), mapping)


def test_a_keras_tensor_is_forgotten_once_it_is_compared(monkeypatch):
    held = []

    class Spying(side_by_side.Comparer):
        def enter(self, *more):
            held.append(len(self.values))
            super().enter(*more)

        def result(self):
            assert self.values == {}
            return super().result()

    monkeypatch.setattr(side_by_side, "Comparer", Spying)
    run(chain(12))
    assert len(held) == 25
    assert max(held) <= 2


def test_a_tensor_of_the_twin_is_forgotten_once_it_is_compared():
    port, made, alive = chain(12), [], []

    def hook(module, x, y):
        alive.append(sum(one() is not None for one in made))
        made.append(weakref.ref(y))

    for module in port.twin:
        module.register_forward_hook(hook)
    run(port)
    assert len(alive) == 24
    assert max(alive) <= 2


@pytest.mark.parametrize(("step", "inputs", "outputs"), [(0, [0], [1]), (2, [2], [3]), (4, [4], [])])
def test_tensors_around_a_step(dense, step, inputs, outputs):
    port = twin_of(dense)
    with torch.no_grad():
        port.twin.b.bias[2] += 0.5
    found = run(port)
    before = snapshot(port.twin), snapshot(dense)
    around = tensors_at(port, found, step)
    assert around.keras.keys() == {*inputs, *outputs}
    values = by_hand(port) | {0: port.inputs[0]}
    for number, tensor in around.keras.items():
        np.testing.assert_allclose(tensor.numpy(), values[number], atol=1e-12)
    assert around.inputs.keys() == {0}
    assert around.outputs.keys() == {*outputs}
    assert distance(around.keras[inputs[0]], around.inputs[0]) == found.inputs[step, 0].difference
    for number in outputs:
        assert distance(around.keras[number], around.outputs[number]) == found.outputs[number].difference
    assert (snapshot(port.twin), snapshot(dense)) == before


def test_other_tensors_that_are_wanted_come_too_and_the_twin_stops_at_the_step(dense):
    port = twin_of(dense)
    found = run(port)
    ran = []
    for name, module in port.twin.named_children():
        module.register_forward_hook(lambda module, x, y, name=name: ran.append(name))
    around = tensors_at(port, found, 2, wanted=[4, 1])
    assert around.keras.keys() == {1, 2, 3, 4}
    assert (around.inputs.keys(), around.outputs.keys()) == ({0}, {3})
    np.testing.assert_allclose(around.keras[4].numpy(), by_hand(port)[4], atol=1e-12)
    assert "a" in ran
    assert "c" not in ran


def test_keras_too_runs_no_further_than_it_must(dense, monkeypatch):
    port = twin_of(dense)
    found = run(port)
    steps = []

    def walk(*args, **more):
        for one in side_by_side_walk(*args, **more):
            steps.append(one[0] and one[0].name)
            yield one

    side_by_side_walk = side_by_side.walk
    monkeypatch.setattr(side_by_side, "walk", walk)
    tensors_at(port, found, 1)
    assert steps == [None, "a", "relu"]


def test_what_is_kept_of_the_twin_is_a_copy():
    """The next call overwrites what the layer returned."""
    model = float64_model((4,), lambda x: L.Dense(2, name="b")(L.ReLU(name="relu")(L.Dense(4, name="a")(x))))
    modules = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 2)}
    twin = Twin(lambda t, x: t.b(t.a(x).relu_()), **modules).double()
    twin, mapping = ported(model, twin, *modules)
    with torch.no_grad():
        twin.a.bias.sub_(1)
    port = make_port(model, twin, x_of(3, 4).astype("float64"), mapping)
    found = run(port)
    value, stored = found.stored[1]
    np.testing.assert_allclose((value - stored).numpy(), np.ones((3, 4)), atol=1e-12)
    assert float(tensors_at(port, found, 0).outputs[1].min()) < 0
    assert float(tensors_at(port, found, 1).inputs[0].min()) < 0


def counted(monkeypatch):
    """Return a list that grows by the number of a Keras tensor each time that one is compared anew."""
    compared = []

    class Counting(side_by_side.Comparer):
        def closest(self, number, *others):
            compared.append(number)
            return super().closest(number, *others)

    monkeypatch.setattr(side_by_side, "Comparer", Counting)
    return compared


def test_what_several_layers_take_is_compared_once(monkeypatch):
    model = float64_model((4,), lambda x: L.Add()([L.Dense(4, name=name)(x) for name in "abc"]))
    modules = {name: nn.Linear(4, 4) for name in "abc"}
    twin, mapping = ported(model, Twin(lambda t, x: t.a(x) + t.b(x) + t.c(x), **modules).double(), *modules)
    compared = counted(monkeypatch)
    run(make_port(model, twin, x_of(3, 4), mapping))
    assert compared.count(0) == 1


def test_what_one_call_returns_and_the_next_takes_is_compared_once(monkeypatch):
    compared = counted(monkeypatch)
    run(chain(5))
    assert sorted(compared) == list(range(6))


def test_what_was_overwritten_in_between_is_compared_again():
    model = float64_model((4,), lambda x: [L.Dense(4, name=name)(x) for name in "ab"])

    def call(t, x):
        first = t.a(x)
        x.add_(1)
        return first, t.b(x)

    twin, mapping = ported(model, Twin(call, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double(), "a", "b")
    found = run(make_port(model, twin, x_of(3, 4), mapping))
    steps = {step.name: index for index, step in enumerate(found.graph.steps)}
    assert found.inputs[steps["a"], 0].agrees
    assert found.inputs[steps["b"], 0].difference == pytest.approx(1)


def test_a_keras_tensor_that_nothing_is_compared_with_is_not_held(monkeypatch):
    def layers(x):
        return L.Dense(4, name="b")(L.ReLU(name="second")(L.ReLU(name="first")(L.Dense(4, name="a")(x))))

    model = float64_model((4,), layers)
    twin = Twin(lambda t, x: t.b(t.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    twin, mapping = ported(model, twin, "a", "b")
    left = []

    class Spying(side_by_side.Comparer):
        def result(self):
            left.extend(self.values)
            return super().result()

    monkeypatch.setattr(side_by_side, "Comparer", Spying)
    found = run(make_port(model, twin, x_of(3, 4), mapping))
    assert found.graph.steps[1].outputs[0] not in found.outputs
    assert left == []


def test_what_the_model_returns_is_kept_beside_what_the_twin_returns(dense):
    port = twin_of(dense, lambda t, x: 1 + t.c(t.b(t.a(x).relu())))
    value, returned = run(port).returned[0]
    np.testing.assert_allclose((returned - value).numpy(), np.ones((3, 2)), atol=1e-12)


def test_misfits_are_taken_back(dense, monkeypatch):
    monkeypatch.setattr(side_by_side, "without_misfits", lambda found: found._replace(outputs={}))
    assert run(twin_of(dense)).outputs == {}

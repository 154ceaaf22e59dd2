"""A mistake in a step that is not seen is found behind it: another function is put in the step's place."""

import sys

from parity import diagnose
from parity.diagnosis import elsewhere
from parity.diagnosis.diagnose import ELSEWHERE
from tests.helpers.models import Twin, float64_model, model_of, norm, ported, x_of

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from keras import ops
from torch import nn

MEAN, VARIANCE = (0.5, 0.25, -1.0), (0.25, 2.25, 4.0)


def named(tensor, name):
    """Give the operation that returns a Keras tensor a name; return the tensor."""
    tensor._keras_history.operation.name = name
    return tensor


def fed(x):
    x = L.Rescaling(0.5, name="rescale")(x)
    return L.Conv2D(2, 3, name="conv")(L.Normalization(mean=MEAN, variance=VARIANCE, name="norm")(x))


def fed_with(change):
    def run(t, x):
        mean, variance = (x.new_tensor(numbers)[:, None, None] for numbers in (MEAN, VARIANCE))
        return t.conv(change(x, mean, variance))

    return run


def unit_twice(x):
    x = L.Dense(4, name="dense")(x)
    x = L.Lambda(lambda x: x / ops.norm(x, axis=-1, keepdims=True), name="unit")(x)
    return L.Dense(2, name="out")(L.Lambda(lambda x: x * x - x, name="square")(x))


def by_hand(x):
    """A swish and a norm, both in single operations, so that no step is seen but the last."""
    x = L.Dense(5, name="dense")(x)
    x = named(x * named(ops.sigmoid(x), "gate"), "swish")
    size = named(ops.sqrt(named(ops.sum(named(ops.square(x), "squares"), -1, keepdims=True), "energy")), "size")
    return L.Dense(3, name="out")(named(x / size, "unit"))


def pooled(x):
    x = L.MaxPooling2D(2, name="pool")(L.Conv2D(4, 3, padding="same", name="conv")(x))
    x = L.Lambda(lambda x: ops.transpose(x, (0, 2, 1, 3)), name="turned")(x)
    return L.Conv2D(2, 1, name="out")(x)


def bordered(x):
    x = L.Activation("relu", name="relu")(L.Conv2D(4, 3, padding="same", name="conv")(x))
    return L.Conv2D(2, 3, name="out")(L.ZeroPadding2D(1, name="pad")(x))


def joined(x):
    a, b = (L.Conv2D(3, 1, name=name)(x) for name in "ab")
    x = L.Concatenate(name="joined")([L.Flatten(name="flat_a")(a), L.Flatten(name="flat_b")(b)])
    return L.Dense(2, name="out")(x)


def dense(t, run):
    return t.out(run(t.dense))


# The Keras layers; the sizes of the twin's modules; the shape of the input; the twin with a mistake; what is said.
CASES = {
    "divided by the variance": (
        (5, 6, 3),
        fed,
        {"conv": nn.Conv2d(3, 2, 3)},
        fed_with(lambda x, mean, variance: (x / 2 - mean) / variance),
        "norm (div()): its inputs agree, its outputs do not\n"
        "  input scaled (divided by the variance, not by its root, the standard deviation): see the cheat sheet",
    ),
    "not rescaled": (
        (5, 6, 3),
        fed,
        {"conv": nn.Conv2d(3, 2, 3)},
        fed_with(lambda x, mean, variance: (x - mean) / variance.sqrt()),
        "rescale (sub()): its inputs agree, its outputs do not\n"
        "  input scaled (its input as it is, not 0.5 times its input): see the cheat sheet",
    ),
    "neither of both": (
        (5, 6, 3),
        fed,
        {"conv": nn.Conv2d(3, 2, 3)},
        fed_with(lambda x, mean, variance: x),
        "norm (not found in the twin): all that was seen before it agrees, its outputs do not\n"
        "  input scaled (its input as it is, neither rescaled nor normalized): see the cheat sheet",
    ),
    "scaled for another model": (
        (5, 6, 3),
        fed,
        {"conv": nn.Conv2d(3, 2, 3)},
        fed_with(lambda x, mean, variance: (x - 0.25) / 0.5),
        "norm (div()): its inputs agree, its outputs do not\n"
        "  input scaled (its input times 2 plus -0.5, not times (1, 0.3333, 0.25) plus (-1, -0.1667, 0.5)): "
        "see the cheat sheet",
    ),
    "the norm of the whole batch": (
        (6,),
        unit_twice,
        {"dense": nn.Linear(6, 4), "out": nn.Linear(4, 2)},
        lambda t, x: t.out((h := (y := t.dense(x)) / y.norm()) * (h - 1)),
        "unit (not found in the twin): its inputs agree, its outputs do not\n"
        "  axis (the L2 norm is along (0, 1), all of the batch together, not (1,)): see the cheat sheet",
    ),
    "another activation in single operations": (
        (6,),
        by_hand,
        {"dense": nn.Linear(6, 5), "out": nn.Linear(5, 3)},
        lambda t, x: t.out(F.normalize(F.gelu(t.dense(x)))),
        "swish (not found in the twin): its inputs agree, its outputs do not\n"
        "  another activation (gelu, not silu): see the cheat sheet",
    ),
    "no norm, where it is in single operations": (
        (6,),
        by_hand,
        {"dense": nn.Linear(6, 5), "out": nn.Linear(5, 3)},
        lambda t, x: t.out(F.silu(t.dense(x))),
        "unit (not found in the twin): all that was seen before it agrees, its outputs do not\n"
        "  normalization missing (by the L2 norm along (1,)): see the cheat sheet",
    ),
    "a pooling that is not seen": (
        (6, 8, 3),
        pooled,
        {"conv": nn.Conv2d(3, 4, 3, padding=1), "out": nn.Conv2d(4, 2, 1)},
        lambda t, x: t.out(F.lp_pool2d(t.conv(x), 1, 2).mT / 4),
        None,
    ),
    "no activation before a border that the convolution adds": (
        (6, 8, 3),
        bordered,
        {"conv": nn.Conv2d(3, 4, 3, padding=1), "out": nn.Conv2d(4, 2, 3, padding=1)},
        lambda t, x: t.out(t.conv(x)),
        "relu (not found in the twin): its inputs agree, its outputs do not\n"
        "  activation missing (relu): see the cheat sheet",
    ),
    "flattened channels first before they are joined": (
        (3, 4, 2),
        joined,
        {"a": nn.Conv2d(2, 3, 1), "b": nn.Conv2d(2, 3, 1), "out": nn.Linear(72, 2)},
        lambda t, x: t.out(torch.cat([t.a(x).flatten(1), t.b(x).flatten(1)], 1)),
        "flat_a (flatten()): its inputs agree, its outputs do not\n"
        "  flatten order (axes (2, 0, 1) in place of (0, 1, 2)): notebook 06",
    ),
    "one of them": (
        (3, 4, 2),
        joined,
        {"a": nn.Conv2d(2, 3, 1), "b": nn.Conv2d(2, 3, 1), "out": nn.Linear(72, 2)},
        lambda t, x: t.out(torch.cat([t.a(x).permute(0, 2, 3, 1).flatten(1), t.b(x).flatten(1)], 1)),
        "flat_b (flatten()): its inputs agree, its outputs do not\n"
        "  flatten order (axes (2, 0, 1) in place of (0, 1, 2)): notebook 06",
    ),
}


def both(shape, layers, modules, run):
    model = float64_model(shape, layers)
    twin = Twin(run, **{name: module.double() for name, module in modules.items()})
    twin, mapping = ported(model, twin, *modules)
    return model, twin, x_of(3, *shape).astype("float64"), mapping


@pytest.mark.parametrize("case", CASES)
def test_the_step_is_named_and_what_it_does_otherwise(case):
    shape, layers, modules, run, said = CASES[case]
    found = diagnose(*both(shape, layers, modules, run))
    if said is not None:
        assert "\n".join(str(found).splitlines()[:2]) == said  # what follows is where the twin calls it
    else:
        assert found.divergence.layer == "pool"
        assert [cause.cause for cause in found.causes] == ["another pooling"]


def gated_channels_first(x):
    x = L.BatchNormalization(axis=1, name="a")(x)
    x = named(x * named(ops.relu6(x + 3.0) / 6, "gate"), "gated")
    return L.BatchNormalization(axis=1, name="b")(x)


def pooled_channels_first(x):
    x = L.BatchNormalization(axis=1, name="a")(x)
    size = named(ops.sqrt(named(ops.sum(named(x * x, "squares"), (2, 3), keepdims=True), "energy")), "size")
    return L.BatchNormalization(axis=1, name="b")(named(x * size, "scaled"))


@pytest.mark.parametrize(
    ("layers", "run", "layer", "said"),
    [
        (
            gated_channels_first,
            lambda t, x: t.b((y := t.a(x)) * y.sigmoid()),
            "gate",
            "another activation: sigmoid, not hard_sigmoid",
        ),
        (
            pooled_channels_first,
            lambda t, x: t.b((y := t.a(x)) * y.square().sum((1, 3), keepdim=True).sqrt()),
            "energy",
            "axis: the sum along (1, 3), not (2, 3)",
        ),
    ],
)
def test_axes_are_those_of_keras_where_it_has_the_channels_first(layers, run, layer, said):
    model, twin, x, mapping = both((3, 5, 6), layers, {"a": norm(3), "b": norm(3)}, run)
    found = diagnose(model, twin, x, mapping)
    assert [f"{cause.cause}: {cause.detail}" for cause in found.causes] == [said]
    assert found.divergence.layer == layer


def long(x):
    x = L.Dense(4, name="dense")(x)
    for number in range(30):
        x = named(ops.tanh(named(x + 0.1, f"plus_{number}")), f"tanh_{number}")
    return L.Dense(2, name="out")(x)


def strange(t, x):
    x = t.dense(x)
    for _ in range(30):
        x = (x + 0.1).tanh() ** 3
    return t.out(x * x.sum())


def test_a_mistake_that_is_not_known_is_given_up_soon(monkeypatch):
    runs, run_step = [], elsewhere.run_step
    monkeypatch.setattr(elsewhere, "run_step", lambda *given: runs.append(1) or run_step(*given))
    found = diagnose(*both((5,), long, {"dense": nn.Linear(5, 4), "out": nn.Linear(4, 2)}, strange))
    assert found.causes == []
    assert len(runs) <= 2 * elsewhere._TIMES_RUNS * 62
    assert "not all was tried: of 24 functions before" in str(found)


def test_both_models_run_a_few_times_more_at_most(monkeypatch):
    module = sys.modules["parity.diagnosis.diagnose"]
    runs, tensors_at = [], module.tensors_at
    monkeypatch.setattr(module, "tensors_at", lambda *given: runs.append(1) or tensors_at(*given))
    diagnose(*both((5,), long, {"dense": nn.Linear(5, 4), "out": nn.Linear(4, 2)}, strange))
    assert 1 <= len(runs) <= 2 + elsewhere._MOST_TARGETS


def test_of_what_is_tried_elsewhere_nothing_changes_the_models():
    model, twin, x, mapping = both(*CASES["divided by the variance"][:4])
    before = [weight.numpy() for weight in model.weights], {k: v.clone() for k, v in twin.state_dict().items()}
    diagnose(model, twin, x, mapping)
    assert all(map(np.array_equal, before[0], [weight.numpy() for weight in model.weights]))
    assert all(torch.equal(value, before[1][key]) for key, value in twin.state_dict().items())
    assert len(ELSEWHERE) == len(set(ELSEWHERE))


def branches(x):
    x = L.ReLU(name="relu1")(L.BatchNormalization(name="bn1")(L.Conv2D(6, 3, padding="same", name="conv1")(x)))
    a, b = (
        L.Activation("relu", name=f"relu{n}")(L.BatchNormalization(name=f"bn{n}")(L.Conv2D(5, 1, name=f"conv{n}")(x)))
        for n in (2, 3)
    )
    return L.Conv2D(2, 1, name="last")(L.Concatenate(name="cat")([a, b]))


@pytest.mark.parametrize(
    ("relu", "said"),
    [
        (
            lambda a, b: [a, b],
            "its input 1 is the output of bn2, without relu2; its input 2 is the output of bn3, without relu3",
        ),
        (lambda a, b: [a.relu(), b], "it takes the output of bn3"),
    ],
)
def test_of_two_inputs_that_are_wrong_both_are_named(relu, said):
    def run(t, x):
        x = t.bn1(t.conv1(x)).relu()
        a, b = t.bn2(t.conv2(x)), t.bn3(t.conv3(x))
        a.relu(), b.relu()  # called, and not used
        return t.last(torch.cat(relu(a, b), 1))

    model = model_of((6, 5, 3), branches)
    sizes = {"conv1": (3, 6, 3, 1, 1), "conv2": (6, 5, 1), "conv3": (6, 5, 1), "last": (10, 2, 1)}
    modules = {name: nn.Conv2d(*size) for name, size in sizes.items()} | {
        "bn1": norm(6),
        "bn2": norm(5),
        "bn3": norm(5),
    }
    twin, mapping = ported(model, Twin(run, **modules), *modules)
    found = diagnose(model, twin, x_of(2, 6, 5, 3), mapping)
    assert found.divergence.layer == "cat"
    assert [(cause.cause, cause.detail) for cause in found.causes] == [("another skip", said)]


def test_a_layer_that_was_never_filled_has_one_cause():
    def layers(x):
        x = L.BatchNormalization(name="norm")(L.Conv2D(4, 1, name="conv")(x))
        return L.Conv2D(4, 1, name="other")(x)

    modules = {"conv": nn.Conv2d(3, 4, 1), "norm": norm(4), "other": nn.Conv2d(4, 4, 1)}
    model = model_of((6, 5, 3), layers)
    twin, mapping = ported(model, Twin(lambda t, x: t.other(t.norm(t.conv(x))), **modules), *modules)

    def said():
        return [f"{cause.cause}: {cause.detail}" for cause in diagnose(model, twin, x_of(2, 6, 5, 3), mapping).causes]

    right = {key: value.clone() for key, value in twin.state_dict().items()}
    twin.norm.reset_parameters()
    assert said() == [
        "weights hold other numbers: gamma, beta, moving_mean and moving_variance are 1 and 0 throughout, not moved"
    ]
    twin.load_state_dict(right)
    twin.norm.reset_running_stats()
    assert [one.split(":")[0] for one in said()] == ["statistics left at 0 and 1"]
    twin.load_state_dict(right)
    torch.manual_seed(0)
    twin.other.reset_parameters()
    (one,) = said()
    assert one.startswith("weights hold other numbers: kernel and bias have nothing in common with any weight")
    assert one.endswith(", not moved")
    twin.load_state_dict(right)
    with torch.no_grad():
        twin.other.weight.mul_(1.1), twin.other.bias.copy_(twin.other.bias.flip(0))
    assert all("not moved" not in one for one in said())
    assert isinstance(model, keras.Model)

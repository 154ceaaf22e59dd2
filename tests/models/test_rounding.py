"""The noise is that of rounding: what is off by rounding raises no alarm, however it falls."""

import copy

from course.small_models import fill_scaled
from parity import first_divergence, trace
from parity.models import keras_values
from parity.models.keras_graph import keras_graph
from parity.models.keras_values import walk
from tests.helpers.models import Twin, in_float64, model_of, ported, x_of
from tests.helpers.residual import NAMES, plain, residual, residual_twin

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from keras import ops
from torch import nn


@pytest.mark.parametrize("size", [12, 160])
def test_the_noise_is_that_of_rounding(size):
    """Of rounding that is the same on every processor: of each tensor to float32, and of each sum of the pooling."""
    model = model_of((size, size, 3), residual)
    twin, mapping = ported(model, residual_twin(plain), *NAMES)
    exact = in_float64(model)
    exact.set_weights(model.get_weights())
    x = x_of(2, size, size, 3)
    traced = trace(model, twin, x, mapping).set_index("layer")
    rounded = walk(keras_graph(exact), [x.astype("float64")], perturb=lambda tensor, *how: in_float32(tensor))
    next(rounded)
    for step, (taken, *_), (value,) in rounded:
        error = np.abs(value.perturbed - value.exact).max()
        if step.name == "pool":
            pixels = np.reshape(taken.exact, (2, size**2, 4)).astype("float32")
            error = np.abs(np.cumsum(pixels, axis=1)[:, -1] / size**2 - value.exact).max()
        assert 0.1 < traced.noise[step.name] / error < 60, step.name
        if step.name == "pool":
            break


def in_float32(tensor):
    return ops.cast(ops.cast(tensor, "float32"), tensor.dtype)


@pytest.mark.parametrize("where", ["own", "layer"])
def test_the_softplus_of_pytorch_which_is_the_identity_from_20_on_raises_no_alarm(where):
    activation = "softplus" if where == "own" else None

    def layers(x):
        x = L.Dense(5, activation=activation, name="in", dtype="float64")(x)
        x = x if activation else L.Activation("softplus", name="soft", dtype="float64")(x)
        return L.Dense(3, name="out", dtype="float64")(x)

    model = model_of((4,), layers, "float64")
    modules = {"in": nn.Linear(4, 5).double(), "out": nn.Linear(5, 3).double()}
    twin, mapping = ported(model, Twin(lambda t, x: t.out(F.softplus(getattr(t, "in")(x))), **modules), *modules)
    x = 12 * np.random.default_rng(0).normal(size=(50, 4))
    taken = getattr(twin, "in")(torch.from_numpy(x))
    near = taken[(taken > 20) & (taken < 22)]
    assert len(near)
    assert torch.equal(F.softplus(near), near)  # off by 2e-10 to 2e-9: by formula, not by rounding
    traced = trace(model, twin, x, mapping)
    assert first_divergence(traced) is None, traced.to_string()
    twin.run = lambda t, x: t.out(F.softplus(getattr(t, "in")(x), threshold=15))
    assert "softplus" in first_divergence(trace(model, twin, x, mapping)).twin


EPS = torch.finfo(torch.float32).eps


def coarse(module, size):
    """Let a module compute what it does exactly, and then be off by one unit of rounding of a number of some size.

    So the twin differs from Keras by more than Keras's own rounding errors can make up for, on every processor.

    Args:
        module: The module.
        size: A function of the module's input that returns the size.
    """
    exact = copy.deepcopy(module).double()

    def forward(x):
        exact.load_state_dict(module.state_dict())
        return (exact(x.double()) - EPS * size(x.double())).float()

    module.forward = forward
    return module


@pytest.mark.parametrize(
    ("activation", "module", "size"),
    [
        # exp(x) - 1 for expm1(x)
        (L.Activation("elu"), nn.ELU(), lambda x: x < 0),
        (ops.selu, nn.SELU(), lambda x: 1.75 * (x < 0)),
        (L.ELU(50), nn.ELU(50), lambda x: 50 * (x < 0)),
        (L.Activation(L.ELU(50)), nn.ELU(50), lambda x: 50 * (x < 0)),
        # x - tanh(x), and x (1 + erf(x / sqrt(2))) / 2
        (L.Activation("tanh_shrink"), nn.Tanhshrink(), torch.abs),
        (lambda x: ops.gelu(-3 - 1e3 * x, approximate=False), nn.GELU(), torch.abs),
    ],
    ids=["elu", "selu", "ELU", "ELU as activation", "tanh_shrink", "gelu"],
)
def test_activations_of_small_numbers_raise_no_alarm_where_one_framework_keeps_fewer_digits(activation, module, size):
    def layers(x):
        return L.Dense(1, name="out")(activation(L.Dense(1, name="in")(x)))

    def activated(t, x):
        x = getattr(t, "in")(x)
        return t.act(-3 - 1e3 * x if isinstance(t.act, nn.GELU) else x)

    model = model_of((4,), layers)
    modules = {"in": nn.Linear(4, 1), "out": nn.Linear(1, 1)}
    twin = Twin(lambda t, x: t.out(activated(t, x)), act=coarse(module, size), **modules)
    twin, mapping = ported(model, twin, *modules)
    with torch.no_grad():
        twin.get_submodule("in").bias.zero_()
    model.get_layer("in").bias.assign([0.0])
    for seed in range(20):
        traced = trace(model, twin, 1e-3 * x_of(1, 4, seed=seed), mapping)
        assert first_divergence(traced) is None, traced.to_string()
    twin.run = lambda t, x: t.out(1.01 * activated(t, x))
    assert first_divergence(trace(model, twin, x_of(20, 4), mapping)) is not None


@pytest.mark.parametrize("ends", ["a layer", "a difference"])
def test_one_number_near_zero_raises_no_alarm_however_the_draw_falls(ends):
    """Its terms are of the order of 1: the errors of another order of adding up are, too, in units of rounding.

    The weights are drawn anew each time: now and then, what the noise moves in all the terms adds up to nothing.
    """

    def near(x):
        x = L.Dense(40, activation="softplus", name="hidden")(x)
        y = L.Dense(1, name="one")(x)
        return y if ends == "a layer" else L.Subtract(name="apart")([L.Dense(1, name="other")(x), y])

    def run(t, x):
        x = F.softplus(t.hidden(x))
        return t.one(x) if ends == "a layer" else t.other(x) - t.one(x)

    names = ["hidden", "one"] if ends == "a layer" else ["hidden", "one", "other"]
    model = model_of((12,), near)
    modules = {name: nn.Linear(*shape) for name, shape in zip(names, [(12, 40), (40, 1), (40, 1)], strict=False)}
    twin = Twin(run, **modules | {"one": coarse(modules["one"], lambda x: 8)})
    bias = model.get_layer("one").bias
    sign = 1 if ends == "a layer" else -1
    for seed in range(40):
        x = x_of(1, 12, seed=seed)
        fill_scaled(model, seed)
        bias.assign(bias.numpy() + sign * (1e-4 - model(x).numpy()[0]))
        twin, mapping = ported(model, twin, *names)
        traced = trace(model, twin, x, mapping)
        assert first_divergence(traced) is None, traced.to_string()
    with torch.no_grad():
        twin.one.bias += 1e-4
    assert first_divergence(trace(model, twin, x, mapping)).layer == "one"


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        (L.GlobalMaxPooling1D, lambda x: x.amax(2)),
        (L.GlobalAveragePooling1D, lambda x: x.mean(2)),
        (lambda name: lambda x: ops.sum(x, 1), lambda x: x.sum(2)),
    ],
    ids=["largest", "mean", "sum"],
)
def test_one_number_from_several_raises_no_alarm_though_it_has_hardly_moved(kind, function):
    def layers(x):
        x = L.Conv1D(1, 1, name="conv")(x)
        x = kind(name="pool")(L.BatchNormalization(name="bn")(x))
        return L.Dense(1, name="out")(x)

    model = model_of((None, 9), layers)
    modules = {"conv": nn.Conv1d(9, 1, 1), "bn": nn.BatchNorm1d(1, 1e-3, 0.01), "out": nn.Linear(1, 1)}
    # What comes out of bn has the rounding errors of numbers that are 1000 times as large: EPS * 512 from one to the
    # next. In which of the several it has them by luck, and whether they cancel, depends on how many there are.
    coarse(modules["conv"], lambda x: 512)
    model.get_layer("conv").bias.assign([1000.0])
    model.get_layer("bn").moving_mean.assign([1000.0])
    twin, mapping = ported(model, Twin(lambda t, x: t.out(function(t.bn(t.conv(x)))), **modules), *modules)
    for seed in range(100):
        traced = trace(model, twin, x_of(1, 4 + seed % 10, 9, seed=seed), mapping)
        assert first_divergence(traced) is None, traced.to_string()
    with torch.no_grad():
        twin.out.bias += 0.1
    assert first_divergence(trace(model, twin, x_of(1, 6, 9), mapping)).layer == "out"


@pytest.mark.parametrize("where", ["own", "layer"])
def test_a_relu_of_what_would_be_zero_without_rounding_raises_no_alarm(where):
    def layers(x):
        x = L.Dense(1, activation="relu" if where == "own" else None, name="in")(x)
        return L.Dense(1, name="out")(x if where == "own" else L.ReLU(name="relu")(x))

    model = model_of((300,), layers)
    modules = {"in": nn.Linear(300, 1), "out": nn.Linear(1, 1)}
    # It is planted: 1 below 0 in Keras, 1 above in the twin, in units of the least number that kernel and inputs make.
    # They are multiples of a power of two, and so small that their sum is exact in any order.
    unit = 2**-17
    coarse(modules["in"], lambda x: -2 * unit / EPS)
    twin, mapping = ported(model, Twin(lambda t, x: t.out(getattr(t, "in")(x).relu()), **modules), *modules)
    for name in modules:
        model.get_layer(name).bias.assign([0.0])
        twin.get_submodule(name).bias.data.zero_()
    kernel = model.get_layer("in").kernel
    for seed in range(60):
        rng = np.random.default_rng(seed)
        half, x = np.rint(rng.normal(0, 512, (150, 1))) / 2**9, np.rint(rng.normal(0, 256, (1, 150))) / 2**8
        x[0, 0], other = 2**-8, -half
        other[0] -= 2**-9
        kernel.assign(np.concatenate([half, other[::-1]]))
        twin.get_submodule("in").weight.data = torch.from_numpy(kernel.numpy().T.copy())
        x = np.concatenate([x, x[:, ::-1]], 1).astype("float32")
        traced = trace(model, twin, x, mapping)
        assert first_divergence(traced) is None, traced.to_string()
        assert traced.outputs[1] == unit
    twin.out.bias.data += 1e-3
    assert first_divergence(trace(model, twin, x, mapping)).layer == "out"


def test_infinities_agree_with_their_like_and_nan_does_not_pass_for_a_number():
    model = model_of((4,), lambda x: L.Dense(2, name="out")(ops.exp(ops.log(ops.relu(L.Dense(3, name="in")(x))))))
    modules = {"in": nn.Linear(4, 3), "out": nn.Linear(3, 2)}
    twin = Twin(lambda t, x: t.out(getattr(t, "in")(x).relu().log().exp()), **modules)
    twin, mapping = ported(model, twin, *modules)
    traced = trace(model, twin, x_of(5, 4), mapping)
    assert set(traced.verdict) == {"agree"}
    assert np.isfinite(traced.noise).all()
    with torch.no_grad():
        twin.out.weight.mul_(1.001)
    assert first_divergence(trace(model, twin, x_of(5, 4), mapping)).layer == "out"
    twin.out.weight.data[0] = np.nan
    assert first_divergence(trace(model, twin, x_of(5, 4), mapping)).layer == "out"


def test_a_convolution_with_groups_is_computed_exactly_and_otherwise():
    """Both are computed in one go: neither may be taken for the other, nor one example for another."""
    model = model_of((6, 5, 4), lambda x: L.Conv2D(6, 3, groups=2, activation="relu", name="c")(x))
    x = x_of(3, 6, 5, 4)
    far = walk(keras_graph(model), [x], perturb=lambda tensor, *how: tensor + 1)
    _, (step, (taken,), (before,)), (last, _, (value,)) = far
    assert step.has_activation
    assert last.is_activation
    conv = model.layers[1]
    for given, y, more in ((taken.exact, before.exact, 0), (taken.perturbed, before.perturbed, 1)):
        np.testing.assert_allclose(y, conv.convolution_op(given, conv.kernel) + conv.bias + more, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value.exact, model(taken.exact), rtol=1e-5, atol=1e-5)
    assert np.abs(taken.perturbed - taken.exact).min() > 0.5


class DenseSilu(nn.Linear):
    """A Linear with its activation."""

    def forward(self, x):
        """Map (batch, 1) to (batch, 2)."""
        return F.silu(super().forward(x))


def test_few_numbers_raise_no_alarm_though_one_draw_hardly_moves_them():
    """The normalization takes away 1000, and leaves the rounding errors of 1000; the slope of silu is 0 near -1.28."""

    def layers(x):
        x = L.BatchNormalization(name="bn")(L.Dense(1, name="in")(x))
        return L.Dense(2, activation="silu", name="out")(x)

    model = model_of((9,), layers)
    modules = {"in": nn.Linear(9, 1), "bn": nn.BatchNorm1d(1, 1e-3, 0.01), "out": DenseSilu(1, 2)}
    for seed in range(60):
        fill_scaled(model, seed)
        model.get_layer("in").bias.assign([1000.0])
        model.get_layer("bn").moving_mean.assign([1000.0])
        twin, mapping = ported(model, Twin(lambda t, x: t.out(t.bn(getattr(t, "in")(x))), **modules), *modules)
        with torch.no_grad():
            getattr(twin, "in").bias += EPS * 512 * (-1) ** seed
        traced = trace(model, twin, x_of(1, 9, seed=seed), mapping)
        assert first_divergence(traced) is None, traced.to_string()
    with torch.no_grad():
        twin.out.bias += 0.1
    assert first_divergence(trace(model, twin, x_of(1, 9), mapping)).layer == "out"


def test_an_activation_moves_by_its_largest_slope_where_the_draw_moved_what_has_none():
    model = model_of((2,), lambda x: L.Activation("silu")(x))
    (step,) = keras_graph(model).steps
    flat, steep, move = -1.2784645, 2.0, 1e-3  # silu is flat at the first
    exact, perturbed = (ops.convert_to_tensor([[one, steep]]) for one in (flat, flat + move))
    before = keras_values.Value(ops.silu(exact), ops.silu(perturbed))
    after = keras_values._moved(step, [keras_values.Value(exact, perturbed)], before, 0.0)
    slope = 1.0908  # of silu at 2
    assert np.abs(before.perturbed - before.exact).max() < 1e-6
    assert 0.9 < np.abs(after.perturbed - after.exact).max() / (move * slope / 2) < 1.1

"""What a trace makes of all kinds of twins: right ones raise no alarm, wrong ones are located, none is changed."""

import copy
import random
from itertools import product

from course.small_models import fill_scaled
from parity import ParityError, diagnose, first_divergence, readable, trace
from parity.axes import torch_input
from parity.models.keras_graph import keras_graph
from parity.models.keras_values import walk
from parity.tracing.plot import error_by_layer
from parity.tracing.verdicts import TRACE_COLUMNS
from tests.helpers.models import Twin, in_float64, model_of, norm, ported, snapshot, table, verdicts, x_of

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from keras import ops
from torch import nn
from torch.utils.checkpoint import checkpoint


def state(model, twin):
    """Return all that a trace must not change, of both models and of the process."""
    modules = [
        (sorted(vars(m)), m.training, *map(len, (m._forward_hooks, m._forward_pre_hooks))) for m in twin.modules()
    ]
    tensors = [
        (id(t), t.requires_grad, vars(t), None if t.grad is None else t.grad.tolist())
        for t in twin.state_dict(keep_vars=True).values()
    ]
    layers = [
        (id(getattr(layer, "activation", None)), len(layer._losses), layer.trainable, len(layer._inbound_nodes))
        for layer in model._flatten_layers()
    ]
    draws = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002  the global state is meant
    seeds = [variable.numpy().tolist() for variable in model.non_trainable_variables]
    return snapshot(model), snapshot(twin), modules, tensors, layers, draws, seeds, torch.is_grad_enabled()


# --- One network with a skip, and many ways to write it -------------------------------------------------------------


def residual(x):
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="first")(x)
    y = L.Conv2D(4, 3, padding="same", name="second")(L.ReLU(name="relu")(L.BatchNormalization(name="norm")(x)))
    x = L.GlobalAveragePooling2D(name="pool")(L.Add(name="add")([x, y]))
    return L.Dense(2, activation="sigmoid", name="out")(x)


NAMES = ("first", "norm", "second", "out")
X = x_of(3, 8, 8, 3)


@pytest.fixture(scope="module")
def model():
    return model_of((8, 8, 3), residual)


def residual_twin(run, **more):
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    return Twin(run, first=first, norm=norm(4), second=second, out=nn.Linear(4, 2), **more)


def plain(t, x):
    x = F.relu(t.first(x))
    y = t.second(F.relu(t.norm(x)))
    return torch.sigmoid(t.out((x + y).mean((2, 3))))


def by_modules(t, x):
    x = t.act(t.first(x))
    y = t.second(t.act(t.norm(x)))
    return t.gate(t.out(t.flat(t.pool(x + y))))


def by_keyword(t, x):
    x = F.relu(input=t.first(input=x))
    y = t.second(input=torch.relu(input=t.norm(input=x)))
    return t.out(input=torch.add(input=x, other=y).mean(dim=(2, 3))).sigmoid()


def in_place(t, x):
    x = t.act(t.first(x))
    y = t.second(t.act(t.norm(x.clone())))
    y += x
    return t.out(y.mean((2, 3))).sigmoid_()


def asking_for_sizes(t, x):
    first = F.relu(t.first(x))
    assert (x.shape[0], x.dim()) == (x.size(0), 4)
    y = t.second(F.relu(t.norm(first)))
    assert x.numel()
    return {"y": torch.sigmoid(t.out((first + y).mean((2, 3)))), "x": None}


def written_into(t, x):
    padded = torch.zeros(len(x), 3, 10, 10)
    padded[:, :, 1:-1, 1:-1] = x
    x = F.conv2d(padded, t.first.weight, t.first.bias).relu()
    return torch.sigmoid(t.out((x + t.second(F.relu(t.norm(x)))).mean((2, 3))))


def remembering(t, x):
    t.last, t.count = x, t.count + 1
    return plain(t, x * 1.0)


def checkpointed(t, x):
    x = F.relu(t.first(x))
    y = checkpoint(lambda x: t.second(F.relu(t.norm(x))), x, use_reentrant=False)
    return torch.sigmoid(t.out((x + y).mean((2, 3))))


def forgiving(t, x):
    try:
        t.out(x)
    except RuntimeError:
        return plain(t, x)


def with_hooks(twin):
    twin.norm.register_forward_pre_hook(lambda module, x: (x[0] * 1.0,))
    twin.second.register_forward_hook(lambda module, x, y: y * 1.0)
    twin.register_full_backward_hook(lambda *args: None)
    return twin


ROWS = ["first", "first activation", "norm", "relu", "second", "add", "pool", "out", "out activation"]


@pytest.mark.parametrize(
    ("run", "twins"),
    [
        (plain, ["first", "relu()", "norm", "relu()", "second", "add()", "mean()", "out", "sigmoid()"]),
        (by_modules, ["first", "act", "norm", "act", "second", "add()", "pool", "out", "gate"]),
    ],
)
def test_rows_are_in_the_order_of_the_data_flow_with_modules_and_functions_for_twins(model, run, twins):
    more = {"act": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "gate": nn.Sigmoid()}
    twin, mapping = ported(model, residual_twin(run, **(more if run is by_modules else {})), *NAMES)
    traced = trace(model, twin, X, mapping)
    assert list(traced.columns) == TRACE_COLUMNS
    assert list(traced.layer[:10]) == [*ROWS, "output 1, of out activation"]
    assert list(traced.twin[:9]) == twins
    assert (traced.keras_shape[0], traced.torch_shape[0]) == ((3, 8, 8, 4), (3, 4, 8, 8))
    assert (traced.keras_shape[6], traced.kind[1]) == ((3, 4), "activation relu")
    assert set(traced.verdict[:10]) == {"agree"}
    assert list(traced.twin[10:]) == (["flat (Flatten)"] if run is by_modules else [])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "run", [by_keyword, in_place, asking_for_sizes, written_into, remembering, checkpointed, forgiving, with_hooks]
)
def test_a_right_twin_raises_no_alarm_and_stays_as_it_is(model, run, training):
    twin = residual_twin(plain if run is with_hooks else run, act=nn.ReLU(inplace=run is in_place))
    twin.count = 0
    twin, mapping = ported(model, with_hooks(twin) if run is with_hooks else twin, *NAMES)
    before = state(model, twin)
    traced = trace(model, twin, X, mapping, training=training and run not in (in_place, checkpointed))
    assert first_divergence(traced) is None
    assert set(traced.verdict[:10]) <= {"agree", "not paired"}
    assert verdicts(traced)["out"] == verdicts(traced)["output 1, of out activation"] == "agree"
    assert state(model, twin) == before


@pytest.mark.parametrize("kept", [["first"], ["norm", "out"], ["second"], []])
def test_what_is_not_paired_is_listed_and_what_follows_is_traced(model, kept):
    twin, mapping = ported(model, residual_twin(plain), *NAMES)
    part = mapping[[key.split(".")[0] in kept for key in mapping.torch]]
    traced = trace(model, twin, X, part)
    assert list(traced.layer[:9]) == ROWS
    assert all(verdicts(traced)[name] == "agree" for name in [*kept, "output 1, of out activation"])
    with torch.no_grad():
        twin.norm.weight.mul_(2)
    found = first_divergence(trace(model, twin, X, part))
    assert found.layer == "norm" if kept == ["norm", "out"] else "norm" in str(trace(model, twin, X, part).to_string())


def test_a_parametrized_module_is_its_layer_s_twin(model):
    twin, mapping = ported(model, residual_twin(plain), *NAMES)
    nn.utils.parametrizations.weight_norm(twin.first)
    mapping = mapping.replace("first.weight", "first.parametrizations.weight.original1")
    for training in (False, True):
        assert set(trace(model, twin, X, mapping, training=training).verdict) == {"agree"}
    with torch.no_grad():
        twin.first.parametrizations.weight.original0.mul_(2)
    assert first_divergence(trace(model, twin, X, mapping)).layer == "first"


# --- Other networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["list", "tuple", "dict"])
def test_several_inputs_and_outputs_in_every_structure(inputs):
    a, b = keras.Input((8, 8, 1), name="a"), keras.Input((4,), name="b")
    x = L.Add(name="add")([L.GlobalMaxPooling2D(name="pool")(L.Conv2D(4, 3, name="conv")(a)), b])
    ends = {"steer": L.Dense(2, name="steer")(x), "brake": L.Dense(2, name="brake")(x)}
    model = fill_scaled(keras.Model({"list": [a, b], "tuple": (a, b), "dict": {"b": b, "a": a}}[inputs], ends))
    modules = {"conv": nn.Conv2d(1, 4, 3), "steer": nn.Linear(4, 2), "brake": nn.Linear(4, 2)}
    x, (p, q) = [x_of(2, 8, 8, 1), x_of(2, 4, seed=1)], ("steer", "brake")
    for order, returned in (((p, q), tuple), ((p, q), list), ((p, q), dict), ((q, p), dict)):

        def run(t, a, b, order=order, returned=returned):
            x = t.conv(a).amax((2, 3)) + b
            ends = {name: getattr(t, name)(x) for name in order}
            return ends if returned is dict else returned(ends.values())

        twin, mapping = ported(model, Twin(run, **modules), *modules)
        for given in (x, tuple(x), dict(zip("ab", x, strict=True))):
            assert set(trace(model, twin, given, mapping).verdict) == {"agree"}
    given = [torch_input(x[0]), torch.from_numpy(x[1])]
    assert set(trace(model, twin, x, mapping, torch_x=given).verdict) == {"agree"}
    assert not any(vars(tensor) for tensor in given)
    twin, mapping = ported(model, Twin(lambda t, a, b: run(t, a, b, (q, p), list), **modules), *modules)
    said = "output 1, of steer and output 2 are each other's: each has the output of the other\n  heads exchanged"
    assert said in str(diagnose(model, twin, x, mapping))


@pytest.mark.parametrize("reverse", [False, True])
def test_shared_layers_may_be_called_in_another_order(reverse):
    encoder = keras.Sequential([keras.Input((9, 2)), L.Conv1D(3, 3, name="conv"), L.BatchNormalization(name="norm")])
    encoder.name = "encoder"
    a, b = keras.Input((9, 2), name="a"), keras.Input((9, 2), name="b")
    ends = [L.Flatten(name=name)(encoder(x)) for name, x in (("fa", a), ("fb", b))]
    model = fill_scaled(keras.Model([a, b], L.Dense(2, name="out")(L.Subtract(name="minus")(ends))))

    def run(t, a, b):
        features = [t.norm(t.conv(x)).mT.flatten(1) for x in ((b, a) if reverse else (a, b))]
        return t.out(features[reverse] - features[not reverse])

    modules = {"conv": nn.Conv1d(2, 3, 3), "norm": norm(3, nn.BatchNorm1d), "out": nn.Linear(21, 2)}
    twin, mapping = ported(model, Twin(run, **modules), *modules)
    x = [x_of(2, 9, 2), x_of(2, 9, 2, seed=1)]
    traced = trace(model, twin, x, mapping)
    assert set(traced.verdict) == {"agree"}
    assert {"encoder/conv", "encoder/conv (call 2)"} < set(traced.layer)
    twin.run = lambda t, a, b: run(t, a, a)
    assert first_divergence(trace(model, twin, x, mapping)).verdict == "TAKES OTHER INPUT"


def test_layers_that_are_not_covered_do_not_hide_what_follows():
    model = model_of((5, 4), lambda x: L.Dense(2, name="out")(L.LSTM(3, name="lstm")(L.Conv1D(4, 2, name="conv")(x))))
    modules = {"conv": nn.Conv1d(4, 4, 2), "lstm": nn.LSTM(4, 3, batch_first=True), "out": nn.Linear(3, 2)}
    twin = Twin(lambda t, x: t.out(t.lstm(t.conv(x).mT)[0][:, -1]), **modules).eval()
    values = [value.detach().numpy() for value in twin.state_dict().values()]
    conv, bias, inputs, states, of_inputs, of_states, out, offset = values
    for name, weights in (
        ("conv", [conv.transpose(), bias]),
        ("lstm", [inputs.T, states.T, of_inputs + of_states]),
        ("out", [out.T, offset]),
    ):
        model.get_layer(name).set_weights(weights)
    keys = ["conv.weight", "conv.bias", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0"]
    pairs = list(zip([w.path for w in model.weights], [*keys, "out.weight", "out.bias"], strict=True))
    for mapping in (table(*pairs), table(*pairs[:2], *pairs[5:])):
        for training in (False, True):
            traced = trace(model, twin, x_of(2, 5, 4), mapping, training=training)
            assert first_divergence(traced) is None
            assert (verdicts(traced)["conv"], verdicts(traced)["out"]) == ("agree", "agree")
            assert "lstm (LSTM)" in set(traced.twin)


@pytest.mark.parametrize(
    "run",
    [
        lambda t, x: t.dense(x.mT).relu(),
        lambda t, x: t.dense(x.mT.reshape(-1, 4)).reshape(len(x), -1, 3).relu(),
        lambda t, x: t.dense(x.permute(2, 0, 1)).transpose(0, 1).relu(),
        lambda t, x: torch.stack([t.dense(x[..., at]) for at in range(x.shape[-1])], 1).relu(),
    ],
    ids=["as it is", "merged with the examples", "time first", "step by step"],
)
def test_an_axis_of_time_may_be_anywhere(run):
    model = model_of((5, 4), lambda x: L.GlobalAveragePooling1D(name="pool")(L.ReLU()(L.Dense(3, name="dense")(x))))
    twin, mapping = ported(model, Twin(lambda t, x: run(t, x).mean(1), dense=nn.Linear(4, 3)), "dense")
    assert first_divergence(trace(model, twin, x_of(2, 5, 4), mapping)) is None
    with torch.no_grad():
        twin.dense.bias.add_(0.1)
    assert first_divergence(trace(model, twin, x_of(2, 5, 4), mapping)).layer == "dense"


@pytest.mark.parametrize("kinds", list(product("mf", repeat=3)), ids="".join)
def test_borders_in_a_row_are_paired_in_their_order(kinds):
    """Each by a module ("m") or by a function; one of nothing is a border, too."""
    pads = [(0, 0), (0, 2), (1, 0)]

    def layers(x):
        for number, pad in enumerate(pads):
            x = L.ZeroPadding1D(pad, name=f"pad{number}")(x)
        return L.Conv1D(2, 2, name="conv")(x)

    def run(t, x):
        for module, kind, pad in zip(t.pads, kinds, pads, strict=True):
            x = module(x) if kind == "m" else F.pad(x, pad)
        return t.conv(x)

    model = model_of((3, 2), layers)
    twin = Twin(run, conv=nn.Conv1d(2, 2, 2), pads=nn.ModuleList(map(nn.ZeroPad1d, pads)))
    twin, mapping = ported(model, twin, "conv")
    traced = trace(model, twin, x_of(2, 3, 2), mapping)
    assert list(traced.twin[:3]) == [f"pads.{i}" if kind == "m" else "pad()" for i, kind in enumerate(kinds)]
    assert set(traced.verdict) == {"agree"}


def test_whole_numbers_and_masks_are_not_moved_by_the_noise():
    def layers(x):
        x = L.Embedding(7, 4, mask_zero=True, name="embed")(x)
        return L.Dense(2, name="out")(L.GlobalAveragePooling1D(name="pool")(x))

    def run(t, x):
        mask = (x != 0).unsqueeze(-1)
        return t.out((t.embed(x.long()) * mask).sum(1) / mask.sum(1))

    model = model_of((5,), layers)
    twin, mapping = ported(model, Twin(run, embed=nn.Embedding(7, 4), out=nn.Linear(4, 2)), "embed", "out")
    words = np.array([[1, 2, 3, 0, 0], [6, 5, 0, 0, 0]])
    traced = trace(model, twin, words, mapping)
    assert first_divergence(traced) is None
    assert traced.noise.max() < 1e-5
    twin.run = lambda t, x: t.out(t.embed(x.long()).mean(1))
    assert first_divergence(trace(model, twin, words, mapping)).layer == "pool"


def test_weights_of_the_model_itself_are_no_twin_of_a_layer():
    model = model_of((8, 8, 3), lambda x: L.Dense(2, name="out")(L.Flatten()(L.Conv2D(4, 3, name="conv")(x))))
    twin = Twin(lambda t, x: F.linear(F.conv2d(x, t.kernel, t.bias).permute(0, 2, 3, 1).flatten(1), t.rows, t.offset))
    kernel, *others = [torch.from_numpy(weight.numpy().T.copy()) for weight in model.weights]
    values = dict(zip(("bias", "rows", "offset"), others, strict=True)) | {"kernel": kernel.mT.contiguous()}
    for name, value in values.items():
        twin.register_parameter(name, nn.Parameter(value))
    mapping = table(*zip([w.path for w in model.weights], ["kernel", "bias", "rows", "offset"], strict=True))
    traced = trace(model, twin, X, mapping)
    assert first_divergence(traced) is None
    assert verdicts(traced)["output 1, of out"] == "agree"


def test_many_branches_without_a_pair_take_no_longer():
    def deep(x):
        for _ in range(40):
            x = 0.5 * (x + ops.relu(x))
        return L.Dense(2, name="out")(x)

    def run(t, x):
        for _ in range(40):
            x = 0.5 * (x + F.relu(x))
        return t.out(x)

    model = model_of((4,), deep)
    twin, mapping = ported(model, Twin(run, out=nn.Linear(4, 2)), "out")
    assert first_divergence(trace(model, twin, x_of(2, 4), mapping[:0])) is None
    with torch.no_grad():
        twin.out.bias.add_(1)
    assert " or before" in first_divergence_text(trace(model, twin, x_of(2, 4), mapping[:0]))


def first_divergence_text(traced):
    return readable(traced).verdict[traced.verdict == "DIVERGES HERE"].iloc[0]


# --- Noise ----------------------------------------------------------------------------------------------------------


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


# --- Mistakes -------------------------------------------------------------------------------------------------------


def scaled(t, x):
    return 2 * plain(t, x)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (
            lambda t: [t.second.weight.data.copy_(t.second.weight.flip(2)), t.second.bias.data.zero_()],
            "second (second): its inputs agree, its outputs do not\n  kernel flipped (along its axes (2,), in 4 of 4): "
            "notebook 01\n  bias missing (bias is 0 in 4 of 4): notebook 07",
        ),
        (
            lambda t: [setattr(t.norm, "eps", 1.0), t.norm.running_var.fill_(9), t.norm.running_mean.fill_(9)],
            "norm (norm): its inputs agree, its outputs do not\n  none of the known causes explains it",
        ),
        (
            lambda t: setattr(t, "run", scaled),
            "output 1, of out activation (return value 1) takes another input than what the layers before it return\n"
            "  input scaled (2 times it): notebook 08",
        ),
        (lambda t: setattr(t.second, "padding", (2, 2)), "padding ([(2, 2), (2, 2)] is added, not [(1, 1), (1, 1)])"),
        (lambda t: t.bfloat16(), "precision (the twin computes in bfloat16): notebook 08"),
        (lambda t: t.norm.running_var.fill_(-9), "norm (norm): its inputs agree, its outputs do not"),
    ],
    ids=["two in one layer", "unknown", "output", "shape", "precision", "NaN"],
)
def test_a_mistake_is_located_and_named(model, plant, said):
    twin, mapping = ported(model, residual_twin(plain), *NAMES)
    plant(twin)
    if said.startswith("padding"):
        twin.run = lambda t, x: torch.sigmoid(t.out(t.second(F.relu(t.norm(F.relu(t.first(x))))).mean((2, 3))))
    before = state(model, twin)
    assert said in str(diagnose(model, twin, X, mapping))
    assert state(model, twin) == before


def test_a_layer_that_the_twin_lacks_is_said_to_be_lacking(model):
    twin, mapping = ported(model, residual_twin(plain), *NAMES)
    twin.run = lambda t, x: t.out((F.relu(t.first(x)) + t.second(F.relu(t.norm(F.relu(t.first(x)))))).mean((2, 3)))
    said = (
        "out activation (not found in the twin): its inputs agree, its outputs do not\n  activation missing (sigmoid)"
    )
    assert said in str(diagnose(model, twin, X, mapping))


def test_readable_and_the_picture_show_where_it_starts(model):
    twin, mapping = ported(model, residual_twin(plain), *NAMES)
    right = trace(model, twin, X, mapping)
    assert set(readable(right)[["inputs", "outputs"]].to_numpy().flat) == {"agree"}
    twin.norm.eps = 1.0
    wrong = trace(model, twin, X, mapping)
    assert list(readable(wrong).outputs[:2]) == ["agree", "agree"]
    assert readable(wrong).outputs[2] == f"{wrong.outputs[2]:.2g}"
    _, axes = plt.subplots()
    error_by_layer(axes, wrong, right)
    line = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert [label.get_text() for label in axes.get_yticklabels()][round(line.get_ydata()[0] + 0.5)] == "norm"
    plt.close()


# --- Training -------------------------------------------------------------------------------------------------------


def detached(t, x):
    x = F.relu(t.first(x))
    return t.out(t.drop(t.second(t.norm(x.detach())).flatten(1)))


def dropping(t, x):
    return t.out(t.drop(t.second(t.norm(F.relu(t.first(x)))).flatten(1)))


class OwnDropout(nn.Module):
    """Dropout as readers write it: a module of their own around the function."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        """Drop, in training."""
        return F.dropout(x, self.rate, self.training)


@pytest.mark.parametrize(
    ("plant", "layer", "said"),
    [
        (lambda t: None, None, "no layer diverges"),
        (lambda t: setattr(t, "drop", OwnDropout(0.5).eval()), None, "no layer diverges"),
        (lambda t: setattr(t, "drop", OwnDropout(0.25).eval()), "drop", "(0.5 in Keras, 0.25 in the twin)"),
        (lambda t: setattr(t.norm, "momentum", 0.5), "norm", "momentum (momentum is 0.5, not 0.01): notebook 03"),
        (lambda t: setattr(t.drop, "p", 0.25), "drop", "dropout rate (0.5 in Keras, 0.25 in the twin): notebook 12"),
        (lambda t: t.second.requires_grad_(False), "second", "layer frozen (kernel and bias not trained in the twin)"),
        (lambda t: setattr(t, "run", detached), "first activation", "gradient stopped: notebook 12"),
    ],
    ids=["right", "own dropout", "rate of own dropout", "momentum", "rate", "frozen", "detached"],
)
def test_what_only_training_shows(plant, layer, said):
    def layers(x):
        x = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, activation="relu", name="first")(x))
        x = L.Flatten(name="flatten")(L.Conv2D(4, 6, name="second")(x))
        return L.Dense(2, name="out")(L.Dropout(0.5, name="drop")(x))

    model = model_of((8, 8, 3), layers)
    modules = {"first": nn.Conv2d(3, 4, 3), "norm": norm(4), "second": nn.Conv2d(4, 4, 6), "out": nn.Linear(4, 2)}
    twin, mapping = ported(model, Twin(dropping, drop=nn.Dropout(0.5), **modules), *modules)
    plant(twin)
    before = state(model, twin)
    assert first_divergence(trace(model, twin, X, mapping)) is None
    found = diagnose(model, twin, X, mapping, training=True)
    assert said in str(found)
    assert (found.divergence and found.divergence.layer) == layer
    assert state(model, twin) == before


def test_a_part_that_is_not_trained_raises_no_alarm():
    base = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(4, 3, name="conv"), L.BatchNormalization(name="inner")])
    base.trainable = False
    model = model_of(
        (8, 8, 3), lambda x: L.Dense(2, name="out")(L.Flatten()(L.BatchNormalization(name="norm")(base(x))))
    )
    base.trainable, calls = True, [False]  # fill_scaled is done; from here on only the call says so
    x = keras.Input((8, 8, 3))
    outer = [model.get_layer(name) for name in ("norm", "out")]
    model = keras.Model(x, outer[1](L.Flatten()(outer[0](base(x, training=calls[0])))))

    class Frozen(Twin):
        def train(self, mode=True):
            super().train(mode)
            self.inner.eval()
            return self

    modules = {"conv": nn.Conv2d(3, 4, 3), "inner": norm(4), "norm": norm(4), "out": nn.Linear(144, 2)}
    twin = Frozen(lambda t, x: t.out(t.norm(t.inner(t.conv(x))).permute(0, 2, 3, 1).flatten(1)), **modules)
    twin, mapping = ported(model, twin, *modules)
    assert first_divergence(trace(model, twin, X, mapping, training=True)) is None
    base.trainable = False
    for module in (twin.conv, twin.inner):
        module.requires_grad_(False)
    assert first_divergence(trace(model, twin, X, mapping, training=True)) is None


# --- What is left behind, and errors --------------------------------------------------------------------------------


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
        """Twice what the graph computes."""
        return 2 * super().call(x)


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

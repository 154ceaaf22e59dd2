"""What a trace makes of all kinds of twins: right ones raise no alarm, and none is changed."""

from itertools import product

from course.small_models import fill_scaled
from parity import diagnose, first_divergence, readable, trace
from parity.axes import torch_input
from parity.tracing.verdicts import TRACE_COLUMNS
from tests.helpers.models import Twin, model_of, norm, ported, table, verdicts, x_of
from tests.helpers.residual import (
    NAMES,
    ROWS,
    X,
    asking_for_sizes,
    by_keyword,
    by_modules,
    checkpointed,
    forgiving,
    in_place,
    plain,
    remembering,
    residual_twin,
    state,
    with_hooks,
    written_into,
)

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from keras import ops
from torch import nn


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
            assert ("lstm" if len(mapping) == 7 else "lstm (LSTM)") in set(traced.twin)


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

    def unseen(t, x):
        x = x.numpy()
        for _ in range(40):
            x = 0.5 * (x + x.clip(0))
        return torch.from_numpy(x @ t.out.weight.numpy().T + t.out.bias.numpy())

    model = model_of((4,), deep)
    twin, mapping = ported(model, Twin(run, out=nn.Linear(4, 2)), "out")
    assert first_divergence(trace(model, twin, x_of(2, 4), mapping[:0])) is None
    with torch.no_grad():
        twin.out.bias.add_(1)
    # Without a mapping, numbers tell that all branches are right.
    found = first_divergence(trace(model, twin, x_of(2, 4), mapping[:0]))
    assert (found.layer, found.note) == ("out", "")
    twin.run = unseen
    assert first_divergence_text(trace(model, twin, x_of(2, 4), mapping[:0])).endswith(" or before")


def first_divergence_text(traced):
    return readable(traced).verdict[traced.verdict == "DIVERGES HERE"].iloc[0]

"""All mistakes in one call: each layer is given the right inputs, whatever is wrong before it."""

import json

from course.exercises.e10_hunt import broken_twin, exercise_at, exercise_mapping
from course.hunt import broken_port, keras_side
from course.hunt.drawing import mistakes
from course.mutants import MUTANTS, load_network
from course.pages.anatomy import ROOT
from parity import ParityError, diagnose, read_mapping, trace, transfer
from tests.helpers.models import Twin, conv, float64_model, norm, ported, snapshot, table

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

L = keras.layers


def x_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def every(model, twin, x, mapping, **more):
    """Return what is found: the name of each layer and of its causes."""
    found = diagnose(model, twin, x, mapping, each_alone=True, **more)
    return found, [(one.divergence.layer, [cause.cause for cause in one.causes]) for one in found.divergences]


def ported64(model, twin, *names, **renamed):
    return ported(model, twin.double(), *names, **renamed)


def put(tensor, value):
    with torch.no_grad():
        tensor.copy_(value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value))


def test_the_six_mistakes_of_page_10_come_out_in_one_call(monkeypatch):
    page = json.loads((ROOT / "notebooks/further/10_hunt_the_divergence.ipynb").read_text(encoding="utf-8"))
    cells = {cell["id"]: "".join(cell["source"]) for cell in page["cells"]}
    monkeypatch.chdir(ROOT / "notebooks" / "further")
    names, policy, floatx = {}, keras.config.dtype_policy(), keras.config.floatx()
    default = torch.get_default_dtype()
    try:
        for cell in ("hunt-02", "hunt-04", "hunt-08", "hunt-10"):
            exec(cells[cell], names)
        model, x = names["dronet_at"](76, 52)
        mapping = read_mapping(ROOT / "keras_torch_mapping.csv")
        found, causes = every(model, names["naive"], x, mapping)
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        torch.set_default_dtype(default)
    kernel, epsilon, padding = "height and width exchanged", "epsilon", "padding"
    assert causes == [
        ("conv2d_1", [kernel]),
        ("max_pooling2d_1", ["another activation"]),
        ("batch_normalization_1", [epsilon]),
        ("conv2d_2", [kernel, padding]),
        ("batch_normalization_2", [epsilon]),
        ("conv2d_3", [kernel]),
        ("batch_normalization_3", [epsilon]),
        ("conv2d_5", [kernel, padding]),
        ("batch_normalization_4", [epsilon]),
        ("conv2d_6", [kernel]),
        ("batch_normalization_5", [epsilon]),
        ("conv2d_8", [kernel]),
        ("batch_normalization_6", [epsilon]),
        ("conv2d_9", [kernel]),
        ("dense_2", ["weights of another layer", "flatten order"]),
    ]
    assert [one.layer for one in found.divergences[-1].also] == ["dense_1"]
    assert not found.unseen
    assert not found.unexplained


def test_the_exercise_of_page_10():
    model, x = exercise_at(12, 10)
    found, causes = every(model, broken_twin(), x, exercise_mapping())
    assert causes == [
        ("stem_norm", ["BatchNormalization vectors exchanged"]),
        ("leaky", ["another slope"]),
        ("depthwise", ["depthwise order"]),
        ("pool", ["padding"]),
        ("mixed", ["kernel not transposed"]),
    ]
    assert str(found).startswith(str(diagnose(model, broken_twin(), x, exercise_mapping())))
    assert "\n  another slope (slope is 0.01, not 0.25): see the cheat sheet\ndepthwise (depthwise): its" in str(found)


def pairs_on_every_network():
    """Yield for each network two pairs of mistakes at layers that are not neighbours in the list, and its seed."""
    for network in dict.fromkeys(mutant.network for mutant in MUTANTS):
        fit = [m for m in MUTANTS if m.network == network and m.shows == "always" and not m.in_forward]
        fit = [m for m in fit if not m.name.startswith(("every ", "all "))]
        count = 0
        for first in fit:
            second = next((m for m in reversed(fit) if not m.layers & first.layers and m.cause != first.cause), None)
            if second is not None and count < 2:
                count += 1
                yield pytest.param(first, second, id=f"{network}: {first.name} and {second.name}")


@pytest.mark.parametrize(("first", "second"), list(pairs_on_every_network()))
def test_two_mistakes_of_every_network(first, second):
    network = load_network(first.network)
    model, x = network.probes[0]
    twin = second.plant(first.plant(network.build()))
    _, causes = every(model, twin, x, network.mapping)
    for mutant in (first, second):
        assert [found for layer, found in causes if mutant.accepts(layer.split(", of ")[-1])] == [[mutant.cause]]
    assert len(causes) == 2


# Drawn once. In some others, planting one mistake mends another.
SEEDS = (11, 87, 121, 333, 518, 600)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_mistakes_of_a_hunt(seed):
    planted, port = mistakes(seed), broken_port(seed)
    left, others = list(planted), []
    for size in range(len(load_network(planted[0].network).probes)):
        model, x, mapping = keras_side(seed, size)
        for layer, causes in every(model, port, x, mapping)[1]:
            here = [mistake for mistake in planted if mistake.accepts(layer.split(", of ")[-1])]
            others += [] if here and causes == [here[0].cause] else [(layer, causes)]
            left = [mistake for mistake in left if mistake not in here]
    assert (left, others) == ([], [])


def chain(**settings):
    return float64_model(
        (9, 8, 3),
        lambda i: L.Dense(3, name="head")(
            L.GlobalAveragePooling2D(name="mean")(
                L.Activation("relu", name="act")(
                    conv("second", 5)(L.BatchNormalization(name="bn")(conv("first", 4)(i)))
                )
            )
        ),
    )


def parts():
    return {
        "first": nn.Conv2d(3, 4, 3, padding=1),
        "bn": norm(4),
        "second": nn.Conv2d(4, 5, 3, padding=1),
        "head": nn.Linear(5, 3),
    }


NAMES = ("first", "bn", "second", "head")


def forward(t, a):
    return t.head(t.second(t.bn(t.first(a))).relu().mean((2, 3)))


def test_a_right_port_has_none():
    model = chain()
    twin, mapping = ported64(model, Twin(forward, **parts()), *NAMES)
    found = diagnose(model, twin, x_of(2, 9, 8, 3), mapping, each_alone=True)
    assert (str(found), found.divergences, found.unseen) == ("no layer diverges", [], ())
    assert (found.traced.verdict == "agree").all()


def test_neither_model_is_changed():
    model = chain()
    twin, mapping = ported64(model, Twin(forward, **parts()), *NAMES)
    put(twin.first.bias, 0.0)
    twin.bn.eps = 1e-5
    before = snapshot(model), snapshot(twin), trace(model, twin, x_of(2, 9, 8, 3), mapping)
    for training in (False, True):
        diagnose(model, twin, x_of(2, 9, 8, 3), mapping, each_alone=True, training=training)
    assert (snapshot(model), snapshot(twin)) == before[:2]
    assert not twin.training
    assert trace(model, twin, x_of(2, 9, 8, 3), mapping).equals(before[2])


# Each is a forward of the chain with mistakes in functions, and what is found.
FUNCTIONS = {
    "a function is missing": (lambda t, a: t.head(t.second(t.bn(t.first(a))).mean((2, 3))), ["activation missing"]),
    "another function": (
        lambda t, a: t.head(F.leaky_relu(t.second(t.bn(t.first(a))), 0.1).mean((2, 3))),
        ["another slope"],
    ),
    "in place": (
        lambda t, a: t.head(F.leaky_relu_(t.second(t.bn(t.first(a))), 0.1).mean((2, 3))),
        ["another slope"],
    ),
    "in place, and what is returned is not used": (
        lambda t, a: (lambda y: [F.leaky_relu_(y, 0.1), t.head(y.mean((2, 3)))][1])(t.second(t.bn(t.first(a)))),
        ["another slope"],
    ),
    "another pooling": (
        lambda t, a: t.head(t.second(t.bn(t.first(a))).relu().amax((2, 3))),
        ["another pooling"],
    ),
    "a function too many": (
        lambda t, a: t.head(t.second(t.bn(t.first(a)).tanh()).relu().mean((2, 3))),
        ["another activation"],
    ),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_count_too(case):
    """What is before and behind them is wrong as well."""
    run, causes = FUNCTIONS[case]
    model = chain()
    twin, mapping = ported64(model, Twin(run, **parts()), *NAMES)
    put(twin.first.weight, twin.first.weight.flip(2, 3))
    put(twin.head.bias, 0.0)
    _, found = every(model, twin, x_of(2, 9, 8, 3), mapping)
    assert [found[0], found[-1]] == [("first", ["kernel flipped"]), ("head", ["bias missing"])]
    assert [cause for _, several in found[1:-1] for cause in several] == causes


def test_another_size_is_replaced_by_the_right_one():
    """What is behind gets tensors of Keras's size, so that the padding is the only mistake of its layer."""
    model = chain()
    twin, mapping = ported64(model, Twin(forward, **parts()), *NAMES)
    twin.first.padding = (0, 2)
    twin.second.padding = (2, 0)
    put(twin.head.bias, 0.0)
    _, found = every(model, twin, x_of(2, 9, 8, 3), mapping)
    assert found == [("first", ["padding"]), ("second", ["padding"]), ("head", ["bias missing"])]


class Own(nn.Module):
    """A module whose name does not say what it does: which layers it is the twin of is not certain."""

    def forward(self, x):
        """Pool, with a window more at the end."""
        return F.max_pool2d(x, 2, ceil_mode=True)


def test_more_than_is_due_at_the_end_is_another_size_too():
    """The right numbers are in it, and nothing has added a border."""
    model = float64_model(
        (9, 7, 3), lambda i: L.Conv2D(4, 3, name="b")(L.MaxPooling2D(2, name="pool")(conv("a", 4)(i)))
    )
    twin = Twin(lambda t, x: t.b(t.pool(t.a(x))), a=nn.Conv2d(3, 4, 3, padding=1), pool=Own(), b=nn.Conv2d(4, 4, 3))
    twin, mapping = ported64(model, twin, "a", "b")
    put(twin.b.weight, twin.b.weight.flip(2, 3))
    assert every(model, twin, x_of(2, 9, 7, 3), mapping)[1] == [("pool", ["padding"]), ("b", ["kernel flipped"])]


def test_what_comes_behind_the_last_layer_counts_too():
    model = float64_model((6,), lambda i: L.Dense(4, name="b")(L.Dense(5, name="a")(i)))
    twin = Twin(lambda t, x: t.b(t.a(x)).tanh(), a=nn.Linear(6, 5), b=nn.Linear(5, 4))
    twin, mapping = ported64(model, twin, "a", "b")
    put(twin.b.bias, 0.0)
    assert every(model, twin, x_of(3, 6), mapping)[1] == [
        ("b", ["bias missing"]),
        ("output 1, of b", ["another activation"]),
    ]


def test_the_border_of_a_function_before_a_layer_stays():
    """The activation is missing, so what the padding function takes is replaced, not what the convolution takes."""
    model = float64_model(
        (9, 8, 3),
        lambda i: L.Conv2D(4, 3, strides=2, padding="same", name="c")(
            L.Activation("relu", name="act")(conv("first", 4)(i))
        ),
    )
    modules = {"first": nn.Conv2d(3, 4, 3, padding=1), "c": nn.Conv2d(4, 4, 3, 2)}
    twin = Twin(lambda t, a: t.c(F.pad(t.first(a), (0, 1, 1, 1))), **modules)
    twin, mapping = ported64(model, twin, "first", "c")
    put(twin.first.bias, 0.0)
    x = x_of(2, 9, 8, 3)
    assert every(model, twin, x, mapping)[1] == [("first", ["bias missing"]), ("act", ["activation missing"])]
    put(twin.c.weight, twin.c.weight.flip(2, 3))
    assert every(model, twin, x, mapping)[1][2:] == [("c", ["kernel flipped"])]


def test_a_crop_behind_a_layer_is_no_other_size():
    """A causal convolution that is padded on both sides and then cut is right."""
    model = float64_model(
        (12, 3),
        lambda i: L.Dense(2, name="d")(
            L.Conv1D(4, 3, padding="causal", name="b")(L.Conv1D(3, 3, padding="causal", name="a")(i))
        ),
    )
    modules = {"a": nn.Conv1d(3, 3, 3, padding=2), "b": nn.Conv1d(3, 4, 3, padding=2), "d": nn.Linear(4, 2)}
    twin = Twin(lambda t, x: t.d(t.b(t.a(x)[..., :-2])[..., :-2].mT), **modules)
    twin, mapping = ported64(model, twin, "a", "b", "d")
    put(twin.a.bias, 0.0)
    put(twin.d.bias, 0.0)
    assert every(model, twin, x_of(2, 12, 3), mapping)[1] == [("a", ["bias missing"]), ("d", ["bias missing"])]


def test_a_layer_may_take_another_input_and_make_something_else_of_the_right_one():
    model = float64_model(
        (9, 8, 3), lambda i: L.Dense(3, name="head")(L.GlobalAveragePooling2D()(conv("second", 5)(conv("first", 3)(i))))
    )
    modules = {"first": nn.Conv2d(3, 3, 3, padding=1), "second": nn.Conv2d(3, 5, 3, padding=1), "head": nn.Linear(5, 3)}
    twin = Twin(lambda t, a: t.head(t.second(t.first(a).flip(1)).mean((2, 3))), **modules)
    twin, mapping = ported64(model, twin, "first", "second", "head")
    put(twin.second.bias, 0.0)
    found, causes = every(model, twin, x_of(2, 9, 8, 3), mapping)
    assert causes == [("second", ["channels reversed"]), ("second", ["bias missing"])]
    assert [one.divergence.verdict for one in found.divergences] == ["TAKES OTHER INPUT", "DIVERGES HERE"]


def two_branches():
    def layers(i):
        left = conv("a2", 4)(conv("a1", 3)(i))
        right = conv("b2", 4)(conv("b1", 3)(i))
        return L.Dense(2, name="head")(L.GlobalAveragePooling2D()(L.Add(name="add")([left, right])))

    modules = {name: nn.Conv2d(3, 4 if name.endswith("2") else 3, 3, padding=1) for name in ("a1", "a2", "b1", "b2")}
    return float64_model((9, 8, 3), layers), modules | {"head": nn.Linear(4, 2)}


def branches(t, a):
    return t.head((t.a2(t.a1(a)) + t.b2(t.b1(a))).mean((2, 3)))


BRANCHES = ("a1", "a2", "b1", "b2", "head")


def test_exchanged_weights_are_one_mistake():
    model, modules = two_branches()
    twin, mapping = ported64(model, Twin(branches, **modules), *BRANCHES)
    twin.a2, twin.b2 = twin.b2, twin.a2
    put(twin.head.bias, 0.0)
    found, causes = every(model, twin, x_of(2, 9, 8, 3), mapping)
    assert causes == [("a2", ["weights of another layer"]), ("head", ["bias missing"])]
    assert [one.layer for one in found.divergences[0].also] == ["b2"]
    assert "\n  the same mistake shows at b2 (b2)" in str(found)


def test_exchanged_inputs_are_one_mistake():
    model, modules = two_branches()

    def run(t, a):
        left, right = t.a1(a), t.b1(a)
        return t.head((t.a2(right) + t.b2(left)).mean((2, 3)))

    twin, mapping = ported64(model, Twin(run, **modules), *BRANCHES)
    found, causes = every(model, twin, x_of(2, 9, 8, 3), mapping)
    assert causes == [("a2", ["another skip"])]
    assert [one.layer for one in found.divergences[0].also] == ["b2"]


def test_an_input_that_several_layers_take_is_one_mistake():
    model, modules = two_branches()
    twin, mapping = ported64(model, Twin(lambda t, a: branches(t, a / 255), **modules), *BRANCHES)
    put(twin.b2.bias, 0.0)
    _, causes = every(model, twin, x_of(2, 9, 8, 3), mapping)
    assert causes == [("b1", ["input scaled"]), ("b2", ["bias missing"])]


def test_the_calls_of_a_shared_layer_are_one_mistake():
    shared = conv("shared", 3)
    model = float64_model(
        (9, 8, 3),
        lambda i: L.Dense(2, name="head")(L.GlobalAveragePooling2D()(shared_twice(i, shared))),
    )
    modules = {"shared": nn.Conv2d(3, 3, 3, padding=1), "head": nn.Linear(3, 2)}
    twin = Twin(lambda t, a: t.head(t.shared(t.shared(a).relu()).mean((2, 3))), **modules)
    twin, mapping = ported64(model, twin, "shared", "head")
    put(twin.shared.bias, 0.0)
    put(twin.head.bias, 0.0)
    found, causes = every(model, twin, x_of(2, 9, 8, 3), mapping)
    assert causes == [("shared", ["bias missing"]), ("head", ["bias missing"])]
    assert [one.layer for one in found.divergences[0].also] == ["shared (call 2)"]


def shared_twice(i, shared):
    return shared(L.ReLU(name="act")(shared(i)))


def test_what_was_overwritten_in_place_is_one_mistake():
    model = float64_model(
        (9, 8, 3),
        lambda i: L.Dense(2, name="head")(L.GlobalAveragePooling2D()(skipped(conv("first", 3)(i)))),
    )
    modules = {"first": nn.Conv2d(3, 3, 3, padding=1), "inner": nn.Conv2d(3, 3, 3, padding=1), "head": nn.Linear(3, 2)}

    def run(t, a):
        skip = t.first(a)
        return t.head((t.inner(torch.relu_(skip)) + skip).mean((2, 3)))

    twin, mapping = ported64(model, Twin(run, **modules), "first", "inner", "head")
    put(twin.first.bias, 0.0)
    put(twin.inner.bias, 0.0)
    assert every(model, twin, x_of(2, 9, 8, 3), mapping)[1] == [
        ("first", ["bias missing"]),
        ("inner", ["bias missing"]),
        ("add", ["overwritten in place"]),
    ]


def skipped(x):
    return L.Add(name="add")([conv("inner", 3)(L.ReLU(name="act")(x)), x])


def recurrent():
    def layers(i):
        x = L.LSTM(4, return_sequences=True, name="first")(i)
        x = L.Bidirectional(L.GRU(3, return_sequences=True), name="second")(x)
        return L.Dense(2, name="head")(L.LSTM(5, name="last")(x))

    modules = {
        "first": nn.LSTM(3, 4, batch_first=True),
        "second": nn.GRU(4, 3, bidirectional=True),
        "last": nn.LSTM(6, 5, batch_first=True),
        "head": nn.Linear(5, 2),
    }
    return float64_model((7, 3), layers), modules


def recurrent_rows(model):
    """Yield the rows of the mapping: an LSTM has one bias, and PyTorch's module a second one, which is 0."""
    names = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh", "bias": "bias_ih"}
    for weight in model.weights:
        layer, kind = weight.path.split("/")[0], weight.name
        if layer == "head":
            yield weight.path, f"head.{'bias' if kind == 'bias' else 'weight'}"
            continue
        end = "_l0_reverse" if "backward" in weight.path else "_l0"
        yield weight.path, f"{layer}.{names[kind]}{end}"
        if kind == "bias":
            yield weight.path if layer == "second" else "", f"{layer}.bias_hh{end}"


STATES = {
    "the last step": lambda t, y: t.last(y)[0][:, -1],
    "the last state": lambda t, y: t.last(y)[1][0][-1],
}


@pytest.mark.parametrize("way", STATES)
def test_recurrent_layers(way):
    """What a module returns twice, all steps and the last state, is replaced where it is used."""
    model, modules = recurrent()
    twin = Twin(
        lambda t, x: t.head(STATES[way](t, t.second(t.first(x)[0].transpose(0, 1))[0].transpose(0, 1))), **modules
    )
    twin = twin.double().eval()
    x = x_of(4, 7, 3)
    mapping = table(*recurrent_rows(model))
    transfer(model, twin, mapping)
    given = {"torch_x": torch.from_numpy(x)}
    assert every(model, twin, x, mapping, **given)[1] == []
    put(twin.first.bias_ih_l0, 0.0)
    put(twin.last.weight_hh_l0, twin.last.weight_hh_l0.flip(1))
    put(twin.head.bias, 0.0)
    found, causes = every(model, twin, x, mapping, **given)
    assert [layer for layer, _ in causes] == ["first", "last", "head"]
    assert (causes[0][1], causes[2][1]) == (["bias missing"], ["bias missing"])
    assert not found.unseen


def test_a_forgotten_eval_is_one_mistake():
    model = float64_model(
        (9, 8, 3), lambda i: L.BatchNormalization(name="b")(conv("c", 3)(L.BatchNormalization(name="a")(i)))
    )
    twin = Twin(lambda t, x: t.b(t.c(t.a(x))), a=norm(3), c=nn.Conv2d(3, 3, 3, padding=1), b=norm(3))
    twin, mapping = ported64(model, twin, "a", "b", "c")
    put(twin.c.bias, 0.0)
    found, causes = every(model, twin.train(), x_of(4, 9, 8, 3), mapping)
    assert causes == [("a", ["train mode"]), ("c", ["bias missing"])]
    assert [one.layer for one in found.divergences[0].also] == ["b"]


def test_where_the_twin_stops_what_was_seen_is_said():
    """It has the wrong size in its code, so that it cannot go on with the right one."""
    model = chain()

    def run(t, a):
        y = t.second(t.bn(t.first(a))).relu()
        return t.head(y.reshape(2, 5, 11, 8).mean((2, 3)))

    twin, mapping = ported64(model, Twin(run, **parts()), *NAMES)
    twin.second.padding = (2, 1)
    put(twin.bn.bias, 0.0)
    found, causes = every(model, twin, x_of(2, 9, 8, 3), mapping)
    assert causes == [("bn", ["bias missing"]), ("second", ["padding"])]
    assert "RuntimeError" in found.stopped
    assert found.unseen == ("mean", "head", "output 1, of head")
    assert "the twin stops, even with the right inputs" in str(found)
    assert str(found).endswith("Not looked at by itself: mean, head, output 1, of head")


def test_what_could_not_be_replaced_is_said():
    """The square has no twin that can be found, so nothing tells what the layer behind it should take."""
    model = float64_model((6,), lambda i: L.Dense(2, name="b")(keras.ops.square(L.Dense(4, name="a")(i))))
    twin = Twin(lambda t, x: t.inner(t.a(x)), a=nn.Linear(6, 4), inner=Twin(lambda t, y: t.b(y * y), b=nn.Linear(4, 2)))
    twin, mapping = ported64(model, twin, "a", b="inner.b")
    put(twin.a.bias, 0.0)
    put(twin.inner.b.bias, 0.0)
    found, causes = every(model, twin, x_of(3, 6), mapping)
    assert causes[0] == ("a", ["bias missing"])
    assert ("b", ["bias missing"]) in causes or "b" in found.unseen


def test_so_many_that_no_cause_is_looked_for(monkeypatch):
    from parity.diagnosis import each_alone

    monkeypatch.setattr(each_alone, "_AT_ONCE", 1)
    monkeypatch.setattr(each_alone, "_TIMES", 2)
    model = chain()
    twin, mapping = ported64(model, Twin(forward, **parts()), *NAMES)
    for module in (twin.first, twin.bn, twin.second, twin.head):
        put(module.bias, 0.0)
    found, causes = every(model, twin, x_of(2, 9, 8, 3), mapping)
    assert causes == [("first", ["bias missing"]), ("bn", ["bias missing"])]
    assert [one.layer for one in found.unexplained] == ["second", "head"]
    assert str(found).count("no cause was looked for") == 2


def test_in_training():
    """Statistics are those of the right inputs; gradients depend on everything, so they are left out."""
    model = float64_model(
        (9, 8, 3), lambda i: L.BatchNormalization(name="b")(conv("c", 3)(L.BatchNormalization(name="a")(i)))
    )
    twin = Twin(lambda t, x: t.b(t.c(t.a(x))), a=norm(3), c=nn.Conv2d(3, 3, 3, padding=1), b=norm(3))
    twin, mapping = ported64(model, twin, "a", "b", "c")
    put(twin.c.weight, twin.c.weight.flip(2, 3))
    x = x_of(4, 9, 8, 3)
    found, causes = every(model, twin, x, mapping, training=True)
    assert causes == [("c", ["kernel flipped"])]
    assert "Gradients were not looked at" in str(found)
    twin.a.momentum = twin.b.momentum = 0.1
    assert every(model, twin, x, mapping, training=True)[1] == [
        ("a", ["momentum"]),
        ("c", ["kernel flipped"]),
        ("b", ["momentum"]),
    ]
    put(twin.c.weight, twin.c.weight.flip(2, 3))
    found, causes = every(model, twin, x, mapping, training=True)
    assert causes == [("a", ["momentum"]), ("b", ["momentum"])]
    assert "Gradients" not in str(found)


def test_bad_input_is_the_error_of_a_trace():
    with pytest.raises(ParityError, match=r"it is no torch\.nn\.Module"):
        diagnose(chain(), "twin", x_of(2, 9, 8, 3), None, each_alone=True)


def test_a_keras_model_with_the_channels_first():
    first = {"data_format": "channels_first"}

    def layers(i):
        x = L.Conv2D(4, 3, name="a", **first)(i)
        x = L.ReLU(name="act")(L.BatchNormalization(axis=1, name="bn")(x))
        return L.Dense(2, name="d")(L.GlobalAveragePooling2D(**first)(L.Conv2D(5, 3, name="b", **first)(x)))

    model = float64_model((3, 9, 8), layers)
    modules = {"a": nn.Conv2d(3, 4, 3), "bn": norm(4), "b": nn.Conv2d(4, 5, 3), "d": nn.Linear(5, 2)}
    twin = Twin(lambda t, x: t.d(t.b(F.leaky_relu(t.bn(t.a(x)), 0.2)).mean((2, 3))), **modules)
    twin, mapping = ported64(model, twin, *modules)
    twin.bn.eps = 0.1
    put(twin.a.bias, 0.0)
    put(twin.b.weight, twin.b.weight.flip(2, 3))
    x = x_of(2, 3, 9, 8)
    assert every(model, twin, x, mapping)[1] == [
        ("a", ["bias missing"]),
        ("bn", ["epsilon"]),
        ("act", ["another slope"]),
        ("b", ["kernel flipped"]),
    ]

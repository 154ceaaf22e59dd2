"""The search by itself: rounds, ties, trials, and what is said where nothing is found."""

from parity.models.keras_graph import keras_graph
from parity.proposal import search as module_of_search
from parity.proposal.failures import Failure
from parity.proposal.found import Found, Round, is_close, part_of, union
from parity.proposal.layers import keras_parts
from parity.proposal.search import Search
from parity.proposal.twin import TwinCopy
from tests.helpers.models import Twin, model_of, x_of

import pytest
import torch
from keras import layers as L
from torch import nn


def search_of(layers, twin, fixed=None, shape=(4,)):
    """Return a search that is about to begin."""
    x = x_of(2, *shape)
    parts, faults = keras_parts(keras_graph(model_of(shape, layers)), [x])
    assert faults == []
    copy = TwinCopy(twin, torch.float32)
    copy.inputs = [torch.from_numpy(x).movedim(-1, 1).contiguous()]
    return Search(parts, {label: copy.fitting(part) for label, part in parts.items()}, copy, fixed or {})


def found_by(search):
    with torch.no_grad():
        return search.run()


def chain(x):
    for name in "abc":
        x = L.Dense(4, activation="tanh", name=name)(x)
    return x


def linear(*names):
    return {name: nn.Linear(4, 4) for name in names}


def chained(order, **more):
    """Return a twin that calls its modules in this order."""

    def call(t, x):
        for name in order:
            x = getattr(t, name)(x).tanh()
        return x

    return Twin(call, **linear(*"pqr"), **more)


@pytest.mark.parametrize("order", ["pqr", "rqp", "qrp"])
def test_a_chain_is_followed_whatever_the_modules_are_called(order):
    found = found_by(search_of(chain, chained(order)))
    assert found.options == {label: {name} for label, name in zip("abc", order, strict=True)}
    assert (found.failing, found.blocked) == ({}, {})


def test_what_is_fixed_is_taken_if_the_numbers_agree():
    assert found_by(search_of(chain, chained("qrp"), {"a": "q"})).options == {"a": {"q"}, "b": {"r"}, "c": {"p"}}
    found = found_by(search_of(chain, chained("qrp"), {"b": "q"}))
    assert found.failing["a"] == Failure("q takes what it takes, but by name it is the twin of b", True)
    assert found.options["a"] == {None}


def test_where_numbers_stop_agreeing_the_nearest_is_named_and_the_rest_is_blocked():
    twin = Twin(lambda t, x: t.r((t.q(t.p(x).tanh() + 0.25)).tanh()).tanh(), **linear(*"pqr"))
    found = found_by(search_of(chain, twin))
    assert found.options == {"a": {"p"}, "b": {None}, "c": {None}}
    assert found.failing.keys() == {"b"}
    assert found.failing["b"].why.startswith(
        "no module takes what it takes: q comes nearest, 0.25 off, where rounding "
    )
    assert found.failing["b"].why.endswith("look at a (p) and what follows")
    assert found.blocked == {"c": "lies behind b"}


def branches(join):
    def layers(x):
        return L.Dense(3, name="c")(join([L.Dense(4, name="a")(x), L.Dense(4, name="b")(x)]))

    return layers


def joined(join, size):
    return Twin(lambda t, x: t.c(join(t.p(x), t.q(x))), **linear("p", "q"), c=nn.Linear(size, 3))


def test_a_tie_that_a_later_layer_decides():
    twin = joined(lambda p, q: torch.cat([q, p], 1), 8)
    found = found_by(search_of(branches(L.Concatenate()), twin))
    assert found.options == {"a": {"q"}, "b": {"p"}, "c": {"c"}}


def test_a_tie_that_nothing_decides_stays_and_is_tried_no_further_than_it_must(monkeypatch):
    search = search_of(branches(L.Add()), joined(torch.add, 4))
    found = found_by(search)
    assert found.options == {"a": {"p", "q"}, "b": {"p", "q"}, "c": {"c"}}
    assert search.trials == 2
    monkeypatch.setattr(module_of_search, "_TRIALS", 0)
    monkeypatch.setattr(module_of_search, "_TRIALS_EACH", 0)
    assert found_by(search_of(branches(L.Add()), joined(torch.add, 4))).options["c"] == {None}


def test_ties_without_followers_take_no_trial():
    search = search_of(
        lambda x: [L.Dense(4, name=name)(x) for name in "ab"], Twin(lambda t, x: (t.p(x), t.q(x)), **linear("p", "q"))
    )
    assert found_by(search).options == {"a": {"p", "q"}, "b": {"p", "q"}}
    assert search.trials == 0


def test_one_module_for_two_layers_is_the_fault_of_both():
    twin = Twin(lambda t, x: t.p(x) + t.p(x), **linear("p"))
    found = found_by(search_of(lambda x: L.Add()([L.Dense(4, name=name)(x) for name in "ab"]), twin))
    assert found.failing == dict.fromkeys("ab", Failure("p is the only one for a and for b", True))


def test_all_modules_that_fit_may_be_taken():
    twin = Twin(lambda t, x: t.p(t.p(x)), **linear("p"))
    found = found_by(search_of(lambda x: L.Dense(4, name="b")(L.Dense(4, name="a")(x)), twin))
    assert found.failing == {"b": Failure("no module is left that fits: p is the twin of a", True)}


def shared(x):
    layer = L.Dense(4, name="s")
    return L.Dense(2, name="out")(layer(L.ReLU()(layer(x))))


@pytest.mark.parametrize(("between", "fails"), [(torch.relu, False), (torch.tanh, True)])
def test_the_later_calls_of_a_shared_layer_are_checked(between, fails):
    twin = Twin(lambda t, x: t.out(t.p(between(t.p(x)))), **linear("p"), out=nn.Linear(4, 2))
    found = found_by(search_of(shared, twin))
    assert found.options["s"] == {"p"}
    assert ("s (call 2)" in found.failing) is fails
    if fails:
        assert found.failing["s (call 2)"].why.startswith(
            "p does not take what it takes in this call: p comes nearest, "
        )


def flat(x):
    return L.Dense(2, name="d")(L.Flatten()(L.Conv2D(3, 1, name="c")(x)))


def flattening(call):
    return Twin(lambda t, x: t.d(call(t.c(x))), c=nn.Conv2d(2, 3, 1), d=nn.Linear(60, 2))


@pytest.mark.parametrize(
    ("call", "shape"), [(lambda x: x.flatten(1), (4, 5, 3)), (lambda x: x.movedim(1, -1).flatten(1), None)]
)
def test_features_are_told_by_their_order(call, shape):
    found = found_by(search_of(flat, flattening(call), shape=(4, 5, 2)))
    assert found.options == {"c": {"c"}, "d": {"d"}}
    assert found.flattened["d", "d"] == shape


def test_features_whose_order_does_not_show_are_no_guess():
    search = search_of(flat, flattening(lambda x: x.flatten(1)), shape=(4, 5, 2))
    taken = search.parts["d"].inputs[0]
    constant = taken._replace(value=torch.ones_like(taken.value))
    takes = {"d": [torch.ones(2, 60)], "c": search.twin.inputs}
    assert search.is_order_unclear([constant], "d", Round({}, takes))
    assert not search.is_order_unclear([constant._replace(flattened=(1, 1, 60))], "d", Round({}, takes))
    assert not search.is_order_unclear([constant._replace(flattened=(60, 1))], "d", Round({}, takes))
    assert not search.is_order_unclear([constant._replace(flattened=None)], "d", Round({}, takes))
    assert not search.is_order_unclear([taken], "d", Round({}, {"d": [taken.value]}))
    search.parts["d"].inputs[0] = constant._replace(before=frozenset())
    failing = {}
    assert "d" not in search.candidates(Round({}, takes), failing)
    assert failing["d"] == Failure("x does not show in which order d takes the flattened features")


def test_only_what_is_ready_has_candidates():
    search = search_of(chain, chained("pqr"))
    with torch.no_grad():
        takes = search.twin.inputs_of_modules({})
    failing = {}
    assert search.candidates(Round({}, takes), failing) == {"a": ["p"]}
    assert failing == {}
    with torch.no_grad():
        takes = search.twin.inputs_of_modules({"p": (search.parts["a"], None)})
    assert search.candidates(Round({"a": "p"}, takes), failing) == {"b": ["q"]}


def test_what_is_promised_to_one_is_not_allowed_to_another():
    search = search_of(chain, chained("pqr"), {"b": "q"})
    assert (search.allowed("a"), search.allowed("b")) == (["p", "r"], ["q"])


def found(options, failing=None, blocked=None):
    return Found(options, failing or {}, {}, blocked or {})


def test_what_remains_of_several_trials_is_all_that_each_leaves():
    first = found({"a": {"p"}, "b": {"q"}}, {"c": Failure("x", True), "d": Failure("y", True)}, {"e": "lies behind c"})
    second = found({"a": {"q"}, "b": {"q", None}}, {"c": Failure("x", True), "d": Failure("y")}, {"f": "lies behind d"})
    both = union([first, second])
    assert both.options == {"a": {"p", "q"}, "b": {"q", None}}
    assert both.failing == {"c": Failure("x", True), "d": Failure("y")}
    assert both.blocked == {"e": "lies behind c", "f": "lies behind d"}
    assert union([first]) == first
    alone = union([first, found({"a": {"p"}, "b": {"q"}})])
    assert alone.failing["c"] == Failure("x")  # what is so in one trial only may be the fault of the trial


def test_the_part_that_a_failure_is_about():
    assert part_of("a/b (call 2)") == "a/b"
    assert part_of("a/b") == "a/b"


@pytest.mark.parametrize(
    ("a", "b", "close"),
    [
        (torch.tensor([1.0, 1000]), torch.tensor([1.1, 1000]), True),
        (torch.tensor([1.0, 1000]), torch.tensor([1.5, 1000]), False),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), True),
        (torch.tensor([1, 1000]), torch.tensor([2, 1000]), False),
        (torch.ones(2, 1), torch.ones(2), False),
    ],
)
def test_tensors_of_the_twin_are_close_if_rounding_may_explain_it(a, b, close):
    assert is_close(a, b) is close


def test_trials_that_leave_the_same_are_merged():
    search = search_of(branches(L.Add()), joined(torch.add, 4))
    with torch.no_grad():
        node = search.propagate({}, {})
        assert node.ties == {"a": ["p", "q"], "b": ["p", "q"]}
        children = [search.propagate({"a": name}, {}) for name in ("p", "q")]
    assert [child.matched for child in children] == [{"a": "p", "b": "q", "c": "c"}, {"a": "q", "b": "p", "c": "c"}]
    assert search.merged(children) == [children]
    assert search.merged([children[0], children[0]._replace(failing={"x": Failure("y")})]) != [children]
    assert len(search.merged([children[0], children[1]._replace(matched={"a": "q"})])) == 2
    search = search_of(branches(L.Concatenate()), joined(lambda p, q: torch.cat([q, p], 1), 8))
    with torch.no_grad():
        children = [search.propagate({"a": name}, {}) for name in ("p", "q")]
    assert [child.failing.keys() for child in children] == [{"c"}, set()]
    assert len(search.merged(children)) == 2


def test_a_trial_that_goes_on_beats_one_that_fails():
    search = search_of(branches(L.Concatenate()), joined(lambda p, q: torch.cat([q, p], 1), 8))
    with torch.no_grad():
        node = search.propagate({}, {})
        wrong, right = (search.result_at(search.propagate({"a": name}, {})) for name in ("p", "q"))
    assert search.disproves(right, wrong, node)
    assert not search.disproves(wrong, right, node)
    assert not search.disproves(right, right, node)


def test_a_tie_has_followers_if_a_layer_behind_it_is_open():
    search = search_of(branches(L.Add()), joined(torch.add, 4))
    with torch.no_grad():
        node = search.propagate({}, {})
    assert search.has_followers("a", node)
    assert not search.has_followers("a", node._replace(matched={"c": "c"}))


def test_a_module_that_takes_the_same_as_a_layers_twin_makes_a_tie_even_if_no_layer_is_left_for_it():
    """The first of the two that is called would be the layer's twin if the other had not been seen after it."""

    def layers(x):
        return L.Dense(2, name="out")(L.Dense(4, name="a")(x))

    out = {"out": nn.Linear(4, 2)}
    stray = Twin(lambda t, x: t.out(t.p(x) * 0 + t.q(x)), **linear("p", "q"), **out)
    assert found_by(search_of(layers, stray)).options == {"a": {"q"}, "out": {"out"}}
    open_ = found_by(search_of(lambda x: L.Dense(4, name="a")(x), Twin(lambda t, x: (t.p(x), t.q(x)), **linear(*"pq"))))
    assert open_.options == {"a": {"p", "q"}}


def test_one_run_finds_a_chain_and_a_module_that_is_told_in_a_later_call_runs_again():
    search = search_of(chain, chained("qrp"))
    counted, run = [], search.run_twin
    search.run_twin = lambda *args: counted.append(1) or run(*args)
    assert found_by(search).options["c"] == {"p"}
    assert len(counted) == 1
    twin = Twin(lambda t, x: t.out(t.p(x) + 0 * t.p(2 * x)), **linear("p"), out=nn.Linear(4, 2))
    late = Twin(lambda t, x: t.out(0 * t.p(2 * x) + t.p(x)), **linear("p"), out=nn.Linear(4, 2))
    for one, runs in ((twin, 1), (late, 2)):
        search = search_of(lambda x: L.Dense(2, name="out")(L.Dense(4, name="a")(x)), one)
        counted, run = [], search.run_twin
        search.run_twin = lambda *args, run=run, counted=counted: counted.append(1) or run(*args)
        assert found_by(search).options == {"a": {"p"}, "out": {"out"}}
        assert len(counted) == runs


def test_what_lies_behind_a_part_without_a_module_is_ready_without_it():
    search = search_of(chain, chained("pqr"))
    absent = Search(search.parts, search.fits, search.twin, {}, {"a"})
    assert not search.is_ready(search.parts["b"].inputs[0], {})
    assert absent.is_ready(absent.parts["b"].inputs[0], {})
    assert not absent.is_ready(absent.parts["c"].inputs[0], {})
    assert found_by(absent).failing.keys() == {"b"}

"""What a PyTorch model calls is recorded in order, with its tensors, and the model is left as it was."""

from parity import ParityError
from parity.models.torch_calls import Watch, identity_of, number_of, record, tensors_in
from tests.helpers.models import Twin

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def run(function, *x, whole=(), keys=(), watch=None, **modules):
    """Record a model made of a function and modules on a tensor (2, 4), or on others."""
    return record(Twin(function, **modules), x or (torch.ones(2, 4),), whole, keys, watch)


def names(calls):
    return [call.name for call in calls]


# --- The calls --------------------------------------------------------------------------------------------------------


def test_modules_and_functions_are_recorded_in_order_with_their_tensors():
    modules = {"first": nn.Linear(4, 3), "second": nn.Linear(3, 3)}
    calls, outputs, tensors = run(lambda t, x: (y := t.first(x).relu()) + t.second(y), **modules)
    assert names(calls) == ["first", "relu", "second", "add"]
    assert [call.module for call in calls] == [modules["first"], None, modules["second"], None]
    assert [(call.inputs, call.outputs) for call in calls] == [((0,), (1,)), ((1,), (2,)), ((2,), (3,)), ((2, 3), (4,))]
    assert [call.shapes for call in calls] == [((2, 3),)] * 4
    assert outputs == [4]
    y = modules["first"](torch.ones(2, 4)).relu()
    assert torch.equal(tensors[0], y + modules["second"](y))


def test_the_inputs_are_numbered_from_zero_and_need_not_be_used_in_order():
    x = torch.ones(2, 4), torch.zeros(2, 4), torch.ones(1)
    (call,), outputs, _ = run(lambda t, a, b, c: (b - a, a), *x)
    assert (call.name, call.inputs, call.outputs) == ("sub", (1, 0), (3,))
    assert outputs == [3, 0]


def test_a_tensor_that_the_model_did_not_compute_has_no_number():
    (call,), outputs, _ = run(lambda t, x: (torch.add(torch.ones(4), x), torch.zeros(1)))
    assert call.inputs == (-1, 0)
    assert outputs == [call.outputs[0], -1]


def test_functions_of_other_tensors_and_of_numbers_are_no_calls():
    calls, *_ = run(lambda t, x: x.view(x.size(0), x.shape[1], *torch.zeros(3).exp().long()[:0].tolist()))
    assert names(calls) == ["view"]


def test_a_module_may_return_several_tensors_and_take_keywords():
    def both(t, x):
        y, (h, c) = t.rnn(x)
        return t.pair(a=y, b=[h, {"c": c}])

    pair = Twin(lambda t, a, b: (b[0] + a[:, -1:].movedim(0, 1), a))
    calls, outputs, _ = run(both, torch.ones(2, 3, 4), rnn=nn.LSTM(4, 5, batch_first=True), pair=pair)
    assert names(calls) == ["rnn", "pair"]
    assert calls[0].outputs == (1, 2, 3)
    assert calls[0].shapes == ((2, 3, 5), (1, 2, 5), (1, 2, 5))
    assert calls[1].inputs == (1, 2, 3)
    assert outputs == list(calls[1].outputs)


def test_modules_within_modules_have_their_full_names_and_a_module_is_one_call():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 1)))
    assert names(run(lambda t, x: t.inner(x), inner=inner)[0]) == ["inner.0", "inner.1", "inner.2.0"]
    calls, outputs, _ = run(lambda t, x: t.inner(x), whole=[inner[2], inner], inner=inner)
    assert names(calls) == ["inner"]
    assert (calls[0].module, calls[0].outputs) == (inner, (1,))
    assert outputs == [1]
    assert names(run(lambda t, x: t.inner(x), whole=[inner[2]], inner=inner)[0]) == ["inner.0", "inner.1", "inner.2"]


def test_a_model_that_is_one_module_of_pytorch_is_one_call_and_one_of_the_readers_own_is_its_functions():
    (call,), *_ = record(nn.Linear(4, 3), [torch.ones(2, 4)])
    assert call.name == ""
    assert isinstance(call.module, nn.Linear)
    assert names(run(lambda t, x: F.relu(x.square()))[0]) == ["square", "relu"]


def test_a_module_that_is_called_twice_is_two_calls():
    calls, *_ = run(lambda t, x: t.d(t.d(x)), d=nn.Linear(4, 4))
    assert names(calls) == ["d", "d"]
    assert calls[1].inputs == calls[0].outputs


def test_attributes_and_assignments_are_calls():
    def function(t, x):
        y = x.T.clone()
        y[:, 0] = x[1]
        return y

    calls, outputs, _ = run(function)
    assert names(calls) == ["permute", "clone", "getitem", "setitem"]
    assert calls[0].shapes == ((4, 2),)
    taken, given = calls[1].outputs[0], calls[2].outputs[0]
    assert calls[3].inputs == (taken, given)
    assert calls[3].overwrites
    assert outputs == list(calls[3].outputs)
    assert outputs != [taken]


def test_what_returns_the_very_tensor_that_it_takes_overwrites():
    calls, outputs, _ = run(lambda t, x: t.act(x + 1).mul_(2).relu(), act=nn.ReLU(inplace=True))
    assert [(call.name, call.overwrites) for call in calls] == [
        ("add", False),
        ("act", True),
        ("mul", True),
        ("relu", False),
    ]
    assert [call.inputs for call in calls] == [(0,), (1,), (2,), (3,)]
    assert outputs == [4]


# --- Dropout ----------------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A module of the reader's own without modules in it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        """Apply the function."""
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "rate"),
    [
        (lambda t, x: F.dropout(x, 0.25), 0.25),
        (lambda t, x: F.dropout(x), 0.5),
        (lambda t, x: F.dropout(input=x, training=t.training, p=0.125), 0.125),
        (lambda t, x: torch.dropout(x, 0.75, False), 0.75),
        (lambda t, x: F.alpha_dropout(x, 0.25), 0.25),
        (lambda t, x: F.dropout1d(x, 0.25), 0.25),
        (lambda t, x: F.relu(x), None),
        (lambda t, x: t.m(x), None),
    ],
)
def test_the_rate_of_functions_that_drop(function, rate):
    (call,), *_ = run(function, m=Own(lambda x: x + 1))
    assert call.rate == rate
    assert call.rates_inside == ()


@pytest.mark.parametrize(
    ("module", "rate", "inside"),
    [
        (nn.Dropout(0.25), 0.25, ()),
        (nn.Dropout1d(0.25), 0.25, ()),
        (nn.Linear(4, 4), None, ()),
        (Own(lambda x: F.dropout(x, 0.25)), 0.25, ()),
        (Own(lambda x: F.dropout(x, 0.25 * x.size(0) / 2)), 0.25, ()),
        (Own(lambda x: F.dropout(x, 0.25) + 1), None, (0.25,)),
        (Own(lambda x: F.dropout(F.dropout(x, 0.25), 0.5)), None, (0.25, 0.5)),
        (Own(lambda x: F.dropout(x, 0.25).view(x.size(0), 4)), None, (0.25,)),
    ],
)
def test_the_rate_of_modules_that_drop(module, rate, inside):
    calls, *_ = run(lambda t, x: t.after(t.m(x)), m=module, after=nn.Linear(4, 4))
    assert (calls[0].rate, calls[0].rates_inside) == (rate, inside)
    assert (calls[1].rate, calls[1].rates_inside) == (None, ())


# --- What a model returns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "order"), [((), [1, 2]), (("b", "a"), [2, 1]), (("a", "c"), [1, 2]), (("a",), [1, 2])]
)
def test_the_outputs_of_a_dictionary_are_in_the_order_of_the_keys_if_it_has_these(keys, order):
    _, outputs, tensors = run(lambda t, x: {"a": x + 1, "b": x + 2}, keys=keys)
    assert outputs == order
    assert [float(tensor[0, 0]) - 1 for tensor in tensors] == order


def test_the_outputs_are_a_flat_list_of_tensors():
    _, outputs, tensors = run(lambda t, x: (x, [x + 1, 3.0, None], {"a": x * 2}))
    assert outputs == [0, 1, 2]
    assert len(tensors) == 3


def test_tensors_are_found_in_nested_structures_in_their_order():
    a, b, c = torch.ones(1), torch.zeros(1), nn.Parameter(torch.ones(2))
    found = tensors_in((a, [{"x": b, "y": 3}, None], "text", (c, a)))
    assert [id(tensor) for tensor in found] == [id(a), id(b), id(c), id(a)]
    assert tensors_in(a)[0] is a
    assert tensors_in(3.0) == []


# --- The numbers of tensors -------------------------------------------------------------------------------------------


def test_a_tensor_has_its_number_while_the_model_runs_and_none_afterwards():
    x, kept = torch.ones(2, 4), []

    def function(t, a):
        kept.extend([a, a + 1])
        seen.append((number_of(a), number_of(kept[1]), number_of(torch.ones(1))))
        return kept[1]

    seen = []
    run(function, x)
    assert seen == [(0, 1, -1)]
    assert [number_of(tensor) for tensor in (x, *kept)] == [-1, -1, -1]
    assert not vars(x)
    assert not vars(kept[1])


def test_the_identity_of_a_tensor_changes_when_it_is_overwritten():
    seen = []

    def function(t, x):
        seen.append(identity_of(x))
        x.mul_(2)
        seen.append(identity_of(x))
        with torch._C.DisableTorchFunction():
            x.mul_(2)  # of which no call is recorded
        seen.append(identity_of(x))
        seen.append(identity_of(x))
        return x

    run(function)
    assert len(set(seen)) == 3
    assert seen[2] == seen[3]
    assert [number for number, _ in seen] == [0, 1, 1, 1]
    assert identity_of(torch.ones(1)) is None


def test_a_tensor_of_inference_mode_has_no_identity():
    seen = []
    with torch.inference_mode():
        run(lambda t, x: seen.append((number_of(x), identity_of(x))) or x, torch.ones(2, 4))
    assert seen == [(0, None)]


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_a_model_that_fails_is_an_error_that_says_where():
    with pytest.raises(ParityError, match=r"^Twin: 1 fault\n  it stops in b: RuntimeError: mat1 and mat2") as caught:
        run(lambda t, x: t.b(t.a(x)), a=nn.Linear(4, 3), b=nn.Linear(4, 3))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ParityError, match=r"it stops: ZeroDivisionError: division by zero"):
        run(lambda t, x: x * (1 / 0))


def test_a_module_that_fails_and_is_caught_by_its_caller_is_no_call():
    def function(t, x):
        try:
            y = t.bad(x)
        except RuntimeError:
            y = t.good(x)
        return t.last(y)

    calls, outputs, _ = run(function, bad=nn.Linear(5, 3), good=nn.Linear(4, 3), last=nn.Linear(3, 3))
    assert names(calls) == ["good", "last"]
    assert [call.inputs for call in calls] == [(0,), (1,)]
    assert outputs == [2]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_a_failure_nothing_listens_any_more(error):
    def function(t, x):
        x = t.a(x)
        if t.fail:
            raise error("stop")
        return x

    model, x = Twin(function, a=nn.Linear(4, 4)), torch.ones(2, 4)
    model.fail = True
    with pytest.raises((ParityError, KeyboardInterrupt), match="stop"):
        record(model, [x])
    assert not vars(x)
    assert not model.a._forward_pre_hooks
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    model.fail = False
    assert names(record(model, [x])[0]) == ["a"]


# --- A second run -----------------------------------------------------------------------------------------------------


def watched(function, *, dropout=True, expected=None, **modules):
    """Record a model, and run it again with a watcher; return what that saw."""
    model, x, seen = Twin(function, **modules), torch.ones(2, 4), []
    first = record(model, [x]) if expected is None else expected
    watch = Watch(
        first[0], lambda number, when, tensors: seen.append((number, when, [t.clone() for t in tensors])), dropout
    )
    second = record(model, [x], watch=watch)
    return first, second, seen


def test_a_watcher_is_called_with_the_tensors_before_and_after_each_call():
    modules = {"d": nn.Linear(4, 4), "act": nn.ReLU(inplace=True)}
    first, second, seen = watched(lambda t, x: t.act(t.d(x) - 3).size() and x.mul(5).add_(t.d(x)), **modules)
    assert first[0] == second[0]
    assert first[1] == second[1]
    x = torch.ones(2, 4)
    y = modules["d"](x)
    expected = [
        ("d", [x], [y]),
        ("sub", [y], [y - 3]),
        ("act", [y - 3], [F.relu(y - 3)]),
        ("mul", [x], [5 * x]),
        ("d", [x], [y]),
        ("add", [5 * x, y], [5 * x + y]),
    ]
    assert names(second[0]) == [name for name, *_ in expected]
    *seen, (end, when, outputs) = seen
    assert (end, when) == (6, "in")  # the model's return
    assert torch.equal(outputs[0], 5 * x + y)
    assert [(number, when) for number, when, _ in seen] == [(i, when) for i in range(6) for when in ("in", "out")]
    for (_, taken, returned), (_, _, before), (_, _, after) in zip(expected, seen[::2], seen[1::2], strict=True):
        for found, wanted in zip([*before, *after], [*taken, *returned], strict=True):
            assert torch.equal(found, wanted)


def test_what_a_watcher_computes_is_not_recorded_and_what_it_raises_is_raised():
    model, x = Twin(lambda t, x: t.d(x) + 1, d=nn.Linear(4, 4)), torch.ones(2, 4)
    calls, *_ = record(model, [x])
    again, *_ = record(model, [x], watch=Watch(calls, lambda number, when, tensors: tensors[0].exp().add_(1)))
    assert again == calls

    def broken(number, when, tensors):
        raise LookupError("of the watcher")

    with pytest.raises(LookupError, match="of the watcher"):
        record(model, [x], watch=Watch(calls, broken))


@pytest.mark.parametrize(
    "second",
    [
        lambda t, x: t.b(t.a(x)).relu(),
        lambda t, x: t.a(x).relu(),
        lambda t, x: t.b(t.a(x).relu()) + 1,
        lambda t, x: t.b(t.a(x).tanh()),
        lambda t, x: x,
    ],
    ids=["another order", "fewer", "more", "another function", "none"],
)
def test_other_calls_in_a_second_run_are_an_error_that_says_so(second):
    modules = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    first = run(lambda t, x: t.b(t.a(x).relu()), **modules)
    with pytest.raises(ParityError, match="what it calls depends on the number of examples, or on their values, or on"):
        watched(second, expected=first, **modules)


@pytest.mark.parametrize("where", ["model", "module"])
@pytest.mark.parametrize(
    "drop",
    [
        F.dropout,
        lambda x: F.dropout(input=x, p=0.9),
        lambda x: F.alpha_dropout(x, training=True),
        F.dropout1d,
        lambda x: torch.dropout(x, 0.5, True),
        lambda x: torch.feature_dropout(x, 0.5, True),
    ],
)
def test_with_dropout_off_functions_drop_nothing(where, drop):
    module = Own(drop)

    def function(t, x):
        x = x + torch.arange(4.0)
        return t.m(x) if where == "module" else drop(x)

    first, off, seen = watched(function, dropout=False, m=module)
    assert off[0] == first[0]
    assert off[0][-1].rate is not None
    assert torch.equal(off[2][0], torch.ones(2, 4) + torch.arange(4.0))
    assert torch.equal(seen[-1][2][0], off[2][0])
    torch.manual_seed(0)
    assert any(not torch.equal(watched(function, m=module)[1][2][0], off[2][0]) for _ in range(20))


# --- The model is left as it was --------------------------------------------------------------------------------------


def test_hooks_and_attributes_of_the_model_are_left_as_they_were_and_run():
    counts = {"module": 0, "model": 0}

    def hook(name):
        return lambda module, args, output: counts.update({name: counts[name] + 1}) or 2 * output

    model, x = Twin(lambda t, x: t.d(x), d=nn.Linear(4, 4)), torch.ones(2, 4)
    model.d.register_forward_hook(hook("module"))
    model.d.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model.register_forward_hook(hook("model"))
    model.train()
    model.d.eval()
    expected = model(x)
    before = [(dict(vars(m)), dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
    calls, _, (output,) = record(model, [x])
    assert [(dict(vars(m)), dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()] == before
    assert counts == {"module": 2, "model": 2}
    assert torch.equal(output, expected)
    assert names(calls) == ["d", "mul", "mul"]  # what hooks make of a module's outputs
    assert calls[0].inputs == (0,)  # what the model passes, whatever hooks make of it
    assert torch.equal(x, torch.ones(2, 4))


def test_gradients_go_through_what_is_recorded():
    x = torch.ones(2, 4, requires_grad=True)
    _, _, (output,) = run(lambda t, x: t.d(x).square(), x, d=nn.Linear(4, 4))
    output.sum().backward()
    assert x.grad is not None


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning", "ignore::DeprecationWarning")
def test_a_compiled_model_runs_as_it_was_before():
    inner = Twin(lambda t, x: t.b(t.a(x).relu()), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    calls, _, (output,) = record(torch.compile(inner, backend="eager"), [torch.ones(2, 4)])
    assert [name.removeprefix("_orig_mod.") for name in names(calls)] == ["a", "relu", "b"]
    assert torch.equal(output, inner(torch.ones(2, 4)))
    inner.a.compile(backend="eager")
    assert names(record(inner, [torch.ones(2, 4)])[0]) == ["a", "relu", "b"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_one_call():
    scripted = torch.jit.script(nn.Linear(4, 3))
    calls, outputs, _ = run(lambda t, x: t.s(t.d(x)).relu(), d=nn.Linear(4, 4), s=scripted)
    assert names(calls) == ["d", "s", "relu"]
    assert calls[1].module is scripted
    assert [call.inputs for call in calls] == [(0,), (1,), (2,)]
    assert outputs == [3]


def replacing(numbers, at, when="out"):
    """Return a watcher that gives a tensor of these numbers in place of the first one at a call, and what it sees."""
    seen = []

    def watcher(number, moment, tensors):
        seen.append((number, moment, [tensor.clone() for tensor in tensors], list(map(number_of, tensors))))
        if (number, moment) == (at, when):
            return [torch.full_like(tensors[0], numbers), *tensors[1:]]
        return None

    return watcher, seen


def run_with(model, x, watcher):
    calls, _, _ = record(model, [x.clone()])
    again, _, (output,) = record(model, [x.clone()], watch=Watch(calls, watcher))
    assert again == calls
    return output


def two(a, b):
    return Twin(lambda t, x: t.b(t.a(x)), a=a, b=b)


MODELS = {
    "modules": two(nn.Linear(4, 4), nn.Tanh()),
    "a module in place": two(nn.Linear(4, 4), nn.ReLU(inplace=True)),
    "functions": Twin(lambda t, x: (t.a(x).sin() + 1).tanh(), a=nn.Linear(4, 4)),
    "functions in place": Twin(lambda t, x: t.a(x).sin_().add_(1).tanh_(), a=nn.Linear(4, 4)),
    "what is returned is not used": Twin(lambda t, x: [y := t.a(x), y.sin_(), y.add_(1)][0], a=nn.Linear(4, 4)),
    "two inputs": Twin(lambda t, x: torch.add(t.a(x), t.b(x), alpha=2), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
    "a keyword": Twin(lambda t, x: torch.add(input=t.a(x), other=x), a=nn.Linear(4, 4)),
    "an assignment": Twin(lambda t, x: [y := t.a(x), y.__setitem__(0, 5.0), y * 2][2], a=nn.Linear(4, 4)),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_goes_on_with_what_a_watcher_returns(case):
    """In place of an output, and in place of the input of the next call: the same comes of it."""
    model, x = MODELS[case].eval(), torch.randn(3, 4)
    calls, _, _ = record(model, [x.clone()])
    for at in range(len(calls) - 1):
        returned, seen = replacing(0.25, at)
        as_output = run_with(model, x, returned)
        assert all(-1 not in numbers for _, moment, _, numbers in seen if moment == "out")
        assert not torch.equal(as_output, model(x.clone()))
        if calls[at + 1].inputs[0] == calls[at].outputs[0]:
            assert torch.equal(as_output, run_with(model, x, replacing(0.25, at + 1, "in")[0]))


def test_a_replaced_tensor_has_the_number_of_the_one_before():
    watcher, seen = replacing(0.25, 0)
    run_with(MODELS["modules"], torch.randn(3, 4), watcher)
    (returned,), (taken,) = (numbers for call, moment, _, numbers in seen if (call, moment) in ((0, "out"), (1, "in")))
    assert returned == taken
    assert next(tensors for call, moment, tensors, _ in seen if (call, moment) == (1, "in"))[0].eq(0.25).all()


def test_what_was_overwritten_is_overwritten_once_more():
    """The tensor that the in-place call has taken has the new numbers, too."""

    def run(t, x):
        y = t.a(x)
        z = y.relu_()
        return y + z

    watcher, _ = replacing(0.25, 1)
    assert torch.equal(run_with(Twin(run, a=nn.Linear(4, 4)), torch.randn(3, 4), watcher), torch.full((3, 4), 0.5))


def test_what_was_returned_as_it_came_is_not_overwritten():
    """Others may take it, too."""
    x = torch.randn(3, 4)
    model = Twin(lambda t, x: [y := t.a(x), z := t.i(y), y + z][2], a=nn.Linear(4, 4), i=nn.Identity())
    watcher, _ = replacing(0.25, 1)
    assert torch.equal(run_with(model, x, watcher), model.a(x) + 0.25)


def test_no_tensor_keeps_a_number_after_a_replacement():
    kept = []
    watcher, _ = replacing(0.25, 0, "in")

    def run(t, x):
        kept.append(x)
        y = t.a(x)
        kept.append(y)
        return y.tanh()

    run_with(Twin(run, a=nn.Linear(4, 4)), torch.randn(3, 4), watcher)
    assert [number_of(tensor) for tensor in kept] == [-1] * len(kept)

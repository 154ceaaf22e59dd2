"""The copy of the twin: what it holds, what fits, and what its modules take."""

from parity import ParityError
from parity.models.keras_graph import keras_graph
from parity.proposal.layers import keras_parts
from parity.proposal.twin import TwinCopy
from tests.helpers.models import Twin, model_of, norm, snapshot, x_of

import pytest
import torch
from keras import layers as L
from torch import nn

X = x_of(2, 4)


def layers(x):
    x = L.BatchNormalization(name="norm")(L.Dense(4, name="a", use_bias=False)(x))
    return L.Dense(3, name="b")(x)


@pytest.fixture(scope="module")
def parts():
    return keras_parts(keras_graph(model_of((4,), layers)), [X])[0]


def twin_of(call=lambda t, x: t.b(t.norm(t.a(x))), **more):
    modules = {"a": nn.Linear(4, 4), "norm": norm(4, nn.BatchNorm1d), "b": nn.Linear(4, 3)} | more
    return Twin(call, **modules)


def copy_of(twin, dtype=torch.float32):
    made = TwinCopy(twin, dtype)
    made.inputs = [torch.from_numpy(X).to(made.dtype)]
    return made


def run(copy, filled):
    with torch.no_grad():
        return copy.inputs_of_modules(filled)


def test_the_twin_itself_is_left_alone(parts):
    twin = twin_of().train()
    before = snapshot(twin)
    copy = copy_of(twin)
    run(copy, {})
    run(copy, {"a": (parts["a"], None)})
    assert snapshot(twin) == before
    assert twin.training
    assert not copy.model.training
    assert not any(module._forward_pre_hooks for module in twin.modules())


@pytest.mark.parametrize(
    ("own", "keras", "due"),
    [("float32", "float64", "float64"), ("float64", "float32", "float64"), ("bfloat16", "float32", "float32")],
)
def test_it_is_at_least_as_precise_as_the_keras_model(own, keras, due):
    copy = TwinCopy(twin_of().to(getattr(torch, own)), getattr(torch, keras))
    assert copy.dtype == getattr(torch, due)
    assert {p.dtype for p in copy.model.parameters()} == {getattr(torch, due)}


def test_a_twin_without_parameters_has_the_keras_models_dtype():
    assert TwinCopy(nn.ReLU(), torch.float64).dtype == torch.float64


def test_modules_with_tensors_of_their_own_are_known_by_their_first_names():
    twin = twin_of(inner=nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    twin.alias = twin.a
    twin.gain = nn.Parameter(torch.ones(3))
    copy = TwinCopy(twin, torch.float32)
    assert set(copy.tensors) == {"", "a", "norm", "b", "inner.0"}
    assert list(copy.tensors["norm"]) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert copy.canonical["alias"] == copy.canonical["a"] == "a"
    assert copy.describe("inner.0") == "inner.0 (Linear)"
    assert copy.describe("") == "the model (Twin)"
    assert copy.module("b") is copy.model.b
    assert copy.module("b") is not twin.b


def test_what_fits_has_the_right_kind_and_shapes(parts):
    more = {
        "other": nn.Linear(4, 4),
        "wide": nn.Linear(4, 5),
        "conv": nn.Conv1d(4, 4, 2),
        "bare": nn.Linear(4, 3, bias=False),
    }
    copy = TwinCopy(twin_of(**more, plain=nn.LayerNorm(4)), torch.float32)
    # A bias that Keras does without may be there, one that it has may not be missing.
    assert copy.fitting(parts["a"]) == ["a", "other"]
    assert copy.fitting(parts["b"]) == ["b"]
    assert copy.fitting(parts["norm"]) == ["norm"]
    assert (
        TwinCopy(twin_of(norm=nn.BatchNorm1d(4, track_running_stats=False)), torch.float32).fitting(parts["norm"]) == []
    )


def test_what_modules_take_call_by_call(parts):
    copy = copy_of(twin_of(lambda t, x: t.b(t.norm(t.a(x)) + t.a(2 * x))))
    found = run(copy, {})
    assert set(found) == {"a", "norm", "b"}
    assert [torch.equal(one, factor * copy.inputs[0]) for one, factor in zip(found["a"], (1, 2), strict=True)] == [
        True,
        True,
    ]
    assert torch.equal(found["norm"][0], copy.model.a(copy.inputs[0]))
    assert all(torch.equal(one, other) for one, other in zip(found["b"], run(copy, {})["b"], strict=True))


def test_a_module_that_is_filled_has_the_weights_of_its_part_and_is_watched_no_more(parts):
    copy = copy_of(twin_of())
    found = run(copy, {"a": (parts["a"], None), "norm": (parts["norm"], None)})
    assert set(found) == {"b"}
    assert torch.equal(copy.model.a.weight, parts["a"].value("weight"))
    assert not copy.model.a.bias.any()  # Keras has none
    assert torch.equal(copy.model.norm.running_var, parts["norm"].value("running_var"))
    assert copy.model.norm.num_batches_tracked == 0
    assert torch.allclose(found["b"][0], parts["b"].inputs[0].value, rtol=1e-5, atol=1e-6)


def test_a_module_that_is_filled_no_more_has_random_numbers_again(parts):
    copy = copy_of(twin_of())
    run(copy, {})
    before = copy.model.a.weight.clone()
    run(copy, {"a": (parts["a"], None)})
    assert set(run(copy, {})) == {"a", "norm", "b"}
    assert torch.equal(copy.model.a.weight, before)


def test_the_module_of_a_shared_layer_is_watched_although_it_is_filled():
    shared = L.Dense(4, name="shared")
    parts, _ = keras_parts(keras_graph(model_of((4,), lambda x: shared(shared(x)))), [X])
    copy = copy_of(Twin(lambda t, x: t.a(t.a(x)), a=nn.Linear(4, 4)))
    found = run(copy, {"a": (parts["shared"], None)})
    assert len(found["a"]) == 2
    assert torch.allclose(found["a"][1], parts["shared"].inputs[1].value, rtol=1e-5, atol=1e-6)


def test_features_may_be_filled_channels_first_and_back(parts):
    flat = keras_parts(
        keras_graph(model_of((3, 2, 2), lambda x: L.Dense(3, name="d")(L.Flatten()(x)))), [x_of(2, 3, 2, 2)]
    )[0]
    copy = TwinCopy(Twin(lambda t, x: t.d(x), d=nn.Linear(12, 3)), torch.float32)
    copy.inputs = [torch.zeros(2, 12)]
    for flattened in ((3, 2, 2), None, (3, 2, 2)):
        run(copy, {"d": (flat["d"], flattened)})
        assert torch.equal(copy.model.d.weight, flat["d"].value("weight", flattened))
    assert not torch.equal(flat["d"].value("weight", (3, 2, 2)), flat["d"].value("weight"))


def test_random_numbers_hide_nothing_and_are_the_same_each_time():
    twin = twin_of()
    for parameter in twin.parameters():
        parameter.data.zero_()
    copies = [copy_of(twin) for _ in range(2)]
    for copy in copies:
        run(copy, {})
    model = copies[0].model
    tensors = [*model.parameters(), model.norm.running_mean, model.norm.running_var]
    assert all(tensor.std() > 0 for tensor in tensors)
    assert float(model.norm.running_var.min()) >= 0.5
    assert snapshot(model) == snapshot(copies[1].model)


def test_activations_keep_their_size():
    copy = TwinCopy(Twin(lambda t, x: t.b(t.a(x)), a=nn.Linear(400, 400), b=nn.Linear(400, 400)), torch.float32)
    copy.inputs = [torch.randn(50, 400, generator=torch.Generator().manual_seed(0))]
    taken = run(copy, {})["b"][0]
    assert 0.7 < float(taken.std()) < 2


def test_what_the_copy_takes_is_not_overwritten():
    copy = copy_of(Twin(lambda t, x: t.b(t.a(x).relu_()).add_(x.mul_(0).sum()), a=nn.Linear(4, 4), b=nn.Linear(4, 3)))
    first, second = run(copy, {}), run(copy, {})
    assert torch.equal(copy.inputs[0], torch.from_numpy(X))
    assert torch.equal(first["a"][0], second["a"][0])
    assert torch.equal(first["a"][0], copy.inputs[0])


def test_a_module_that_is_never_called_takes_nothing():
    assert "b" not in run(copy_of(twin_of(lambda t, x: t.a(x))), {})


def test_a_twin_that_cannot_run_is_refused_with_every_fault():
    with pytest.raises(ParityError) as caught:
        TwinCopy(twin_of().to("meta"), torch.float32)
    assert len(caught.value.faults) == 9
    assert caught.value.faults[0] == "a.weight is on the meta device: the twin cannot run"


class Gained(nn.Linear):
    """A module that has a tensor more than its kind has."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(()))


def test_another_kind_of_the_same_shapes_does_not_fit_nor_one_with_a_tensor_more(parts):
    copy = TwinCopy(twin_of(table=nn.Embedding(4, 4), gained=Gained(4, 4)), torch.float32)
    assert copy.fitting(parts["a"]) == ["a"]


def test_modules_of_one_shape_have_other_random_numbers():
    copy = copy_of(Twin(lambda t, x: t.q(t.p(x)), p=nn.Linear(4, 4), q=nn.Linear(4, 4)))
    run(copy, {})
    assert not torch.equal(copy.model.p.weight, copy.model.q.weight)
    assert not torch.equal(copy.model.p.bias, copy.model.q.bias)

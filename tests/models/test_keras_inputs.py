"""What both models are given, and that they are left as they were, also by an exception."""

from contextlib import nullcontext

from parity import ParityError
from parity.axes import torch_input
from parity.models.inputs import keras_inputs, twin_inputs, unchanged
from tests.helpers.models import draw, snapshot

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

# --- The inputs of the Keras model ------------------------------------------------------------------------------------


def inputs_of(*names, dtype="float32"):
    return [keras.Input((number + 2,), name=name, dtype=dtype) for number, name in enumerate(names)]


def model_from(struct):
    """Return a model, called m, whose inputs have the structure that is given."""
    flat = keras.tree.flatten(struct)
    return keras.Model(struct, L.Concatenate()(flat) if len(flat) > 1 else L.ReLU()(flat[0]), name="m")


A, B = np.full((3, 2), 1.0), np.full((3, 3), 2.0)


@pytest.mark.parametrize("give", [lambda x: x, lambda x: [x], lambda x: (x,), lambda x: {"a": x}])
def test_one_input_may_be_an_array_a_list_or_named(give):
    model = model_from(inputs_of("a"))
    (found,) = keras_inputs(model, give(A))
    np.testing.assert_array_equal(found, A)
    assert found.dtype == "float32"


def test_numbers_in_lists_are_no_array():
    with pytest.raises(ParityError, match="inputs: 1 expected, 6 found"):
        keras_inputs(model_from(inputs_of("a")), A.tolist())


def test_inputs_are_in_the_models_order():
    b, a = inputs_of("b", "a")
    found = keras_inputs(model_from([b, a]), [A, B])
    assert [array.shape for array in found] == [(3, 2), (3, 3)]
    found = keras_inputs(model_from([b, a]), {"a": B, "b": A})
    assert [array.shape for array in found] == [(3, 2), (3, 3)]


def test_inputs_may_have_the_structure_that_the_model_was_built_with():
    z, two, three = inputs_of("z", "two", "three")
    model = model_from({"z": z, "y": [two, three]})
    order = [tensor.name for tensor in model.inputs]
    arrays = {"z": np.zeros((1, 2)), "two": np.zeros((1, 3)), "three": np.zeros((1, 4))}
    given = {"y": [arrays["two"], arrays["three"]], "z": arrays["z"], "more": np.zeros(5)}
    assert [array.shape for array in keras_inputs(model, given)] == [arrays[name].shape for name in order]
    assert [array.shape for array in keras_inputs(model, arrays)] == [arrays[name].shape for name in order]


@pytest.mark.parametrize(
    ("wanted", "given", "found"),
    [("float64", "float32", "float64"), ("float16", "int64", "float16"), ("int32", "float64", "int32")],
)
def test_arrays_take_on_the_dtype_of_the_model(wanted, given, found):
    (array,) = keras_inputs(model_from(inputs_of("a", dtype=wanted)), A.astype(given))
    assert array.dtype == found
    np.testing.assert_array_equal(array, A)


def test_the_inputs_of_a_sequential_model():
    model = keras.Sequential([keras.Input((2,)), L.Dense(2)])
    (found,) = keras_inputs(model, A)
    np.testing.assert_array_equal(found, A)


@pytest.mark.parametrize(
    ("x", "faults"),
    [
        ([A], ["inputs: 2 expected, 1 found"]),
        ([A, B, B], ["inputs: 2 expected, 3 found"]),
        ({"a": A}, ["no input b"]),
        ({"c": A}, ["no input a", "no input b"]),
        ([A[0], B], ["input a has the shape (2,), not (None, 2)"]),
        ([B, B], ["input a has the shape (3, 3), not (None, 2)"]),
        ([A, A[None]], ["input b has the shape (1, 3, 2), not (None, 3)"]),
        ([A[:0], B], ["input a is empty: nothing could differ"]),
        ([A, B * np.inf], ["input b has numbers that are not finite: what is computed from them could not differ"]),
        ([A * np.nan, B], ["input a has numbers that are not finite: what is computed from them could not differ"]),
        ([A.astype(str), B], ["input a has no numbers, but <U32"]),
        ([A.astype(object), B], ["input a has no numbers, but object"]),
        ([A.astype(complex), B], ["input a has no numbers, but complex128"]),
        ([A[:, :1], B[:0]], ["input a has the shape (3, 1), not (None, 2)", "input b is empty: nothing could differ"]),
    ],
)
def test_each_fault_is_named_with_its_input(x, faults):
    with pytest.raises(ParityError) as caught:
        keras_inputs(model_from(inputs_of("a", "b")), x)
    assert caught.value.faults == faults
    assert str(caught.value).startswith(f"m: {len(faults)} fault")


def test_an_axis_of_any_size_takes_any_size():
    x = keras.Input((None, 2), name="a")
    model = keras.Model(x, L.ReLU()(x))
    assert keras_inputs(model, np.ones((1, 7, 2)))[0].shape == (1, 7, 2)
    with pytest.raises(ParityError, match=r"input a has the shape \(1, 7, 3\), not \(None, None, 2\)"):
        keras_inputs(model, np.ones((1, 7, 3)))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_whole_numbers_are_numbers(dtype):
    assert keras_inputs(model_from(inputs_of("a")), A.astype(dtype))[0].sum() == 6


# --- The inputs of the twin -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 4, 5, 3), (2, 3, 4, 5, 6)])
def test_the_channels_are_moved_behind_the_batch(shape):
    x = draw(*shape).astype("float32")
    (found,) = twin_inputs(nn.Conv2d(1, 1, 1), [x])
    np.testing.assert_array_equal(found.movedim(1, -1), x)
    assert found.is_contiguous()


def test_features_and_numbers_stay_where_they_are():
    features, labels = draw(3, 4).astype("float32"), np.arange(3)
    found = twin_inputs(nn.Linear(4, 4), [features, labels])
    np.testing.assert_array_equal(found[0], features)
    np.testing.assert_array_equal(found[1], labels)


def test_arrays_take_on_the_dtype_of_the_twin_but_whole_numbers_do_not():
    arrays = [A.astype("float32"), np.arange(3), np.ones((1, 2, 3))]
    assert [t.dtype for t in twin_inputs(nn.Linear(2, 2).double(), arrays)] == [
        torch.float64,
        torch.int64,
        torch.float64,
    ]
    assert [t.dtype for t in twin_inputs(nn.Linear(2, 2).half(), arrays)] == [torch.float16, torch.int64, torch.float16]
    # Without parameters, nothing says which.
    assert [t.dtype for t in twin_inputs(nn.ReLU(), arrays)] == [torch.float32, torch.int64, torch.float64]
    whole_first = nn.ParameterList([nn.Parameter(torch.ones(1, dtype=torch.int64), False), torch.ones(1).double()])
    assert twin_inputs(whole_first, [A.astype("float32")])[0].dtype == torch.float64


def test_the_inputs_may_be_overwritten():
    arrays = [draw(2, 3), draw(2, 4, 1), np.arange(3)]
    before = [array.copy() for array in arrays]
    for tensor in twin_inputs(nn.ReLU(), arrays):
        tensor.zero_()
    for array, same in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize("bare", [True, False])
def test_inputs_of_the_readers_own_are_copied_as_they_are(bare):
    given = torch.ones(2, 3, 4, dtype=torch.float16, requires_grad=True)
    other = torch.arange(3)
    found = twin_inputs(nn.Linear(4, 4), [A], given if bare else (given, other))
    assert len(found) == (1 if bare else 2)
    assert torch.equal(found[0], given)
    assert found[0].dtype == torch.float16
    assert not found[0].requires_grad
    found[0].zero_()
    found[-1].zero_()
    assert given.min() == 1
    assert torch.equal(other, torch.arange(3))


@pytest.mark.parametrize(
    ("twin", "given", "fault"),
    [
        (nn.Sequential(nn.LazyLinear(2)), None, "it has lazy modules: run it once, so that they take on their shapes"),
        (nn.Sequential(nn.Linear(2, 2).to("meta")), None, "it is on meta; move it to the CPU"),
        (nn.Sequential(nn.BatchNorm1d(2, affine=False).to("meta")), None, "it is on meta; move it to the CPU"),
        (nn.Sequential(nn.Linear(2, 2).to("meta")), torch.ones(1), "it is on meta; move it to the CPU"),
        (nn.Sequential(nn.Linear(2, 2)), [A], "torch_x must be a tensor, or a list of tensors"),
        (nn.Sequential(nn.Linear(2, 2)), [torch.ones(1), 3], "torch_x must be a tensor, or a list of tensors"),
        (nn.Sequential(nn.Linear(2, 2)), 5, "torch_x must be a tensor, or a list of tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_twin_or_inputs_that_cannot_be_run_are_refused(twin, given, fault):
    with pytest.raises(ParityError) as caught:
        twin_inputs(twin, [A], given)
    assert caught.value.faults == [fault]
    assert str(caught.value).startswith("Sequential: 1 fault")


# --- Left as they were ------------------------------------------------------------------------------------------------


class Changing(nn.Module):
    """A twin that changes all of itself that a forward pass can change."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout()
        self.register_buffer("total", torch.zeros(3))
        self.register_buffer("hidden", torch.ones(3), persistent=False)
        self.count, self.seen, self.memory, self.kinds = 0, [1, 2], {"a": 1}, {1}

    def forward(self, x):
        """Change everything."""
        self.total.add_(x.sum(0))
        self.hidden = self.hidden + 1
        self.count += 1
        self.last = x
        self.seen.append(x)
        self.memory["b"] = self.memory.pop("a")
        self.kinds.add(2)
        self.drop.eval()
        return self.norm(x) + torch.rand(3)


def models():
    """Return a Keras model and a twin that are changed as they run, and all that may change."""
    x = keras.Input((3,))
    y = L.BatchNormalization(name="n")(L.Dense(3, activity_regularizer="l2", name="d")(x))
    model, twin = keras.Model(x, L.ActivityRegularization(1.0)(y)), Changing().train()
    twin.norm.eval()
    twin.norm.register_full_backward_hook(print)
    twin.norm.register_full_backward_pre_hook(print)

    def state():
        hooks = [(list(m._backward_hooks), list(m._backward_pre_hooks)) for m in twin.modules()]
        plain = (twin.count, list(twin.seen), dict(twin.memory), set(twin.kinds), sorted(vars(twin)))
        objects = [id(one) for one in (twin.seen, twin.memory, twin.kinds, *twin.buffers())]
        numbers = torch.get_rng_state().tolist()
        losses = [float(loss) for loss in model.losses]
        modes = [module.training for module in twin.modules()]
        hidden = twin.hidden.tolist()
        return snapshot(model), snapshot(twin), hooks, plain, objects, numbers, losses, modes, hidden

    return model, twin, state


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_what_the_models_change_is_put_back(training, error):
    model, twin, state = models()
    x = np.full((4, 3), 2.0, "float32")
    model(x)  # so that there are losses
    before = state()

    def run():
        with unchanged(model, twin, training):
            model(x + 1, training=training)
            twin(torch.from_numpy(x))
            assert state() != before
            if error:
                raise error

    with pytest.raises(error) if error else nullcontext():
        run()
    assert state() == before
    assert twin.norm.running_mean.tolist() == [0, 0, 0]


def test_within_it_there_are_neither_gradients_nor_hooks_on_them():
    model, twin, _ = models()
    with unchanged(model, twin):
        assert not torch.is_grad_enabled()
        assert not twin.norm._backward_hooks
        assert not twin.norm._backward_pre_hooks
    assert torch.is_grad_enabled()
    assert len(twin.norm._backward_hooks) == len(twin.norm._backward_pre_hooks) == 1


@pytest.mark.parametrize("own", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("training", [False, True])
def test_for_training_the_twin_trains_but_for_what_is_random(own, training):
    """A module that the reader has frozen in a twin that trains stays frozen."""
    model, twin, _ = models()
    twin.train(own)
    twin.total, twin.alpha = torch.zeros(3), nn.AlphaDropout()
    twin.norm.eval()
    before = [module.training for module in twin.modules()]
    with unchanged(model, twin, training):
        found = {name or "twin": module.training for name, module in twin.named_modules()}
        if not training:
            assert list(found.values()) == before
        else:
            assert found == {"twin": True, "norm": not own, "drop": False, "alpha": False}
    assert [module.training for module in twin.modules()] == before


def test_statistics_of_keras_that_others_set_meanwhile_stay_in_evaluation():
    """Only training changes them, so only then are they put back."""
    model, twin, _ = models()
    mean = model.get_layer("n").moving_mean
    with unchanged(model, twin):
        mean.assign([5.0] * 3)
    np.testing.assert_array_equal(mean, 5)


def test_a_buffer_that_did_not_change_is_not_written_to():
    model, twin, _ = models()
    version = twin.total._version
    with unchanged(model, twin):
        pass
    assert twin.total._version == version


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_twin_is_put_back_too():
    model, *_ = models()
    twin = torch.jit.script(nn.BatchNorm1d(3).eval())
    before = snapshot(twin)
    with unchanged(model, twin, True):
        assert twin.training
        twin(torch.from_numpy(np.ones((4, 3), "float32") * 3))
        assert snapshot(twin) != before
    assert snapshot(twin) == before
    assert not twin.training


def test_inputs_of_the_course_are_as_torch_input_has_them():
    x = draw(2, 3, 4, 5)
    assert torch.equal(twin_inputs(nn.ReLU(), [x])[0], torch_input(x))

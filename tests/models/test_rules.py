"""The table of rounding rules, each row found for all that goes by its name, and the sizes of what is added.

Nothing here asserts how a processor rounds: what is measured is what the functions themselves add, or a formula.
"""

from math import inf, log1p, nan, sqrt

from parity.models.keras_graph import Step, keras_graph
from parity.models.rounding import (
    RULES,
    Errors,
    Rounding,
    errors_of,
    has_float32_constants,
    is_float,
    noise_of,
    perturbed_tensor,
    rule_of,
    unit_of,
    usual_move,
)
from tests.helpers.models import draw, model_of

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from keras import ops

EPS = {dtype: torch.finfo(getattr(torch, dtype)).eps for dtype in ("float16", "bfloat16", "float32", "float64")}


def plain(name):
    """Return a name as the table has it."""
    return name.lower().replace("_", "")


def of_name(module, name):
    """Return what of a module of Keras goes by a name of the table, a class before a function."""
    found = [
        value for key, value in vars(module).items() if name in (plain(key), plain(getattr(value, "__name__", "")))
    ]
    return sorted(found, key=lambda one: not isinstance(one, type))[:1]


def step_of(layer, is_activation=False):
    """Return a step that computes a layer, an operation or the activation of a layer."""
    return Step("step", layer, is_activation, (), (), None, False)


def operation_of(function, *more, shape=(4, 4, 3), **kwargs):
    """Return the operation that a function of keras.ops makes."""
    return function(keras.Input(shape), *more, **kwargs)._keras_history.operation


# Functions of keras.ops that take more than one tensor.
ALSO_TAKEN = {
    "clip": lambda: (-1, 1),
    "maxpool": lambda: (2,),
    **dict.fromkeys(("maximum", "minimum", "add", "subtract"), lambda: (keras.Input((4, 4, 3)),)),
}


# What layers must be given.
NEEDED = {
    "resizing": (2, 2),
    "rescaling": (0.1,),
    "multiheadattention": (2, 3),
    "groupedqueryattention": (3, 2, 1),
}


def steps_called(name):
    """Return a step for all in Keras that goes by a name of the table: a layer, an operation, an activation."""
    steps = []
    for kind in of_name(L, name):
        sized = "adaptive" in name or (name.startswith(("max", "average")) and name.endswith("d"))
        sizes = NEEDED.get(name, (2,) if sized else ())
        steps.append(step_of(kind(*sizes)))
    # The operation of this name takes the statistics as inputs.
    for function in of_name(ops, name) if name != "batchnormalization" else ():
        steps.append(step_of(operation_of(function, *ALSO_TAKEN.get(name, tuple)())))
    for function in of_name(keras.activations, name):
        steps.append(step_of(L.Activation(function)))
        steps.append(step_of(L.Dense(2, activation=function), is_activation=True))
    return steps


# --- The table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(RULES))
def test_each_row_is_of_something_in_keras_which_finds_it(name):
    steps = steps_called(name)
    assert steps, "nothing in Keras goes by this name"
    for step in steps:
        assert rule_of(step) == RULES[name], step


@pytest.mark.parametrize("name", sorted(RULES))
def test_each_row_has_a_source_and_says_something(name):
    rule = RULES[name]
    assert rule.source.strip().endswith((".", ".html"))
    assert rule != Rounding(rule.source)


def test_names_of_the_table_are_as_they_are_looked_up():
    assert [name for name in RULES if name != plain(name)] == []


@pytest.mark.parametrize("base", [L.ReLU, L.ELU, L.MaxPooling2D, L.AveragePooling1D, L.Add, L.UpSampling2D])
def test_a_layer_derived_from_a_covered_one_has_its_rule(base):
    class Mine(base):
        pass

    class Yours(Mine):
        pass

    more = (2,) if "Pooling" in base.__name__ else ()
    assert rule_of(step_of(Mine(*more))) is rule_of(step_of(Yours(*more))) is RULES[plain(base.__name__)]


def test_a_layer_used_as_an_activation_has_its_rule():
    assert rule_of(step_of(L.Dense(2, activation=L.LeakyReLU()), is_activation=True)) is RULES["leakyrelu"]
    assert rule_of(step_of(L.Activation(L.ELU(2.0)))) is RULES["elu"]


@pytest.mark.parametrize(
    "step",
    [
        step_of(L.Dense(2)),
        step_of(L.Dense(2, activation="relu")),
        step_of(L.Dense(2, activation="tanh"), is_activation=True),
        step_of(L.Activation("sigmoid")),
        step_of(L.Flatten()),
    ],
    ids=["Dense", "before its activation", "tanh", "Activation", "Flatten"],
)
def test_all_else_rounds_by_one_unit(step):
    rule = rule_of(step)
    assert rule == Rounding("One unit of rounding of the largest element.")
    x = ops.convert_to_tensor([[-30.0, 30.0]])
    assert errors_of(step, [x], [x], False) == Errors()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", ops.relu),
        ("leakyrelu", ops.leaky_relu),
        ("relu6", ops.relu6),
        ("hardtanh", ops.hard_tanh),
        ("hardsigmoid", ops.hard_sigmoid),
        ("softshrink", ops.soft_shrink),
        ("clip", lambda x: ops.clip(x, -1, 1)),
        ("max", ops.max),
        ("min", ops.min),
        ("maxpooling1d", L.MaxPooling1D(2, dtype="float64")),
        ("maximum", lambda x: ops.maximum(x, ops.zeros_like(x))),
        ("minimum", lambda x: ops.minimum(x, ops.zeros_like(x))),
    ],
)
def test_what_selects_moves_as_what_it_takes_or_a_share_of_it_or_not_at_all(name, function):
    assert RULES[name].selects
    assert not RULES[name].adds
    x = draw(1, 4, 4, seed=3)
    moves = np.array(function(x + 0.001)) - np.array(function(x))
    assert 0 < moves.max() < 0.001 + 1e-9
    assert moves.min() > -1e-9


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (L.ReLU(), False),
        (L.ReLU(max_value=6), True),
        (L.ReLU(negative_slope=0.1), True),
        (L.ReLU(threshold=0.5), True),
        (L.Activation("relu"), False),
        (L.LeakyReLU(), True),
        (L.Activation("gelu"), True),
        (L.UpSampling2D(interpolation="bilinear"), True),
        (L.UpSampling2D(), False),
        (L.Resizing(2, 2), True),
        (L.Resizing(2, 2, interpolation="nearest"), False),
        (L.UpSampling1D(), False),
        (L.PReLU(), False),
        (L.MaxPooling2D(), False),
        (L.Rescaling(1 / 255), True),
        (L.Rescaling([0.5, 0.1]), True),
        (L.Rescaling(0.5, 0.1), True),
        (L.Rescaling(0.5, -1.0), False),
        (L.MultiHeadAttention(2, 3), True),
        (L.MultiHeadAttention(2, 4), False),
        (L.GroupQueryAttention(3, 2, 1), True),
        (L.GroupQueryAttention(16, 2, 1), False),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_what_tensorflow_computes_with_a_constant_in_float32(layer, expected):
    assert has_float32_constants(step_of(layer)) is expected
    x = ops.ones((1, 4, 4, 3))
    assert errors_of(step_of(layer), [x], [x], False).float32 is expected


# --- The size of errors -----------------------------------------------------------------------------------------------


def least(layer, x):
    tensor = ops.convert_to_tensor(np.array(x, "float64"))
    return errors_of(step_of(layer), [tensor], [tensor], False).least


def test_softplus_is_off_from_20_on_by_what_pytorch_leaves_out():
    assert least(L.Activation("softplus"), [-30, 20]) == 0
    off = EPS["float64"] * least(L.Activation("softplus"), [0, 20.001])
    x = torch.tensor([20.001], dtype=torch.float64)
    assert F.softplus(x) == x
    error = float(torch.log1p(torch.exp(x)) - x)
    assert error < off < 1.01 * error
    assert off == pytest.approx(log1p(np.exp(-20)), rel=1e-12)


@pytest.mark.parametrize(
    ("layer", "alpha"),
    [
        (L.ELU(50), 50),
        (L.ELU(-3), 3),
        (L.ELU(), 1),
        (L.Activation("elu"), 1),
        (L.Activation("selu"), 1),
        (L.Activation(L.ELU(7)), 7),
    ],
)
def test_exp_minus_one_is_off_by_alpha_below_zero_only(layer, alpha):
    assert least(layer, [1e-9, -1e-9, 5]) == alpha
    assert least(layer, [0, 1e-9, 5]) == 0


@pytest.mark.parametrize(
    "layer",
    [
        *(L.Activation("tanh_shrink"), L.Activation("gelu"), L.AveragePooling1D(2), L.GlobalAveragePooling2D()),
        *(L.Average(), operation_of(ops.mean), operation_of(ops.sum)),
    ],
)
def test_where_large_numbers_cancel_the_errors_are_theirs(layer):
    assert least(layer, [[1, -7, 2]]) == 7
    assert least(layer, np.zeros((1, 0))) == 0


@pytest.mark.parametrize(
    ("layer", "training", "taken", "returned", "terms"),
    [
        (L.GlobalAveragePooling2D(), False, (2, 4, 8, 3), (2, 3), 32),
        (L.AveragePooling1D(2), False, (2, 8, 3), (2, 4, 3), 2),
        (operation_of(ops.sum), False, (2, 6), (), 12),
        (L.UpSampling2D(), False, (2, 4, 8, 3), (2, 8, 16, 3), 1),
        (L.MaxPooling2D(), False, (2, 4, 8, 3), (2, 2, 4, 3), 1),
        (L.GlobalMaxPooling1D(), False, (2, 8, 3), (2, 3), 1),
        (L.BatchNormalization(), False, (2, 4, 8, 3), (2, 4, 8, 3), 1),
        (L.BatchNormalization(), True, (2, 4, 8, 3), (2, 4, 8, 3), 64),
        (L.BatchNormalization(axis=1), True, (2, 4, 8, 3), (2, 4, 8, 3), 48),
        (L.LayerNormalization(), True, (2, 4, 8, 3), (2, 4, 8, 3), 1),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_how_many_numbers_are_added_up(layer, training, taken, returned, terms):
    found = errors_of(step_of(layer), [ops.ones(taken)], [ops.ones(returned)], training)
    assert found.terms == terms


def test_products_of_matrices_are_not_added_up_one_by_one():
    for layers, shape in ((L.Dense(2), (64,)), (L.Conv1D(2, 8), (8, 8))):
        (step,) = keras_graph(model_of(shape, layers)).steps
        assert errors_of(step, [ops.ones((1, *shape))], [ops.ones((1, 2))], False).terms == 1


def test_a_step_that_takes_nothing_has_the_usual_errors():
    assert errors_of(step_of(L.Average()), [], [ops.ones((2, 2))], True) == Errors()


# --- Moving a tensor --------------------------------------------------------------------------------------------------


def moves(exact, *how, seed=0):
    """Return how far each element is moved, in float64."""
    tensor = ops.convert_to_tensor(exact)
    moved = perturbed_tensor(tensor, seed, *how)
    assert moved.dtype == tensor.dtype
    assert tuple(moved.shape) == tuple(tensor.shape)
    return np.array(ops.cast(moved, "float64")) - np.array(ops.cast(tensor, "float64"))


def whole(*shape, size=8):
    """Return whole numbers of both signs, the largest of a given size."""
    x = np.random.default_rng(0).integers(-size, size + 1, shape)
    x.flat[0] = -size
    return x


@pytest.mark.parametrize("dtype", sorted(EPS))
def test_each_element_is_moved_by_up_to_one_unit_of_the_largest(dtype):
    found = moves(ops.cast(whole(40, 50), dtype))
    limit = 8 * EPS[dtype]
    # The move is rounded as it is added, by up to half a unit of a number that may be a little larger.
    assert 0.95 * limit < np.abs(found).max() <= 1.6 * limit
    assert found.min() < 0 < found.max()


def test_moves_are_uniform_so_that_half_of_them_are_as_large_as_half_a_unit():
    found = moves(whole(100, 100).astype("float32").astype("float64"), Errors(float32=True)) / (8 * EPS["float32"])
    assert np.abs(found.mean()) < 0.03
    assert 0.48 < (np.abs(found) > 0.5).mean() < 0.52
    assert 0.99 < np.abs(found).max() <= 1


@pytest.mark.parametrize(("terms", "units"), [(1, 1), (256, 1), (1024, 2), (4096, 4), (2**18, 256), (2**20, 1024)])
def test_the_errors_of_a_sum_grow_as_a_walk_at_random_and_then_one_way(terms, units):
    found = np.abs(moves(whole(100, 100).astype("float64"), Errors(True, terms))).max() / (8 * EPS["float32"])
    assert 0.99 * units < found <= units


def test_the_errors_are_at_least_those_of_a_number_of_some_size():
    zeros = np.zeros((50, 50))
    assert not moves(zeros).any()
    found = np.abs(moves(zeros, Errors(least=3))).max() / EPS["float64"]
    assert 2.9 < found <= 3
    larger = np.abs(moves(zeros + 8, Errors(True, least=3))).max() / EPS["float32"]
    assert 7.9 < larger <= 8


@pytest.mark.parametrize(("dtype", "times"), [("float64", 2.0**29), ("float32", 1), ("float16", 1)])
def test_a_constant_in_float32_makes_errors_of_float32_in_float64_only(dtype, times):
    x = ops.cast(whole(100, 100), dtype)
    if times == 1:
        np.testing.assert_array_equal(moves(x, Errors(float32=True)), moves(x))
    else:
        assert np.abs(moves(x, Errors(float32=True))).max() == pytest.approx(times * 8 * EPS[dtype], rel=0.01)


def test_the_size_of_finite_numbers_counts_where_others_are_not():
    x = whole(100, 100).astype("float64")
    x[3, :4] = inf, -inf, nan, 8
    found = perturbed_tensor(ops.convert_to_tensor(x), 0, Errors(float32=True)).numpy()
    np.testing.assert_array_equal(found[3, :3], [inf, -inf, nan])
    finite = np.isfinite(x)
    assert np.isfinite(found[finite]).all()
    assert np.abs(found[finite] - x[finite]).max() == pytest.approx(8 * EPS["float32"], rel=0.01)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_whole_numbers_are_returned_as_they_are(dtype):
    tensor = ops.cast(whole(3, 4), dtype)
    assert perturbed_tensor(tensor, 0, Errors(True, 10**6, 10.0)) is tensor
    assert not is_float(tensor)


def test_the_seed_decides_and_may_be_several_numbers():
    x = whole(20, 20).astype("float64")
    seeds = (0, 1, (0, 1), (2, 3))
    found = [moves(x, seed=seed) for seed in seeds]
    for i, seed in enumerate(seeds):
        np.testing.assert_array_equal(moves(x, seed=seed), found[i])
        assert all(not np.array_equal(found[i], other) for other in found[:i])


def test_a_tensor_without_elements_stays_so():
    assert moves(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(("dtype", "unit"), sorted(EPS.items()))
def test_the_unit_of_rounding_is_that_of_the_dtype(dtype, unit):
    tensor = ops.ones((1,), dtype)
    assert is_float(tensor)
    assert unit_of(tensor) == unit
    assert 1 + ops.cast(unit, dtype) > 1


# --- How far a sum or a choice is usually moved ----------------------------------------------------------------------


def usual(step, taken, returned, moved=0.0, dtype="float32"):
    """Return how far an output is usually moved, in halves of units of rounding of the largest input."""
    inputs = [ops.cast(np.full(shape, 4.0), dtype) for shape in taken]
    found = usual_move(step, [moved] * len(inputs), inputs, ops.zeros(returned, dtype))
    return 2 * found / (4 * EPS[dtype])


def dense(activation):
    """Return a layer with a kernel and an activation of its own."""
    layer = L.Dense(3, activation=activation)
    layer.build((None, 3))
    return layer


@pytest.mark.parametrize(
    ("step", "taken", "returned", "gain"),
    [
        (step_of(L.Add()), [(2, 3), (2, 3)], (2, 3), 1),
        (step_of(L.Subtract()), [(2, 3), (2, 3)], (2, 3), 1),
        (step_of(L.Average()), [(2, 3), (2, 3)], (2, 3), 1),
        (step_of(L.ReLU()), [(2, 3)], (2, 3), 1),
        (step_of(dense("relu"), True), [(2, 3)], (2, 3), 1),
        (step_of(L.GlobalMaxPooling1D()), [(2, 9, 1)], (2, 1), 1),
        (step_of(L.GlobalAveragePooling1D()), [(2, 9, 1)], (2, 1), 1 / 3),
        (step_of(operation_of(ops.mean)), [(2, 8)], (), 1 / 4),
        (step_of(operation_of(ops.sum)), [(2, 8)], (), 4),
        (step_of(operation_of(ops.mean)), [(2, 1)], (2,), 0),
        (step_of(L.Flatten()), [(2, 1)], (2, 1), 0),
        (step_of(dense("tanh"), True), [(2, 3)], (2, 3), 0),
        (step_of(L.Activation("gelu")), [(2, 3)], (2, 3), 0),
        (step_of(operation_of(ops.sum)), [], (), 0),
    ],
    ids=lambda x: x.layer.name if isinstance(x, Step) else None,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_or_a_choice_is_moved_as_what_it_takes_or_more_or_less(step, taken, returned, gain, dtype):
    assert usual(step, taken, returned, dtype=dtype) == pytest.approx(gain)


def test_a_layer_with_a_kernel_magnifies_by_the_norm_of_the_weights_of_one_output():
    (step,) = keras_graph(model_of((5,), L.Dense(3))).steps
    kernel = step.layer.kernel.numpy()
    gain = sqrt((np.linalg.norm(kernel, axis=0) ** 2).mean())
    assert usual(step, [(2, 5)], (2, 3)) == pytest.approx(gain)


def test_what_inputs_were_moved_counts_if_it_is_more_than_a_unit():
    add, unit = step_of(L.Add()), 4 * EPS["float32"]
    assert usual(add, [(2, 3)] * 2, (2, 3), moved=unit / 2) == pytest.approx(1)
    assert usual(add, [(2, 3)] * 2, (2, 3), moved=9 * unit) == pytest.approx(9)


def test_whole_numbers_are_not_moved():
    x = ops.cast(np.full((2, 3), 4.0), "float32")
    assert usual_move(step_of(L.Add()), [1.0, 1.0], [x, x], ops.zeros((2, 3), "int32")) == 0
    assert usual_move(step_of(L.Add()), [1.0, 1.0], [x, x], x) == 0.5


# --- The noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exact", "perturbed", "noise"),
    [
        ([1.0, -4.0], [1.5, -4.25], 0.5),
        ([1.0, -4.0], [1.0, -4.0], 4 * EPS["float32"]),
        ([inf, -inf, 2.0, 1.0], [inf, -inf, 2.0, 1.25], 0.25),
        ([inf, 2.0], [inf, 2.0], 2 * EPS["float32"]),
        ([nan, 2.0], [nan, 2.5], 0.5),
        ([1.0, 2.0], [inf, 2.5], 0.5),
        ([inf, 2.0], [1.0, 2.5], 0.5),
        ([inf, nan], [inf, nan], 0),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([], [], 0),
    ],
)
def test_the_noise_is_the_largest_finite_difference_and_at_least_one_unit(exact, perturbed, noise):
    found = noise_of(torch.tensor(exact), torch.tensor(perturbed))
    assert found == noise
    assert type(found) is float


def test_whole_numbers_have_no_noise():
    assert noise_of(torch.tensor([1, 2]), torch.tensor([1, 5])) == 0


def test_the_unit_of_the_noise_is_that_of_the_dtype():
    x = torch.tensor([3.0], dtype=torch.float64)
    assert noise_of(x, x) == 3 * EPS["float64"]

"""A Keras model as steps in the order of the data flow, and each step computes what its layer does."""

from parity import ParityError
from parity.models.keras_graph import activates, function_of, functional, keras_graph, run_step
from tests.helpers.models import draw, fill_scaled, model_of

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops


def names(graph):
    return [step.name for step in graph.steps]


def step_of(graph, name):
    return next(step for step in graph.steps if step.name == name)


def computed(graph, x, **kwargs):
    """Return the value of each tensor of a graph, step by step."""
    values = dict(zip(graph.inputs, map(ops.convert_to_tensor, x), strict=True))
    for step in graph.steps:
        outputs = run_step(step, [values[number] for number in step.inputs], **kwargs)
        values.update(zip(step.outputs, outputs, strict=True))
    return values


def assert_computes(model, *x):
    """Assert that the steps of a model compute what the model does, in float64."""
    graph = keras_graph(model)
    values = computed(graph, x)
    expected = model(x[0] if len(x) == 1 else list(x), training=False)
    expected = [expected[key] for key in graph.keys] if graph.keys else keras.tree.flatten(expected)
    for number, tensor in zip(graph.outputs, expected, strict=True):
        np.testing.assert_allclose(values[number], tensor, rtol=1e-9, atol=1e-12)


# --- The steps --------------------------------------------------------------------------------------------------------


def test_a_functional_model_is_its_layers_in_the_order_of_the_data_flow():
    x = keras.Input((4,), dtype="float64")
    a, b = L.Dense(3, name="a", dtype="float64"), L.Dense(3, name="b", dtype="float64")
    both = L.Concatenate(name="both", dtype="float64")([b(x), a(x)])
    model = fill_scaled(keras.Model(x, L.Softmax(name="out", dtype="float64")(both)))
    graph = keras_graph(model)
    assert set(names(graph)[:2]) == {"a", "b"}
    assert names(graph)[2:] == ["both", "out"]
    assert step_of(graph, "both").inputs == step_of(graph, "b").outputs + step_of(graph, "a").outputs
    assert step_of(graph, "a").inputs == step_of(graph, "b").inputs == graph.inputs
    assert graph.outputs == step_of(graph, "out").outputs
    assert graph.keys == ()
    assert [step.kind for step in graph.steps[2:]] == ["Concatenate", "Softmax"]
    assert_computes(model, draw(2, 4))


def test_a_sequential_model_is_its_layers():
    model = keras.Sequential([keras.Input((5, 2)), L.Conv1D(3, 2, name="c"), L.Flatten(name="f"), L.Dense(1, name="d")])
    graph = keras_graph(model)
    assert names(graph) == ["c", "f", "d"]
    assert [step.layer for step in graph.steps] == model.layers
    taken = [graph.inputs, *(step.outputs for step in graph.steps)]
    assert [step.inputs for step in graph.steps] == taken[:-1]
    assert graph.outputs == taken[-1]


def test_the_numbers_of_tensors_are_those_of_no_other():
    graph = keras_graph(model_of((4,), lambda x: L.Dense(3, "tanh", name="b")(L.Dense(3, "relu", name="a")(x))))
    numbers = [*graph.inputs, *(number for step in graph.steps for number in step.outputs)]
    assert numbers == list(range(5))


def test_a_layer_with_an_activation_of_its_own_is_two_steps():
    model = model_of((4,), lambda x: L.Dense(3, name="b")(L.Dense(3, activation="relu", name="a")(x)))
    before, activation, last = keras_graph(model).steps
    assert [before.name, activation.name, last.name] == ["a", "a activation", "b"]
    assert [before.is_activation, activation.is_activation] == [False, True]
    assert [before.has_activation, activation.has_activation, last.has_activation] == [True, False, False]
    assert before.layer is activation.layer
    assert activation.inputs == before.outputs
    assert last.inputs == activation.outputs
    assert [before.kind, activation.kind] == ["Dense", "activation relu"]
    assert before.weights == activation.layer_weights == before.layer.weights
    assert activation.weights == []


def test_the_layers_of_nested_models_are_named_with_their_models():
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4, "relu", name="d")], name="inner")
    x = keras.Input((4,))
    middle = keras.Model(x, L.ReLU(name="r")(inner(x)), name="middle")
    y = keras.Input((4,))
    graph = keras_graph(keras.Model(y, L.Dense(1, name="out")(middle(y))))
    assert names(graph) == ["middle/inner/d", "middle/inner/d activation", "middle/r", "out"]
    assert graph.steps[0].inputs == graph.inputs
    assert [step.inputs for step in graph.steps[1:]] == [step.outputs for step in graph.steps[:-1]]


@pytest.mark.parametrize("last_first", [False, True])
def test_the_calls_of_a_shared_layer_are_counted_in_the_order_of_the_code(last_first):
    x, y = keras.Input((4,), name="x", dtype="float64"), keras.Input((4,), name="y", dtype="float64")
    shared = L.Dense(4, "tanh", name="s", dtype="float64")
    first, second = shared(x), shared(y)
    both = [second, first] if last_first else [first, second]
    model = fill_scaled(keras.Model([x, y], L.Subtract(name="apart", dtype="float64")(both)))
    graph = keras_graph(model)
    assert names(graph) == ["s", "s activation", "s (call 2)", "s (call 2) activation", "apart"]
    assert step_of(graph, "s").inputs == graph.inputs[:1]
    assert step_of(graph, "s (call 2)").inputs == graph.inputs[1:]
    assert step_of(graph, "s").node is not step_of(graph, "s (call 2)").node
    assert_computes(model, draw(2, 4), draw(2, 4, seed=1))


def test_a_shared_layer_may_take_what_it_returned():
    shared = L.Dense(4, name="s", dtype="float64")
    model = model_of((4,), lambda x: shared(shared(shared(x))), "float64")
    graph = keras_graph(model)
    assert names(graph) == ["s", "s (call 2)", "s (call 3)"]
    assert_computes(model, draw(2, 4))


def test_a_shared_model_has_the_steps_of_each_call():
    inner = keras.Sequential([keras.Input((4,), dtype="float64"), L.Dense(4, name="d", dtype="float64")], name="inner")
    model = model_of((4,), lambda x: inner(ops.tanh(inner(x))), "float64")
    graph = keras_graph(model)
    assert [name for name in names(graph) if "/" in name] == ["inner/d", "inner/d (call 2)"]
    assert_computes(model, draw(2, 4))


def test_an_operation_without_weights_is_a_step():
    def layers(x):
        y = L.Dense(4, name="d", dtype="float64")(x)
        return 2 * (x + y) - ops.mean(y, axis=1, keepdims=True)

    model = model_of((4,), layers, "float64")
    graph = keras_graph(model)
    kinds = [step.kind for step in graph.steps]
    assert sorted(kinds) == ["Add", "Dense", "Mean", "Multiply", "Subtract"]
    add = graph.steps[kinds.index("Add")]
    assert add.inputs == graph.inputs + step_of(graph, "d").outputs
    assert add.weights == []
    assert not add.has_activation
    assert_computes(model, draw(2, 4))


def test_what_the_model_does_not_return_is_no_step():
    x = keras.Input((4,))
    whole = keras.Model(x, L.Dense(1, name="out")(L.Dense(3, name="features")(x)))
    assert names(keras_graph(keras.Model(x, whole.get_layer("features").output))) == ["features"]


def test_a_model_may_begin_within_another():
    x = keras.Input((4,))
    y = L.Dense(3, name="first")(x)
    graph = keras_graph(keras.Model(y, L.Dense(1, name="second")(y)))
    assert names(graph) == ["second"]
    assert graph.steps[0].inputs == graph.inputs


@pytest.mark.parametrize("order", ["ba", "ab"])
def test_the_outputs_of_a_dictionary_are_in_the_models_order(order):
    x = keras.Input((4,), dtype="float64")
    outputs = {name: L.Dense(2, name=f"d{name}", dtype="float64")(x) for name in order}
    model = fill_scaled(keras.Model(x, outputs))
    graph = keras_graph(model)
    assert graph.keys == tuple(order)
    assert graph.outputs == tuple(step_of(graph, f"d{name}").outputs[0] for name in order)
    assert_computes(model, draw(2, 4))


def test_the_outputs_of_a_list_are_in_its_order_also_if_one_is_an_input():
    x = keras.Input((4,))
    a, b = L.Dense(2, name="a")(x), L.Dense(2, name="b")(x)
    graph = keras_graph(keras.Model(x, [b, x, a, b]))
    first, second = step_of(graph, "a").outputs, step_of(graph, "b").outputs
    assert graph.outputs == second + graph.inputs + first + second


def test_a_call_without_training_is_frozen_and_so_are_those_within_it():
    inner = keras.Sequential([keras.Input((4,)), L.BatchNormalization(name="n")], name="inner")
    x = keras.Input((4,))
    y = L.BatchNormalization(name="free")(x, training=True)
    y = L.BatchNormalization(name="frozen")(y, training=False)
    graph = keras_graph(keras.Model(x, inner(inner(y), training=False)))
    assert {step.name: step.frozen for step in graph.steps} == {
        "free": False,
        "frozen": True,
        "inner/n": False,
        "inner/n (call 2)": True,
    }


class Subclassed(keras.Model):
    """A model with a call of its own."""

    def call(self, x):
        """Return what it takes."""
        return x


class OwnCall(keras.Model):
    """A Functional model with a call of its own."""

    def __init__(self):
        x = keras.Input((4,))
        super().__init__(x, L.ReLU()(x), name="mine")

    def call(self, x, training=None):
        """Return twice what the graph computes."""
        return 2 * super().call(x)


class Renamed(keras.Sequential):
    """A Sequential model that overrides nothing that computes."""


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Subclassed(name="mine"), "Subclassed"),
        (OwnCall, "OwnCall"),
        (lambda: keras.Sequential([L.Dense(2)], name="mine"), "Sequential"),
        (lambda: L.Dense(2, name="mine"), "Dense"),
    ],
)
def test_a_model_without_a_graph_is_refused_with_one_clear_error(make, kind):
    model = make()
    assert functional(model) is None
    with pytest.raises(ParityError, match=r"^mine: 1 fault") as caught:
        keras_graph(model)
    said = f"a {kind} has no graph; only a Functional or a built Sequential model can be traced"
    assert caught.value.faults == [said]


def test_what_is_no_model_is_called_by_its_type():
    with pytest.raises(ParityError, match=r"^int: 1 fault\n  a int has no graph"):
        keras_graph(3)


def test_a_subclass_that_computes_as_its_base_has_a_graph():
    model = Renamed([keras.Input((4,)), L.Dense(2, name="d")])
    assert names(keras_graph(model)) == ["d"]
    assert functional(model).inputs[0].shape == (None, 4)


# --- Who makes and who takes a tensor ---------------------------------------------------------------------------------


def test_producers_consumers_and_inputs():
    x = keras.Input((4,))
    a = L.Dense(4, "relu", name="a")(x)
    graph = keras_graph(keras.Model(x, [L.Add(name="sum")([x, a, x]), a]))
    assert names(graph) == ["a", "a activation", "sum"]
    (given,), (before,), (activated,), (total,) = graph.inputs, *(step.outputs for step in graph.steps)
    assert graph.producers() == {before: 0, activated: 1, total: 2}
    assert dict(graph.consumers()) == {
        given: [(0, 0), (2, 0), (2, 2)],
        before: [(1, 0)],
        activated: [(2, 1), (3, 1)],
        total: [(3, 0)],
    }
    assert [graph.inputs_of(index) for index in range(4)] == [
        (given,),
        (before,),
        (given, activated, given),
        (total, activated),
    ]


# --- Running a step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda **more: L.Dense(3, **more), (4,)),
        (lambda **more: L.Conv1D(3, 2, **more), (5, 2)),
        (lambda **more: L.SeparableConv2D(3, 2, **more), (4, 4, 2)),
        (lambda **more: L.Conv2DTranspose(3, 2, **more), (3, 3, 2)),
    ],
    ids=["Dense", "Conv1D", "SeparableConv2D", "Conv2DTranspose"],
)
def test_a_step_computes_what_precedes_the_activation_or_the_activation_alone(layer, shape):
    layer = layer(activation="softplus", name="d", dtype="float64")
    model = model_of(shape, layer, "float64")
    x = draw(2, *shape)
    before, activation = keras_graph(model).steps
    (value,) = run_step(before, [x])
    np.testing.assert_allclose(ops.log1p(ops.exp(value)), model(x), rtol=1e-9)
    assert float(ops.min(value)) < 0  # which no softplus returns
    np.testing.assert_allclose(run_step(activation, [value])[0], model(x), rtol=1e-9)
    assert layer.activation is keras.activations.softplus
    np.testing.assert_array_equal(run_step(activation, [np.zeros(1)])[0], np.log(2))


def test_the_activation_is_put_back_also_if_the_layer_fails():
    model = model_of((4,), L.Dense(3, activation="relu", name="d"))
    step = keras_graph(model).steps[0]
    with pytest.raises(ValueError, match="incompatible"):
        run_step(step, [np.zeros((2, 5), "float32")])
    assert step.layer.activation is keras.activations.relu


def test_a_step_takes_its_values_in_their_order_and_keeps_its_other_arguments():
    x, y = keras.Input((3, 2)), keras.Input((3, 2))
    graph = keras_graph(keras.Model([x, y], ops.sum(ops.subtract(y, x), axis=1)))
    one, two = np.full((2, 3, 2), 1.0), np.full((2, 3, 2), 5.0)
    (apart,) = run_step(graph.steps[0], [two, one])
    np.testing.assert_array_equal(apart, np.full((2, 3, 2), 4))
    np.testing.assert_array_equal(run_step(graph.steps[1], [apart])[0], np.full((2, 2), 12))


def test_a_step_may_have_several_outputs():
    graph = keras_graph(model_of((6,), lambda x: ops.split(x, 3, axis=1)))
    (step,) = graph.steps
    assert step.outputs == graph.outputs
    parts = run_step(step, [np.arange(6.0).reshape(1, 6)])
    assert [np.array(part).tolist() for part in parts] == [[[0, 1]], [[2, 3]], [[4, 5]]]


def test_in_training_a_step_computes_as_in_training_unless_it_is_frozen():
    x = keras.Input((4,))
    y = L.BatchNormalization(name="n", momentum=0.5)(x)
    graph = keras_graph(keras.Model(x, L.BatchNormalization(name="frozen")(y, training=False)))
    free, frozen = graph.steps
    x = draw(50, 4).astype("float32") + 3
    np.testing.assert_allclose(run_step(free, [x])[0], x, atol=0.01)
    np.testing.assert_array_equal(free.layer.moving_mean, np.zeros(4))
    normed = run_step(free, [x], training=True)[0]
    np.testing.assert_allclose(np.mean(normed, axis=0), np.zeros(4), atol=0.01)
    np.testing.assert_allclose(free.layer.moving_mean, x.mean(0) / 2, rtol=0.01)
    np.testing.assert_allclose(run_step(frozen, [x], training=True)[0], x, atol=0.01)
    np.testing.assert_array_equal(frozen.layer.moving_mean, np.zeros(4))


@pytest.mark.parametrize(
    "layer",
    [
        L.Dropout(0.5),
        L.GaussianNoise(1.0),
        lambda x: L.Dropout(0.5)(x, training=True),
        lambda x: L.GaussianNoise(1.0)(x, training=True),
        L.RandomFlip("horizontal"),
    ],
)
def test_in_training_a_step_that_would_be_random_computes_as_in_evaluation(layer):
    (step,) = keras_graph(model_of((5, 4, 3), layer)).steps
    x = draw(20, 5, 4, 3).astype("float32")
    np.testing.assert_array_equal(run_step(step, [x], training=True)[0], x)


# --- What a step computes ---------------------------------------------------------------------------------------------


def test_activations_are_told_from_other_steps():
    def layers(x):
        x = L.Dense(4, activation="relu", name="dense")(x)
        return L.ReLU(name="relu")(L.Activation("tanh", name="tanh")(x))

    graph = keras_graph(model_of((4,), layers))
    found = {step.name: (activates(step), function_of(step)) for step in graph.steps}
    layer = {step.name: step.layer for step in graph.steps}
    assert found == {
        "dense": (False, layer["dense"]),
        "dense activation": (True, keras.activations.relu),
        "tanh": (True, keras.activations.tanh),
        "relu": (False, layer["relu"]),
    }

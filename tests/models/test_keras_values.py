"""The values of a Keras model step by step: those of the model, and beside them others that are off by the noise."""

import weakref

from parity.models.keras_graph import keras_graph
from parity.models.keras_values import Value, follow_order, walk
from parity.models.rounding import perturbed_tensor, unit_of
from tests.helpers.models import draw, model_of, x_of

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops


def branches(x):
    """Return a small network with an activation, a skip, three outputs, and normalization."""
    x = L.Dense(6, activation="tanh", name="in", dtype="float64")(x)
    y = L.BatchNormalization(name="norm", dtype="float64")(x)
    y = L.Add(name="sum", dtype="float64")([L.Dense(6, name="hidden", dtype="float64")(y), x])
    return [y, *(L.Dense(5, name=name, dtype="float64")(y) for name in ("out", "other"))]


def array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


# --- The values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("perturb", [perturbed_tensor, None], ids=["perturbed", "not perturbed"])
def test_the_values_are_those_that_the_model_computes(perturb):
    model, x = model_of((4,), branches, "float64"), draw(3, 4)
    layers = {"in activation": "in"}
    for step, inputs, outputs in walk(keras_graph(model), [x], perturb=perturb):
        if step is None:
            np.testing.assert_array_equal(inputs[0].exact, x)
            assert inputs == outputs
        elif step.name != "in":
            layer = model.get_layer(layers.get(step.name, step.name))
            expected = keras.Model(model.input, layer.output)(x)
            np.testing.assert_allclose(outputs[0].exact, expected, rtol=1e-12, atol=1e-12, err_msg=step.name)


def test_the_steps_are_those_of_the_graph_and_each_takes_what_others_returned():
    graph, known, seen = keras_graph(model_of((4,), branches, "float64")), {}, []
    for step, inputs, outputs in walk(graph, [draw(3, 4)]):
        seen.append(step)
        if step is not None:
            for number, value in zip(step.inputs, inputs, strict=True):
                assert value is known[number]
        known.update(zip(graph.inputs if step is None else step.outputs, outputs, strict=True))
    assert seen == [None, *graph.steps]


def test_each_input_has_its_array():
    x, y = keras.Input((2,), name="x"), keras.Input((3,), name="y", dtype="int32")
    graph = keras_graph(keras.Model([x, y], [ops.sum(y, axis=1), ops.exp(x)]))
    one, two = x_of(2, 2), np.arange(6, dtype="int32").reshape(2, 3)
    (_, inputs, _), *steps = walk(graph, [one, two])
    np.testing.assert_array_equal(inputs[0].exact, one)
    np.testing.assert_array_equal(inputs[1].exact, two)
    values = {step.kind: outputs[0].exact for step, _, outputs in steps}
    np.testing.assert_array_equal(values["Sum"], [3, 12])
    np.testing.assert_allclose(values["Exp"], np.exp(one), rtol=1e-5)


def test_without_perturbing_the_second_tensor_is_the_first_and_each_step_runs_once(monkeypatch):
    model = model_of((4,), branches, "float64")
    layer, runs = model.get_layer("hidden"), []
    monkeypatch.setattr(layer, "call", lambda x, call=layer.call, **more: runs.append(x) or call(x, **more))
    graph = keras_graph(model)
    values = [v for _, inputs, outputs in walk(graph, [draw(3, 4)], perturb=None) for v in (*inputs, *outputs)]
    assert all(value.perturbed is value.exact for value in values)
    assert len(runs) == 1
    assert len(list(walk(graph, [draw(3, 4)]))) == 1 + len(graph.steps)
    assert len(runs) == 1 + 2


def test_a_tensor_is_forgotten_after_its_last_use():
    graph = keras_graph(model_of((4,), branches, "float64"))
    producers = graph.producers() | dict.fromkeys(graph.inputs, -1)
    last = {n: max((i for i, step in enumerate(graph.steps) if n in step.inputs), default=-1) for n in producers}
    alive = {}
    for index, (step, inputs, outputs) in enumerate(walk(graph, [draw(3, 4)]), -1):
        for number, value in zip(graph.inputs if step is None else step.outputs, outputs, strict=True):
            alive[number] = weakref.ref(value.exact), weakref.ref(value.perturbed)
        del inputs, outputs, value
        left = {n for n, pair in alive.items() if any(reference() is not None for reference in pair)}
        # What the step itself takes and returns is handed out, and kept until the next one runs.
        handed_out = {n for n in alive if producers[n] == index} | set(step.inputs if step else ())
        due = {n for n in alive if last[n] > index} | handed_out
        assert left - set(graph.inputs) == due - set(graph.inputs), step  # the caller has the inputs anyway
    assert len(alive) == len(producers)


# --- The noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_output_is_moved_by_no_more_than_a_unit_of_rounding_and_what_it_took_was_moved(dtype):
    """Of layers that pass on what they take, so that no rounding of the processor enters."""
    model = model_of((9,), lambda x: L.Reshape((3, 3), dtype=dtype)(L.Identity(dtype=dtype)(x)), dtype)
    moves = []
    for _, _, (value,) in walk(keras_graph(model), [draw(5, 9).astype(dtype)]):
        exact, perturbed = array(value.exact).astype("float64"), array(value.perturbed).astype("float64")
        moves.append(np.abs(perturbed - exact).max() / (np.finfo(dtype).eps * np.abs(exact).max()))
    for number, move in enumerate(moves, 1):
        assert 0.5 < move < number + 0.5, moves  # one unit each, and half of one as the sum is rounded itself
    assert moves[0] < moves[-1]


def test_each_tensor_is_moved_by_other_random_numbers_and_a_second_walk_by_the_same():
    graph, x = keras_graph(model_of((9,), lambda x: L.Reshape((3, 3))(L.Identity()(x)))), x_of(5, 9)

    def moves():
        values = [outputs[0] for _, _, outputs in walk(graph, [x])]
        return [(array(value.perturbed) - array(value.exact)).reshape(5, 9) for value in values]

    first, second, third = moves()
    assert not np.array_equal(second, first)
    assert not np.array_equal(third - second, second - first)
    for one, other in zip(moves(), (first, second, third), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_noise_grows_as_the_weights_magnify_it():
    """By a power of two, and numbers near 1: whatever the processor, nothing is rounded."""

    def layers(x):
        return L.Rescaling(-1024.0, offset=1024.0, name="cancel")(x)

    graph = keras_graph(model_of((20,), layers))
    x = (1 - 2.0**-10 * np.random.default_rng(0).random((4, 20))).astype("float32")
    *_, (_, (taken,), (value,)) = walk(graph, [x])
    assert np.abs(array(value.exact)).max() < 1.01
    move, before = (np.abs(array(v.perturbed) - array(v.exact)).max() for v in (value, taken))
    assert 0.99 < move / (1024 * before) < 1.01
    assert move > 100 * unit_of(value.exact)


def test_inputs_move_away_from_zero_only_and_zeros_stay():
    x = x_of(50, 8)
    x[::2] = 0
    (_, (value,), _), *_ = walk(keras_graph(model_of((8,), L.Identity())), [x])
    exact, perturbed = array(value.exact), array(value.perturbed)
    np.testing.assert_array_equal(exact, x)
    np.testing.assert_array_equal(perturbed[::2], 0)
    apart = np.abs(perturbed[1::2]) - np.abs(x[1::2])
    assert (apart >= 0).all()
    assert apart.max() > 0
    assert (np.sign(perturbed) == np.sign(x)).all()
    assert apart.max() <= 1.5 * np.finfo("float32").eps * np.abs(x).max()


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_whole_numbers_stay_what_they_are(dtype):
    x = (np.arange(12) % 3).reshape(4, 3).astype(dtype)
    graph = keras_graph(model_of((3,), lambda x: ops.flip(x, axis=1), dtype))
    for _, _, (value,) in walk(graph, [x]):
        assert value.perturbed.dtype == value.exact.dtype
        np.testing.assert_array_equal(array(value.perturbed), array(value.exact))


def test_how_values_are_moved_is_given():
    seen = []

    def perturb(tensor, seed, errors):
        seen.append((seed, errors.least))
        return tensor + (2 if seed else 0)

    model = model_of((9,), lambda x: L.Identity()(L.GlobalAveragePooling1D()(L.Reshape((3, 3))(x))))
    found = [
        np.unique(np.round(array(value.perturbed) - array(value.exact), 4)).tolist()
        for _, _, (value,) in walk(keras_graph(model), [x_of(5, 9)], perturb=perturb)
    ]
    assert found == [[0], [2], [4], [6]]
    assert [seed for seed, _ in seen] == [0, 1, 2, 3]
    assert [least > 0 for _, least in seen] == [False, False, True, False]  # of the mean, as its rule says


@pytest.mark.parametrize("numbers", [8, 9])
def test_a_few_numbers_are_moved_as_far_as_is_usual_though_the_draw_was_lucky(numbers):
    """The sum is 0, and all but unmoved: it has the errors of its terms, which are of the order of 1000."""
    x, y = keras.Input((numbers,), name="x"), keras.Input((numbers,), name="y")
    graph = keras_graph(keras.Model([x, y], L.Subtract()([x, y])))
    large = np.full((1, numbers), 1000.0, "float32")
    *_, (_, _, (value,)) = walk(
        graph, [large, large], perturb=lambda tensor, seed, errors: tensor - (seed == 2) * 2.0**-40
    )
    np.testing.assert_array_equal(value.exact, 0)
    move = array(value.perturbed)
    if numbers > 8:
        np.testing.assert_array_equal(move, np.full((1, numbers), -(2.0**-40)))
    else:
        np.testing.assert_allclose(move, -np.finfo("float32").eps * 500, rtol=1e-3)


def test_what_was_moved_far_enough_is_not_moved_further():
    x, y = keras.Input((3,), name="x"), keras.Input((3,), name="y")
    graph = keras_graph(keras.Model([x, y], L.Add()([x, y])))
    arrays = [np.ones((1, 3), "float32"), np.ones((1, 3), "float32")]
    *_, (_, _, (value,)) = walk(graph, arrays, perturb=lambda tensor, seed, errors: tensor + (seed < 2) * 2.0**-20)
    np.testing.assert_array_equal(array(value.perturbed), np.full((1, 3), 2 + 2.0**-19))


# --- As in training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_in_training_the_statistics_are_updated_exactly_once(training):
    model = model_of((4,), L.BatchNormalization(momentum=0.5, name="n", dtype="float64"), "float64")
    layer, x = model.get_layer("n"), draw(40, 4)
    mean, variance = (weight.numpy() for weight in (layer.moving_mean, layer.moving_variance))
    *_, (_, _, (value,)) = walk(keras_graph(model), [x], training)
    if training:
        mean, variance = (mean + x.mean(0)) / 2, (variance + x.var(0)) / 2
        normed = (x - x.mean(0)) / np.sqrt(x.var(0) + layer.epsilon)
        np.testing.assert_allclose(value.exact, normed * layer.gamma.numpy() + layer.beta.numpy(), rtol=1e-9)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-12)
    assert not np.array_equal(array(value.exact), array(value.perturbed))


def test_in_training_the_statistics_are_those_of_the_exact_values():
    model = model_of((4,), L.BatchNormalization(momentum=0.5, name="n"))
    model.get_layer("n").moving_mean.assign(np.zeros(4))
    x = np.ones((10, 4), "float32")
    list(walk(keras_graph(model), [x], True, perturb=lambda tensor, *how: tensor + 100))
    np.testing.assert_array_equal(model.get_layer("n").moving_mean, np.full(4, 0.5))


# --- The order of features --------------------------------------------------------------------------------------------


def followed(layers, shape, *, flattened=None):
    """Return the shape that each tensor was flattened from, by the name of its step."""
    graph = keras_graph(model_of(shape, layers))
    known = {} if flattened is None else {graph.inputs[0]: flattened}
    for step, inputs, outputs in walk(graph, [x_of(2, *shape)], perturb=None):
        if step is not None:
            follow_order(step, inputs, outputs, known)
    names = {number: step.name for step in graph.steps for number in step.outputs}
    return {names.get(number, "input"): shape for number, shape in known.items()}


def test_features_keep_their_order_up_to_the_first_dense_layer():
    def layers(x):
        x = L.ReLU(name="r")(L.BatchNormalization(name="n")(L.Flatten(name="f")(L.ReLU(name="before")(x))))
        return L.ReLU(name="after")(L.Dense(24, activation="tanh", name="d")(x))

    assert followed(layers, (2, 3, 4)) == dict.fromkeys("fnr", (2, 3, 4))


def test_what_has_other_features_has_another_order():
    def layers(x):
        x = L.Flatten(name="f")(x)
        return [ops.concatenate([x, x], 1), L.Reshape((4, 3), name="back")(x), ops.sum(x, 1), L.ReLU(name="r")(x)]

    assert followed(layers, (3, 4)) == {"f": (3, 4), "r": (3, 4)}


def test_a_flatten_of_features_alone_keeps_what_is_known():
    assert followed(L.Flatten(name="f"), (6,)) == {}
    assert followed(lambda x: L.Flatten(name="g")(L.Flatten(name="f")(x)), (2, 3)) == {"f": (2, 3)}


def test_an_activation_of_a_dense_layer_keeps_the_order_that_it_takes():
    model = model_of((2, 3), lambda x: L.Dense(6, activation="tanh")(L.Flatten()(x)))
    _, dense, activation = keras_graph(model).steps
    value = Value(np.zeros((2, 6)), np.zeros((2, 6)))
    known = {dense.inputs[0]: (2, 3), activation.inputs[0]: (3, 2)}
    for step in (dense, activation):
        follow_order(step, [value], [value], known)
    assert known == {dense.inputs[0]: (2, 3), activation.inputs[0]: (3, 2), activation.outputs[0]: (3, 2)}


def test_what_takes_or_returns_several_tensors_has_no_order_of_features():
    def layers(x):
        x = L.Flatten(name="f")(x)
        return [L.Add(name="sum")([x, x]), *ops.split(x, 1, axis=1)]

    assert set(followed(layers, (2, 3))) >= {"f"}
    assert "sum" not in followed(layers, (2, 3))

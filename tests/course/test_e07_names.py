"""The exercises of notebook 07: every right answer is accepted, and each wrong one is told what is wrong with it."""

from course.exercises.e07_names import check_graph, check_values

import keras
import pytest
from keras.layers import Activation, Dense


@pytest.fixture(autouse=True)
def float64():
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    yield
    keras.config.set_dtype_policy(before[0])
    keras.config.set_floatx(before[1])


def said(check, answer, capsys):
    check(answer)
    return capsys.readouterr().out.strip()


def graph(behind=(0, 0, 1), outside=(False, True, True), order=(0, 1, 2), names=(1, 2, 3, 4), units=3):
    """Build an answer: how many idle layers are behind each head, and whether its activation is apart."""
    inputs = keras.Input((3,))
    features = Dense(3, activation="relu", name=f"dense_{names[0]}")(inputs)
    heads = []
    for head, function in enumerate(("linear", "sigmoid", "softmax")):
        inside = None if outside[head] else function
        x = Dense(units, activation=inside, name=f"dense_{names[head + 1]}")(features)
        if outside[head]:
            x = Activation(function)(x)
        for _ in range(behind[head]):
            x = Activation("linear")(x)
        heads.append(x)
    return keras.Model(inputs, [heads[at] for at in order])


def as_keras_warns_of():
    model = graph()
    return keras.Model([model.input], model.outputs)


def with_named_outputs():
    model = graph()
    return keras.Model(model.input, {f"head_{number}": output for number, output in enumerate(model.outputs)})


def in_float32():
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    return graph()


@pytest.mark.parametrize(
    "answer",
    [
        graph,
        lambda: graph(behind=(0, 1, 2), outside=(False, False, False)),
        lambda: graph(behind=(0, 0, 5)),
        lambda: graph(behind=(1, 1, 2)),
        as_keras_warns_of,
        in_float32,
    ],
)
def test_a_graph_that_sorts_its_heads_like_the_file_is_right(answer, capsys, recwarn):
    """A softmax that is inside or apart, more layers than are needed, a list of inputs and float32 are all right."""
    assert said(check_graph, answer, capsys) == "✓ The graph: right; all outputs and weights are right in all 4 cases"
    assert not recwarn.list


def test_a_model_is_taken_for_the_function_that_returns_it(capsys):
    assert "right; " in said(check_graph, graph(), capsys)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        # All heads have depth 0, in the order of the outputs.
        (lambda: graph(behind=(0, 0, 0), outside=(False, False, False)), "order dense_1, dense_2, dense_3, dense_4"),
        # Two heads have depth 1: the fix for DroNet is not enough here.
        (lambda: graph(behind=(0, 0, 0)), "dense_3 gets dense_4's weights"),
        # The order is right, the outputs are not.
        (
            lambda: graph(behind=(0, 0, 0), outside=(False, False, False), order=(2, 1, 0)),
            "(output 0, dense_2): your output 2 is what output 0 should be; keep the order of the outputs",
        ),
        (lambda: graph(order=(0, 1)), "no layer with weights is called dense_4"),
        (lambda: graph(names=(1, 2, 3, 5)), "no layer with weights is called dense_4; dense_5 has weights"),
        (lambda: graph(order=(0, 1, 2, 2)), "three outputs are due, not 4"),
        (with_named_outputs, "a list of outputs is due, not a dict"),
        # The names make the file fit, but the wrong head has the softmax.
        (lambda: graph(names=(1, 2, 4, 3)), "what it computes (output 1, the sigmoid of dense_3): other numbers"),
        (lambda: graph(units=4), ": a kernel (3, 3) and a bias (3,) are due"),
        (lambda: [graph()], "a keras.Model is due, not list"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_graph_that_does_not_fit_is_told_why(answer, words, capsys):
    line = said(check_graph, answer, capsys)
    assert line.startswith("✗ The graph: ")
    assert words in line


def forgotten_return():
    graph()


def test_a_forgotten_return_is_told_from_no_attempt(capsys):
    assert said(check_graph, lambda: None, capsys) == "… The graph: not attempted yet"
    assert said(check_values, lambda model, stored, names: None, capsys) == "… The loader: not attempted yet"
    assert "is a `return` missing?" in said(check_graph, forgotten_return, capsys)
    assert "is a `return` missing?" in said(check_values, lambda m, s, n: print(end=""), capsys)


def entries(model, names):
    for weight in model.weights:
        layer, name = weight.path.split("/")
        yield f"{names[layer]}/{name}"


def right_values(model, stored, names):
    wanted = list(entries(model, names))
    if set(wanted) != set(stored):
        raise ValueError("these do not fit")
    return [stored[name] for name in wanted]


def by_popping(model, stored, names):
    values = tuple(stored.pop(name) for name in entries(model, names))
    assert not stored, "left over"
    return values


def by_counting(model, stored, names):
    values = [stored[name] for name in entries(model, names)]
    if len(values) != len(stored):
        raise ValueError("left over")
    return values


@pytest.mark.parametrize("answer", [right_values, by_popping, lambda *given: iter(right_values(*given))])
def test_a_loader_that_refuses_is_right(answer, capsys):
    """A list, a tuple, an iterator; any kind of error; and one that uses up the dictionary that it is given."""
    assert (
        said(check_values, answer, capsys)
        == "✓ The loader: right; it returns the right arrays or raises an error, as it should, in all 6 cases"
    )


def filled_model(model, stored, names):
    model.set_weights(right_values(model, stored, names))
    return model


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        # By position, as load_weights does.
        (
            lambda m, s, n: list(s.values()),
            "another order of layers (the sigmoid in its Dense layer): dense_10/kernel of",
        ),
        (
            lambda m, s, n: [s[name] for name in sorted(s)],
            "an array (3, 3) is due for dense_1/kernel, not an array (3,)",
        ),
        # The names are not used.
        (lambda m, s, n: [s[w.path] for w in m.weights], "wrong for other names"),
        # Nothing is said of what is missing, or left over.
        (
            lambda m, s, n: [s.get(name) for name in entries(m, n)],
            "the file lacks dense_11/bias, and no error was raised",
        ),
        (lambda m, s, n: [s[name] for name in entries(m, n)], "dense_12 is left over, and no error was raised"),
        # It only counts, so it does not see that one layer is used twice and another one never.
        (by_counting, "wrong for a weight that is left over (two layers use dense_10): dense_11 is left over"),
        # Everything is refused.
        (lambda m, s, n: {}[0], "the graph that wrote the file (the same names): KeyError"),
        (lambda m, s, n: right_values(m, s, n)[:-1], "22 arrays are due, not 21"),
        (
            lambda m, s, n: dict(zip(entries(m, n), right_values(m, s, n), strict=True)),
            "a list of arrays is due, not a dict",
        ),
        # It fills the model itself.
        (filled_model, "a list of arrays is due, not a model"),
        (
            lambda m, s, n: [2 * value for value in right_values(m, s, n)],
            "dense_1/kernel of the model gets other numbers",
        ),
        (lambda m, s, n: 3, "22 arrays are due, not 1"),
    ],
)
def test_a_loader_that_does_not_is_told_why(answer, words, capsys):
    line = said(check_values, answer, capsys)
    assert line.startswith("✗ The loader: ")
    assert words in line

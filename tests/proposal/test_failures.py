"""Why a layer finds no module, in words."""

from math import inf

from parity.proposal.failures import (
    Failure,
    module_name,
    none_agrees,
    none_left,
    promised_to_another,
    returns_another,
)


def test_the_model_itself_has_no_name():
    assert module_name("conv.0") == "conv.0"
    assert module_name("") == "the model"


def test_the_right_module_is_another_layers_by_name():
    assert promised_to_another("fc", "dense_1") == Failure(
        "fc takes what it takes, but by name it is the twin of dense_1", True
    )
    assert promised_to_another("", "a").why.startswith("the model takes")


def test_all_modules_that_fit_are_taken():
    failure = none_left({"p": "a", "": "b"})
    assert failure == Failure("no module is left that fits: p is the twin of a, the model is the twin of b", True)


def test_no_module_takes_it_and_the_nearest_is_named():
    failure = none_agrees({"p": 3.0, "q": 0.0123, "r": 1.0}, 1.24e-5, {"a": "x", "b": ""})
    assert failure == Failure(
        "no module takes what it takes: q comes nearest, 0.012 off, where rounding explains 1e-05; "
        "look at a (x), b (the model) and what follows",
        numbers=True,
    )
    assert not failure.structural


def test_before_the_first_layer_there_is_only_the_input():
    assert none_agrees({"p": 3.0}, 1e-5, {}).why.endswith("; look at what the twin does to its input")


def test_where_no_shape_fits_there_is_no_difference():
    why = none_agrees({"p": inf, "q": inf}, 1e-5, {}).why
    assert (
        why
        == "no module takes what it takes: none takes a tensor of that shape; look at what the twin does to its input"
    )


def test_of_a_module_that_is_known_it_is_said_how():
    by_name = none_agrees({"p": 3.0}, 1e-5, {}, "by name").why
    assert by_name.startswith("by name it is p, which does not take what it takes: p comes nearest, 3 off")
    in_call = none_agrees({"p": 3.0}, 1e-5, {}, "in this call").why
    assert in_call.startswith("p does not take what it takes in this call: p comes nearest, 3 off")


def test_of_a_module_that_returns_something_else_it_is_said_how_far_it_is_off():
    shapes = (2, 32, 3), (2, 3, 33)
    assert returns_another("p", 0.0123, 1.24e-5, shapes) == (
        "p takes what it takes, and returns something else, 0.012 off, where rounding explains 1e-05"
    )
    assert returns_another("", inf, 1.24e-5, shapes) == (
        "the model takes what it takes, and returns another shape, (2, 3, 33), where Keras's layer returns (2, 32, 3)"
    )

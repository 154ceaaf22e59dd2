"""Comparisons with what is no twin are taken back; those with a twin are not. The runs are written out."""

from math import inf

from parity.models.keras_graph import Graph, Step
from parity.tracing.misfits import without_misfits
from parity.tracing.pairing import Pairing, Spot
from parity.tracing.runs import MISFIT, Comparison, Run

import pytest
from keras import layers as L

RIGHT, WRONG = 0.5, 2.0  # the tolerance is 1


def compared(difference, note="", call=0):
    return Comparison(difference, 1.0, note, (2, 1), Spot(call, "out", 0))


NO_FIT = compared(inf, MISFIT)
CHAIN = [("a", (0,), 1), ("b", (1,), 2), ("c", (2,), 3)]


def run_of(inputs, outputs, steps=CHAIN, observed=(), guessed=(), with_weights=(), ends=None):
    """Return a run of a model with the input 0, in which each step has a twin.

    Args:
        inputs: By step and position: the difference, or a comparison.
        outputs: By tensor: the same.
        steps: For each step: its name, what it takes, what it returns.
        observed: Tensors that are seen where they are taken only.
        guessed: Tensors whose call is a guess.
        with_weights: Steps with weights.
        ends: The model's outputs.
    """
    made = []
    for index, (name, taken, number) in enumerate(steps):
        layer = L.Dense(1, name=f"l{index}") if index in with_weights else L.ReLU(name=f"l{index}")
        if index in with_weights:
            layer.build((None, 1))
        made.append(Step(name, layer, False, taken, (number,), None, False))
    entered = [
        {key: one if isinstance(one, Comparison) else compared(one) for key, one in each.items()}
        for each in (inputs, outputs)
    ]
    twins = {index: (index, index) for index in range(len(steps))}
    pairing = Pairing(twins, {}, {}, {number: [] for number in observed}, set(guessed))
    graph = Graph(made, (0,), tuple(ends or (steps[-1][2],)))
    return Run(graph, [], pairing, False, *entered, {}, {}, {}, {}, {})


def left(run):
    """Return the tensors and the inputs that are still compared, and the steps that have a twin."""
    after = without_misfits(run)
    return set(after.outputs), set(after.inputs), set(after.pairing.twins)


ALL = {(0, 0): RIGHT, (1, 0): RIGHT, (2, 0): RIGHT, (3, 0): RIGHT}
EVERY = ({1, 2, 3}, {(0, 0), (1, 0), (2, 0), (3, 0)}, {0, 1, 2})


def test_what_agrees_stays_as_it_is():
    run = run_of(ALL, {1: RIGHT, 2: RIGHT, 3: RIGHT}, observed=[1], guessed=[2])
    assert without_misfits(run) == run


def test_a_call_that_is_a_guess_and_wrong_is_taken_back_if_what_follows_is_right():
    run = run_of({(0, 0): RIGHT, (3, 0): RIGHT}, {1: RIGHT, 2: WRONG, 3: RIGHT}, guessed=[2])
    outputs, inputs, twins = left(run)
    assert (outputs, inputs, twins) == ({1, 3}, {(0, 0), (3, 0)}, {0, 2})
    assert set(run.outputs) == {1, 2, 3}  # the run itself is as it was
    assert set(run.pairing.twins) == {0, 1, 2}


def test_the_same_of_what_is_seen_where_it_is_taken_only():
    run = run_of({}, {1: RIGHT, 2: WRONG, 3: RIGHT}, observed=[2])
    assert left(run)[0] == {1, 3}


@pytest.mark.parametrize("last", [WRONG, None])
def test_but_not_if_what_follows_is_wrong_or_unknown(last):
    run = run_of({}, {1: RIGHT, 2: WRONG} | ({} if last is None else {3: last}), guessed=[2])
    assert 2 in left(run)[0]
    assert 1 in left(run)[2]


def test_a_layer_with_weights_that_is_certain_is_not_taken_back():
    run = run_of({}, {1: RIGHT, 2: WRONG, 3: RIGHT}, with_weights=[1])
    assert left(run)[0] == {1, 2, 3}
    assert left(run_of({(1, 0): WRONG}, {1: RIGHT, 2: WRONG, 3: RIGHT}, with_weights=[1]))[0] == {1, 2, 3}


def test_a_layer_without_weights_is_in_doubt_if_its_twin_takes_something_else():
    outputs = {1: RIGHT, 2: WRONG, 3: RIGHT}
    assert left(run_of({(1, 0): WRONG}, outputs))[0] == {1, 3}
    assert left(run_of({(1, 0): RIGHT}, outputs))[0] == {1, 2, 3}
    assert left(run_of({}, outputs))[0] == {1, 2, 3}


def test_one_that_takes_it_as_it_should_be_is_seen_instead():
    taken = compared(RIGHT, call=7)
    run = run_of({(2, 0): taken}, {1: RIGHT, 2: WRONG, 3: WRONG}, guessed=[2])
    after = without_misfits(run)
    assert after.outputs[2] == taken
    assert after.pairing.twins.keys() == {0, 1, 2}


@pytest.mark.parametrize("note", ["with a border", "without a border"])
def test_but_not_if_that_agrees_but_for_a_border(note):
    run = run_of({(2, 0): compared(RIGHT, note)}, {1: RIGHT, 2: WRONG, 3: WRONG}, guessed=[2])
    assert without_misfits(run).outputs[2] == compared(WRONG)
    run = run_of({(2, 0): compared(RIGHT, note)}, {1: RIGHT, 2: WRONG, 3: RIGHT}, guessed=[2])
    assert left(run)[0] == {1, 3}


def test_shapes_that_do_not_fit_are_taken_back_if_what_follows_is_right_but_the_twin_stays():
    run = run_of({}, {1: RIGHT, 2: NO_FIT, 3: RIGHT}, with_weights=[1])
    outputs, _, twins = left(run)
    assert outputs == {1, 3}
    assert twins == {0, 1, 2}
    assert left(run_of({}, {1: RIGHT, 2: NO_FIT, 3: WRONG}, with_weights=[1]))[0] == {1, 2, 3}


def test_shapes_that_do_not_fit_are_taken_back_of_inputs_too():
    assert left(run_of({(1, 0): NO_FIT, (2, 0): NO_FIT}, {1: RIGHT, 2: RIGHT, 3: WRONG}))[1] == {(2, 0)}
    # An input that only differs stays.
    assert left(run_of({(1, 0): WRONG}, {1: RIGHT, 2: RIGHT, 3: RIGHT}))[1] == {(1, 0)}


def test_the_models_return_has_nothing_behind_it_that_could_be_right():
    run = run_of({(3, 0): NO_FIT}, {1: RIGHT, 2: RIGHT, 3: RIGHT})
    assert left(run)[1] == {(3, 0)}
    assert left(run_of({}, {1: RIGHT, 2: RIGHT, 3: WRONG}, guessed=[3]))[0] == {1, 2, 3}


def test_of_several_in_a_row_the_last_is_looked_at_first():
    run = run_of({}, {1: WRONG, 2: WRONG, 3: RIGHT}, guessed=[1, 2])
    assert left(run)[0] == {3}
    assert left(run)[2] == {2}


def test_every_layer_that_takes_it_must_be_right():
    steps = [("a", (0,), 1), ("b", (1,), 2), ("c", (1,), 3)]
    assert left(run_of({}, {1: WRONG, 2: RIGHT, 3: RIGHT}, steps, guessed=[1], ends=(2, 3)))[0] == {2, 3}
    assert left(run_of({}, {1: WRONG, 2: RIGHT, 3: WRONG}, steps, guessed=[1], ends=(2, 3)))[0] == {1, 2, 3}


def test_of_a_layer_that_was_not_compared_those_that_take_its_output_decide():
    steps = [*CHAIN, ("d", (3,), 4)]
    assert left(run_of({}, {2: WRONG, 4: RIGHT}, steps, guessed=[2]))[0] == {4}
    assert left(run_of({}, {2: WRONG, 4: WRONG}, steps, guessed=[2]))[0] == {2, 4}


def test_of_a_layer_with_two_outputs_both_must_be_right():
    def two(first, second):
        run = run_of({}, {1: WRONG, 2: first, 3: second}, [("a", (0,), 1), ("b", (1,), 2)], guessed=[1], ends=(2,))
        steps = [run.graph.steps[0], run.graph.steps[1]._replace(outputs=(2, 3))]
        return run._replace(graph=run.graph._replace(steps=steps))

    assert 1 not in left(two(RIGHT, RIGHT))[0]
    assert 1 in left(two(RIGHT, WRONG))[0]

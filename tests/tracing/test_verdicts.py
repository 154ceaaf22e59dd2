"""Verdicts on runs that are written out: what was compared is given, and what is said of it is asserted."""

from math import nan

from parity.models.keras_graph import Graph, Step
from parity.models.torch_calls import Call
from parity.tracing.pairing import Pairing, Spot
from parity.tracing.runs import Comparison, Run
from parity.tracing.training import Fault, TrainingFault
from parity.tracing.verdicts import TRACE_COLUMNS, Kind, Verdict, layer_name, note_of, table, twin_name, verdicts_of

import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

RIGHT, WRONG = 0.5, 2.0  # the tolerance is 1


def compared(difference, note="", shape=(2, 1)):
    return Comparison(difference, 1.0, note, shape, Spot(0, "out", 0))


def run_of(steps, inputs, outputs, ends=None, **more):
    """Return a run of a model with one input, number 0.

    Args:
        steps: For each step: its name, what it takes, what it returns.
        inputs: By step and position: the difference, or a comparison.
        outputs: By tensor: the same.
        ends: The model's outputs; that of the last step if not given.
        more: What else the run has.
    """
    made = [
        Step(name, L.ReLU(name=f"l{i}"), False, taken, (number,), None, False)
        for i, (name, taken, number) in enumerate(steps)
    ]
    graph = Graph(made, (0,), tuple(ends or (steps[-1][2],)))
    numbers = [0, *(number for _, _, number in steps)]
    entered = [
        {key: one if isinstance(one, Comparison) else compared(one) for key, one in each.items()}
        for each in (inputs, outputs)
    ]
    calls = more.pop("calls", [])
    twins = more.pop("twins", {})
    values = {
        "training": False,
        "shapes": {number: (2, number + 1) for number in numbers},
        "flattened": {},
        "noise": {number: number / 8 for number in numbers},
        "stored": {},
        "returned": {},
    } | more
    return Run(graph, calls, Pairing(twins, {}, {}, {}, set()), inputs=entered[0], outputs=entered[1], **values)


CHAIN = [("a", (0,), 1), ("b", (1,), 2), ("c", (2,), 3)]
SEEN = {(0, 0): RIGHT, (1, 0): RIGHT, (2, 0): RIGHT, (3, 0): RIGHT}


def kinds(run, faults=None):
    return [verdict.kind for verdict in verdicts_of(run, faults or {})]


def test_all_agrees():
    assert verdicts_of(run_of(CHAIN, SEEN, {1: RIGHT, 2: RIGHT, 3: RIGHT}), {}) == [
        Verdict(Kind.AGREES, step) for step in range(4)
    ]


def test_the_tolerance_itself_is_agreement():
    assert kinds(run_of(CHAIN, SEEN, {1: 1.0, 2: 1.0001, 3: RIGHT}))[:2] == [Kind.AGREES, Kind.DIVERGES]
    assert kinds(run_of(CHAIN, SEEN, {1: nan, 2: RIGHT, 3: RIGHT}))[0] == Kind.DIVERGES


def test_the_first_that_returns_something_else_diverges_and_those_behind_it_are_different_before():
    run = run_of(CHAIN, SEEN | {(2, 0): WRONG, (3, 0): WRONG}, {1: RIGHT, 2: WRONG, 3: WRONG})
    assert kinds(run) == [Kind.AGREES, Kind.DIVERGES, Kind.DIFFERENT_BEFORE, Kind.DIFFERENT_BEFORE]
    assert verdicts_of(run, {})[1] == Verdict(Kind.DIVERGES, 1)


def test_a_second_layer_whose_input_was_not_compared_is_judged_by_what_is_before_it():
    run = run_of(CHAIN, {}, {1: RIGHT, 2: WRONG, 3: WRONG})
    assert kinds(run) == [Kind.AGREES, Kind.DIVERGES, Kind.DIFFERENT_BEFORE, Kind.NOT_PAIRED]


def test_a_layer_that_agrees_again_may_be_followed_by_another_that_diverges():
    run = run_of(CHAIN, {}, {1: WRONG, 2: RIGHT, 3: WRONG})
    assert kinds(run)[:3] == [Kind.DIVERGES, Kind.AGREES, Kind.DIVERGES]


def test_a_twin_that_takes_something_else_than_the_layers_before_it_return():
    run = run_of(CHAIN, SEEN | {(1, 0): WRONG, (2, 0): WRONG}, {1: RIGHT, 2: WRONG, 3: WRONG})
    assert kinds(run)[:3] == [Kind.AGREES, Kind.TAKES_OTHER, Kind.DIFFERENT_BEFORE]
    # With what it should return all the same, nothing is wrong.
    run = run_of(CHAIN, SEEN | {(1, 0): WRONG}, {1: RIGHT, 2: RIGHT, 3: RIGHT})
    assert kinds(run)[:3] == [Kind.AGREES] * 3


def test_one_input_of_several_is_enough():
    steps = [("a", (0,), 1), ("b", (0,), 2), ("sum", (1, 2), 3)]
    seen = {(0, 0): RIGHT, (1, 0): RIGHT, (2, 0): RIGHT, (2, 1): WRONG}
    assert kinds(run_of(steps, seen, {1: RIGHT, 2: RIGHT, 3: WRONG}))[2] == Kind.TAKES_OTHER
    assert kinds(run_of(steps, seen, {1: RIGHT, 2: WRONG, 3: WRONG}))[1:3] == [Kind.DIVERGES, Kind.DIFFERENT_BEFORE]
    assert kinds(run_of(steps, seen | {(2, 1): RIGHT}, {1: RIGHT, 2: RIGHT, 3: WRONG}))[2] == Kind.DIVERGES


def test_what_was_not_seen_is_not_paired_and_what_is_behind_it_may_be_its_fault():
    run = run_of(CHAIN, {(0, 0): RIGHT, (2, 0): WRONG}, {1: RIGHT, 3: WRONG})
    assert verdicts_of(run, {})[:3] == [
        Verdict(Kind.AGREES, 0),
        Verdict(Kind.NOT_PAIRED, 1),
        Verdict(Kind.TAKES_OTHER, 2, perhaps_at=(1,)),
    ]
    run = run_of(CHAIN, {}, {3: WRONG})
    assert verdicts_of(run, {})[2] == Verdict(Kind.DIVERGES, 2, perhaps_at=(0, 1))
    assert note_of(run, verdicts_of(run, {})[2]) == "or at a, b"


def test_of_two_inputs_both_have_to_be_seen():
    steps = [("product", (0, 0), 1)]
    for inputs, note in (
        ({}, "its inputs were not seen"),
        ({(0, 0): RIGHT}, "its inputs were not seen"),
        ({(0, 0): RIGHT, (0, 1): RIGHT}, ""),
    ):
        run = run_of(steps, inputs, {1: WRONG})
        assert note_of(run, verdicts_of(run, {})[0]) == note


def test_of_many_that_were_not_seen_the_five_nearest_are_named():
    def chain(length):
        steps = [(f"s{number}", (number,), number + 1) for number in range(length + 1)]
        run = run_of(steps, {}, {length + 1: WRONG})
        return note_of(run, verdicts_of(run, {})[length])

    assert chain(5) == "or at s0, s1, s2, s3, s4"
    assert chain(6) == "or at s1, s2, s3, s4, s5 or before"
    assert chain(0) == "its inputs were not seen"


def test_steps_that_were_not_seen_in_two_branches_are_named_once():
    steps = [("a", (0,), 1), ("b", (1,), 2), ("c", (1,), 3), ("sum", (2, 3), 4)]
    assert verdicts_of(run_of(steps, {}, {4: WRONG}), {})[3].perhaps_at == (0, 1, 2)


def test_notes_of_the_alignment_are_said_of_what_agrees_only():
    run = run_of(CHAIN, {}, {1: compared(RIGHT, "flattened"), 2: compared(WRONG, "flattened"), 3: RIGHT})
    verdicts = verdicts_of(run, {})
    assert [note_of(run, verdict) for verdict in verdicts[:3]] == ["flattened", "", ""]
    assert verdicts[0].alignments == ("flattened",)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


TWO = [("a", (0,), 1), ("b", (0,), 2)]
A, B = tensor(1, 2), tensor(30, 40)


def exchanged(stored):
    run = run_of(TWO, {}, {1: WRONG, 2: WRONG}, stored=stored)
    return run, verdicts_of(run, {})


def test_two_layers_that_have_each_others_output_are_exchanged():
    run, verdicts = exchanged({1: (A, B), 2: (B, A + 0.5)})
    assert verdicts[:2] == [
        Verdict(Kind.DIVERGES, 0, exchanged_with=(1,)),
        Verdict(Kind.DIVERGES, 1, exchanged_with=(0,)),
    ]
    assert [note_of(run, verdict) for verdict in verdicts[:2]] == ["exchanged with b", "exchanged with a"]


@pytest.mark.parametrize(
    "stored",
    [{1: (A, B), 2: (B, A + 2)}, {1: (A, B), 2: (B, B + 2)}, {1: (A, A + 2), 2: (B, B + 2)}, {1: (A, B)}, {}],
    ids=["far off", "one way", "their own", "no room", "nothing"],
)
def test_otherwise_they_are_not(stored):
    assert [verdict.exchanged_with for verdict in exchanged(stored)[1]][:2] == [(), ()]


def test_of_three_each_names_both_of_its_like():
    steps = [*TWO, ("c", (0,), 3)]
    run = run_of(steps, {}, dict.fromkeys((1, 2, 3), WRONG), stored={1: (A, B), 2: (B, A), 3: (B, A)})
    verdicts = verdicts_of(run, {})
    assert [verdict.exchanged_with for verdict in verdicts[:3]] == [(1, 2), (0,), (0,)]
    assert note_of(run, verdicts[0]) == "exchanged with b and c"


def ends(inputs, outputs, **more):
    return run_of(TWO, inputs, outputs, (1, 2), **more)


def test_the_outputs_of_a_model_are_judged_too():
    run = ends({(2, 0): RIGHT, (2, 1): WRONG}, {1: RIGHT, 2: RIGHT})
    assert verdicts_of(run, {})[2:] == [Verdict(Kind.AGREES, 2, 0), Verdict(Kind.TAKES_OTHER, 2, 1)]
    run = ends({(2, 0): WRONG}, {1: WRONG, 2: RIGHT})
    assert verdicts_of(run, {})[2:] == [Verdict(Kind.DIFFERENT_BEFORE, 2, 0), Verdict(Kind.NOT_PAIRED, 2, 1)]
    assert kinds(ends({(2, 0): WRONG, (2, 1): RIGHT}, {2: WRONG}))[2:] == [Kind.TAKES_OTHER, Kind.AGREES]


def test_outputs_that_are_returned_in_another_order_are_exchanged():
    run = ends({(2, 0): WRONG, (2, 1): WRONG}, {1: RIGHT, 2: RIGHT}, returned={0: (A, B), 1: (B, A)})
    verdicts = verdicts_of(run, {})[2:]
    assert [verdict.exchanged_with for verdict in verdicts] == [(1,), (0,)]
    assert [note_of(run, verdict) for verdict in verdicts] == ["exchanged with output 2", "exchanged with output 1"]
    assert [layer_name(run, verdict) for verdict in verdicts] == ["output 1, of a", "output 2, of b"]
    assert [twin_name(run, verdict) for verdict in verdicts] == ["return value 1", "return value 2"]


def test_an_output_that_is_an_input_comes_from_no_layer():
    run = run_of(TWO, {}, {}, (0, 2))
    assert layer_name(run, Verdict(Kind.AGREES, 2, 0)) == "output 1"


FAULT = TrainingFault(Fault.GRADIENT, "of the kernel")
RATE = TrainingFault(Fault.RATE, "rate is 0.25, not 0.5")


def test_what_is_wrong_in_training_makes_a_layer_that_agrees_diverge():
    run = run_of(CHAIN, SEEN, {1: RIGHT, 2: RIGHT, 3: RIGHT})
    verdicts = verdicts_of(run, {1: FAULT})
    assert verdicts[1] == Verdict(Kind.DIVERGES, 1, training=FAULT)
    assert [verdict.kind for verdict in verdicts] == [Kind.AGREES, Kind.DIVERGES, Kind.AGREES, Kind.AGREES]
    assert note_of(run, verdicts[1]) == "another gradient: of the kernel"
    assert note_of(run, Verdict(Kind.DIVERGES, 1, training=TrainingFault(Fault.FROZEN))) == "frozen in one model only"


def test_a_layer_that_diverges_anyway_or_is_not_paired_is_not_said_to_be_wrong_in_training():
    run = run_of(CHAIN, {}, {1: WRONG, 3: WRONG})
    verdicts = verdicts_of(run, dict.fromkeys(range(3), FAULT))
    assert [verdict.training for verdict in verdicts[:3]] == [None, None, None]


def test_but_of_dropout_that_is_not_paired_the_rate_is_known():
    run = run_of(CHAIN, {}, {1: WRONG, 3: WRONG})
    verdicts = verdicts_of(run, dict.fromkeys(range(3), RATE))
    assert [verdict.training for verdict in verdicts[:3]] == [None, RATE, None]


def test_the_table_has_a_row_for_each_verdict_and_each_module_without_a_layer():
    linear, unused = nn.Linear(1, 2), nn.Tanh()
    calls = [
        Call("first", linear, (0,), (1,), ((2, 2),)),
        Call("relu", None, (1,), (2,), ((2, 2),)),
        Call("act", nn.ReLU(), (2,), (3,), ((2, 3),), at="port.py, line 4"),
        Call("other", unused, (3,), (4,), ((2, 9),), at="port.py, line 5"),
        Call("cumsum", None, (3,), (4,), ((2, 9),)),
    ]
    run = run_of(
        CHAIN,
        {(0, 0): 0.125, (1, 0): RIGHT, (2, 0): WRONG},
        {1: compared(0.25, shape=(2, 7)), 2: compared(WRONG, shape=(2, 8))},
        calls=calls,
        twins={0: (0, 0), 1: (1, 2)},
    )
    made = table(run, verdicts_of(run, {}))
    assert list(made.columns) == TRACE_COLUMNS
    empty = made.astype(object).where(made.notna(), None)
    assert [tuple(row) for row in empty.to_numpy()] == [
        ("a", "ReLU", "first", (2, 2), (2, 7), 0.125, 0.25, 0.125, "agree", "", ""),
        ("b", "ReLU", "relu(), act", (2, 3), (2, 8), RIGHT, WRONG, 0.25, "DIVERGES HERE", "", "port.py, line 4"),
        ("c", "ReLU", "-", (2, 4), None, WRONG, None, 0.375, "not paired", "", ""),
        ("output 1, of c", "-", "return value 1", (2, 4), None, None, None, 0.375, "not paired", "", ""),
        ("-", "-", "other (Tanh)", None, (2, 9), None, None, None, "not paired", "", "port.py, line 5"),
    ]
    assert made.outputs.dtype == made.noise.dtype == np.float64


def test_the_twin_itself_as_the_twin_of_a_layer_is_called_the_model():
    calls = [Call("", nn.ReLU(), (0,), (1,))]
    run = run_of([("a", (0,), 1)], {}, {1: RIGHT}, calls=calls, twins={0: (0, 0)})
    assert twin_name(run, Verdict(Kind.AGREES, 0)) == "the model"


def test_the_larger_of_several_inputs_is_in_the_table_and_what_an_output_is_compared_to():
    steps = [("a", (0,), 1), ("sum", (0, 1), 2)]
    run = run_of(steps, {(1, 0): 0.25, (1, 1): 0.75, (2, 0): compared(0.5, shape=(9, 9))}, {1: RIGHT, 2: 0.125})
    made = table(run, verdicts_of(run, {}))
    assert made.inputs[1] == 0.75
    assert (made.inputs[2], made.outputs[2], made.torch_shape[2]) == (0.125, 0.5, (9, 9))
    # An input that was not seen where it is taken is that which the layer before returns.
    run = run_of(CHAIN, {}, {1: 0.25, 2: RIGHT, 3: RIGHT})
    assert table(run, verdicts_of(run, {})).inputs[1] == 0.25


def test_a_run_tells_what_was_seen_of_a_steps_inputs():
    steps = [("a", (0,), 1), ("sum", (0, 1), 2)]
    run = run_of(steps, {(1, 1): WRONG}, {1: RIGHT})
    assert run.inputs_of(1) == [None, compared(WRONG)]
    assert run_of(steps, {}, {1: RIGHT}).inputs_of(1) == [None, compared(RIGHT)]
    assert [compared(one).agrees for one in (0.0, 1.0, 1.5, nan)] == [True, True, False, False]


def test_behind_a_layer_that_was_not_seen_it_is_as_it_was_before_it():
    assert kinds(run_of(CHAIN, {}, {1: WRONG, 3: WRONG}))[:3] == [Kind.DIVERGES, Kind.NOT_PAIRED, Kind.DIFFERENT_BEFORE]


def test_a_layer_with_two_outputs_agrees_if_both_do():
    def two(first, second):
        run = run_of([("a", (0,), 1)], {}, {1: first, 2: second})
        graph = run.graph._replace(steps=[run.graph.steps[0]._replace(outputs=(1, 2))])
        return kinds(run._replace(graph=graph))[0]

    assert two(RIGHT, RIGHT) == Kind.AGREES
    assert two(RIGHT, WRONG) == two(WRONG, RIGHT) == Kind.DIVERGES

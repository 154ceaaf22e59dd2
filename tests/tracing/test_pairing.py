"""Which call is which layer's, on small graphs that are written out: no model runs here."""

from parity.models.keras_graph import Graph, Step
from parity.models.torch_calls import Call
from parity.tracing.pairing import Spot, pair

import pytest
from keras import layers as L
from torch import nn


class Drawn:
    """Two graphs, drawn step by step and call by call; steps are called by their names, tensors by numbers."""

    def __init__(self, inputs=1):
        self.steps, self.calls, self.modules = [], [], {}
        self.inputs = tuple(range(inputs))

    def step(self, name, layer, inputs, output, is_activation=False):
        """Add a step of the Keras model; return its layer."""
        layer.name = name
        self.steps.append(Step(name, layer, is_activation, tuple(inputs), (output,), None, False))
        return layer

    def call(self, name, inputs, output, module=None, **more):
        """Add a call of the twin."""
        self.calls.append(Call(name, module, tuple(inputs), (output,), **more))

    def pair(self, outputs, returned):
        """Pair both, given what the model and the twin return."""
        return pair(Graph(self.steps, self.inputs, tuple(outputs)), self.calls, list(returned), self.modules)

    def dense(self, name, inputs, output, twin_inputs, twin_output):
        """Add a layer with weights, and at once the call of its module."""
        layer, module = self.step(name, L.Dense(1), inputs, output), nn.Linear(1, 1)
        self.modules[id(layer)] = [module]
        self.call(name, twin_inputs, twin_output, module)


class Own(nn.Module):
    """A module of the reader's own whose name says nothing."""


def at(call, position=0):
    return Spot(call, "in", position)


def out(call, position=0):
    return Spot(call, "out", position)


def test_layers_with_weights_are_paired_by_their_modules():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.dense("b", [1], 2, [1], 2)
    found = both.pair([2], [2])
    assert found.twins == {0: (0, 0), 1: (1, 1)}
    assert found.inputs == {(0, 0): at(0), (1, 0): at(1), (2, 0): at(2)}
    assert found.outputs == {1: out(0), 2: out(1)}
    assert (found.observed, found.guessed) == ({}, set())


def test_the_twin_of_a_layer_may_begin_with_one_module_and_end_with_another():
    both = Drawn()
    layer = both.step("separable", L.SeparableConv2D(1, 1), [0], 1)
    first, last = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    both.modules[id(layer)] = [first, last]
    both.call("first", [0], 1, first)
    both.call("clone", [1], 2)
    both.call("last", [2], 3, last)
    found = both.pair([1], [3])
    assert found.twins == {0: (0, 2)}
    assert found.inputs[0, 0] == at(0)
    assert found.outputs == {1: out(2)}


def test_a_layer_whose_module_is_never_called_has_no_twin_and_those_behind_it_have():
    both = Drawn()
    both.modules[id(both.step("a", L.Dense(1), [0], 1))] = [nn.Linear(1, 1)]
    both.call("mystery", [0], 1)
    both.dense("b", [1], 2, [1], 2)
    found = both.pair([2], [2])
    assert found.twins == {1: (1, 1)}
    assert found.observed == {1: [at(1)]}


def shared(order):
    """Return a layer that is called with each of two inputs; its twin calls the module in this order."""
    both, layer, module = Drawn(2), L.Dense(1), nn.Linear(1, 1)
    both.modules[id(layer)] = [module]
    for number in (0, 1):
        both.step("shared", layer, [number], 2 + number)
    for place, number in enumerate(order):
        both.call("shared", [number], 2 + place, module)
    return both


def test_calls_of_a_shared_layer_are_told_apart_by_what_they_take():
    assert shared((0, 1)).pair([2, 3], [2, 3]).twins == {0: (0, 0), 1: (1, 1)}
    found = shared((1, 0)).pair([2, 3], [3, 2])
    assert found.twins == {0: (1, 1), 1: (0, 0)}
    assert found.outputs == {2: out(1), 3: out(0)}
    assert found.inputs == {(0, 0): at(1), (1, 0): at(0), (2, 0): at(2, 0), (2, 1): at(2, 1)}


def test_where_that_does_not_tell_they_are_paired_in_their_order():
    assert shared((1, 1)).pair([2, 3], [2, 3]).twins == {0: (0, 0), 1: (1, 1)}
    assert shared((0,)).pair([2, 3], [2, 2]).twins == {0: (0, 0)}


def test_a_call_whose_result_a_paired_layer_takes_is_the_twin_of_the_layer_before():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("relu", L.ReLU(), [1], 2)
    both.call("relu", [1], 2)
    both.dense("b", [2], 3, [2], 3)
    found = both.pair([3], [3])
    assert found.twins == {0: (0, 0), 1: (1, 1), 2: (2, 2)}
    assert found.inputs[1, 0] == at(1)
    assert found.outputs[2] == out(1)
    assert (found.observed, found.guessed) == ({}, set())


def test_of_several_layers_in_a_row_the_last_is_paired_first():
    """So each is found by what takes its result, which is the better sign: none is a guess."""
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    for number, name in enumerate(("tanh", "sigmoid", "gelu"), 1):
        both.step(name, L.Activation(name), [number], number + 1)
        both.call(name, [number], number + 1)
    both.dense("b", [4], 5, [4], 5)
    found = both.pair([5], [5])
    assert found.twins == {number: (number, number) for number in range(5)}
    assert found.guessed == set()


@pytest.mark.parametrize("between", ["permute", "flatten", "contiguous", "pad"])
def test_calls_that_only_reorder_may_be_between(between):
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("relu", L.ReLU(), [1], 2)
    both.call("relu", [1], 2)
    both.call(between, [2], 3)
    both.dense("b", [2], 3, [3], 4)
    assert both.pair([3], [4]).twins[1] == (1, 1)


def test_calls_that_compute_may_not():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("relu", L.ReLU(), [1], 2)
    both.call("relu", [1], 2)
    both.call("cumsum", [2], 3)
    both.dense("b", [2], 3, [3], 4)
    found = both.pair([3], [4])
    assert 1 not in found.twins
    assert found.observed == {2: [at(3)]}
    assert found.outputs.keys() == {1, 3}


def test_a_layer_that_the_twin_lacks_is_observed_where_its_consumers_take_it():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("relu", L.ReLU(), [1], 2)
    both.dense("b", [2], 3, [1], 2)
    both.dense("c", [2], 4, [1], 3)
    found = both.pair([3, 4], [2, 3])
    assert found.twins == {0: (0, 0), 2: (1, 1), 3: (2, 2)}
    assert found.observed == {2: [at(1), at(2)]}
    assert (1, 0) not in found.inputs
    assert found.guessed == set()


def test_dropout_that_the_twin_lacks_takes_what_its_consumer_takes():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("drop", L.Dropout(0.5), [1], 2)
    both.dense("b", [2], 3, [1], 2)
    found = both.pair([3], [2])
    assert found.observed == {2: [at(1)]}
    assert found.inputs[1, 0] == at(1)


def test_a_call_is_found_by_what_it_takes_where_its_result_is_not_seen():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("relu", L.ReLU(), [1], 2)
    both.step("own", L.Lambda(lambda x: x), [2], 3)
    both.call("reshape", [1], 2)
    both.call("relu", [2], 3)
    both.call("cumsum", [3], 4)
    both.dense("b", [3], 4, [4], 5)
    found = both.pair([4], [5])
    assert found.twins == {0: (0, 0), 1: (2, 2), 3: (4, 4)}
    assert found.guessed == {2}
    assert found.observed == {3: [at(4)]}


def test_of_several_calls_that_take_it_the_first_of_the_kind_is_taken_and_each_once():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    for name, number in (("one", 2), ("two", 3)):
        both.step(name, L.ReLU(), [1], number)
    both.step("own", L.Lambda(lambda x: x), [2, 3], 4)
    both.call("mean", [1], 2)
    both.call("relu", [1], 3)
    both.call("sigmoid", [1], 4)
    both.call("cumsum", [3, 4], 5)
    both.dense("b", [4], 5, [5], 6)
    found = both.pair([5], [6])
    assert (found.twins[1], found.twins[2]) == ((2, 2), (3, 3))


def test_pooling_is_not_found_by_what_it_takes():
    """One function may be a part of it only."""
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("pool", L.GlobalAveragePooling2D(), [1], 2)
    both.step("own", L.Lambda(lambda x: x), [2], 3)
    both.call("mean", [1], 2)
    both.call("cumsum", [2], 3)
    both.dense("b", [3], 4, [3], 4)
    assert both.pair([4], [4]).twins == {0: (0, 0), 3: (3, 3)}


def scaling(*functions, layers=1):
    both = Drawn()
    for number in range(layers):
        both.step(f"scale{number}", L.Rescaling(2.0), [number], number + 1)
    for number, name in enumerate(functions):
        both.call(name, [number], number + 1)
    both.dense("a", [layers], layers + 1, [len(functions)], len(functions) + 1)
    return both.pair([layers + 1], [len(functions) + 1])


def test_functions_in_a_row_that_scale_are_one_rescaling():
    found = scaling("div", "sub")
    assert found.twins[0] == (0, 1)
    assert (found.inputs[0, 0], found.outputs[1]) == (at(0), out(1))
    assert found.guessed == {1}
    assert scaling("mul").twins[0] == (0, 0)
    assert scaling("relu", "div", "sub").twins[0] == (1, 2)


def test_of_several_rescalings_in_a_row_each_has_one_function():
    found = scaling("div", "sub", layers=2)
    assert found.twins == {0: (0, 0), 1: (1, 1), 2: (2, 2)}
    assert found.guessed == {1, 2}
    # The last has one; all that is left is the first's.
    assert scaling("mul", "div", "sub", layers=2).twins == {0: (0, 1), 1: (2, 2), 2: (3, 3)}


def test_an_activation_is_no_run_of_functions():
    both = Drawn()
    both.step("relu", L.ReLU(), [0], 1)
    both.call("mul", [0], 1)
    both.call("clamp", [1], 2)
    both.dense("a", [1], 2, [2], 3)
    assert both.pair([2], [3]).twins[0] == (1, 1)


@pytest.mark.parametrize(("calls", "due"), [(3, [0, 1]), (2, [0, 1])])
def test_borders_in_a_row_are_counted_from_the_first(calls, due):
    """The last may be the padding of the convolution behind them."""
    both = Drawn()
    for number in range(2):
        both.step(f"pad{number}", L.ZeroPadding2D(1), [number], number + 1)
    for number in range(calls):
        both.call("pad", [number], number + 1)
    both.dense("conv", [2], 3, [calls], calls + 1)
    found = both.pair([3], [calls + 1])
    assert [found.twins[number] for number in range(2)] == [(number, number) for number in due]


def test_a_border_that_is_missing_is_the_last():
    both = Drawn()
    both.step("pad0", L.ZeroPadding2D(1), [0], 1)
    both.step("pad1", L.ZeroPadding2D(1), [1], 2)
    both.call("pad", [0], 1)
    both.dense("conv", [2], 3, [1], 2)
    found = both.pair([3], [2])
    assert 1 not in found.twins
    assert found.observed == {2: [at(1)]}


def merged(function, twin_inputs, layer):
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.dense("b", [0], 2, [0], 2)
    both.step("merge", layer, [1, 2], 3)
    both.call(function, twin_inputs, 3)
    both.dense("c", [3], 4, [3], 4)
    return both.pair([4], [4])


@pytest.mark.parametrize(("twin_inputs", "slots"), [([1, 2], (0, 1)), ([2, 1], (1, 0))])
def test_the_inputs_of_a_merge_may_be_in_another_order(twin_inputs, slots):
    found = merged("cat", twin_inputs, L.Concatenate())
    assert found.twins[2] == (2, 2)
    assert [found.inputs[2, slot] for slot in (0, 1)] == [at(2, position) for position in slots]
    assert found.outputs[3] == out(2)


@pytest.mark.parametrize("layer", [L.Add, L.Concatenate])
def test_the_call_of_a_merge_is_a_guess_as_it_may_be_done_in_another_order(layer):
    assert merged("add" if layer is L.Add else "cat", [1, 2], layer()).guessed == {3}


def test_of_a_merge_that_takes_one_tensor_of_the_models_it_is_not_told_which():
    found = merged("add", [1, -1], L.Add())
    assert found.twins[2] == (2, 2)
    assert not {(2, 0), (2, 1)} & found.inputs.keys()


def test_inputs_of_a_merge_that_come_from_one_module_are_told_apart_by_their_kind():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("max", L.GlobalMaxPooling2D(), [1], 2)
    both.step("mean", L.GlobalAveragePooling2D(), [1], 3)
    both.step("join", L.Concatenate(), [2, 3], 4)
    both.call("mean", [1], 2)
    both.call("amax", [1], 3)
    both.call("cat", [2, 3], 4)
    both.dense("b", [4], 5, [4], 5)
    found = both.pair([5], [5])
    assert (found.inputs[3, 0], found.inputs[3, 1]) == (at(3, 1), at(3, 0))
    assert (found.twins[1], found.twins[2]) == ((2, 2), (1, 1))


def test_a_module_of_the_readers_own_is_a_guess_and_so_is_what_is_before_it():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("tanh", L.Activation("tanh"), [1], 2)
    both.step("relu", L.ReLU(), [2], 3)
    both.call("tanh", [1], 2)
    both.call("own", [2], 3, Own())
    both.dense("b", [3], 4, [3], 4)
    found = both.pair([4], [4])
    assert (found.twins[1], found.twins[2]) == ((1, 1), (2, 2))
    # What the module takes is what the activation takes only if it does no more than this; then by what tanh takes.
    assert found.guessed == {2, 3}


def test_the_models_outputs_are_paired_with_what_the_twin_returns_and_no_more():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.dense("b", [0], 2, [0], 2)
    assert both.pair([1, 2], [2]).inputs == {(0, 0): at(0), (1, 0): at(1), (2, 0): at(2)}
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    assert both.pair([1], [1, 1]).inputs == {(0, 0): at(0), (1, 0): at(1)}


def heads(returned):
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.dense("b", [0], 2, [0], 2)
    both.step("a activation", L.Activation("relu"), [1], 3)
    both.step("b activation", L.Activation("tanh"), [2], 4)
    both.call("relu", [1], 3)
    both.call("tanh", [2], 4)
    return both.pair([3, 4], returned)


def test_the_ends_of_a_model_are_told_by_what_they_take_if_it_returns_them_in_another_order():
    right, exchanged = heads([3, 4]), heads([4, 3])
    assert right.twins == exchanged.twins == {0: (0, 0), 1: (1, 1), 2: (2, 2), 3: (3, 3)}
    assert exchanged.inputs[4, 0] == at(4, 0)
    assert exchanged.inputs[2, 0] == at(2)


def test_the_same_in_a_step_of_two_calls_with_an_activation_of_its_own():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("a activation", both.steps[0].layer, [1], 2, is_activation=True)
    both.call("relu", [1], 2)
    both.dense("b", [2], 3, [2], 3)
    found = both.pair([3], [3])
    assert found.twins == {0: (0, 0), 1: (1, 1), 2: (2, 2)}


def test_a_model_without_modules_with_weights_is_paired_from_its_end():
    both = Drawn()
    both.step("relu", L.ReLU(), [0], 1)
    both.step("pool", L.MaxPooling2D(2), [1], 2)
    both.call("relu", [0], 1)
    both.call("max_pool2d", [1], 2)
    found = both.pair([2], [2])
    assert found.twins == {0: (0, 0), 1: (1, 1)}
    assert found.inputs == {(0, 0): at(0), (1, 0): at(1), (2, 0): at(2)}


def test_a_tensor_that_is_taken_twice_is_in_both_places():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("double", L.Add(), [1, 1], 2)
    both.call("add", [1, 1], 2)
    both.dense("b", [2], 3, [2], 3)
    found = both.pair([3], [3])
    assert (found.inputs[1, 0], found.inputs[1, 1]) == (at(1, 0), at(1, 1))


def test_a_call_is_the_twin_of_one_layer_only():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("one", L.ReLU(), [1], 2)
    both.step("two", L.ReLU(), [1], 3)
    both.call("relu", [1], 2)
    both.dense("b", [2], 4, [2], 3)
    both.dense("c", [3], 5, [2], 4)
    found = both.pair([4, 5], [3, 4])
    assert [found.twins.get(step) for step in (1, 2)].count((1, 1)) == 1
    assert len(found.observed) == 1


def test_what_was_found_by_what_a_module_of_the_readers_own_takes_is_a_guess():
    both = Drawn()
    both.dense("a", [0], 1, [0], 1)
    both.step("pool", L.GlobalAveragePooling2D(), [1], 2)
    both.step("relu", L.ReLU(), [2], 3)
    both.call("mean", [1], 2)
    both.call("own", [2], 3, Own())
    both.dense("b", [3], 4, [3], 4)
    found = both.pair([4], [4])
    assert found.twins[1] == (1, 1)
    assert found.guessed == {2, 3}

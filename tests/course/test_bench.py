"""What notebook 11 tries checks with: the sample of mutants, both models' outputs, and what a check says of a port."""

from collections import Counter

from course.mutants import MUTANTS, NETWORKS, Mutant, load_network
from course.mutants.bench import Pair, passes, sample
from parity import first_divergence

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def pair():
    return Pair(load_network("dense"))


def mutant(name, network="dense", cause="epsilon"):
    return Mutant(name, network, lambda twin: twin, frozenset(), cause, "always")


def names(mutants):
    return [one.name for one in mutants]


def test_a_sample_has_the_last_mutants_of_each_cause():
    mutants = [mutant("a"), mutant("b"), mutant("c"), mutant("d", cause="axis")]
    assert names(sample(mutants, 2)) == ["d", "c", "b"]
    assert names(sample(mutants, 1)) == ["d", "c"]
    assert sample([], 2) == []


@pytest.mark.parametrize("slow", ["dronet", "signal"])
def test_a_sample_takes_a_slow_network_only_where_no_other_has_the_cause(slow):
    quick_last = [mutant("slow", slow), mutant("quick")]
    assert names(sample(quick_last, 2)) == ["quick"]
    assert names(sample([mutant("slow", slow), mutant("slow too", slow)], 2)) == ["slow too", "slow"]


def test_the_sample_of_notebook_11_has_each_cause_once_or_twice():
    counts = Counter(one.cause for one in sample(MUTANTS, 2))
    assert set(counts.values()) == {1, 2}
    assert counts.keys() == {one.cause for one in MUTANTS}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("dronet", "signal")])
def test_the_right_port_agrees_with_keras_for_every_kind_of_input_and_size(name):
    pair = Pair(load_network(name))
    for kind in ("noise", "zeros", "images"):
        for size in pair.sizes:
            for a, b in zip(*pair.both(pair.right(), kind, size, exact=True), strict=True):
                assert a.shape == b.shape
                assert np.abs(a - b).max() <= 2e-6 * max(1, np.abs(a).max())


def test_inputs_are_what_their_kind_says():
    pair = Pair(load_network("heads"))
    noise, words = pair.inputs("noise")
    assert len(noise) == len(words) == 1
    assert 0 <= noise.min() < 0.5 < noise.max() <= 1
    assert words.dtype.kind == "i"
    assert not pair.inputs("zeros")[0].any()
    images, _ = pair.inputs("images")
    assert len(images) == 4
    assert images.min() < 0 < images.max()
    assert images.shape[1:] == noise.shape[1:] != pair.inputs("noise", 1)[0].shape[1:]
    assert all(np.array_equal(a, b) for a, b in zip(pair.inputs(), pair.inputs(), strict=True))


def test_keras_is_asked_once_and_its_outputs_cannot_be_changed(pair):
    (first,), _ = pair.both(pair.right())
    (again,), _ = pair.both(pair.right())
    assert first is again
    with pytest.raises(ValueError, match="read-only"):
        first[:] = 0


def test_inputs_in_float64_are_those_of_both_frameworks():
    pair = Pair(load_network("heads"))
    images, words = pair.keras_inputs("images")
    torch_images, torch_words = pair.torch_inputs("images")
    assert images.dtype == "float64"
    assert words.dtype.kind == "i"
    assert torch.equal(torch_images, torch.from_numpy(images).movedim(-1, 1))
    assert torch.equal(torch_words, torch.from_numpy(words))
    assert isinstance(Pair(load_network("dense")).keras_inputs("images"), np.ndarray)


def test_the_keras_model_is_one_in_float64():
    pair = Pair(load_network("dronet"))
    model, kept = pair.keras_model(), load_network("dronet").probes[0].keras_model
    assert {weight.dtype for weight in model.weights} == {"float64"}
    assert {weight.dtype for weight in kept.weights} == {"float32"}
    assert all(map(np.array_equal, model.get_weights(), kept.get_weights()))


def test_whatever_a_keras_model_holds_moves_as_weights_do(pair):
    model = pair.keras_model()
    before = model.get_weights()
    model.set_weights([2 * weight for weight in before])
    moved = pair.moved(model).state_dict()
    model.set_weights(before)
    right = pair.right().state_dict()
    assert torch.equal(moved["0.weight"], 2 * right["0.weight"])
    assert torch.equal(moved["9.running_mean"], 2 * right["9.running_mean"])


def test_a_check_passes_a_port_only_if_it_says_so_without_an_error(pair):
    def fails(pair, port):
        raise KeyError

    assert passes(lambda pair, port: True, pair, pair.right())
    assert not passes(lambda pair, port: None, pair, pair.right())
    assert not passes(fails, pair, pair.right())


def test_a_trace_of_a_pair_finds_a_mistake(pair):
    wrong = pair.right()
    wrong[1] = nn.Identity()
    assert first_divergence(pair.trace(pair.right())) is None
    assert first_divergence(pair.trace(wrong)).layer.startswith("dense_a")

"""The mutants are what they say: the twins they start from are correct, and each mistake shows where it should."""

import functools
import sys
from collections import Counter
from importlib import import_module

import course
from course.mutants import EVERY_MUTANT, EVERY_NETWORK, SHOWS, Probe, load_network, run_keras, run_twin
from parity import CAUSES
from parity.axes import torch_input

import keras
import numpy as np
import pytest
import torch


@functools.cache
def expected(name):
    """Return the Keras outputs of all probes of a network."""
    return [run_keras(probe) for probe in load_network(name).probes]


def apart(a, b):
    """Return the largest difference between two lists of outputs; infinity if there is no number."""
    assert [y.shape for y in a] == [y.shape for y in b]
    return max(np.nan_to_num(np.abs(x - y), nan=np.inf).max() for x, y in zip(a, b, strict=True))


def seen(mutant, twin, number):
    """Tell whether a probe tells a mutant from the Keras model."""
    network = load_network(mutant.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = run_twin(twin, network.probes[number].x)
    return apart(expected(network.name)[number], y) > network.within


def training_step(twin, x):
    """Return what one step of training makes: outputs, statistics and gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = twin.train()(*map(torch_input, x))
        y = y if isinstance(y, tuple) else (y,)
        sum((output**2).sum() for output in y).backward()
    made = {f"output {number}": output for number, output in enumerate(y)} | dict(twin.named_buffers())
    return made | {name: parameter.grad for name, parameter in twin.named_parameters()}


@functools.cache
def right_step(name):
    """Return what a training step of the correct twin makes."""
    network = load_network(name)
    return training_step(network.build(), network.probes[0].x)


def same(a, b):
    """Tell whether two tensors are the same but for rounding, or both missing; no mistake is as small as that."""
    if a is None or b is None:
        return a is b
    return bool(torch.allclose(a, b, rtol=0, atol=1e-4 * max(1, a.abs().max().item())))


NAMES = ["dronet", "signal", "encoder", "dense", "residual", "pooling", "flat", "heads", "nested"]
NAMES += ["channels_first", "functions", "operations", "fused", "recurrent", "attention"]


@pytest.mark.parametrize("name", NAMES)
def test_the_correct_twin_agrees_at_every_size(name):
    network = load_network(name)
    twin = network.build()
    assert not any(module.training for module in twin.modules())
    for probe, y in zip(network.probes, expected(name), strict=True):
        assert apart(y, run_twin(twin, probe.x)) < network.within / 2


@pytest.mark.parametrize("name", NAMES)
def test_the_probes_of_a_network_differ_in_size_alone(name):
    first, *others = (probe.keras_model for probe in load_network(name).probes)
    for other in others:
        names = [[layer.name for layer in model._flatten_layers() if layer.weights] for model in (other, first)]
        assert names[0] == names[1]
        for a, b in zip(first.weights, other.weights, strict=True):
            assert a.path == b.path
            assert np.array_equal(a, b)


def test_all_networks_are_tested_here():
    assert list(EVERY_NETWORK) == NAMES


@pytest.mark.parametrize("mutant", EVERY_MUTANT, ids=lambda mutant: f"{mutant.network}: {mutant.name}")
def test_a_mutant_shows_where_it_says(mutant):
    network = load_network(mutant.network)
    twin = mutant.plant(network.build())
    model = network.probes[0].keras_model
    names = {layer.name for layer in [*model._flatten_layers(), *model.operations]}
    assert mutant.layers <= names
    assert 1 <= len(mutant.layers) <= 3
    assert set(network.mapping["torch"]) <= twin.state_dict().keys()
    assert mutant.cause in CAUSES
    others = range(1, len(network.probes))
    if mutant.shows == "always":
        assert all(seen(mutant, twin, number) for number in (0, *others))
    elif mutant.shows == "other size":
        assert not seen(mutant, twin, 0)
        assert any(seen(mutant, twin, number) for number in others)
    elif mutant.shows == "negative inputs":
        assert all(seen(mutant, twin, number) for number in (0, *others))
        for probe in network.probes:
            x = [np.abs(values) for values in probe.x]
            assert apart(run_keras(Probe(probe.keras_model, x)), run_twin(twin, x)) < network.within
    else:
        assert not any(module.training for module in twin.modules())
        assert not any(seen(mutant, twin, number) for number in (0, *others))
        right, wrong = right_step(network.name), training_step(twin, network.probes[0].x)
        assert right.keys() == wrong.keys()
        assert not all(same(right[name], wrong[name]) for name in right)


@pytest.mark.parametrize("name", NAMES)
def test_the_training_step_of_the_correct_twin_is_always_the_same(name):
    network = load_network(name)
    right, again = right_step(name), training_step(network.build(), network.probes[0].x)
    assert all(same(right[key], again[key]) for key in right)


def test_there_are_mutants_of_every_kind():
    assert len({(mutant.network, mutant.name) for mutant in EVERY_MUTANT}) == len(EVERY_MUTANT) >= 50
    networks_, shows = (
        Counter(mutant.network for mutant in EVERY_MUTANT),
        Counter(mutant.shows for mutant in EVERY_MUTANT),
    )
    assert networks_["dronet"] >= 18
    assert networks_.keys() == set(NAMES)
    assert shows.keys() == set(SHOWS)
    assert min(shows["training"] - 6, shows["other size"] - 3, shows["negative inputs"] - 2) >= 0


def test_importing_the_mutants_builds_no_network(monkeypatch):
    monkeypatch.setattr(course, "mutants", course.mutants)  # so that importing it anew is undone
    for name in [name for name in sys.modules if name.startswith("course.mutants")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(keras.Model, "__init__", lambda *_, **__: pytest.fail("a model is built"))
    assert len(import_module("course.mutants").EVERY_MUTANT) == len(EVERY_MUTANT)


def test_a_network_is_built_once():
    assert load_network("dense") is load_network("dense")

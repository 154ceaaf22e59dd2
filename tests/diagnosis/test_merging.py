"""Layers that merge many tensors: what is wrong is found, and the work does not grow with the number of orders."""

import re
from time import perf_counter

from course.small_models import fill_scaled, pair_up
from parity import diagnose, trace, transfer
from parity.diagnosis import merging

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

MANY = 30


class Branches(nn.Module):
    """Several convolutions of one input, and what is made of their outputs."""

    def __init__(self, count, merge):
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(3, 4, 1) for _ in range(count)])
        self.merge = merge

    def forward(self, x):
        """Map (batch, 3, h, w) to what ``merge`` returns."""
        return self.merge([branch(x) for branch in self.branches])


def both(count, layer, merge):
    """Return a Keras model whose branches a layer merges, its twin, the mapping, and two images, all in float64."""
    start = keras.Input((6, 5, 3), dtype="float64")
    parts = [L.Conv2D(4, 1, name=f"branch_{number}", dtype="float64")(start) for number in range(count)]
    model = fill_scaled(keras.Model(start, layer(parts)))
    twin = Branches(count, merge).double().eval()
    mapping = pair_up(model, twin, {f"branch_{number}": f"branches.{number}" for number in range(count)})
    transfer(model, twin, mapping)
    return model, twin, np.random.default_rng(0).normal(size=(2, 6, 5, 3)), mapping


def causes(count, layer, merge):
    model, twin, x, mapping = both(count, layer, merge)
    found = diagnose(model, twin, x, mapping)
    return [str(cause).removesuffix(": see the cheat sheet") for cause in found.causes], found


@pytest.mark.parametrize("kind", ["Add", "Average", "Multiply", "Maximum", "Minimum"])
def test_of_many_inputs_the_one_that_is_another_tensor_is_named(kind):
    merge = merging._ELEMENTWISE[kind]

    def wrong(parts):
        # Where the 8th should be, the 4th is taken again.
        return merge(torch.stack([*parts[:7], parts[3] * 1, *parts[8:]]))

    # Of many, hardly one is the largest anywhere; of nine, each is somewhere.
    count = 9 if kind in ("Maximum", "Minimum") else MANY
    named, found = causes(count, getattr(L, kind)(name="merged", dtype="float64"), wrong)
    assert found.divergence.layer == "merged"
    (one,) = named
    if kind in ("Maximum", "Minimum"):  # the fourth is taken already, so that any smaller one makes the same
        assert re.fullmatch(r"another skip \(its input 8 is the output of .*branch_3.*\)", one), one
    else:
        assert one == "another skip (its input 8 is the output of branch_3)"


def test_of_many_joined_tensors_the_order_is_found():
    order = [int(slot) for slot in np.random.default_rng(2).permutation(MANY)]
    layer = L.Concatenate(name="joined", dtype="float64")
    named, _ = causes(MANY, layer, lambda parts: torch.cat([parts[slot] for slot in order], 1))
    assert named == [f"another skip (its inputs are in the order {tuple(slot + 1 for slot in order)})"]


def weighted(parts):
    return sum((number + 1) * part for number, part in enumerate(parts))


def other_sum():
    return L.Lambda(weighted, output_shape=(6, 5, 4), name="weighted", dtype="float64")


@pytest.mark.parametrize("count", [3, 4, 12])
def test_an_exchange_of_two_is_found_in_a_layer_of_ones_own(count):
    named, _ = causes(count, other_sum(), lambda parts: weighted([parts[0], parts[2], parts[1], *parts[3:]]))
    assert named == [f"another skip (its inputs are in the order {(1, 3, 2, *range(4, count + 1))})"]


def test_a_search_that_meets_its_bound_says_so():
    named, found = causes(MANY, other_sum(), lambda parts: weighted(parts[1:]) ** 3)
    assert named == []
    assert (
        "\n  none of the known causes explains it"
        "\n  not all was tried: weighted has 30 inputs; other orders of them, and other tensors in their place, were "
        "tried 200 times"
    ) in str(found)


def test_a_search_that_ends_says_nothing_of_it():
    _, found = causes(4, other_sum(), lambda parts: weighted(parts) ** 3)
    assert not found.untried
    assert "not all" not in str(found)


ODD = {
    "Add": (L.Add(name="merged", dtype="float64"), lambda parts: sum(parts) ** 3),
    "Concatenate": (L.Concatenate(name="merged", dtype="float64"), lambda parts: torch.cat(parts, 1) ** 3),
    "a layer of one's own": (other_sum(), lambda parts: weighted(parts) ** 3),
}


@pytest.mark.parametrize(("layer", "merge"), ODD.values(), ids=ODD)
def test_a_mistake_that_is_not_known_is_given_up_soon(layer, merge, monkeypatch):
    """With 30 inputs there are 2.6e32 orders. What costs most, a run of the layer, is counted."""
    model, twin, x, mapping = both(MANY, layer, merge)
    runs, computed = [], merging.computed
    monkeypatch.setattr(merging, "computed", lambda *arguments: runs.append(1) or computed(*arguments))
    start = perf_counter()
    trace(model, twin, x, mapping)
    traced = perf_counter() - start
    start = perf_counter()
    assert not diagnose(model, twin, x, mapping).causes
    assert perf_counter() - start < 20 * traced
    assert len(runs) <= merging._TRIES

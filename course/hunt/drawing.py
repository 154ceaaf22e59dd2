"""Which mistakes each seed plants, and in which port."""

import functools
import hashlib
import inspect
import itertools
from collections.abc import Collection, Iterator

from course.mutants import MUTANTS, Mutant, load_network
from parity import CAUSES, ParityError

import keras
import numpy as np
import pandas as pd
from torch import nn

_MOST = 3  # mistakes in one port
# DroNet is large, and its port is torch_model.py, which a learner has read. Each name is here, so that a seed plants
# the same whatever networks are added.
_NETWORKS = ("signal", "encoder", "dense", "residual", "pooling", "flat", "heads", "nested")


def mistakes(seed: int) -> tuple[Mutant, ...]:
    """Return the mistakes that a seed plants: one to three, all in one network, at layers that are not shared.

    Raises:
        ParityError: There is no such seed.
    """
    if seed not in range(CASES):
        raise ParityError("hunt", [f"there is no seed {seed}; take one from 0 to {CASES - 1}"])
    return _cases()[seed]


def broken_port(seed: int, but: tuple[Mutant, ...] = ()) -> nn.Module:
    """Return a right port in which the mistakes of a seed were planted, in eval mode.

    Args:
        seed: From 0 to ``CASES`` - 1.
        but: Mistakes that are left out.
    """
    planted = mistakes(seed)
    port = load_network(planted[0].network).build()
    for mistake in planted:
        if mistake not in but:
            port = mistake.plant(port)
    return port


def seeds_with(count: int | None = None, pages: Collection[str] = ()) -> list[int]:
    """Return the seeds with so many mistakes, all of causes that one of these pages explains; None and () mean any.

    Args:
        count: How many mistakes.
        pages: Numbers of pages, such as "04".
    """
    return [
        seed
        for seed, planted in enumerate(_cases())
        if count in (None, len(planted)) and all(not pages or CAUSES[m.cause] in pages for m in planted)
    ]


def code_of(port: nn.Module) -> str:
    """Return the ``forward`` of each kind of module that the port's author wrote.

    The ``__init__`` of the right port is not in it: what a broken port consists of, ``print(port)`` says.
    """
    written = {type(module): None for module in port.modules() if type(module).__module__.startswith("course.")}
    if not written:
        return "Sequential: each module takes what the one before it returns."
    return "\n".join(f"class {kind.__name__}:\n{inspect.getsource(kind.forward)}" for kind in written)


def keras_side(seed: int, size: int = 0) -> tuple[keras.Model, np.ndarray | list[np.ndarray], pd.DataFrame]:
    """Return the Keras model that a seed's port was made of, inputs for it, and the mapping of the weights.

    Args:
        seed: From 0 to ``CASES`` - 1.
        size: Which size of inputs, from 0 on. The model has the same weights at each.

    Returns:
        The model; an array (batch, *spatial, channels), or a list of them for a model with several inputs; and the
        mapping, as ``parity.read_mapping`` would return it.

    Raises:
        ParityError: There is no such seed, or no such size.
    """
    network = load_network(mistakes(seed)[0].network)
    if size not in range(len(network.probes)):
        raise ParityError("hunt", [f"there is no size {size}; take one from 0 to {len(network.probes) - 1}"])
    model, x = network.probes[size]
    return model, x if len(x) > 1 else x[0], network.mapping


def _combinations() -> Iterator[tuple[Mutant, ...]]:
    """Yield what may be planted together. What only training shows, or has its place in a forward, is left out."""
    for network in _NETWORKS:
        fit = [m for m in MUTANTS if m.network == network and m.shows != "training" and not m.in_forward]
        for count in range(1, _MOST + 1):
            for chosen in itertools.combinations(fit, count):
                if all(not a.layers & b.layers for a, b in itertools.combinations(chosen, 2)):
                    yield chosen


def _shuffled(chosen: tuple[Mutant, ...]) -> bytes:
    """Return what puts combinations into an order that looks random, and is the same everywhere."""
    return hashlib.sha256("; ".join(f"{m.network} {m.name}" for m in chosen).encode()).digest()


@functools.cache
def _cases() -> list[tuple[Mutant, ...]]:
    """Return what each seed plants. There are more sets of three than of two; only as many are taken."""
    every = sorted(_combinations(), key=_shuffled)
    pairs = sum(len(chosen) == 2 for chosen in every)
    triples = [chosen for chosen in every if len(chosen) == 3][:pairs]
    return [chosen for chosen in every if len(chosen) < 3 or chosen in triples]


CASES = len(_cases())
"""How many seeds there are; no two plant the same."""

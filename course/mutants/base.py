"""What the planted mistakes are made of: a network with its right port, and single mistakes in that port."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from parity import channels_last
from parity.axes import torch_input

import keras
import numpy as np
import pandas as pd
import torch
from torch import nn

SHOWS = ("always", "other size", "negative inputs", "training")
"""When a mutant shows: see ``Mutant.shows``."""


class Probe(NamedTuple):
    """A Keras model for inputs of one size, and such inputs.

    Attributes:
        keras_model: The model.
        x: An array for each of its inputs, channels last.
    """

    keras_model: keras.Model
    x: list[np.ndarray]


class Network(NamedTuple):
    """A Keras model at several sizes, and its PyTorch twin.

    Attributes:
        name: What to call it.
        probes: The Keras model at several sizes, with one set of names and weights, and inputs.
        build: Returns a new correct twin, with its weights, in eval mode.
        mapping: Which Keras weight fills which PyTorch tensor.
        flatten: What ``transfer`` was told of a twin that flattens channels first.
        within: The largest difference between two outputs that rounding explains.
    """

    name: str
    probes: tuple[Probe, ...]
    build: Callable[[], nn.Module]
    mapping: pd.DataFrame
    flatten: dict[str, tuple[int, ...]] | None
    within: float


class Mutant(NamedTuple):
    """One mistake in one network.

    Attributes:
        name: Where and what, in words.
        network: The name of the network.
        plant: Takes a correct twin, which it may change, and returns the twin with the mistake.
        layers: The names of the Keras layers at which the mistake may rightly be located.
        cause: One of ``parity.CAUSES``.
        shows: Where it shows: "always", only at an "other size" than that of the first probe, only with "negative
            inputs", or only in "training".
        in_forward: Whether the mistake is in a forward. The others are in a twin's modules, settings and tensors, where
            whoever fixes the twin need not know its code.
    """

    name: str
    network: str
    plant: Callable[[nn.Module], nn.Module]
    layers: frozenset[str]
    cause: str
    shows: str
    in_forward: bool = False

    def accepts(self, layer: str) -> bool:
        """Tell whether a layer is a right place: "conv", "nested/conv", or with words behind it, "conv (call 2)"."""
        return layer.split("/")[-1].split(" ")[0] in self.layers


def enter(
    mutants: list[Mutant],
    network: str,
    name: str,
    layers: set[str],
    cause: str,
    *,
    shows: str = "always",
    in_forward: bool = False,
) -> Callable:
    """Return a decorator that enters a function, which plants a mistake in the twin that it is given, as a mutant.

    Modules that the function adds to the twin are put in eval mode.

    Args:
        mutants: The list that the mutant is appended to.
        network: This and the rest are what ``Mutant`` has.
        name: Where and what, in words.
        layers: The names of the Keras layers at which the mistake may rightly be located.
        cause: The cause that is to be named.
        shows: When the mistake shows.
        in_forward: Whether the mistake is in a forward.
    """

    def decorate(change: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
        def plant(twin: nn.Module) -> nn.Module:
            known = set(twin.modules())
            change(twin)
            for module in set(twin.modules()) - known:
                module.training = False  # a new module must not be a second mistake
            return twin

        mutants.append(Mutant(name, network, plant, frozenset(layers), cause, shows, in_forward))
        return change

    return decorate


def run_keras(probe: Probe) -> list[np.ndarray]:
    """Return the outputs of a Keras model, channels last, as at inference."""
    y = probe.keras_model(probe.x if len(probe.x) > 1 else probe.x[0], training=False)
    return [output.numpy() for output in (y if isinstance(y, list | tuple) else [y])]


def run_twin(twin: nn.Module, x: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a twin for channels-last inputs, channels last, without gradients."""
    with torch.no_grad():
        y = twin(*map(torch_input, x))
    return [channels_last(output).numpy() for output in (y if isinstance(y, tuple) else (y,))]

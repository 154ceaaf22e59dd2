"""What a known network is: a Keras model, a right port of it in a usual style, and mistakes that a porter makes.

Each network is a module of this folder with a ``NETWORK``. Its Keras model and its twin are built when a test asks for
them. Nothing but the Keras model has weights: the twin gets its weights from there.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import torch
from torch import Tensor, nn


class Mistake(NamedTuple):
    """One mistake in the port of a network.

    Attributes:
        name: Where and what, in words.
        plant: Takes a right twin with its weights, which it may change, and returns the twin with the mistake.
        layers: The names of the Keras layers at which the mistake may rightly be located.
        cause: The cause that is to be named.
        named: Whether it is named. If not, no other cause may be named.
        training: Whether it shows in training only.
    """

    name: str
    plant: Callable[[nn.Module], nn.Module]
    layers: frozenset[str]
    cause: str
    named: bool = True
    training: bool = False


class Network(NamedTuple):
    """A network and its right port.

    Attributes:
        name: What to call it.
        keras_model: Returns the Keras model with random weights, and an array for each of its inputs. It computes in
            Keras's present ``floatx``: see ``build``.
        twin: Returns a new empty twin, with PyTorch's initial weights, in eval mode.
        mistakes: What may be planted in the twin once it has its weights.
        torch_x: Takes the inputs of the Keras model and returns those of the twin, as float32 or integers; None where
            the twin takes Keras's inputs, as they are or with the channels at axis 1.
        names: What the user tells ``propose_mapping`` of twins that numbers and names cannot tell apart.
        left_over: Modules of the twin that no layer of the Keras model fills.
        fill_by_hand: Takes the Keras model and returns the state dict of the right twin, computed without the tool.
        within: The largest difference of the outputs that rounding explains, in float32, relative to the largest.
        within_float64: The same in float64.
        slow: Whether only the weekly run has the time for it.
    """

    name: str
    keras_model: Callable[[], tuple[keras.Model, list[np.ndarray]]]
    twin: Callable[[], nn.Module]
    mistakes: tuple[Mistake, ...]
    torch_x: Callable[[list[np.ndarray]], list[Tensor]] | None = None
    names: Mapping[str, str] | None = None
    left_over: tuple[str, ...] = ()
    fill_by_hand: Callable[[keras.Model], dict[str, Tensor]] | None = None
    within: float = 1e-4
    within_float64: float = 1e-10
    slow: bool = False


class Built(NamedTuple):
    """A network in one dtype.

    Attributes:
        keras_model: The Keras model, with its weights.
        x: An array for each of its inputs.
        twin: The twin, not yet filled.
        torch_x: The inputs of the twin for ``trace`` and ``propose_mapping``; None where they find them.
    """

    keras_model: keras.Model
    x: list[np.ndarray]
    twin: nn.Module
    torch_x: list[Tensor] | None


@contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Let all Keras layers and inputs that are made inside compute in a dtype."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def build(network: Network, dtype: str = "float32") -> Built:
    """Build both models of a network in "float32" or "float64"; the twin is empty."""
    keras.backend.clear_session()  # so that names of layers do not count on from one network to the next
    with computing_in(dtype):
        model, arrays = network.keras_model()
    x = [array.astype(start.dtype) for array, start in zip(arrays, model.inputs, strict=True)]
    to = getattr(torch, dtype)
    given = network.torch_x(x) if network.torch_x else None
    torch_x = given and [tensor.to(to) if tensor.is_floating_point() else tensor for tensor in given]
    return Built(model, x, network.twin().to(to).eval(), torch_x)


def mistake(mistakes: list[Mistake], name: str, layers: set[str], cause: str, **more: bool) -> Callable:
    """Return a decorator that enters a function, which plants a mistake in the twin that it is given.

    The function changes the twin in place. Modules that it adds are put in eval mode.

    Args:
        mistakes: The list that the mistake is appended to.
        name: This and the rest are what ``Mistake`` has.
        layers: The names of the Keras layers at which the mistake may rightly be located.
        cause: The cause that is to be named.
        more: Likewise.
    """

    def decorate(change: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
        def plant(twin: nn.Module) -> nn.Module:
            known = set(twin.modules())
            change(twin)
            for module in set(twin.modules()) - known:
                module.training = False  # a new module must not be a second mistake
            return twin

        mistakes.append(Mistake(name, plant, frozenset(layers), cause, **more))
        return change

    return decorate


@functools.cache
def networks() -> tuple[Network, ...]:
    """Return the ``NETWORK`` of each module of this folder that has one, by the name of the module."""
    names = sorted(found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [importlib.import_module(f"tests.networks.{name}") for name in names if not name.startswith("test_")]
    return tuple(module.NETWORK for module in modules if hasattr(module, "NETWORK"))

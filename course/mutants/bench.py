"""What notebook 11 tries checks on mutants with. What Keras returns is computed once, and kept."""

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

from course.mutants.base import Mutant, Network
from parity import channels_last, trace, transfer
from parity.axes import torch_input

import keras
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

_SLOW = ("dronet", "signal")


def sample(mutants: Iterable[Mutant], each: int) -> list[Mutant]:
    """Return at most so many mutants of each cause: the last ones, of a slow network only where no other has the cause.

    DroNet is large; the signal's grouped convolution is compiled anew at each call, and TensorFlow warns of it.
    """
    found: list[Mutant] = []
    for mutant in reversed(list(mutants)):
        same = [other for other in found if other.cause == mutant.cause]
        quick = mutant.network not in _SLOW or all(other.network in _SLOW for other in same)
        if len(same) < each and quick:
            found.append(mutant)
    return found


class Pair:
    """A Keras model and ports of it: what both return for the same inputs, one port after another.

    Attributes:
        name: Name of the network.
        mapping: Which Keras weight fills which PyTorch tensor.
        state: The state dict of a right port.
        sizes: A range, the numbers of the input sizes. For each there is a Keras model, all with the same weights.
    """

    def __init__(self, network: Network) -> None:
        self.name, self.mapping = network.name, network.mapping
        self.state, self.sizes = network.build().state_dict(), range(len(network.probes))
        self._network = network
        self.keras = functools.cache(self._keras)

    def right(self) -> nn.Module:
        """Return a new right port, in eval mode."""
        return self._network.build()

    def inputs(self, kind: str = "noise", size: int = 0) -> list[np.ndarray]:
        """Return an array (batch, *spatial, channels) for each input of the Keras model.

        Args:
            kind: "noise", one image with numbers from 0 to 1; "zeros", one image; or "images", four images whose
                numbers are normally distributed, half of them negative. Words are drawn from the vocabulary.
            size: Which size.
        """
        rng, arrays = np.random.default_rng(_SEED), []
        for x in self._network.probes[size].x:
            shape = (4 if kind == "images" else 1, *x.shape[1:])
            if kind == "zeros":
                array = np.zeros(shape)
            elif x.dtype.kind == "i":
                array = rng.integers(0, 11, shape)
            else:
                array = rng.random(shape) if kind == "noise" else rng.normal(size=shape)
            arrays.append(array.astype(x.dtype))
        return arrays

    def _keras(self, kind: str, size: int, exact: bool) -> list[np.ndarray]:
        model = self.keras_model(size) if exact else self._network.probes[size].keras_model
        outputs = _listed(model(_one_or_all(self.inputs(kind, size)), training=False))
        for output in outputs:
            output.setflags(write=False)  # every port is compared with them
        return outputs

    def keras_model(self, size: int = 0) -> keras.Model:
        """Return the Keras model for inputs of one size, in float64. Whoever changes its weights puts them back.

        Most compute in float64 anyway; of the others this is a copy.
        """
        model = self._network.probes[size].keras_model
        if all(weight.dtype == "float64" for weight in model.weights):
            return model
        clone = keras.models.clone_model(
            model, clone_function=lambda layer: type(layer).from_config(layer.get_config() | {"dtype": "float64"})
        )
        clone.set_weights(model.get_weights())
        return clone

    def both(
        self, port: nn.Module, kind: str = "noise", size: int = 0, exact: bool = False
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the outputs of the Keras model and of a port, channels last, for ``inputs(kind, size)``.

        Args:
            port: The port; it runs in the mode that it is in.
            kind: The kind of input.
            size: Which size.
            exact: Compute in float64; else as the models are.
        """
        inputs = self.inputs(kind, size)
        if exact:
            port, inputs = copy.deepcopy(port).double(), _exact_inputs(inputs)
        torch.default_generator.manual_seed(0)  # for a port that draws noise
        with torch.no_grad():
            y = port(*map(torch_input, inputs))
        return self.keras(kind, size, exact), _listed(y)

    def trace(self, port: nn.Module, size: int = 0) -> pd.DataFrame:
        """Trace a port at one of the sizes, as ``parity.trace.trace`` does."""
        probe = self._network.probes[size]
        return trace(probe.keras_model, port, probe.x, self.mapping)

    def keras_inputs(self, kind: str, size: int = 0) -> Any:
        """Return ``inputs`` in float64 as the Keras model takes them: an array, or a list of several."""
        return _one_or_all(_exact_inputs(self.inputs(kind, size)))

    def torch_inputs(self, kind: str, size: int = 0) -> list[Tensor]:
        """Return ``inputs`` in float64 as a port takes them: tensors, channels first."""
        return list(map(torch_input, _exact_inputs(self.inputs(kind, size))))

    def moved(self, model: keras.Model) -> nn.Module:
        """Return a port in float64 that holds what the Keras model holds, moved as weights are.

        Args:
            model: The Keras model, whose variables may hold something else than weights, such as gradients.
        """
        port = self.right().double()
        transfer(model, port, self.mapping, self._network.flatten)
        return port


Check = Callable[[Pair, nn.Module], bool]


def passes(check: Check, pair: Pair, port: nn.Module) -> bool:
    """Tell whether a check passes a port. An error is no pass."""
    try:
        return bool(check(pair, port))
    except Exception:
        return False


_SEED = 10


def _listed(y: Any) -> list[np.ndarray]:
    outputs = y if isinstance(y, list | tuple) else [y]
    return [channels_last(y).numpy() if isinstance(y, Tensor) else keras.ops.convert_to_numpy(y) for y in outputs]


def _one_or_all(inputs: list[np.ndarray]) -> Any:
    return inputs if len(inputs) > 1 else inputs[0]


def _exact_inputs(inputs: list[np.ndarray]) -> list[np.ndarray]:
    return [x.astype("float64") if x.dtype.kind == "f" else x for x in inputs]

"""What notebook 11 tries checks on mutants with. What Keras returns is computed once, and kept."""

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

from course.mutants.base import Mutant, Network
from parity import channels_last, trace, transfer
from parity.axes import torch_input
from parity.models.keras_graph import keras_graph
from parity.models.keras_layers import RANDOM_IN_TRAINING

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
        # PyTorch has a gradient for a tensor that no Keras weight fills, such as a scale of 1. Keras has none.
        self._without_keras = set(network.mapping["torch"][network.mapping["keras"].fillna("") == ""])
        self.keras = functools.cache(self._keras)
        self._trained = functools.cache(self._keras_step)

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
        model = self._exact(size) if exact else self._network.probes[size].keras_model
        outputs = _listed(model(_one_or_all(self.inputs(kind, size)), training=False))
        for output in outputs:
            output.setflags(write=False)  # every port is compared with them
        return outputs

    def _exact(self, size: int) -> keras.Model:
        """Return the Keras model in float64; most of them compute in it anyway."""
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

    def both_trained(self, port: nn.Module) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return what one training step makes of the Keras model and of a port, in float64.

        Both run in training mode on ``inputs("images")``. Dropout is switched off, as the frameworks draw different
        noise; its rates are noted. The loss is the sum of the outputs times fixed random factors.

        Returns:
            For each: the dropout rates, one for each call, sorted; the outputs; the gradients of what is trained
            ("gradient conv.weight") and the running means ("bn.running_mean"), with PyTorch's names and layout. The
            running variances are left out: PyTorch's are others on purpose.
        """
        expected, factors = self._trained()
        port = copy.deepcopy(port).double().train()
        rates: list[float] = []
        for module in port.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                # Noted at the call: a dropout that no input goes through does nothing.
                module.register_forward_pre_hook(lambda _, __, rate=module.p: rates.append(rate))
                module.p = 0.0
        y = port(*map(torch_input, _exact_inputs(self.inputs("images"))))
        y = [channels_last(output) for output in (y if isinstance(y, tuple) else (y,))]
        sum((output * torch.from_numpy(factor)).sum() for output, factor in zip(y, factors, strict=True)).backward()
        made = {"dropout rates": np.sort(rates)}
        made |= {f"output {number}": output.detach().numpy() for number, output in enumerate(y)}
        gradients = {name: p.grad for name, p in port.named_parameters() if p.grad is not None}
        return expected, made | self._named(gradients, dict(port.named_buffers()))

    def _keras_step(self) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        import tensorflow as tf

        model = self._exact(0)
        random = [step.layer for step in keras_graph(model).steps if isinstance(step.layer, RANDOM_IN_TRAINING)]
        rates, before = [layer.rate for layer in random], model.get_weights()
        try:
            for layer in random:
                layer.rate = 0.0
            with tf.GradientTape() as tape:
                y = model(_one_or_all(_exact_inputs(self.inputs("images"))), training=True)
                y = y if isinstance(y, list | tuple) else [y]
                rng = np.random.default_rng(_SEED)
                factors = [rng.normal(size=output.shape) for output in y]
                loss = sum(keras.ops.sum(output * factor) for output, factor in zip(y, factors, strict=True))
            variables = model.trainable_variables
            gradients = tape.gradient(loss, [variable.value for variable in variables])
            for variable, gradient in zip(variables, gradients, strict=True):
                variable.assign(tf.convert_to_tensor(gradient))
            # Gradients and running means move as weights do.
            moved = self.right().double()
            transfer(model, moved, self.mapping, self._network.flatten)
        finally:
            model.set_weights(before)
            for layer, rate in zip(random, rates, strict=True):
                layer.rate = rate
        expected = {"dropout rates": np.sort(rates)} | {f"output {n}": output.numpy() for n, output in enumerate(y)}
        return expected | self._named(dict(moved.named_parameters()), dict(moved.named_buffers())), factors

    def _named(self, gradients: dict[str, Tensor], buffers: dict[str, Tensor]) -> dict[str, np.ndarray]:
        named = {f"gradient {name}": tensor for name, tensor in gradients.items() if name not in self._without_keras}
        named |= {name: tensor for name, tensor in buffers.items() if name.endswith("running_mean")}
        return {name: tensor.numpy(force=True) for name, tensor in named.items()}


Check = Callable[[Pair, nn.Module], bool]


def passes(check: Check, pair: Pair, port: nn.Module) -> bool:
    """Tell whether a check passes a port. An error is no pass."""
    try:
        return bool(check(pair, port))
    except Exception:
        return False


def verdicts(checks: dict[str, Check], pair: Pair, make: Callable[[], nn.Module]) -> dict[str, bool]:
    """Return by name of a check whether it catches a port.

    Args:
        checks: Functions of a pair and a port that return True if they pass it.
        pair: The Keras model.
        make: Returns the port, anew for each check, which may change it.
    """
    return {name: not passes(check, pair, make()) for name, check in checks.items()}


_SEED = 10


def _listed(y: Any) -> list[np.ndarray]:
    outputs = y if isinstance(y, list | tuple) else [y]
    return [channels_last(y).numpy() if isinstance(y, Tensor) else keras.ops.convert_to_numpy(y) for y in outputs]


def _one_or_all(inputs: list[np.ndarray]) -> Any:
    return inputs if len(inputs) > 1 else inputs[0]


def _exact_inputs(inputs: list[np.ndarray]) -> list[np.ndarray]:
    return [x.astype("float64") if x.dtype.kind == "f" else x for x in inputs]

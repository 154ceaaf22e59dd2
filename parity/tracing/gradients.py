"""The gradients of a Keras model and of its twin, with respect to each layer's outputs and weights.

Only TensorFlow as Keras's backend is covered. All tensors of a model stay in memory while its gradients are computed.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple

from parity.errors import ParityError
from parity.models.alignment import alignments, distance
from parity.models.keras_channels import channels_of, with_channels_last
from parity.models.keras_graph import Graph, TensorId
from parity.models.keras_values import Value, walk
from parity.models.rounding import perturbed_tensor
from parity.models.torch_calls import Watch, record
from parity.tracing.pairing import Spot
from parity.tracing.port import Port
from parity.tracing.runs import Run

import keras
import numpy as np
import torch
from torch import Tensor


class KerasGradients(NamedTuple):
    """Gradients of the sum of a model's outputs, each element times a random number.

    Attributes:
        tensors: The gradient (batch, *spatial, channels) with respect to each tensor, exact and perturbed.
        sizes: The largest absolute value of each tensor.
        weights: The gradient of each weight, exact and perturbed, by the weight's path. None if it is not trained.
        outputs: The model's outputs (batch, *spatial, channels), as PyTorch tensors.
        factors: The random numbers, of the same shapes.
        gains: For each output of a BatchNormalization: the largest factor by which the layer magnifies its input.
    """

    tensors: dict[TensorId, tuple[Tensor, Tensor]]
    sizes: dict[TensorId, float]
    weights: dict[str, tuple[Tensor, Tensor] | None]
    outputs: list[Tensor]
    factors: list[Tensor]
    gains: dict[TensorId, float]


class TwinGradients(NamedTuple):
    """Gradients of the same sum in the twin. Both attributes are empty if the twin lacks an output.

    Attributes:
        tensors: The gradient with respect to each Keras tensor that a call of the twin returns, None without gradient.
        weights: The gradient of each parameter by its name, None without gradient.
    """

    tensors: dict[TensorId, Tensor | None]
    weights: dict[str, Tensor | None]


def keras_gradients(graph: Graph, x: Sequence[np.ndarray], seed: int = 0) -> KerasGradients | None:
    """Return the gradients of a Keras model in training mode.

    Args:
        graph: The model.
        x: An array for each of its inputs.
        seed: Seed of the perturbed values' rounding errors.

    Returns:
        The gradients. None if Keras's backend is not TensorFlow, or the model has no output of floating-point numbers.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    channels = channels_of(graph)

    def last(number: TensorId, tensor: Any) -> Tensor:
        dense = _dense(tensor)
        return with_channels_last(dense, channels.axis(number, None, dense.ndim))

    trained: dict[str, Any] = {w.path: w for step in graph.steps for w in getattr(step.layer, "trainable_weights", [])}
    paths = {w.path for step in graph.steps for w in step.layer_weights}
    values: dict[TensorId, Value] = {}
    gains: dict[TensorId, float] = {}
    with tf.GradientTape(persistent=True) as tape:
        for step, inputs, outputs in walk(graph, x, training=True, perturb=partial(_perturbed_both_ways, seed)):
            values.update(zip(graph.inputs if step is None else step.outputs, outputs, strict=True))
            if step is not None and isinstance(step.layer, keras.layers.BatchNormalization):
                gains[step.outputs[0]] = _gain(step.layer, inputs[0].exact)
        ends = [values[number] for number in graph.outputs]
        rng = np.random.default_rng(0)
        positions = [position for position, end in enumerate(ends) if end.exact.dtype.is_floating]
        factors: list[np.ndarray] = [np.zeros(end.exact.shape, np.float32) for end in ends]
        for position in positions:
            output = ends[position].exact
            factors[position] = rng.standard_normal(output.shape).astype(output.dtype.as_numpy_dtype)
        losses = [
            sum(keras.ops.sum(outputs[position] * factors[position]) for position in positions)
            for outputs in zip(*ends, strict=True)
        ]
    if not positions:
        return None
    tensors: dict[TensorId, tuple[Tensor, Tensor]] = {}
    floats = [number for number, value in values.items() if value.exact.dtype.is_floating]
    pairs = zip(
        floats,
        tape.gradient(losses[0], [values[number].exact for number in floats]),
        tape.gradient(losses[1], [values[number].perturbed for number in floats]),
        strict=True,
    )
    for number, exact, perturbed in pairs:
        if exact is not None and perturbed is not None and number not in graph.inputs:
            tensors[number] = last(number, exact), last(number, perturbed)
    weights: dict[str, tuple[Tensor, Tensor] | None] = dict.fromkeys(paths)
    variables = [weight.value for weight in trained.values()]
    by_path = zip(trained, tape.gradient(losses[0], variables), tape.gradient(losses[1], variables), strict=True)
    for path, exact, perturbed in by_path:
        if exact is not None:
            weights[path] = _dense(exact), _dense(perturbed)
    sizes = {number: float(keras.ops.max(keras.ops.abs(values[number].exact))) for number in floats}
    exact_outputs = [last(number, end.exact) for number, end in zip(graph.outputs, ends, strict=True)]
    factors_of_outputs = [last(number, factor) for number, factor in zip(graph.outputs, factors, strict=True)]
    return KerasGradients(tensors, sizes, weights, exact_outputs, factors_of_outputs, gains)


def _gain(layer: Any, x: Any) -> float:
    """Return the largest factor by which a BatchNormalization magnifies its input."""
    axes = [axis for axis in range(len(x.shape)) if axis != layer.axis % len(x.shape)]
    scale = keras.ops.abs(layer.gamma) if layer.scale else 1.0
    return float(keras.ops.max(scale / keras.ops.sqrt(keras.ops.var(x, axes) + layer.epsilon)))


def _perturbed_both_ways(first_seed: int, tensor: Any, seed: int, *how: Any) -> Any:
    """Return a tensor with other rounding errors, whose gradient gets other rounding errors, too."""
    import tensorflow as tf

    def perturb_gradient(gradient: Any) -> Any:
        return perturbed_tensor(gradient, (seed, first_seed))

    def perturb(value: Any) -> tuple[Any, Callable[[Any], Any]]:
        return perturbed_tensor(value, (first_seed, seed), *how), perturb_gradient

    return tf.custom_gradient(perturb)(tensor) if tensor.dtype.is_floating else tensor


def twin_gradients(port: Port, run: Run, in_keras: KerasGradients) -> TwinGradients:
    """Return the gradients of a twin with respect to the outputs of its calls, and to its parameters.

    Args:
        port: The two models; the twin is in training mode.
        run: The record of both models' run: it tells where each Keras tensor is seen.
        in_keras: The Keras model's gradients: its outputs, and the factors to weigh them with.

    Raises:
        ParityError: If PyTorch cannot compute them.
    """
    model = port.twin
    spots: dict[Spot, list[TensorId]] = defaultdict(list)
    for number, found in run.outputs.items():
        # An input of a call may have the numbers of another tensor that has more consumers, as before dropout.
        if found.spot.when == "out" or found.spot.call == len(run.calls):
            spots[found.spot].append(number)
    tensors: dict[TensorId, Tensor | None] = {number: None for several in spots.values() for number in several}

    def keep(gradient: Tensor, number: TensorId) -> None:
        tensors[number] = gradient.clone()

    def watch(call: int, when: str, computed: list[Tensor]) -> None:
        for position, tensor in enumerate(computed):
            for number in spots.get(Spot(call, when, position), []):
                if tensor.requires_grad:
                    tensor.register_hook(partial(keep, number=number))

    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(parameters)
    inputs = [tensor.clone() for tensor in port.twin_inputs]
    try:
        for parameter in frozen:  # Keras's gradients go through layers that are not trained, too
            parameter.requires_grad_(True)
        with torch.enable_grad():
            watched = Watch(run.calls, watch, dropout=False)
            _, _, outputs = record(model, inputs, port.modules_with_weights, run.graph.keys, watched)
            terms = []
            for value, output, factor in zip(in_keras.outputs, outputs, in_keras.factors, strict=False):
                # As many steps as features: the shapes do not tell whether the channels come first.
                ways = [way for way in alignments(value, output) if way.value.shape == factor.shape]
                if ways:
                    nearest = min(ways, key=lambda way: distance(way.value, way.twin.detach()))
                    terms.append((nearest.twin * factor).sum())
            if len(terms) < len(in_keras.factors):  # without one of the outputs, every gradient differs
                return TwinGradients({}, {})
            loss = reduce(add, terms)
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, [*parameters.values(), *frozen], allow_unused=True)
    except RuntimeError as error:  # for example, a checkpoint runs parts of the model again
        first = str(error).splitlines()[0]
        raise ParityError(type(model).__name__, [f"its gradients cannot be computed: {first}"]) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return TwinGradients(tensors, dict(zip(parameters, gradients, strict=False)))


def _dense(tensor: Any) -> Tensor:
    """Return a tensor or a gradient of TensorFlow as a PyTorch tensor."""
    import tensorflow as tf

    # The gradient of an Embedding is a list of rows until it is converted. NumPy has no bfloat16.
    tensor = tf.convert_to_tensor(tensor)
    return torch.from_numpy(np.array(tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor))

"""The layers of a Keras model in the order of the data flow, and their values one after another."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from math import exp, log1p, prod, sqrt
from typing import Any, NamedTuple, NewType
from unittest import mock

from parity.faults import ParityError

import keras
import numpy as np
import torch
from keras import tree
from torch.utils._pytree import tree_leaves

# The number of a tensor of a Keras model.
TensorId = NewType("TensorId", int)
# The position of a step among the steps of a graph; the one after the last stands for the model's return.
StepIndex = int

# Layers that add an activation of their own to what they compute.
_WITH_ACTIVATION = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
# Names of layers, operations and activations, as _names writes them.
# What TensorFlow (2.21.0) computes with a constant in float32, whatever the dtype of the layer: slopes, the root of 2
# in gelu, the weights of an interpolation.
_FLOAT32_CONSTANTS = frozenset({"leakyrelu", "gelu", "upsampling2d"})
# PyTorch's softplus returns what it takes from 20 on, and is off by so much: in float64 more than rounding.
# https://docs.pytorch.org/docs/stable/generated/torch.nn.Softplus.html
_SOFTPLUS_FROM, _SOFTPLUS_OFF = 20, log1p(exp(-20))
# Below 0, TensorFlow (2.21.0) computes them as exp(x) - 1, PyTorch as expm1(x), which keeps more digits near 0.
_EXP_MINUS_ONE = frozenset({"elu", "selu"})
# x - tanh(x), and x (1 + erf(x / sqrt(2))) / 2: numbers of the size of x cancel, in one model more than in the other.
_CANCELLING = frozenset({"tanhshrink", "gelu"})
# What hands on some of the numbers that it takes, or a share of them, and chooses by their size.
_CHOOSING = frozenset(
    {
        *("relu", "relu6", "leakyrelu", "prelu", "hardtanh", "hardsigmoid", "softshrink", "clip"),
        *("max", "min", "maximum", "minimum", "maxpool"),
        *(name.lower() for name in vars(keras.layers) if "MaxPool" in name),
    }
)
_ADDING = frozenset({"add", "subtract", "average"})
# The mean of numbers of both signs may be 0 in one model and as large as the errors of its terms in the other.
_AVERAGING = frozenset({"mean", "sum", *(name.lower() for name in vars(keras.layers) if "Average" in name)})
# So few numbers may all be as good as unmoved in one draw of rounding errors.
_FEW = 8
# Layers that Keras on TensorFlow compiles anew at each call if they have groups, which takes longer than to run them.
_COMPILED_WITH_GROUPS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# Layers whose output is random in training, so that two frameworks cannot agree on it.
RANDOM_IN_TRAINING = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    *(kind for name, kind in vars(keras.layers).items() if name.startswith("Random")),
)


class Step(NamedTuple):
    """One call of one Keras layer; a layer with an activation of its own takes two.

    Attributes:
        name: The layer's name, with the names of the models that it is nested in; "activation" is added for the second
            step of a layer with an activation, "(call 2)" for the second call of a shared layer.
        layer: The layer; an operation without weights, such as ``x + y``, counts as one.
        is_activation: Whether it is the activation of the layer only.
        inputs: Numbers of the tensors that it takes.
        outputs: Numbers of the tensors that it returns.
        node: Keras's own record of the call.
        frozen: Whether the call, or that of a model that it is nested in, says ``training=False``.
    """

    name: str
    layer: Any
    is_activation: bool
    inputs: tuple[TensorId, ...]
    outputs: tuple[TensorId, ...]
    node: Any
    frozen: bool

    @property
    def kind(self) -> str:
        """Return the kind of layer, or of activation."""
        if self.is_activation:
            return f"activation {activation_name(self.layer)}"
        return type(self.layer).__name__

    @property
    def weights(self) -> list[Any]:
        """Return the weights that the step computes with."""
        return [] if self.is_activation else self.layer_weights

    @property
    def layer_weights(self) -> list[Any]:
        """Return the weights of the step's layer, those that the step does not compute with as well."""
        return getattr(self.layer, "weights", [])

    @property
    def has_activation(self) -> bool:
        """Tell whether a step with the layer's activation follows."""
        return not self.is_activation and _has_activation(self.layer)


class Graph(NamedTuple):
    """A Keras model as steps, in the order of the data flow; tensors are numbered.

    Attributes:
        steps: The calls of layers.
        inputs: Numbers of the model's inputs, in the order of ``keras.Model.inputs``.
        outputs: Numbers of the model's outputs, those of a dictionary in its order.
        keys: The keys of the dictionary that the model returns, if it returns one.
    """

    steps: list[Step]
    inputs: tuple[TensorId, ...]
    outputs: tuple[TensorId, ...]
    keys: tuple[str, ...] = ()

    def inputs_of(self, step: StepIndex) -> tuple[TensorId, ...]:
        """Return the tensors that a step takes; those that the model's return takes are the model's outputs."""
        return self.steps[step].inputs if step < len(self.steps) else self.outputs

    def producers(self) -> dict[TensorId, StepIndex]:
        """Return the step that each tensor comes from; a model's input comes from none."""
        return {number: index for index, step in enumerate(self.steps) for number in step.outputs}

    def consumers(self) -> dict[TensorId, list[tuple[StepIndex, int]]]:
        """Return for each tensor who takes it: the steps, each with the position of the tensor among its inputs."""
        found: dict[TensorId, list[tuple[StepIndex, int]]] = defaultdict(list)
        for index in range(len(self.steps) + 1):
            for slot, number in enumerate(self.inputs_of(index)):
                found[number].append((index, slot))
        return found


def inner_layers(layer: Any) -> list[keras.Layer]:
    """Return a layer and all layers within it, at any depth; of an operation without weights, none."""
    return list(getattr(layer, "_flatten_layers", list)())


def activation_name(layer: Any) -> str:
    """Return the name of a layer's activation, "linear" if it has none."""
    activation = getattr(layer, "activation", None)
    return "linear" if activation is None else getattr(activation, "__name__", type(activation).__name__)


def _has_activation(layer: Any) -> bool:
    return isinstance(layer, _WITH_ACTIVATION) and activation_name(layer) != "linear"


def keras_graph(model: keras.Model) -> Graph:
    """Return the steps of a Keras model, those of models nested in it included.

    Args:
        model: A Functional or a Sequential model.

    Raises:
        ParityError: If the model is of another kind (a subclass with a ``call`` of its own has no graph), or has not
            been built.
    """
    numbers = map(TensorId, count())
    steps: list[Step] = []
    calls: Counter[int] = Counter()

    def add(name: str, node: Any, inputs: Sequence[int], frozen: bool) -> list[int]:
        calls[id(node.operation)] += 1
        if calls[id(node.operation)] > 1:
            name += f" (call {calls[id(node.operation)]})"
        outputs = [next(numbers) for _ in node.outputs]
        steps.append(Step(name, node.operation, False, tuple(inputs), tuple(outputs), node, frozen))
        if steps[-1].has_activation:
            inputs, outputs = outputs, [next(numbers) for _ in node.outputs]
            steps.append(Step(f"{name} activation", node.operation, True, tuple(inputs), tuple(outputs), node, frozen))
        return outputs

    def visit(model: Any, inputs: Sequence[int], prefix: str, frozen: bool) -> list[int]:
        known = {id(tensor): number for tensor, number in zip(model.inputs, inputs, strict=True)}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            # Of several calls of one layer, Keras may have the last first.
            for node in sorted(model._nodes_by_depth[depth], key=_number_of_call):
                if node.is_input or any(id(tensor) not in known for tensor in node.input_tensors):
                    continue
                taken = [known[id(tensor)] for tensor in node.input_tensors]
                nested = functional(node.operation)
                name = prefix + node.operation.name
                here = frozen or node.arguments.kwargs.get("training") is False
                outputs = add(name, node, taken, here) if nested is None else visit(nested, taken, f"{name}/", here)
                known.update(zip((id(tensor) for tensor in node.outputs), outputs, strict=True))
        return [known[id(tensor)] for tensor in model.outputs]

    graph = functional(model)
    if graph is None:
        raise ParityError(
            getattr(model, "name", type(model).__name__),
            [f"a {type(model).__name__} has no graph; only a Functional or a built Sequential model can be traced"],
        )
    inputs = [next(numbers) for _ in graph.inputs]
    outputs = dict(zip(map(id, graph.outputs), visit(graph, inputs, "", False), strict=True))
    struct = graph._outputs_struct  # graph.outputs has those of a dictionary in the order of its keys
    keys = tuple(struct) if isinstance(struct, dict) else ()
    return Graph(steps, tuple(inputs), tuple(outputs[id(tensor)] for tensor in tree_leaves(struct)), keys)


def _number_of_call(node: Any) -> int:
    """Return how many calls of a layer precede one."""
    return next((i for i, other in enumerate(node.operation._inbound_nodes) if other is node), 0)


def functional(model: Any) -> Any:
    """Return the Functional model that a Functional or a built Sequential model is, else None."""
    own_call = next((kind for kind in type(model).__mro__ if "call" in vars(kind)), object)
    if not isinstance(model, keras.Model) or not own_call.__module__.startswith("keras."):
        return None
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if hasattr(model, "_nodes_by_depth") else None


def run_step(step: Step, values: Sequence[Any], training: bool = False) -> list[Any]:
    """Compute the outputs of one step.

    Args:
        step: The step; of a layer with an activation, it computes what precedes the activation, or that alone.
        values: A tensor for each of its inputs.
        training: Run it as in training, unless its output were random then.

    Returns:
        A tensor for each output.
    """
    if step.is_activation:
        return [step.layer.activation(values[0])]
    by_identity = {id(tensor): value for tensor, value in zip(step.node.input_tensors, values, strict=True)}
    args, kwargs = step.node.arguments.fill_in(by_identity)
    if getattr(step.layer, "_call_has_training_arg", False):
        kwargs["training"] = training and not step.frozen and not isinstance(step.layer, RANDOM_IN_TRAINING)
    if step.has_activation:
        # Keras computes it in one go; there is no other way to see what precedes the activation.
        with mock.patch.object(step.layer, "activation", None):
            return tree.flatten(step.layer(*args, **kwargs))
    return tree.flatten(step.layer(*args, **kwargs))


class Value(NamedTuple):
    """A tensor of the Keras model, and the same tensor computed with rounding errors of another kind."""

    exact: Any
    perturbed: Any


def perturbed_tensor(
    tensor: Any, seed: int | tuple[int, ...], coarse: bool = False, terms: float = 1, least: float = 0
) -> Any:
    """Return a tensor with each element moved at random, as by a rounding error.

    Args:
        tensor: The tensor; one of whole numbers is returned as it is.
        seed: Seed of the random numbers.
        coarse: Whether it was computed with a constant of float32.
        terms: How many numbers were added up into each element, one by one.
        least: The errors are at least those of a tensor with an element of this size.
    """
    if not _is_float(tensor):
        return tensor
    dtype, unit = keras.backend.standardize_dtype(tensor.dtype), _eps(tensor)
    unit = max(unit, torch.finfo(torch.float32).eps) if coarse else unit
    # The errors of a long sum are a walk at random; those of a very long one of like numbers all go one way.
    unit *= max(1, sqrt(terms) / 16, terms / 1024)
    # NumPy draws much faster than Keras does, and has no numbers of two bytes to draw.
    drawn = np.float64 if dtype == "float64" else np.float32
    sizes = np.abs(keras.ops.convert_to_numpy(tensor), dtype=drawn)
    size = sizes.max(initial=least)
    if not np.isfinite(size):
        size = sizes[np.isfinite(sizes)].max(initial=least)
    noise = np.random.default_rng(seed).random(sizes.shape, drawn)
    noise -= 0.5
    noise *= 2 * unit * float(size)
    return tensor + keras.ops.convert_to_tensor(noise, dtype)


def walk(
    graph: Graph, x: Sequence[np.ndarray], training: bool = False, perturb: Callable[..., Any] | None = perturbed_tensor
) -> Iterator[tuple[Step | None, list[Value], list[Value]]]:
    """Compute a Keras model step by step; a tensor is forgotten when no later step takes it.

    Every floating-point tensor is computed twice: as it is, and with each element of every tensor before it moved at
    random by up to one unit of rounding of that tensor's largest element. How far the two are apart is the noise to
    expect there: it grows with the depth and with the weights, as that of real rounding does. Inputs move away from 0
    only, and do not leave it: a mask or a whole number stays what it is.

    Args:
        graph: The model.
        x: An array for each input.
        training: Run it as in training; BatchNormalization then also updates its statistics.
        perturb: How the second value is moved, see ``perturbed_tensor``; if None, it is the first.

    Yields:
        The step, its inputs and its outputs; first of all None, the model's inputs, and the same again.
    """
    last_use = {number: index for index, step in enumerate(graph.steps) for number in step.inputs}
    seeds = count()

    def value_of(exact: Any, other: Any, coarse: bool = False, terms: float = 1, least: float = 0) -> Value:
        return Value(exact, perturb(other, next(seeds), coarse, terms, least) if perturb else exact)

    first = [keras.ops.convert_to_tensor(array) for array in x]
    values = {number: value_of(tensor, tensor) for number, tensor in zip(graph.inputs, first, strict=True)}
    for number, (exact, other) in values.items() if perturb else ():
        if _is_float(exact):
            values[number] = Value(exact, exact + keras.ops.sign(exact) * keras.ops.abs(other - exact))
    yield None, list(values.values()), list(values.values())
    for index, step in enumerate(graph.steps):
        inputs = [values[number] for number in step.inputs]
        exact, other = _run_twice(step, inputs, training) if perturb else _run_once(step, inputs, training)
        coarse, terms = has_float32_constants(step), _terms(step, inputs, exact, training)
        least = _least(step, inputs) if perturb else 0
        outputs = [value_of(*pair, coarse, terms, least) for pair in zip(exact, other, strict=True)]
        if perturb and 0 < sum(prod(value.exact.shape) for value in outputs) <= _FEW:
            outputs = [_moved_on(value, _usual_move(step, inputs, value)) for value in outputs]
        for number in step.inputs:
            if last_use[number] == index:
                values.pop(number, None)
        values.update(zip(step.outputs, outputs, strict=True))
        yield step, inputs, outputs
        for number in step.outputs:
            if number not in last_use:
                del values[number]


def _least(step: Step, inputs: Sequence[Value]) -> float:
    """Return the size of an element whose rounding errors an output has at the least, however small it is itself."""
    names = _names(step)
    if "softplus" in names and keras.ops.max(inputs[0].exact, initial=0) > _SOFTPLUS_FROM:
        return _SOFTPLUS_OFF / _eps(inputs[0].exact)
    if names & _EXP_MINUS_ONE and keras.ops.min(inputs[0].exact, initial=0) < 0:
        return abs(getattr(_function(step), "alpha", 1.0))
    if names & (_CANCELLING | _AVERAGING):
        return float(keras.ops.max(keras.ops.abs(inputs[0].exact), initial=0))
    return 0.0


def _usual_move(step: Step, inputs: Sequence[Value], output: Value) -> float:
    """Return how far other rounding errors usually move what a layer returns that adds or chooses; of others, 0.

    A sum may be near 0 although its terms are not: its error is that of the terms, not a unit of its own size. The
    largest of many numbers is one of them, and may by luck be one that has hardly moved; ReLU may by luck hand on none.
    """
    if not _is_float(output.exact):
        return 0.0
    names, gain = _names(step), 0.0
    shares = prod(inputs[0].exact.shape) / max(1, prod(output.exact.shape)) if inputs else 0
    if names & _ADDING or chooses(step):
        gain = 1.0
    elif names & _AVERAGING and shares > 1:
        gain = sqrt(shares) if "sum" in names else 1 / sqrt(shares)
    if hasattr(step.layer, "kernel") and not step.is_activation:
        # The norm of the weights of one unit or filter, on average.
        kernel = keras.ops.convert_to_numpy(keras.ops.cast(step.layer.kernel, "float32"))
        gain = float(np.linalg.norm(kernel.ravel())) / sqrt(output.exact.shape[-1])
    moves = [0.0]
    for value in inputs if gain else ():
        exact, perturbed = _in_float64(value)
        moves += [_eps(output.exact) * np.abs(exact).max(initial=0), np.abs(perturbed - exact).max(initial=0)]
    return gain * max(moves) / 2


def _moved_on(value: Value, least: float) -> Value:
    """Return the value with its perturbed tensor moved by so much, if by luck none of its few numbers moved as far."""
    exact, perturbed = _in_float64(value)
    if not np.abs(perturbed - exact).max() < least:
        return value
    move = keras.ops.convert_to_tensor(np.copysign(least, perturbed - exact), value.perturbed.dtype)
    return value._replace(perturbed=value.perturbed + move)


def _in_float64(value: Value) -> tuple[np.ndarray, ...]:
    return tuple(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64")) for tensor in value)


def _is_float(tensor: Any) -> bool:
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype))


def _eps(tensor: Any) -> float:
    """Return the unit of rounding of a tensor's dtype."""
    return torch.finfo(getattr(torch, keras.backend.standardize_dtype(tensor.dtype))).eps


def _exact(step: Step, inputs: Sequence[Value], training: bool) -> list[Any]:
    return run_step(step, [value.exact for value in inputs], training)


def _run_once(step: Step, inputs: Sequence[Value], training: bool) -> tuple[list[Any], list[Any]]:
    """Return the outputs of a step in place of both."""
    outputs = _exact(step, inputs, training)
    return outputs, outputs


def _run_twice(step: Step, inputs: Sequence[Value], training: bool) -> tuple[list[Any], list[Any]]:
    """Return the outputs of a step, and its outputs with other rounding errors."""
    if isinstance(step.layer, _COMPILED_WITH_GROUPS) and step.layer.groups > 1 and not step.is_activation:
        (output,) = run_step(step, [keras.ops.concatenate(inputs[0])], training)
        exact, other = keras.ops.split(output, 2)
        return [exact], [other]
    return _exact(step, inputs, training), _run_unnoticed(step, [value.perturbed for value in inputs], training)


def _run_unnoticed(step: Step, values: Sequence[Any], training: bool) -> list[Any]:
    """Run a step, and undo what it did to the layer's statistics."""
    state = [] if not training else getattr(step.layer, "non_trainable_variables", [])
    before = [variable.numpy() for variable in state]
    outputs = run_step(step, values, training)
    for variable, value in zip(state, before, strict=True):
        variable.assign(value)
    return outputs


def has_float32_constants(step: Step) -> bool:
    """Tell whether TensorFlow computes a step with a constant in float32, whatever the dtype."""
    if _names(step) & _FLOAT32_CONSTANTS:
        return True
    relu = _function(step)
    return isinstance(relu, keras.layers.ReLU) and bool(relu.negative_slope or relu.threshold or relu.max_value)


def chooses(step: Step) -> bool:
    """Tell whether a step hands on some of the numbers that it takes, or a share of them, and chooses by their size.

    What it returns has an error as large as what it takes, or none, as the choice falls.
    """
    return bool(_names(step) & _CHOOSING)


def activates(step: Step) -> bool:
    """Tell whether a step computes an activation: one of its own of a layer, or that of an Activation layer."""
    return step.is_activation or isinstance(step.layer, keras.layers.Activation)


def _function(step: Step) -> Any:
    """Return what a step computes: a layer, an operation or an activation."""
    return step.layer.activation if activates(step) else step.layer


def _names(step: Step) -> set[str]:
    """Return the names of what a step computes, of a class also those of its bases: "leakyrelu", "maxpool2d"."""
    function = _function(step)
    named = [function] if hasattr(function, "__name__") else type(function).__mro__
    return {one.__name__.lower().replace("_", "") for one in named}


def _terms(step: Step, inputs: Sequence[Value], outputs: Sequence[Any], training: bool) -> float:
    """Return how many numbers a step adds up one by one into each that it returns, as far as their shapes tell.

    Products of matrices, and with them Dense layers and convolutions, are added up in blocks.
    """
    if not inputs or "Max" in type(step.layer).__name__ or hasattr(step.layer, "kernel"):
        return 1
    count = prod(inputs[0].exact.shape)
    if training and isinstance(step.layer, keras.layers.BatchNormalization):
        return count / inputs[0].exact.shape[step.layer.axis]
    return max(1, count / max(1, prod(outputs[0].shape)))

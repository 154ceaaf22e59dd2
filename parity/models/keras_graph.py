"""The layers of a Keras model in the order of the data flow, and how to run one."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple, NewType
from unittest import mock
from weakref import WeakKeyDictionary

from parity.errors import ParityError
from parity.models.keras_layers import RANDOM_IN_TRAINING, activation_name, activation_owner, has_activation

import keras
import numpy as np
from keras import tree
from torch.utils._pytree import tree_leaves

# The number of a tensor of a Keras model.
TensorId = NewType("TensorId", int)
# The position of a step among the steps of a graph; the one after the last stands for the model's return.
StepIndex = int


# Plain convolutions: a depthwise or separable one moves the channels itself.
_WITHOUT_KERNEL_ON_CPU = (
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
)


class Step(NamedTuple):
    """One call of one Keras layer; a layer with an activation of its own takes two.

    Attributes:
        name: The layer's name, after the names of the models that it is nested in. "activation" is added for the second
            step of a layer with an activation, "(call 2)" for the second call of a shared layer.
        layer: The layer. An operation without weights, such as ``x + y``, counts as a layer.
        is_activation: Whether the step is only the activation of the layer.
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
        """Return all weights of the step's layer; an activation step computes without them."""
        return getattr(self.layer, "weights", [])

    @property
    def masks(self) -> frozenset[int]:
        """Return the slots of its inputs that are masks: true and false, or whole numbers beside fractions."""
        tensors = [] if self.node is None else self.node.input_tensors
        kinds = [keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors]
        fractions = any("float" in kind for kind in kinds)
        return frozenset(slot for slot, kind in enumerate(kinds) if kind == "bool" or ("int" in kind and fractions))

    @property
    def has_activation(self) -> bool:
        """Tell whether a step with the layer's activation follows."""
        return not self.is_activation and has_activation(self.layer)


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
        """Return the tensors that a step takes. The model's return takes the model's outputs."""
        return self.steps[step].inputs if step < len(self.steps) else self.outputs

    def producers(self) -> dict[TensorId, StepIndex]:
        """Return the step that returns each tensor; no step returns a model's input."""
        return {number: index for index, step in enumerate(self.steps) for number in step.outputs}

    def masks(self) -> set[TensorId]:
        """Return the tensors that are nothing but masks."""
        return {
            number
            for number, taken in self.consumers().items()
            if all(step < len(self.steps) and slot in self.steps[step].masks for step, slot in taken)
        }

    def consumers(self) -> dict[TensorId, list[tuple[StepIndex, int]]]:
        """Return the steps that take each tensor, each with the slot: the tensor's position among the step's inputs."""
        found: dict[TensorId, list[tuple[StepIndex, int]]] = defaultdict(list)
        for index in range(len(self.steps) + 1):
            for slot, number in enumerate(self.inputs_of(index)):
                found[number].append((index, slot))
        return found


def keras_graph(model: keras.Model) -> Graph:
    """Return the steps of a Keras model, including those of models nested in it.

    Args:
        model: A Functional or a Sequential model.

    Raises:
        ParityError: If the model is of another kind (a subclass with a ``call`` of its own has no graph), or has not
            been built.
    """
    numbers = map(TensorId, count())
    steps: list[Step] = []
    calls: Counter[int] = Counter()

    def add(name: str, node: Any, inputs: list[TensorId], frozen: bool) -> list[TensorId]:
        calls[id(node.operation)] += 1
        if calls[id(node.operation)] > 1:
            name += f" (call {calls[id(node.operation)]})"
        outputs = [next(numbers) for _ in node.outputs]
        steps.append(Step(name, node.operation, False, tuple(inputs), tuple(outputs), node, frozen))
        if steps[-1].has_activation:
            inputs, outputs = outputs, [next(numbers) for _ in node.outputs]
            steps.append(Step(f"{name} activation", node.operation, True, tuple(inputs), tuple(outputs), node, frozen))
        return outputs

    def visit(model: Any, inputs: list[TensorId], prefix: str, frozen: bool) -> list[TensorId]:
        known = {id(tensor): number for tensor, number in zip(model.inputs, inputs, strict=True)}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            # Of several calls of one layer, Keras may have the last first.
            for node in sorted(model._nodes_by_depth[depth], key=_number_of_call):
                if node.is_input or any(id(tensor) not in known for tensor in node.input_tensors):
                    continue
                node_inputs = [known[id(tensor)] for tensor in node.input_tensors]
                name = prefix + node.operation.name
                node_frozen = frozen or node.arguments.kwargs.get("training") is False
                nested = functional(node.operation)
                if nested is None:
                    outputs = add(name, node, node_inputs, node_frozen)
                else:
                    outputs = visit(nested, node_inputs, f"{name}/", node_frozen)
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
    """Return the position of a call among all calls of its layer."""
    return next((i for i, other in enumerate(node.operation._inbound_nodes) if other is node), 0)


def functional(model: Any) -> Any:
    """Return the Functional model that a Functional or a built Sequential model is, else None."""
    own_call = next((kind for kind in type(model).__mro__ if "call" in vars(kind)), object)
    if not isinstance(model, keras.Model) or not own_call.__module__.startswith("keras."):
        return None
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if hasattr(model, "_nodes_by_depth") else None


def with_graph(model: Any, x: Any) -> Any:
    """Return a Keras model, or, for a subclassed one, the Functional model that its ``call`` makes of symbolic inputs.

    It has the same layers, names and weights. Keras notes in the layers that they were called once more.

    Args:
        model: The model.
        x: An input of it: an array, or several in a list, a tuple or a dictionary, as ``call`` takes them.

    Raises:
        ParityError: If ``call`` cannot run on symbolic inputs.
    """
    if functional(model) is not None or not isinstance(model, keras.Model) or isinstance(model, keras.Sequential):
        return model
    forms = str(tree.map_structure(lambda array: (np.shape(array)[1:], str(np.asarray(array).dtype)), x))
    if forms not in _made.setdefault(model, {}):
        _made[model][forms] = _made_by_call(model, x)
    return _made[model][forms]


# By subclassed model, and by the forms of its inputs: made once, so that its operations keep their names.
_made: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def _made_by_call(model: Any, x: Any) -> Any:
    def symbolic(array: Any, name: str | None = None) -> Any:
        return keras.Input(np.shape(array)[1:], dtype=str(np.asarray(array).dtype), name=name)

    named = isinstance(x, Mapping)
    inputs = {name: symbolic(array, name) for name, array in x.items()} if named else tree.map_structure(symbolic, x)
    try:
        made = keras.Model(inputs, model.call(inputs), name=model.name)
    except Exception as error:
        fault = (
            f"a {type(model).__name__} has no graph, and keras.Model(inputs, model.call(inputs)) makes none: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}. Write it as a "
            "Functional model with the same layers, or trace its parts"
        )
        raise ParityError(model.name, [fault]) from error
    # A variable that is no layer's becomes a constant of the graph.
    left_out = {weight.path for weight in model.weights} - {weight.path for weight in made.weights}
    if left_out:
        fault = f"its call computes with {', '.join(sorted(left_out))} outside of any layer; put these into a layer"
        raise ParityError(model.name, [fault])
    return made


def run_step(step: Step, values: Sequence[Any], training: bool = False) -> list[Any]:
    """Compute the outputs of one step.

    Args:
        step: The step. A layer with an activation has two: one computes without the activation, one only that.
        values: A tensor for each of its inputs.
        training: Run it in training mode, unless its output is random there.

    Returns:
        A tensor for each output.
    """
    if step.is_activation:
        return [activation_owner(step.layer).activation(values[0])]
    by_identity = {id(tensor): value for tensor, value in zip(step.node.input_tensors, values, strict=True)}
    args, kwargs = step.node.arguments.fill_in(by_identity)
    if getattr(step.layer, "_call_has_training_arg", False):
        kwargs["training"] = training and not step.frozen and not isinstance(step.layer, RANDOM_IN_TRAINING)
    if step.has_activation:
        # Keras computes a layer and its activation at once. Without the activation, the layer returns what precedes it.
        with mock.patch.object(activation_owner(step.layer), "activation", None):
            return _outputs_of(step.layer, args, kwargs)
    return _outputs_of(step.layer, args, kwargs)


def _outputs_of(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Call a layer. A convolution that cannot run with the channels first runs with the channels last.

    Few processors have a kernel of TensorFlow's for the channels first, and none in float64: "The Conv2D op currently
    only supports the NHWC tensor format on the CPU".
    """
    may_lack_kernel = isinstance(layer, _WITHOUT_KERNEL_ON_CPU) and layer.data_format == "channels_first"
    try:
        return tree.flatten(layer(*args, **kwargs))
    except Exception:
        if not may_lack_kernel:
            raise
    inputs, *rest = args
    expected = layer.input_spec
    try:
        layer.input_spec = None
        with mock.patch.object(layer, "data_format", "channels_last"):
            output = layer(keras.ops.moveaxis(inputs, 1, -1), *rest, **kwargs)
    finally:
        layer.input_spec = expected
    return [keras.ops.moveaxis(output, -1, 1)]


def activates(step: Step) -> bool:
    """Tell whether a step computes an activation: of a layer that has one, or of an Activation layer."""
    return step.is_activation or isinstance(step.layer, keras.layers.Activation)


def function_of(step: Step) -> Any:
    """Return what a step computes: a layer, an operation or an activation."""
    return activation_owner(step.layer).activation if activates(step) else step.layer

"""A port: a Keras model, its twin, inputs and mapping, checked once, so that all other code can rely on them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from parity.errors import ParityError
from parity.models.inputs import Inputs, TwinInputs, keras_inputs, takes_keras_axes, twin_inputs, unchanged
from parity.models.keras_channels import channels_of, input_axes
from parity.models.keras_graph import Graph, keras_graph, with_graph
from parity.models.keras_layers import WITH_HEADS, inner_layers
from parity.weights.fills import Fill, Misfit, Weight, fills, keras_weights, twin_tensors
from parity.weights.layouts import find_layout
from parity.weights.mapping import AS_IT_IS, Row, mapping_rows, source_of, unknown_names
from parity.weights.names import with_names_of

import keras
import numpy as np
import pandas as pd
from torch import Tensor, nn


class Port(NamedTuple):
    """A Keras model and its twin, ready to run side by side.

    Attributes:
        keras_model: A Functional or a built Sequential model.
        twin: The PyTorch model, on the CPU.
        graph: The Keras model as steps.
        rows: The rows of the mapping; every name in them is one that a model has.
        inputs: An array for each input of the Keras model, in its order and of its dtype.
        twin_inputs: The twin's inputs. The twin may overwrite its inputs, so run it with copies.
        twin_inputs_given: Whether the user has given the twin's inputs; else they are ``inputs`` with the channels
            moved, or as they are.
        as_keras: Whether each is as it is, because the twin takes it with Keras's axes.
        modules: The modules that hold a Keras layer's weights, in the order of the weights, by the layer's identity.
        fills: What each row moves, or why it cannot.
        weights: The Keras weights, by path.
    """

    keras_model: keras.Model
    twin: nn.Module
    graph: Graph
    rows: list[Row]
    inputs: list[np.ndarray]
    twin_inputs: list[Tensor]
    twin_inputs_given: bool
    as_keras: tuple[bool, ...]
    modules: dict[int, list[nn.Module]]
    fills: list[Fill | Misfit]
    weights: dict[str, Weight]

    @property
    def key_of(self) -> dict[str, str]:
        """Return {path of a Keras weight: key of the tensor in the twin's state dict that it fills}."""
        return {row.keras: row.torch for row in self.rows if row.keras and row.torch and row.how in ("", AS_IT_IS)}

    @property
    def moves(self) -> dict[str, list[Fill]]:
        """Return what each Keras weight fills, by its path."""
        found: dict[str, list[Fill]] = defaultdict(list)
        for fill in self.fills:
            if isinstance(fill, Fill) and not fill.wrong_name:
                found[fill.row.keras].append(fill)
        return found

    @property
    def modules_with_weights(self) -> list[nn.Module]:
        """Return all modules that hold the weights of a layer."""
        return [module for several in self.modules.values() for module in several]

    def moved(self, seed: int) -> "Port":
        """Return the same port with other inputs: each floating-point number is up to 5 % smaller or larger.

        If the user has given the twin's inputs, all inputs stay as they are.
        """
        if self.twin_inputs_given:
            return self
        inputs = [_moved(array, seed) for array in self.inputs]
        return self._replace(inputs=inputs, twin_inputs=twin_inputs(self.twin, inputs, as_keras=self.as_keras))


def make_port(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    torch_x: TwinInputs = None,
) -> Port:
    """Check two models, a mapping and inputs, and return them as a port.

    Args:
        keras_model: A Functional or a built Sequential model, or a subclassed one whose ``call`` takes symbolic inputs.
        torch_model: The twin.
        x: The input of the Keras model: an array with the axes that the model takes, or one for each of its inputs.
        mapping: Which Keras weight fills which PyTorch tensor, as ``parity.read_mapping`` returns it.
        torch_x: The twin's inputs, if they are neither ``x`` with the channels on axis 1 nor, for sequences, ``x``
            itself.

    Raises:
        ParityError: If the Keras model has no graph, the twin is no module or not on the CPU, the mapping has other
            columns or names that a model does not have, or the inputs do not fit.
    """
    keras_model = with_graph(keras_model, x)
    graph = keras_graph(keras_model)
    if not isinstance(torch_model, nn.Module):
        raise ParityError(type(torch_model).__name__, ["it is no torch.nn.Module"])
    rows = mapping_rows(mapping)
    weights = {weight.variable.path: weight for weight in keras_weights(keras_model)}
    tensors_of_twin = twin_tensors(torch_model)
    keys = {**torch_model.state_dict(keep_vars=True), **tensors_of_twin}
    rows = with_names_of(rows, weights, keys)
    faults = list(unknown_names(rows, weights, keys))
    if faults:
        raise ParityError(source_of(mapping), faults)
    inputs = keras_inputs(keras_model, x)
    given = torch_x is not None
    tensors = twin_inputs(torch_model, inputs, torch_x)
    with unchanged(keras_model, torch_model):
        first = list(input_axes(graph, channels_of(graph)))
        as_keras = () if given else takes_keras_axes(torch_model, inputs, first)
    if any(as_keras):
        tensors = twin_inputs(torch_model, inputs, as_keras=as_keras)
    modules = _modules_of_layers(graph, torch_model, rows)
    filled = _fills(rows, weights, torch_model, tensors_of_twin)
    return Port(keras_model, torch_model, graph, rows, inputs, tensors, given, as_keras, modules, filled, weights)


def _fills(
    rows: list[Row], weights: Mapping[str, Weight], twin: nn.Module, tensors: Mapping[str, Tensor]
) -> list[Fill | Misfit]:
    """Return what each row moves, or why it cannot; a row with a tensor of a parametrization moves nothing."""
    modules = dict(twin.named_modules(remove_duplicate=False))
    moved = [row for row in rows if row.keras and row.how in ("", AS_IT_IS) and row.torch in tensors]
    return list(fills(moved, weights, tensors, modules))


def _moved(array: np.ndarray, seed: int) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    factors = np.random.default_rng(seed).uniform(0.95, 1.05, array.shape)
    return (array * factors).astype(array.dtype)


def _modules_of_layers(graph: Graph, twin: nn.Module, rows: list[Row]) -> dict[int, list[nn.Module]]:
    """Return the modules that are the twin of each layer with weights, by the identity of the layer.

    Of a layer that consists of layers, such as an attention, it is the smallest module that holds all its weights, or
    else, for an attention, the modules from the query to the output. A module that also holds the weights of another
    layer is left out: it does more than this layer.
    """
    named = dict(twin.named_modules(remove_duplicate=False))
    module_of = {row.keras: named[module_name(row.torch)] for row in rows if row.keras and row.torch}
    layers = {id(step.layer): step.layer for step in graph.steps}
    holders = {identity: list(_holders(layer, module_of)) for identity, layer in layers.items()}
    owners: dict[int, set[int]] = defaultdict(set)
    for identity, modules in holders.items():
        for module in modules:
            owners[id(module)].add(identity)

    def does_more(module: nn.Module, identity: int) -> bool:
        return any(owners.get(id(inner), set()) - {identity} for inner in module.modules())

    found = {}
    for identity, modules in holders.items():
        layer = layers[identity]
        if modules and find_layout(layer) is None and max(len(modules), len(inner_layers(layer))) > 1:
            around = _around(modules, twin)
            one = around is not None and not does_more(around, identity)
            in_a_row = isinstance(layer, WITH_HEADS) and len(modules) > 1
            modules = [around] if one and around is not None else modules if in_a_row else []
        if modules and not any(does_more(module, identity) for module in modules):
            found[identity] = modules
    return found


def _around(modules: list[nn.Module], twin: nn.Module) -> nn.Module | None:
    """Return the smallest module of a twin that has others in it; None if that is the twin itself."""
    wanted = {id(module) for module in modules}
    around = [module for module in twin.modules() if wanted <= {id(inner) for inner in module.modules()}]
    return around[-1] if len(around) > 1 else None


def _holders(layer: keras.Layer, module_of: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """Yield each module that holds a weight of a layer once, in the order of the layer's weights."""
    found: set[int] = set()
    for weight in getattr(layer, "weights", []):
        module = module_of.get(weight.path)
        if module is not None and id(module) not in found:
            found.add(id(module))
            yield module


def module_name(key: str) -> str:
    """Return the module of a tensor; a parametrization, such as weight_norm, is a module within it."""
    parts = key.split(".")
    return ".".join(parts[: parts.index("parametrizations") if "parametrizations" in parts else -1])

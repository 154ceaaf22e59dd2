"""Which steps of a Keras model one module of the twin may do: the layer whose weights it holds, and what follows.

A module may have its activation inside, as timm's ``BatchNormAct2d`` has, or a BatchNormalization folded into its
weights. And it may hold the weights of several layers: of a chain of them, or of heads that take the same tensor.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from parity.models.keras_graph import Graph, StepIndex, TensorId
from parity.tracing.port import Port, module_name

from torch import Tensor, nn

# What ``Graph.consumers`` returns.
Consumers = Mapping[TensorId, Sequence[tuple[StepIndex, int]]]

# A module is not thought to do more than this many steps beside its own layer, or beside the last that it holds.
_LONGEST = 8


class Shared(NamedTuple):
    """A module that holds all weights of several layers.

    Attributes:
        module: The module.
        layers: The identities of these Keras layers, in the order of the mapping.
    """

    module: nn.Module
    layers: tuple[int, ...]


class Known(NamedTuple):
    """What is known of the twin besides the modules that hold one layer's weights.

    Attributes:
        shared: Modules that hold the weights of several layers.
        by_numbers: Calls that return what steps without weights return, by the step.
    """

    shared: Sequence[Shared] = ()
    by_numbers: Mapping[StepIndex, int] = MappingProxyType({})


class Work(NamedTuple):
    """What one call of a module of the twin does.

    Attributes:
        step: The first step that it does.
        least: The steps behind that one, up to the last whose weights the module holds. It does these in any case.
        more: The steps behind these that it may do as well.
    """

    step: StepIndex
    least: tuple[StepIndex, ...] = ()
    more: tuple[StepIndex, ...] = ()

    def tensors(self, graph: Graph) -> list[TensorId]:
        """Return the tensors that the call may return: what each of these steps returns."""
        return [graph.steps[step].outputs[0] for step in (self.step, *self.least, *self.more)]


def shared_modules(port: Port) -> list[Shared]:
    """Return the modules that hold the weights of several layers, of each of these all that the mapping has."""
    named = dict(port.twin.named_modules(remove_duplicate=False))
    layer_of = {weight.path: id(step.layer) for step in port.graph.steps for weight in step.layer_weights}
    homes: dict[int, dict[int, nn.Module]] = defaultdict(dict)
    for row in port.rows:
        if row.keras and row.torch:
            module = named[module_name(row.torch)]
            homes[layer_of[row.keras]][id(module)] = module
    layers: dict[int, list[int]] = defaultdict(list)
    for layer, modules in homes.items():
        if len(modules) == 1 and layer not in port.modules:
            layers[next(iter(modules))].append(layer)
    found = {identity: module for modules in homes.values() for identity, module in modules.items()}
    return [Shared(found[identity], tuple(several)) for identity, several in layers.items() if len(several) > 1]


def behind(graph: Graph, consumers: Consumers, step: StepIndex, stops: Collection[int]) -> list[StepIndex]:
    """Return the steps behind a step, as long as each tensor is taken by one step, which takes nothing else.

    Args:
        graph: The Keras model.
        consumers: What ``graph.consumers()`` returns.
        step: The step.
        stops: Identities of layers before which the chain ends, because they have modules of their own.
    """
    found: list[StepIndex] = []
    while len(graph.steps[step].outputs) == 1:
        following = consumers[graph.steps[step].outputs[0]]
        if len(following) != 1 or following[0][0] == len(graph.steps):
            break
        step = following[0][0]
        taken = graph.steps[step]
        if len(taken.inputs) - len(taken.masks) != 1 or (id(taken.layer) in stops and not taken.is_activation):
            break
        found.append(step)
    return found


def work_of(graph: Graph, consumers: Consumers, step: StepIndex, stops: Collection[int]) -> Work:
    """Return what a call of the module that holds the weights of one layer may do; the arguments are ``behind``'s."""
    return Work(step, (), tuple(behind(graph, consumers, step, stops)[:_LONGEST]))


def works_of_calls(
    graph: Graph,
    consumers: Consumers,
    shared: Iterable[Shared],
    calls_of: Mapping[int, Sequence[int]],
    stops: Collection[int],
) -> dict[StepIndex, tuple[Work, int]]:
    """Return what shared modules do, a chain of layers or heads, and in which call, by the first step.

    Args:
        graph: The Keras model.
        consumers: What ``graph.consumers()`` returns.
        shared: The modules.
        calls_of: The calls of each module that return a tensor, by the module's identity.
        stops: Identities of other layers that have modules of their own.
    """
    found: dict[StepIndex, tuple[Work, int]] = {}
    for module, layers in shared:
        own: dict[int, list[StepIndex]] = {layer: [] for layer in layers}
        for index, step in enumerate(graph.steps):
            if id(step.layer) in own and not step.is_activation:
                own[id(step.layer)].append(index)
        for call, *steps in zip(calls_of.get(id(module), ()), *own.values(), strict=False):
            if len({graph.steps[step].inputs for step in steps}) == 1:
                heads = [work_of(graph, consumers, step, {*stops, *layers}) for step in steps]
                found |= {work.step: (work, call) for work in heads}
                continue
            first, *later = sorted(steps)
            chain = behind(graph, consumers, first, set(stops) - set(layers))
            if set(later) <= set(chain):
                last = chain.index(later[-1]) + 1
                found[first] = Work(first, tuple(chain[:last]), tuple(chain[last : last + _LONGEST])), call
    return found


def likeliest_parts(value: Tensor, twin: Tensor) -> Iterator[Tensor]:
    """Yield the part of a tensor that is likeliest one of several heads: as many channels in a row as the head has.

    Args:
        value: What the head returns in Keras (batch, ..., channels).
        twin: What the module with all heads returns, channels last or first.
    """
    channels = value.shape[-1]
    for axis in dict.fromkeys((twin.ndim - 1, 1)) if value.ndim == twin.ndim > 1 else ():
        last = twin.movedim(axis, -1)
        if last.shape[:-1] == value.shape[:-1] and last.shape[-1] > channels:
            apart = (last - value[..., :1]).abs().flatten(0, -2).amax(0)[: last.shape[-1] - channels + 1]
            yield twin.narrow(axis, int(apart.argmin()), channels)

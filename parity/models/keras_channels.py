"""Where a Keras model has its channels: on the axis that its layers name, which is the last or, often, axis 1.

The layers that make or take a tensor say it by ``data_format`` (https://keras.io/api/layers/convolution_layers/) or by
``axis`` (https://keras.io/api/layers/normalization_layers/). Layers that keep the axes hand it on. Everywhere else a
tensor's channels are on its last axis, as Keras has them unless it is told otherwise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from parity.models.keras_graph import Graph, Step, TensorId

import keras
from torch import Tensor

_L = keras.layers
# Layers that compute with the last axis, wherever the channels are before them.
_ON_LAST_AXIS = (
    *(_L.Dense, _L.EinsumDense, _L.Embedding, _L.Bidirectional, _L.RNN),
    *(_L.MultiHeadAttention, _L.GroupQueryAttention, _L.Attention, _L.AdditiveAttention),
)
_WITH_AXIS = (
    _L.BatchNormalization,
    _L.LayerNormalization,
    _L.GroupNormalization,
    _L.RMSNormalization,
    _L.Normalization,
)
# Operations whose output has as many axes as their input, but not the same ones.
_OTHER_AXES = frozenset({"Dot", "Matmul", "Einsum", "Tensordot"})


class Channels(NamedTuple):
    """Where the channels of each tensor of a Keras model are.

    Attributes:
        axes: The axis of the channels of each tensor for which the layers say it; any other has them last.
        doubtful: The tensors in ``axes`` of which only a layer that permutes the axes says it. A twin may leave such a
            layer out, or have it.
        features_first: The tensors of flattened features that lie channels first, because the layers before have the
            channels first and ``Flatten`` keeps the order.
    """

    axes: Mapping[TensorId, int]
    doubtful: frozenset[TensorId] = frozenset()
    features_first: frozenset[TensorId] = frozenset()

    def axis(self, number: TensorId, step: Step | None, rank: int) -> int:
        """Return the axis of a tensor's channels.

        Args:
            number: The tensor.
            step: The step that takes or returns it, if it is to be asked first.
            rank: How many axes the tensor has.
        """
        said = None if step is None else stated_axis(step, rank)
        return self.axes.get(number, rank - 1) if said is None else said

    def possible(self, number: TensorId, step: Step | None, rank: int) -> Sequence[int]:
        """Return the axes on which a tensor's channels may be, the likeliest first: one, if the step says which."""
        likeliest = self.axis(number, step, rank)
        certain = rank < 3 or not self.axes or (step is not None and stated_axis(step, rank) is not None)
        return [likeliest] if certain else list(dict.fromkeys([likeliest, rank - 1, 1]))

    def features(self, number: TensorId, flattened: Mapping[TensorId, tuple[int, ...]]) -> tuple[int, ...] | None:
        """Return the shape (*spatial, channels) that a tensor was flattened from, if a twin may flatten otherwise."""
        return None if number in self.features_first else flattened.get(number)


CHANNELS_LAST = Channels({})
"""Of a model that has the channels last throughout."""


def with_channels_last(tensor: Tensor, axis: int) -> Tensor:
    """Return a view of a Keras tensor (batch, ...) with the axis of its channels moved to the end."""
    return tensor.movedim(axis, -1) if tensor.ndim > 2 else tensor


def as_in_keras(tensor: Tensor, axis: int) -> Tensor:
    """Return a view of a tensor (batch, ..., channels) with the axis of the channels where Keras has it."""
    return tensor.movedim(-1, axis) if tensor.ndim > 2 else tensor


def axes_in_keras(rank: int, axis: int) -> list[int]:
    """Return for each axis of a tensor with the channels moved to the end which axis it is in Keras."""
    return [*(other for other in range(rank) if other != axis % rank), axis % rank] if rank > 2 else list(range(rank))


def stated_axis(step: Step, rank: int) -> int | None:
    """Return the axis on which a step says that its input and its output have the channels, None if it does not say.

    Args:
        step: The step.
        rank: How many axes its input or output has.
    """
    return None if step.is_activation else _said_by(step.layer, rank)


def _said_by(layer: Any, rank: int) -> int | None:
    if rank < 3:
        return None
    if isinstance(layer, _L.TimeDistributed):
        inner = _said_by(layer.layer, rank - 1)
        return None if inner is None else inner + 1
    if isinstance(layer, _L.SpectralNormalization):
        return _said_by(layer.layer, rank)
    if isinstance(layer, _L.Flatten):
        return 1 if layer.data_format == "channels_first" else None
    if hasattr(layer, "data_format"):
        # A recurrent convolution has the time before the channels.
        first = 2 if isinstance(layer, _L.RNN) and rank == layer.cell.rank + 3 else 1
        form = layer.data_format or keras.config.image_data_format()  # an operation may have None
        return first if form == "channels_first" else rank - 1
    if isinstance(layer, _WITH_AXIS):
        axis = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
        return axis[0] % rank if len(axis) == 1 and axis[0] is not None else None
    if isinstance(layer, _L.PReLU):
        own = [axis for axis, size in enumerate(layer.alpha.shape, start=1) if size > 1]
        return own[0] if len(own) == 1 and rank == len(layer.alpha.shape) + 1 else None
    return rank - 1 if isinstance(layer, _ON_LAST_AXIS) else None


def channels_of(graph: Graph) -> Channels:
    """Return where each tensor of a Keras model has its channels.

    What makes a tensor is asked before what takes it, and a layer that keeps the axes before one that permutes them.
    """
    known: dict[TensorId, int] = {}
    doubtful: set[TensorId] = set()

    def enter(number: TensorId, axis: int | None, doubt: bool) -> None:
        if axis is not None and number not in known:
            known[number] = axis
            if doubt:
                doubtful.add(number)

    def forwards() -> None:
        for step in graph.steps:
            inputs, outputs = _tensors(step)
            for number, shape in outputs:
                enter(number, stated_axis(step, len(shape)), False)
                for source, before in inputs:
                    if source in known and len(before) > 2:
                        axis = _kept(step, known[source], before, shape)
                        enter(number, axis, source in doubtful or _permutation(step) is not None)

    def backwards() -> None:
        for permuting in (False, True):
            for step in reversed(graph.steps):
                inputs, outputs = _tensors(step)
                permutation = _permutation(step)
                for source, before in inputs:
                    enter(source, stated_axis(step, len(before)), False)
                    for number, shape in outputs if permuting or permutation is None else []:
                        if number in known and len(shape) > 2:
                            axis = _kept(step, known[number], shape, before, back=True)
                            enter(source, axis, number in doubtful or permutation is not None)

    forwards()
    backwards()
    forwards()
    ranks = {number: len(shape) for step in graph.steps for side in _tensors(step) for number, shape in side}
    axes = {number: axis for number, axis in known.items() if axis != ranks[number] - 1}
    return Channels(axes, frozenset(doubtful & axes.keys()), _features_first(graph, axes))


def _tensors(step: Step) -> tuple[list[tuple[TensorId, Sequence[Any]]], list[tuple[TensorId, Sequence[Any]]]]:
    """Return the number and the shape of each input of a step, and of each output; sizes may be None."""
    outputs = [tensor.shape for tensor in step.node.output_tensors]
    inputs = outputs if step.is_activation else [tensor.shape for tensor in step.node.input_tensors]
    return list(zip(step.inputs, inputs, strict=False)), list(zip(step.outputs, outputs, strict=False))


def _kept(step: Step, axis: int, before: Sequence[Any], after: Sequence[Any], back: bool = False) -> int | None:
    """Return where an axis of one tensor of a step is in another one, None if that is not known.

    Args:
        step: The step.
        axis: The axis.
        before: The shape of the tensor that has it.
        after: The shape of the other.
        back: Whether the other is the step's input, not its output.
    """
    permutation, rank = _permutation(step), len(before)
    if permutation is not None and len(after) == rank:
        order = permutation(rank)
        return order[axis] if back else order.index(axis)
    if type(step.layer).__name__ == "Reshape":  # it keeps an axis at either end, if the sizes say so
        if axis == 1 and len(after) > 2 and after[1] == before[1]:
            return 1
        return len(after) - 1 if axis == rank - 1 and len(after) > 2 and after[-1] == before[-1] else None
    return axis if len(after) == rank and type(step.layer).__name__ not in _OTHER_AXES else None


def _permutation(step: Step) -> Callable[[int], list[int]] | None:
    """Return what takes a rank and returns, for each axis of a step's output, which axis of its input it is.

    None if the step does not permute axes.
    """
    layer, kind = step.layer, type(step.layer).__name__
    if step.is_activation:
        return None
    if isinstance(layer, _L.Permute):
        return lambda rank: [0, *layer.dims]
    if kind == "Transpose":
        return lambda rank: list(range(rank))[::-1] if layer.axes is None else [axis % rank for axis in layer.axes]
    if kind == "Moveaxis":
        return lambda rank: _moved(rank, layer.source, layer.destination)
    if kind == "Swapaxes":
        return lambda rank: _swapped(rank, layer.axis1 % rank, layer.axis2 % rank)
    return None


def _moved(rank: int, source: Sequence[int], destination: Sequence[int]) -> list[int]:
    places = {there % rank: here % rank for here, there in zip(source, destination, strict=True)}
    rest = iter([axis for axis in range(rank) if axis not in places.values()])
    return [places[axis] if axis in places else next(rest) for axis in range(rank)]


def _swapped(rank: int, a: int, b: int) -> list[int]:
    return [{a: b, b: a}.get(axis, axis) for axis in range(rank)]


def _features_first(graph: Graph, axes: Mapping[TensorId, int]) -> frozenset[TensorId]:
    found: set[TensorId] = set()
    for step in graph.steps:
        flattens = isinstance(step.layer, _L.Flatten) and step.layer.data_format != "channels_first"
        if flattens and step.inputs[0] in axes:
            found.update(step.outputs)
        elif not step.is_activation and isinstance(step.layer, _ON_LAST_AXIS):
            continue  # mixes the features
        elif len(step.inputs) == 1 and step.inputs[0] in found:
            found.update(step.outputs)
    return frozenset(found)


def input_axes(graph: Graph, channels: Channels) -> Iterator[bool | None]:
    """Yield for each input whether its channels are not last, None where only a layer that permutes axes says it."""
    for number in graph.inputs:
        yield None if number in channels.doubtful else number in channels.axes

"""Run a Keras model and its twin side by side, and compare each tensor when both have computed it.

Only what is still to be compared is kept: the twin runs, and at each of its calls the Keras model is computed as far as
the layer in question. So a large model needs little more memory than to run it twice.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from math import inf, prod
from typing import Any, NamedTuple

from parity.calls import Call, number_of, record
from parity.faults import ParityError
from parity.graph import Graph, Step, Value, functional, keras_graph, walk
from parity.layouts import torch_input
from parity.mapping import COLUMNS
from parity.pairing import Pairing, Spot, pair

import keras
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

# The noise is measured with rounding errors drawn once, at random; those of another run may be some times as large.
TIMES_NOISE = 32
# Values of layers that diverge are kept, to see whether they are each other's: at most so many numbers in all.
_KEPT = 2**24
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.PReLU,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)

Inputs = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]


class Seen(NamedTuple):
    """A Keras tensor beside what the twin has in its place.

    Attributes:
        difference: The largest absolute difference after the change of layout; infinite if no layout fits.
        within: The largest difference that rounding explains.
        way: What the change of layout was, if it was more than moving the axis of the channels.
        shape: The twin's shape.
    """

    difference: float
    within: float
    way: str
    shape: tuple[int, ...]

    @property
    def agrees(self) -> bool:
        """Tell whether rounding explains the difference."""
        return self.difference <= self.within


class Run(NamedTuple):
    """Both models as they ran.

    Attributes:
        graph: The Keras model.
        calls: What the twin called.
        pairing: Which call is which layer's.
        taken: By number of a step and of one of its inputs: what it and its twin took. The step after the last is the
            model's return, its inputs are the outputs.
        made: By number of a Keras tensor: what the layer and its twin returned; where the twin has no such call, what
            the layers after it took, of several the nearest.
        shapes: By number of a Keras tensor: its shape.
        flattened: By number of a Keras tensor that holds flattened features: the shape (*spatial, channels) before.
        noise: By number of a Keras tensor: the rounding noise to expect there.
        kept: By number of a Keras tensor: the tensor and the twin's, of layers that diverge and of those asked for.
        returned: By place among the model's outputs: the output and the twin's.
        inputs: By number of a step that was asked for: its inputs, and the twin's.
    """

    graph: Graph
    calls: list[Call]
    pairing: Pairing
    taken: dict[tuple[int, int], Seen]
    made: dict[int, Seen]
    shapes: dict[int, tuple[int, ...]]
    flattened: dict[int, tuple[int, ...]]
    noise: dict[int, float]
    kept: dict[int, tuple[Tensor, Tensor]]
    returned: dict[int, tuple[Tensor, Tensor]]
    inputs: dict[int, tuple[list[Tensor], list[Tensor]]]


def run_both(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    torch_x: Sequence[Tensor] | None = None,
    training: bool = False,
    keep: str | None = None,
) -> Run:
    """Run a Keras model and its twin side by side; neither is changed.

    Args:
        keras_model: A Functional or a built Sequential model.
        torch_model: The twin; it runs in the mode that it is in, in training mode if ``training``.
        x: The input of the Keras model, an array or one for each input.
        mapping: Which Keras weight fills which PyTorch tensor.
        torch_x: The twin's inputs, if they are not ``x`` with the channels moved to axis 1.
        training: Run both as in training, but without dropout, whose noise they cannot share.
        keep: Name of a step whose inputs and outputs are wanted.

    Raises:
        ParityError: If the Keras model has no graph, the mapping has names that the models do not have, or the number
            of inputs is another.
    """
    graph = keras_graph(keras_model)
    modules = modules_by_layer(graph, torch_model, mapping)
    arrays = keras_inputs(keras_model, x)
    tensors = list(torch_x) if torch_x is not None else twin_inputs(torch_model, arrays)
    with unchanged(keras_model, torch_model, training):
        # How the twin is made up shows with a few examples; two, because in training one may be too few.
        calls, outputs = record(torch_model, [tensor[:2].clone() for tensor in tensors], held_modules(modules))
    pairing = pair(graph, calls, [getattr(output, "_parity_number", -1) for output in outputs], modules)
    with unchanged(keras_model, torch_model, training):
        return _Runner(graph, calls, pairing, arrays, training, keep).run(torch_model, tensors, held_modules(modules))


def keras_inputs(model: keras.Model, x: Inputs) -> list[np.ndarray]:
    """Return an array for each input of a Keras model, in its order and of its dtype.

    Raises:
        ParityError: If there are more or fewer, or one has no examples.
    """
    wanted = functional(model).inputs
    if isinstance(x, Mapping):
        missing = [tensor.name for tensor in wanted if tensor.name not in x]
        if missing:
            raise ParityError(model.name, [f"no input {name}" for name in missing])
        x = [x[tensor.name] for tensor in wanted]
    arrays = [x] if isinstance(x, np.ndarray) else list(x)
    if len(arrays) != len(wanted):
        raise ParityError(model.name, [f"it takes {len(wanted)} inputs, not {len(arrays)}"])
    empty = [tensor.name for tensor, array in zip(wanted, arrays, strict=True) if array.size == 0]
    if empty:
        raise ParityError(model.name, [f"input {name} is empty: nothing could differ" for name in empty])
    return [np.asarray(array, tensor.dtype) for tensor, array in zip(wanted, arrays, strict=True)]


def twin_inputs(model: nn.Module, arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Return the inputs of a twin: channels at axis 1, and of the twin's dtype.

    Args:
        model: The twin.
        arrays: An array for each input of the Keras model; with three axes or more, the last is that of the channels.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    tensors = []
    for array in arrays:
        real = array.dtype.kind == "f"
        tensor = torch_input(array) if real and array.ndim > 2 else torch.from_numpy(array.copy())
        tensors.append(tensor.to(dtype) if real and dtype is not None else tensor)
    return tensors


def modules_by_layer(graph: Graph, torch_model: nn.Module, mapping: pd.DataFrame) -> dict[int, list[nn.Module]]:
    """Return the modules that hold a layer's weights, by the identity of the layer, in the order of the weights.

    Raises:
        ParityError: If the mapping has other columns, or a name that a model does not have.
    """
    source = mapping.attrs.get("source", "mapping")
    if list(mapping.columns) != COLUMNS:
        raise ParityError(source, [f"the columns must be {COLUMNS}, not {list(mapping.columns)}"])
    layers = {w.path: step.layer for step in graph.steps for w in getattr(step.layer, "weights", [])}
    names = torch_model.state_dict(keep_vars=True)
    kind = mapping.index.name or "row"
    rows = mapping.fillna("").astype(str)
    faults = [f"{kind} {i}: there is no Keras weight {k}" for i, k, _ in rows.itertuples() if k and k not in layers]
    faults += [f"{kind} {i}: there is no PyTorch tensor {t}" for i, _, t in rows.itertuples() if t not in names]
    if faults:
        raise ParityError(source, faults)
    owner = {path: torch_model.get_submodule(name.rpartition(".")[0]) for path, name in rows.values if path}
    modules: dict[int, list[nn.Module]] = defaultdict(list)
    for step in graph.steps:
        for weight in getattr(step.layer, "weights", []):
            module = owner.get(weight.path)
            if module is not None and all(module is not other for other in modules[id(step.layer)]):
                modules[id(step.layer)].append(module)
    return dict(modules)


@contextmanager
def unchanged(keras_model: keras.Model, torch_model: nn.Module, training: bool = False) -> Iterator[None]:
    """Let both models run without their statistics, their modes or PyTorch's random numbers being changed.

    Args:
        keras_model: The Keras model.
        torch_model: The twin.
        training: Put the twin into training mode, except for modules whose output is random there.
    """
    buffers = [(buffer, buffer.clone()) for buffer in torch_model.buffers()]
    state = [(variable, variable.numpy()) for variable in keras_model.non_trainable_variables] if training else []
    modes = [(module, module.training) for module in torch_model.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if training:
                for module, _ in modes:
                    module.training = not isinstance(module, nn.modules.dropout._DropoutNd)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for variable, value in state:
            variable.assign(value)


def held_modules(modules: Mapping[int, list[nn.Module]]) -> list[nn.Module]:
    """Return all modules that hold weights."""
    return [module for several in modules.values() for module in several]


class _Runner:
    """Runs the twin, and the Keras model as far as each of the twin's calls needs it."""

    def __init__(
        self,
        graph: Graph,
        calls: list[Call],
        pairing: Pairing,
        x: Sequence[np.ndarray],
        training: bool,
        keep: str | None,
    ) -> None:
        self.graph = graph
        self.training = training
        self.walk = walk(graph, x, training)
        self.wanted = next((index for index, step in enumerate(graph.steps) if step.name == keep), None)
        self.run_ = Run(graph, calls, pairing, {}, {}, {}, {}, {}, {}, {}, {})
        self.values: dict[int, Tensor] = {}
        # What to compare at each call of the twin: a Keras tensor, the position of the twin's, and who takes it.
        self.due: dict[tuple[int, str], list[tuple[int, int, tuple[int, int] | None]]] = defaultdict(list)
        self.pending: Counter[int] = Counter()
        # Pairs that were found to agree: numbers of both tensors, and the version of the twin's.
        self.agreed: dict[tuple[int, int, int], Seen] = {}
        for (index, slot), spot in pairing.taken.items():
            number = graph.outputs[slot] if index == len(graph.steps) else graph.steps[index].inputs[slot]
            self.expect(number, spot, (index, slot))
        for number, spot in pairing.made.items():
            self.expect(number, spot, None)
        for number, spots in pairing.seen.items():
            for spot in spots:
                self.expect(number, spot, None)

    def expect(self, number: int, spot: Spot, taker: tuple[int, int] | None) -> None:
        self.due[spot.call, spot.when].append((number, spot.position, taker))
        self.pending[number] += 1

    def run(self, torch_model: nn.Module, inputs: Sequence[Tensor], held: Sequence[nn.Module]) -> Run:
        calls, outputs = record(torch_model, inputs, held, self.watch, dropout=not self.training)
        if [call.name for call in calls] != [call.name for call in self.run_.calls]:
            raise ParityError(type(torch_model).__name__, ["its calls depend on the number of examples"])
        self.watch(len(calls), "in", outputs)
        while self.advance():
            pass
        return self.run_

    def watch(self, call: int, when: str, tensors: list[Tensor]) -> None:
        for number, position, taker in self.due.pop((call, when), []):
            while number not in self.values and self.advance():
                pass
            self.compare(number, tensors[position], when, taker, self.module(call, taker))
            self.pending[number] -= 1
            if not self.pending[number]:
                del self.values[number]

    def module(self, call: int, taker: tuple[int, int] | None) -> nn.Module | None:
        return self.run_.calls[call].module if call < len(self.run_.calls) else None

    def advance(self) -> bool:
        """Compute the Keras model's next step; tell whether there was one."""
        try:
            step, inputs, outputs = next(self.walk)
        except StopIteration:
            return False
        numbers = self.graph.inputs if step is None else step.outputs
        for number, value in zip(numbers, outputs, strict=True):
            self.note(number, value)
        if step is not None:
            self.follow_order(step, inputs, outputs)
        return True

    def note(self, number: int, value: Value) -> None:
        tensor, shaken = as_tensor(value.exact), as_tensor(value.shaken)
        self.run_.shapes[number] = tuple(tensor.shape)
        noise = 0.0
        if tensor.is_floating_point():
            # At the least one unit of rounding of the largest element, should the draw be lucky.
            least = torch.finfo(tensor.dtype).eps * largest(tensor)
            noise = max(largest(tensor - shaken), least)
        self.run_.noise[number] = noise
        if self.pending[number]:
            self.values[number] = tensor

    def follow_order(self, step: Step, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
        """Remember which tensors hold flattened features, and the shape that they were flattened from."""
        if isinstance(step.layer, keras.layers.Flatten):
            shape = tuple(inputs[0].exact.shape)[1:]
            if len(shape) > 1:
                self.run_.flattened[step.outputs[0]] = shape
        elif len(step.inputs) == len(step.outputs) == 1 and step.inputs[0] in self.run_.flattened:
            shape = self.run_.flattened[step.inputs[0]]
            mixes = isinstance(step.layer, keras.layers.Dense) and not step.is_activation
            if not mixes and tuple(outputs[0].exact.shape)[1:] == (prod(shape),):
                self.run_.flattened[step.outputs[0]] = shape

    def compare(
        self, number: int, twin: Tensor, when: str, taker: tuple[int, int] | None, module: nn.Module | None
    ) -> None:
        value = self.values[number]
        # What one layer returns the next takes; the version tells whether the tensor was overwritten in between.
        key = (number, number_of(twin), twin._version)
        best = self.agreed.get(key)
        if best is None:
            best = self.closest(number, twin, module, window=when == "in")
            if best.agrees and key[1] >= 0:
                self.agreed[key] = best
        if taker is not None:
            self.run_.taken[taker] = best
            if taker[0] == len(self.graph.steps):
                self.run_.returned[taker[1]] = (value, twin.clone())
            if taker[0] == self.wanted:
                ours, theirs = self.run_.inputs.setdefault(taker[0], ([], []))
                ours.append(value)
                theirs.append(twin.clone())
            return
        if number not in self.run_.made or best.difference < self.run_.made[number].difference:
            self.run_.made[number] = best
            wanted = self.wanted is not None and number in self.graph.steps[self.wanted].outputs
            room = sum(tensor.numel() for tensor, _ in self.run_.kept.values()) + value.numel() <= _KEPT
            if wanted or (not best.agrees and room and self.came_right(number)):
                self.run_.kept[number] = (value, twin.clone())

    def closest(self, number: int, twin: Tensor, module: nn.Module | None, window: bool) -> Seen:
        """Compare a Keras tensor and the twin's in each way that one can be laid over the other; return the best."""
        within = TIMES_NOISE * self.run_.noise[number]
        best = Seen(inf, within, "shapes do not fit", tuple(twin.shape))
        for view, candidate, way in views(self.values[number], twin, module, self.run_.flattened.get(number), window):
            difference = largest(view - candidate)
            if difference < best.difference:
                best = best._replace(difference=difference, way=way)
            if best.agrees:
                break
        return best

    def came_right(self, number: int) -> bool:
        """Tell whether the inputs of the step that returned a tensor agreed, as far as they were seen."""
        for index, step in enumerate(self.graph.steps):
            if number in step.outputs:
                seen = [self.run_.taken.get((index, slot)) for slot in range(len(step.inputs))]
                seen = [one or self.run_.made.get(n) for one, n in zip(seen, step.inputs, strict=True)]
                return all(one is None or one.agrees for one in seen)
        return True


def views(
    value: Tensor, twin: Tensor, module: nn.Module | None, flattened: tuple[int, ...] | None, window: bool = False
) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield each way to lay a Keras tensor and the twin's one over the other: (Keras's, the twin's, a note).

    Args:
        value: The Keras tensor, channels last.
        twin: The twin's, channels first or last.
        module: The module that takes or returns it; it may settle where the channels are.
        flattened: The shape (*spatial, channels) that the features of ``value`` were flattened from, if any.
        window: Whether one of the two may have a border that the other has not yet, of padding.
    """
    if value.ndim == twin.ndim and value.ndim > 2:
        orders = []
        if not isinstance(module, _CHANNELS_LAST):
            orders.append((twin.movedim(1, -1), ""))
        if not isinstance(module, _CHANNELS_FIRST):
            orders.append((twin, ""))
        for view, note in orders:
            if view.shape == value.shape:
                yield value, view, note
        if window:
            for view, _ in orders:
                yield from _windows(value, view)
    elif value.shape == twin.shape:
        yield value, twin, ""
        if flattened and value.shape[1] == prod(flattened):
            *spatial, channels = flattened
            yield (
                value,
                twin.unflatten(1, (channels, *spatial)).movedim(1, -1).flatten(1),
                "flattened channels first",
            )
    elif value.numel() == twin.numel() and value.shape[:1] == twin.shape[:1]:
        plain = [size for size in value.shape[1:] if size > 1]
        if plain == [size for size in twin.shape[1:] if size > 1]:
            yield value.flatten(), twin.flatten(), ""
        elif twin.ndim == 2 < value.ndim:
            yield value.flatten(1), twin, "flattened"
            yield value.movedim(-1, 1).flatten(1), twin, "flattened channels first"
        elif value.ndim == 2 < twin.ndim:
            yield value, twin.movedim(1, -1).flatten(1), "not flattened"
            yield value, twin.flatten(1), "not flattened"


def _windows(value: Tensor, view: Tensor) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield each place of the smaller of two tensors (batch, *spatial, channels) within the larger."""
    ends = (0, value.ndim - 1)
    if value.shape == view.shape or any(value.shape[axis] != view.shape[axis] for axis in ends):
        return
    axes = range(1, value.ndim - 1)
    more = [view.shape[axis] - value.shape[axis] for axis in axes]
    if not (all(m >= 0 for m in more) or all(m <= 0 for m in more)) or max(map(abs, more)) > 16:
        return
    large, small = (view, value) if max(more) > 0 else (value, view)
    # The middle first: that is where padding leaves the data.
    starts = [sorted(range(abs(m) + 1), key=lambda start, m=m: abs(start - abs(m) // 2)) for m in more]
    for offset in product(*starts):
        part = large
        for axis, start in zip(axes, offset, strict=True):
            part = part.narrow(axis, start, small.shape[axis])
        yield (value, part, "with a border") if large is view else (part, view, "without a border")


def as_tensor(value: Any) -> Tensor:
    """Return a Keras tensor as a PyTorch tensor on the CPU, without a copy where there can be none."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if keras.backend.backend() == "tensorflow" and "CPU" in value.device:
        return torch.from_dlpack(value)
    return torch.from_numpy(np.array(value))


def largest(tensor: Tensor) -> float:
    """Return the largest absolute value of a tensor; infinity if it holds NaN."""
    if not tensor.numel():
        return 0.0
    low, high = (float(end) for end in torch.aminmax(tensor))
    return inf if np.isnan(low) else max(abs(low), abs(high))

"""Run a Keras model and its twin side by side, and compare each tensor when both have computed it.

Only what is still to be compared is kept: the twin runs, and at each of its calls the Keras model is computed as far as
the layer in question. So a large model needs little more memory than to run it twice.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from math import inf, isfinite, prod
from typing import Any, NamedTuple

from parity.calls import Call, number_of, record
from parity.faults import ParityError
from parity.graph import Graph, Step, Value, functional, keras_graph, shaken_tensor, walk
from parity.layouts import find_layout, torch_input
from parity.mapping import COLUMNS
from parity.pairing import Pairing, Spot, pair

import keras
import numpy as np
import pandas as pd
import torch
from keras import tree
from torch import Tensor, nn

# The noise is measured with rounding errors drawn once, at random; those of another run may be some times as large.
TIMES_NOISE = 32
_MISFIT = "shapes do not fit"
_BORDERS = ("with a border", "without a border")
# Values of layers that diverge are kept, to see whether they are each other's: at most so many numbers in all.
KEPT = 2**24
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.PReLU,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)

# How features may lie in the twin, said of a comparison.
CHANNELS_FIRST_FEATURES = "flattened channels first"

Inputs = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]
TwinInputs = Tensor | Sequence[Tensor] | None


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
        others: By number of a Keras tensor that was asked for: the tensor.
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
    others: dict[int, Tensor]


def run_both(
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    torch_x: TwinInputs = None,
    training: bool = False,
    before: Run | None = None,
    keep: str | None = None,
    others: Collection[int] = (),
) -> Run:
    """Run a Keras model and its twin side by side; neither is changed.

    Args:
        keras_model: A Functional or a built Sequential model.
        torch_model: The twin; it runs in the mode that it is in, in training mode if ``training``.
        x: The input of the Keras model, an array or one for each input.
        mapping: Which Keras weight fills which PyTorch tensor.
        torch_x: The twin's inputs, if they are not ``x`` with the channels moved to axis 1.
        training: Run both as in training, but without dropout, whose noise they cannot share.
        before: The same models as they ran with the same inputs: what is known of them is not measured again.
        keep: Name of a step whose inputs and outputs are wanted.
        others: Numbers of Keras tensors that are wanted.

    Raises:
        ParityError: If the Keras model has no graph, the mapping has names that the models do not have, the inputs do
            not fit, or the twin fails or is not on the CPU.
    """
    graph = keras_graph(keras_model) if before is None else before.graph
    modules = modules_by_layer(graph, torch_model, mapping)
    arrays = keras_inputs(keras_model, x)
    tensors = twin_inputs(torch_model, arrays, torch_x)
    held = held_modules(modules)
    if before is None:
        with unchanged(keras_model, torch_model, training):
            # How the twin is made up shows with a few examples; two, because in training one may be too few.
            calls, returned, _ = record(torch_model, [tensor[:2].clone() for tensor in tensors], held, keys=graph.keys)
        pairing, noise = pair(graph, calls, returned, modules), None
    else:
        calls, pairing, noise = before.calls, before.pairing, before.noise
    with unchanged(keras_model, torch_model, training):
        runner = _Runner(graph, calls, pairing, arrays, training, noise, keep, others)
        return runner.run(torch_model, tensors, held)


def keras_inputs(model: keras.Model, x: Inputs) -> list[np.ndarray]:
    """Return an array for each input of a Keras model, in the order of ``model.inputs`` and of its dtype.

    Raises:
        ParityError: If there are more or fewer, or one has another shape, no examples, or a number that is not finite.
    """
    wanted, struct = functional(model).inputs, functional(model)._inputs_struct
    if isinstance(x, Mapping):
        as_built = isinstance(struct, dict) and set(struct) <= set(x)
        missing = [] if as_built else [tensor.name for tensor in wanted if tensor.name not in x]
        if missing:
            raise ParityError(model.name, [f"no input {name}" for name in missing])
        x = {key: x[key] for key in struct} if as_built else [x[tensor.name] for tensor in wanted]
    arrays = [np.asarray(array) for array in ([x] if hasattr(x, "shape") else tree.flatten(x))]
    if len(arrays) != len(wanted):
        raise ParityError(model.name, [f"inputs: {len(wanted)} expected, {len(arrays)} found"])
    pairs = list(zip(wanted, arrays, strict=True))
    faults = [f"input {tensor.name} {fault}" for tensor, array in pairs for fault in _input_faults(tensor, array)]
    if faults:
        raise ParityError(model.name, faults)
    return [np.asarray(array, tensor.dtype) for tensor, array in pairs]


def _input_faults(tensor: Any, array: np.ndarray) -> Iterator[str]:
    due = tuple(tensor.shape)[1:]
    if array.dtype.kind not in "fiub":
        yield f"has no numbers, but {array.dtype}"
    elif array.ndim != 1 + len(due) or any(
        want not in (None, size) for want, size in zip(due, array.shape[1:], strict=True)
    ):
        yield f"has the shape {array.shape}, not {(None, *due)}"
    elif array.size == 0:
        yield "is empty: nothing could differ"
    elif not np.isfinite(array).all():
        yield "has numbers that are not finite: what is computed from them could not differ"


def twin_inputs(model: nn.Module, arrays: Sequence[np.ndarray], given: TwinInputs = None) -> list[Tensor]:
    """Return the inputs of a twin: channels at axis 1, and of the twin's dtype. They may be overwritten.

    Args:
        model: The twin.
        arrays: An array for each input of the Keras model; with three axes or more, the last is that of the channels.
        given: The inputs, if they are others than these.

    Raises:
        ParityError: If the twin is not on the CPU.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(map(nn.parameter.is_lazy, tensors)):
        raise ParityError(type(model).__name__, ["it has lazy modules: run it once, so that they take on their shapes"])
    devices = {tensor.device.type for tensor in tensors} - {"cpu"}
    if devices:
        raise ParityError(type(model).__name__, [f"it is on {', '.join(sorted(devices))}; move it to the CPU"])
    if given is not None:
        if not all(isinstance(tensor, Tensor) for tensor in given):
            raise ParityError(type(model).__name__, ["torch_x must be a tensor, or a list of tensors"])
        return [tensor.detach().clone() for tensor in ([given] if isinstance(given, Tensor) else given)]
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    tensors = []
    for array in arrays:
        tensor = torch_input(array) if array.ndim > 2 else torch.from_numpy(array.copy())
        tensors.append(tensor.to(dtype) if tensor.is_floating_point() and dtype is not None else tensor)
    return tensors


def modules_by_layer(graph: Graph, torch_model: nn.Module, mapping: pd.DataFrame) -> dict[int, list[nn.Module]]:
    """Return the modules that hold a layer's weights, by the identity of the layer, in the order of the weights.

    Raises:
        ParityError: If the mapping has other columns, or a name that a model does not have.
    """
    if not isinstance(torch_model, nn.Module):
        raise ParityError(type(torch_model).__name__, ["it is no torch.nn.Module"])
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
    named = dict(torch_model.named_modules(remove_duplicate=False))
    owner = {path: named[_module_of(name)] for path, name in rows.values if path}
    modules: dict[int, list[nn.Module]] = defaultdict(list)
    layers_of: dict[int, set[int]] = defaultdict(set)
    for step in graph.steps:
        for weight in getattr(step.layer, "weights", []):
            module = owner.get(weight.path)
            if module is not None and all(module is not other for other in modules[id(step.layer)]):
                modules[id(step.layer)].append(module)
                layers_of[id(module)].add(id(step.layer))
    for step in graph.steps:
        several = modules.get(id(step.layer), [])
        # A module that holds weights of other layers, too, itself or within, does more than this one.
        held_too = {layer for module in several for inner in module.modules() for layer in layers_of.get(id(inner), ())}
        # Nor does the twin of a layer made of layers, such as an attention, follow from where their weights are.
        parts = any(True for _ in getattr(step.layer, "_flatten_layers", list)()) and (
            len(several) > 1 or len(list(step.layer._flatten_layers())) > 1
        )
        if held_too - {id(step.layer)} or (parts and find_layout(step.layer) is None):
            modules.pop(id(step.layer), None)
    return dict(modules)


def _module_of(name: str) -> str:
    """Return the module of a tensor; a parametrization, such as weight_norm, is a module within it."""
    parts = name.split(".")
    return ".".join(parts[: parts.index("parametrizations") if "parametrizations" in parts else -1])


@contextmanager
def unchanged(keras_model: keras.Model, torch_model: nn.Module, training: bool = False) -> Iterator[None]:
    """Let both models run without their statistics, modes and attributes or PyTorch's random numbers being changed.

    Args:
        keras_model: The Keras model.
        torch_model: The twin.
        training: Put the twin into training mode, unless it is, except for modules whose output is random there.
    """
    buffers = [(buffer, buffer.clone()) for buffer in torch_model.buffers()]
    state = [(variable, variable.numpy()) for variable in keras_model.non_trainable_variables] if training else []
    losses = [(layer._losses, list(layer._losses)) for layer in keras_model._flatten_layers()]
    modules = list(torch_model.modules())
    modes = [module.training for module in modules]
    plain = [vars(module) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    holders = [*plain, *(v for attributes in plain for v in attributes.values() if isinstance(v, dict | list | set))]
    contents = [copy.copy(holder) for holder in holders]
    for attributes in plain:  # a hook on gradients wraps what its module takes and returns
        attributes["_backward_hooks"].clear()
        attributes["_backward_pre_hooks"].clear()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if training and not torch_model.training:
                torch_model.train()
            for module in modules if training else ():
                module.training = module.training and not isinstance(module, nn.modules.dropout._DropoutNd)
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for holder, content in zip(holders, contents, strict=True):
            holder.clear()
            (holder.extend if isinstance(holder, list) else holder.update)(content)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for variable, value in state:
            variable.assign(value)
        for collected, before in losses:
            collected[:] = before


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
        noise: dict[int, float] | None,
        keep: str | None,
        others: Collection[int],
    ) -> None:
        self.graph = graph
        self.training = training
        self.walk = walk(graph, x, training, shaken_tensor if noise is None else None)
        self.noise = noise
        self.others = others
        self.wanted = next((index for index, step in enumerate(graph.steps) if step.name == keep), None)
        self.run_ = Run(graph, calls, pairing, {}, {}, {}, {}, {}, {}, {}, {}, {})
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
        calls, keys = self.run_.calls, self.graph.keys
        _, _, outputs = record(torch_model, inputs, held, self.watch, not self.training, expected=calls, keys=keys)
        self.watch(len(calls), "in", outputs)
        while self.advance():
            pass
        self.settle_misfits()
        return self.run_

    def settle_misfits(self) -> None:
        """Take what has no shape to compare as not seen where all layers that take it are right all the same.

        A twin may merge two axes into one, or return more from a module than it uses.
        """
        taken, made, steps = self.run_.taken, self.run_.made, self.graph.steps
        takers: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for index, numbers in enumerate([*(step.inputs for step in steps), self.graph.outputs]):
            for slot, number in enumerate(numbers):
                takers[number].append((index, slot))

        def right(index: int) -> bool:
            seen = [made[number] for number in steps[index].outputs if number in made] if index < len(steps) else []
            return bool(seen) and all(one.agrees for one in seen)

        for number in sorted(made, reverse=True):  # of several in a row, the last first
            # What a layer without a twin returns is looked for in what the next takes, which may be a part of that one.
            guessed = number in self.run_.pairing.seen and not made[number].agrees
            if made[number].way == _MISFIT or guessed:
                takes = [taken[taker] for taker in takers[number] if taker in taken]
                same = [seen for seen in takes if seen.agrees and seen.way not in _BORDERS]
                if same:
                    made[number] = same[0]
                elif all(right(index) for index, _ in takers[number]):
                    del made[number]
        for index, slot in list(taken):
            if taken[index, slot].way == _MISFIT and right(index):
                del taken[index, slot]

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
            follow_order(step, inputs, outputs, self.run_.flattened)
        return True

    def note(self, number: int, value: Value) -> None:
        tensor = as_tensor(value.exact)
        self.run_.shapes[number] = tuple(tensor.shape)
        known = self.noise is not None
        self.run_.noise[number] = self.noise[number] if known else noise_of(tensor, as_tensor(value.shaken))
        if number in self.others:
            self.run_.others[number] = tensor
        if self.pending[number]:
            self.values[number] = tensor

    def compare(
        self, number: int, twin: Tensor, when: str, taker: tuple[int, int] | None, module: nn.Module | None
    ) -> None:
        value = self.values[number]
        # What one layer returns the next takes; the version tells whether the tensor was overwritten in between.
        known = -1 if twin.is_inference() else number_of(twin)
        key = (number, known, twin._version if known >= 0 else 0)
        best = self.agreed.get(key)
        if best is None:
            best = self.closest(number, twin, module, window=when == "in")
            if best.agrees and known >= 0:
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
            room = sum(tensor.numel() for tensor, _ in self.run_.kept.values()) + value.numel() <= KEPT
            if wanted or (not best.agrees and room and self.came_right(number)):
                self.run_.kept[number] = (value, twin.clone())

    def closest(self, number: int, twin: Tensor, module: nn.Module | None, window: bool) -> Seen:
        """Compare a Keras tensor and the twin's in each way that one can be laid over the other; return the best."""
        within = TIMES_NOISE * self.run_.noise[number]
        best = Seen(inf, within, _MISFIT, tuple(twin.shape))
        for view, candidate, way in views(self.values[number], twin, module, self.run_.flattened.get(number), window):
            difference = distance(view, candidate)
            if best.way == _MISFIT or difference < best.difference:
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


def noise_of(exact: Tensor, shaken: Tensor) -> float:
    """Return the rounding noise to expect in a tensor: its distance from one computed with other rounding errors.

    It is at the least one unit of rounding of the largest element, should the draw be lucky.
    """
    if not exact.is_floating_point():
        return 0.0
    difference, size = largest(exact - shaken), largest(exact)
    if not isfinite(difference) or not isfinite(size):
        finite = exact.isfinite() & shaken.isfinite()
        difference, size = largest((exact - shaken)[finite]), largest(exact[finite])
    return max(difference, torch.finfo(exact.dtype).eps * size)


def follow_order(
    step: Step, inputs: Sequence[Value], outputs: Sequence[Value], flattened: dict[int, tuple[int, ...]]
) -> None:
    """Enter the outputs of a step that hold flattened features, with the shape that they were flattened from.

    Args:
        step: The step. Features keep their order up to the first Dense layer, which mixes them.
        inputs: What it takes.
        outputs: What it returns.
        flattened: By number of a tensor: the shape (*spatial, channels).
    """
    if len(step.inputs) != 1 or len(step.outputs) != 1:
        return
    shape, result = tuple(inputs[0].exact.shape)[1:], tuple(outputs[0].exact.shape)[1:]
    mixes = isinstance(step.layer, keras.layers.Dense) and not step.is_activation
    if isinstance(step.layer, keras.layers.Flatten):
        if len(shape) > 1:
            flattened[step.outputs[0]] = shape
    elif step.inputs[0] in flattened and not mixes and result == (prod(flattened[step.inputs[0]]),):
        flattened[step.outputs[0]] = flattened[step.inputs[0]]


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
        if value.ndim == 3 and value.shape == twin.transpose(0, 1).shape:
            yield value, twin.transpose(0, 1), ""  # time before examples
    elif value.shape == twin.shape:
        yield value, twin, ""
        if flattened and value.shape[1] == prod(flattened):
            *spatial, channels = flattened
            yield (
                value,
                twin.unflatten(1, (channels, *spatial)).movedim(1, -1).flatten(1),
                CHANNELS_FIRST_FEATURES,
            )
    elif value.numel() == twin.numel() and value.shape[:1] == twin.shape[:1]:
        plain = [size for size in value.shape[1:] if size > 1]
        if plain == [size for size in twin.shape[1:] if size > 1]:
            yield value.flatten(), twin.flatten(), ""
        elif twin.ndim == 2 < value.ndim:
            yield value.flatten(1), twin, "flattened"
            yield value.movedim(-1, 1).flatten(1), twin, CHANNELS_FIRST_FEATURES
        elif value.ndim == 2 < twin.ndim:
            yield value, twin.movedim(1, -1).flatten(1), "not flattened"
            yield value, twin.flatten(1), "not flattened"
        else:
            yield value.flatten(1), twin.movedim(1, -1).flatten(1), ""
            yield value.flatten(1), twin.flatten(1), ""
    if value.ndim > 1 and twin.ndim > 1 and value.shape[0] != twin.shape[0]:
        yield from _other_batches(value, twin, module, flattened)


def _other_batches(
    value: Tensor, twin: Tensor, module: nn.Module | None, flattened: tuple[int, ...] | None
) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield ways to lay over one another what has as many examples as steps of time, or as calls, in the twin."""
    for axes in range(2, value.ndim):
        if prod(value.shape[:axes]) == twin.shape[0]:
            yield from views(value.flatten(0, axes - 1), twin, module, None)
    calls = twin.shape[0] / value.shape[0]
    if calls in (2, 3, 4) and twin.shape[1:].numel() == value.shape[1:].numel():
        for part in twin.split(value.shape[0]):
            yield from views(value, part, module, flattened)


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
        yield (value, part, _BORDERS[0]) if large is view else (part, view, _BORDERS[1])


def as_tensor(value: Any) -> Tensor:
    """Return a Keras tensor as a PyTorch tensor on the CPU, without a copy where there can be none."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if keras.backend.backend() == "tensorflow" and "CPU" in value.device:
        return torch.from_dlpack(value)
    return torch.from_numpy(np.array(value))


def distance(value: Tensor, twin: Tensor) -> float:
    """Return the largest absolute difference of two tensors; infinity agrees with its like, NaN with nothing."""
    value, twin = (tensor if tensor.is_floating_point() else tensor.double() for tensor in (value, twin))
    difference = value - twin
    size = largest(difference)
    if isfinite(size):
        return size
    return largest(difference.masked_fill(value == twin, 0))


def largest(tensor: Tensor) -> float:
    """Return the largest absolute value of a tensor; infinity if it holds NaN."""
    if not tensor.numel():
        return 0.0
    low, high = (float(end) for end in torch.aminmax(tensor))
    return inf if np.isnan(low) else max(abs(low), abs(high))

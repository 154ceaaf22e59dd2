"""All that is known of a layer that diverges, and how it is gathered."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from types import MappingProxyType
from typing import NamedTuple

from parity.diagnosis.moved import fills_of, grouped_by_path, weights_of
from parity.diagnosis.needed import Look, differing, others_of, step_before, steps_behind, wanted_for
from parity.models.alignment import CHANNELS_FIRST_FEATURES, alignments, distance, is_constant, largest
from parity.models.keras_channels import as_in_keras, axes_in_keras, with_channels_last
from parity.models.keras_graph import Step, StepIndex, TensorId, run_step
from parity.models.rounding import TIMES_NOISE
from parity.tensors import as_tensor
from parity.tracing.port import Port
from parity.tracing.runs import Run
from parity.tracing.side_by_side import tensors_at
from parity.tracing.verdicts import Kind, Verdict
from parity.weights.fills import Fill

import keras
import torch
from torch import Tensor, nn


class Behind(NamedTuple):
    """A step behind a layer, for which the twin has no call, so that the layer's module may do it as well.

    Attributes:
        step: The step.
        taken: What it takes in Keras (batch, *spatial, channels).
        returned: What it returns in Keras, likewise.
        tolerance: The largest difference of that which rounding explains.
        axes: The axis on which Keras has the channels of what it takes, and of what it returns.
        fills: What each of its weights fills.
    """

    step: Step
    taken: Tensor
    returned: Tensor
    tolerance: float
    axes: tuple[int, int] = (-1, -1)
    fills: Mapping[str, Fill] = MappingProxyType({})

    def output_of(self, value: Tensor) -> Tensor | None:
        """Return what the step makes of another tensor (batch, *spatial, channels), None if it does not take it."""
        try:
            found = computed(self.step, [as_in_keras(value, self.axes[0])])
        except ValueError:
            return None
        return with_channels_last(found, self.axes[1])


Function = Callable[..., Tensor]
"""A function of a step's inputs, which are (batch, *spatial, channels), as is what it returns."""


class Evidence(NamedTuple):
    """All that is known of a layer that diverges. All Keras tensors in it are (batch, *spatial, channels).

    Attributes:
        run: The record of both models' run.
        at_step: The position of the step in the graph; the one after the last is the model's return.
        step: The step itself, None for the model's return.
        modules: The modules that are the layer's twin; empty if it is functions, or none was found.
        inputs: The inputs of the Keras layer.
        twin_inputs: The inputs of its twin, in the twin's order of axes; empty if they could not be seen.
        value: The Keras tensor that differs: the layer's output, or its input if the twin takes another input.
        twin: The twin's tensor in its place.
        tolerance: The largest difference that rounding explains.
        flattened: The shape that the features of the layer's input were flattened from, None if they were not; see
            ``follow_order``.
        channels_first: Whether the twin has those features channels first.
        weights: All Keras weights that can be moved, by path, in PyTorch's layout.
        places: Where in the twin each of the layer's weights is, by path: the module, and the tensor's name in it.
        others: Other tensors of the Keras model with the same shape as the layer's inputs, by name.
        fills: What each of the layer's weights fills, by the same names as ``places``.
        before: The step that returns the tensor that differs, if the twin takes another input. Else the step before, if
            nothing was seen of the only tensor between the two.
        inputs_before: The inputs of that step.
        axes_before: The axis on which Keras has the channels of each of them.
        axis: The axis on which Keras has the channels of ``value``.
        axes: Those of each input, if they are not the last of each.
        features_first: Whether Keras has flattened the features channels first, so that no twin has them otherwise.
        behind: The steps behind the layer that its module may do as well, in their order.
        onward: If not the layer's own output is seen in the twin, but only one behind it: takes a function, and returns
            what the Keras model has there if the layer computes this function. Then ``twin`` is the twin's tensor
            there, and only ``gives`` can be asked.
        composed: Whether the step stands for several operations in a row, of which it is the last.
    """

    run: Run
    at_step: StepIndex
    step: Step | None
    modules: list[nn.Module]
    inputs: list[Tensor]
    twin_inputs: list[Tensor]
    value: Tensor
    twin: Tensor
    tolerance: float
    flattened: tuple[int, ...] | None
    channels_first: bool
    weights: dict[str, Tensor]
    places: dict[str, tuple[nn.Module, str]]
    others: dict[str, Tensor]
    fills: Mapping[str, Fill] = MappingProxyType({})
    before: Step | None = None
    inputs_before: Sequence[Tensor] = ()
    axes_before: Sequence[int] = ()
    axis: int = -1
    axes: Sequence[int] = ()
    features_first: bool = False
    behind: tuple[Behind, ...] = ()
    onward: Callable[[Function], Tensor | None] | None = None
    composed: bool = False

    @property
    def reorderable(self) -> tuple[int, ...] | None:
        """Return the shape (*spatial, channels) of flattened features that the twin may have channels first."""
        return None if self.features_first else self.flattened

    def agrees(self, twin: Tensor | None) -> bool:
        """Tell whether a tensor in the twin's order of axes agrees with the Keras tensor, or with one behind it."""
        if twin is None:
            return False
        found = [(self.value, self.tolerance)]
        # If nothing passes a ReLU, all is 0, and that says nothing.
        found += [(one.returned, one.tolerance) for one in self.behind if not is_constant(one.returned)]
        return any(agree_within(value, twin, tolerance, self.reorderable) for value, tolerance in found)

    def explains(self, value: Tensor | None) -> bool:
        """Tell whether a tensor (batch, *spatial, channels), or what steps behind make of it, is what the twin has."""
        if value is None:
            return False
        if agree_within(value, self.twin, self.tolerance, window=True):
            return True
        for one in self.behind:
            value = one.output_of(value)
            if value is None:
                break
            if not is_constant(value) and agree_within(value, self.twin, one.tolerance, window=True):
                return True
        return False

    def fills_by_path(self) -> dict[str, list[Fill]]:
        """Return what each of the layer's weights fills, by its path."""
        return grouped_by_path(self.fills)

    def explains_in_keras(self, value: Tensor | None) -> bool:
        """Tell whether a tensor in Keras's order of axes agrees with the twin's tensor."""
        return value is not None and self.explains(with_channels_last(value, self.axis))

    def inputs_in_keras(self, inputs: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the layer's inputs, or others in their place, in Keras's order of axes."""
        given = self.inputs if inputs is None else inputs
        return [as_in_keras(x, axis) for x, axis in zip(given, self.axes or [-1] * len(given), strict=True)]

    def axes_of_value(self) -> list[int]:
        """Return for each axis of ``value`` which axis it is in Keras."""
        return axes_in_keras(self.value.ndim, self.axis)

    def axes_of_input(self) -> list[int]:
        """Return for each axis of the first input which axis it is in Keras."""
        return axes_in_keras(self.inputs[0].ndim, self.axes[0] if self.axes else -1)

    def gives(self, function: Function) -> bool:
        """Tell whether a function, in place of what the Keras layer computes, gives what the twin has."""
        if self.onward is not None:
            return self.explains(self.onward(function))
        value = result_of(function, self.inputs)
        if value is None:
            return False
        # The larger the numbers, the larger their rounding errors.
        growth = largest(self.twin) / max(largest(self.value), 1e-30)
        larger = self.tolerance * max(1.0, growth if isfinite(growth) else 1.0)
        return agree_within(value, self.twin, larger, window=True) or self.explains(value)

    def gives_in_keras(self, function: Function) -> bool:
        """Tell the same of a function that takes and returns tensors in Keras's order of axes."""
        return self.gives(lambda *xs: with_channels_last(function(*self.inputs_in_keras(xs)), self.axis))

    def value_in_keras(self) -> Tensor:
        """Return ``value`` in Keras's order of axes."""
        return as_in_keras(self.value, self.axis)

    def weights_of_layer(self) -> dict[str, Tensor]:
        """Return the layer's weights in PyTorch's layout by their short names, such as "kernel"."""
        return {short_name(path): weight for path, weight in self.weights.items() if path in self.places}


def short_name(path: str) -> str:
    """Return the name of a weight without the path of its layer."""
    return path.rpartition("/")[2]


def copied(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Return copies of modules, on which repairs can be tried.

    A tensor that a module computes from others, such as the weight of ``torch.nn.utils.weight_norm``, is copied as its
    values: PyTorch does not copy such a one together with its gradient.
    """
    held = [value for module in modules for inner in module.modules() for value in vars(inner).values()]
    derived = [value for value in held if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(list(modules), {id(tensor): tensor.detach().clone() for tensor in derived})


def computed(step: Step, inputs: Sequence[Tensor]) -> Tensor:
    """Return the first output of a step of the Keras model, with its inputs in Keras's order of axes.

    Raises:
        ValueError: If the step does not take these inputs.
    """
    try:
        return as_tensor(run_step(step, [keras.ops.convert_to_tensor(x.numpy()) for x in inputs])[0])
    except Exception as error:  # each backend of Keras raises errors of its own
        raise ValueError(
            f"{step.name} does not take inputs of the shapes {[tuple(x.shape) for x in inputs]}"
        ) from error


def result_of(function: Function, inputs: Sequence[Tensor]) -> Tensor | None:
    """Return what a function makes of tensors; None if it cannot take them."""
    try:
        return function(*inputs)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


def run_modules(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Tensor | None:
    """Return the output of modules that run one after the other on inputs of the twin; None if they fail."""
    if not modules or not inputs:
        return None
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x = modules[0](*(tensor.clone() for tensor in inputs))
            for module in modules[1:]:
                x = module(x)
            return x if isinstance(x, Tensor) else None
    except (RuntimeError, ValueError, IndexError, TypeError):  # a module may want more than it is given
        return None


def agree_within(
    value: Tensor, twin: Tensor, tolerance: float, flattened: tuple[int, ...] | None = None, window: bool = False
) -> bool:
    """Tell whether a Keras tensor and the twin's agree in one of their ``alignments``."""
    aligned = alignments(value, twin, None, flattened, window)
    return any(distance(keras_value, twin_value) <= tolerance for keras_value, twin_value, _ in aligned)


def gather(port: Port, run: Run, verdict: Verdict, look: Look | None = None) -> Evidence:
    """Gather what is known of the layer that diverges. Both models run again as far as that layer.

    Args:
        port: The two models.
        run: The record of their run.
        verdict: The verdict on the layer, or on the output of the model, that diverges first.
        look: Returns the tensors around the layer; if not given, these are what the twin takes and returns.
    """
    index, diverges = verdict.step, verdict.kind == Kind.DIVERGES
    step = run.graph.steps[index] if index < len(run.graph.steps) else None
    number, slot = differing(run, verdict)
    others = others_of(run, verdict)
    before = step_before(run, verdict)
    behind = steps_behind(run, index) if diverges else ()
    tensors = (look or partial(tensors_at, port, run))(index, wanted_for(run, verdict))
    layer_input = number if step is None or not diverges else step.inputs[0]
    compared = run.inputs.get((index, 0)) or run.outputs.get(layer_input)
    weights, places = weights_of(port, step)
    calls = [run.calls[call] for call in dict.fromkeys(run.pairing.twins.get(index, ()))]
    in_keras = tensors.keras
    axis = {n: run.channels.axis(n, step, tensor.ndim) for n, tensor in in_keras.items()}
    last = {n: with_channels_last(tensor, axis[n]) for n, tensor in in_keras.items()}
    modules = list({id(call.module): call.module for call in calls if call.module is not None}.values())
    return Evidence(
        run=run,
        at_step=index,
        step=step,
        modules=modules,
        inputs=[last[input_number] for input_number in step.inputs] if step is not None else [],
        twin_inputs=[twin for _, twin in sorted(tensors.inputs.items())] if step is not None else [],
        value=last[number],
        twin=tensors.outputs[number] if diverges else tensors.seen[slot],
        tolerance=TIMES_NOISE * run.noise[number],
        flattened=run.flattened.get(layer_input),
        channels_first=compared is not None and compared.note == CHANNELS_FIRST_FEATURES,
        weights=weights,
        places=places,
        fills=fills_of(port, step),
        before=before,
        inputs_before=[last[taken] for taken in before.inputs] if before is not None else [],
        axes_before=[axis[taken] for taken in before.inputs] if before is not None else [],
        others={name: last[other] for other, name in others.items()},
        axes=[axis[input_number] for input_number in step.inputs] if step is not None else [],
        axis=axis[number],
        features_first=layer_input in run.channels.features_first,
        behind=tuple(_as_behind(run, in_keras, later)._replace(fills=fills_of(port, later)) for later in behind),
    )


def _as_behind(run: Run, in_keras: Mapping[TensorId, Tensor], step: Step) -> Behind:
    numbers = step.inputs[0], step.outputs[0]
    axes = [run.channels.axis(number, step, in_keras[number].ndim) for number in numbers]
    taken, returned = (with_channels_last(in_keras[n], axis) for n, axis in zip(numbers, axes, strict=True))
    return Behind(step, taken, returned, TIMES_NOISE * run.noise[numbers[1]], (axes[0], axes[1]))

"""The record of both models' run side by side: what was compared, and what was found."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from parity.models.keras_channels import CHANNELS_LAST, Channels
from parity.models.keras_graph import Graph, StepIndex, TensorId
from parity.models.torch_calls import Call
from parity.tracing.pairing import Pairing, Spot

from torch import Tensor

MISFIT = "shapes do not fit"


class Comparison(NamedTuple):
    """What was found when a Keras tensor was compared with a tensor of the twin.

    Attributes:
        difference: The largest absolute difference of the aligned tensors; infinite if they cannot be aligned.
        tolerance: The largest difference that rounding explains.
        note: How they were aligned, if it took more than moving the axis of the channels.
        shape: The shape of the twin's tensor.
        spot: Where in the twin that tensor is seen.
    """

    difference: float
    tolerance: float
    note: str
    shape: tuple[int, ...]
    spot: Spot

    @property
    def agrees(self) -> bool:
        """Tell whether rounding explains the difference."""
        return self.difference <= self.tolerance


class Run(NamedTuple):
    """The record of both models' run.

    The step after the last stands for the model's return: its inputs are the model's outputs.

    Attributes:
        graph: The Keras model.
        calls: The twin's calls.
        pairing: Which calls are the twin of which step.
        training: Whether both ran in training mode.
        inputs: The comparison of each input of a step with what the step's twin takes, by step and slot.
        outputs: The comparison of each Keras tensor with what the twin returns in its place. If the twin has no such
            call, with what the tensor's consumers take; of several consumers, the nearest.
        shapes: The shape of each Keras tensor, with Keras's order of axes.
        flattened: For each Keras tensor that holds flattened features: the shape before, as ``follow_order`` has it.
        noise: The rounding noise to expect in each Keras tensor.
        stored: The Keras tensor (batch, *spatial, channels) and the twin's for outputs that diverge, as long as there
            was room for them.
        returned: Each output of the model (batch, *spatial, channels), and the twin's, by slot.
        channels: Where the Keras tensors have their channels.
        covers: The steps behind a step that its twin does as well, one module for all of them, by the first step.
        forced: Keras tensors that differ in the twin, and that it was given in their place, so that what is behind them
            takes the right numbers. See ``parity.tracing.alone``.
    """

    graph: Graph
    calls: list[Call]
    pairing: Pairing
    training: bool
    inputs: Mapping[tuple[StepIndex, int], Comparison]
    outputs: Mapping[TensorId, Comparison]
    shapes: Mapping[TensorId, tuple[int, ...]]
    flattened: Mapping[TensorId, tuple[int, ...]]
    noise: Mapping[TensorId, float]
    stored: Mapping[TensorId, tuple[Tensor, Tensor]]
    returned: Mapping[int, tuple[Tensor, Tensor]]
    channels: Channels = CHANNELS_LAST
    covers: Mapping[StepIndex, tuple[StepIndex, ...]] = MappingProxyType({})
    forced: frozenset[TensorId] = frozenset()

    def features(self, number: TensorId) -> tuple[int, ...] | None:
        """Return the shape (*spatial, channels) that a tensor was flattened from, if a twin may flatten otherwise."""
        return self.channels.features(number, self.flattened)

    @property
    def covered_by(self) -> dict[StepIndex, StepIndex]:
        """Return the step whose twin does a step as well, for each step that has no twin of its own for that reason."""
        return {index: first for first, several in self.covers.items() for index in several}

    def outputs_of(self, step: StepIndex) -> tuple[TensorId, ...]:
        """Return the tensors that the twin of a step returns: the step's outputs, or those of the last that it does."""
        return self.graph.steps[self.covers.get(step, (step,))[-1]].outputs

    def inputs_of(self, step: StepIndex) -> list[Comparison | None]:
        """Return the comparisons of a step's inputs, None for each input that was seen nowhere.

        Each is the comparison with what the step's twin takes, or else with what the calls before return. That is not
        what the twin takes if it was given the right numbers in its place.

        Args:
            step: A step of the graph, not the model's return.
        """
        numbers = self.graph.steps[step].inputs
        returned = {number: self.outputs.get(number) for number in numbers if number not in self.forced}
        return [self.inputs.get((step, slot)) or returned.get(number) for slot, number in enumerate(numbers)]

"""Both models as they ran side by side: what was compared, and what was found."""

from collections.abc import Mapping
from typing import NamedTuple

from parity.models.keras_graph import Graph, StepIndex, TensorId
from parity.models.torch_calls import Call
from parity.tracing.pairing import Pairing, Spot

from torch import Tensor

MISFIT = "shapes do not fit"


class Comparison(NamedTuple):
    """A Keras tensor beside what the twin has in its place.

    Attributes:
        difference: The largest absolute difference once the tensors are aligned; infinite if they cannot be.
        tolerance: The largest difference that rounding explains.
        note: How they were aligned, if it took more than moving the axis of the channels.
        shape: The shape of the twin's tensor.
        spot: Where in the twin it is.
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
    """Both models as they ran.

    The step after the last stands for the model's return: its inputs are the model's outputs.

    Attributes:
        graph: The Keras model.
        calls: What the twin called.
        pairing: Which call is which layer's.
        training: Whether both ran as in training.
        inputs: For a step and the position of one of its inputs: that input as the step's twin takes it.
        outputs: For a Keras tensor: what the twin returns in its place. Where the twin has no such call, what the
            consumers of the tensor take; of several the nearest.
        shapes: The shape of each Keras tensor.
        flattened: For a Keras tensor that holds flattened features: the shape (*spatial, channels) before.
        noise: The rounding noise to expect in each Keras tensor.
        stored: Of layers that diverge, as far as there was room: the Keras tensor and the twin's.
        returned: By position among the model's outputs: the output and the twin's.
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

    def inputs_of(self, step: StepIndex) -> list[Comparison | None]:
        """Return what was seen of a step's inputs: as its twin takes them, else as the twin's other calls return them.

        Args:
            step: A step of the graph, not the model's return.
        """
        numbers = self.graph.steps[step].inputs
        return [self.inputs.get((step, slot)) or self.outputs.get(number) for slot, number in enumerate(numbers)]

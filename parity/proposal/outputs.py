"""What the Keras layers that become modules return, to go on with it where the twin returns something else."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from parity.models.keras_channels import channels_of, with_channels_last
from parity.models.keras_graph import Graph, TensorId
from parity.models.keras_values import walk
from parity.proposal.layers import tolerated
from parity.proposal.parts import RECURRENT, Part

import keras
from torch import Tensor

# A module may also do what so many layers without weights behind it do, such as an activation.
_LAYERS_INSIDE = 2


class Output(NamedTuple):
    """What a part returns in one of its calls.

    Attributes:
        value: The tensor (batch, *spatial, channels), wherever Keras has its channels.
        tolerance: The largest difference that rounding explains.
    """

    value: Tensor
    tolerance: float


def keras_outputs(graph: Graph, arrays: Sequence[Any], parts: Mapping[str, Part]) -> dict[str, list[list[Output]]]:
    """Run the Keras model; return what each part returns in each of its calls.

    Of a layer with an activation it is the tensor before the activation. What one or two layers without weights make of
    it follows, since a module may do these as well. Of a layer that becomes several modules, only the last one's output
    is known, and that of a SeparableConv's first convolution. Of a recurrent layer it is known if it returns each step.
    """
    last = {id(part.top): part for part in parts.values() if part.top is not None}
    found: dict[str, list[list[Output]]] = defaultdict(list)
    behind: dict[TensorId, list[Output]] = {}
    channels = channels_of(graph)
    for step, _, outputs in walk(graph, arrays):
        if step is None or not step.outputs:
            continue
        if step.weights:
            part = last.get(id(step.layer))
            if part is None or (part.inside and not part.is_last) or not _returns_all_steps(part):
                continue
            of_call: list[Output] = []
            found[part.label].append(of_call)
        elif len(step.inputs) == 1 and len(behind.get(step.inputs[0], [])) in range(1, 1 + _LAYERS_INSIDE):
            of_call = behind[step.inputs[0]]
        else:
            continue
        value, tolerance = tolerated(outputs[0])
        axis = channels.axis(step.outputs[0], step, value.ndim)
        of_call.append(Output(with_channels_last(value, axis), tolerance))
        behind[step.outputs[0]] = of_call
    for label, part in parts.items():
        pointwise = parts.get(f"{label.removesuffix('/depthwise')}/pointwise")
        if label not in found and pointwise is not None and pointwise.layer is part.layer:
            found[label] = [[Output(taken.value, taken.tolerance)] for taken in pointwise.inputs]
    return dict(found)


def _returns_all_steps(part: Part) -> bool:
    """Tell whether a part is no recurrent one, or returns what the first output of its module holds."""
    if part.kind != RECURRENT:
        return True
    layer: Any = part.top
    plain = getattr(layer, "merge_mode", "concat") == "concat" and not getattr(layer, "go_backwards", False)
    whole = len(part.owners) == 1 and (len(part.owners[0]) == 1 or isinstance(layer, keras.layers.Bidirectional))
    return whole and layer.return_sequences and plain

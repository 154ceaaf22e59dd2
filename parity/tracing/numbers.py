"""Find the twins of layers without modules by their numbers, where the order and the kind of the calls mislead.

A twin may group functions otherwise than the Keras model. As soon as a mistake makes the numbers differ, it is no
longer clear which of them belong together. What comes before the mistake still has the right numbers.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

from parity.errors import ParityError
from parity.models.alignment import alignments, distance
from parity.models.inputs import unchanged
from parity.models.keras_channels import with_channels_last
from parity.models.keras_graph import StepIndex
from parity.models.keras_values import walk
from parity.models.rounding import TIMES_NOISE
from parity.models.torch_calls import Watch, record
from parity.tensors import as_tensor
from parity.tracing.port import Port
from parity.tracing.runs import Run

from torch import Tensor

# What calls return is stored: at most this many numbers.
_STORED = 2**22
# So many examples tell as well as many. In training mode statistics of all of them go into every number.
_FEW = 2
# So many steps behind the first that diverges are looked for, too.
_BEYOND = 8
# The least share of a tensor's spread that rounding must leave, or else much would agree with it by chance.
_ROUGH = 1e-2


class _Fingerprint(NamedTuple):
    """What can be told of a tensor whatever the order of its axes.

    Attributes:
        size: How many numbers it has.
        mean: Their mean.
        root: The root of their mean square.
        low: The least.
        high: The largest.
    """

    size: int
    mean: float
    root: float
    low: float
    high: float


def found_by_numbers(port: Port, run: Run, first: StepIndex) -> dict[StepIndex, int]:
    """Return the calls that return what layers without modules return, where the record has another call or none.

    Both models run again with two examples, or in training mode with all of them.

    Args:
        port: The two models.
        run: The record of their run.
        first: The first step that diverges. Those before it are looked for, and a few behind it.
    """
    steps = run.graph.steps
    wanted = {index for index in range(min(first + _BEYOND, len(steps))) if _is_doubtful(run, index)}
    if not wanted:
        return {}
    arrays, tensors = [array[:_FEW] for array in port.inputs], [x[:_FEW] for x in port.twin_inputs]
    few = port if run.training else port._replace(inputs=arrays, twin_inputs=tensors)
    with unchanged(port.keras_model, port.twin, run.training):
        try:
            seen = _returned_by_calls(few, run)
        except ParityError:  # a twin that was exported for another number of examples
            few, seen = port, _returned_by_calls(port, run)
        found: dict[StepIndex, int] = {}
        last = max(wanted)
        for index, (_, inputs, outputs) in enumerate(walk(few.graph, few.inputs, run.training, perturb=None), -1):
            if index in wanted and outputs:
                value = as_tensor(outputs[0].exact)
                tolerance = TIMES_NOISE * run.noise[steps[index].outputs[0]]
                # What returns the numbers that it takes, such as Flatten, is seen where its input is.
                same = any(_are_same(_fingerprint(value), _fingerprint(as_tensor(x.exact)), tolerance) for x in inputs)
                axes = run.channels.possible(steps[index].outputs[0], steps[index], value.ndim)
                values = [with_channels_last(value, axis) for axis in axes]
                call = None if same else _call_with(values, tolerance, seen)
                if call is not None:
                    found[index] = call
                    del seen[call]
            if index == last:
                break
    return {index: call for index, call in found.items() if run.pairing.twins.get(index, (-1, -1))[1] != call}


def _is_doubtful(run: Run, index: StepIndex) -> bool:
    """Tell whether a step has no module that holds its weights, and no call whose output agrees with its own."""
    step = run.graph.steps[index]
    number = step.outputs[0]
    compared = run.outputs.get(number)
    by_its_call = compared is not None and compared.agrees and number in run.pairing.outputs
    has_module = bool(step.weights) and index in run.pairing.twins
    return not has_module and not by_its_call and index not in run.covered_by


def _returned_by_calls(port: Port, run: Run) -> dict[int, tuple[Tensor, _Fingerprint]]:
    """Return what each call returns first that is not of a module with weights, as long as there is room."""
    holders = {id(module) for module in port.modules_with_weights}
    seen: dict[int, tuple[Tensor, _Fingerprint]] = {}
    room = _STORED

    def watch(call: int, when: str, tensors: list[Tensor]) -> None:
        nonlocal room
        free = call < len(run.calls) and id(run.calls[call].module) not in holders
        if when == "out" and free and tensors and tensors[0].is_floating_point() and tensors[0].numel() <= room:
            seen[call] = tensors[0].clone(), _fingerprint(tensors[0])
            room -= tensors[0].numel()

    again = Watch(run.calls, watch, dropout=not run.training)
    record(port.twin, [tensor.clone() for tensor in port.twin_inputs], port.modules_with_weights, run.graph.keys, again)
    return seen


def _call_with(
    values: Sequence[Tensor], tolerance: float, seen: Mapping[int, tuple[Tensor, _Fingerprint]]
) -> int | None:
    """Return the first call that returns a Keras tensor, None if none does or much would agree with it by chance.

    Args:
        values: The tensor with the channels moved to the end, from each axis on which they may be.
        tolerance: The largest difference that rounding explains.
        seen: What calls return.
    """
    wanted = _fingerprint(values[0])
    if wanted.size < 2 or not tolerance < _ROUGH * (wanted.high - wanted.low):
        return None
    for call, (twin, found) in seen.items():
        if not _are_same(wanted, found, tolerance):
            continue
        aligned = (one for value in values for one in alignments(value, twin))
        if any(distance(one.value, one.twin) <= tolerance for one in aligned):
            return call
    return None


def _fingerprint(tensor: Tensor) -> _Fingerprint:
    if not tensor.numel():
        return _Fingerprint(0, 0.0, 0.0, 0.0, 0.0)
    numbers = tensor.double()
    low, high = (float(end) for end in numbers.aminmax())
    return _Fingerprint(tensor.numel(), float(numbers.mean()), sqrt(float(numbers.square().mean())), low, high)


def _are_same(a: _Fingerprint, b: _Fingerprint, tolerance: float) -> bool:
    """Tell whether two tensors may have the same numbers in some order. No figure differs by more than the numbers."""
    return a.size == b.size and all(abs(one - other) <= tolerance for one, other in zip(a[1:], b[1:], strict=True))

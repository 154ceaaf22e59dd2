"""Mistakes that show in training only: in running statistics, dropout rates, frozen weights and gradients."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from math import inf, prod, sqrt
from typing import NamedTuple

from parity.models.alignment import alignments, largest
from parity.models.inputs import unchanged
from parity.models.keras_graph import Step, StepIndex, TensorId
from parity.models.keras_layers import RANDOM_IN_TRAINING
from parity.models.keras_values import walk
from parity.models.rounding import (
    TIMES_GRADIENT_NOISE,
    TIMES_NOISE,
    TIMES_NORM_OF_NOISE,
    TIMES_STATISTICS_NOISE,
    has_float32_constants,
)
from parity.models.torch_calls import Watch, record
from parity.tensors import as_tensor
from parity.tracing.gradients import KerasGradients, TwinGradients, keras_gradients, twin_gradients
from parity.tracing.port import Port
from parity.tracing.runs import Run
from parity.weights.fills import Fill

import keras
import torch
from torch import Tensor

# Gradients that differ are computed this many times more, with other inputs.
_RETRIALS = 3


class Fault(StrEnum):
    """A kind of mistake that shows in training only."""

    STATISTICS = "other running statistics"
    RATE = "another dropout rate"
    FROZEN = "frozen in one model only"
    GRADIENT = "another gradient"


class TrainingFault(NamedTuple):
    """What is wrong in training with a step of the Keras model whose outputs agree.

    Attributes:
        kind: The kind of mistake.
        detail: What is known of it, in a few words; may be empty.
    """

    kind: Fault
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else str(self.kind)


def training_faults(port: Port, run: Run) -> dict[StepIndex, TrainingFault]:
    """Do one training step in both models, without dropout, and compare the results. Neither model is changed.

    Args:
        port: The two models.
        run: The record of both models' run in training mode.

    Returns:
        What is wrong with steps of the Keras model. Gradients are compared where Keras runs on TensorFlow. Of several
        steps with another gradient it is the last in the data flow, because gradients go backwards.
    """
    before = {w.path: as_tensor(w).clone() for w in port.keras_model.non_trainable_variables}
    faults: dict[StepIndex, TrainingFault] = {}
    other_gradients = set(range(len(run.graph.steps)))
    # A gradient that differs by chance, as at the edge of a ReLU, does not differ each time.
    for trial in range(1 + _RETRIALS):
        if not other_gradients:
            break
        moved = port.moved(trial) if trial else port
        with unchanged(port.keras_model, port.twin, training=True):
            in_keras = keras_gradients(port.graph, moved.inputs, trial)
            if in_keras is None:
                _run_in_training(port, run)
                return _other_statistics(run, before) | _other_rates(run) | _frozen(port, None)
            in_twin = twin_gradients(moved, run, in_keras)
            if trial == 0:
                faults = _other_statistics(run, before) | _other_rates(run) | _frozen(port, in_keras)
        other_gradients &= _other_gradients(run, port.moves, in_keras, in_twin)
    # The layers before another output have other gradients because of it.
    different = {number for number, found in run.outputs.items() if not found.agrees}
    other_outputs = {index for index, step in enumerate(run.graph.steps) if different.intersection(step.outputs)}
    gradients = other_gradients.intersection(_last(run, other_gradients | other_outputs))
    return dict.fromkeys(gradients, TrainingFault(Fault.GRADIENT)) | faults


def faults_without_gradients(port: Port, run: Run, before: dict[str, Tensor]) -> dict[StepIndex, TrainingFault]:
    """Return what is wrong in training with steps of the Keras model, after both models have run in training mode.

    Args:
        port: The two models; their statistics are those after the run.
        run: The record of the run.
        before: Keras's variables that are not trained, as they were before it, by path.
    """
    return _other_statistics(run, before) | _other_rates(run) | _frozen(port, None)


def _run_in_training(port: Port, run: Run) -> None:
    """Run both models of a port once as in training, without gradients: their statistics are updated.

    Args:
        port: The two models; the twin is in training mode.
        run: The record of both models' run.
    """
    for _ in walk(port.graph, port.inputs, training=True, perturb=None):
        pass
    inputs = [tensor.clone() for tensor in port.twin_inputs]
    watch = Watch(run.calls, lambda call, when, tensors: None, dropout=False)
    record(port.twin, inputs, port.modules_with_weights, port.graph.keys, watch)


def _other_statistics(run: Run, before: dict[str, Tensor]) -> dict[StepIndex, TrainingFault]:
    wrong = [index for index in range(len(run.graph.steps)) if not _same_statistics(run, index, before)]
    return dict.fromkeys(wrong, TrainingFault(Fault.STATISTICS))


def _same_statistics(run: Run, index: StepIndex, before: dict[str, Tensor]) -> bool:
    layer = run.graph.steps[index].layer
    module = run.calls[run.pairing.twins[index][1]].module if index in run.pairing.twins else None
    running_mean, running_var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not isinstance(layer, keras.layers.BatchNormalization):
        return True
    if not isinstance(running_mean, Tensor) or not isinstance(running_var, Tensor):
        return True
    number = run.graph.steps[index].inputs[0]
    shape = run.shapes[number]
    count = prod(shape) // shape[layer.axis]
    calls = sum(step.layer is layer for step in run.graph.steps)
    flattened = run.features(number)
    for variable, buffer, n in (
        (layer.moving_mean, running_mean, inf),
        (layer.moving_variance, running_var, count),
    ):
        old, new = before[variable.path], as_tensor(variable).clone()
        # PyTorch keeps the unbiased variance, n / (n - 1) of Keras's. A port cannot help that: see notebook 12.
        changed = n > 1 and not torch.equal(new, old)
        expected = new + (new - layer.momentum**calls * old) / (n - 1) if changed else new
        tolerance = TIMES_NOISE * torch.finfo(buffer.dtype).eps * max(largest(expected), largest(old))
        tolerance += TIMES_STATISTICS_NOISE * run.noise[number] * max(1.0, largest(expected) ** 0.5)
        aligned = alignments(expected[None], buffer[None], None, flattened)
        if all(largest(value - twin) > tolerance for value, twin, _ in aligned):
            return False
    return True


def _other_rates(run: Run) -> dict[StepIndex, TrainingFault]:
    steps, twins = run.graph.steps, run.pairing.twins
    paired: set[int] = set()
    for index, calls in twins.items():
        if isinstance(steps[index].layer, RANDOM_IN_TRAINING):
            paired.update(calls)
    free = [call for number, call in enumerate(run.calls) if number not in paired]
    rates = [rate for call in free for rate in (call.rate, *call.rates_inside) if rate is not None]
    faults = {index: _other_rate(run, index, step, rates) for index, step in enumerate(steps)}
    return {index: fault for index, fault in faults.items() if fault is not None}


def _other_rate(run: Run, index: StepIndex, step: Step, unpaired: list[float]) -> TrainingFault | None:
    if not isinstance(step.layer, RANDOM_IN_TRAINING) or not getattr(step.layer, "rate", 0):
        return None
    expected = step.layer.rate
    rates = unpaired
    if index in run.pairing.twins:
        twin = run.calls[run.pairing.twins[index][1]]
        rates = [expected if twin.rate is None else twin.rate]
    if any(abs(rate - expected) <= 1e-6 for rate in rates):
        return None
    found = " or ".join(f"{rate:g}" for rate in dict.fromkeys(rates)) or "0 (no dropout)"
    return TrainingFault(Fault.RATE, f"rate is {found}, not {expected:g}")


def _frozen(port: Port, in_keras: KerasGradients | None) -> dict[StepIndex, TrainingFault]:
    if in_keras is None:
        weights = [weight for step in port.graph.steps for weight in getattr(step.layer, "trainable_weights", [])]
        trained_in_keras = {weight.path for weight in weights}
    else:
        trained_in_keras = {path for path, gradient in in_keras.weights.items() if gradient is not None}
    faults = {}
    keys, parameters = port.key_of, dict(port.twin.named_parameters())
    for index, step in enumerate(port.graph.steps):
        frozen: dict[str, list[str]] = {"Keras": [], "the twin": []}
        for weight in step.weights:
            parameter = parameters.get(keys.get(weight.path, ""))
            trained = weight.path in trained_in_keras
            if parameter is not None and trained != parameter.requires_grad:
                frozen["the twin" if trained else "Keras"].append(weight.name)
        details = [f"{' and '.join(names)} not trained in {where}" for where, names in frozen.items() if names]
        if details:
            faults[index] = TrainingFault(Fault.FROZEN, ", ".join(details))
    return faults


def _other_gradients(
    run: Run, moves: Mapping[str, list[Fill]], in_keras: KerasGradients, in_twin: TwinGradients
) -> set[StepIndex]:
    """Return the steps with another gradient, with respect to an output or a weight.

    A twin may compute a tensor twice, as in ``relu(x) + f(relu(x))``; then each copy has a part of the gradient. So the
    gradient of a tensor also counts as right if the gradients that follow from it are right: those of the step's
    weights, or else of the step's inputs.
    """
    noise_only = _noise_only(run, in_keras)
    right: dict[TensorId, bool | None] = dict.fromkeys(run.graph.inputs)  # None where nothing is known
    found: set[StepIndex] = set()
    coarse = any(map(has_float32_constants, run.graph.steps))
    for index, step in enumerate(run.graph.steps):
        by_outputs = [
            _same(in_keras.tensors[number], in_twin.tensors[number], run.features(number), coarse)
            for number in step.outputs
            # Of a tensor of zeros several gradients may be right: a maximum may select any of equal elements.
            if in_keras.sizes.get(number, 0) > 0
            and number in in_keras.tensors
            and number in in_twin.tensors
            and number not in noise_only
        ]
        following = [right[number] for number in step.inputs if right[number] is not None]
        by_weights = []
        for weight in step.weights if not noise_only.issuperset(step.outputs) else []:
            pair = in_keras.weights.get(weight.path)
            for fill in moves.get(weight.path, []) if pair is not None else []:
                # Other parameters of a module, such as the parts of a parametrization, have other gradients.
                if pair is None or fill.row.torch not in in_twin.weights:
                    continue
                before = in_keras.tensors.get(step.outputs[0], (torch.zeros(1),))[0]
                inputs = [in_keras.sizes.get(number, 1.0) for number in step.inputs]
                terms = float(before.abs().sum()) * max(1.0, *inputs)
                exact, perturbed = (fill.laid_out(gradient) for gradient in pair)
                whole = in_twin.weights[fill.row.torch]
                gradient = None if whole is None else fill.part_of(whole)
                by_weights.append(_same((exact, perturbed), gradient, run.features(step.inputs[0]), coarse, terms))
        known = by_weights or following
        agrees = all(by_weights) and (all(by_outputs) or (bool(known) and all(known)))
        right.update(dict.fromkeys(step.outputs, agrees if by_outputs or known else None))
        if not agrees and (by_outputs or by_weights):
            found.add(index)
    return found


def _noise_only(run: Run, in_keras: KerasGradients) -> set[TensorId]:
    """Return the tensors whose gradient is nothing but rounding errors.

    The mean of BatchNormalization's output does not depend on its input. So if only the mean is used, as in global
    average pooling of one example, the gradient with respect to the input cancels.
    """
    noise_only: set[TensorId] = set()
    consumers: dict[TensorId, list[tuple[TensorId, ...]]] = {number: [()] for number in run.graph.outputs}
    for step in reversed(run.graph.steps):
        for number in step.outputs:
            after = consumers.get(number, [])
            all_after = bool(after) and all(outputs and noise_only.issuperset(outputs) for outputs in after)
            if all_after or _cancels(number, after, in_keras):
                noise_only.add(number)
        for number in step.inputs:
            consumers.setdefault(number, []).append(step.outputs)
    return noise_only


def _cancels(number: TensorId, after: list[tuple[TensorId, ...]], in_keras: KerasGradients) -> bool:
    """Tell whether BatchNormalization is the only consumer of a tensor, and the terms of its gradient cancel.

    Args:
        number: The tensor.
        after: The outputs of each of its consumers.
        in_keras: The gradients.
    """
    known = in_keras.gains.keys() & in_keras.tensors.keys()
    if len(after) != 1 or not after[0] or number not in in_keras.tensors or not known.issuperset(after[0]):
        return False
    gradient = in_keras.tensors[number][0]
    terms = sum(in_keras.gains[output] * largest(in_keras.tensors[output][0]) for output in after[0])
    rounding = torch.finfo(gradient.dtype).eps * terms * sqrt(gradient.numel())
    return _norm(gradient) <= TIMES_GRADIENT_NOISE * rounding


def _last(run: Run, wrong: set[StepIndex]) -> Iterator[StepIndex]:
    """Yield the last steps with another gradient: those before them have other gradients because of these."""
    steps = run.graph.steps
    before: set[TensorId] = set()  # tensors from which a wrong step is reached
    for index in reversed(range(len(steps))):
        follows = bool(before & set(steps[index].outputs))
        if index in wrong and not follows:
            yield index
        if index in wrong or follows:
            before |= set(steps[index].inputs)


def _same(
    pair: tuple[Tensor, Tensor],
    twin: Tensor | None,
    flattened: tuple[int, ...] | None,
    coarse: bool,
    terms: float = 0.0,
) -> bool:
    """Tell whether two gradients agree, by the norm of their difference.

    Of n inputs of a ReLU, about n times the unit of rounding are so close to 0 that they may be above 0 in one model
    and below 0 in the other. Their gradients are quite different, and how many they are is chance. Together they change
    the norm by about the square root of the unit of rounding. The same goes for two nearly equal largest numbers.

    Args:
        pair: Keras's gradient, exact and perturbed.
        twin: The twin's gradient.
        flattened: The shape that the features were flattened from, if any: the twin may have them channels first.
        coarse: Whether the model has constants in float32, whatever its dtype.
        terms: The sum of the absolute values of the terms that were summed up.
    """
    exact, perturbed = pair
    eps = max(torch.finfo(dtype).eps for dtype in (exact.dtype, torch.float32 if coarse else exact.dtype))
    least = TIMES_GRADIENT_NOISE * eps * max(largest(exact), terms) * sqrt(exact.numel())
    tolerance = max(TIMES_NOISE * sqrt(eps) * _norm(exact), TIMES_NORM_OF_NOISE * _norm(exact - perturbed), least)
    if twin is None:
        return _norm(exact) <= tolerance
    aligned = alignments(exact, twin, window=True)
    if exact.ndim in (1, 2) and exact.shape == twin.shape:
        aligned = alignments(exact.reshape(-1, exact.shape[-1]), twin.reshape(-1, exact.shape[-1]), None, flattened)
    distances = (_norm(value - twin_value) for value, twin_value, _ in aligned)
    first = next(distances, None)  # None if the twin's has another shape, which shows in the outputs already
    return first is None or first <= tolerance or any(distance <= tolerance for distance in distances)


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())

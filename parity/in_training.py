"""What is right when a twin predicts and wrong when it trains: statistics, dropout, gradients."""

from collections.abc import Iterator
from math import inf, prod, sqrt

from parity.alongside import Run
from parity.arguments import Inputs, TwinInputs, held_modules, keras_inputs, modules_by_layer, twin_inputs, unchanged
from parity.gradients import KerasGradients, keras_gradients, twin_gradients
from parity.graph import RANDOM_IN_TRAINING, Step, has_float32_constants
from parity.layouts import find_layout
from parity.overlay import TIMES_NOISE, largest, views

import keras
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

STATISTICS = "other running statistics"
RATE = "another dropout rate"
FROZEN = "frozen in one model only"
GRADIENT = "another gradient"

# Gradients go through the whole model and back, and have more noise than one draw shows.
_TIMES_GRADIENT_NOISE = 8 * TIMES_NOISE
_RETRIALS = 3
# The norm of the noise of many numbers varies less than its largest does.
_TIMES_NORM_OF_NOISE = 3


def training_faults(
    run: Run,
    keras_model: keras.Model,
    torch_model: nn.Module,
    x: Inputs,
    mapping: pd.DataFrame,
    torch_x: TwinInputs = None,
) -> dict[int, str]:
    """Take one step of training in both models, without dropout, and compare what comes of it. Neither is changed.

    Args:
        run: Both models as they ran in training mode.
        keras_model: The Keras model.
        torch_model: The twin.
        x: The input of the Keras model.
        mapping: Which Keras weight fills which PyTorch tensor.
        torch_x: The twin's inputs, if they are not ``x`` with the channels moved to axis 1.

    Returns:
        By number of a step of the Keras model: what is wrong with it. Of steps with another gradient, the last in the
        data flow, as gradients go backwards.
    """
    arrays = keras_inputs(keras_model, x)
    held = held_modules(modules_by_layer(run.graph, torch_model, mapping))
    names = dict(mapping.fillna("").astype(str).values)
    before = {w.path: w.numpy() for w in keras_model.non_trainable_variables}
    faults: dict[int, str] = {}
    wrong = set(range(len(run.graph.steps)))
    # What differs by chance, as where a number is on the edge of a ReLU, does not differ each time.
    for trial in range(1 + _RETRIALS):
        if not wrong:
            break
        moved = arrays if trial == 0 or torch_x is not None else [_moved(array, trial) for array in arrays]
        with unchanged(keras_model, torch_model, training=True):
            ours = keras_gradients(run.graph, moved, trial)
            if ours is None:
                return {}
            theirs = twin_gradients(torch_model, twin_inputs(torch_model, moved, torch_x), held, run, ours)
            if trial == 0:
                faults = _other_statistics(run, before) | _other_rates(run) | _frozen(run, torch_model, names, ours)
        wrong &= _other_gradients(run, names, ours, *theirs)
    # Another output has another gradient before it.
    others = {at for at, s in enumerate(run.graph.steps) for n in s.outputs if n in run.made and not run.made[n].agrees}
    return dict.fromkeys(wrong.intersection(_last(run, wrong | others)), GRADIENT) | faults


def _moved(array: np.ndarray, seed: int) -> np.ndarray:
    """Return an input of which each real number is up to 5 % smaller or larger."""
    if array.dtype.kind != "f":
        return array
    factors = np.random.default_rng(seed).uniform(0.95, 1.05, array.shape)
    return (array * factors).astype(array.dtype)


def _other_statistics(run: Run, before: dict[str, np.ndarray]) -> dict[int, str]:
    return {index: STATISTICS for index in range(len(run.graph.steps)) if not _same_statistics(run, index, before)}


def _same_statistics(run: Run, index: int, before: dict[str, np.ndarray]) -> bool:
    layer = run.graph.steps[index].layer
    module = run.calls[run.pairing.twins[index][1]].module if index in run.pairing.twins else None
    if not isinstance(layer, keras.layers.BatchNormalization) or getattr(module, "running_var", None) is None:
        return True
    shape = run.shapes[run.graph.steps[index].inputs[0]]
    count = prod(shape) // shape[layer.axis]
    calls = sum(step.layer is layer for step in run.graph.steps)
    flattened = run.flattened.get(run.graph.steps[index].inputs[0])
    for variable, buffer, n in (
        (layer.moving_mean, module.running_mean, inf),
        (layer.moving_variance, module.running_var, count),
    ):
        old, new = (torch.from_numpy(value.copy()) for value in (before[variable.path], variable.numpy()))
        # PyTorch keeps the unbiased variance, n / (n - 1) of Keras's. A port cannot help that: see notebook 12.
        due = new + (new - layer.momentum**calls * old) / (n - 1) if n > 1 and not torch.equal(new, old) else new
        within = TIMES_NOISE * torch.finfo(buffer.dtype).eps * max(largest(due), largest(old))
        within += 4 * run.noise[run.graph.steps[index].inputs[0]] * max(1.0, largest(due) ** 0.5)
        ways = views(due[None], buffer[None], None, flattened)
        if all(largest(view - other) > within for view, other, _ in ways):
            return False
    return True


def _other_rates(run: Run) -> dict[int, str]:
    steps, twins = run.graph.steps, run.pairing.twins
    paired = {call for at, both in twins.items() if isinstance(steps[at].layer, RANDOM_IN_TRAINING) for call in both}
    free = [call for number, call in enumerate(run.calls) if number not in paired]
    rates = [rate for call in free for rate in (call.rate, *call.rates_inside) if rate is not None]
    return {index: fault for index, step in enumerate(steps) if (fault := _other_rate(run, index, step, rates))}


def _other_rate(run: Run, index: int, step: Step, unpaired: list[float]) -> str:
    if not isinstance(step.layer, RANDOM_IN_TRAINING) or not getattr(step.layer, "rate", 0):
        return ""
    twin = run.calls[run.pairing.twins[index][1]] if index in run.pairing.twins else None
    if twin is None:
        if any(abs(rate - step.layer.rate) <= 1e-6 for rate in unpaired):
            return ""
        theirs = " or ".join(f"{rate:g}" for rate in dict.fromkeys(unpaired)) or "no dropout"
        return f"{RATE}: {step.layer.rate:g} in Keras, {theirs} in the twin"
    if twin.rate is not None and abs(twin.rate - step.layer.rate) > 1e-6:
        return f"{RATE}: {step.layer.rate:g} in Keras, {twin.rate:g} in the twin"
    return ""


def _frozen(run: Run, model: nn.Module, names: dict[str, str], ours: KerasGradients) -> dict[int, str]:
    faults = {}
    parameters = dict(model.named_parameters())
    for index, step in enumerate(run.graph.steps):
        frozen: dict[str, list[str]] = {"Keras": [], "the twin": []}
        for weight in step.weights:
            parameter = parameters.get(names.get(weight.path, ""))
            trained = ours.weights.get(weight.path) is not None
            if parameter is not None and trained != parameter.requires_grad:
                frozen["the twin" if trained else "Keras"].append(weight.name)
        said = [f"{' and '.join(short)} not trained in {where}" for where, short in frozen.items() if short]
        if said:
            faults[index] = f"{FROZEN}: {', '.join(said)}"
    return faults


def _other_gradients(
    run: Run,
    names: dict[str, str],
    ours: KerasGradients,
    of_tensors: dict[int, Tensor | None],
    of_weights: dict[str, Tensor | None],
) -> set[int]:
    """Return the steps with another gradient, of what they return or of a weight.

    A twin may compute a tensor twice, as with ``relu(x) + f(relu(x))``, and each has a part of the gradient. So the
    gradient of a tensor is right if those are that follow from it: of the step's weights, or of what it takes.
    """
    lost = _lost(run, ours)
    right: dict[int, bool | None] = dict.fromkeys(run.graph.inputs)  # by number of a tensor; None if nothing is known
    found: set[int] = set()
    coarse = any(map(has_float32_constants, run.graph.steps))
    for index, step in enumerate(run.graph.steps):
        by_outputs = [
            _same(ours.tensors[number], of_tensors[number], run.flattened.get(number), coarse)
            for number in step.outputs
            # Where all is 0, a gradient may be one of several: which element is the largest of equals?
            if ours.sizes.get(number, 0) > 0 and number in ours.tensors and number in of_tensors and number not in lost
        ]
        following = [right[number] for number in step.inputs if right[number] is not None]
        by_weights = []
        for weight in step.weights if not lost.issuperset(step.outputs) else []:
            pair, key = ours.weights.get(weight.path), names.get(weight.path, "")
            place = (find_layout(step.layer) or {}).get(weight.name)
            # What else a module holds, such as the parts of a parametrization, has another gradient.
            if pair is None or place is None or key not in of_weights or key.split(".")[-1] != place.tensor:
                continue
            before = ours.tensors.get(step.outputs[0], (torch.zeros(1),))[0]
            terms = float(before.abs().sum()) * max(1.0, *(ours.sizes.get(number, 1.0) for number in step.inputs))
            moved = tuple(place.view(one) for one in pair)
            by_weights.append(_same(moved, of_weights[key], run.flattened.get(step.inputs[0]), coarse, terms))
        known = by_weights or following
        agrees = all(by_weights) and (all(by_outputs) or (bool(known) and all(known)))
        right.update(dict.fromkeys(step.outputs, agrees if by_outputs or known else None))
        if not agrees and (by_outputs or by_weights):
            found.add(index)
    return found


def _lost(run: Run, ours: KerasGradients) -> set[int]:
    """Return the numbers of tensors whose gradient is rounding errors only.

    What BatchNormalization returns has a mean that its input has no part in. Of what uses the mean alone, such as
    global average pooling of one example, the gradient cancels.
    """
    lost: set[int] = set()
    takers: dict[int, list[tuple[int, ...]]] = {number: [()] for number in run.graph.outputs}
    for step in reversed(run.graph.steps):
        for number in step.outputs:
            after = takers.get(number, [])
            gradient = ours.tensors.get(number, (None,))[0]
            if (
                len(after) == 1
                and after[0]
                and gradient is not None
                and set(after[0]) <= ours.gains.keys() & ours.tensors.keys()
            ):
                terms = sum(ours.gains[other] * largest(ours.tensors[other][0]) for other in after[0])
                eps = torch.finfo(gradient.dtype).eps
                if _norm(gradient) <= _TIMES_GRADIENT_NOISE * eps * terms * sqrt(gradient.numel()):
                    lost.add(number)
            if after and all(outputs and lost.issuperset(outputs) for outputs in after):
                lost.add(number)
        for number in step.inputs:
            takers.setdefault(number, []).append(step.outputs)
    return lost


def _last(run: Run, wrong: set[int]) -> Iterator[int]:
    """Yield the last of steps with another gradient; that of the steps before them follows from theirs."""
    steps = run.graph.steps
    behind: set[int] = set()  # numbers of the tensors from which a wrong step is reached
    for index in reversed(range(len(steps))):
        follows = bool(behind & set(steps[index].outputs))
        if index in wrong and not follows:
            yield index
        if index in wrong or follows:
            behind |= set(steps[index].inputs)


def _same(
    pair: tuple[Tensor, Tensor],
    twin: Tensor | None,
    flattened: tuple[int, ...] | None,
    coarse: bool,
    terms: float = 0.0,
) -> bool:
    """Tell whether two gradients agree, by the norm of their difference.

    Of n numbers that go into a ReLU, n times the unit of rounding or so are so close to 0 that the two models may have
    them on different sides of it. These elements have quite another gradient, and there are more or fewer by chance;
    together they make up the root of the unit of rounding of the norm. The same goes for two candidates for a maximum.

    Args:
        pair: Keras's gradient, as it is and with other rounding errors.
        twin: The twin's.
        flattened: The shape that the features were flattened from: the twin may have them channels first.
        coarse: Whether the model has constants in float32, whatever its dtype.
        terms: The sum of the absolute values of what was summed up.
    """
    exact, shaken = pair
    eps = max(torch.finfo(dtype).eps for dtype in (exact.dtype, torch.float32 if coarse else exact.dtype))
    least = _TIMES_GRADIENT_NOISE * eps * max(largest(exact), terms) * sqrt(exact.numel())
    within = max(TIMES_NOISE * sqrt(eps) * _norm(exact), _TIMES_NORM_OF_NOISE * _norm(exact - shaken), least)
    if twin is None:
        return _norm(exact) <= within
    ways = views(exact, twin, None, None, window=True)
    if exact.ndim in (1, 2) and exact.shape == twin.shape:
        ways = views(exact.reshape(-1, exact.shape[-1]), twin.reshape(-1, exact.shape[-1]), None, flattened)
    distances = (_norm(view - other) for view, other, _ in ways)
    first = next(distances, None)  # none if the twin's has another shape: see the outputs
    return first is None or first <= within or any(distance <= within for distance in distances)


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())

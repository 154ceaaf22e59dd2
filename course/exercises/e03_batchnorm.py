"""The exercises of notebook 03: batch normalization."""

import copy
from collections.abc import Callable, Iterator

from course.exercises.report import Case, report
from parity import ParityError, channels_last, largest_difference, run_torch
from parity.axes import torch_input

import keras
import numpy as np
import torch
from torch import Tensor, nn

_Step = Callable[[nn.BatchNorm2d, Tensor], Tensor]
# A wrong running variance after a step, of: that before the call, that after it, the module's momentum, the input.
_Mistake = Callable[[Tensor, Tensor, float, Tensor], Tensor]
_VECTORS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
# Said of an epsilon that is wrong in training only.
_FOLDING = " (folding the difference into running_var helps in inference only)"
# What training leaves behind, by name: the values of all steps in one array.
_Record = dict[str, np.ndarray]


def check_my_batchnorm(answer: Callable[[keras.layers.BatchNormalization], nn.BatchNorm2d]) -> None:
    """Check a function of a built Keras layer that returns its twin, an nn.BatchNorm2d in eval mode.

    In training, outputs and running means are compared. The running variance is not: nn.BatchNorm2d has no setting
    that makes it Keras's.
    """
    report(
        "Any layer",
        {
            "defaults": _inference_cases(answer, [{}]),
            "epsilon": _inference_cases(answer, [{"epsilon": 1.001e-5}, {"epsilon": 0.1}]),
            "scale, center": _inference_cases(
                answer, [{"scale": False}, {"center": False}, {"scale": False, "center": False}]
            ),
            "training": _training_cases(answer, [{}, {"momentum": 0.9}, {"scale": False, "epsilon": 1.001e-5}]),
        },
        answer,
    )


def check_training_step(answer: _Step) -> None:
    """Check a function of (module, x) that runs a module in train mode, and leaves the running statistics of Keras.

    ``x`` is (batch, channels, height, width), and the module has Keras's epsilon and the complement of its momentum.
    """
    report(
        "Training step",
        {
            "one step": _step_cases(answer, [({}, 1)]),
            "20 steps": _step_cases(answer, [({}, 20)]),
            "momentum": _step_cases(answer, [({"momentum": 0.9}, 5), ({"momentum": 0.3}, 5)]),
        },
        answer,
    )


def _layer(settings: dict) -> keras.layers.BatchNormalization:
    """Return a layer of 4 channels whose vectors are random and whose variances are between 1 and 1e-4."""
    rng = np.random.default_rng(0)
    layer = keras.layers.BatchNormalization(dtype="float64", **settings)
    layer.build((None, None, None, 4))
    for weight in layer.weights:
        weight.assign(rng.uniform(0.5, 2, 4) if weight.name == "gamma" else rng.normal(size=4))
    layer.moving_variance.assign(10.0 ** -np.arange(4)[::-1] * rng.uniform(0.1, 1, 4))
    return layer


def _twin(layer: keras.layers.BatchNormalization) -> nn.BatchNorm2d:
    """Return the twin of a layer that has all four vectors, in train mode."""
    module = nn.BatchNorm2d(4, layer.epsilon, 1 - layer.momentum, dtype=torch.float64)
    module.load_state_dict(
        {tensor: torch.tensor(np.asarray(getattr(layer, vector))) for vector, tensor in _VECTORS.items()}
    )
    return module


def _batches(layer: keras.layers.BatchNormalization, number: int) -> list[np.ndarray]:
    """Return batches (batch, height, width, 4) of changing size, drawn around the layer's own statistics."""
    rng = np.random.default_rng(1)
    mean, deviation = np.asarray(layer.moving_mean), np.sqrt(np.asarray(layer.moving_variance))
    return [mean + deviation * (1 + 2 * rng.normal(size=(2 + step % 3, 2, 3, 4))) for step in range(number)]


def _words(settings: dict) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "no settings"


def _inference_cases(answer: Callable, all_settings: list[dict]) -> Iterator[Case]:
    for settings in all_settings:

        def run(settings=settings):
            layer = _layer(settings)
            (x,) = _batches(layer, 1)
            expected = np.asarray(layer(x))
            module = _answered(answer, layer)
            if module is None:
                return None
            if module.training:
                raise ParityError("my_batchnorm", ["the module is in train mode"])
            if _is_coarse(module):
                found = run_torch(copy.deepcopy(module).double(), x)
                if largest_difference(expected, found) < 1e-4:
                    raise ParityError(
                        "my_batchnorm", ["right, but computed in float32; the layer is float64, so call use_float64()"]
                    )
                return expected, found
            found = run_torch(module, x)
            if not largest_difference(expected, found) < 1e-12:
                _raise_setting(module, "eps", layer.epsilon)
                _raise_vector(module, layer)
            return expected, found

        yield _words(settings), run


def _training_cases(answer: Callable, all_settings: list[dict]) -> Iterator[Case]:
    for settings in all_settings:

        def run(settings=settings):
            layer = _layer(settings)
            batches = _batches(layer, 5)
            expected = _train_keras(layer, batches)
            module = _answered(answer, _layer(settings))
            if module is None:
                return None
            found = _train_torch(lambda module, x: module(x), module.train(), batches)
            del expected["running variance"], found["running variance"]
            faults = _faults(expected, found)
            if faults:
                _raise_setting(module, "momentum", 1 - layer.momentum)
                _raise_setting(module, "eps", layer.epsilon, _FOLDING)
                raise ParityError("my_batchnorm", faults)
            return _all_numbers(expected), _all_numbers(found)

        yield f"{_words(settings)}, 5 training steps", run


def _answered(answer: Callable, layer: keras.layers.BatchNormalization) -> nn.Module | None:
    module = answer(layer)
    if module is not None and not (isinstance(module, nn.Module) and hasattr(module, "running_mean")):
        raise ParityError("my_batchnorm", [f"it returns {type(module).__name__}, not an nn.BatchNorm2d"])
    return module


def _is_coarse(module: nn.Module) -> bool:
    return any(tensor.dtype == torch.float32 for tensor in module.state_dict().values())


def _raise_setting(module: nn.Module, name: str, right: float, hint: str = "") -> None:
    """Raise a fault that names a setting and ends with the hint, if the module has it with another value."""
    value = getattr(module, name, right)
    if not isinstance(value, int | float) or abs(value - right) > 1e-12:
        shown = f"{value:g}" if isinstance(value, int | float) else value
        raise ParityError("my_batchnorm", [f"other numbers; {name} is {shown}, not {right:g}{hint}"])


def _raise_vector(module: nn.Module, layer: keras.layers.BatchNormalization) -> None:
    """Raise a fault that names the first vector that is not the layer's, and what it is instead, if that is known."""
    known = {"0": np.zeros(4), "1": np.ones(4)}
    known |= {name: np.asarray(getattr(layer, name)) for name in _VECTORS if getattr(layer, name) is not None}
    neutral = {"weight": "1", "bias": "0"}
    for vector, tensor in _VECTORS.items():
        right = vector if vector in known else neutral[tensor]
        given = getattr(module, tensor, None)
        value = known[neutral[tensor]] if given is None and tensor in neutral else np.asarray(given.detach())
        if value.shape != known[right].shape or np.abs(value - known[right]).max() > 1e-12:
            is_now = [name for name, other in known.items() if np.array_equal(other, value)]
            says = f"{tensor} is {is_now[0]}, not {right}" if is_now else f"{tensor} is not {right}"
            raise ParityError("my_batchnorm", [f"other numbers; {says}"])


def _step_cases(answer: _Step, settings_and_steps: list[tuple[dict, int]]) -> Iterator[Case]:
    for settings, steps in settings_and_steps:

        def run(settings=settings, steps=steps):
            batches = _batches(_layer(settings), steps)
            found = _train_torch(answer, _twin(_layer(settings)), batches)
            if found is None:
                return None
            expected = _train_keras(_layer(settings), batches)
            faults = _faults(expected, found)
            if faults:
                raise ParityError("my_training_step", [*faults, *_known_mistake(found, settings, batches)])
            return _all_numbers(expected), _all_numbers(found)

        yield f"{_words(settings)}, {steps} step{'s' * (steps > 1)}", run


def _known_mistake(found: _Record, settings: dict, batches: list[np.ndarray]) -> list[str]:
    """Return what is said of the mistake that leaves the same numbers, if one of ``_MISTAKES`` does."""
    for says, mistake in _MISTAKES:

        def step(module: nn.BatchNorm2d, x: Tensor, mistake: _Mistake = mistake) -> Tensor:
            before = module.running_var.clone()
            output = module(x)
            module.running_var = mistake(before, module.running_var, module.momentum, x)
            return output

        left = _train_torch(step, _twin(_layer(settings)), batches)
        if left is not None and not _faults(left, found):
            return [says]
    return []


def _values(x: Tensor) -> int:
    """Return how many values a channel has in a batch."""
    return x.numel() // x.shape[1]


def _corrected(old: Tensor, after: Tensor, n: int) -> Tensor:
    """Return a running variance whose old part is this, and whose rest is corrected for n values."""
    return old + (after - old) * (n - 1) / n


def _batch_variance(x: Tensor) -> Tensor:
    return x.var(dim=(0, 2, 3), correction=0)


# Some mistakes can be made in two ways: from PyTorch's new part, or from the batch.
_NO_COPY = "is `old` a copy? PyTorch overwrites `running_var`"
_FIXED_SHARE = "momentum is not always 0.01: take `module.momentum`"
_OTHER_SENSE = "in PyTorch, momentum is the share of the new: the old part is (1 - momentum) * old"
_MISTAKES: list[tuple[str, _Mistake]] = [
    ("the same as without a correction: it has no effect", lambda before, after, share, x: after),
    ("the old part must not change", lambda before, after, share, x: after * (_values(x) - 1) / _values(x)),
    (_NO_COPY, lambda before, after, share, x: _corrected((1 - share) * after, after, _values(x))),
    (_NO_COPY, lambda before, after, share, x: (1 - share) * after + share * _batch_variance(x)),
    (
        "N counts rows and columns, too, not only images",
        lambda before, after, share, x: _corrected((1 - share) * before, after, x.shape[0]),
    ),
    (
        "the old part is (1 - momentum) * old, not all of `old`",
        lambda before, after, share, x: _corrected(before, after, _values(x)),
    ),
    (_OTHER_SENSE, lambda before, after, share, x: _corrected(share * before, after, _values(x))),
    (_OTHER_SENSE, lambda before, after, share, x: share * before + (1 - share) * _batch_variance(x)),
    (_FIXED_SHARE, lambda before, after, share, x: _corrected(0.99 * before, after, _values(x))),
    (_FIXED_SHARE, lambda before, after, share, x: 0.99 * before + 0.01 * _batch_variance(x)),
    (
        "the new part is too large in PyTorch, and this makes it larger",
        lambda before, after, share, x: (
            (1 - share) * before + (after - (1 - share) * before) * _values(x) / (_values(x) - 1)
        ),
    ),
]


def _train_keras(layer: keras.layers.BatchNormalization, batches: list[np.ndarray]) -> _Record:
    outputs, means, variances = [], [], []
    for x in batches:
        outputs.append(np.asarray(layer(x, training=True)).ravel())
        means.append(np.asarray(layer.moving_mean).copy())
        variances.append(np.asarray(layer.moving_variance).copy())
    return _record(outputs, means, variances)


def _train_torch(step: _Step, module: nn.BatchNorm2d, batches: list[np.ndarray]) -> _Record | None:
    """Run a step with each batch; return None as soon as the step does."""
    outputs, means, variances = [], [], []
    for x in batches:
        output = step(module, torch_input(x))
        if output is None:
            return None
        if not isinstance(output, Tensor):
            raise ParityError("answer", [f"it returns {type(output).__name__}, not a tensor"])
        outputs.append(channels_last(output.detach()).numpy().ravel())
        # PyTorch changes its running statistics in place, so each step's are copied.
        means.append(module.running_mean.detach().numpy().copy())
        variances.append(module.running_var.detach().numpy().copy())
    return _record(outputs, means, variances)


def _record(outputs: list[np.ndarray], means: list[np.ndarray], variances: list[np.ndarray]) -> _Record:
    parts = {"output": outputs, "running mean": means, "running variance": variances}
    return {name: np.concatenate(steps) for name, steps in parts.items()}


def _faults(expected: _Record, found: _Record) -> list[str]:
    apart = {name: largest_difference(expected[name], found[name]) for name in expected}
    return [f"{name} differs by up to {size:.2g}" for name, size in apart.items() if not size < 1e-12]


def _all_numbers(record: _Record) -> np.ndarray:
    return np.concatenate(list(record.values()))

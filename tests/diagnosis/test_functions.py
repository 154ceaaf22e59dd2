"""Each attempt at a function without weights: what it explains, and what it must stay silent about."""

from types import SimpleNamespace

from parity.diagnosis import activations, normalizing, operations, pooling, resizing, scaling
from parity.diagnosis.evidence import result_of
from tests.diagnosis.test_attempts import IMAGE, activated, evidence_of, first, layer_norm, strange, with_twin
from tests.helpers.models import x_of

import keras
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from keras import ops
from torch import nn

ROWS, CHANNELS = (7,), (6, 5, 8)


def of(shape, layers, function, **more):
    """Return the evidence of a layer whose twin computes a function of (batch, ..., channels)."""
    return with_twin(shape, layers, lambda e: _as_twin(function(*e.inputs)), **more)


def _as_twin(y):
    return first(y) if y.ndim > 2 else y


def unseen(shape, layers, function, **more):
    """Return the same, but with the twin's tensor twice as large, seen behind a step that doubles."""

    def made():
        e = of(shape, layers, function, **more)()

        def onward(function):
            y = result_of(function, e.inputs)
            return None if y is None else 2 * y

        return e._replace(twin=2 * e.twin, onward=onward)

    return made


def moved(function):
    """Return the evidence of a ReLU and of the sum before it together."""

    def made():
        e = evidence_of([ROWS, ROWS], lambda a, b: L.ReLU(name="relu")(L.Add(name="sum")([a, b])), lambda e: e.value)
        taken = [torch.linspace(start, 1, 21, dtype=torch.float64).reshape(3, 7) for start in (-1, -2)]
        return e._replace(
            inputs=taken, twin=function(*taken), composed=True, onward=lambda function: result_of(function, taken)
        )

    return made


def own_norm(normal):
    """Return the evidence of a LayerNormalization whose twin normalizes as a function of x, mean and variance does."""

    def twin(e):
        x, (gamma, beta) = e.inputs[0], e.weights.values()
        return normal(x, x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)) * gamma + beta

    return layer_norm(twin)


def lrn(x, size=5, alpha=0.3):
    channels = x.shape[-1]
    before = size // 2
    square = ops.pad(ops.square(x), [(0, 0)] * (len(x.shape) - 1) + [(before, size - 1 - before)])
    return x / (1 + alpha * sum(square[..., i : i + channels] for i in range(size))) ** 0.75


def resized(**settings):
    return lambda x: F.interpolate(first(x), **settings).movedim(1, -1)


UP = lambda x: L.UpSampling2D(2, interpolation="bilinear")(x)  # noqa: E731
TO_DEPTH = lambda x: L.Lambda(to_depth)(x)  # noqa: E731
TO_SPACE = lambda x: L.Lambda(to_space)(x)  # noqa: E731
EVEN = (6, 4, 8)


def to_depth(x):
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height // 2, width // 2, 4 * channels))


def to_space(x):
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height, width, 2, 2, channels // 4))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 2 * height, 2 * width, channels // 4))


def shuffled(x, to_depth=False):
    return (F.pixel_unshuffle if to_depth else F.pixel_shuffle)(first(x), 2).movedim(1, -1)


def unit(x, axes=-1, p=2):
    return x / torch.linalg.vector_norm(x, p, axes, True)


def scale(mean=(0.5, 0.25, -1.0, 0.0), variance=(0.25, 4.0, 1.0, 2.25)):
    return lambda x: L.Normalization(mean=mean, variance=variance)(x)


MEAN, DEVIATION = (torch.tensor(numbers, dtype=torch.float64) for numbers in ((0.5, 0.25, -1, 0), (0.5, 2, 1, 1.5)))

# By attempt: the evidence, the cause, and the beginning of what is found.
EXPLAINED = {
    operations.by_operation: [
        (of([ROWS, ROWS], lambda a, b: L.Multiply()([a, b]), torch.add), "another operation", "sum, not product"),
        (
            of([ROWS, ROWS], lambda a, b: a / b, lambda a, b: b / a),
            "another operation",
            "reversed quotient, not quotient",
        ),
        (
            of([ROWS, ROWS], lambda a, b: L.Lambda(lambda p: ops.abs(p[0] - p[1]))([a, b]), lambda a, b: (a - b) ** 2),
            "another operation",
            "squared difference, not absolute difference",
        ),
        (
            of([ROWS] * 3, lambda *x: L.Add()(list(x)), lambda a, b, c: (a + b + c) / 3),
            "another operation",
            "mean, not sum",
        ),
        (of(ROWS, ops.abs, torch.square), "another operation", "square, not abs"),
        (
            of(ROWS, lambda x: L.Lambda(ops.square)(x), torch.clone),
            "another operation",
            "its input as it is, not square",
        ),
        (unseen(ROWS, ops.square, torch.abs), "another operation", "abs, not square"),
        (
            of([ROWS, ROWS], lambda a, b: L.Add()([a, b]), lambda a, b: (a + b) * 0.5**0.5),
            "output scaled",
            "0.7071 times what it should be",
        ),
        (
            of([ROWS, ROWS], lambda a, b: L.Add()([a, b]), lambda a, b: a + 0.1 * b),
            "output scaled",
            "its inputs are taken 1 and 0.1 times, not 1 and 1",
        ),
        (
            of([ROWS, ROWS], lambda a, b: L.Subtract()([a, b]), lambda a, b: a - 2 * b),
            "output scaled",
            "its inputs are taken 1 and -2 times, not 1 and -1",
        ),
    ],
    operations.by_reduction: [
        (of(IMAGE, lambda x: ops.mean(x, 1), lambda x: x.mean(2)), "axis", "the mean along (2,), not (1,)"),
        (
            of((5, 5), lambda x: ops.sum(x, 1), lambda x: x.sum(2)),
            "axis",
            "the sum along (2,), not (1,)",
        ),
        (
            of(IMAGE, lambda x: ops.max(x, (1, 2)), lambda x: x.mean((1, 2))),
            "another operation",
            "mean, not maximum",
        ),
        (
            of(IMAGE, lambda x: ops.var(x, (1, 2)), lambda x: x.var((1, 2))),
            "unbiased variance",
            "unbiased variance, not variance",
        ),
        (
            of(IMAGE, lambda x: ops.norm(x, axis=-1), lambda x: x.abs().sum(-1)),
            "another operation",
            "L1 norm, not L2 norm",
        ),
        (
            unseen(IMAGE, lambda x: L.GlobalMaxPooling2D()(x), lambda x: x.mean((1, 2))),
            "another pooling",
            "average of all pixels, not maximum",
        ),
    ],
    operations.by_element: [
        (of((5, 4), lambda x: x[:, 0], lambda x: x[:, -1]), "another operation", "element 4 of axis 1, not element 0"),
        (
            of((5, 4), lambda x: L.Lambda(lambda x: x[:, -1])(x), lambda x: x.mean(1)),
            "another operation",
            "the mean of axis 1, not its element 4",
        ),
    ],
    resizing.by_interpolation: [
        (of(IMAGE, UP, resized(scale_factor=2)), "interpolation", "nearest, not bilinear"),
        (
            of(IMAGE, UP, resized(scale_factor=2, mode="bilinear", align_corners=True)),
            "interpolation",
            "bilinear with align_corners, not bilinear",
        ),
        (of(IMAGE, UP, resized(scale_factor=2, mode="bicubic")), "interpolation", "bicubic, not bilinear"),
        (unseen(IMAGE, UP, resized(scale_factor=2)), "interpolation", "nearest, not bilinear"),
        (
            of(IMAGE, lambda x: L.Resizing(9, 7, interpolation="nearest")(x), resized(size=(9, 7))),
            "interpolation",
            "nearest, not Keras's nearest, which is PyTorch's nearest-exact",
        ),
        (
            of(IMAGE, lambda x: L.UpSampling2D(2, interpolation="bicubic")(x), resized(scale_factor=2, mode="bicubic")),
            "interpolation",
            "bicubic, not Keras's bicubic, which is PyTorch's bicubic with antialias",
        ),
        (
            of(IMAGE, lambda x: L.Resizing(3, 4)(x), resized(size=(3, 4), mode="bilinear", antialias=True)),
            "interpolation",
            "bilinear with antialias, not bilinear",
        ),
        (
            of((8, 5, 4), lambda x: L.Resizing(10, 6)(x), resized(scale_factor=1.25, mode="bilinear")),
            "interpolation",
            "bilinear with scale_factor=1.25, not bilinear",
        ),
        (
            of(IMAGE, UP, resized(scale_factor=3, mode="bilinear")),
            "interpolation",
            "bilinear to (18, 15), where bilinear to (12, 10) is due",
        ),
        (
            of((6, 4), lambda x: L.UpSampling1D(2)(x), resized(scale_factor=2, mode="linear")),
            "interpolation",
            "linear, not nearest",
        ),
        (
            of((3, 4, 2, 2), lambda x: L.UpSampling3D(2)(x), resized(scale_factor=2, mode="trilinear")),
            "interpolation",
            "trilinear, not nearest",
        ),
    ],
    resizing.by_pixel_blocks: [
        (
            of(EVEN, TO_DEPTH, lambda x: shuffled(x, to_depth=True)),
            "order of pixel blocks",
            "channels, rows, columns, as PixelUnshuffle has them, not rows, columns, channels",
        ),
        (
            of(EVEN, TO_SPACE, shuffled),
            "order of pixel blocks",
            "channels, rows, columns, as PixelShuffle has them, not rows, columns, channels",
        ),
        (
            of(EVEN, TO_DEPTH, lambda x: resizing.Blocks((1, 0, 2)).to_depth(x, 2)),
            "order of pixel blocks",
            "columns, rows, channels, not rows, columns, channels",
        ),
        (  # in single operations the last, a reshape, has all of it
            of(EVEN, to_depth, lambda x: x.permute(0, 1, 2, 5, 3, 4).flatten(3)),
            "order of pixel blocks",
            "channels, rows, columns, as PixelUnshuffle has them, not rows, columns, channels",
        ),
    ],
    normalizing.by_norm: [
        (
            of(IMAGE, lambda x: L.UnitNormalization()(x), torch.clone),
            "normalization missing",
            "by the L2 norm along (3,)",
        ),
        (
            of(IMAGE, lambda x: L.UnitNormalization()(x), lambda x: unit(x, (1, 2))),
            "axis",
            "the L2 norm is along (1, 2), not (3,)",
        ),
        (
            of(ROWS, lambda x: ops.normalize(x), lambda x: x / x.norm()),
            "axis",
            "the L2 norm is along (0, 1), all of the batch together, not (1,)",
        ),
        (
            of(ROWS, lambda x: L.Lambda(lambda x: x / ops.sum(ops.abs(x), -1, keepdims=True))(x), unit),
            "another normalization",
            "by the L2 norm along (1,), not by the L1 norm along (1,)",
        ),
        (
            of(
                ROWS,
                lambda x: L.Lambda(lambda x: (x - ops.mean(x, -1, keepdims=True)) / ops.std(x, -1, keepdims=True))(x),
                lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True),
            ),
            "unbiased variance",
            "the variance is divided by n - 1, not by n",
        ),
        (unseen(ROWS, lambda x: L.UnitNormalization()(x), torch.clone), "normalization missing", "by the L2 norm"),
    ],
    normalizing.by_formula: [
        (
            own_norm(lambda x, mean, var: (x - mean) / (x.var(-1, keepdim=True) + 1e-3).sqrt()),
            "unbiased variance",
            "the variance is divided by n - 1, not by n",
        ),
        (
            own_norm(lambda x, mean, var: (x - mean) / (x.std(-1, keepdim=True) + 1e-6)),
            "unbiased variance",
            "the variance is divided by n - 1, not by n, and epsilon is added to its root",
        ),
        (own_norm(lambda x, mean, var: (x - mean) / (var + 1e-5).sqrt()), "epsilon", "epsilon is 1e-05, not 0.001"),
        (own_norm(lambda x, mean, var: (x - mean) / (var.sqrt() + 1e-3)), "epsilon", "it is added to the standard"),
        (own_norm(lambda x, mean, var: x / (var + 1e-3).sqrt()), "another normalization", "the mean is not subtracted"),
        (own_norm(lambda x, mean, var: x), "normalization missing", "only scale and offset are there"),
        (
            of(
                IMAGE,
                lambda x: L.BatchNormalization(name="norm")(x),
                lambda x: torch.zeros_like(x),
                module=lambda: nn.BatchNorm2d(4, 1e-3),
                run=SimpleNamespace(training=False),
                at_step=0,
            ),
            None,
            None,
        ),
    ],
    normalizing.by_local_response: [
        (
            of(CHANNELS, lambda x: L.Lambda(lrn)(x), lambda x: F.local_response_norm(first(x), 2, 0.3).movedim(1, -1)),
            "local response normalization",
            "size 2, alpha 0.3, beta 0.75, k 1, not size 5, alpha 1.5, beta 0.75, k 1",
        ),
        (
            of(CHANNELS, lambda x: L.Lambda(lrn)(x), lambda x: F.local_response_norm(first(x), 5, 0.3).movedim(1, -1)),
            "local response normalization",
            "size 5, alpha 0.3, beta 0.75, k 1, not size 5, alpha 1.5, beta 0.75, k 1",
        ),
        (
            of(
                CHANNELS,
                lambda x: L.Lambda(lrn)(x),
                lambda x: F.local_response_norm(first(x), 5, 1.5, 0.5, 2.0).movedim(1, -1),
            ),
            "local response normalization",
            "size 5, alpha 1.5, beta 0.5, k 2, not size 5, alpha 1.5, beta 0.75, k 1",
        ),
    ],
    scaling.by_scale: [
        (
            of(IMAGE, scale(), lambda x: (x - MEAN) / DEVIATION**2),
            "input scaled",
            "divided by the variance, not by its",
        ),
        (of(IMAGE, scale(), lambda x: x - MEAN), "input scaled", "not divided by the standard deviation"),
        (of(IMAGE, scale(), torch.clone), "input scaled", "its input as it is, not normalized"),
        (
            of(IMAGE, scale(), lambda x: (x - MEAN.flip(0)) / DEVIATION.flip(0)),
            "channels reversed",
            "mean and variance in reverse order",
        ),
        (
            unseen(IMAGE, lambda x: L.Rescaling(0.5, -1.0)(x), lambda x: x / 127.5 - 1),
            "input scaled",
            "1/127.5 and -1, not 0.5 times its input plus -1",
        ),
        (
            unseen(IMAGE, lambda x: L.Rescaling(0.5)(x), lambda x: 2 * x),
            "input scaled",
            "divided by 0.5, not multiplied",
        ),
        (
            unseen(IMAGE, lambda x: L.Rescaling(0.5)(x), torch.clone),
            "input scaled",
            "its input as it is, not 0.5 times",
        ),
    ],
    pooling.by_unseen_pooling: [
        (
            unseen(IMAGE, lambda x: L.MaxPooling2D(2)(x), lambda x: F.avg_pool2d(first(x), 2).movedim(1, -1)),
            "another pooling",
            "average, not max",
        ),
        (
            unseen(
                IMAGE,
                lambda x: L.MaxPooling2D(3, 2, "same")(x - 9),
                lambda x: F.max_pool2d(F.pad(first(x), (1, 1, 0, 1)), 3, 2).movedim(1, -1),
            ),
            "padding value",
            "it is 0, not minus infinity",
        ),
    ],
    activations.by_gate: [
        (
            of((8,), ops.glu, lambda x: x[:, :4].sigmoid() * x[:, 4:]),
            "another activation",
            "glu: the gate is sigmoid of the first half",
        ),
        (
            of((8,), ops.glu, lambda x: x[:, :4] * F.silu(x[:, 4:])),
            "another activation",
            "glu: the gate is silu of the second half",
        ),
        (
            of((8,), ops.glu, lambda x: x[:, ::2] * x[:, 1::2].sigmoid()),
            "another activation",
            "glu: each second element is the gate",
        ),
    ],
    activations.by_moved_activation: [
        (
            moved(lambda a, b: a.relu() + b.relu()),
            "activation in another place",
            "relu is applied to all inputs of sum, not to what it returns",
        ),
        (
            moved(lambda a, b: a + b.relu()),
            "activation in another place",
            "relu is applied to input 2 of sum, not to what it returns",
        ),
    ],
}

SILENT = {
    operations.by_operation: {
        "right": of([ROWS, ROWS], lambda a, b: L.Multiply()([a, b]), torch.mul),
        "strange": of([ROWS, ROWS], lambda a, b: L.Multiply()([a, b]), lambda a, b: a**3 + b + 7),
        "a tensor with itself": of(ROWS, lambda x: x * x, lambda x, same: torch.ones_like(x)),
        "a layer with weights": of(ROWS, lambda x: L.Dense(7)(x), torch.abs),
        "not finite": of([ROWS, ROWS], lambda a, b: a + b, lambda a, b: a / 0),
        "whole numbers": lambda: (e := of(ROWS, ops.abs, torch.square)())._replace(inputs=[e.inputs[0].long()]),
    },
    operations.by_reduction: {
        "strange": of((5, 5), lambda x: ops.sum(x, 1), lambda x: x.sum(1) ** 3),
        "no reduction": of((5, 5), ops.abs, lambda x: x.sum(1)),
        "a layer that is seen": of(IMAGE, lambda x: L.GlobalMaxPooling2D()(x), lambda x: x.mean((1, 2))),
    },
    operations.by_element: {
        "strange": of((5, 4), lambda x: x[:, 0], lambda x: x[:, 0] ** 3),
        "several elements": of((5, 4), lambda x: x[:, 1:3], lambda x: x[:, 2:4]),
    },
    resizing.by_interpolation: {
        "right": of(IMAGE, UP, lambda x: resized(scale_factor=2, mode="bilinear")(x) + 1),
        "no resizing": of(IMAGE, ops.abs, lambda x: x),
        "features": lambda: of(IMAGE, UP, lambda x: x)()._replace(twin=torch.zeros(3, 480, dtype=torch.float64)),
    },
    resizing.by_pixel_blocks: {
        "strange": of(EVEN, TO_DEPTH, lambda x: shuffled(x, to_depth=True) ** 3),
        "not blocks": of(EVEN, lambda x: L.Lambda(ops.abs)(x), lambda x: x.abs().unflatten(-1, (2, 4)).mT.flatten(-2)),
        "a layer of another kind": of(EVEN, lambda x: L.ReLU()(x), lambda x: x),
    },
    normalizing.by_norm: {
        "strange": of(IMAGE, lambda x: L.UnitNormalization()(x), lambda x: unit(x) ** 3),
        "no norm": of(IMAGE, lambda x: L.Lambda(ops.abs)(x), torch.clone),
        "another layer": of(IMAGE, lambda x: L.ReLU()(x), torch.clone),
    },
    normalizing.by_formula: {
        "strange": own_norm(lambda x, mean, var: x**3),
        "no normalization": of((4, 4), lambda x: L.ReLU()(x), torch.clone),
    },
    normalizing.by_local_response: {
        "strange": of(CHANNELS, lambda x: L.Lambda(lrn)(x), lambda x: x**3),
        "another function": of(
            CHANNELS, lambda x: L.Lambda(ops.tanh)(x), lambda x: F.local_response_norm(first(x), 5).movedim(1, -1)
        ),
        "few channels": of(ROWS, lambda x: L.Lambda(ops.tanh)(x), torch.clone),
    },
    scaling.by_scale: {
        "strange": of(IMAGE, scale(), lambda x: x**3),
        "a Rescaling that is seen": of(IMAGE, lambda x: L.Rescaling(0.5)(x), torch.clone),
        "no scaling": of(IMAGE, lambda x: L.ReLU()(x), torch.clone),
    },
    pooling.by_unseen_pooling: {
        "strange": unseen(
            IMAGE, lambda x: L.MaxPooling2D(2)(x), lambda x: F.avg_pool2d(first(x), 2).movedim(1, -1) ** 3
        ),
        "seen": of(IMAGE, lambda x: L.MaxPooling2D(2)(x), lambda x: F.avg_pool2d(first(x), 2).movedim(1, -1)),
    },
    activations.by_gate: {
        "strange": of((8,), ops.glu, lambda x: x[:, :4] ** 3),
        "no gate": of((8,), lambda x: x[:, :4], lambda x: x[:, 4:]),
    },
    activations.by_moved_activation: {
        "strange": moved(lambda a, b: a**3 + b),
        "not behind a merge": activated(L.ReLU(), lambda x: x),
    },
}


def cases(attempts):
    return [
        pytest.param(attempt, case, id=f"{attempt.__name__}-{name}")
        for attempt, several in attempts.items()
        for name, case in (several.items() if isinstance(several, dict) else enumerate(several))
    ]


@pytest.mark.parametrize(("attempt", "case"), cases(EXPLAINED))
def test_what_an_attempt_explains(attempt, case):
    made, cause, detail = case
    found = [(one.cause, one.detail) for one in attempt(made())]
    if cause is None:
        assert found == []
    else:
        assert [one for one, _ in found] == [cause]
        assert found[0][1].startswith(detail)


@pytest.mark.parametrize(("attempt", "case"), cases(SILENT))
def test_what_an_attempt_is_silent_about(attempt, case):
    assert list(attempt(case())) == []


# Each activation of Keras by name, another setting of it, and what is said.
SETTINGS = {
    "relu": (lambda x: x.clamp(0, 0.75), "relu with max_value 0.75, not relu"),
    "celu": (lambda x: F.celu(x, 2.0), "celu with alpha 2, not celu"),
    "softplus": (lambda x: F.softplus(x, 2), "softplus with beta 2, not softplus"),
    "silu": (lambda x: x * (1.5 * x).sigmoid(), "silu with beta 1.5, not silu"),
    "soft_shrink": (lambda x: F.softshrink(x, 0.25), "soft_shrink with threshold 0.25, not soft_shrink"),
    "hard_shrink": (lambda x: F.hardshrink(x, 0.25), "hard_shrink with threshold 0."),
    "squareplus": (lambda x: (x + (x * x + 1).sqrt()) / 2, "squareplus with b 1, not squareplus"),
    "hard_tanh": (lambda x: x.clamp(-0.5, 0.5), "hard_tanh with numbers from -0.5 to 0.5, not hard_tanh"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_another_setting_of_an_activation_is_said(name):
    function, said = SETTINGS[name]
    (found,) = activations.by_function(activated(L.Activation(name), function, (40,))())
    assert found.cause == "another activation"
    assert found.detail.startswith(said)


NAMES = [
    name
    for name in vars(keras.activations)
    if name not in ("linear", "glu", "threshold", "swish", "serialize", "deserialize", "get", "hard_swish")
    and callable(getattr(keras.activations, name))
]


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_of_keras_is_told_from_another(name):
    other = "tanh" if name != "tanh" else "sigmoid"
    if name != "gelu":  # Keras has a constant of it in float32
        (found,) = activations.by_function(activated(L.Activation(other), _in_torch(name), (9,))())
        assert found.cause == "another activation"
        # Where alpha is 1, or no number is above 6, these are the same.
        assert {"celu": "elu", "relu6": "relu"}.get(name, name) in found.detail
    (found,) = activations.by_function(activated(L.Activation(name), getattr(torch, other), (9,))())
    assert found.detail.startswith(f"{other}, not {name}")


def _in_torch(name):
    return lambda x: torch.from_numpy(ops.convert_to_numpy(keras.activations.get(name)(x.numpy())).copy())


@pytest.mark.parametrize("name", ["relu", "gelu", "softmax", "silu", "leaky_relu", "log_sigmoid", "soft_shrink"])
def test_an_activation_may_be_an_operation_of_the_graph(name):
    (found,) = activations.by_function(of(IMAGE, getattr(ops, name), torch.tanh)())
    assert (found.cause, found.detail.split(",")[0]) == ("another activation", "tanh")
    (found,) = activations.by_function(of(IMAGE, getattr(ops, name), torch.clone)())
    assert found.cause == "activation missing"


@pytest.mark.parametrize("written", [lambda x: ops.maximum(x, 0.0), lambda x: ops.clip(x, 0.0, 6.0)])
def test_an_activation_may_be_written_with_another_operation(written):
    (found,) = activations.by_function(of(IMAGE, written, F.elu)())
    assert found.detail.startswith("elu, not relu")


def test_a_lambda_that_is_an_activation_is_one():
    (found,) = activations.by_function(of(IMAGE, lambda x: L.Lambda(ops.tanh)(x), torch.sigmoid)())
    assert found.detail == "sigmoid, not tanh"
    assert list(activations.by_function(of(IMAGE, lambda x: L.Lambda(lambda x: x**3)(x), torch.tanh)())) == []


def test_nothing_is_made_of_strange_numbers():
    for attempt in EXPLAINED:
        assert list(attempt(with_twin(IMAGE, lambda x: L.ReLU()(x), strange)())) == [], attempt


def test_what_the_cheat_sheet_says_of_functions():
    x = torch.from_numpy(x_of(2, 6, 5, 8)).double()

    def apart(layer, twin):
        y = torch.from_numpy(ops.convert_to_numpy(layer(x.numpy())).copy()).movedim(-1, 1)
        return float((y - twin).abs().max())

    def up(**settings):
        return F.interpolate(first(x), size=(12, 10), **settings)

    assert apart(L.UpSampling2D(2, dtype="float64"), up(mode="nearest")) == 0
    assert apart(L.Resizing(4, 3, interpolation="nearest", dtype="float64"), first(resized_to("nearest-exact", x))) == 0
    assert apart(L.Resizing(4, 3, interpolation="nearest", dtype="float64"), first(resized_to("nearest", x))) > 0.1
    bilinear = L.UpSampling2D(2, interpolation="bilinear", dtype="float64")
    assert apart(bilinear, up(mode="bilinear")) < 1e-5
    bicubic = L.UpSampling2D(2, interpolation="bicubic", dtype="float64")
    assert apart(bicubic, up(mode="bicubic", antialias=True)) < 1e-5
    assert apart(bicubic, up(mode="bicubic")) > 0.01
    assert apart(lrn, F.local_response_norm(first(x), 5, 0.3 * 5, 0.75, 1.0)) < 1e-12
    blocks = first(x)[:, :, :, :4].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
    y = ops.convert_to_numpy(to_depth(ops.convert_to_tensor(x[:, :, :4].numpy())))
    assert torch.equal(torch.from_numpy(y).movedim(-1, 1), blocks)


def resized_to(mode, x):
    return F.interpolate(first(x), size=(4, 3), mode=mode).movedim(1, -1)

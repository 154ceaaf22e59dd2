"""Which module and function does what a Keras layer without weights does, told by their names."""

from parity.models.keras_graph import Step
from parity.models.torch_calls import Call
from parity.padding import MaxPool2dSame
from parity.tracing.op_families import may_be_anything, may_be_twin, names_of_call, names_of_step, same_numbers

import keras
import pytest
from keras import layers as L
from torch import nn


def step(layer, is_activation=False):
    return Step(layer.name, layer, is_activation, (0,), (1,), None, False)


def function(name, inputs=(0,), **more):
    return Call(name, None, inputs, (1,), **more)


def module(made, inputs=(0,), **more):
    return Call("own_name", made, inputs, (1,), **more)


def operation(function, *shapes):
    """Return the operation that Keras records for a function of tensors."""
    inputs = [keras.Input(shape) for shape in shapes]
    return function(*inputs)._keras_history.operation


# By the name of a layer in keras.layers: the layer, and the modules and functions that are usual for it in PyTorch.
TWINS = {
    "Activation": (L.Activation("gelu"), [nn.GELU(), nn.Sigmoid(), "gelu", "relu", "softmax", "exp"]),
    "ReLU": (L.ReLU(), [nn.ReLU(), nn.ReLU6(), nn.ReLU(inplace=True), "relu", "relu_", "clamp", "clamp_min", "where"]),
    "LeakyReLU": (L.LeakyReLU(), [nn.LeakyReLU(), "leaky_relu", "leaky_relu_"]),
    "ELU": (L.ELU(), [nn.ELU(), "elu"]),
    "Softmax": (L.Softmax(), [nn.Softmax(1), nn.Softmax2d(), nn.LogSoftmax(1), "softmax"]),
    "MaxPooling1D": (L.MaxPooling1D(), [nn.MaxPool1d(2), "max_pool1d"]),
    "MaxPooling2D": (L.MaxPooling2D(), [nn.MaxPool2d(2), MaxPool2dSame(2), "max_pool2d"]),
    "MaxPooling3D": (L.MaxPooling3D(), [nn.MaxPool3d(2), "max_pool3d"]),
    "AveragePooling1D": (L.AveragePooling1D(2), [nn.AvgPool1d(2), "avg_pool1d"]),
    "AveragePooling2D": (L.AveragePooling2D(2), [nn.AvgPool2d(2), "avg_pool2d"]),
    "AveragePooling3D": (L.AveragePooling3D(2), [nn.AvgPool3d(2), "avg_pool3d"]),
    "GlobalMaxPooling1D": (L.GlobalMaxPooling1D(), [nn.AdaptiveMaxPool1d(1), "amax", "max"]),
    "GlobalMaxPooling2D": (L.GlobalMaxPooling2D(), [nn.AdaptiveMaxPool2d(1), "adaptive_max_pool2d", "amax"]),
    "GlobalMaxPooling3D": (L.GlobalMaxPooling3D(), [nn.AdaptiveMaxPool3d(1), "amax"]),
    "GlobalAveragePooling1D": (L.GlobalAveragePooling1D(), [nn.AdaptiveAvgPool1d(1), "mean"]),
    "GlobalAveragePooling2D": (L.GlobalAveragePooling2D(), [nn.AdaptiveAvgPool2d(1), "adaptive_avg_pool2d", "mean"]),
    "GlobalAveragePooling3D": (L.GlobalAveragePooling3D(), [nn.AdaptiveAvgPool3d(1), "mean"]),
    "Add": (L.Add(), ["add", "iadd", "radd"]),
    "Subtract": (L.Subtract(), ["sub", "rsub", "subtract"]),
    "Multiply": (L.Multiply(), ["mul", "multiply"]),
    "Average": (L.Average(), ["add"]),  # the first of (a + b) / 2
    "Maximum": (L.Maximum(), ["maximum", "where"]),
    "Minimum": (L.Minimum(), ["minimum"]),
    "Concatenate": (L.Concatenate(), ["cat", "concat", "concatenate", "hstack"]),
    "Flatten": (L.Flatten(), [nn.Flatten(), "flatten", "reshape", "view"]),
    "Reshape": (L.Reshape((2, 2)), [nn.Unflatten(1, (2, 2)), "reshape", "view", "unflatten"]),
    "Permute": (L.Permute((2, 1)), ["permute", "transpose", "movedim"]),
    "RepeatVector": (L.RepeatVector(2), ["expand"]),
    "ZeroPadding1D": (L.ZeroPadding1D(), [nn.ZeroPad1d(1), nn.ConstantPad1d(1, 0), "pad"]),
    "ZeroPadding2D": (L.ZeroPadding2D(), [nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0), "pad"]),
    "ZeroPadding3D": (L.ZeroPadding3D(), [nn.ZeroPad3d(1), nn.ConstantPad3d(1, 0), "pad"]),
    "Cropping1D": (L.Cropping1D(), ["getitem", "narrow", nn.ZeroPad1d(-1)]),
    "Cropping2D": (L.Cropping2D(), ["getitem", "narrow", "pad"]),
    "Cropping3D": (L.Cropping3D(), ["getitem"]),
    "Dropout": (L.Dropout(0.5), [nn.Dropout(), "dropout"]),
    "SpatialDropout1D": (L.SpatialDropout1D(0.5), [nn.Dropout1d(), nn.Dropout2d(), "dropout1d", "feature_dropout"]),
    "SpatialDropout2D": (L.SpatialDropout2D(0.5), [nn.Dropout2d(), "dropout2d", "feature_dropout"]),
    "SpatialDropout3D": (L.SpatialDropout3D(0.5), [nn.Dropout3d(), "feature_dropout"]),
    "AlphaDropout": (L.AlphaDropout(0.5), [nn.AlphaDropout(), "alpha_dropout"]),
    "GaussianDropout": (L.GaussianDropout(0.5), [nn.Dropout()]),
    "GaussianNoise": (L.GaussianNoise(0.5), [nn.Dropout()]),
    "UpSampling1D": (L.UpSampling1D(), [nn.Upsample(scale_factor=2), "interpolate", "repeat_interleave"]),
    "UpSampling2D": (L.UpSampling2D(), [nn.Upsample(scale_factor=2), nn.UpsamplingNearest2d(2), "interpolate"]),
    "UpSampling3D": (L.UpSampling3D(), [nn.Upsample(scale_factor=2), "interpolate"]),
    "Rescaling": (L.Rescaling(2.0), ["mul", "div", "truediv", "sub", "add"]),
    "Normalization": (L.Normalization(mean=1.0, variance=1.0), ["sub", "div", "mul", "add"]),
    "Identity": (L.Identity(), [nn.Identity()]),
}
# Layers of these kinds are not what a model for PyTorch is made of, or have no counterpart of one call.
LEFT_OUT = {
    "ActivityRegularization": "returns what it takes, and is seen as such",
    "Masking": "returns what it takes, and is seen as such",
    "InputLayer": "is no step",
    "Lambda": "its name does not say what it does",
    "Attention": "has weights if use_scale is set, and is several functions",
    "TorchModuleWrapper": "wraps a module",
}
# Parts of a pipeline that comes before a model, of text or of images.
PREPROCESSING = [
    "AugMix",
    "AutoContrast",
    "CategoryEncoding",
    "CenterCrop",
    "ContrastLimitedAdaptiveHistogramEqualization",
    "CutMix",
    "Discretization",
    "Equalization",
    "HashedCrossing",
    "Hashing",
    "IntegerLookup",
    "MaxNumBoundingBoxes",
    "MelSpectrogram",
    "MixUp",
    "Pipeline",
    "RandAugment",
    "Resizing",
    "STFTSpectrogram",
    "Solarization",
    "StringLookup",
    "TextVectorization",
]
WITH_WEIGHTS = [
    "AdditiveAttention",
    "BatchNormalization",
    "Bidirectional",
    "Conv",
    "ConvLSTM",
    "Dense",
    "Depthwise",
    "Einsum",
    "Embedding",
    "Flax",
    "GRU",
    "GroupNorm",
    "GroupedQuery",
    "Jax",
    "LSTM",
    "LayerNorm",
    "MultiHead",
    "PReLU",
    "RMSNorm",
    "RNN",
    "Reversible",
    "Separable",
    "Simple",
    "Spectral",
    "Stacked",
    "TFSM",
    "TimeDistributed",
]
# Layers for which FAMILIES has no name, with the usual function.
NO_FAMILY = {
    "Dot": (lambda: L.Dot(1), "matmul"),
    "AdaptiveAveragePooling1D": (lambda: L.AdaptiveAveragePooling1D(2), nn.AdaptiveAvgPool1d(2)),
    "AdaptiveAveragePooling2D": (lambda: L.AdaptiveAveragePooling2D(2), nn.AdaptiveAvgPool2d(2)),
    "AdaptiveAveragePooling3D": (lambda: L.AdaptiveAveragePooling3D(2), nn.AdaptiveAvgPool3d(2)),
    "AdaptiveMaxPooling1D": (lambda: L.AdaptiveMaxPooling1D(2), nn.AdaptiveMaxPool1d(2)),
    "AdaptiveMaxPooling2D": (lambda: L.AdaptiveMaxPooling2D(2), nn.AdaptiveMaxPool2d(2)),
    "AdaptiveMaxPooling3D": (lambda: L.AdaptiveMaxPooling3D(2), nn.AdaptiveMaxPool3d(2)),
    "UnitNormalization": (L.UnitNormalization, "normalize"),
}


def test_every_layer_without_weights_is_looked_at():
    """A layer that a later Keras brings has to be entered in one of these tables."""
    kinds = [kind for kind in vars(keras.layers).values() if isinstance(kind, type) and issubclass(kind, L.Layer)]
    names = {kind.__name__ for kind in kinds} - {"Layer", "Wrapper"}
    rest = {name for name in names if not name.startswith(("Random", *WITH_WEIGHTS))}
    assert rest == {*TWINS, *LEFT_OUT, *PREPROCESSING, *NO_FAMILY}


def call_of(twin):
    return function(twin.strip("_")) if isinstance(twin, str) else module(twin)


CASES = [(kind, twin) for kind, (_, twins) in TWINS.items() for twin in twins]


@pytest.mark.parametrize(("kind", "twin"), CASES, ids=[f"{kind}-{twin}" for kind, twin in CASES])
def test_the_usual_twin_of_a_layer_may_be_its_twin(kind, twin):
    assert may_be_twin(step(TWINS[kind][0]), call_of(twin))


@pytest.mark.parametrize("kind", NO_FAMILY)
def test_the_usual_twin_of_a_rarer_layer_may_be_its_twin(kind):
    made, twin = NO_FAMILY[kind]
    assert may_be_twin(step(made()), call_of(twin))


GROUPS = {
    "activation": ["Activation", "ReLU", "LeakyReLU", "ELU", "Softmax"],
    "pooling": [kind for kind in TWINS if "Pooling" in kind],
    "order": ["Flatten", "Reshape", "Permute"],
    "border": [kind for kind in TWINS if "Padding" in kind or "Cropping" in kind],
    "dropout": [kind for kind in TWINS if "Dropout" in kind or "Gaussian" in kind],
    "upsampling": [kind for kind in TWINS if "UpSampling" in kind],
    "joining": ["Concatenate"],
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("other", GROUPS)
def test_what_is_of_another_kind_is_no_twin(group, other):
    if group == other:
        return
    for kind in GROUPS[group]:
        for another in GROUPS[other]:
            for twin in TWINS[another][1]:
                assert not may_be_twin(step(TWINS[kind][0]), call_of(twin)), (kind, twin)


def test_a_step_is_called_by_its_kind_and_an_activation_by_that_word():
    dense = L.Dense(2, activation="relu")
    assert names_of_step(step(dense)) == {"dense"}
    assert names_of_step(step(dense, is_activation=True)) == {"activation"}
    assert names_of_step(step(L.Activation("tanh"))) == {"activation"}
    assert names_of_step(step(L.MaxPooling2D())) == {"maxpooling"}
    assert names_of_step(step(operation(lambda a, b: a + b, (2,), (2,)))) == {"add"}
    assert names_of_step(step(operation(keras.ops.relu, (2,)))) == {"relu"}


class Wrapping(nn.MaxPool2d):
    """A module of the reader's own that is derived from PyTorch's."""


def test_a_call_is_called_by_its_function_or_its_class_and_the_bases_of_that():
    assert names_of_call(function("max_pool2d")) == {"max_pool"}
    assert names_of_call(function("relu_")) == {"relu"}
    assert names_of_call(function("__add__")) == {"add"}
    assert names_of_call(module(MaxPool2dSame(2))) >= {"maxpool"}
    assert names_of_call(module(Wrapping(2))) == {"wrapping", "maxpool", "maxpoolnd"}
    assert "own_name" not in names_of_call(module(nn.ReLU()))
    assert names_of_call(module(nn.ReLU())) == {"relu"}
    assert "module" not in names_of_call(module(nn.ReLU()))


def test_a_call_with_a_rate_is_dropout_whatever_it_is_called():
    assert "dropout" in names_of_call(module(Unknown(), rate=0.25))
    assert "dropout" in names_of_call(module(Unknown(), rate=0.0))
    assert "dropout" not in names_of_call(module(Unknown()))
    assert may_be_twin(step(L.Dropout(0.5)), module(Unknown(), rate=0.25))
    assert not may_be_twin(step(L.Dropout(0.5)), module(Unknown()))


class Unknown(nn.Module):
    """A module of the reader's own whose name says nothing."""


class AddAndGo(nn.Module):
    """A module whose name is near to that of an operation, and is none."""


class Swish(nn.Module):
    """A module of the reader's own whose name says what it does."""


def test_a_module_of_the_readers_own_may_be_anything_but_dropout_and_order():
    assert may_be_anything(module(Unknown()))
    assert may_be_anything(module(AddAndGo()))
    assert not may_be_anything(module(Swish()))
    assert not may_be_anything(module(nn.Linear(2, 2)))
    assert not may_be_anything(function("unknown"))
    for kind in ("ReLU", "MaxPooling2D", "Add", "ZeroPadding2D", "Rescaling", "UpSampling2D"):
        assert may_be_twin(step(TWINS[kind][0]), module(Unknown()))
        assert not may_be_twin(step(TWINS[kind][0]), function("unknown"))
    for kind in (*GROUPS["dropout"], *GROUPS["order"], "RepeatVector"):
        assert not may_be_twin(step(TWINS[kind][0]), module(Unknown()))
    assert not may_be_twin(step(L.MaxPooling2D()), module(Swish()))


@pytest.mark.parametrize(
    "name", ["permute", "transpose", "reshape", "view", "flatten", "contiguous", "float", "clone", "pad", "expand", "t"]
)
def test_what_only_reorders_hands_on_the_same_numbers(name):
    assert same_numbers(function(name))


@pytest.mark.parametrize("made", [nn.Identity(), nn.Dropout(), nn.Flatten(), nn.ZeroPad2d(1), nn.ConstantPad1d(1, 0)])
def test_so_do_these_modules(made):
    assert same_numbers(module(made))


def test_what_computes_does_not_hand_on_the_same_numbers():
    assert not any(same_numbers(function(name)) for name in ("relu", "add", "mul", "mean", "getitem", "cat"))
    assert not same_numbers(module(nn.ReLU()))
    assert not same_numbers(module(Unknown()))
    # What a call makes of no tensor, or of one that the model did not compute, comes from nowhere.
    assert not same_numbers(function("reshape", inputs=()))
    assert not same_numbers(function("reshape", inputs=(-1, 0)))
    assert same_numbers(function("reshape", inputs=(0, -1)))
    assert same_numbers(module(Unknown(), rate=0.5))

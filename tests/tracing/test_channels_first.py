"""Right ports of Keras models that have the channels first, or move them: filled, proposed, and no alarm."""

from course.small_models import draw, pair_up
from parity import diagnose, propose_mapping, transfer
from tests.helpers.models import Twin, float64_model, norm

import keras
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn

FIRST = {"data_format": "channels_first"}


def separable(channels, filters, kernel, kind=nn.Conv2d, **settings):
    parts = nn.Sequential()
    parts.depthwise = kind(channels, channels, kernel, groups=channels, bias=False, **settings)
    parts.pointwise = kind(channels, filters, 1)
    return parts


def image(x):
    """Convolutions and all that may stand between them."""
    x = L.Rescaling(2.0, offset=-0.5)(x)
    x = L.Conv2D(5, (3, 2), padding="same", strides=2, activation="elu", name="conv", **FIRST)(x)
    x = L.BatchNormalization(axis=1, name="norm")(x)
    skip = x = L.PReLU(shared_axes=[2, 3], name="slopes")(x)
    x = L.ZeroPadding2D(((1, 1), (0, 1)), **FIRST)(x)
    x = L.DepthwiseConv2D((3, 2), depth_multiplier=1, name="depth", **FIRST)(x)
    x = L.SpatialDropout2D(0.3, **FIRST)(L.Add()([x, skip]))
    x = L.UpSampling2D(2, **FIRST)(x)
    x = L.Cropping2D(((1, 0), (0, 2)), **FIRST)(x)
    x = L.MaxPooling2D(2, **FIRST)(x)
    x = L.SeparableConv2D(4, 3, padding="same", name="sep", **FIRST)(x)
    x = L.GroupNormalization(2, axis=1, name="group")(x)
    x = L.Concatenate(axis=1)([x, L.AveragePooling2D(3, strides=1, padding="same", **FIRST)(x)])
    return L.Softmax(axis=1)(x)


class Image(nn.Module):
    """The twin of ``image``."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, (3, 2), 2)
        self.norm, self.slopes = norm(5), nn.PReLU(5)
        self.depth = nn.Conv2d(5, 5, (3, 2), groups=5)
        self.drop = nn.Dropout2d(0.3)
        self.sep, self.group = separable(5, 4, 3, padding=1), nn.GroupNorm(2, 4, 1e-3)
        self.mean = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x):
        """Map (batch, 3, h, w) to (batch, 8, h', w')."""
        x = F.elu(self.conv(F.pad(x * 2 - 0.5, (0, 1, 0, 1))))
        x = skip = self.slopes(self.norm(x))
        x = self.drop(self.depth(F.pad(x, (0, 1, 1, 1))) + skip)
        x = F.interpolate(x, scale_factor=2)[:, :, 1:, :-2]
        x = self.group(self.sep(F.max_pool2d(x, 2)))
        return torch.cat([x, self.mean(x)], 1).softmax(1)


IMAGE = ("conv", "norm", "slopes", "depth", "sep", "group")


class Headed(Image):
    """The twin of ``headed``."""

    def __init__(self, features):
        super().__init__()
        self.hidden, self.head = nn.Linear(features, 6), nn.Linear(6, 2)

    def forward(self, x):
        """Map (batch, 3, h, w) to (batch, 2)."""
        return self.head(self.hidden(self.features(super().forward(x))))


def twin_of(features, run):
    twin = Headed(features)
    twin.features = run
    return twin


def headed(*layers):
    def function(x):
        x = image(x)
        for make in layers:
            x = make(x)
        return L.Dense(2, name="head")(L.Dense(6, name="hidden")(x))

    return function


def series(x):
    x = L.Conv1D(6, 3, padding="causal", dilation_rate=2, name="conv", **FIRST)(x)
    x = L.MaxPooling1D(2, padding="same", **FIRST)(L.BatchNormalization(axis=1, name="norm")(x))
    x = L.SeparableConv1D(3, 3, name="sep", **FIRST)(x)
    x = L.Conv1DTranspose(3, 4, strides=2, name="up", **FIRST)(L.ZeroPadding1D(1, **FIRST)(x))
    return L.GlobalMaxPooling1D(keepdims=True, **FIRST)(x)


def run_series(t, x):
    x = F.max_pool1d(F.pad(t.norm(t.conv(F.pad(x, (4, 0)))), (0, 1), value=float("-inf")), 2)
    return t.up(F.pad(t.sep(x), (1, 1))).amax(2, keepdim=True)


def volume(x):
    x = L.Conv3D(4, 2, activation="relu", name="conv", **FIRST)(x)
    x = L.ZeroPadding3D(1, **FIRST)(L.BatchNormalization(axis=1, name="norm")(x))
    return L.Conv3DTranspose(3, 2, name="up", **FIRST)(L.UpSampling3D(2, **FIRST)(x))


def run_volume(t, x):
    x = F.pad(t.norm(t.conv(x).relu()), (1, 1) * 3)
    return t.up(F.interpolate(x, scale_factor=2))


def there_and_back(x):
    """The layers have the channels first, and the model's input and output have them last."""
    x = L.Permute((3, 1, 2))(x)
    x = L.LeakyReLU(negative_slope=0.25)(L.DepthwiseConv2D(3, name="a", **FIRST)(x))
    x = L.Conv2D(6, 3, name="b")(L.Permute((2, 3, 1))(x))
    return L.BatchNormalization(name="norm")(x)


def and_back_again(x):
    """The input has the channels first, and the layers have them last."""
    x = L.Conv2D(4, 3, name="a")(keras.ops.transpose(x, (0, 2, 3, 1)))
    return keras.ops.moveaxis(L.BatchNormalization(name="norm")(x), -1, 1)


def run_back_again(t, x):
    return t.norm(t.a(x))


def by_rows(x):
    """A normalization along the rows of images that have the channels last."""
    return L.Conv2D(4, 3, name="b")(L.ReLU()(L.BatchNormalization(axis=1, name="norm")(L.Conv2D(6, 3, name="a")(x))))


def squeezed(x):
    """A gate for each channel, as in squeeze and excite."""
    x = L.DepthwiseConv2D(3, name="a", **FIRST)(x)
    gate = L.Dense(4, activation="sigmoid", name="gate")(L.GlobalAveragePooling2D(**FIRST)(x))
    return L.SeparableConv2D(3, 1, name="b", **FIRST)(L.Multiply()([x, L.Reshape((4, 1, 1))(gate)]))


def run_squeezed(t, x):
    x = t.a(x)
    return t.b(x * torch.sigmoid(t.gate(x.mean((2, 3))))[:, :, None, None])


class LayerNorm2d(nn.LayerNorm):
    """A layer norm that takes (batch, channels, h, w), as torchvision has it."""

    def forward(self, x):
        """Normalize each pixel."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


PORTS = {
    "images": ((3, 12, 15), image, Image, IMAGE),
    "flattened as they lie": (
        (3, 12, 15),
        headed(L.Flatten()),
        lambda: twin_of(8 * 5 * 7, nn.Flatten()),
        (*IMAGE, "hidden", "head"),
    ),
    "pooled": (
        (3, 12, 15),
        headed(L.GlobalAveragePooling2D(**FIRST)),
        lambda: twin_of(8, lambda x: x.mean((2, 3))),
        (*IMAGE, "hidden", "head"),
    ),
    "series": (
        (4, 11),
        series,
        lambda: Twin(
            run_series,
            conv=nn.Conv1d(4, 6, 3, dilation=2),
            norm=norm(6, nn.BatchNorm1d),
            sep=separable(6, 3, 3, nn.Conv1d),
            up=nn.ConvTranspose1d(3, 3, 4, 2),
        ),
        ("conv", "norm", "sep", "up"),
    ),
    "volumes": (
        (2, 6, 7, 8),
        volume,
        lambda: Twin(run_volume, conv=nn.Conv3d(2, 4, 2), norm=norm(4, nn.BatchNorm3d), up=nn.ConvTranspose3d(4, 3, 2)),
        ("conv", "norm", "up"),
    ),
    "permuted to channels first": (
        (9, 8, 3),
        there_and_back,
        lambda: Twin(
            lambda t, x: t.norm(t.b(F.leaky_relu(t.a(x), 0.25))),
            a=nn.Conv2d(3, 3, 3, groups=3),
            b=nn.Conv2d(3, 6, 3),
            norm=norm(6),
        ),
        ("a", "b", "norm"),
    ),
    "permuted to channels last": (
        (3, 9, 8),
        and_back_again,
        lambda: Twin(run_back_again, a=nn.Conv2d(3, 4, 3), norm=norm(4)),
        ("a", "norm"),
    ),
    "a square, as wide as it has channels": (
        (5, 5, 5),
        lambda x: L.DepthwiseConv2D(3, padding="same", use_bias=False, name="a", **FIRST)(
            L.BatchNormalization(axis=1, name="norm")(x)
        ),
        lambda: Twin(lambda t, x: t.a(t.norm(x)), a=nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=False), norm=norm(5)),
        ("a", "norm"),
    ),
    "a normalization along the rows": (
        (10, 9, 3),
        by_rows,
        lambda: Twin(
            lambda t, x: t.b(t.norm(t.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu()),
            a=nn.Conv2d(3, 6, 3),
            norm=norm(8),
            b=nn.Conv2d(6, 4, 3),
        ),
        ("a", "norm", "b"),
    ),
    "gates": (
        (4, 8, 7),
        squeezed,
        lambda: Twin(run_squeezed, a=nn.Conv2d(4, 4, 3, groups=4), gate=nn.Linear(4, 4), b=separable(4, 3, 1)),
        ("a", "gate", "b"),
    ),
    "a layer norm of the channels": (
        (4, 8, 7),
        lambda x: L.LayerNormalization(axis=1, name="norm")(L.DepthwiseConv2D(3, name="a", **FIRST)(x)),
        lambda: Twin(lambda t, x: t.norm(t.a(x)), a=nn.Conv2d(4, 4, 3, groups=4), norm=LayerNorm2d(4, eps=1e-3)),
        ("a", "norm"),
    ),
    "a Dense along the columns": (
        (4, 8, 9),
        lambda x: L.Dense(5, activation="tanh", name="b")(L.DepthwiseConv2D(3, name="a", **FIRST)(x)),
        lambda: Twin(lambda t, x: torch.tanh(t.b(t.a(x))), a=nn.Conv2d(4, 4, 3, groups=4), b=nn.Linear(7, 5)),
        ("a", "b"),
    ),
    "time steps": (
        (6, 3, 5, 7),
        lambda x: L.TimeDistributed(L.DepthwiseConv2D(3, name="a", **FIRST), name="td")(x),
        lambda: Twin(lambda t, x: t.a(x.flatten(0, 1)).unflatten(0, (-1, 6)), a=nn.Conv2d(3, 3, 3, groups=3)),
        ("a",),
    ),
}


def port_of(name):
    shape, function, make, layers = PORTS[name]
    model, twin = float64_model(shape, function), make().double()
    mapping = pair_up(model, twin, {layer: layer for layer in layers})
    transfer(model, twin, mapping)
    return model, twin.eval(), draw(3, *shape), mapping


@pytest.mark.parametrize("name", PORTS)
def test_no_alarm_on_a_right_port_with_the_channels_first(name):
    model, twin, x, mapping = port_of(name)
    assert str(diagnose(model, twin, x, mapping)) == "no layer diverges"
    assert str(diagnose(model, twin, x, mapping, torch_x=None, training=True)) == "no layer diverges"


def test_what_one_layer_returns_may_be_another_input_of_the_next():
    """Keras normalizes along the rows of what a convolution returns, and the twin along its channels, as many."""
    model = float64_model((6, 6, 3), lambda x: L.BatchNormalization(axis=1, name="norm")(L.Conv2D(5, 2, name="a")(x)))
    twin = Twin(lambda t, x: t.norm(t.a(x)), a=nn.Conv2d(3, 5, 2), norm=norm(5)).double().eval()
    mapping = pair_up(model, twin, {"a": "a", "norm": "norm"})
    transfer(model, twin, mapping)
    said = str(diagnose(model, twin, draw(2, 6, 6, 3), mapping))
    assert said.startswith(
        "norm (norm) does not take what the layers before it return\n  input axes exchanged (in the order ("
    )


@pytest.mark.parametrize("name", PORTS)
def test_the_mapping_of_a_right_port_with_the_channels_first_is_proposed(name):
    model, twin, x, mapping = port_of(name)
    proposal = propose_mapping(model, twin, x)
    assert {tuple(row) for row in proposal.mapping.to_numpy()} == {tuple(row) for row in mapping.to_numpy()}
    assert proposal.flatten == {}

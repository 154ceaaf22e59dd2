"""Moving weights: every kind of layer right, every mistake named, and never half a model."""

import re
import warnings

from course.small_models import pair_up
from parity import ParityError, largest_difference, read_mapping, transfer
from tests.helpers.models import (
    ROUNDING,
    draw,
    fill,
    layer,
    refused,
    rows_for,
    separable,
    sequential,
    snapshot,
    spoil,
    table,
)

import keras
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

# --- Nested models, shared layers, shared tensors -------------------------------------------------------------------


def nested():
    """A functional model with a Sequential and a functional model as layers, the first of them called twice."""
    start = keras.Input((5,), dtype="float64")
    inner = keras.Sequential([start, layer("Dense", 5, name="d"), layer("PReLU", name="p")], name="seq")
    start = keras.Input((5,), dtype="float64")
    deep = keras.Model(start, layer("LayerNormalization", name="n")(layer("Dense", 3, name="e")(start)), name="fun")
    x = keras.Input((5,), dtype="float64")
    return fill(keras.Model(x, deep(inner(inner(x)))))


class Nested(nn.Module):
    """Its twin, which has registered the shared module twice."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(5, 5), nn.PReLU(5))
        self.again = self.shared
        self.last = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3, 1e-3))

    def forward(self, x):
        """Call the shared module twice, as the Keras model does."""
        return self.last(self.again(self.shared(x)))


def rows_of_nested(model, shared="shared"):
    keys = [f"{shared}.{key}" for key in ("0.weight", "0.bias", "1.weight")]
    keys += [f"last.{key}" for key in ("0.weight", "0.bias", "1.weight", "1.bias")]
    return list(zip([variable.path for variable in model.weights], keys, strict=True))


@pytest.mark.parametrize("shared", ["shared", "again"])
def test_nested_models_and_a_shared_layer_move(shared):
    model, twin, x = nested(), Nested().double(), draw(2, 5, seed=1)
    assert len(twin.state_dict()) == 10
    transfer(model, spoil(twin), table(*rows_of_nested(model, shared)))
    with torch.no_grad():
        assert largest_difference(model(x), twin(torch.from_numpy(x))) < ROUNDING


def test_a_tensor_with_two_keys_takes_one_row():
    model, twin = nested(), Nested().double()
    rows = rows_of_nested(model)
    refused(model, twin, table(*rows, (rows[0][0], "again.0.weight")), [
        "^line 9: Keras weight .*d/kernel has a row already, line 2; its tensors have 10 rows together, and it becomes",
        "^line 9: PyTorch tensor again.0.weight has a row already, line 2$",
    ])  # fmt: skip


def test_two_tensors_in_the_same_memory_are_one():
    """Weights tied by ``.data`` are two parameters that the second row would fill over the first."""
    model = sequential((5,), layer("Dense", 5, name="d"), layer("Dense", 5, name="e"))
    twin = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).double()
    twin[1].weight.data = twin[0].weight.data
    paths = [variable.path for variable in model.weights]
    rows = zip(paths, ("0.weight", "0.bias", "1.weight", "1.bias"), strict=True)
    refused(model, twin, table(*rows), ["line 4: PyTorch tensor 1.weight .*line 2"])


def test_layers_of_the_same_path_are_refused():
    start = keras.Input((5,))
    inner = [keras.Sequential([keras.Input((5,)), keras.layers.Dense(5, name="d")], name="same") for _ in range(2)]
    outer = [keras.Sequential([keras.Input((5,)), model], name=n) for model, n in zip(inner, "ab", strict=True)]
    model = keras.Model(start, outer[1](outer[0](start)))
    path = model.weights[0].path
    assert path == model.weights[2].path
    twin = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    rows = (path, "0.weight"), (model.weights[1].path, "0.bias"), ("", "1.weight"), ("", "1.bias")
    refused(model, twin, table(*rows), ["2 weights of the Keras model have the path .*kernel", "path .*bias", "1[.]"])


# --- A small pair of models to make mistakes with --------------------------------------------------------------------

SCENE = """keras,torch
c/kernel,c.weight
c/bias,c.bias
b/gamma,b.weight
b/beta,b.bias
b/moving_mean,b.running_mean
b/moving_variance,b.running_var
,b.num_batches_tracked
d/kernel,d.weight
d/bias,d.bias
e/kernel,e.weight
e/bias,e.bias
"""


class Twin(nn.Module):
    """The twin of ``scene``; nothing here needs its outputs."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 6, (3, 2))
        self.b = nn.BatchNorm2d(6, 1e-3, 0.01)
        self.d = nn.Linear(6, 6)
        self.e = nn.Linear(6, 6)


class Scene:
    """Two models and the mapping file, by line, for a test to spoil."""

    def __init__(self):
        x = images = keras.Input((5, 4, 3))
        x = keras.layers.BatchNormalization(name="b")(keras.layers.Conv2D(6, (3, 2), name="c")(x))
        x = keras.layers.GlobalAveragePooling2D()(x)
        heads = [keras.layers.Dense(6, name=name)(x) for name in "de"]
        self.model = fill(keras.Model(images, heads))
        self.twin = spoil(Twin())
        self.lines = dict(enumerate(SCENE.splitlines(), start=1))

    def mapping(self, folder):
        """Write the lines to a file, and read it."""
        path = folder / "names.csv"
        path.write_text("\n".join(self.lines[n] for n in range(1, 1 + max(self.lines))), encoding="utf-8")
        return read_mapping(path)


@pytest.fixture
def scene():
    return Scene()


# --- What the tensors keep ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_twin_keeps_its_dtype_and_its_tensors(scene, tmp_path, dtype):
    model, twin, mapping = scene.model, scene.twin.to(dtype), scene.mapping(tmp_path)
    tensors = twin.state_dict(keep_vars=True)
    identity = {key: (id(t), t.data_ptr(), t.dtype, t.requires_grad) for key, t in tensors.items()}
    transfer(model, twin, mapping)
    after = twin.state_dict(keep_vars=True)
    assert {key: (id(t), t.data_ptr(), t.dtype, t.requires_grad) for key, t in after.items()} == identity
    kernel = torch.from_numpy(model.get_layer("d").kernel.numpy()).T.to(dtype)
    assert torch.equal(twin.d.weight, kernel)
    assert twin.d.weight.dtype == dtype
    assert twin.b.num_batches_tracked.dtype == torch.int64


def test_neither_model_follows_the_other_afterwards(scene, tmp_path):
    model, twin, mapping = scene.model, scene.twin, scene.mapping(tmp_path)
    transfer(model, twin, mapping)
    keras_before, torch_before = snapshot(model), snapshot(twin)
    # In this order: Keras gives a weight new memory when it is assigned, and would hide that it had been shared.
    spoil(twin)
    assert snapshot(model) == keras_before
    transfer(model, twin, mapping)
    assert snapshot(twin) == torch_before
    fill(model, seed=5)
    assert snapshot(model) != keras_before
    assert snapshot(twin) == torch_before


def test_moving_twice_gives_the_same(scene, tmp_path):
    model, twin, mapping = scene.model, scene.twin, scene.mapping(tmp_path)
    transfer(model, twin, mapping)
    once = snapshot(twin)
    transfer(model, twin, mapping)
    assert snapshot(twin) == once


def test_the_order_of_the_rows_does_not_matter(scene, tmp_path):
    model, twin, mapping = scene.model, scene.twin, scene.mapping(tmp_path)
    transfer(model, twin, mapping)
    once = snapshot(twin)
    transfer(model, spoil(twin), mapping[::-1])
    assert snapshot(twin) == once


def test_a_reader_may_bring_a_table_of_their_own(scene):
    rows = [line.split(",") for line in SCENE.splitlines()[1:]]
    mapping = pd.DataFrame([(keras_path or None, key) for keras_path, key in rows], columns=["keras", "torch"])
    transfer(scene.model, scene.twin, mapping)
    assert largest_difference(scene.model.get_layer("e").kernel, scene.twin.e.weight.T) == 0
    scene.twin.b.eps = 1e-5
    refused(scene.model, scene.twin, mapping, ["^row 2: eps of b is 1e-05; b needs 0.001$"])


def test_variances_below_zero_by_rounding_alone_are_taken(scene, tmp_path):
    """The official DroNet file has one of -4e-17."""
    variance = np.array([-4e-17, 1, 2, 3, 4, 0], dtype=np.float32)
    scene.model.get_layer("b").moving_variance.assign(variance)
    transfer(scene.model, scene.twin, scene.mapping(tmp_path))
    assert scene.twin.b.running_var.numpy().tobytes() == variance.tobytes()
    assert scene.twin.b.num_batches_tracked == 0


# --- Settings that must agree ---------------------------------------------------------------------------------------

SETTINGS = {
    "stride": lambda: (layer("Conv2D", 5, 3, strides=(2, 1)), nn.Conv2d(3, 5, 3, (1, 2)), (6, 7, 3)),
    "dilation": lambda: (
        layer("Conv2D", 5, 2, dilation_rate=(1, 2)),
        nn.Conv2d(3, 5, 2, dilation=(2, 1)),
        (6, 7, 3),
    ),
    "groups": lambda: (layer("Conv2D", 6, (3, 2), groups=2), nn.Conv2d(2, 6, (3, 2)), (6, 7, 4)),
    "stride of a conv 1d": lambda: (layer("Conv1D", 5, 3, strides=2), nn.Conv1d(3, 5, 3), (7, 3)),
    "stride of a transposed conv": lambda: (
        layer("Conv2DTranspose", 5, 3, strides=(2, 1)),
        nn.ConvTranspose2d(3, 5, 3),
        (6, 7, 3),
    ),
    "dilation of a transposed conv": lambda: (
        layer("Conv2DTranspose", 5, 3, dilation_rate=2),
        nn.ConvTranspose2d(3, 5, 3),
        (6, 7, 3),
    ),
    "groups of a transposed conv": lambda: (
        layer("Conv2DTranspose", 3, 2, use_bias=False),
        nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False),
        (6, 7, 4),
    ),
    "groups of a depthwise conv": lambda: (layer("DepthwiseConv2D", 3), nn.Conv2d(1, 3, 3), (6, 7, 3)),
    "groups of a depthwise conv, multiplied": lambda: (
        layer("DepthwiseConv2D", 3, depth_multiplier=2),
        nn.Conv2d(6, 6, 3, groups=6),
        (6, 7, 3),
    ),
    "stride of a depthwise conv": lambda: (
        layer("DepthwiseConv1D", 3, strides=2),
        nn.Conv1d(3, 3, 3, groups=3),
        (7, 3),
    ),
    "dilation of a depthwise conv": lambda: (
        layer("DepthwiseConv2D", 3, dilation_rate=2),
        nn.Conv2d(3, 3, 3, groups=3),
        (6, 7, 3),
    ),
    "eps": lambda: (layer("BatchNormalization"), nn.BatchNorm2d(5, momentum=0.01), (4, 3, 5)),
    "eps, a thousandth off": lambda: (
        layer("BatchNormalization", epsilon=1.001e-5),
        nn.BatchNorm2d(5, 1e-5, 0.01),
        (4, 3, 5),
    ),
    "eps of a layer norm": lambda: (layer("LayerNormalization"), nn.LayerNorm(5), (4, 5)),
    "eps of a group norm": lambda: (layer("GroupNormalization", 2), nn.GroupNorm(2, 6), (4, 3, 6)),
    "num_groups": lambda: (layer("GroupNormalization", 2), nn.GroupNorm(3, 6, 1e-3), (4, 3, 6)),
    "momentum": lambda: (layer("BatchNormalization"), nn.BatchNorm2d(5, 1e-3), (4, 3, 5)),
    "momentum, not its complement": lambda: (layer("BatchNormalization"), nn.BatchNorm2d(5, 1e-3, 0.99), (4, 3, 5)),
    "momentum of a cumulative average": lambda: (
        layer("BatchNormalization"),
        nn.BatchNorm2d(5, 1e-3, None),
        (4, 3, 5),
    ),
    "max_norm": lambda: (layer("Embedding", 7, 4), nn.Embedding(7, 4, max_norm=1.0), (3,)),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_setting_that_differs_is_refused(what):
    keras_layer, module, shape = SETTINGS[what]()
    model, twin = sequential(shape, keras_layer), nn.ModuleDict({"m": module})
    rows = [(path, f"m.{key}") for path, key in rows_for(model, module)]
    setting = re.split(",| of ", what)[0]
    refused(
        model,
        twin,
        table(*rows),
        [rf"^line 2: {setting}( \(1 - Keras's\))? of m is .*; {keras_layer.name} needs "],
        training=True,
    )


@pytest.mark.parametrize("norms", [1, 3])
def test_a_momentum_does_not_keep_a_port_from_predicting(norms):
    """It is a warning; for a twin that will be trained it is a fault, and nothing is moved."""
    model = sequential((4, 3, 5), *(layer("BatchNormalization", momentum=0.0, name=f"n{i}") for i in range(norms)))
    fill(model)
    twin = nn.ModuleDict({f"n{i}": nn.BatchNorm2d(5, 1e-3) for i in range(norms)}).double()
    mapping = pair_up(model, twin, {f"n{i}": f"n{i}" for i in range(norms)})
    faults = [rf"momentum \(1 - Keras's\) of n{i} is 0.1; n{i} needs 1$" for i in range(norms)]
    refused(model, twin, mapping, faults, training=True)
    more = ", and 2 more" if norms > 1 else ""
    said = rf"momentum \(1 - Keras's\) of n0 is 0.1; n0 needs 1{more}. This changes no prediction"
    with pytest.warns(UserWarning, match=said) as caught:
        transfer(model, twin, mapping)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert torch.equal(twin["n0"].weight.data, torch.from_numpy(model.layers[0].gamma.numpy()))


def test_a_right_momentum_raises_no_warning():
    model = sequential((4, 3, 5), layer("BatchNormalization", name="n"))
    module = nn.BatchNorm2d(5, 1e-3, 0.01)
    rows = [(path, f"m.{key}") for path, key in rows_for(model, module)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transfer(model, nn.ModuleDict({"m": module}), table(*rows))


@pytest.mark.parametrize(
    ("momentum", "actual", "said"),
    [
        (0.99, 0.1, "is 0.1; batch_normalization needs 0.01$"),  # 1 - 0.99 is 0.010000000000000009
        (0.9, 1 - 0.99, "is 0.01; batch_normalization needs 0.1$"),  # 1 - 0.9 is 0.09999999999999998
        (0.99, 0.0100001, "is 0.0100001; batch_normalization needs 0.01$"),  # a small difference is still seen
        (0.99, None, "is None; batch_normalization needs 0.01$"),
    ],
)
def test_settings_are_said_without_their_rounding(momentum, actual, said):
    model = sequential((4, 3, 5), layer("BatchNormalization", momentum=momentum, name="batch_normalization"))
    module = nn.BatchNorm2d(5, 1e-3, actual)
    rows = [(path, f"m.{key}") for path, key in rows_for(model, module)]
    fault = rf"^line 2: momentum \(1 - Keras's\) of m {said}"
    refused(model, nn.ModuleDict({"m": module}), table(*rows), [fault], training=True)


@pytest.mark.parametrize(
    ("part", "module", "fault"),
    [
        ("depthwise", nn.Conv2d(3, 6, 3, 1, groups=3, bias=False), "line 2: stride of depthwise is .*needs .2, 2.$"),
        ("depthwise", nn.Conv2d(6, 6, 3, 2, groups=6, bias=False), "line 2: groups of depthwise is 6; .* needs 3$"),
        ("pointwise", nn.Conv2d(6, 4, 1, 2), "line 3: stride of pointwise is .* needs .1, 1.$"),
        ("pointwise", nn.Conv2d(12, 4, 1, groups=2), "line 3: groups of pointwise is 2; .* needs 1$"),
    ],
)
def test_a_setting_of_either_part_of_a_separable_convolution_is_checked(part, module, fault):
    model = sequential((6, 7, 3), layer("SeparableConv2D", 4, 3, strides=2, depth_multiplier=2))
    twin = separable(nn.Conv2d, 4, 3, stride=2)
    mapping = table(*rows_for(model, twin))
    transfer(model, twin, mapping)
    setattr(twin, part, module)
    refused(model, twin, mapping, [fault])


def test_the_two_parts_of_a_separable_convolution_are_not_exchanged():
    """With 1 x 1 kernels and as many outputs as inputs, the shapes would allow it."""
    model = sequential((6, 7, 1), layer("SeparableConv2D", 1, 1, use_bias=False))
    twin = nn.Sequential()
    twin.add_module("depthwise", nn.Conv2d(1, 1, 1, bias=False))
    twin.add_module("pointwise", nn.Conv2d(1, 1, 1, bias=False))
    kernels = [variable.path for variable in model.weights]
    refused(model, twin, table((kernels[0], "depthwise.weight"), (kernels[1], "depthwise.weight")), [
        "line 3: PyTorch tensor depthwise.weight has a row already",
        "no row for PyTorch tensor pointwise.weight",
    ])  # fmt: skip


# --- One mistake at a time ------------------------------------------------------------------------------------------


def at(lines):
    """Replace lines of the mapping file; an empty line is no row and leaves the numbers of the others."""
    return lambda scene: scene.lines.update(lines)


def put(name, weight, value, then=lambda scene: None):
    """Replace the last element of a Keras weight."""

    def change(scene):
        variable = getattr(scene.model.get_layer(name), weight)
        values = variable.numpy()
        values.flat[-1] = value
        variable.assign(values)
        then(scene)

    return change


def twin(name, make):
    """Replace a module of the twin."""
    return lambda scene: setattr(scene.twin, name, make())


def buffer(name, make):
    return lambda scene: setattr(scene.twin.b, name, make())


def inference_linear():
    with torch.inference_mode():
        return nn.Linear(6, 6)


def one_bias_for_all():
    linear = nn.Linear(6, 6)
    linear.bias = nn.Parameter(torch.zeros(1))
    return linear


MISTAKES = {
    "unknown Keras weight": (
        at({2: "c/kernal,c.weight"}),
        ["^line 2: there is no Keras weight c/kernal; did you mean c/kernel[?]$", "^no row for Keras weight c/kernel$"],
    ),
    "name as Keras 2 had it": (
        at({9: "d/kernel:0,d.weight"}),
        ["^line 9: there is no Keras weight d/kernel:0; did you mean d/kernel[?]$", "^no row for Keras weight d/kern"],
    ),
    "name unlike any": (
        at({3: "zzz,c.bias"}),
        ["^line 3: there is no Keras weight zzz$", "^no row for Keras weight c/bias$"],
    ),
    "unknown tensor": (
        at({3: "c/bias,c.bais"}),
        ["^line 3: there is no PyTorch tensor c.bais; did you mean c.bias[?]$", "^no row for PyTorch tensor c.bias$"],
    ),
    "unknown module": (
        at({8: ",bn.num_batches_tracked"}),
        ["^line 8: there is no PyTorch tensor bn.num_b.*; did you mean b.num_b", "^no row for PyTorch tensor b.num_b"],
    ),
    "row twice": (
        at({13: "d/bias,d.bias"}),
        ["^line 13: Keras weight d/bias .*, line 10$", "^line 13: PyTorch tensor d.bias .*, line 10$"],
    ),
    "Keras weight twice": (
        at({11: "d/kernel,e.weight"}),
        [
            "^line 11: Keras weight d/kernel has a row already, line 9; ",
            "^no row for Keras weight e/kernel$",
        ],
    ),
    "tensor twice": (
        at({11: "e/kernel,d.weight"}),
        [
            "^line 11: PyTorch tensor d.weight has a row already, line 9; together they have 12 rows, and it is ",
            "^no row for PyTorch tensor e.weight$",
        ],
    ),
    "row missing": (at({10: ""}), ["^no row for Keras weight d/bias$", "^no row for PyTorch tensor d.bias$"]),
    "row for a counter missing": (at({8: ""}), ["^no row for PyTorch tensor b.num_batches_tracked$"]),
    "field empty that must not be": (
        at({9: ",d.weight"}),
        ["^line 9: d.weight needs a Keras weight$", "^no row for Keras weight d/kernel$"],
    ),
    "statistics left out": (
        at({6: ",b.running_mean"}),
        ["^line 6: b.running_mean needs a Keras weight$", "^no row for Keras weight b/moving_mean$"],
    ),
    "scale left out": (
        at({4: ",b.weight"}),
        ["^line 4: b.weight needs a Keras weight$", "^no row for Keras weight b/gamma$"],
    ),
    "counter from a weight": (
        at({4: "", 8: "b/gamma,b.num_batches_tracked"}),
        ["^line 8: b/gamma belongs in b.weight, not in b.num_b", "^no row for PyTorch tensor b.weight$"],
    ),
    "scale and offset exchanged": (
        at({4: "b/beta,b.weight", 5: "b/gamma,b.bias"}),
        ["^line 4: b/beta belongs in b.bias, not in b.weight$", "^line 5: b/gamma belongs in b.weight, not in b.bias$"],
    ),
    "statistics exchanged": (
        at({6: "b/moving_variance,b.running_mean", 7: "b/moving_mean,b.running_var"}),
        ["^line 6: b/moving_variance belongs in b.running_var", "^line 7: b/moving_mean belongs in b.running_mean"],
    ),
    "kernel and bias to two modules": (
        at({10: "d/bias,e.bias", 12: "e/bias,d.bias"}),
        [
            "^line 10: d/bias goes to e, but d/kernel to d [(]line 9[)]$",
            "^line 11: e takes e/kernel, but d/bias as well [(]line 10[)]$",
            "^line 12: e/bias goes to d, but e/kernel to e [(]line 11[)]$",
            "^line 12: d takes e/bias, but d/kernel as well [(]line 9[)]$",
        ],
    ),
    "other shape": (
        twin("c", lambda: nn.Conv2d(3, 6, (2, 3))),
        [r"^line 2: c/kernel \(3, 2, 3, 6\) becomes \(6, 3, 3, 2\), but c.weight is \(6, 3, 2, 3\)$"],
    ),
    "shape of which one is a multiple": (
        twin("e", one_bias_for_all),
        [r"^line 12: e/bias \(6,\) becomes \(6,\), but e.bias is \(1,\)$"],
    ),
    "another kind of convolution": (
        twin("c", lambda: nn.ConvTranspose2d(6, 3, (3, 2), bias=False)),
        [
            "^line 2: c/kernel goes to the weight of a Conv2d; c.weight is in a ConvTranspose2d$",
            "^line 3: there is no PyTorch tensor c.bias",
        ],
    ),
    "another kind of normalization": (
        twin("b", lambda: nn.InstanceNorm2d(6, 1e-3, 0.01, affine=True, track_running_stats=True)),
        [
            "^line 4: b/gamma goes to the weight of a BatchNorm; b.weight is in a InstanceNorm2d$",
            "^line 5: b/beta goes to the bias of a BatchNorm",
            "^line 6: b/moving_mean goes to the running_mean of a BatchNorm",
            "^line 7: b/moving_variance goes to the running_var of a BatchNorm",
        ],
    ),
    "NaN": (put("c", "kernel", np.nan), ["^line 2: c/kernel has values that are NaN or infinite$"]),
    "infinity": (put("d", "bias", np.inf), ["^line 10: d/bias has values that are NaN or infinite$"]),
    "infinity below": (put("e", "kernel", -np.inf), ["^line 11: e/kernel has values that are NaN or infinite$"]),
    "NaN among the variances": (put("b", "moving_variance", np.nan), ["^line 7: b/moving_variance has .*NaN"]),
    "negative variance": (
        put("b", "moving_variance", -0.5),
        ["^line 7: b/moving_variance has negative variances, the least -0.5$"],
    ),
    "slightly negative variance": (put("b", "moving_variance", -1e-4), ["^line 7: .* negative variances.* -0.0001$"]),
    "too large for float16": (
        put("d", "kernel", -1e5, then=lambda scene: scene.twin.half()),
        ["^line 9: d/kernel has values too large for torch.float16$"],
    ),
    "nowhere to go": (
        twin("d", lambda: nn.Linear(6, 6, device="meta")),
        ["^line 9: d/kernel has nowhere to go: .* meta device$", "^line 10: d/bias has nowhere to go"],
    ),
    "integers": (
        buffer("running_mean", lambda: torch.zeros(6, dtype=torch.int64)),
        ["^line 6: b/moving_mean cannot be kept as torch.int64$"],
    ),
    "tensor that repeats one element": (
        buffer("running_var", lambda: torch.ones(1).expand(6)),
        ["^line 7: b.running_var cannot be written"],
    ),
    "tensor made for inference": (
        twin("e", inference_linear),
        ["^line 11: e.weight cannot be written", "^line 12: e.bias cannot be written"],
    ),
    "quantized Keras layer": (
        lambda scene: scene.model.get_layer("d").quantize("int8"),
        ["^line 9: d/kernel is kept as torch.int8", "^no row for Keras weight d/kernel_scale$"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_and_nothing_moves(scene, tmp_path, mistake):
    make, faults = MISTAKES[mistake]
    make(scene)
    refused(scene.model, scene.twin, scene.mapping(tmp_path), faults)


def test_the_scene_without_a_mistake_moves(scene, tmp_path):
    """Else the test above would prove nothing."""
    before = snapshot(scene.twin)
    transfer(scene.model, scene.twin, scene.mapping(tmp_path))
    after = snapshot(scene.twin)
    assert all(after[key] != before[key] for key in before)


def test_all_mistakes_are_listed_at_once_with_their_lines(scene, tmp_path):
    at({2: "c/kernal,c.weight", 5: "", 9: "e/kernel,d.weight", 10: "d/bias,d.bais", 13: "e/bias,e.bias"})(scene)
    put("b", "moving_mean", np.nan)(scene)
    put("b", "moving_variance", -1.0)(scene)
    scene.twin.b.eps = 1e-5
    refused(scene.model, scene.twin, scene.mapping(tmp_path), [
        "^line 2: there is no Keras weight c/kernal",
        "^line 4: eps of b is 1e-05",
        "^line 6: b/moving_mean has values that are NaN",
        "^line 7: b/moving_variance has negative variances, the least -1$",
        "^line 10: there is no PyTorch tensor d.bais",
        "^line 11: Keras weight e/kernel has a row already, line 9; ",
        "^line 12: e/bias goes to e, but e/kernel to d [(]line 9[)]$",
        "^line 13: Keras weight e/bias has a row already, line 12$",
        "^line 13: PyTorch tensor e.bias has a row already, line 12$",
        *[f"^no row for Keras weight {name}$" for name in ("c/kernel", "b/beta", "d/kernel")],
        *[f"^no row for PyTorch tensor {name}$" for name in ("b.bias", "d.bias")],
    ])  # fmt: skip


def test_a_model_on_the_meta_device_is_refused(scene, tmp_path):
    lines = (2, 3, 4, 5, 6, 7, 9, 10, 11, 12)
    faults = [f"^line {line}: .* has nowhere to go: the PyTorch model is on the meta device$" for line in lines]
    refused(scene.model, scene.twin.to("meta"), scene.mapping(tmp_path), faults)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_compiled_by_torchscript_is_refused():
    model = sequential((4,), layer("Dense", 2, name="d"))
    compiled = torch.jit.script(nn.ModuleDict({"d": nn.Linear(4, 2)}))
    rows = [(variable.path, f"d.{name}") for variable, name in zip(model.weights, ("weight", "bias"), strict=True)]
    refused(model, compiled, table(*rows), [
        "^line 2: .*/kernel goes to the weight of a Linear; d.weight is in a RecursiveScriptModule$",
        "^line 3: .*/bias goes to the bias of a Linear; d.bias is in a RecursiveScriptModule$",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "arguments", "weight"),
    [
        ("ConvLSTM1D", (4, 2), "kernel: the kind ConvLSTMCell is not covered"),
        (
            "EinsumDense",
            ("abcd,bcde->abce", (5, 6, 4)),
            "kernel: an EinsumDense has no weight kernel that can be moved",
        ),
    ],
)
def test_a_kind_of_layer_that_is_not_covered_is_refused(kind, arguments, weight):
    model = sequential((5, 6, 3), layer(kind, *arguments, name="x"), layer("Dense", 2, name="y"))
    twin = spoil(nn.ModuleDict({"x": nn.Linear(3, 4), "y": nn.Linear(4, 2)}))
    *x, kernel, bias = [variable.path for variable in model.weights]
    rows = ((x[0], "x.weight"), ("", "x.bias"), (kernel, "y.weight"), (bias, "y.bias"))
    refused(model, twin, table(*rows), [
        f"^line 2: .*/{weight}",
        "^line 3: x.bias needs a Keras weight; if it has none, ",
        *[f"^no row for Keras weight {path}$" for path in x[1:]],
    ])  # fmt: skip


def test_a_layer_without_weights_need_not_be_covered():
    model = sequential((3,), keras.layers.UnitNormalization(dtype="float64"), layer("Dense", 2))
    twin = nn.Linear(3, 2).double()
    transfer(model, twin, table(*rows_for(model, twin)))
    assert largest_difference(model.layers[-1].kernel, twin.weight.T) == 0


def test_a_slope_for_each_pixel_fits_no_prelu():
    model = sequential((4, 3, 5), layer("PReLU", name="p"))
    path = model.weights[0].path
    refused(model, nn.ModuleDict({"p": nn.PReLU(60)}), table((path, "p.weight")), [
        r"^line 2: .*p/alpha \(4, 3, 5\) becomes \(5, 4, 3\), but p.weight is \(60,\)$"
    ])  # fmt: skip


def test_a_weight_of_the_model_itself_is_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.d = keras.layers.Dense(3, name="d")
            self.d.build((None, 5))
            self.scale = self.add_weight(shape=(3,), name="kernel")

    model = Own()
    twin = nn.ModuleDict({"d": nn.Linear(5, 3), "s": nn.Linear(3, 1)})
    rows = [(variable.path, key) for variable, key in zip(model.d.weights, ("d.weight", "d.bias"), strict=True)]
    refused(model, twin, table(*rows, (model.scale.path, "s.weight"), ("", "s.bias")), [
        "^line 4: .*kernel: the kind Own is not covered",
        "^line 5: s.bias needs a Keras weight; if it has none, ",
    ])  # fmt: skip


def test_a_model_that_is_not_built_is_refused(scene, tmp_path):
    model = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(ParityError, match="the Keras model has no weights; build it first"):
        transfer(model, scene.twin, scene.mapping(tmp_path))


@pytest.mark.parametrize("columns", [["torch", "keras"], ["keras", "torch", "note"], ["keras"], ["keras", "pytorch"]])
def test_a_table_with_other_columns_is_refused(scene, columns):
    rows = pd.DataFrame([["c/kernel"] * len(columns)], columns=columns)
    refused(scene.model, scene.twin, rows, [re.escape(f"the columns must be ['keras', 'torch'], not {columns}")])


def test_a_module_without_a_name_is_called_the_model():
    model = sequential((6, 7, 3), layer("Conv2D", 3, 2, strides=2))
    rows = [(variable.path, key) for variable, key in zip(model.weights, ("bias", "weight"), strict=True)]
    module = nn.Conv2d(3, 3, 2)
    refused(model, module, table(*rows), [
        "^line 2: .*kernel belongs in weight, not in bias$",
        "^line 3: .*bias belongs in bias, not in weight$",
        r"^line 2: stride of the model is \(1, 1\); conv2d.* needs \(2, 2\)$",
    ])  # fmt: skip

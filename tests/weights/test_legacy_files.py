"""Loading a legacy HDF5 file: each tensor by name, or nothing at all and a list of what is wrong."""

import re
from pathlib import Path

from course.official_weights import at_hand, official_weights
from keras_model import resnet8
from parity import ParityError, largest_difference, load_keras_weights, read_mapping, transfer
from tests.helpers.models import draw, fill, snapshot, spoil
from torch_model import ResNet8

import h5py
import keras
import numpy as np
import pytest
import torch

CSV = Path(__file__).parents[2] / "keras_torch_mapping.csv"
KERAS_1 = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}


def two_heads(separate_sigmoid=True):
    """Build a model with two heads of the same shapes, as DroNet has."""
    x = images = keras.Input((5, 4, 3))
    x = keras.layers.Conv2D(2, (3, 2), name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    steer, coll = keras.layers.Dense(2, name="steer")(x), keras.layers.Dense(2, name="coll")(x)
    return fill(keras.Model(images, [steer, keras.layers.Activation("sigmoid")(coll) if separate_sigmoid else coll]))


def stored(model=None, seed=9):
    """Return {layer: {weight: array}} for a model, other numbers than the model's, the layers in the file's order."""
    layers = [layer for layer in (model or two_heads()).layers if layer.weights]
    return {
        layer.name: {w.name: draw(*w.shape, seed=(seed, i, j)).astype("f4") for j, w in enumerate(layer.weights)}
        for i, layer in enumerate(layers)
    }


def as_keras_3(layer, weight):
    return weight


def as_keras_2(layer, weight):
    return f"{layer}/{weight}:0"


def as_keras_1(layer, weight):
    return f"{layer}_{KERAS_1.get(weight, weight)}"


def as_keras_1_on_tensorflow(layer, weight):
    return f"{layer}_{KERAS_1.get(weight, weight)}:0"


def write(path, layers, name=as_keras_2, inside="/", backend="tensorflow", parts=1):
    """Write a legacy file; ``parts`` is among how many attributes the list of layers is split."""
    with h5py.File(path, "w") as file:
        root = file.require_group(inside)
        root.attrs["backend"] = backend
        root.attrs["keras_version"] = "2.0.2"
        names = [layer.encode() for layer in layers]
        if parts == 1:
            root.attrs["layer_names"] = names
        for part in range(parts if parts > 1 else 0):
            root.attrs[f"layer_names{part}"] = names[part * len(names) // parts : (part + 1) * len(names) // parts]
        for layer, weights in layers.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = [name(layer, weight).encode() for weight in weights]
            for weight, values in weights.items():
                group.create_dataset(name(layer, weight), data=values)
    return path


def holds(model, layers):
    """Tell whether a model's weights are these, bit by bit."""
    return all(
        np.array_equal(getattr(model.get_layer(layer), weight).numpy(), values)
        for layer, weights in layers.items()
        for weight, values in weights.items()
    )


# --- What is right --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [as_keras_3, as_keras_2, as_keras_1, as_keras_1_on_tensorflow])
@pytest.mark.parametrize(
    "layout", [{}, {"inside": "model_weights"}, {"parts": 3}, {"backend": b"tensorflow"}, {"backend": "jax"}]
)
def test_every_weight_becomes_what_the_file_holds(tmp_path, name, layout):
    model, layers = two_heads(), stored()
    assert not holds(model, layers)
    load_keras_weights(model, write(tmp_path / "w.h5", layers, name, **layout))
    assert holds(model, layers)
    assert sum(len(weights) for weights in layers.values()) == len(model.weights) == 10


@pytest.mark.parametrize("separate_sigmoid", [True, False])
def test_heads_are_not_exchanged_whatever_the_order_of_the_file(tmp_path, separate_sigmoid):
    layers = stored()
    layers = {name: layers[name] for name in ("coll", "norm", "steer", "conv")}
    model = two_heads(separate_sigmoid)
    load_keras_weights(model, write(tmp_path / "w.h5", layers))
    assert holds(model, layers)


def test_keras_itself_exchanges_the_heads_without_the_sigmoid_layer(tmp_path):
    """The mistake that loading by name is for; if Keras no longer makes it, the notebooks must say so."""
    original, model = two_heads(), two_heads(separate_sigmoid=False)
    order = [layer.name for layer in original.layers if layer.weights]
    assert order == ["conv", "norm", "coll", "steer"]
    layers = {name: stored(original)[name] for name in order}
    path = write(tmp_path / "w.h5", layers)
    original.load_weights(path)
    assert holds(original, layers)
    model.load_weights(path)
    assert holds(model, layers | {"steer": layers["coll"], "coll": layers["steer"]})
    load_keras_weights(model, path)
    assert holds(model, layers)


def test_layers_without_weights_are_passed_over(tmp_path):
    layers = stored()
    load_keras_weights(two_heads(), write(tmp_path / "w.h5", {"input_1": {}} | layers | {"activation_9": {}}))


def test_a_file_that_keras_3_saved_as_a_legacy_model_is_read(tmp_path):
    source, model = fill(two_heads(), seed=4), two_heads()
    source.save(tmp_path / "whole.h5")
    load_keras_weights(model, tmp_path / "whole.h5")
    assert list(snapshot(model).values()) == list(snapshot(source).values())


def test_depthwise_and_separable_kernels_have_their_former_names(tmp_path):
    model = keras.Sequential([
        keras.Input((6, 5, 3)),
        keras.layers.DepthwiseConv2D((3, 2), depth_multiplier=2, name="dw"),
        keras.layers.SeparableConv2D(4, (2, 3), name="sep"),
    ])  # fmt: skip
    layers = stored(model)
    renamed = {layer: dict(weights) for layer, weights in layers.items()}
    renamed["dw"]["depthwise_kernel"] = renamed["dw"].pop("kernel")
    load_keras_weights(fill(model), write(tmp_path / "w.h5", renamed))
    assert holds(model, layers)


@pytest.mark.parametrize("prefix", ["", "inner/"])
def test_the_weights_of_a_nested_model_are_told_apart(tmp_path, prefix):
    inner = keras.Sequential([keras.Input((3,)), *[keras.layers.Dense(3, name=name) for name in "de"]], name="inner")
    model = fill(keras.Sequential([keras.Input((3,)), inner]))
    arrays = {f"{n}/{w}": draw(*s, seed=(i, len(s))) for i, n in enumerate("ed") for w, s in SHAPES.items()}
    write(tmp_path / "w.h5", {"inner": arrays}, lambda layer, weight: f"{prefix}{weight}:0")
    load_keras_weights(model, tmp_path / "w.h5")
    for name in "de":
        for weight in SHAPES:
            assert largest_difference(getattr(inner.get_layer(name), weight), arrays[f"{name}/{weight}"]) == 0


SHAPES = {"kernel": (3, 3), "bias": (3,)}


def test_the_model_does_not_follow_the_file(tmp_path):
    model, layers = two_heads(), stored()
    path = write(tmp_path / "w.h5", layers)
    load_keras_weights(model, path)
    write(path, stored(seed=1))
    assert holds(model, layers)


# --- What is wrong --------------------------------------------------------------------------------------------------


def refused(model, path, faults):
    """Assert that a file is refused with exactly these faults, given as patterns, and that the model is as it was."""
    before = snapshot(model)
    with pytest.raises(ParityError) as caught:
        load_keras_weights(model, path)
    assert snapshot(model) == before
    assert str(caught.value).startswith(f"{Path(path).name}: {len(faults)} fault")
    for pattern, fault in zip(faults, caught.value.faults, strict=True):
        assert re.search(pattern, fault), f"{pattern} is not in {fault}"


def without(layers, layer):
    return {name: weights for name, weights in layers.items() if name != layer}


def renamed(layers, old, new):
    return {new if name == old else name: weights for name, weights in layers.items()}


def changed(layers, layer, **weights):
    weights = layers[layer] | weights
    return layers | {layer: {name: values for name, values in weights.items() if values is not None}}


FILES = {
    "layer missing": (lambda s: without(s, "norm"), ["^layer norm of the model is not in the file$"]),
    "layer without its weights": (lambda s: s | {"norm": {}}, ["^layer norm of the model is not in the file$"]),
    "layer too many": (
        lambda s: s | {"dense_7": {"bias": np.zeros(2)}},
        ["^layer dense_7 of the file is not in the model$"],
    ),
    "layer of another name": (
        lambda s: renamed(s, "conv", "conv2d_1"),
        ["^layer conv of the model is not in the file$", "^layer conv2d_1 of the file is not in the model$"],
    ),
    "other shape": (
        lambda s: changed(s, "conv", kernel=np.zeros((2, 3, 3, 2))),
        [r"^weight conv/kernel: shape \(3, 2, 3, 2\) in the model, \(2, 3, 3, 2\) in the file$"],
    ),
    "shape that would broadcast": (
        lambda s: changed(s, "steer", bias=np.float32(1)),
        [r"^weight steer/bias: shape \(2,\) in the model, \(\) in the file$"],
    ),
    "weight missing": (
        lambda s: changed(s, "steer", bias=None),
        [r"^layer steer: the model has \['bias', 'kernel'\], the file has \['kernel'\]$"],
    ),
    "weight too many": (
        lambda s: changed(s, "coll", scale=np.zeros(2)),
        [r"^layer coll: the model has \['bias', 'kernel'\], the file has \['bias', 'kernel', 'scale'\]$"],
    ),
    "weight of another name": (
        lambda s: changed(s, "norm", beta=None, offset=np.zeros(2)),
        [r"^layer norm: the model has \['beta', .*\], the file has \[.*'offset'\]$"],
    ),
    "text for numbers": (
        lambda s: changed(s, "steer", bias=np.array([b"0.5", b"0.25"])),
        ["^weight steer/bias: no numbers in the file$"],
    ),
    "several": (
        lambda s: renamed(changed(changed(s, "coll", bias=None), "norm", beta=np.zeros(3)), "conv", "x"),
        [
            "^layer coll: the model has",
            "^layer conv of the model is not in the file$",
            "^layer x of the file is not in the model$",
            r"^weight norm/beta: shape \(2,\) in the model, \(3,\) in the file$",
        ],
    ),
}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("name", [as_keras_2, as_keras_1])
def test_a_file_that_does_not_fit_is_refused(tmp_path, what, name):
    make, faults = FILES[what]
    refused(two_heads(), write(tmp_path / "w.h5", make(stored()), name), faults)


@pytest.mark.parametrize("inside", ["/", "model_weights"])
@pytest.mark.parametrize("backend", ["theano", b"theano"])
def test_a_file_of_the_theano_backend_is_refused(tmp_path, inside, backend):
    path = write(tmp_path / "w.h5", stored(), inside=inside, backend=backend)
    refused(two_heads(), path, ["Theano backend, which stores kernels flipped"])


def test_a_weights_file_of_keras_3_is_refused_with_a_hint(tmp_path):
    path = tmp_path / "new.weights.h5"
    two_heads().save_weights(path)
    refused(two_heads(), path, ["no attribute layer_names; it looks like Keras 3's .weights.h5, which Model.load_wei"])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "^the file does not exist$"),
        (b"", "^not a readable HDF5 weight file: "),
        (b"keras,torch\n", "^not a readable HDF5 weight file: "),
    ],
)
def test_what_is_not_hdf5_is_refused(tmp_path, content, fault):
    path = tmp_path / "w.h5"
    if content is not None:
        path.write_bytes(content)
    refused(two_heads(), path, [fault])


def test_a_directory_is_refused(tmp_path):
    refused(two_heads(), tmp_path, ["^not a readable HDF5 weight file: "])


def test_a_file_cut_short_is_refused(tmp_path):
    path = write(tmp_path / "w.h5", stored())
    path.write_bytes(path.read_bytes()[:-2000])
    refused(two_heads(), path, ["^not a readable HDF5 weight file: "])


def test_another_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["x"] = np.zeros(3)
    refused(two_heads(), tmp_path / "w.h5", ["^not a legacy Keras weight file: no attribute layer_names$"])


def group_for_dataset(file):
    del file["conv/conv/bias:0"]
    file.create_group("conv/conv/bias:0")


def dataset_for_group(file):
    del file["conv"]
    file["conv"] = np.zeros(3)
    file["conv"].attrs["weight_names"] = [b"bias"]


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.__delitem__("conv/conv/kernel:0"),
        lambda file: file.__delitem__("conv"),
        lambda file: file.attrs.__setitem__("layer_names", h5py.Empty("S5")),
        group_for_dataset,
        dataset_for_group,
    ],
    ids=["no dataset", "no group", "no list of layers", "group for dataset", "dataset for group"],
)
def test_a_damaged_file_is_refused(tmp_path, change):
    path = write(tmp_path / "w.h5", stored())
    with h5py.File(path, "r+") as file:
        change(file)
    refused(two_heads(), path, ["^not a readable HDF5 weight file: "])


def test_a_model_that_is_not_built_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Dense(3, name="d")])
    refused(model, write(tmp_path / "w.h5", {"d": {"bias": np.zeros(3)}}), ["of the file is not in", "build it first"])


def test_weights_that_no_name_reaches_are_refused(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = (keras.layers.Dense(n, name="d") for n in (3, 2))
            for layer in (self.one, self.two):
                layer.build((None, 3))
            self.scale = self.add_weight(shape=(3,), name="scale")

    model = fill(Own())
    path = write(tmp_path / "w.h5", {"d": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}})
    refused(model, path, [f"^weight {w}.* of the model is in no layer" for w in ("d/bias", "d/kernel", ".*scale")])


@pytest.mark.parametrize("lie", [lambda value: None, lambda value: 1 / 0], ids=["keeps its value", "raises"])
def test_a_weight_that_does_not_take_its_value_leaves_the_others_as_they_were(tmp_path, monkeypatch, lie):
    model, path = two_heads(), write(tmp_path / "w.h5", stored())
    before = snapshot(model)
    bias = model.get_layer("steer").bias
    assign = bias.assign
    calls = iter([lie, assign])
    monkeypatch.setattr(bias, "assign", lambda value: next(calls)(value))
    with pytest.raises(
        (ParityError, ZeroDivisionError), match=r"steer/bias is not what the file holds|division by zero"
    ):
        load_keras_weights(model, path)
    assert snapshot(model) == before


# --- The official weights -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not at_hand(), reason="the official weights are neither in DRONET_H5 nor in the cache")
def test_the_official_weights_load_and_move():
    model, twin = resnet8(200, 200, 1, 1), spoil(ResNet8(200, 200, 1, 1))
    load_keras_weights(model, official_weights())
    with h5py.File(official_weights()) as file:
        arrays = {f"{layer}/{weight}": file[layer][weight][()] for layer in file for weight in _weights(file[layer])}
    assert len(arrays) == len(model.weights) == 48
    for variable in model.weights:
        assert variable.numpy().tobytes() == arrays[f"{variable.path.split('/')[0]}/{variable.path}:0"].tobytes()
    transfer(model, twin, read_mapping(CSV))
    steer, coll = (torch.from_numpy(arrays[f"dense_{n}/dense_{n}/kernel:0"][:, 0]) for n in (1, 2))
    assert torch.equal(twin.steer.weight[0], steer)
    assert torch.equal(twin.coll.weight[0], coll)
    assert not torch.equal(steer, coll)
    images = np.random.default_rng(0).random((2, 200, 200, 1), dtype=np.float32)
    with torch.no_grad():
        outputs = twin(torch.from_numpy(np.moveaxis(images, -1, 1)))
    for ours, theirs in zip(model(images), outputs, strict=True):
        assert largest_difference(ours, theirs) < 1e-5
    # The least that tells the heads apart: DroNet steers within [-1, 1], and the collision head does not.
    assert abs(outputs[0]).max() < 1


def _weights(group):
    return [name.decode() for name in group.attrs["weight_names"]]

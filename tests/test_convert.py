"""The command, and the proof that its verification fails for each mistake that a port of DroNet can have."""

import copy
import os
import re

import convert
from course.mutants.dronet_mistakes import MISTAKES
from course.official_weights import at_hand, official_weights
from course.pages.anatomy import NOTEBOOKS, OFFICIAL, ROOT
from course.pages.pytest_plugin import pytest_ignore_collect
from keras_model import resnet8
from parity import load_keras_weights, padding, read_mapping, transfer
from parity.weights.layouts import find_layout
from torch_model import ResNet8

import h5py
import keras
import pooch
import pytest
import torch

WEIGHTS = ROOT / "course" / "weights" / "dronet_scenes.h5"
MAPPING = ROOT / "keras_torch_mapping.csv"


@pytest.fixture(scope="module")
def keras_model():
    model = resnet8(200, 200, 1, 1)
    load_keras_weights(model, WEIGHTS)
    return model


@pytest.fixture(scope="module")
def expected(keras_model):
    return convert.references(keras_model)


@pytest.fixture(scope="module")
def twin(keras_model):
    model = ResNet8().eval()
    transfer(keras_model, model, read_mapping(MAPPING))
    return model


@pytest.fixture
def one_size(monkeypatch):
    """Verify at one size: for tests of what happens before and after."""
    monkeypatch.setattr(convert, "SIZES", convert.SIZES[:1])


def test_right_twin_is_verified(twin, expected):
    assert convert.verify(twin, expected) == []


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_fails_verification(name, twin, expected):
    port = copy.deepcopy(twin)
    MISTAKES[name](port)
    faults = convert.verify(port, expected)
    assert any("float64" in fault for fault in faults)


def test_padding_that_is_right_at_200_fails_at_another_size(twin, expected):
    port = copy.deepcopy(twin)
    MISTAKES["blocks: padding=1"](port)
    faults = convert.verify(port, expected)
    assert faults
    assert not any("200 x 200" in fault for fault in faults)


def test_command_writes_what_it_verified(tmp_path, capsys, twin):
    out = tmp_path / "torch_weights.pth"
    out.write_text("an older file")
    assert convert.main(["--out", str(out)]) == 0
    stored = torch.load(out, weights_only=True)
    assert stored.keys() == twin.state_dict().keys()
    assert all(torch.equal(stored[key], value) for key, value in twin.state_dict().items())
    printed = capsys.readouterr()
    assert len(re.findall("^agree ", printed.out, flags=re.MULTILINE)) == 4 * len(convert.SIZES)
    assert "4/4" in printed.err
    assert os.listdir(tmp_path) == [out.name]


def exchanged_heads(folder):
    rows = MAPPING.read_text().replace("dense_1", "dense_3").replace("dense_2", "dense_1").replace("dense_3", "dense_2")
    path = folder / "exchanged.csv"
    path.write_text(rows)
    return ["--mapping", str(path)]


def lost_row(folder):
    path = folder / "short.csv"
    path.write_text(MAPPING.read_text().replace("conv2d_1/bias,conv1.bias\n", ""))
    return ["--mapping", str(path)]


def other_network(folder):
    path = folder / "other.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["dense"]
        file.create_group("dense").attrs["weight_names"] = ["dense/bias:0"]
        file["dense/dense/bias:0"] = [0.0]
    return ["--weights", str(path)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (exchanged_heads, "steering, 200 x 200, float64: the converted model differs"),
        (lost_row, "short.csv: 2 faults"),
        (other_network, "layer conv2d_1 of the model is not in the file"),
        (lambda folder: ["--weights", str(folder / "none.h5")], "none.h5: 1 fault"),
        (lambda folder: ["--mapping", str(folder / "none.csv")], "none.csv: 1 fault"),
        (lambda folder: ["--out", str(folder / "none" / "x.pth")], "its folder does not exist"),
        (lambda folder: ["--out", str(MAPPING)], "would overwrite an input"),
    ],
)
@pytest.mark.usefixtures("one_size")
def test_command_refuses_bad_input_and_writes_nothing(arguments, message, tmp_path, capsys):
    out = tmp_path / "torch_weights.pth"
    out.write_text("an older file")
    before = MAPPING.read_bytes()
    assert convert.main(["--out", str(out), *arguments(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert out.read_text() == "an older file"
    assert not list(tmp_path.glob("*.part"))
    assert MAPPING.read_bytes() == before


@pytest.mark.usefixtures("one_size")
def test_command_refuses_a_wrong_layout(tmp_path, capsys, monkeypatch):
    places = find_layout(keras.layers.Conv2D(1, 1))
    reversed_axes = places["kernel"]._replace(view=lambda kernel: kernel.permute(3, 2, 1, 0))
    monkeypatch.setitem(places, "kernel", reversed_axes)
    assert convert.main(["--out", str(tmp_path / "x.pth")]) == 1
    assert "differs from the Keras model" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.mark.usefixtures("one_size")
def test_command_refuses_a_wrong_padding(tmp_path, capsys, monkeypatch):
    right = padding.same_padding
    monkeypatch.setattr(padding, "same_padding", lambda *axis: right(*axis)[::-1])
    assert convert.main(["--out", str(tmp_path / "x.pth")]) == 1
    assert "differs from the Keras model" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_official_weights_are_checked_by_their_sha256(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DRONET_H5", str(WEIGHTS))
    assert convert.main(["--weights", "official", "--out", str(tmp_path / "x.pth")]) == 1
    assert "is another file: its SHA-256 is" in capsys.readouterr().err
    monkeypatch.setenv("DRONET_H5", str(tmp_path / "none.h5"))
    assert convert.main(["--weights", "official", "--out", str(tmp_path / "x.pth")]) == 1
    assert "none.h5" in capsys.readouterr().err


@pytest.mark.skipif(not at_hand(), reason="the official weights are neither in DRONET_H5 nor in the cache")
def test_official_weights_are_converted(tmp_path):
    out = tmp_path / "official.pth"
    assert convert.main(["--weights", "official", "--out", str(out)]) == 0
    stored = torch.load(out, weights_only=True)
    with h5py.File(official_weights()) as file:
        for head, layer in (("steer", "dense_1"), ("coll", "dense_2")):
            assert torch.equal(stored[f"{head}.weight"][0], torch.from_numpy(file[layer][layer]["kernel:0"][:, 0]))


def test_a_test_run_leaves_out_the_official_notebook_without_the_weights(tmp_path, monkeypatch):
    official, other = NOTEBOOKS / OFFICIAL, NOTEBOOKS / "08_dronet.ipynb"
    monkeypatch.delenv("DRONET_H5", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path)
    assert pytest_ignore_collect(official)
    assert not pytest_ignore_collect(other)
    (tmp_path / "dronet_model_weights.h5").write_bytes(b"")
    assert not pytest_ignore_collect(official)
    (tmp_path / "dronet_model_weights.h5").unlink()
    monkeypatch.setenv("DRONET_H5", "a copy")
    assert not pytest_ignore_collect(official)


def test_help_explains_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        convert.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--weights", "--mapping", "--out", "official"))

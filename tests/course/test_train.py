"""The demonstration weights: they are as good as promised, and what stores them loses nothing."""

from pathlib import Path

from course.weights import train
from keras_model import resnet8
from parity import load_keras_weights

import h5py
import numpy as np
import pytest

STORED = Path(train.__file__).with_name("dronet_scenes.h5")


@pytest.fixture
def model():
    return resnet8(200, 200, 1, 1)


def test_the_stored_weights_meet_their_targets_on_scenes_never_shown(model, monkeypatch):
    monkeypatch.setattr(train, "FRESH_SCENES", 24)
    untrained, _ = train.evaluate(model, seed=3)
    load_keras_weights(model, STORED)
    error, accuracy = train.evaluate(model, seed=3)
    assert error <= train.STEERING_TARGET < untrained / 2
    assert accuracy >= train.COLLISION_TARGET


def test_saved_weights_are_those_of_the_model_and_the_same_bytes_each_time(model, tmp_path):
    path, again = tmp_path / "a.h5", tmp_path / "b.h5"
    path.write_bytes(b"an older file")
    train.save(model, path)
    train.save(model, again)
    assert path.read_bytes() == again.read_bytes()
    other = resnet8(200, 200, 1, 1)
    load_keras_weights(other, path)
    assert all(map(np.array_equal, model.get_weights(), other.get_weights()))
    with h5py.File(path) as file, h5py.File(STORED) as stored:
        assert list(file.attrs["layer_names"]) == list(stored.attrs["layer_names"])
        for name in file:
            assert list(file[name].attrs["weight_names"]) == list(stored[name].attrs["weight_names"])
    assert sorted(tmp_path.iterdir()) == [path, again]


def test_a_file_that_could_not_be_completed_leaves_the_older_one(model, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    path.write_bytes(b"an older file")
    monkeypatch.setattr(train.h5py.Group, "create_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.save(model, path)
    assert path.read_bytes() == b"an older file"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("measured", "status"), [((0.09, 0.96), 0), ((0.11, 1.0), 1), ((0.0, 0.94), 1), ((float("nan"), 1.0), 1)]
)
def test_a_network_that_misses_its_targets_is_not_stored(measured, status, model, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    monkeypatch.setattr(train, "train", lambda *_: model)
    monkeypatch.setattr(train, "evaluate", lambda *_: measured)
    monkeypatch.setattr("sys.argv", ["train.py", "--out", str(path)])
    assert train.main() == status
    assert path.exists() == (status == 0)

"""DroNet and its twin: one file maps them, and they compute the same at every size."""

from pathlib import Path

from keras_model import resnet8
from parity import largest_difference, read_mapping, transfer
from tests.helpers.models import ROUNDING, draw, fill, in_float64, spoil
from torch_model import ResNet8

import keras
import pytest
import torch

CSV = Path(__file__).parents[1] / "keras_torch_mapping.csv"

# --- The file that comes with the project ---------------------------------------------------------------------------


def test_the_file_has_every_weight_of_both_models_exactly_once():
    lines = [line.split(",") for line in CSV.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == ["keras", "torch"]
    keras_paths = [path for path, _ in lines[1:] if path]
    torch_keys = [key for _, key in lines[1:]]
    assert len(keras_paths) == len(set(keras_paths)) == 48
    assert len(torch_keys) == len(set(torch_keys)) == 54
    assert set(keras_paths) == {variable.path for variable in resnet8(9, 7, 1, 1).weights}
    assert set(torch_keys) == set(ResNet8(9, 7, 1, 1).state_dict())


def test_only_the_counters_have_no_keras_weight():
    mapping = read_mapping(CSV)
    assert len(mapping) == 54
    assert ((mapping["keras"] == "") == mapping["torch"].str.endswith(".num_batches_tracked")).all()
    assert (mapping["keras"] == "").sum() == 6


def test_the_table_is_the_file_line_by_line():
    mapping = read_mapping(CSV)
    lines = CSV.read_text(encoding="utf-8").splitlines()
    assert list(mapping.columns) == ["keras", "torch"]
    assert mapping.index.name == "line"
    assert {n: ",".join(row) for n, *row in mapping.itertuples()} == dict(enumerate(lines[1:], start=2))


# --- The two models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "channels", "outputs"),
    [
        (200, 200, 1, 1),
        (224, 224, 3, 1),
        (201, 233, 1, 2),
        (97, 131, 3, 2),
        (64, 50, 3, 1),
        (9, 5, 1, 2),
        (5, 9, 3, 1),
        (5, 5, 1, 1),
    ],
)
def test_the_twin_equals_the_keras_model_at_every_size(height, width, channels, outputs):
    model = fill(in_float64(resnet8(width, height, channels, outputs)), seed=height)
    # Unlike random normal numbers, these keep the activations near 1 through ten layers.
    for variable in model.weights:
        if variable.name == "kernel":
            variable.assign(variable / variable.shape[-2] ** 0.5 / 3)
    twin = spoil(ResNet8(width, height, channels, outputs).double())
    transfer(model, twin, read_mapping(CSV))

    images = draw(2, height, width, channels, seed=1)
    heads = keras.Model(model.input, [*model.output, model.get_layer("dense_2").output])
    steering, probability, logits = heads(images)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        twin_steering, twin_probability = twin(x)
        again, twin_logits = twin(x, logits=True)
    assert twin_steering.shape == (2, outputs)
    assert largest_difference(steering, twin_steering) < ROUNDING * 10
    assert largest_difference(probability, twin_probability) < ROUNDING * 10
    assert largest_difference(logits, twin_logits) < ROUNDING * 10
    assert largest_difference(again, twin_steering) < ROUNDING * 10
    # Neither the heads nor the images may be alike, or all this would say little.
    for a, b in ((twin_steering, twin_logits), twin_steering, twin_logits):
        assert largest_difference(a, b) > 1e-5


@pytest.mark.parametrize(("width", "height"), [(4, 200), (200, 4), (1, 1), (0, 9)])
def test_images_of_fewer_than_five_pixels_are_refused(width, height):
    with pytest.raises(ValueError, match="ResNet8: images must be at least 5 x 5 pixels; got"):
        ResNet8(width, height, 1, 1)


def test_keras_too_refuses_images_of_fewer_than_five_pixels():
    with pytest.raises(ValueError, match="output size would be zero or negative"):
        resnet8(9, 4, 1, 1)


def test_training_drops_half_of_the_features_and_evaluating_none():
    twin, x = ResNet8(41, 47, 1, 1), torch.rand(2, 1, 47, 41)
    assert twin.dropout.p == resnet8(9, 7, 1, 1).get_layer("dropout_1").rate == 0.5
    assert largest_difference(twin.train()(x)[0], twin(x)[0]) > 1e-3
    assert largest_difference(twin.eval()(x)[0], twin(x)[0]) < 1e-5

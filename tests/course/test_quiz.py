"""Each question of the quiz and of the exit paper is run: what it calls right is right, and what it denies is wrong."""

import re

from course.pages.anatomy import ROOT, prediction
from parity import load_keras_weights, run_torch
from parity.padding import same_padding

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

TEACHING = ROOT / "docs" / "teaching"
QUIZ = (TEACHING / "quiz.md").read_text(encoding="utf-8")
PAPER, ANSWERS = (TEACHING / "exit-paper.md").read_text(encoding="utf-8").split("\n## Answers\n")
QUESTION = re.compile(r"^## (\d+)\. .*\n((?:(?!## ).*\n)*)", flags=re.MULTILINE)
QUESTIONS = dict(QUESTION.findall(QUIZ))
PREDICTIONS = dict(QUESTION.findall(PAPER))
rng = np.random.default_rng(0)


def asked(text):
    """Return the options of a question, the right one, and what its fold says of each."""
    options, fold, said = prediction(f"## Predict\n{text}")
    right = re.findall(r"^\*\*(\d)\.\*\*", fold, flags=re.MULTILINE)
    return options, right, said


@pytest.mark.parametrize("number", QUESTIONS)
def test_a_question_has_four_choices_one_right_and_a_reason_for_each(number):
    options, right, said = asked(QUESTIONS[number])
    assert len(options) == 4
    assert len(right) == 1
    assert sorted(said) == [1, 2, 3, 4]
    assert min(map(len, said.values())) > 20


def test_the_place_of_the_right_answer_and_its_length_give_nothing_away():
    rights = [asked(text)[1][0] for text in QUESTIONS.values()]
    assert set(rights) == set("1234")
    longest = [
        max(range(4), key=lambda place: len(asked(text)[0][place])) + 1 == int(asked(text)[1][0])
        for text in QUESTIONS.values()
    ]
    assert sum(longest) <= 5


def test_the_exit_paper_has_six_predictions_and_their_answers_behind_it():
    assert list(PREDICTIONS) == list("123456")
    for text in PREDICTIONS.values():
        assert re.findall(r"^(\d)\. ", text, flags=re.MULTILINE) == list("1234")
    assert re.findall(r"^\*\*(\d): \d\.\*\* .{30}", ANSWERS, flags=re.MULTILINE) == list("123456")


def far(a, b):
    """Return how far two outputs are apart."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def keras_conv(size, inputs, outputs, **settings):
    layer = keras.layers.Conv2D(outputs, size, bias_initializer="normal", **settings)
    layer.build((None, None, None, inputs))
    return layer


def torch_conv(layer, arrange, **settings):
    kernel, bias = layer.get_weights()
    *size, inputs, outputs = kernel.shape
    port = nn.Conv2d(inputs, outputs, size, **settings)
    port.load_state_dict({"weight": torch.tensor(arrange(kernel)), "bias": torch.tensor(bias)})
    return port


def right_order(kernel):
    return kernel.transpose(3, 2, 0, 1)


# --- The quiz -------------------------------------------------------------------------------------------------------


def kernel_reversed():
    def loads(*shape):
        layer = keras_conv(shape[:2], *shape[2:])
        port = torch_conv(layer, np.transpose)
        x = rng.normal(size=(2, 9, 9, shape[2])).astype("float32")
        return far(layer(x), run_torch(port, x)) < 1e-3

    assert not loads(3, 3, 16, 32)
    assert not loads(3, 3, 32, 32)
    assert loads(1, 1, 16, 32)
    with pytest.raises(RuntimeError, match="size mismatch"):
        loads(3, 5, 16, 32)
    return 2


def transposed_if_needed():
    found = []
    for inputs, outputs in ((64, 64), (64, 10)):
        layer = keras.layers.Dense(outputs)
        layer.build((None, inputs))
        kernel, bias = layer.get_weights()
        port = nn.Linear(inputs, outputs)
        weight = kernel if kernel.shape == port.weight.shape else kernel.T
        port.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        x = rng.normal(size=(3, inputs)).astype("float32")
        found.append(far(layer(x), run_torch(port, x)))
        with pytest.raises(RuntimeError, match="Missing key"):
            nn.Linear(inputs, outputs).load_state_dict({"weight": torch.tensor(kernel.T)})
    assert found[0] > 0.1
    assert found[1] < 1e-4
    return 1


def padded_on_both_sides():
    layer = keras_conv(3, 3, 8, strides=2, padding="same")
    port = torch_conv(layer, right_order, stride=2, padding=1)
    exchanged = torch_conv(layer, np.transpose, stride=2, padding=1)
    differences, shapes = {}, {}
    for size in (225, 224):
        x = rng.normal(size=(1, size, size, 3)).astype("float32")
        expected, found = np.asarray(layer(x)), run_torch(port, x)
        shapes[size] = expected.shape == found.shape
        differences[size] = far(expected, found)
        assert far(expected, run_torch(exchanged, x)) > 0.1, "option 4 is wrong at both sizes"
    assert same_padding(224, 3, 2) == (0, 1)
    assert all(shapes.values())
    assert differences[225] < 1e-4 < 0.1 < differences[224]
    return 3


def batch_in_train_mode():
    module = nn.BatchNorm2d(3)
    first, other = torch.randn(1, 3, 4, 4), 5 + torch.randn(1, 3, 4, 4)
    both = torch.cat([first, other])
    with torch.no_grad():  # option 1
        assert not torch.allclose(module(both)[:1], module(first))
        module.eval()
        assert torch.allclose(module(both)[:1], module(first))
    dropout = nn.Dropout(0.5)
    assert not torch.equal(dropout(both), dropout(both)), "option 4: other outputs at each call"
    return 2


def caller_overwritten():
    conv = nn.Conv2d(3, 3, 1).eval()

    def adds_to_x(x):
        x += conv(x)
        return x

    x = torch.randn(1, 3, 4, 4)
    expected = x + conv(x)
    with torch.no_grad():
        assert torch.allclose(adds_to_x(x), expected)
        assert not torch.allclose(adds_to_x(x), expected)
    norm, images = nn.BatchNorm2d(3), torch.randn(2, 3, 4, 4)
    once = norm(images)
    moved = norm.running_mean.clone()
    assert torch.equal(norm(images), once), "option 1: in train mode the outputs are the same twice"
    assert not torch.equal(norm.running_mean, moved)
    return 3


def features_in_another_order():
    maps = rng.normal(size=(2, 4, 6, 3)).astype("float32")
    expected = np.asarray(keras.layers.Flatten()(maps))
    tensor = torch.tensor(maps).permute(0, 3, 1, 2)
    assert far(expected, tensor.flatten(1)) > 0.1
    assert far(np.sort(expected), np.sort(tensor.flatten(1).numpy())) == 0
    assert far(expected, tensor.permute(0, 2, 3, 1).flatten(1)) == 0
    in_format = tensor.contiguous().to(memory_format=torch.channels_last)
    assert torch.equal(in_format.flatten(1), tensor.flatten(1)), "option 3"
    return 2


def heads(apart, names=("dense_1", "dense_2")):
    inputs = keras.Input((3,))
    first = keras.layers.Dense(1, name=names[0])(inputs)
    second = keras.layers.Dense(1, name=names[1], activation=None if apart else "sigmoid")(inputs)
    return keras.Model(inputs, [first, keras.layers.Activation("sigmoid")(second) if apart else second])


def legacy_file(tmp_path, model):
    """Write the weights of a model as Keras 2 did, in the order of its layers."""
    import h5py

    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        layers = [layer for layer in model.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.0.2"
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, layer.get_weights(), strict=True):
                group[name] = array
    return path


def filled_by_position(tmp_path):
    old = heads(apart=True)
    path = legacy_file(tmp_path, old)
    again = heads(apart=False)
    again.load_weights(path)
    assert np.array_equal(again.get_layer("dense_1").get_weights()[0], old.get_layer("dense_2").get_weights()[0])
    load_keras_weights(again, path)
    assert np.array_equal(again.get_layer("dense_1").get_weights()[0], old.get_layer("dense_1").get_weights()[0])
    return 4


def two_mistakes_that_cancel():
    layers = [nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)]
    x = torch.randn(5, 4)
    expected = layers[1](layers[0](x))

    def port(signs):
        values = x
        for layer, sign in zip(layers, signs, strict=True):
            values = sign * layer(values)
        return (values - expected).abs().max().item()

    assert port((-1, -1)) < 1e-5 < 0.01 < port((1, -1)), "the right fix of the first layer takes it further off"
    assert port((1, 1)) < 1e-5
    return 2


def softmax_twice():
    logits, labels = torch.randn(8, 3), torch.randint(0, 3, (8,))
    keras_loss = keras.losses.SparseCategoricalCrossentropy()
    expected = float(keras_loss(labels.numpy(), logits.softmax(1).numpy()))
    assert abs(expected - F.cross_entropy(logits, labels).item()) < 1e-5
    assert abs(expected - F.cross_entropy(logits.softmax(1), labels).item()) > 0.01
    norms = [nn.BatchNorm2d(3, momentum=momentum) for momentum in (0.01, 0.99)]
    for _ in range(3):
        images = torch.randn(4, 3, 2, 2)
        assert torch.equal(norms[0](images), norms[1](images)), "option 3: momentum changes no output of training"
    return 2


def signed_difference():
    def passes(port):
        return bool(np.max(port - np.zeros(4)) < 1e-4)

    ports = {1: np.full(4, np.nan), 2: np.ones(4), 3: np.array([1, -1, 1, -1]), 4: -np.ones(4)}
    assert not np.max(ports[1]) > 1e-4, "written the other way round, it passes NaN"
    [passed] = [number for number, port in ports.items() if passes(port)]
    return passed


SITUATIONS = [
    kernel_reversed,
    transposed_if_needed,
    padded_on_both_sides,
    batch_in_train_mode,
    caller_overwritten,
    features_in_another_order,
    filled_by_position,
    two_mistakes_that_cancel,
    softmax_twice,
    signed_difference,
]


@pytest.mark.parametrize("number", QUESTIONS)
def test_the_situation_of_a_question_comes_out_as_its_answer_says(number, tmp_path):
    situation = SITUATIONS[int(number) - 1]
    keras.utils.set_random_seed(int(number))
    right = situation(tmp_path) if situation is filled_by_position else situation()
    assert [str(right)] == asked(QUESTIONS[number])[1]


# --- The exit paper -------------------------------------------------------------------------------------------------


def square_dense():
    layer = keras.layers.Dense(6)
    layer.build((None, 6))
    kernel, bias = layer.get_weights()
    port = nn.Linear(6, 6)
    port.load_state_dict({"weight": torch.tensor(kernel), "bias": torch.tensor(bias)})
    x = rng.normal(size=(3, 6)).astype("float32")
    assert far(layer(x), run_torch(port, x)) > 0.1
    return 3


def two_epsilons():
    variances = np.array([1, 0.1, 0.01, 0.001])
    factors = np.sqrt((variances + 1e-3) / (variances + 1e-5))
    for variance, factor in zip(variances, factors, strict=True):
        layer = keras.layers.BatchNormalization()
        layer.build((None, 2, 2, 1))
        layer.moving_variance.assign([variance])
        port = nn.BatchNorm2d(1).eval()
        port.running_var[:] = variance
        x = rng.normal(size=(2, 2, 2, 1)).astype("float32")
        found = run_torch(port, x) / np.asarray(layer(x))
        assert np.allclose(found, factor, rtol=1e-4)
    assert factors.argmax() == variances.argmin()
    return 2


def one_relu_in_place():
    convs = [nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)]
    x = torch.randn(1, 2, 4, 4)

    def block(first, second):
        given = x.clone()
        with torch.no_grad():
            return given + convs[1](F.relu(convs[0](F.relu(given, inplace=first)), inplace=second))

    right = block(False, False)
    assert not torch.allclose(block(True, False), right)
    assert torch.allclose(block(False, True), right)
    return 1


def flattened_maps():
    agree = []
    for place, (h, w, c) in enumerate([(4, 4, 16), (1, 6, 3), (4, 6, 1)], 1):
        maps = rng.normal(size=(2, h, w, c))
        if far(keras.layers.Flatten()(maps), torch.tensor(maps).permute(0, 3, 1, 2).flatten(1)) < 1e-6:
            agree.append(place)
    [place] = agree
    return place


def other_names(tmp_path):
    old = heads(apart=True)
    new = heads(apart=True, names=("steering", "collision"))
    new.load_weights(legacy_file(tmp_path, old))
    for name, old_name in (("steering", "dense_1"), ("collision", "dense_2")):
        assert np.array_equal(new.get_layer(name).get_weights()[0], old.get_layer(old_name).get_weights()[0])
    return 3


def momentum_copied():
    batches = [torch.randn(4, 3, 2, 2) + 1 for _ in range(20)]
    results = []
    for momentum in (1 - 0.99, 0.99):
        torch.manual_seed(0)
        norm, dense = nn.BatchNorm2d(3, momentum=momentum), nn.Linear(3, 1)
        sgd = torch.optim.SGD([*norm.parameters(), *dense.parameters()], lr=0.1)
        losses = []
        for batch in batches:
            loss = (dense(norm(batch).relu().mean((2, 3))) ** 2).mean()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(loss.item())
        norm.eval()
        predicted = dense(norm(batches[0]).relu().mean((2, 3))).detach()
        results.append((losses, dense.weight.detach(), norm.running_mean, predicted))
    right, wrong = results
    assert right[0] == wrong[0], "the losses are equal"
    assert torch.equal(right[1], wrong[1]), "the weights are equal"
    assert not torch.allclose(right[2], wrong[2]), "the statistics are not"
    assert not torch.allclose(right[3], wrong[3]), "nor what it predicts"
    return 3


PREDICTED = [square_dense, two_epsilons, one_relu_in_place, flattened_maps, other_names, momentum_copied]


@pytest.mark.parametrize("number", PREDICTIONS)
def test_a_prediction_of_the_exit_paper_comes_out_as_its_answer_says(number, tmp_path):
    situation = PREDICTED[int(number) - 1]
    keras.utils.set_random_seed(int(number))
    right = situation(tmp_path) if situation is other_names else situation()
    assert re.search(rf"^\*\*{number}: (\d)\.\*\*", ANSWERS, flags=re.MULTILINE)[1] == str(right)

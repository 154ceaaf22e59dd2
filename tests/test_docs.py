"""The pages in docs/ say what the frameworks do: each call, each default, each error message is tried."""

import inspect
import re
import types

from course.pages.anatomy import ROOT, pages
from parity import (
    CAUSES,
    ParityError,
    compare,
    load_keras_weights,
    propose_mapping,
    read_mapping,
    recurrent,
    run_torch,
    trace,
    transfer,
)
from parity.padding import AvgPool2dSame, Conv2dSame, ConvTranspose2dSame, MaxPool2dSame
from parity.weights.layouts import covered_layers, find_layout
from tests.helpers.models import fill

import keras
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

DOCS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
# What the calls in the pages name.
NAMES = {"keras": keras, "torch": torch, "nn": nn} | {
    layer.__name__: layer for layer in (AvgPool2dSame, Conv2dSame, ConvTranspose2dSame, MaxPool2dSame)
}


def rows(page, heading=""):
    """Return the rows of the tables under a heading, or of the whole page: lists of fields, without the headers."""
    text = re.search(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", DOCS[page], flags=re.MULTILINE | re.DOTALL)[1]
    return table_rows(text)


def table_rows(text):
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        lines = [[field.strip() for field in line.strip().strip("|").split(" | ")] for line in table.splitlines()]
        found += lines[2:]
    return found


@pytest.mark.parametrize("page", DOCS)
def test_no_table_is_torn(page):
    """A blank line in a table makes text of the rows after it, and each row has as many fields as the header."""
    for block in re.findall(r"(?:^\|.*\n)+", DOCS[page], flags=re.MULTILINE):
        lines = block.splitlines()
        assert re.fullmatch(r"[|: -]+", lines[1]), block
        assert {line.replace("||", "| |").count(" |") for line in lines[2:]} == {lines[1].count("| -") or 1}, block


# --- Cheat sheet ----------------------------------------------------------------------------------------------------


def sheet(heading="Weights"):
    return {row[0]: row for row in rows("cheat-sheet", heading)}


def layout_of(name):
    """Return the layout of a kind of layer; that of a recurrent layer is its cell's."""
    made = {"EinsumDense": ("ab,bcd->acd", (2, 3)), "SimpleRNN": (2,), "LSTM": (2,), "GRU": (2,)}
    if name not in made:
        return find_layout(getattr(keras.layers, name).__new__(getattr(keras.layers, name)))
    layer = getattr(keras.layers, name)(*made[name])
    layer.build((None, 4, 5) if name != "EinsumDense" else (None, 4))
    return find_layout(getattr(layer, "cell", layer))


def test_the_cheat_sheet_has_every_layer_and_weight_that_is_converted():
    for name in covered_layers():
        row = next(row for layers, row in sheet().items() if re.search(rf"\b{name}\b", layers))
        for weight, place in layout_of(name).items():
            fields = sheet()["any, `bias`"] if weight == "bias" else row
            assert f"`{weight}`" in fields[1]
            assert f"`{place.tensor}`" in fields[2]


def test_the_axes_of_the_cheat_sheet_are_those_that_transfer_and_keras_have():
    sizes = {"i": 4, "m": 3, "h": 2, "w": 5, "l": 5}

    def reordered(row, call):
        expressions = re.findall(rf"`({call})`", " ".join(row[1:]))
        ranks = [len(re.search(r"permute\((.*?)\)", expression)[1].split(",")) for expression in expressions]
        tensors = [torch.rand(*(2, 5, 4, 3) if rank == 4 else (5, 4, 3, 2, 6)[:rank]) for rank in ranks]
        return [
            (tensor, eval(f"tensor.{expression}", {"tensor": tensor, **sizes}))
            for tensor, expression in zip(tensors, expressions, strict=True)
        ]

    for row, call, name, ranks in (
        ("Conv1D, Conv2D, Conv3D", r"permute\([\d, ]+\)", "Conv{}D", (1, 2, 3)),
        ("DepthwiseConv1D, DepthwiseConv2D", r"permute\([\d, ]+\)\.reshape\(.*?\)", "DepthwiseConv{}D", (1, 2)),
    ):
        for rank, (kernel, weight) in zip(ranks, reordered(sheet()[row], call), strict=True):
            layer = getattr(keras.layers, name.format(rank))
            assert torch.equal(weight, find_layout(layer.__new__(layer))["kernel"].view(kernel))
    beside = sheet("Beside the weights")
    [(images, moved)] = reordered(beside["images (batch, h, w, c)"], r"permute\(.*?\)")
    assert torch.equal(moved, images.movedim(-1, 1))
    [(maps, features)] = reordered(beside["Flatten"], r"permute\(.*?\)\.flatten\(1\)")
    assert np.array_equal(features, keras.layers.Flatten()(maps.movedim(1, -1).numpy()))


def test_the_defaults_of_the_cheat_sheet_are_those_of_the_frameworks():
    def default(function, argument):
        return inspect.signature(function).parameters[argument].default

    layers, numbers = keras.layers, {}
    for name, module in (
        ("BatchNormalization", nn.BatchNorm2d),
        ("LayerNormalization", nn.LayerNorm),
        ("GroupNormalization", nn.GroupNorm),
    ):
        numbers[name] = [default(getattr(layers, name), "epsilon"), default(module, "eps")]
    numbers["BatchNormalization"] += [
        default(layers.BatchNormalization, "momentum"),
        default(nn.BatchNorm2d, "momentum"),
    ]
    numbers["GroupNormalization"].append(default(layers.GroupNormalization, "groups"))
    prelu = layers.PReLU()
    prelu.build((None, 2))
    numbers["PReLU with `shared_axes`"] = [prelu.alpha.numpy()[0], nn.PReLU().weight.item()]
    for name, expected in numbers.items():
        text = re.sub(r"\]\(.*?\)|`[^`]*`|\[\d\d", " ", sheet()[name][-1])
        assert [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)] == expected, name


def test_a_causal_padding_puts_all_zeros_before_the_data():
    call = re.search(r"`(F\.pad\(x, .*?)`", sheet("Beside the weights")['`padding="causal"`'][1])[1]
    layer = keras.layers.Conv1D(2, 3, padding="causal", dilation_rate=2)
    x = np.random.default_rng(0).normal(size=(2, 9, 4)).astype("float32")
    expected = layer(x)
    weight, bias = torch.tensor(layer.kernel.numpy()).permute(2, 1, 0), torch.tensor(layer.bias.numpy())

    def port(x):
        return F.conv1d(eval(call, {"F": F, "x": x, "kernel": 3, "dilation": 2}), weight, bias, dilation=2)

    assert compare("causal", expected, run_torch(port, x), within=1e-5)


@pytest.mark.parametrize("row", rows("cheat-sheet", "Activations"), ids=lambda row: row[0])
def test_activations_compute_the_same(row):
    keras_layer, module = (eval(call.strip("`"), NAMES) for call in row[:2])
    x = (4 * np.random.default_rng(0).normal(size=(50, 7))).astype("float32")
    assert compare(row[0], keras_layer(x), module(torch.from_numpy(x)), within=1e-5)


def test_what_is_said_beside_the_activations_holds():
    said = {row[0]: row[2] for row in rows("cheat-sheet", "Activations")}
    x = torch.linspace(-9, 9, 100)
    clamp, keras_2 = (
        re.search(r"`([^`]*clamp[^`]*)`", next(text for name, text in said.items() if part in name))[1]
        for part in ("ReLU(max_value", "hard_sigmoid")
    )
    found = eval(clamp, {"x": x, "max_value": 2.5})
    assert compare("max_value", keras.layers.ReLU(max_value=2.5)(x.numpy()), found, within=1e-6)
    assert compare("Keras 2", np.clip(0.2 * x.numpy() + 0.5, 0, 1), eval(keras_2, {"x": x}), within=1e-6)
    assert "0.01" in said["`keras.layers.LeakyReLU()`"]
    assert nn.LeakyReLU().negative_slope == 0.01
    tanh = keras.activations.gelu(x.numpy(), approximate=True)
    assert compare("gelu, tanh", tanh, nn.GELU(approximate="tanh")(x), within=1e-6)


# --- Keras call, PyTorch call ---------------------------------------------------------------------------------------

PAIRS = [row for row in rows("crib", "Layers") if row[0].startswith("`keras.layers.")]
FORWARD = [row for row in PAIRS if re.search(r"\((a|\[a, b\])\)`$", row[0])]  # a layer that is called at once
CALLS = [row for row in PAIRS if row not in FORWARD]


def expression(field):
    return re.search(r"`(.*?)`", field)[1]


@pytest.mark.parametrize("row", CALLS, ids=[row[0] for row in CALLS])
def test_the_calls_of_the_crib_make_layers_that_agree(row):
    """Each pair is made, its weights are moved by the tool, and both compute the same."""
    of_features = re.search(r"Dense|LayerNorm", row[0])
    image = keras.Input((4,) if of_features else (11, 12, 4))
    model = fill(keras.Model(image, eval(expression(row[0]), NAMES)(image)))
    module = nn.Sequential(eval(expression(row[1]), NAMES | {"c": 4})).eval()
    x = np.random.default_rng(0).normal(size=(3, *image.shape[1:])).astype("float32")
    if model.weights:
        proposal = propose_mapping(model, module, x)
        assert not proposal.undecided
        assert not proposal.unmatched
        transfer(model, module, proposal.mapping)
    expected = model(x)
    assert compare("pair", expected, run_torch(module, x), within=1e-5 * max(1, np.abs(expected).max()))


def test_every_kind_of_call_is_tried():
    assert len(CALLS) > 20
    assert len(FORWARD) == 6


@pytest.mark.parametrize("row", FORWARD, ids=[row[0] for row in FORWARD])
def test_the_forward_pass_of_the_crib(row):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(2, 3, 5, 4)).astype("float32") for _ in range(2))
    expected = eval(expression(row[0]), NAMES | {"a": a, "b": b})
    a, b = (torch.from_numpy(array).movedim(-1, 1) for array in (a, b))
    found = eval(expression(row[1]), NAMES | {"a": a, "b": b})
    assert compare("pair", expected, found.movedim(1, -1) if found.ndim == 4 else found)


def test_the_model_of_the_crib_is_the_same_in_both():
    in_torch, in_keras = re.findall(r"```python\n(.*?)```", DOCS["crib"], flags=re.DOTALL)[:2]
    names = {}
    exec(in_torch, names)
    exec(in_keras, names)
    twin, model = names["Block"](8).eval(), fill(names["block"])
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 8)).astype("float32")
    proposal = propose_mapping(model, twin, x)
    assert not proposal.undecided
    assert not proposal.unmatched
    transfer(model, twin, proposal.mapping)
    assert compare("block", model(x), run_torch(twin, x), within=1e-4)


# --- Symptoms -------------------------------------------------------------------------------------------------------


class Forgetful(nn.Module):
    """Makes a layer before it is a module."""

    def __init__(self):
        self.conv = nn.Conv2d(1, 1, 1)


class InForward(nn.Module):
    """Makes its layer at each call."""

    def forward(self, x):
        """Map (batch, 4) to (batch, 2)."""
        return nn.Linear(4, 2)(x)


def reused_in_place():
    x = torch.ones(3, requires_grad=True)
    y = x.exp()
    y.add_(1)
    y.sum().backward()


def written_leaf():
    nn.Linear(2, 2).weight.copy_(torch.ones(2, 2))


def several_outputs():
    image = keras.Input((2,))
    keras.Model(image, [image + 1, image * 2])(np.ones((1, 2))).numpy()


def loaded_as_a_model(folder):
    torch.save(nn.Linear(2, 2).state_dict(), folder / "w.pth")
    torch.load(folder / "w.pth", weights_only=True)(torch.ones(1, 2))


def a_keras_file_as_weights(folder):
    image = keras.Input((2,))
    model = keras.Model(image, keras.layers.Dense(1)(image))
    model.save(folder / "m.keras")
    load_keras_weights(model, folder / "m.keras")


def new_weights_by_name(folder):
    image = keras.Input((2,))
    model = keras.Model(image, keras.layers.Dense(1)(image))
    model.save_weights(folder / "m.weights.h5")
    model.load_weights(folder / "m.weights.h5", by_name=True)


def a_subclassed_model():
    class Net(keras.Model):
        def call(self, x):
            return x if float(x[0, 0]) > 0 else -x

    trace(Net(), nn.Identity(), np.ones((1, 2)), pd.DataFrame(columns=["keras", "torch"]))


def a_file_with_a_layer_of_ones_own(folder):
    class Own(keras.layers.Layer):
        def call(self, x):
            return x

    image = keras.Input((2,))
    keras.Model(image, Own()(image)).save(folder / "own.keras")
    keras.saving.load_model(folder / "own.keras")


def a_file_with_a_lambda(folder):
    image = keras.Input((2,))
    keras.Model(image, keras.layers.Lambda(lambda x: x + 1)(image)).save(folder / "lambda.keras")
    keras.saving.load_model(folder / "lambda.keras")


def a_convolutional_lstm():
    sequence = keras.Input((3, 4, 2))
    model = keras.Model(sequence, keras.layers.ConvLSTM1D(2, 2)(sequence))
    transfer(model, nn.LSTM(2, 2), pd.DataFrame([(model.weights[0].path, "weight_ih_l0")], columns=["keras", "torch"]))


ERRORS = {
    "is not covered": a_convolutional_lstm,
    "cannot assign module before Module.__init__() call": Forgetful,
    "missing 1 required positional argument: 'kernel_size'": lambda: nn.Conv2d(32, 5),
    "optimizer got an empty parameter list": lambda: torch.optim.SGD(InForward().parameters(), 0.1),
    "mat1 and mat2 shapes cannot be multiplied": lambda: nn.Linear(1000, 1)(torch.ones(1, 6272)),
    "Given groups=1, weight of size [32, 1, 5, 5], expected input": lambda: nn.Conv2d(1, 32, 5)(
        torch.ones(1, 200, 200, 1)
    ),
    "padding='same' is not supported for strided convolutions": lambda: nn.Conv2d(1, 1, 3, 2, padding="same"),
    "size mismatch for": lambda: nn.Linear(2, 3).load_state_dict({"weight": torch.ones(2, 3), "bias": torch.ones(3)}),
    "expected torch.Tensor or Tensor-like object from checkpoint but received": lambda: nn.Linear(
        2, 3, bias=False
    ).load_state_dict({"weight": np.ones((3, 2))}),
    "a leaf Variable that requires grad is being used in an in-place operation": written_leaf,
    "modified by an inplace operation": reused_in_place,
    "Can't call numpy() on Tensor that requires grad": lambda: nn.Linear(2, 2)(torch.ones(1, 2)).numpy(),
    "'list' object has no attribute 'numpy'": several_outputs,
    "Expected more than 1 value per channel when training": lambda: nn.BatchNorm1d(2)(torch.ones(1, 2)),
    "'collections.OrderedDict' object is not callable": loaded_as_a_model,
    "Missing key(s) in state_dict": lambda: nn.Linear(2, 2).load_state_dict({"weight": torch.ones(2, 2)}),
    "Unexpected key(s) in state_dict": lambda: nn.Linear(2, 2).load_state_dict(
        {"weight": torch.ones(2, 2), "bias": torch.ones(2), "kernel": torch.ones(2)}
    ),
    "should be the same": lambda: nn.Conv2d(1, 1, 1)(torch.ones(1, 1, 2, 2, dtype=torch.float64)),
    "must have the same dtype": lambda: nn.Linear(2, 2)(torch.ones(1, 2, dtype=torch.float64)),
    "keras.Model(inputs, model.call(inputs)) makes none": a_subclassed_model,
    "could not be deserialized properly": a_file_with_a_layer_of_ones_own,
    "Requested the deserialization of a": a_file_with_a_lambda,
    "not a readable HDF5 weight file": a_keras_file_as_weights,
    "only supports loading legacy": new_weights_by_name,
}


@pytest.mark.parametrize("said", ERRORS)
def test_an_error_says_what_the_symptoms_say(said, tmp_path):
    make = ERRORS[said]
    arguments = (tmp_path,) if isinstance(make, types.FunctionType) and make.__code__.co_argcount else ()
    with pytest.raises((AttributeError, TypeError, ValueError, RuntimeError, ParityError), match=re.escape(said)):
        make(*arguments)


def test_every_error_of_the_symptoms_is_provoked():
    listed = [
        text
        for row in [
            *rows("symptoms", "Errors while the port is written"),
            *rows("symptoms", "Errors while files are loaded"),
        ]
        for text in re.findall(r"`([^`]+)`", row[0])
        if text != "state_dict()"
    ]
    assert sorted(listed) == sorted(ERRORS)


def test_a_model_whose_layers_are_made_in_forward_has_an_empty_state_dict():
    assert InForward().state_dict() == {}


# --- Your own model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mistake", ["none", "padding", "epsilon"])
def test_the_code_for_your_own_model_runs_and_can_fail(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = keras.Input((None, None, 3))
    maps = keras.layers.Conv2D(3, 3, 2, "same", name="conv")(image)
    model = fill(keras.Model(image, keras.layers.BatchNormalization(name="norm")(maps)))
    twin = nn.Sequential()
    twin.add_module("conv", Conv2dSame(3, 3, 3, 2) if mistake != "padding" else nn.Conv2d(3, 3, 3, 2, padding=1))
    twin.add_module("norm", nn.BatchNorm2d(3, eps=1e-3, momentum=0.01))
    page = DOCS["your-own-model"]
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    make, propose, by_hand, move, _, several, one_size, in_float64, _, find, find_all, save, load = blocks
    names = {"keras_model": model, "MyNet": lambda: twin}
    exec(make, names)
    batches = names["batches"]
    assert len({batch.shape for batch in batches}) == 2
    exec(propose, names)
    table = re.search(r"```\n(keras,torch\n.*?)```", page, flags=re.DOTALL)[1]
    if mistake == "padding":  # the proposal says so and goes on; the comparison fails
        assert list(names["proposal"].parts_at) == ["conv"]
        assert names["proposal"].behind == ["norm"]
        assert (tmp_path / "mapping.csv").read_text() == table
        with pytest.raises(AssertionError):
            exec(move, names)
        return
    assert (tmp_path / "mapping.csv").read_text() == table
    exec(by_hand, names)
    assert (tmp_path / "mapping.csv").read_text() == table
    exec(move, names)
    capsys.readouterr()
    if mistake == "epsilon":
        twin.norm.eps = 1e-5
        with pytest.raises(AssertionError):
            exec(in_float64, names)
        exec(find, names)
        said = re.search(r"```\n(norm .*?)```", page, flags=re.DOTALL)[1]
        assert capsys.readouterr().out.endswith(said)
        exec(find_all, names)
        assert capsys.readouterr().out == said
        return
    exec(several, names)
    assert capsys.readouterr().out.startswith("agree ")
    exec(one_size, names | {"keras": keras})
    exec(in_float64, names)
    assert capsys.readouterr().out.count("agree ") == len(batches)
    assert next(twin.parameters()).dtype == torch.float32
    exec(find, names)
    assert capsys.readouterr().out.endswith("no layer diverges\n")
    exec(save, names)
    names["torch_model"] = nn.Sequential()
    names["torch_model"].add_module("conv", Conv2dSame(3, 3, 3, 2))
    names["torch_model"].add_module("norm", nn.BatchNorm2d(3, eps=1e-3, momentum=0.01))
    exec(load, names)
    assert compare("loaded", model(names["images"]), names["output"].movedim(1, -1), within=1e-4)


def test_a_softmax_can_be_left_out_of_a_keras_model():
    (line,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", DOCS["your-own-model"], flags=re.DOTALL)
        if "linear" in block
    )
    x = keras.Input((4,))
    hidden = keras.layers.Dense(4)(x)
    probabilities, other = keras.layers.Dense(3, activation="softmax")(hidden), keras.layers.Dense(2)(hidden)
    model = fill(keras.Model(x, [probabilities, other]))  # the last layer is not the one with the softmax
    features = np.ones((2, 4), dtype="float32")
    assert np.allclose(model(features)[0].numpy().sum(1), 1)
    exec(line, {"keras_model": model, "keras": keras})
    first, bias, kernel, bias_2, *_ = model.get_weights()
    assert compare("logits", model(features)[0], (features @ first + bias) @ kernel + bias_2, within=1e-5)


def test_a_layer_such_as_random_flip_works_unless_it_is_told_not_to():
    """Why the page says ``training=False``."""
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype("float32")
    layer = keras.layers.RandomFlip(seed=0)
    image = keras.Input((4, 4, 1))
    model = keras.Model(image, layer(image))
    assert any(not np.array_equal(model(x), x) for _ in range(5))
    assert np.array_equal(model(x, training=False), x)


def test_a_rescaling_in_float64_has_the_factor_that_the_page_says():
    factor = eval(re.search(r"`(float\(np\.float32\(1 / 255\)\))`", DOCS["your-own-model"])[1], {"np": np})
    x = np.full((1, 2, 2, 1), 200.0)
    found = keras.layers.Rescaling(1 / 255, dtype="float64")(x)
    assert compare("float32 factor", found, x * factor, within=1e-12)
    assert not compare("float64 factor", found, x / 255, within=1e-12)


def test_a_normalization_is_what_the_page_says():
    layer = keras.layers.Normalization()
    x = np.random.default_rng(0).normal(3, 2, size=(50, 4)).astype("float32")
    layer.adapt(x)
    mean, variance = layer.get_weights()[:2]
    assert compare("normalized", layer(x), (x - mean) / np.sqrt(variance), within=1e-5)


def test_the_loop_of_the_crib_trains():
    code = re.findall(r"```python\n(.*?)```", DOCS["crib"], flags=re.DOTALL)[-1]
    names = {}
    exec(code, names)
    torch.manual_seed(0)
    labels = torch.arange(32) % 2
    images = torch.randn(32, 3) + 3 * labels[:, None]
    model = nn.Linear(3, 2)
    names["fit"](model, images, labels, 20)
    assert (model(images).argmax(1) == labels).float().mean() > 0.9
    assert not model.training


@pytest.mark.parametrize(("kind", "module"), [("SimpleRNN", nn.RNN), ("LSTM", nn.LSTM), ("GRU", nn.GRU)])
def test_recurrent_layers_are_filled_as_the_cheat_sheet_says(kind, module):
    names = {"torch": torch}
    exec(re.search(r"```python\n(def swap.*?)```", DOCS["cheat-sheet"], flags=re.DOTALL)[1], names)
    x = np.random.default_rng(0).normal(size=(3, 7, 5)).astype("float32")
    image = keras.Input((7, 5))
    layer = getattr(keras.layers, kind)(6)
    model = fill(keras.Model(image, layer(image)))
    weights = {weight.name: torch.tensor(weight.numpy()) for weight in layer.weights}
    said = [row for row in rows("cheat-sheet", "Recurrent layers") if kind in row[0].split(", ")]
    state = {row[1].strip("`"): eval(expression(row[2]), names | weights) for row in said}
    port = module(5, 6, batch_first=True)
    port.load_state_dict(state)
    last = re.search(r"`lstm\(x\)(.*?)`", DOCS["cheat-sheet"])[1]
    with torch.no_grad():
        found = eval(f"output{last}", {"output": port(torch.from_numpy(x))})
    assert compare(kind, model(x), found, within=1e-5)


def test_attention_is_filled_as_the_cheat_sheet_says():
    x = np.random.default_rng(0).normal(size=(3, 7, 12)).astype("float32")
    sequence = keras.Input((7, 12))
    layer = keras.layers.MultiHeadAttention(3, 4)
    model = fill(keras.Model(sequence, layer(sequence, sequence)))
    parts = (("q", layer._query_dense), ("k", layer._key_dense), ("v", layer._value_dense), ("o", layer._output_dense))
    names = {"torch": torch}
    for name, part in parts:
        kernel, bias = (torch.tensor(weight.numpy()) for weight in part.weights)
        names |= {name: kernel, f"{name}b": bias}
    state = {row[0].strip("`"): eval(expression(row[1]), names) for row in rows("cheat-sheet", "Attention")}
    port = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    port.load_state_dict(state)
    with torch.no_grad():
        found, _ = port(*3 * [torch.from_numpy(x)])
    assert compare("attention", model(x), found, within=1e-4)
    port.in_proj_weight.data = port.in_proj_weight.data.unflatten(0, (3, 3, 4)).transpose(1, 2).flatten(0, 2)
    assert not compare("heads in another order", model(x), port(*3 * [torch.from_numpy(x)])[0].detach(), within=1e-2)


def masked_sheet(kind):
    """Return what the cheat sheet says of masks for one of PyTorch's modules or functions, by Keras's argument."""
    said = [row for row in rows("cheat-sheet", "Masks") if kind in row[1]]
    return {re.search(r"`(\w+)|recurrent|the same", row[0])[0].strip("`"): expression(row[2]) for row in said}


def test_masks_of_an_attention_are_what_the_cheat_sheet_says():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, 7, 12)).astype("float32")
    sequence = keras.Input((7, 12))
    layer = keras.layers.MultiHeadAttention(3, 4, name="attention")
    model = fill(keras.Model(sequence, layer(sequence, sequence)))
    port = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    moved = [
        (f"attention/{inner}/{own}", f"in_proj_{tensor}")
        for inner in ("query", "key", "value")
        for own, tensor in KINDS
    ]
    moved += [(f"attention/attention_output/{own}", f"out_proj.{tensor}") for own, tensor in KINDS]
    transfer(model, port, pd.DataFrame(moved, columns=["keras", "torch"]))
    mask = np.arange(7) < np.array([7, 4, 1])[:, None]
    attention_mask = (generator.random((3, 7, 7)) < 0.5) | (np.arange(7) == 0)
    masks = {"value_mask": mask, "attention_mask": attention_mask, "use_causal_mask": True}
    names = {"torch": torch, "steps": 7, "heads": 3}
    names |= {"mask": torch.from_numpy(mask), "attention_mask": torch.from_numpy(attention_mask)}
    said = masked_sheet("MultiheadAttention")
    assert said.keys() == masks.keys()
    for name, written in said.items():
        keyword, _, value = written.partition("=")
        with torch.no_grad():
            found, _ = port(*3 * [torch.from_numpy(x)], **{keyword: eval(value, names)})
        assert compare(name, layer(x, x, **{name: masks[name]}), found, within=1e-4)
    q, k, v = (torch.from_numpy(generator.normal(size=(3, 2, 7, 4)).astype("float32")) for _ in range(3))
    keyword, _, value = masked_sheet("scaled_dot_product_attention")["attention_mask"].partition("=")
    found = F.scaled_dot_product_attention(q, k, v, **{keyword: eval(value, names)})
    scores = (q @ k.mT / 2).masked_fill(~names["attention_mask"][:, None], -torch.inf)
    assert torch.allclose(found, scores.softmax(-1) @ v, atol=1e-5)


KINDS = (("kernel", "weight"), ("bias", "bias"))


def test_masks_of_a_recurrent_layer_are_what_the_cheat_sheet_says():
    x = np.random.default_rng(0).normal(size=(3, 7, 5)).astype("float32")
    mask = np.arange(7) < np.array([7, 4, 1])[:, None]
    start = keras.Input((7, 5))
    layer = keras.layers.LSTM(6, return_sequences=True, name="lstm")
    model = fill(keras.Model(start, layer(start)))
    tensors = ("kernel", "weight_ih_l0"), ("recurrent_kernel", "weight_hh_l0"), ("bias", "bias_ih_l0")
    mapping = pd.DataFrame([(f"lstm/lstm_cell/{own}", tensor) for own, tensor in tensors], columns=["keras", "torch"])
    expected = layer(x, mask=mask)
    said = masked_sheet("parity.recurrent") | masked_sheet("nn.LSTM")
    names = {"x": torch.from_numpy(x), "mask": torch.from_numpy(mask), "pack_padded_sequence": pack_padded_sequence}
    own = recurrent.LSTM(5, 6)
    transfer(model, own, mapping)
    with torch.no_grad():
        found, _ = eval(said["recurrent"], names | {"module": own})
    assert compare("parity.recurrent", expected, found, within=1e-5)
    port = nn.LSTM(5, 6, batch_first=True)
    transfer(model, port, pd.concat([mapping, pd.DataFrame({"keras": [""], "torch": ["bias_hh_l0"]})]))
    with torch.no_grad():
        packed, (last, _) = port(eval(said["the same"], names))
    assert compare("the last step", expected[:, -1], last[0], within=1e-5)
    padded, _ = pad_packed_sequence(packed, batch_first=True)
    assert compare("where there is a step", np.where(mask[..., None], expected, 0), padded, within=1e-5)


def test_the_mapping_in_the_cheat_sheet_can_be_read(tmp_path):
    path = tmp_path / "mapping.csv"
    path.write_text(
        re.search(r"```text\n(keras,torch,how\n.*?)```", DOCS["cheat-sheet"], flags=re.DOTALL)[1], encoding="utf-8"
    )
    mapping = read_mapping(path)
    said = {row[0].strip("`") for row in rows("cheat-sheet", "The rows of a mapping")} - {"(empty)"}
    assert set(mapping.how) - {""} == said == {"as it is", "by hand", "not from Keras"}


# What a page says of a cause that it explains. The exercises of a page explain nothing.
EXPLAINED = {
    "kernel axes permuted": "order of",
    "height and width exchanged": "height and width change places",
    "weights in another order": "reshape",
    "kernel not transposed": "transpos",
    "epsilon": "epsilon",
    "BatchNormalization vectors exchanged": "Exchanged vectors",
    "train mode": "eval()",
    "momentum": "momentum",
    "padding": "padding",
    "padding value": "minus infinity",
    "padding counted": "count_include_pad",
    "overwritten in place": "in place",
    "flatten order": "flatten",
    "weights of another layer": "another layer",
    "heads exchanged": "heads exchanged",
    "dropout rate": "Dropout",
    "layer frozen": "frozen",
}


@pytest.mark.parametrize("cause", CAUSES)
def test_what_diagnose_names_is_explained_where_it_says(cause):
    where = CAUSES[cause]
    if where == "cheat sheet":
        assert f'"{cause}"' in DOCS["cheat-sheet"]
        return
    (page,) = (path for path in pages() if path.name.startswith(where))
    cells = [cell.source for cell in nbformat.read(page, as_version=4).cells if cell.cell_type == "markdown"]
    text = re.sub(r"^## Your turn.*?(?=^## |\Z)", "", "\n".join(cells), flags=re.DOTALL | re.MULTILINE)
    assert EXPLAINED[cause] in text


def test_a_group_norm_of_one_group_is_no_layer_normalization():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype("float32")
    expected = keras.layers.LayerNormalization()(x)
    assert not compare("GroupNorm", expected, run_torch(nn.GroupNorm(1, 4, eps=1e-3), x), within=1e-2)
    between = nn.LayerNorm(4, eps=1e-3)
    found = run_torch(lambda images: between(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), x)
    assert compare("LayerNorm", expected, found, within=1e-5)


def test_the_mapping_with_a_third_column_is_moved_as_the_page_says(tmp_path):
    (rows_of_page,) = re.findall(r"```\n(keras,torch,how\n.*?)```", DOCS["your-own-model"], flags=re.DOTALL)
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", DOCS["your-own-model"], flags=re.DOTALL)
        if "sequences" in block
    )

    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.gamma = self.add_weight(shape=(shape[-1],), name="gamma", initializer="random_normal")

        def call(self, x):
            return x * self.gamma

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.dense = nn.Module(), nn.Linear(3, 2)
            self.scale.gamma = nn.Parameter(torch.zeros(3))
            self.register_buffer("ids", torch.arange(4))

        def forward(self, x):
            return self.dense(x * self.scale.gamma)

    start = keras.Input((5, 3))
    model = keras.Model(start, keras.layers.Dense(2, name="dense")(Scale(name="scale")(start)))
    path = tmp_path / "mapping.csv"
    path.write_text(rows_of_page)
    names = {
        "torch": torch,
        "torch_model": Twin(),
        "sequences": np.random.default_rng(0).normal(size=(2, 5, 3)).astype("f"),
    }
    transfer(model, names["torch_model"], read_mapping(path))
    exec(code, names)
    assert compare("sequences", model(names["sequences"]), names["found"], within=1e-5)
    assert torch.equal(names["torch_model"].ids, torch.arange(4))

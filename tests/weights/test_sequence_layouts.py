"""Recurrent layers, attention and what has no module of its own compute in PyTorch what they do in Keras."""

import parity.recurrent as recurrent
from parity import ParityError, largest_difference, transfer
from parity.weights.sequence_layouts import reset_first, slot_of
from tests.helpers.models import ROUNDING, Twin, draw, fill, layer, spoil, table

import keras
import pytest
import torch
import torch.nn.functional as F
from torch import nn

L = keras.layers
FEATURES, UNITS, STEPS = 3, 4, 6


def model_of(*shapes, make):
    """Return a Keras model in float64 with random weights, of a function of its inputs."""
    inputs = [keras.Input(shape, dtype="float64") for shape in shapes]
    return fill(keras.Model(inputs if len(inputs) > 1 else inputs[0], make(*inputs)))


def run_pair(model, twin, rows, *shapes):
    """Move the weights, and return what both make of the same inputs."""
    names = [(*row, "") if len(row) == 2 else row for row in rows]
    transfer(model, spoil(twin.double()), mapping(*names))
    x = [draw(2, *shape, seed=number) for number, shape in enumerate(shapes)]
    with torch.no_grad():
        return model(x if len(x) > 1 else x[0]).numpy(), twin(*map(torch.from_numpy, x))


def mapping(*rows):
    """Return a mapping with the column ``how``, the lines counted from 2."""
    made = table(*[row[:2] for row in rows])
    made["how"] = [row[2] for row in rows]
    return made


def rows_of(model, prefix="r.", slot="_l0", two_biases=False):
    """Return the rows of a model whose only weights are those of one cell."""
    names = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh", "bias": "bias_ih"}
    rows = [(w.path, f"{prefix}{names[w.name]}{slot}") for w in model.weights]
    other = f"{prefix}bias_hh{slot}"
    return [*rows, (model.weights[-1].path if two_biases else "", other)]


def outputs(twin, x):
    return twin.r(x)[0]


CELLS = {
    "SimpleRNN": (lambda **k: layer("SimpleRNN", UNITS, return_sequences=True, **k), nn.RNN, False),
    "SimpleRNN, relu": (
        lambda **k: layer("SimpleRNN", UNITS, activation="relu", return_sequences=True, **k),
        lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
        False,
    ),
    "LSTM": (lambda **k: layer("LSTM", UNITS, return_sequences=True, **k), nn.LSTM, False),
    "GRU": (lambda **k: layer("GRU", UNITS, return_sequences=True, **k), nn.GRU, True),
}


@pytest.mark.parametrize(("make", "module", "two"), CELLS.values(), ids=CELLS)
def test_a_recurrent_layer_computes_what_keras_does(make, module, two):
    model = model_of((STEPS, FEATURES), make=make())
    twin = Twin(outputs, r=module(FEATURES, UNITS, batch_first=True))
    expected, found = run_pair(model, twin, rows_of(model, two_biases=two), (STEPS, FEATURES))
    assert largest_difference(expected, found) < ROUNDING
    assert largest_difference(expected, spoil(twin)(torch.from_numpy(draw(2, STEPS, FEATURES)))) > 0.1


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
def test_without_a_bias_both_of_pytorchs_become_0(name):
    make, module, _ = CELLS[name]
    model = model_of((STEPS, FEATURES), make=make(use_bias=False))
    rows = [*rows_of(model)[:2], ("", "r.bias_ih_l0"), ("", "r.bias_hh_l0")]
    twin = Twin(outputs, r=module(FEATURES, UNITS, batch_first=True))
    assert largest_difference(*run_pair(model, twin, rows, (STEPS, FEATURES))) < ROUNDING


def test_the_bias_of_an_lstm_may_be_the_other_of_pytorchs_two():
    model = model_of((STEPS, FEATURES), make=CELLS["LSTM"][0]())
    rows = [*rows_of(model)[:2], (model.weights[2].path, "r.bias_hh_l0"), ("", "r.bias_ih_l0")]
    twin = Twin(outputs, r=nn.LSTM(FEATURES, UNITS, batch_first=True))
    assert largest_difference(*run_pair(model, twin, rows, (STEPS, FEATURES))) < ROUNDING


OWN = {
    "GRU, reset before": (layer("GRU", UNITS, reset_after=False, return_sequences=True), recurrent.GRU, {}),
    "GRU, reset after, hard sigmoid": (
        layer("GRU", UNITS, recurrent_activation="hard_sigmoid", return_sequences=True),
        recurrent.GRU,
        {"reset_after": True, "recurrent_activation": "hard_sigmoid"},
    ),
    "LSTM, other activations": (
        layer("LSTM", UNITS, activation="softsign", recurrent_activation="hard_sigmoid", return_sequences=True),
        recurrent.LSTM,
        {"activation": "softsign", "recurrent_activation": "hard_sigmoid"},
    ),
    "SimpleRNN, elu": (
        layer("SimpleRNN", UNITS, activation="elu", return_sequences=True),
        recurrent.SimpleRNN,
        {"activation": "elu"},
    ),
}


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize(("made", "module", "settings"), OWN.values(), ids=OWN)
def test_the_modules_of_parity_compute_what_keras_does(made, module, settings, masked):
    def keras_side(x):
        x = L.Masking(0.0, dtype="float64")(x) if masked else x
        return type(made).from_config(made.get_config())(x)

    model = model_of((STEPS, FEATURES), make=keras_side)
    rows = rows_of(model, two_biases=settings.get("reset_after", False))
    rows = rows if settings.get("reset_after") else rows[:3]
    twin = Twin(
        lambda t, x: t.r(x, mask=(x != 0).any(-1) if masked else None)[0], r=module(FEATURES, UNITS, **settings)
    )
    expected, found = run_pair(model, twin, rows, (STEPS, FEATURES))
    assert largest_difference(expected, found) < ROUNDING
    x = draw(2, STEPS, FEATURES, seed=7)
    x[0, :2], x[1, 3:] = 0, 0
    with torch.no_grad():
        assert largest_difference(model(x).numpy(), twin(torch.from_numpy(x))) < ROUNDING
    if masked:
        twin.run = outputs
        with torch.no_grad():
            assert largest_difference(model(x).numpy(), twin(torch.from_numpy(x))) > 0.01


def test_an_activation_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"the activation 'swish' is none of elu, hard_sigmoid"):
        recurrent.LSTM(2, 3, activation="swish")


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
def test_two_directions_go_to_one_module(merge):
    lstm = layer("LSTM", UNITS, return_sequences=True)
    model = model_of((STEPS, FEATURES), make=L.Bidirectional(lstm, merge_mode=merge, dtype="float64"))
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"]
    keys = [f"r.{name}{way}" for way in ("", "_reverse") for name in names]
    rows = [(w.path, key) for w, key in zip(model.weights, keys, strict=True)]
    rows += [("", "r.bias_hh_l0"), ("", "r.bias_hh_l0_reverse")]

    def joined(twin, x):
        both = twin.r(x)[0]
        a, b = both.chunk(2, -1)
        return {"concat": both, "sum": a + b, "mul": a * b, "ave": (a + b) / 2}[merge]

    twin = Twin(joined, r=nn.LSTM(FEATURES, UNITS, batch_first=True, bidirectional=True))
    assert largest_difference(*run_pair(model, twin, rows, (STEPS, FEATURES))) < ROUNDING


def test_several_layers_go_to_one_module():
    model = model_of(
        (STEPS, FEATURES),
        make=lambda x: layer("GRU", UNITS, return_sequences=True)(layer("GRU", UNITS, return_sequences=True)(x)),
    )
    first, second = model.weights[:3], model.weights[3:]
    rows = []
    for number, (kernel, again, bias) in enumerate((first, second)):
        names = ((kernel, "weight_ih"), (again, "weight_hh"), (bias, "bias_ih"), (bias, "bias_hh"))
        rows += [(w.path, f"r.{name}_l{number}") for w, name in names]
    twin = Twin(outputs, r=nn.GRU(FEATURES, UNITS, num_layers=2, batch_first=True))
    assert largest_difference(*run_pair(model, twin, rows, (STEPS, FEATURES))) < ROUNDING


def test_stacked_cells_go_to_cells_or_to_one_module():
    cells = [L.LSTMCell(UNITS, dtype="float64"), L.LSTMCell(5, dtype="float64")]
    model = model_of((STEPS, FEATURES), make=L.RNN(L.StackedRNNCells(cells, dtype="float64"), dtype="float64"))
    rows = []
    for number in range(2):
        names = ("weight_ih", "weight_hh", "bias_ih")
        rows += [(w.path, f"{'ab'[number]}.{n}") for w, n in zip(model.weights[3 * number :], names, strict=False)]
        rows += [("", f"{'ab'[number]}.bias_hh")]

    def run(twin, x):
        a = b = None
        for step in x.unbind(1):
            a = twin.a(step, a)
            b = twin.b(a[0], b)
        return b[0]

    twin = Twin(run, a=nn.LSTMCell(FEATURES, UNITS), b=nn.LSTMCell(UNITS, 5))
    assert largest_difference(*run_pair(model, twin, rows, (STEPS, FEATURES))) < ROUNDING


# --- Attention ------------------------------------------------------------------------------------------------------

WIDTH, HEADS = 8, 2


def attention_model(key_dim, value_dim=None, bias=True):
    attention = layer("MultiHeadAttention", HEADS, key_dim, value_dim=value_dim, use_bias=bias, name="mha")
    return model_of((STEPS, WIDTH), make=lambda x: attention(x, x))


def named(model):
    """Return the paths of an attention's weights by the last two parts: query/kernel."""
    return {"/".join(w.path.split("/")[-2:]): w.path for w in model.weights}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_query_key_and_value_fill_one_tensor_in_the_order_of_the_rows(bias):
    model = attention_model(WIDTH // HEADS, bias=bias)
    paths = named(model)
    three = ("query", "key", "value")
    rows = [(paths[f"{name}/kernel"], "a.in_proj_weight") for name in three]
    rows += [(paths[f"{name}/bias"], "a.in_proj_bias") for name in three] if bias else [("", "a.in_proj_bias")]
    rows += [(paths["attention_output/kernel"], "a.out_proj.weight")]
    rows += [(paths["attention_output/bias"] if bias else "", "a.out_proj.bias")]
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    twin = Twin(lambda t, x: t.a(x, x, x, need_weights=False)[0], a=attention)
    assert largest_difference(*run_pair(model, twin, rows, (STEPS, WIDTH))) < ROUNDING
    rows[0], rows[1] = rows[1], rows[0]
    with pytest.raises(
        ParityError, match=r"query/kernel is part 2 of a.in_proj_weight, whose order is query, key, value"
    ):
        transfer(model, twin, mapping(*[(*row, "") for row in rows]))


@pytest.mark.parametrize("value_dim", [None, 3])
def test_an_attention_of_other_widths_goes_to_linear_layers(value_dim):
    model, heads = attention_model(5, value_dim), HEADS
    sizes = {"query": heads * 5, "key": heads * 5, "value": heads * (value_dim or 5)}
    paths = named(model)

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def run(twin, x):
        attended = F.scaled_dot_product_attention(split(twin.query(x)), split(twin.key(x)), split(twin.value(x)))
        return twin.attention_output(attended.transpose(1, 2).flatten(2))

    modules = {name: nn.Linear(WIDTH, size) for name, size in sizes.items()}
    twin = Twin(run, **modules, attention_output=nn.Linear(sizes["value"], WIDTH))
    rows = [(path, name.replace("/kernel", ".weight").replace("/bias", ".bias")) for name, path in paths.items()]
    # Keras has 1 / sqrt(key_dim) in float32.
    assert largest_difference(*run_pair(model, twin, rows, (STEPS, WIDTH))) < 1e-5


def test_groups_of_queries_go_to_linear_layers():
    made = layer("GroupQueryAttention", 3, 4, 2)  # key_dim 3, four queries, two keys and values
    model = model_of((STEPS, WIDTH), make=lambda x: made(x, x))
    paths = named(model)

    def run(twin, x):
        q, k, v = (getattr(twin, name)(x).unflatten(-1, (-1, 3)).transpose(1, 2) for name in ("query", "key", "value"))
        attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return twin.attention_output(attended.transpose(1, 2).flatten(2))

    modules = {"query": nn.Linear(WIDTH, 12), "key": nn.Linear(WIDTH, 6), "value": nn.Linear(WIDTH, 6)}
    twin = Twin(run, **modules, attention_output=nn.Linear(12, WIDTH))
    rows = [(path, name.replace("/kernel", ".weight").replace("/bias", ".bias")) for name, path in paths.items()]
    # Keras has 1 / sqrt(key_dim) in float32.
    assert largest_difference(*run_pair(model, twin, rows, (STEPS, WIDTH))) < 1e-5


def test_the_scale_of_an_additive_attention_goes_to_a_parameter():
    model = model_of((STEPS, WIDTH), (5, WIDTH), make=lambda q, v: layer("AdditiveAttention")([q, v]))

    class Additive(nn.Module):
        def __init__(self):
            super().__init__()
            self.v = nn.Parameter(torch.zeros(WIDTH))

        def forward(self, q, v):
            scores = (self.v * torch.tanh(q[:, :, None] + v[:, None])).sum(-1)
            return scores.softmax(-1) @ v

    rows = [(model.weights[0].path, "v")]
    assert largest_difference(*run_pair(model, Additive(), rows, (STEPS, WIDTH), (5, WIDTH))) < ROUNDING


# --- What decides is the layout and the shape ------------------------------------------------------------------------


def test_einsum_dense_is_a_matrix_with_the_new_axes_first():
    model = model_of((STEPS, 2, 3), make=layer("EinsumDense", "abcd,dcef->abfe", (STEPS, 5, 4), bias_axes="fe"))
    kernel, bias = (w.path for w in model.weights)
    twin = Twin(lambda t, x: t.d(x.flatten(2)).unflatten(-1, (5, 4)), d=nn.Linear(6, 20))
    expected, found = run_pair(model, twin, [(kernel, "d.weight"), (bias, "d.bias")], (STEPS, 2, 3))
    assert largest_difference(expected, found) < ROUNDING


def test_two_dense_layers_fill_one_linear_and_one_fills_two():
    model = model_of((5,), make=lambda x: layer("Concatenate")([layer("Dense", 2)(x), layer("Dense", 4)(x)]))
    (k, b, k2, b2) = (w.path for w in model.weights)
    rows = [(k, "d.weight"), (k2, "d.weight"), (b, "d.bias"), (b2, "d.bias")]
    assert largest_difference(*run_pair(model, Twin(lambda t, x: t.d(x), d=nn.Linear(5, 6)), rows, (5,))) < ROUNDING
    model = model_of((5,), make=layer("Dense", 6))
    (k, b) = (w.path for w in model.weights)
    rows = [(k, "e.weight"), (k, "f.weight"), (b, "e.bias"), (b, "f.bias")]
    twin = Twin(lambda t, x: torch.cat([t.e(x), t.f(x)], 1), e=nn.Linear(5, 2), f=nn.Linear(5, 4))
    assert largest_difference(*run_pair(model, twin, rows, (5,))) < ROUNDING
    with pytest.raises(ParityError, match=r"line 4: .*bias goes to f, but .*kernel to e"):
        transfer(model, twin, mapping(*[(*row, "") for row in (*rows[:2], rows[3], rows[2])]))


def test_a_dense_layer_is_a_convolution_of_one_pixel():
    model = model_of((4, 5, 3), make=layer("Dense", 2))
    rows = [(w.path, key) for w, key in zip(model.weights, ("d.weight", "d.bias"), strict=True)]
    twin = Twin(lambda t, x: t.d(x.movedim(-1, 1)).movedim(1, -1), d=nn.Conv2d(3, 2, 1))
    assert largest_difference(*run_pair(model, twin, rows, (4, 5, 3))) < ROUNDING
    twin.d.stride = (2, 2)
    with pytest.raises(ParityError, match=r"stride of d is \(2, 2\); dense.* needs \(1, 1\)"):
        transfer(model, twin, mapping(*[(*row, "") for row in rows]))


def test_a_convolution_of_one_axis_fills_one_of_two():
    model = model_of((9, 3), make=layer("Conv1D", 2, 4))
    rows = [(w.path, key) for w, key in zip(model.weights, ("c.weight", "c.bias"), strict=True)]
    twin = Twin(lambda t, x: t.c(x.mT[..., None])[..., 0].mT, c=nn.Conv2d(3, 2, (4, 1)))
    assert largest_difference(*run_pair(model, twin, rows, (9, 3))) < ROUNDING


class Norm(nn.Module):
    """A normalization of one's own."""

    def __init__(self, channels, eps):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels)), eps

    def forward(self, x):
        """Normalize along the last axis."""
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        return (x - mean) / (variance + self.eps).sqrt() * self.weight + self.bias


def test_a_module_of_ones_own_takes_what_fits_and_its_settings_are_checked():
    model = model_of((4, 3), make=layer("LayerNormalization", epsilon=0.1))
    gamma, beta = (w.path for w in model.weights)
    rows = [(gamma, "n.weight"), (beta, "n.bias")]
    twin = Twin(lambda t, x: t.n(x), n=Norm(3, 0.1))
    assert largest_difference(*run_pair(model, twin, rows, (4, 3))) < ROUNDING
    with pytest.raises(ParityError, match=r"gamma belongs in n.weight, not in n.bias"):
        transfer(model, twin, mapping((gamma, "n.bias", ""), (beta, "n.weight", "")))
    twin.n.eps = 0.2
    with pytest.raises(ParityError, match=r"eps of n is 0.2; layer_normalization.* needs 0.1"):
        transfer(model, twin, mapping(*[(*row, "") for row in rows]))


def test_a_kernel_may_be_a_parameter_of_any_name():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters = nn.Parameter(torch.zeros(6, 1, 2, 3))

        def forward(self, x):
            return F.conv2d(x.movedim(-1, 1), self.filters, groups=3).movedim(1, -1)

    model = model_of((6, 7, 3), make=layer("DepthwiseConv2D", (2, 3), depth_multiplier=2, use_bias=False))
    rows = [(model.weights[0].path, "filters")]
    assert largest_difference(*run_pair(model, Own(), rows, (6, 7, 3))) < ROUNDING


@pytest.mark.parametrize("name", ["variance", "std"])
def test_the_statistics_of_a_normalization_go_to_buffers(name):
    def make(x):
        normalization = L.Normalization(dtype="float64")
        normalization.build((None, 3))
        normalization.adapt_mean.assign([0.1, 0.2, 0.3])
        normalization.adapt_variance.assign([0.5, 2.0, 3.0])
        normalization.finalize_state()
        return normalization(x)

    inputs = keras.Input((3,), dtype="float64")
    model = keras.Model(inputs, make(inputs))

    def run(twin, x):
        root = twin.std if name == "std" else twin.variance.sqrt()
        return ((x.T - twin.mean[:, None]) / root[:, None]).T

    twin = Twin(run)
    twin.register_buffer("mean", torch.zeros(3))
    twin.register_buffer(name, torch.zeros(3))
    mean, variance = (w.path for w in model.weights[:2])
    assert largest_difference(*run_pair(model, twin, [(mean, "mean"), (variance, name)], (3,))) < 1e-6


def test_weight_norm_takes_what_it_is_to_be():
    model = model_of((5,), make=layer("Dense", 2))
    twin = Twin(lambda t, x: t.d(x), d=nn.utils.parametrizations.weight_norm(nn.Linear(5, 2)))
    rows = [(w.path, key) for w, key in zip(model.weights, ("d.weight", "d.bias"), strict=True)]
    assert largest_difference(*run_pair(model, twin, rows, (5,))) < ROUNDING


def test_a_parametrization_that_changes_what_it_is_given_is_refused_and_nothing_moves():
    model = model_of((5,), make=layer("Dense", 2))
    twin = Twin(lambda t, x: t.d(x), d=nn.utils.parametrizations.spectral_norm(nn.Linear(5, 2))).double().eval()
    before = {key: tensor.clone() for key, tensor in twin.state_dict().items()}
    rows = [(w.path, key, "") for w, key in zip(model.weights, ("d.weight", "d.bias"), strict=True)]
    with pytest.raises(ParityError, match=r"d.weight is computed by a parametrization, which changes what it is given"):
        transfer(model, twin, mapping(*rows))
    assert all(torch.equal(before[key], tensor) for key, tensor in twin.state_dict().items())


# --- The column how ---------------------------------------------------------------------------------------------------


class Scaled(L.Layer):
    """A layer that this table does not cover."""

    def build(self, shape):
        """Make the weight."""
        self.gamma = self.add_weight(shape=(shape[-1], 2), name="gamma")

    def call(self, x):
        """Map the last axis to two features."""
        return keras.ops.matmul(x, self.gamma)


class ScaledTwin(nn.Module):
    """A twin with a parameter, a buffer and a module."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(3, 2))
        self.d = nn.Linear(2, 2)
        self.register_buffer("ids", torch.arange(4))

    def forward(self, x):
        """Map (batch, 3) to (batch, 2)."""
        return self.d(x @ self.gamma)


def scaled():
    model = model_of((3,), make=lambda x: layer("Dense", 2)(Scaled(dtype="float64")(x)))
    gamma, kernel, bias = (w.path for w in model.weights)
    return model, [(gamma, "gamma"), (kernel, "d.weight"), (bias, "d.bias")]


def test_a_weight_is_copied_as_it_is_and_a_buffer_left_alone():
    model, rows = scaled()
    rows = [(*rows[0], "as it is"), *rows[1:], ("", "ids", "not from Keras")]
    twin = ScaledTwin()
    expected, found = run_pair(model, twin, rows, (3,))
    assert largest_difference(expected, found) < ROUNDING
    assert (twin.ids == 7).all(), "spoilt before the transfer, and left so"


@pytest.mark.parametrize("key", ["gamma", ""])
def test_a_weight_by_hand_is_left_to_the_user(key):
    model, rows = scaled()
    twin = spoil(ScaledTwin().double())
    by_hand = [(rows[0][0], key, "by hand"), *[(*row, "") for row in rows[1:]], ("", "ids", "not from Keras")]
    by_hand += [] if key else [("", "gamma", "by hand")]
    transfer(model, twin, mapping(*by_hand))
    proposed = mapping(*by_hand)
    proposed.attrs["source"] = "proposal"
    with pytest.warns(UserWarning, match=r"left to you, as the column how says: \w+"):
        transfer(model, twin, proposed)
    assert (twin.gamma == 7).all()
    assert largest_difference(model.weights[1].numpy().T, twin.d.weight) == 0


def test_without_the_column_the_message_names_it():
    model, rows = scaled()
    with pytest.raises(ParityError) as caught:
        transfer(model, ScaledTwin(), mapping(*[(*row, "") for row in rows], ("", "ids", "")))
    assert [str(fault) for fault in caught.value.faults] == [
        f"line 2: {rows[0][0]}: the kind Scaled is not covered; say in the column how 'as it is' if it is to be copied "
        "in its shape, else 'by hand'",
        "line 5: ids needs a Keras weight; if it has none, say 'not from Keras' in the column how",
    ]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (("a", "b", "as is"), "the field how is 'as is'; it may be empty, 'as it is', 'by hand' or 'not from Keras'"),
        (("a", "", "as it is"), "the torch field is empty"),
        (("", "b", "as it is"), "b is to be copied as it is, but the keras field is empty"),
        (("a", "b", "not from Keras"), "b is said not to be from Keras, but the keras field is a"),
    ],
)
def test_a_row_that_says_nothing_that_can_be_is_refused(row, fault):
    model, _ = scaled()
    with pytest.raises(ParityError, match=f"line 2: {fault}"):
        transfer(model, ScaledTwin(), mapping(row))


# --- Settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "module", "fault"),
    [
        (
            layer("GRU", UNITS, reset_after=False),
            nn.GRU(FEATURES, UNITS),
            "reset_after of r is True; gru.* needs False",
        ),
        (
            layer("LSTM", UNITS, recurrent_activation="hard_sigmoid"),
            nn.LSTM(FEATURES, UNITS),
            "recurrent_activation of r is sigmoid; lstm.* needs hard_sigmoid",
        ),
        (
            layer("SimpleRNN", UNITS, activation="relu"),
            nn.RNN(FEATURES, UNITS),
            "nonlinearity of r is tanh; simple_rnn.* needs relu",
        ),
        (
            layer("LSTM", UNITS, activation="relu"),
            recurrent.LSTM(FEATURES, UNITS),
            "activation of r is tanh; lstm.* needs relu",
        ),
    ],
)
def test_a_recurrent_module_that_computes_something_else_is_refused(made, module, fault):
    model = model_of((STEPS, FEATURES), make=made)
    with pytest.raises(ParityError, match=fault):
        transfer(
            model, Twin(outputs, r=module), mapping(*[(*row, "") for row in rows_of(model)[: len(module.state_dict())]])
        )


def test_the_second_bias_of_a_gru_needs_its_share():
    model = model_of((STEPS, FEATURES), make=layer("GRU", UNITS))
    twin = Twin(outputs, r=nn.GRU(FEATURES, UNITS))
    with pytest.raises(ParityError, match=r"r.bias_hh_l0 needs a Keras weight"):
        transfer(model, twin, mapping(*[(*row, "") for row in rows_of(model)]))


def test_the_heads_of_an_attention_are_counted():
    model = attention_model(WIDTH // HEADS)
    paths = named(model)
    three = ("query", "key", "value")
    rows = [
        (paths[f"{name}/{w}"], f"a.in_proj_{t}", "")
        for w, t in (("kernel", "weight"), ("bias", "bias"))
        for name in three
    ]
    rows += [
        (paths[f"attention_output/{w}"], f"a.out_proj.{t}", "") for w, t in (("kernel", "weight"), ("bias", "bias"))
    ]
    twin = Twin(lambda t, x: t.a(x, x, x)[0], a=nn.MultiheadAttention(WIDTH, 4))
    with pytest.raises(ParityError, match=r"num_heads of a is 4; query needs 2"):
        transfer(model, twin, mapping(*rows))


def test_parts_that_do_not_fill_a_tensor_are_refused_with_their_numbers():
    model = model_of((5,), make=lambda x: layer("Concatenate")([layer("Dense", 2)(x), layer("Dense", 4)(x)]))
    (k, b, k2, b2) = (w.path for w in model.weights)
    rows = [(k, "d.weight", ""), (k2, "d.weight", ""), (b, "d.bias", ""), (b2, "d.bias", "")]
    with pytest.raises(
        ParityError,
        match=r"line 3: PyTorch tensor d.weight has a row already, line 2; together .* 6 rows, and it is \(7, 5\)",
    ):
        transfer(model, Twin(lambda t, x: t.d(x), d=nn.Linear(5, 7)), mapping(*rows))


def test_the_gates_of_a_gru_are_in_another_order():
    gates = torch.arange(6)
    assert reset_first(gates).tolist() == [2, 3, 0, 1, 4, 5]


@pytest.mark.parametrize(
    ("tensor", "slot"),
    [("weight_ih_l0", "_l0"), ("bias_hh_l1_reverse", "_l1_reverse"), ("weight_ih", ""), ("weight", "")],
)
def test_a_tensor_says_which_layer_and_direction_it_belongs_to(tensor, slot):
    assert slot_of(tensor) == slot

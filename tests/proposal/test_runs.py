"""How often the twin runs: once for a whole network, and for ties as often as there are candidates."""

from parity import propose_mapping
from parity.proposal.search import Search
from tests.helpers.models import Twin, model_of, norm, x_of

import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn


@pytest.fixture
def runs(monkeypatch):
    """Return a list that gets an entry for each run of a copy of a twin."""
    counted, run = [], Search.run_twin
    monkeypatch.setattr(Search, "run_twin", lambda self, *args: counted.append(1) or run(self, *args))
    return counted


def whole(layers, twin, x, **more):
    proposal = propose_mapping(model_of(x.shape[1:], layers), twin.eval(), x, **more)
    assert (proposal.undecided, proposal.unmatched, proposal.left_over) == ({}, {}, {})
    pairs = {(row[0].rpartition("/")[0], row[1].rpartition(".")[0]) for row in proposal.mapping.to_numpy() if row[0]}
    return dict(pairs)


def conv(x, filters, kernel, name):
    x = L.Conv2D(filters, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return L.ReLU()(L.BatchNormalization(name=f"{name}_norm")(x))


class Conv(nn.Module):
    """A convolution with BatchNorm and ReLU."""

    def __init__(self, channels, filters, kernel):
        super().__init__()
        self.norm = norm(filters)
        self.conv = nn.Conv2d(channels, filters, kernel, padding=kernel // 2, bias=False)

    def forward(self, x):
        """Map (batch, channels, h, w) to (batch, filters, h, w)."""
        return F.relu(self.norm(self.conv(x)))


def test_blocks_with_skips_and_pooling_take_one_run(runs):
    """As in ResNet50: two convolutions read each block's input, but they have other shapes."""

    def layers(x):
        for k, width in enumerate((4, 8)):
            y = L.Conv2D(width, 1, name=f"up{k}")(conv(conv(x, 4, 1, f"a{k}"), 4, 3, f"b{k}"))
            x = L.ReLU()(L.Add()([L.Conv2D(width, 3, padding="same", name=f"skip{k}")(x), y]))
        return L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x))

    modules, channels = {}, 3
    for k, width in enumerate((4, 8)):
        modules |= {f"skip{k}": nn.Conv2d(channels, width, 3, padding=1), f"up{k}": nn.Conv2d(4, width, 1)}
        modules |= {f"b{k}": Conv(4, 4, 3), f"a{k}": Conv(channels, 4, 1)}
        channels = width

    def run(t, x):
        for k in range(2):
            a, b, up, skip = (getattr(t, f"{name}{k}") for name in ("a", "b", "up", "skip"))
            x = torch.relu(up(b(a(x))) + skip(x))
        return t.head(x.mean((2, 3)))

    pairs = whole(layers, Twin(run, **modules, head=nn.Linear(8, 2)), x_of(2, 8, 9, 3))
    assert pairs["up1"] == "up1"
    assert len(runs) == 1


def test_a_dense_block_takes_one_run(runs):
    """As in DenseNet121: every layer reads what all before it return."""

    def layers(x):
        for k in range(6):
            x = L.Concatenate()([x, conv(conv(x, 6, 1, f"a{k}"), 4, 3, f"b{k}")])
        return x

    modules = {}
    for k in reversed(range(6)):
        modules |= {f"v{k}": Conv(6, 4, 3), f"u{k}": Conv(3 + 4 * k, 6, 1)}

    def run(t, x):
        for k in range(6):
            x = torch.cat([x, getattr(t, f"v{k}")(getattr(t, f"u{k}")(x))], 1)
        return x

    pairs = whole(layers, Twin(run, **modules), x_of(2, 7, 6, 3))
    assert (pairs["a5_conv"], pairs["b0_norm"]) == ("u5.conv", "v0.norm")
    assert len(runs) == 1


def test_separable_convolutions_with_skips_take_one_run(runs):
    """As in Xception."""

    def layers(x):
        for k in range(3):
            y = x
            for j in range(2):
                y = L.SeparableConv2D(4, 3, padding="same", use_bias=False, name=f"sep{k}{j}")(L.ReLU()(y))
                y = L.BatchNormalization(name=f"norm{k}{j}")(y)
            x = L.Add()([y, L.BatchNormalization(name=f"s{k}")(L.Conv2D(4, 1, use_bias=False, name=f"skip{k}")(x))])
        return x

    modules = {}
    for k in reversed(range(3)):
        modules |= {f"c{k}": nn.Conv2d(4 if k else 3, 4, 1, bias=False), f"m{k}": norm(4)}
        for j in reversed(range(2)):
            channels = 4 if k or j else 3
            modules |= {f"n{k}{j}": norm(4), f"p{k}{j}": nn.Conv2d(channels, 4, 1, bias=False)}
            modules[f"d{k}{j}"] = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def run(t, x):
        for k in range(3):
            y, x = x, getattr(t, f"m{k}")(getattr(t, f"c{k}")(x))
            for j in range(2):
                y = getattr(t, f"n{k}{j}")(getattr(t, f"p{k}{j}")(getattr(t, f"d{k}{j}")(y.relu())))
            x = x + y
        return x

    pairs = whole(layers, Twin(run, **modules), x_of(2, 7, 6, 3))
    assert (pairs["sep20"], pairs["skip2"]) in {("p20", "c2"), ("d20", "c2")}
    assert len(runs) == 1


BLOCKS = 4


def test_branches_of_one_shape_take_two_runs_for_each_tie(runs):
    """As in InceptionV3: in each block two convolutions of one shape read the same, and what follows tells them."""

    def layers(x):
        for k in range(BLOCKS):
            a, b = conv(x, 4, 1, f"a{k}"), conv(conv(conv(x, 4, 1, f"b{k}"), 5, 3, f"c{k}"), 5, 3, f"d{k}")
            x = L.Concatenate()([a, b, conv(L.AveragePooling2D(3, 1, padding="same")(x), 3, 1, f"e{k}")])
        return L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x))

    modules = {}
    for k in range(BLOCKS):
        channels = 12 if k else 3
        modules |= {f"{name}{k}": Conv(channels, width, 1) for name, width in (("b", 4), ("a", 4), ("e", 3))}
        modules |= {f"d{k}": Conv(5, 5, 3), f"c{k}": Conv(4, 5, 3)}

    def run(t, x):
        for k in range(BLOCKS):
            a, b, c, d, e = (getattr(t, f"{name}{k}") for name in "abcde")
            x = torch.cat([a(x), d(c(b(x))), e(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))], 1)
        return t.head(x.mean((2, 3)))

    pairs = whole(layers, Twin(run, **modules, head=nn.Linear(12, 2)), x_of(2, 9, 8, 3))
    assert all(pairs[f"{name}{k}_conv"] == f"{name}{k}.conv" for name in "abcde" for k in range(BLOCKS))
    assert len(runs) == 1 + 2 * BLOCKS


def test_query_key_and_value_are_told_apart_in_each_block(runs):
    """Three modules of one shape read the same; only where attention has been computed do numbers tell."""

    def layers(x):
        for k in range(BLOCKS):
            q, key, v = (L.Dense(6, name=f"{name}{k}")(x) for name in ("q", "k", "v"))
            taken = L.Dot((2, 1))([L.Softmax()(L.Dot((2, 2))([q, key])), v])
            x = L.LayerNormalization(name=f"n{k}", epsilon=1e-5)(L.Add()([x, L.Dense(6, name=f"o{k}")(taken)]))
        return x

    modules = {f"{name}{k}": nn.Linear(6, 6) for k in range(BLOCKS) for name in "vkqo"}
    modules |= {f"n{k}": nn.LayerNorm(6) for k in range(BLOCKS)}

    def run(t, x):
        for k in range(BLOCKS):
            q, key, v, o, n = (getattr(t, f"{name}{k}") for name in "qkvon")
            x = n(x + o((q(x) @ key(x).mT).softmax(-1) @ v(x)))
        return x

    x = x_of(2, 7, 6)
    pairs = whole(layers, Twin(run, **modules), x, torch_x=torch.from_numpy(x))
    assert pairs == {name: name for name in modules}
    assert len(runs) <= 1 + 10 * BLOCKS

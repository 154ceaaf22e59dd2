"""What each row of a mapping moves: which place, which part of a tensor, which part of a weight."""

from parity.weights.fills import (
    Fill,
    Misfit,
    fills,
    is_own,
    keras_weight_of,
    keras_weights,
    same_but_for_ones,
    twin_tensors,
)
from parity.weights.mapping import Row
from tests.helpers.models import Twin, draw, fill, layer, sequential

import keras
import pytest
import torch
from torch import nn

L = keras.layers


def found(model, twin, *rows):
    """Return what rows move; each is a Keras path and a PyTorch key."""
    weights = {weight.variable.path: weight for weight in keras_weights(model)}
    made = [Row(f"row {number}", *row) for number, row in enumerate(rows)]
    return list(fills(made, weights, twin_tensors(twin), dict(twin.named_modules(remove_duplicate=False))))


def heads():
    x = keras.Input((4,), dtype="float64")
    names = ("a", "b")
    return fill(keras.Model(x, [layer("Dense", size, name=n)(x) for n, size in zip(names, (2, 3), strict=True)]))


def test_one_row_fills_a_whole_tensor():
    model, twin = heads(), Twin(lambda t, x: x, a=nn.Linear(4, 2))
    (one,) = found(model, twin, ("a/kernel", "a.weight"))
    assert (one.first, one.rows, one.wrong_name) == (0, None, "")
    assert one.tensor is twin.a.weight
    assert torch.equal(one.value, torch.from_numpy(model.get_layer("a").kernel.numpy().T.copy()))
    assert one.part_of(twin.a.weight) is twin.a.weight


def test_several_rows_fill_a_tensor_in_their_order():
    twin = Twin(lambda t, x: x, both=nn.Linear(4, 5))
    first, second = found(heads(), twin, ("b/kernel", "both.weight"), ("a/kernel", "both.weight"))
    assert [(one.first, len(one.tensor)) for one in (first, second)] == [(0, 3), (3, 2)]
    assert second.tensor.data_ptr() == twin.both.weight[3:].data_ptr()
    assert torch.equal(second.part_of(twin.both.weight), twin.both.weight[3:])


def test_a_weight_may_be_taken_apart():
    model, twin = heads(), Twin(lambda t, x: x, p=nn.Linear(4, 1), q=nn.Linear(4, 2))
    first, second = found(model, twin, ("b/kernel", "p.weight"), ("b/kernel", "q.weight"))
    kernel = torch.from_numpy(model.get_layer("b").kernel.numpy().T.copy())
    assert torch.equal(torch.cat([first.value, second.value]), kernel)
    assert (first.rows, second.rows) == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("kind", "module", "names"),
    [
        ("LSTM", nn.LSTM(4, 3), ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")),
        ("GRU", nn.GRU(4, 3), ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")),
        ("Dense", nn.Linear(4, 3), ("weight", "bias")),
    ],
)
def test_the_way_back_is_that_of_the_way_there(kind, module, names):
    model, twin = sequential((5, 4), layer(kind, 3)), Twin(lambda t, x: x, m=module.double())
    paths = [weight.path for weight in model.weights]
    rows = [(paths[min(number, len(paths) - 1)], f"m.{name}") for number, name in enumerate(names)]
    moved = found(model, twin, *rows)
    with torch.no_grad():
        for one in moved:
            one.tensor.copy_(one.value)
    for weight in model.weights:
        several = [one for one in moved if one.row.keras == weight.path]
        assert torch.equal(keras_weight_of(several), torch.from_numpy(weight.numpy()))
    with torch.no_grad():
        moved[0].tensor[0] += 1
    assert not torch.equal(keras_weight_of(moved[:1]), torch.from_numpy(model.weights[0].numpy()))


def test_what_is_computed_from_a_weight_has_no_way_back():
    model = sequential((3,), normalization := L.Normalization(dtype="float64"), layer("Dense", 2))
    normalization.adapt(draw(9, 3))
    twin = Twin(lambda t, x: x)
    twin.register_buffer("std", torch.ones(3, dtype=torch.float64))
    (one,) = found(model, twin, (normalization.adapt_variance.path, "std"))
    assert torch.allclose(one.value.square(), torch.from_numpy(normalization.adapt_variance.numpy()).double())
    assert keras_weight_of([one]) is None


def test_why_a_row_moves_nothing():
    class Own(L.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(2,), name="w")

    model = sequential((4,), layer("Dense", 2, name="d"))
    own = Own(name="own")
    own.build((None, 4))
    model.own = own
    twin = Twin(lambda t, x: x, n=nn.BatchNorm1d(2))
    (one,) = found(model, twin, (model.get_layer("d").kernel.path, "n.weight"))
    assert isinstance(one, Misfit)
    assert one.why.endswith("kernel goes to the weight of a Linear; n.weight is in a BatchNorm1d")


def test_a_wrong_name_is_said_with_the_right_one():
    twin = Twin(lambda t, x: x, r=nn.LSTM(4, 3, num_layers=2))
    model = sequential((5, 4), layer("LSTM", 3))
    (one,) = found(model, twin, (model.weights[0].path, "r.weight_hh_l1"))
    assert isinstance(one, Fill)
    assert one.wrong_name == "belongs in r.weight_ih_l1, not in r.weight_hh_l1"


@pytest.mark.parametrize(
    ("shape", "other", "same"),
    [
        ((2, 3), (2, 3), True),
        ((2, 3), (2, 3, 1, 1), True),
        ((3,), (1, 3, 1), True),
        ((), (1,), True),
        ((1, 3), (3, 1), False),
        ((2, 3), (3, 2, 1), False),
    ],
)
def test_axes_of_size_1_may_be_more_or_fewer_and_not_elsewhere(shape, other, same):
    assert same_but_for_ones(shape, other) is same


def test_a_parametrized_tensor_stands_for_what_it_is_computed_from():
    twin = Twin(lambda t, x: x, d=nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    assert sorted(twin_tensors(twin)) == ["d.bias", "d.weight"]
    assert twin_tensors(twin)["d.weight"].shape == (2, 4)


@pytest.mark.parametrize(("module", "own"), [(nn.Linear(2, 2), False), (nn.GRU(2, 2), False), (nn.Identity(), True)])
def test_whose_class_a_module_is(module, own):
    assert is_own(module) is own

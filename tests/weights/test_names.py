"""Names in a mapping that differ from the models' by a wrapper, or by the count in a Sequential's name."""

from parity import ParityError, diagnose, propose_mapping, trace, transfer
from parity.weights.mapping import Row
from parity.weights.names import with_names_of
from tests.helpers.models import model_of, table, x_of

import keras
import pytest
import torch
from keras import layers as L
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")  # torch.compile uses it

ROWS = (("d/kernel", "d.weight"), ("d/bias", "d.bias"))


class Net(nn.Module):
    """A linear layer."""

    def __init__(self):
        super().__init__()
        self.d = nn.Linear(4, 2)

    def forward(self, x):
        """Map (batch, 4) to (batch, 2)."""
        return self.d(x)


def inner_compiled():
    net = Net()
    net.d = torch.compile(net.d)
    return net


WRAPPED = {
    "compiled": lambda: torch.compile(Net()),
    "a part compiled": inner_compiled,
    "parallel": lambda: nn.DataParallel(Net()),
    "both": lambda: nn.DataParallel(torch.compile(Net())),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_mapping_of_the_plain_twin_fits_a_wrapped_one(wrapped):
    model, twin = model_of((4,), lambda x: L.Dense(2, name="d")(x)), WRAPPED[wrapped]().eval()
    transfer(model, twin, table(*ROWS))
    assert diagnose(model, twin, x_of(3, 4), table(*ROWS)).divergence is None
    proposed = propose_mapping(model, twin, x_of(3, 4)).mapping
    assert len(proposed) == 2
    plain = Net().eval()
    transfer(model, plain, proposed)  # and the other way round
    assert diagnose(model, plain, x_of(3, 4), proposed).divergence is None


def test_names_that_fit_only_in_part_are_left_as_they_are():
    model, twin = model_of((4,), lambda x: L.Dense(2, name="d")(x)), torch.compile(Net())
    with pytest.raises(ParityError, match="there is no PyTorch tensor e"):
        transfer(model, twin, table(ROWS[0], ("d/bias", "e.bias")))


def renamed(paths, weights):
    rows = [Row("row", path, "") for path in paths]
    return [row.keras for row in with_names_of(rows, weights, [])]


ONE = ["sequential_7/a/kernel", "sequential_7/a/bias"]


def test_the_count_in_the_name_of_a_model_is_no_other_name():
    assert renamed(["sequential/a/kernel", "sequential/a/bias"], ONE) == ONE
    assert renamed(["sequential_12/a/kernel"], ONE) == ONE[:1]
    assert renamed(ONE, ONE) == ONE


@pytest.mark.parametrize(
    "paths",
    [
        ["mine/a/kernel"],  # another name
        ["sequential/b/kernel"],  # no such layer
        ["sequential/a/kernel", "sequential_1/a/bias"],  # two models, where there is one
        ["a/kernel"],  # no model's name
        ["dense_7/kernel"],
    ],
)
def test_other_names_are_left_as_they_are(paths):
    assert renamed(paths, ONE) == paths


def test_of_two_models_each_takes_the_place_of_its_own():
    weights = ["sequential_3/a/kernel", "sequential_12/a/kernel"]
    assert renamed(["sequential_1/a/kernel", "sequential/a/kernel"], weights) == weights[::-1]
    # One has the number that the other had: which are meant is not clear.
    moved_on = ["sequential_1/a/kernel", "sequential_2/a/kernel"]
    given = ["sequential/a/kernel", "sequential_1/a/kernel"]
    assert renamed(given, moved_on) == given


def test_a_file_of_another_process_fits_a_sequential_model():
    model = keras.Sequential([keras.Input((4,)), L.Dense(2, name="d")], name="sequential_41")
    twin = nn.Sequential(nn.Linear(4, 2)).eval()
    mapping = table(("sequential/d/kernel", "0.weight"), ("sequential/d/bias", "0.bias"))
    transfer(model, twin, mapping)
    assert set(trace(model, twin, x_of(3, 4), mapping).verdict) == {"agree"}


@pytest.mark.parametrize("look", [trace, diagnose])
def test_a_wrong_name_is_told_of_the_nearest(look):
    model = model_of((4,), lambda x: L.Dense(2, name="d")(x))
    with pytest.raises(ParityError, match=r"there is no Keras weight d/kernels; did you mean d/kernel\?"):
        look(model, Net().eval(), x_of(3, 4), table(("d/kernels", "d.weight"), ("d/bias", "d.bias")))

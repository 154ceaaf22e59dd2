"""A twin of sequences takes the features last, as Keras does, or first: it is found out by trying."""

from course.small_models import draw, fill_scaled, pair_up
from parity import ParityError, diagnose, propose_mapping, trace, transfer
from parity.models.inputs import takes_keras_axes
from tests.helpers.models import snapshot

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn


class Tokens(nn.Module):
    """A twin that takes (batch, length, features)."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(4, eps=1e-3, momentum=0.01)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        """Map (batch, length, 5) to (batch, length, 3)."""
        return self.out(self.norm(torch.relu(self.dense(x)).mT).mT)


def both(twin=None):
    start = keras.Input((7, 5), dtype="float64")
    x = L.Dense(4, activation="relu", name="dense", dtype="float64")(start)
    x = L.BatchNormalization(name="norm", dtype="float64")(x)
    model = fill_scaled(keras.Model(start, L.Dense(3, name="out", dtype="float64")(x)))
    twin = (twin or Tokens()).double().eval()
    mapping = pair_up(model, twin, {name: name for name in ("dense", "norm", "out")})
    transfer(model, twin, mapping)
    return model, twin, draw(2, 7, 5), mapping


def test_a_right_port_of_tokens_is_proposed_and_raises_no_alarm():
    model, twin, x, mapping = both()
    before = snapshot(twin)
    assert str(diagnose(model, twin, x, mapping)) == "no layer diverges"
    assert str(diagnose(model, twin, x, mapping, training=True)) == "no layer diverges"
    proposed = propose_mapping(model, twin, x).mapping
    assert {tuple(row) for row in proposed.to_numpy()} == {tuple(row) for row in mapping.to_numpy()}
    assert snapshot(twin) == before


def test_a_mistake_in_a_port_of_tokens_is_located_and_named():
    model, twin, x, mapping = both()
    twin.norm.eps = 0.5
    assert "norm (norm): its inputs agree, its outputs do not\n  epsilon (eps is 0.5, not 0.001)" in str(
        diagnose(model, twin, x, mapping)
    )


@pytest.mark.parametrize(
    ("twin", "shape", "as_keras"),
    [
        (nn.Linear(5, 4), (7, 5), True),
        (nn.LSTM(5, 4, batch_first=True), (7, 5), True),
        (nn.Conv1d(5, 4, 3), (7, 5), False),
        (nn.Linear(5, 4), (5, 5), False),  # both run: as with all other twins, the channels are moved
        (nn.Linear(6, 4), (7, 5), False),  # neither runs
        (nn.Linear(5, 4), (5,), False),
        (nn.Linear(5, 4), (3, 7, 5), False),
    ],
    ids=["dense", "lstm", "convolution", "both", "neither", "features", "images"],
)
def test_only_a_twin_of_sequences_that_fails_with_the_features_first_takes_them_last(twin, shape, as_keras):
    assert takes_keras_axes(twin, [np.zeros((3, *shape), "float32")]) == (as_keras,)


def test_a_mistake_of_the_reader_is_told_and_torch_x_is_named():
    model, twin, x, mapping = both()
    twin.dense = nn.Linear(6, 4).double()
    for look in (lambda: trace(model, twin, x, mapping), lambda: diagnose(model, twin, x, mapping)):
        with pytest.raises(ParityError, match=r"it stops in dense: RuntimeError: mat1 .* give them as torch_x"):
            look()
    twin = Tokens()
    twin.forward = lambda x: twin.out(twin.norm(twin.dense(x.mT).mT).mT)
    with pytest.raises(ParityError, match=r"the twin stops: RuntimeError: .* give them as torch_x"):
        propose_mapping(model, twin, x)

"""What the check of page 10 says of right, wrong and idle fixes; its exercise can be done with what it prints."""

from course.exercises.e10_hunt import broken_twin, check_fixed_twin, exercise_at, exercise_mapping
from parity import diagnose, transfer
from parity.padding import AvgPool2dSame

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn


def said(answer, capsys):
    check_fixed_twin(answer)
    return capsys.readouterr().out.strip()


def fix(twin):
    """Fix everything in place."""
    transfer(exercise_at(9, 9)[0], twin, exercise_mapping())
    twin.leaky = nn.LeakyReLU(0.25)
    twin.pool = AvgPool2dSame(3, 2)


def returned(twin):
    fix(twin)
    return twin


def anew(twin):
    """Return another twin."""
    other = broken_twin()
    fix(other)
    return other


def pooled_by_hand(twin):
    """Write the average pooling without the course's layer."""
    fix(twin)

    def forward(x):
        pads = [pad for size in (x.shape[3], x.shape[2]) for pad in ((1, 1) if size % 2 else (0, 1))]
        padded, ones = F.pad(x, pads), F.pad(torch.ones_like(x), pads)
        return F.avg_pool2d(padded, 3, 2) / F.avg_pool2d(ones, 3, 2)

    twin.pool.forward = forward


@pytest.mark.parametrize("answer", [fix, returned, anew, pooled_by_hand])
def test_every_right_answer_is_right(answer, capsys):
    assert said(answer, capsys) == "✓ Fixed twin: right; it equals Keras in all 5 cases"


def weights_only(twin):
    transfer(exercise_at(9, 9)[0], twin, exercise_mapping())


def padded_at_odd_sizes_only(twin):
    fix(twin)
    twin.pool = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)


def slope_of_keras(twin):
    fix(twin)
    twin.leaky = nn.LeakyReLU(0.3)


def in_training_mode(twin):
    fix(twin)
    twin.train()


def in_float32(twin):
    fix(twin)
    twin.float()


def idle(twin):
    twin.mixed.weight.data.T  # noqa: B018


def idle_and_returned(twin):
    nn.LeakyReLU(0.25)
    return twin


def not_called(twin):
    fix(twin)
    forward = twin.forward
    twin.forward = lambda x: (twin.__dict__.update(done=True), forward(x).detach() * 0 + 0.25)[1]


def raises(twin):
    twin.mixed.weight = twin.mixed.weight.T


def pool_returned(twin):
    fix(twin)
    return twin.pool


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (weights_only, "wrong for odd sizes (13 x 9): leaky (leaky): its inputs agree"),
        (
            padded_at_odd_sizes_only,
            "right for odd sizes; wrong for even sizes (12 x 10): pool (pool): its inputs agree",
        ),
        (slope_of_keras, "wrong for odd sizes (13 x 9): leaky (leaky): its inputs agree"),
        (in_training_mode, "wrong for odd sizes (13 x 9): stem_norm (stem_norm): its inputs agree"),
        # Not that the first layer does not take what it should, which would send the reader astray.
        (in_float32, "the twin computes in float32, and Keras in float64; try twin.double()"),
        (idle, "it has changed nothing in the twin"),
        (idle_and_returned, "it has changed nothing in the twin"),
        (not_called, "wrong for odd sizes (13 x 9): output 1"),
        (raises, "TypeError: cannot assign"),
        (lambda twin: "twin", "it returned str, not the twin; return the twin, or nothing"),
        # By accident: `return twin.pool` after `twin.pool = ...`.
        (pool_returned, "it returned AvgPool2dSame, not the twin; return the twin, or nothing"),
    ],
)
def test_every_wrong_answer_is_told_what_is_wrong(answer, line, capsys):
    assert line in said(answer, capsys)


def norm_fixed(twin):
    norm = twin.stem_norm
    norm.weight.data, norm.bias.data = norm.bias.data, norm.weight.data


def slope_fixed_too(twin):
    norm_fixed(twin)
    twin.leaky.negative_slope = 0.25


def stem_spoiled(twin):
    twin.stem.bias.data.zero_()


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        (
            norm_fixed,
            "leaky (leaky): its inputs agree, its outputs do not; 1 layer more agrees than in the broken twin",
        ),
        (slope_fixed_too, "do not; 2 layers more agree than in the broken twin"),
        # Fewer layers agree than before, so nothing is gained.
        (stem_spoiled, "stem (stem): its inputs agree, its outputs do not"),
    ],
)
def test_a_right_step_is_told_that_it_went_further(answer, ending, capsys):
    assert said(answer, capsys).endswith(ending)


def test_an_empty_stub_is_not_attempted(capsys):
    def my_fix(twin):
        return None

    assert said(my_fix, capsys) == "… Fixed twin: not attempted yet"


def test_the_diagnosis_names_each_mistake_with_the_number_that_is_due():
    """The exercise can be finished from what its cell prints: no message leaves the reader to search for a setting."""
    model, x = exercise_at(12, 10)
    twin, messages = broken_twin(), []
    right = broken_twin()
    fix(right)
    for repair in (
        lambda: twin.stem_norm.load_state_dict(right.stem_norm.state_dict()),
        lambda: setattr(twin.leaky, "negative_slope", 0.25),
        lambda: twin.depthwise.load_state_dict(right.depthwise.state_dict()),
        lambda: setattr(twin, "pool", right.pool),
        lambda: twin.mixed.load_state_dict(right.mixed.state_dict()),
    ):
        messages += [str(cause) for cause in diagnose(model, twin, x, exercise_mapping()).causes]
        repair()
    assert messages == [
        "BatchNormalization vectors exchanged (gamma holds beta): notebook 03",
        "another slope (slope is 0.01, not 0.25): see the cheat sheet",
        "depthwise order (channels and multiplier are in the other order): see the cheat sheet",
        "padding (padding is [(1, 1), (1, 1)], not [(0, 1), (0, 1)]; average): notebook 04",
        "kernel not transposed ((8, 8) either way): notebook 02",
    ]
    assert diagnose(model, twin, x, exercise_mapping()).divergence is None
    assert np.isfinite(x).all()

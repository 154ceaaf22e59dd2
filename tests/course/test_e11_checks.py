"""What the checks of page 11 say of right and wrong answers, and what the page's own checks say of all mutants.

The answers are checks of the reader's own, and mistakes that one of two checks does not see. A broken answer is one
that lets a mutant through or refuses a right port; a mistake that both checks see, or neither; a port that stops;
and a module under another name, which is no mistake although the page's training step refuses it.
"""

from course.exercises.e11_checks import check_hides_from_noise, check_hides_from_training, check_my_check
from course.mutants import MUTANTS, NETWORKS, load_network
from course.mutants.bench import Pair, passes
from course.mutants.tools import before
from course.pages.anatomy import NOTEBOOKS

import nbformat
import numpy as np
import pytest
import torch
from torch import nn


def said(check, answer, capsys):
    check(answer)
    return " ".join(capsys.readouterr().out.split())


def differs(pair, port, which=slice(None)):
    for size in pair.sizes:
        both = zip(*pair.both(port, "images", size, exact=True), strict=True)
        if any(np.abs(a - b).max() > 1e-6 * np.abs(a).max() for a, b in list(both)[which]):
            return True
    return False


def plain(pair, port):
    return not differs(pair, port)


def with_asserts(pair, port):
    """Raise an error instead of returning False."""
    assert not differs(pair, port)
    return True


@pytest.mark.parametrize("answer", [plain, with_asserts, lambda pair, port: np.bool_(plain(pair, port))])
def test_every_right_check_is_right(answer, capsys):
    line = said(check_my_check, answer, capsys)
    assert line == "✓ My check: right; it passes 7 right ports and catches all 92 mutants"


def forgetful(pair, port):
    if differs(pair, port):
        return False


def stops(pair, port):
    return pair.unknown


def images_and_other_sizes(pair, port):
    """Look at negative numbers at one size, and at other sizes without negative numbers: two checks of the page."""
    for kind, sizes in (("images", [0]), ("noise", pair.sizes)):
        for size in sizes:
            for a, b in zip(*pair.both(port, kind, size, exact=True), strict=True):
                if np.abs(a - b).max() > 1e-6 * np.abs(a).max():
                    return False
    return True


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (forgetful, "it returned None; is a `return` missing?"),
        (lambda pair, port: False, "it refuses the right port of encoder: your check says False"),
        (lambda pair, port: "yes", "for the right port of encoder it returned yes: return True or False"),
        (stops, "the right port of encoder must pass, and your check stops: AttributeError"),
        # Only the second of two outputs of this mutant is wrong.
        (
            lambda pair, port: not differs(pair, port, slice(1)),
            "lets 1 of 92 mutants through, the first is heads: right",
        ),
        (
            images_and_other_sizes,
            "lets 1 of 92 mutants through, the first is pooling: largest: padded with zeros at even",
        ),
        (lambda pair, port: pair.trace(port).empty, "NotImplementedError: this exercise is about a check without"),
    ],
)
def test_every_wrong_check_is_told_what_is_wrong(answer, line, capsys):
    printed = said(check_my_check, answer, capsys)
    assert printed.startswith("✗ My check: wrong; ")
    assert line in printed


def test_an_empty_check_is_not_attempted(capsys):
    def my_check(pair, port):
        return None

    assert said(check_my_check, my_check, capsys) == "… My check: not attempted yet"


# --- Mistakes that one of two checks does not see --------------------------------------------------------------------


def momentum(port):
    port.bn.momentum = 0.01
    return port


def momentum_in_place(port):
    port.bn.momentum = None


def frozen(port):
    port.stem.weight.requires_grad_(False)
    return port


def all_frozen(port):
    return port.requires_grad_(False)


def relu_in_front(port):
    port.stem = nn.Sequential(nn.ReLU(), port.stem)
    return port


def reads_no_negative_numbers(port):
    """Change the forward of this one port, with a function that holds the port itself."""
    forward = port.forward
    port.forward = lambda x: forward(x.clamp(min=0))
    return port


def skip_detached(port):
    before(port.bn, lambda x: x.detach())
    return port


def dropout_added(port):
    port.gelu = nn.Sequential(port.gelu, nn.Dropout(0.5).eval())
    return port


def default_epsilon(port):
    port.bn.eps = 1e-5
    return port


def bn_in_train_mode(port):
    port.bn.train()
    return port


def port_in_train_mode(port):
    return port.train()


def wrong_variance(port):
    port.bn.running_var.fill_(1)


def other_outputs_in_eval_mode(port):
    forward = port.forward
    port.forward = lambda x: forward(x) if port.training else forward(x) + 1
    return port


def another_shape_in_eval_mode(port):
    forward = port.forward
    port.forward = lambda x: forward(x) if port.training else forward(x)[:, :1]
    return port


def wrong_mean(port):
    port.bn.running_mean.zero_()
    return port


def another_name(port):
    port.bn = nn.Sequential(port.bn)
    return port


def nothing(port):
    return port


def forgotten(port):
    port.bn.momentum  # noqa: B018


HIDDEN_FROM_NOISE = [
    momentum,
    momentum_in_place,
    frozen,
    all_frozen,
    relu_in_front,
    reads_no_negative_numbers,
    skip_detached,
    dropout_added,
    default_epsilon,
]
HIDDEN_FROM_TRAINING = [
    bn_in_train_mode,
    port_in_train_mode,
    wrong_variance,
    other_outputs_in_eval_mode,
    another_shape_in_eval_mode,
]


@pytest.mark.parametrize("answer", HIDDEN_FROM_NOISE)
def test_a_mistake_that_only_the_training_step_sees(answer, capsys):
    right = "✓ My mistake: right; the noise image passes it, and the training step catches it: "
    assert said(check_hides_from_noise, answer, capsys).startswith(right)
    wrong = "✗ My other mistake: wrong; it is the other way round, for the training step catches it: "
    assert said(check_hides_from_training, answer, capsys).startswith(wrong)


@pytest.mark.parametrize("answer", HIDDEN_FROM_TRAINING)
def test_a_mistake_that_only_the_noise_image_sees(answer, capsys):
    right = "✓ My other mistake: right; the training step passes it, and the noise image catches it: the outputs "
    assert said(check_hides_from_training, answer, capsys).startswith(right)
    wrong = "✗ My mistake: wrong; it is the other way round, for the noise image catches it: the outputs "
    assert said(check_hides_from_noise, answer, capsys).startswith(wrong)


def test_an_answer_that_returns_one_port_twice_is_judged_by_two_ports(capsys):
    made = []

    def answer(port):
        made.append(bn_in_train_mode(port))
        return made[0]

    assert "✓ My other mistake: right; " in said(check_hides_from_training, answer, capsys)


@pytest.mark.parametrize(
    ("answer", "noise", "training"),
    [
        (wrong_mean, "the training step catches it, but so does the", "catches it, but so does the training step: bn."),
        (another_name, "the same as before, only names changed: gradient bn.weight", "as before, only names changed"),
        (nothing, "passes it, but the training step passes it, too", "passes it, but the noise image passes it, too"),
        (forgotten, "passes it, but the training step passes it, too", "passes it, but the noise image passes it, too"),
        (lambda port: 3, "it returned 3: return the port", "it returned 3: return the port"),
        (lambda port: port.nope, "your function stops: AttributeError", "your function stops: AttributeError"),
        (lambda port: port.float(), "must still run, and it stops: RuntimeError", "must still run, and it stops: "),
    ],
)
def test_no_such_mistake_is_told_why(answer, noise, training, capsys):
    for check, name, line in (
        (check_hides_from_noise, "My mistake", noise),
        (check_hides_from_training, "My other mistake", training),
    ):
        printed = said(check, answer, capsys)
        assert printed.startswith(f"✗ {name}: wrong; ")
        assert line in printed


def test_an_empty_mistake_is_not_attempted(capsys):
    def my_mistake(port):
        return None

    assert said(check_hides_from_noise, my_mistake, capsys) == "… My mistake: not attempted yet"
    assert said(check_hides_from_training, my_mistake, capsys) == "… My other mistake: not attempted yet"


# --- The page's own checks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    """Return the names that the page's cells define up to its checks."""
    threads = torch.get_num_threads()
    notebook = nbformat.read(NOTEBOOKS / "further" / "11_which_check_catches_which_bug.ipynb", as_version=4)
    sources = {cell.id: cell.source for cell in notebook.cells}
    names = {}
    for number in ("02", "04", "10", "16", "18", "18aa", "18c", "20", "22"):
        exec(sources[f"checks-{number}"], names)
    for name in NETWORKS:
        if name not in names["pairs"]:
            names["pairs"][name] = Pair(load_network(name))
            names["keras_steps"][name] = names["keras_step"](names["pairs"][name])
    yield names
    torch.set_num_threads(threads)


def test_other_sizes_and_a_training_step_catch_all_mutants(page):
    checks = [page["other_sizes"], page["training_step"]]
    for pair in page["pairs"].values():
        assert all(passes(check, pair, pair.right()) for check in checks), pair.name
    through = []
    for mutant in MUTANTS:
        pair = page["pairs"][mutant.network]
        if all(passes(check, pair, mutant.plant(pair.right())) for check in checks):
            through.append(f"{mutant.network}: {mutant.name}")
    assert through == []
    assert len(MUTANTS) == 168


@pytest.mark.parametrize(("in_keras", "in_port"), [(True, True), (True, False), (False, True)])
def test_a_layer_that_is_frozen_must_be_so_in_both(page, in_keras, in_port):
    pair = Pair(load_network("encoder"))
    port = pair.right()
    port.down.requires_grad_(not in_port)
    layer = pair.keras_model().get_layer("down")
    layer.trainable = not in_keras
    kept = page["keras_steps"]["encoder"]
    try:
        page["keras_steps"]["encoder"] = page["keras_step"](pair)
        different = page["different_in_training"](pair, port)
    finally:
        layer.trainable = True
        page["keras_steps"]["encoder"] = kept
    frozen_in_one = ["gradient down.bias", "gradient down.weight"]
    assert sorted(different) == ([] if in_keras == in_port else frozen_in_one)


@pytest.mark.parametrize("answer", [*HIDDEN_FROM_NOISE, *HIDDEN_FROM_TRAINING])
def test_the_page_judges_a_mistake_as_its_exercise_does(page, answer):
    pair = page["pairs"]["encoder"]

    def changed():
        port = pair.right()
        return answer(port) or port

    hidden = answer in HIDDEN_FROM_NOISE
    assert passes(page["noise_image"], pair, changed()) == hidden
    if "forward" not in vars(changed()):  # the page tries a copy, whose forward would be that of the port itself
        assert passes(page["training_step"], pair, changed()) != hidden

"""The exercises of notebook 13: which answers their checks accept, and what they say of the others."""

from course.exercises.e13_optimizers import check_decoupled_decay, check_velocity

import pytest
import torch


def said_of(check, answer, capsys):
    check(answer)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [
        lambda velocity, rate: -velocity / rate,
        lambda velocity, rate: velocity.div_(-rate),  # in place
        lambda velocity, rate: (-velocity / rate).tolist(),
        lambda velocity, rate: -velocity.numpy() / rate,
        lambda velocity, rate: torch.nn.Parameter(-velocity * (1 / rate)),
    ],
)
def test_right_velocities_are_right(answer, capsys):
    assert said_of(check_velocity, answer, capsys) == "✓ Velocity: right; it equals Keras in all 3 cases\n"


def test_a_velocity_in_float32_is_right_and_told_to_be_coarse(capsys):
    said = said_of(check_velocity, lambda velocity, rate: (-velocity / rate).float(), capsys)
    assert said.startswith("✓ Velocity: right; ")
    assert "float32" in said


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (lambda velocity, rate: velocity / rate, "it has the sign of Keras's velocity"),
        (lambda velocity, rate: velocity, "it has the sign of Keras's velocity"),
        (
            lambda velocity, rate: -velocity,
            "right for a rate of 1; wrong for other rates (rate 0.125, momentum 0.875): other "
            "numbers; is the rate still in it?",
        ),
        (
            lambda velocity, rate: -velocity * rate,
            "right for a rate of 1; wrong for other rates (rate 0.125, momentum 0.875): other "
            "numbers; is the rate still in it?",
        ),
        (lambda velocity, rate: torch.zeros_like(velocity), "wrong for a rate of 1"),  # it begins anew
        # The rate is out of it, but too often: the line does not ask for it.
        (
            lambda velocity, rate: -velocity / rate**2,
            "right for a rate of 1; wrong for other rates (rate 0.125, momentum 0.875): other numbers, by",
        ),
        (lambda velocity, rate: -velocity.mean() / rate, "its shape is (), that of the velocity (2, 3)"),
        (lambda velocity, rate: "text", "it returns a str, not a tensor"),
        (lambda velocity, rate: velocity / nothing, "NameError"),  # noqa: F821
    ],
)
def test_wrong_velocities_are_wrong(answer, line, capsys):
    said = said_of(check_velocity, answer, capsys)
    assert said.startswith("✗ Velocity: ")
    assert line in said
    assert "float32" not in said


def test_no_velocity_is_not_attempted_and_a_forgotten_return_is_told(capsys):
    def forgetful(velocity, rate):
        -velocity / rate

    assert said_of(check_velocity, lambda velocity, rate: None, capsys) == "… Velocity: not attempted yet\n"
    assert "is a `return` missing?" in said_of(check_velocity, forgetful, capsys)


def with_hook(shrink, when="pre"):
    """Return an answer: plain SGD with a hook, made by `shrink` from the parameters and the settings."""

    def answer(parameters, rate, momentum, decay):
        optimizer = torch.optim.SGD(parameters, rate, momentum=momentum)
        getattr(optimizer, f"register_step_{when}_hook")(shrink(parameters, rate, decay))
        return optimizer

    return answer


def by_group(parameters, rate, decay):
    def hook(optimizer, args, kwargs):
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter *= 1 - group["lr"] * decay

    return hook


def by_data(parameters, rate, decay):
    def hook(optimizer, args, kwargs):
        for parameter in parameters:
            parameter.data -= rate * decay * parameter.data

    return hook


def returns_a_list(parameters, rate, decay):
    return lambda optimizer, args, kwargs: [parameter.data.mul_(1 - rate * decay) for parameter in parameters]


def without_rate(parameters, rate, decay):
    def hook(optimizer, args, kwargs):
        for parameter in parameters:
            parameter.data.mul_(1 - decay)

    return hook


def first_only(parameters, rate, decay):
    def hook(optimizer, args, kwargs):
        parameters[0].data.mul_(1 - rate * decay)

    return hook


def of_a_class(parameters, rate, momentum, decay):
    class Decoupled(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.mul_(1 - group["lr"] * decay)
            return super().step(closure)

    return Decoupled(parameters, rate, momentum=momentum)


@pytest.mark.parametrize("answer", [with_hook(by_group), of_a_class])
def test_right_decays_are_right(answer, capsys):
    said = said_of(check_decoupled_decay, answer, capsys)
    assert said == "✓ Decoupled decay: right; it equals Keras in all 5 cases\n"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        # The rate of the first step, although a schedule changes it.
        (with_hook(by_data), "right for no momentum, momentum, no decay; wrong for a rate that changes"),
        (
            lambda p, rate, momentum, decay: torch.optim.SGD(p, rate, momentum=momentum, weight_decay=decay),
            "right for no momentum; wrong for momentum",
        ),
        (lambda p, rate, momentum, decay: torch.optim.SGD(p, rate, weight_decay=decay), "right for no momentum; wrong"),
        (
            lambda p, rate, momentum, decay: torch.optim.SGD(p, rate, momentum=momentum),
            "the decay has no effect: it trains as without",
        ),
        (lambda p, rate, momentum, decay: torch.optim.AdamW(p, rate, weight_decay=decay), "wrong for no momentum"),
        (with_hook(by_group, "post"), "wrong for no momentum"),
        (with_hook(without_rate), "wrong for no momentum"),
        (with_hook(first_only), "wrong for no momentum"),
        (with_hook(returns_a_list), "a hook returns something; PyTorch wants it to return nothing"),
        (lambda p, rate, momentum, decay: torch.optim.SGD, "wrong for no momentum"),  # the class itself
        (lambda p, rate, momentum, decay: 3, "it returns a int, not an optimizer"),
    ],
)
def test_wrong_decays_are_wrong(answer, line, capsys):
    said = said_of(check_decoupled_decay, answer, capsys)
    assert said.startswith("✗ Decoupled decay: ")
    assert line in said


def test_no_decay_is_not_attempted_and_a_forgotten_return_is_told(capsys):
    def forgetful(parameters, rate, momentum, decay):
        torch.optim.SGD(parameters, rate)

    stub = said_of(check_decoupled_decay, lambda parameters, rate, momentum, decay: None, capsys)
    assert stub == "… Decoupled decay: not attempted yet\n"
    assert "is a `return` missing?" in said_of(check_decoupled_decay, forgetful, capsys)

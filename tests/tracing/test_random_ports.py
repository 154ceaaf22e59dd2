"""The bar for the trace: no alarm on right ports that are drawn at random, and one on wrong ones of the same kind."""

import copy

from course.mutants import Probe, run_keras, run_twin
from parity import first_divergence, trace
from parity.axes import torch_input
from tests.helpers.random_ports import PORTS, right_ports

import torch
from hypothesis import HealthCheck, assume, given, settings


@settings(max_examples=PORTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(right_ports(folding=True))
def test_no_alarm_on_random_right_ports(port):
    for expected, y in zip(run_keras(Probe(port.keras_model, port.x)), run_twin(port.twin, port.x), strict=True):
        assert expected.shape == y.shape
        assert abs(expected - y).max() < port.within * max(1, abs(expected).max())
    traced = trace(port.keras_model, port.twin, port.x, port.mapping)
    assert first_divergence(traced) is None, traced.to_string()


@settings(max_examples=PORTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(right_ports())
def test_no_alarm_on_random_right_ports_in_training(port):
    assume(_trains(port))
    traced = trace(port.keras_model, port.twin, port.x, port.mapping, training=True)
    assert first_divergence(traced) is None, traced.to_string()


@settings(max_examples=PORTS // 10, deadline=None, suppress_health_check=list(HealthCheck))
@given(right_ports(folding=True))
def test_a_random_port_with_one_wrong_number_is_an_alarm(port):
    """A trace that finds nothing in right ports must find something in wrong ones of the same kind."""
    twin = copy.deepcopy(port.twin)
    parameters = [parameter for parameter in twin.parameters() if parameter.numel()]
    assume(parameters)
    with torch.no_grad():
        parameters[-1].add_(0.5)
    assume(_differ(port, twin))
    assert first_divergence(trace(port.keras_model, twin, port.x, port.mapping)) is not None


def _trains(port):
    """Tell whether a twin can train: PyTorch takes no statistics where a channel has one number only."""
    try:
        copy.deepcopy(port.twin).train()(*map(torch_input, port.x))
    except ValueError:
        return False
    return True


def _differ(port, twin):
    """Tell whether the outputs of a twin are plainly other than those of the right one."""
    pairs = zip(run_twin(port.twin, port.x), run_twin(twin, port.x), strict=True)
    return any((abs(a - b) > 1e-3 * (1 + abs(a))).any() for a, b in pairs)

"""No alarm on right ports of models of sequences that are drawn at random, and one on wrong ones of the same kind."""

import copy

from parity import first_divergence, trace
from tests.helpers.random_sequences import PORTS, right_sequences
from tests.networks.test_right_twins import outputs

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

# Keras warns of an attention to a single step, which is drawn now and then.
pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning")


@settings(max_examples=PORTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(right_sequences())
def test_no_alarm_on_random_right_ports(port):
    expected, found = outputs(port.keras_model, port.x), outputs(port.twin, port.torch_x)
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() < port.within * max(1, np.abs(a).max())
    traced = trace(port.keras_model, port.twin, port.x, port.mapping, torch_x=port.torch_x)
    assert first_divergence(traced) is None, traced.to_string()


@settings(max_examples=PORTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(right_sequences())
def test_no_alarm_on_random_right_ports_in_training(port):
    traced = trace(port.keras_model, port.twin, port.x, port.mapping, torch_x=port.torch_x, training=True)
    assert first_divergence(traced) is None, traced.to_string()


@settings(max_examples=PORTS // 10, deadline=None, suppress_health_check=list(HealthCheck))
@given(right_sequences())
def test_a_random_port_with_one_wrong_number_is_an_alarm(port):
    """A trace that finds nothing in right ports must find something in wrong ones of the same kind."""
    twin = copy.deepcopy(port.twin)
    parameters = [parameter for parameter in twin.parameters() if parameter.numel()]
    with torch.no_grad():
        parameters[-1].add_(0.5)
    pairs = zip(outputs(port.twin, port.torch_x), outputs(twin, port.torch_x), strict=True)
    assume(any((np.abs(a - b) > 1e-3 * (1 + np.abs(a))).any() for a, b in pairs))
    traced = trace(port.keras_model, twin, port.x, port.mapping, torch_x=port.torch_x)
    assert first_divergence(traced) is not None

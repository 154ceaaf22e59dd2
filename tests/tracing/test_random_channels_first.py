"""No alarm on right ports that are drawn at random, if their Keras models are turned to have the channels first."""

from parity import first_divergence, trace
from tests.helpers.random_ports import PORTS, right_ports
from tests.helpers.turned import can_be_turned, turned, turned_input

from hypothesis import HealthCheck, assume, given, settings


@settings(max_examples=PORTS // 4, deadline=None, suppress_health_check=list(HealthCheck))
@given(right_ports())
def test_no_alarm_on_random_right_ports_with_the_channels_first(port):
    assume(can_be_turned(port.keras_model))
    model, x = turned(port.keras_model), [turned_input(array) for array in port.x]
    traced = trace(model, port.twin, x, port.mapping)
    assert first_divergence(traced) is None, traced.to_string()

"""Of a recurrent layer or an attention that returns something strange, no cause is named; nothing is changed."""

from course.mutants import attention, recurrent
from course.mutants.tools import another_forward
from parity import diagnose
from tests.helpers.models import snapshot

import pytest
import torch

LAYERS = [(recurrent, name) for name in ("old", "both", "back", "simple", "ends", "last")]
LAYERS += [(attention, name) for name in ("norm", "joint", "apart", "rms", "groups", "cross", "additive")]


def strange(output):
    """Return what no known mistake makes of an output."""
    if isinstance(output, tuple):
        return tuple(strange(one) for one in output)
    return output if output is None else output.sin() * 3 + output.square() + torch.linspace(0, 1, output.shape[-1])


@pytest.mark.parametrize(("network", "layer"), LAYERS, ids=[name for _, name in LAYERS])
def test_what_is_strange_has_no_cause(network, layer):
    made = network.network()
    twin, probe = made.build(), made.probes[0]
    module = twin.get_submodule(layer)
    original = type(module).forward
    another_forward(module, lambda self, *x, **more: strange(original(self, *x, **more)))
    before = snapshot(twin), snapshot(probe.keras_model)
    found = diagnose(probe.keras_model, twin, probe.x, made.mapping)
    assert found.divergence.layer == layer
    assert found.causes == []
    assert (snapshot(twin), snapshot(probe.keras_model)) == before


@pytest.mark.parametrize("network", [recurrent, attention])
def test_the_right_port_is_quiet(network):
    made = network.network()
    for probe in made.probes:
        assert diagnose(probe.keras_model, made.build(), probe.x, made.mapping).divergence is None

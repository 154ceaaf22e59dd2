"""A kernel that is forked with the frameworks loaded runs as one that starts from nothing, and ends as one does."""

import json
import signal

from course.pages.warm_kernels import AVAILABLE, ForkedKernel, WarmProvisioner, use_warm_kernels

import pytest
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="kernels cannot be forked here")

PROGRAM = """
import sys, json, os
loaded = "torch" in sys.modules and "keras" in sys.modules
import pandas as pd, matplotlib, keras
print(json.dumps({
    "loaded": loaded,
    "cwd": os.getcwd(),
    "mark": os.environ.get("A_MARK"),
    "backend": keras.backend.backend(),
    "columns": pd.get_option("display.max_columns"),
    "figures": matplotlib.rcParams["backend"],
    "names": sorted(name for name in dir() if not name.startswith("_") and name not in ("In", "Out")),
}))
"""


@pytest.fixture
def factory():
    """Let kernels be forked, and leave the factory as it was."""
    factory = KernelProvisionerFactory.instance()
    before = factory.default_provisioner_name
    use_warm_kernels()
    yield factory
    factory.default_provisioner_name = before


def printed(folder, monkeypatch, provisioner=None):
    """Return what the program prints in a new kernel, and how the kernel was started."""
    monkeypatch.setenv("A_MARK", "given")
    manager = KernelManager()
    if provisioner is not None:
        KernelProvisionerFactory.instance().default_provisioner_name = provisioner
    manager.start_kernel(cwd=str(folder))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    said = []
    client.execute_interactive(
        PROGRAM, timeout=120, output_hook=lambda message: said.append(message["content"].get("text", ""))
    )
    client.stop_channels()
    kind = type(manager.provisioner)
    manager.shutdown_kernel()
    assert not manager.is_alive()
    return json.loads("".join(said)), kind


def test_a_forked_kernel_is_as_one_that_starts_from_nothing(factory, tmp_path, monkeypatch):
    forked, kind = printed(tmp_path, monkeypatch)
    assert kind is WarmProvisioner
    cold, kind = printed(tmp_path, monkeypatch, "local-provisioner")
    assert kind is not WarmProvisioner
    assert (forked.pop("loaded"), cold.pop("loaded")) == (True, False)
    assert forked == cold
    assert forked["mark"] == "given"


def test_a_forked_kernel_takes_signals_and_ends(tmp_path):
    kernel = ForkedKernel(["-f", str(tmp_path / "kernel.json")], str(tmp_path), {})
    assert kernel.poll() is None
    kernel.send_signal(signal.SIGKILL)
    assert kernel.wait(30) == kernel.returncode == -signal.SIGKILL
    kernel.send_signal(signal.SIGKILL)  # it has ended: nothing is killed in its place
    again = ForkedKernel(["-f", str(tmp_path / "kernel.json")], str(tmp_path), {})
    again.terminate()
    assert again.wait(30) is not None

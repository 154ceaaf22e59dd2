"""Kernels that start with both frameworks loaded: loading them is a third of the time that the notebooks take as tests.

A server process loads the frameworks once, and each kernel is forked from it (``multiprocessing``'s "forkserver"). A
kernel begins with the modules of ``PRELOADED`` imported: nothing else has been called, no thread has been started.
What the imports of a page do by themselves is not seen this way, so the option ``--cold-kernels`` starts kernels as
JupyterLab does. ``make record`` always does.
"""

import multiprocessing
import os
import sys
from importlib.metadata import EntryPoint
from typing import Any

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

# The first settles the Keras backend.
PRELOADED = ("course", "keras", "torch", "parity", "course.figures", "ipykernel.kernelapp")

AVAILABLE = sys.platform == "linux"
"""Whether kernels can be forked: Windows cannot, and on macOS system libraries do not survive it."""


def use_warm_kernels() -> None:
    """Let every kernel that this process starts be forked from a server with the frameworks loaded."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOADED))
    factory = KernelProvisionerFactory.instance()
    name, here = "warm", f"{__name__}:{WarmProvisioner.__name__}"
    factory.provisioners[name] = EntryPoint(name, here, KernelProvisionerFactory.GROUP_NAME)
    factory.default_provisioner_name = name


class WarmProvisioner(LocalProvisioner):
    """Starts a kernel as a fork of the server; in all else it is jupyter_client's own."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Start a kernel; see ``jupyter_client.provisioning.KernelProvisionerBase``."""
        # The command is: python -m ipykernel_launcher -f FILE.
        arguments = cmd[cmd.index("-f") :]
        self.process = ForkedKernel(arguments, kwargs.get("cwd") or os.getcwd(), dict(kwargs["env"]))
        self.pid = self.process.pid
        return self.connection_info


class ForkedKernel:
    """A kernel's process, with what ``LocalProvisioner`` asks of a ``subprocess.Popen``.

    Args:
        arguments: The arguments of ipykernel.
        cwd: The folder that the kernel runs in.
        environment: Its environment variables.
    """

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=_run, args=(arguments, cwd, environment), daemon=True)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        """Return the exit status; None while the kernel runs."""
        return self.poll()

    def poll(self) -> int | None:
        """Return the exit status; None while the kernel runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the kernel to end; return its exit status."""
        self.process.join(timeout)
        return self.poll()

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless the kernel has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Ask the kernel to end."""
        self.process.terminate()

    def kill(self) -> None:
        """End the kernel."""
        self.process.kill()


def _run(arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Become a kernel."""
    os.chdir(cwd)
    os.environ.clear()
    # A kernel ends with its parent, which is the server here.
    os.environ.update(environment | {"JPY_PARENT_PID": str(os.getppid())})
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    import matplotlib
    import pandas as pd
    from ipykernel.kernelapp import launch_new_instance

    # Keras loads these, and when they are loaded they ask whether they are in a kernel. In the server they were not.
    pd.set_option("display.max_columns", 20)
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    launch_new_instance(arguments)

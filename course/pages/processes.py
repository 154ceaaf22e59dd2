"""How the processes of a test run, the notebooks' kernels among them, share a machine. It changes no result."""

import gc
import os
from pathlib import Path
from tempfile import TemporaryDirectory

# Both frameworks make half a million objects that stay. Searching them for garbage is a sixth of the time they take to
# load.
_OBJECTS = 100_000


def settle() -> None:
    """Settle threads and compiling, here and in the processes that this one starts, and the search for garbage here."""
    # Tests run in two processes. With as many threads each as the machine has cores, they would mostly wait for each
    # other.
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(name, "1")
    # Keras on TensorFlow compiles a convolution with groups at each call: most of that time is spent on making it
    # faster.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    gc.set_threshold(_OBJECTS)


def kernel_profile() -> TemporaryDirectory:
    """Let kernels that are started from now on search for garbage less often, too; return the folder that says so.

    Kernels are told by a profile of IPython. As it is the tests' own, nobody's start-up files run in a test, either.
    """
    folder = TemporaryDirectory(prefix="ipython")
    profile = Path(folder.name) / "profile_default"
    profile.mkdir()
    (profile / "ipython_kernel_config.py").write_text(f"import gc\n\ngc.set_threshold({_OBJECTS})\n")
    os.environ["IPYTHONDIR"] = folder.name
    return folder

"""What nbval leaves undone: unrun cells fail, final checks must be able to fail, times are listed by notebook."""

import gc
import os
from collections import Counter
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from parity.official import at_hand

import pytest
from _pytest.terminal import TerminalReporter
from nbval.plugin import IPyNbCell

# Tests run in two processes. With as many threads each as the machine has cores, they would mostly wait for each other.
for _name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    os.environ.setdefault(_name, "1")

# Keras on TensorFlow compiles a convolution with groups at each call: most of that time is spent on making it faster.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Both frameworks make half a million objects that stay. Searching them for garbage is a sixth of the time they take to
# load. Kernels are told by a profile of the tests' own; so nobody's start-up files run in a test, either.
_OBJECTS = 100_000
_IPYTHON = TemporaryDirectory(prefix="ipython")

# The notebook that needs a file from outside the project.
OFFICIAL = "09_official_weights.ipynb"


def pytest_configure() -> None:
    """Tell the garbage collector, here and in the notebooks' kernels, to search less often."""
    gc.set_threshold(_OBJECTS)
    profile = Path(_IPYTHON.name) / "profile_default"
    profile.mkdir(exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text(f"import gc\n\ngc.set_threshold({_OBJECTS})\n")
    os.environ["IPYTHONDIR"] = _IPYTHON.name


def pytest_unconfigure() -> None:
    """Remove the kernels' profile."""
    _IPYTHON.cleanup()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the notebook on the official weights where these are not at hand: a test fetches nothing."""
    return True if collection_path.name == OFFICIAL and not at_hand() else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a notebook's code cell that has no execution count: its missing output would be compared with nothing."""
    if isinstance(item, IPyNbCell) and item.cell.execution_count is None and item.cell.source.strip():
        pytest.fail(f"{item.nodeid}: this cell was saved without having been run; see CONTRIBUTING.md", pytrace=False)


# Runs in a notebook's kernel, and leaves its names and random numbers as they were.
_PLANT = """
def _plant_naive(check):
    import random, sys, traceback
    from functools import partial
    names = get_ipython().user_ns
    before = dict(names)
    draws = [(random.setstate, random.getstate())]
    if torch := sys.modules.get("torch"):
        draws.append((torch.set_rng_state, torch.get_rng_state()))
    if numpy := sys.modules.get("numpy"):
        draws.append((numpy.random.set_state, numpy.random.get_state()))
        for value in before.values():
            if isinstance(value, numpy.random.Generator):
                draws.append((partial(setattr, value.bit_generator, "state"), value.bit_generator.state))
    names["fixed"] = names["naive"]
    try:
        exec(compile(check, "final check", "exec"), names)
    except AssertionError as error:
        if traceback.extract_tb(error.__traceback__)[-1].filename != "final check":
            raise
    else:
        raise AssertionError("the final check passes the naive port")
    finally:
        for name in names.keys() - before.keys():
            del names[name]
        names.update(before)
        for restore, state in draws:
            restore(state)
_plant_naive({check!r})
del _plant_naive
"""


class NaiveCheck(pytest.Item):
    """The final check of a notebook, with the naive port in place of the mended one: an assertion of its own must fail.

    It runs in the notebook's kernel right after the check itself.
    """

    def __init__(self, *, check: str, **more: Any) -> None:
        super().__init__(**more)
        self.check = check

    def runtest(self) -> None:
        """Plant the naive port."""
        reply = self.parent.kernel.kc.execute_interactive(
            _PLANT.format(check=self.check),
            silent=True,
            allow_stdin=False,
            stop_on_error=False,
            timeout=self.config.option.nbval_cell_timeout,
            output_hook=lambda message: None,
        )
        if reply["content"]["status"] != "ok":
            pytest.fail("\n".join(reply["content"].get("traceback", ["the kernel gave up"])), pytrace=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a ``NaiveCheck`` follow each final check."""
    for at, item in reversed(list(enumerate(items))):
        if isinstance(item, IPyNbCell) and "final-check" in item.cell.metadata.get("tags", ()):
            name = f"{item.name}, with the naive port"
            items.insert(at + 1, NaiveCheck.from_parent(item.parent, name=name, check=item.cell.source))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print how long each notebook took, its kernel's start included, the slowest first."""
    seconds: Counter[str] = Counter()
    said: list[tuple[str, str]] = []
    for report in chain.from_iterable(terminalreporter.stats.values()):
        name = Path(getattr(report, "fspath", ""))
        if name.suffix == ".ipynb" and hasattr(report, "duration"):
            seconds[name.as_posix()] += report.duration
        if getattr(report, "when", "") == "call":
            said += report.user_properties
    if seconds:
        terminalreporter.section("notebooks")
        if not at_hand():
            terminalreporter.write_line(
                f"NOT RUN: {OFFICIAL}; the official weights are not at hand. `python convert.py --weights official` "
                "fetches them, or let DRONET_H5 name your copy."
            )
    for name, duration in seconds.most_common():
        terminalreporter.write_line(f"{duration:5.1f}s {name}")
    # What a test has to say, such as the table of the mutants; what it prints is lost in its process.
    for name, text in said:
        terminalreporter.section(name)
        terminalreporter.write_line(text)

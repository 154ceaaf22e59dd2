"""What nbval leaves undone: unrun cells fail, final checks must be able to fail, times are listed by notebook.

pyproject.toml has pytest load it, for the tests and for the notebooks.
"""

from collections import Counter
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from course.official_weights import at_hand
from course.pages.anatomy import OFFICIAL
from course.pages.processes import kernel_profile, settle
from course.pages.warm_kernels import AVAILABLE, use_warm_kernels

import pytest
from _pytest.terminal import TerminalReporter
from nbval.plugin import IPyNbCell

# What a kernel is sent. It names nothing in the kernel: a page may have a ``plant`` of its own.
PLANT = "__import__('course.pages.naive_check', fromlist=['plant']).plant({check!r}, get_ipython().user_ns)"

_PROFILE = pytest.StashKey[TemporaryDirectory]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options ``--cold-kernels`` and ``--slow``."""
    parser.addoption(
        "--cold-kernels", action="store_true", help="start each notebook's kernel from nothing, as JupyterLab does"
    )
    parser.addoption("--slow", action="store_true", help="run the tests that are marked as slow, too")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Settle how this process and the notebooks' kernels share the machine, before a conftest.py loads a framework."""
    settle()


def pytest_configure(config: pytest.Config) -> None:
    """Let the notebooks' kernels start fast, and search for garbage less often."""
    if AVAILABLE and not config.option.cold_kernels:
        use_warm_kernels()
    config.stash[_PROFILE] = kernel_profile()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the kernels' profile."""
    config.stash[_PROFILE].cleanup()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the notebook on the official weights where these are not at hand: a test fetches nothing."""
    return True if collection_path.name == OFFICIAL and not at_hand() else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a notebook's code cell that has no execution count: its missing output would be compared with nothing."""
    if isinstance(item, IPyNbCell) and item.cell.execution_count is None and item.cell.source.strip():
        pytest.fail(f"{item.nodeid}: this cell was saved without having been run; see CONTRIBUTING.md", pytrace=False)


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
            PLANT.format(check=self.check),
            silent=True,
            allow_stdin=False,
            stop_on_error=False,
            timeout=self.config.option.nbval_cell_timeout,
            output_hook=lambda message: None,
        )
        if reply["content"]["status"] != "ok":
            pytest.fail("\n".join(reply["content"].get("traceback", ["the kernel gave up"])), pytrace=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let a ``NaiveCheck`` follow each final check, and skip what is slow unless it is asked for."""
    if not config.option.slow:
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow, as each week"))
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

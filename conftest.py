"""What nbval leaves undone: unrun cells fail, and the summary says how long each notebook took."""

import os
from collections import Counter
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter
from nbval.plugin import IPyNbCell

# Tests run in two processes. With as many threads each as the machine has cores, they would mostly wait for each other.
for _name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    os.environ.setdefault(_name, "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a notebook's code cell that has no execution count: its missing output would be compared with nothing."""
    if isinstance(item, IPyNbCell) and item.cell.execution_count is None and item.cell.source.strip():
        pytest.fail(f"{item.nodeid}: this cell was saved without having been run; see CONTRIBUTING.md", pytrace=False)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print how long each notebook took, its kernel's start included, the slowest first."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            name = Path(getattr(report, "fspath", ""))
            if name.suffix == ".ipynb" and hasattr(report, "duration"):
                seconds[name.as_posix()] += report.duration
    if seconds:
        terminalreporter.section("notebooks")
    for name, duration in seconds.most_common():
        terminalreporter.write_line(f"{duration:5.1f}s {name}")

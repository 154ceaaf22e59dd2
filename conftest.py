"""What nbval leaves undone: unrun cells fail, the summary says how long each notebook took and which was left out."""

import os
from collections import Counter
from pathlib import Path

from parity.official import at_hand

import pytest
from _pytest.terminal import TerminalReporter
from nbval.plugin import IPyNbCell

# Tests run in two processes. With as many threads each as the machine has cores, they would mostly wait for each other.
for _name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    os.environ.setdefault(_name, "1")

# The notebook that needs a file from outside the project.
OFFICIAL = "09_official_weights.ipynb"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the notebook on the official weights where these are not at hand: a test fetches nothing."""
    return True if collection_path.name == OFFICIAL and not at_hand() else None


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
        if not at_hand():
            terminalreporter.write_line(
                f"NOT RUN: {OFFICIAL}; the official weights are not at hand. `python convert.py --weights official` "
                "fetches them, or let DRONET_H5 name your copy."
            )
    for name, duration in seconds.most_common():
        terminalreporter.write_line(f"{duration:5.1f}s {name}")
    # What a test has to say, such as the table of the mutants; what it prints is lost in its process.
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, text in getattr(report, "user_properties", []) if getattr(report, "when", "") == "call" else []:
                terminalreporter.section(name)
                terminalreporter.write_line(text)

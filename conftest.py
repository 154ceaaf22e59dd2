"""What nbval leaves undone: it passes a notebook whose cells were saved without having been run."""

import pytest
from nbval.plugin import IPyNbCell


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a notebook's code cell that has no execution count, since its missing output was never compared."""
    if isinstance(item, IPyNbCell) and item.cell.execution_count is None and item.cell.source.strip():
        pytest.fail(f"{item.nodeid}: this cell was saved without having been run; see CONTRIBUTING.md", pytrace=False)

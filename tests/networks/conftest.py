"""The tests come network by network: building and porting one takes longer than most tests."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of this folder in the order of their networks."""
    here = [number for number, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ordered = sorted((items[number] for number in here), key=_place)
    for number, item in zip(here, ordered, strict=True):
        items[number] = item


def _place(item: pytest.Item) -> tuple[str, str]:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return item.path.name, params.get("name", "") if item.path.name == "test_networks.py" else ""

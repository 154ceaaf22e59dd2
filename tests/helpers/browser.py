"""What the tests in a real browser share: when they are skipped, a browser, and a tab that notes what goes wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from course.handout import find_browser

import pytest


def skipped_without(*packages: str) -> list[pytest.MarkDecorator]:
    """Return the marks of tests that need these packages and a Chromium."""
    missing = [name for name in packages if find_spec(name) is None]
    return [
        pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: make site does it"),
        pytest.mark.skipif(find_browser() is None, reason="no Chromium here: on Debian, apt-get install chromium"),
    ]


@contextmanager
def started() -> Iterator[Any]:
    """Start the browser of this machine, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened_tab(browser: Any, width: int, height: int) -> Iterator[Any]:
    """Open a tab of a size; what it asks from outside, and its errors, are in its ``faults``."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.faults = []
    page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or page.faults.append(request.url))
    yield page
    context.close()

"""What the tests of the course are given."""

import pytest


@pytest.fixture(autouse=True)
def messages_in_one_line(monkeypatch):
    """Let the checks of exercises print each message in one line, so that a test can name it whole.

    ``test_a_long_message_is_wrapped`` is about the lines.
    """
    # Loaded here: the process that hands out the tests reads this file, too, and has no use for the frameworks.
    from course.exercises import report

    monkeypatch.setattr(report, "WIDTH", 10_000)

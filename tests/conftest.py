"""What tests in several folders are given."""

import pytest


@pytest.fixture(scope="session")
def model():
    """Return the network with a skip; a test leaves it as it was."""
    # Loaded here: the process that hands out the tests reads this file, too, and has no use for the frameworks.
    from tests.helpers.residual import residual_model

    return residual_model()

"""What tests in several folders are given."""

from tests.helpers.residual import residual_model

import pytest


@pytest.fixture(scope="session")
def model():
    """Return the network with a skip; a test leaves it as it was."""
    return residual_model()

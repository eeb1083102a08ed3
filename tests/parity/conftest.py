"""The parity pack that the options name (`tests/conftest.py`)."""

import pytest

from tests.models.conftest import one_thread
from tests.parity.pack import Pack

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def pack(pytestconfig: pytest.Config) -> Pack:
    return Pack.given(pytestconfig)

"""The parity pack that the options name (`tests/conftest.py`)."""

import pytest

from tests.parity.pack import Pack


@pytest.fixture(scope="session")
def pack(pytestconfig: pytest.Config) -> Pack:
    return Pack(pytestconfig)

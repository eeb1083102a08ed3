"""Service that most tests share: with four keys, small limits, and samplers that take few steps."""

from collections.abc import Iterator

import pytest

from .running import Running, serving


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = {
        "body_megabytes": 2,
        "in_flight": 12,
        "open_jobs_per_key": 6,
        "seconds": 8,
        "input_seconds": 10,
        "images": 2,
    }
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, keys=("alice", "bob", "carol", "dave"), limits=limits, lease_seconds=3) as running:
        yield running

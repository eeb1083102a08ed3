"""`ray_session`, in processes of their own: this one must not be connected to Ray."""

import os
import subprocess
import sys

import pytest

SESSIONS = """
import ray
from pipelines.session import ray_session

seen = []
with ray_session(seen.append):
    assert ray.is_initialized() and [progress.stage for progress in seen] == ["ray"]
    with ray_session(seen.append):
        assert ray.get(ray.put(1)) == 1 and len(seen) == 1
    assert ray.is_initialized()
assert not ray.is_initialized()
"""

UNREACHABLE = """
from pipelines.session import RayUnavailable, ray_session

try:
    with ray_session():
        raise AssertionError("there is no such cluster")
except RayUnavailable as error:
    assert "RAY_ADDRESS=127.0.0.1:1" in str(error)
"""


@pytest.mark.parametrize(("code", "address"), [(SESSIONS, None), (UNREACHABLE, "127.0.0.1:1")])
def test_a_session_starts_ray_or_names_the_address_and_prints_nothing(code: str, address: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": address} if address else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""The end of a service that listens on an IPv6 address."""

import signal
import socket
import sqlite3
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from .running import serving


def test_a_service_that_ends_says_so_and_leaves_no_job_behind(tmp_path: Path) -> None:
    """Two jobs are in progress; clients poll until nobody listens any more."""
    with serving(tmp_path, host="::1") as service:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", urlsplit(service.url).port or 0), timeout=5)
        jobs = [service.post("/v1/videos", json={"prompt": "x", "seconds": 20}).json()["id"] for _ in range(2)]
        deadline = time.monotonic() + 30
        while service.metric("videolavit_jobs", status="in_progress") < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        service.process.send_signal(signal.SIGTERM)
        ready, states = set(), set()
        while service.process.poll() is None:
            try:
                ready.add(service.get("/readyz").status_code)
                states |= {service.get(f"/v1/videos/{job}").status_code for job in jobs}
            except requests.ConnectionError:
                time.sleep(0.1)
        assert 503 in ready
        assert 200 in states
        assert states <= {200, 503}
        assert service.process.returncode == 0
        with sqlite3.connect(service.storage / "jobs.sqlite") as database:
            left = database.execute("SELECT status, attempts, lease FROM video_jobs").fetchall()
        assert left == [("queued", 0, None)] * 2

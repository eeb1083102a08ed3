"""Inputs on the Hugging Face hub, through its library, from a server that answers as the hub does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.conftest import run_silently

DATA = bytes(range(256)) * 100
CALLS = """
import os, sys
from tests.records.listed import STORAGE, list_videos
from videolavit.records.files import InputError
from videolavit.records.storage import StorageError, open_source

def refused(url):
    try:
        list_videos(url)
    except (InputError, StorageError) as error:
        return str(error)

for repository in ("datasets/nobody/some", "buckets/nobody/some"):
    videos = [f"hf://{repository}/videos/{name}" for name in ("a.mp4", "b.mkv")]
    assert list_videos(f"hf://{repository}/videos")["url"].to_pylist() == videos
    assert list_videos(f"HF://{repository}/videos/b.mkv")["url"].to_pylist() == videos[1:]
    with open_source(videos[0], STORAGE) as file:
        file.seek(-250, 2)
        assert file.read() == bytes(range(6, 256))
assert refused("hf://datasets/nobody/none/x") == "no such file, folder or key: hf://datasets/nobody/none/x"
assert refused("hf://datasets/nobody").startswith("cannot use hf://datasets/nobody: Invalid HF URI")
"""
OFFLINE = """
import sys
from tests.records.listed import list_videos
from videolavit.records.storage import StorageError
for repository in ("datasets/nobody/some", "buckets/nobody/some"):
    try:
        list_videos(f"hf://{repository}/videos")
    except StorageError as error:
        assert str(error).startswith(f"cannot use hf://{repository}/videos: Cannot connect to host 127.0.0.1:1"), error
    else:
        raise AssertionError("it was listed")
"""


@pytest.fixture
def hub() -> Iterator[str]:
    """Address of a hub that has the dataset and the bucket `nobody/some`."""
    names = ("videos/a.mp4", "videos/b.mkv")
    entries = [
        {"type": "file", "oid": "1" * 40, "xetHash": "1" * 64, "size": len(DATA), "path": name} for name in names
    ]
    tree = [*entries, {"type": "directory", "oid": "1" * 40, "size": 0, "path": "videos"}]
    answers = {
        "/": {},
        "/api/datasets/nobody/some": {"id": "nobody/some", "sha": "0" * 40, "siblings": []},
        "/api/datasets/nobody/some/tree/main": tree,
        "/api/buckets/nobody/some": {
            **{"id": "nobody/some", "private": False, "size": 1, "totalFiles": 2},
            "createdAt": "2026-01-01T00:00:00.000Z",
        },
        "/api/buckets/nobody/some/tree": tree,
    }

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if "/resolve/" in path and self.headers["Range"]:
                start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
                self._send(206, DATA[start : end + 1])
            else:
                self._send(200 if path in answers else 404, json.dumps(answers.get(path, {})).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_datasets_and_buckets(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    run_silently(CALLS)


def test_without_network_the_address_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    run_silently(OFFLINE)

"""A web server for the tests: files with and without range requests, index pages, and servers that go wrong."""

import re
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *arguments: Any) -> None:
        """Says nothing of clients that have seen enough."""


class WebServer:
    """A server of a folder, on a port of this machine.

    Args:
        folder: Folder of the files; its index pages are those of Python's server.
        ranges: True to answer range requests.

    Attributes:
        requests: Method, path and range of each request.
        faults: Answer to a path in place of its file: a status, `cut` for half of the bytes that were announced,
            `silent` for none at all, `more` for ranges that are longer than asked for, or an address to redirect to.
        login: Name and password that every request must have, as `NAME:PASSWORD`; empty for none.
    """

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self.requests: list[tuple[str, str, str | None]] = []
        self.faults: dict[str, int | str] = {}
        self.login = ""
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> Any:
        served = self

        class Handler(SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(served.folder))

            def log_message(self, *arguments: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                served.requests.append(("HEAD", self.path, None))
                self.send_error(HTTPStatus.FORBIDDEN)  # an address that is signed for GET allows no HEAD

            def do_GET(self) -> None:
                wanted = self.headers["Range"]
                served.requests.append(("GET", self.path, wanted))
                fault = served.faults.get(self.path.partition("?")[0])
                file = Path(self.translate_path(self.path))
                login = b64encode(served.login.encode()).decode()
                if served.login and self.headers["Authorization"] != f"Basic {login}":
                    self.send_error(401)
                elif isinstance(fault, int):
                    self.send_error(fault)
                elif fault == "silent":
                    time.sleep(5)
                    self.close_connection = True
                elif fault == "cut":
                    data = file.read_bytes()
                    self._send(200, data[: len(data) // 2], {"Content-Length": str(len(data))})
                    self.close_connection = True
                elif fault not in (None, "more"):
                    self._send(302, b"", {"Location": str(fault), "Content-Length": "0"})
                elif served.ranges and wanted and file.is_file():
                    self._send_range(file.read_bytes(), wanted, 10**7 if fault == "more" else 0)
                else:
                    super().do_GET()

            def _send_range(self, data: bytes, wanted: str, more: int) -> None:
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
                assert found is not None
                start, end = int(found[1]), min(int(found[2]) + 1, len(data))
                if start >= len(data):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
                    return
                span = f"bytes {start}-{end - 1}/{len(data)}"
                body = data[start:end] + bytes(more)
                self._send(206, body, {"Content-Range": span, "Content-Length": str(len(body))})

            def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        return Handler


@pytest.fixture(params=["ranges", "whole files"])
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WebServer]:
    """A server of `tmp_path / "web"`."""
    (tmp_path / "web").mkdir()
    server = WebServer(tmp_path / "web", ranges=request.param == "ranges")
    yield server
    server.close()

"""Proxy in front of an S3 server that fails as networks and servers do."""

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Fault = Callable[[BaseHTTPRequestHandler, http.client.HTTPResponse, bytes], bool]
"""Answers a request in place of the server, which has done its work already; False to send the server's answer."""

_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"


def status(number: int, code: str) -> Fault:
    """An answer with a status and a code of S3."""

    def answer(handler: BaseHTTPRequestHandler, response: http.client.HTTPResponse, body: bytes) -> bool:
        _send_error(handler, number, code)
        return True

    return answer


def _send_error(handler: BaseHTTPRequestHandler, number: int, code: str) -> None:
    text = b"" if handler.command == "HEAD" else _ERROR.format(code=code).encode()
    handler.send_response(number)
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text)


def lost(handler: BaseHTTPRequestHandler, response: http.client.HTTPResponse, body: bytes) -> bool:
    """No answer: the connection ends after the server has done its work."""
    handler.close_connection = True
    return True


def cut(handler: BaseHTTPRequestHandler, response: http.client.HTTPResponse, body: bytes) -> bool:
    """Half of the body."""
    handler.send_response(response.status)
    for name, value in response.getheaders():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True
    return True


def slow(handler: BaseHTTPRequestHandler, response: http.client.HTTPResponse, body: bytes) -> bool:
    """The server's answer, a second late."""
    time.sleep(1)
    return False


class FaultyProxy:
    """Proxy on a port of its own; requests fail as `choose` says.

    Args:
        target: URL of the server.

    Attributes:
        choose: Fault of a request, by its method and path; None for none.
        denies: True for a request that is answered as forbidden, and does not reach the server.
        asked: Methods and paths of all requests.
    """

    def __init__(self, target: str) -> None:
        self.choose: Callable[[str, str], Fault | None] = lambda method, path: None
        self.denies: Callable[[str, str], bool] = lambda method, path: False
        self.asked: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(urlsplit(target).netloc))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail_next(self, fault: Fault, times: int, method: str = "", part: str = "") -> None:
        """Has the next requests of a method, whose path has a part, fail."""
        left = [times]

        def choose(asked: str, path: str) -> Fault | None:
            if left[0] and method in ("", asked) and part in path:
                left[0] -= 1
                return fault
            return None

        self.choose = choose

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self, target: str) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.asked.append((self.command, self.path))
                if proxy.denies(self.command, self.path):
                    _send_error(self, 403, "AccessDenied")
                    return
                server = http.client.HTTPConnection(target, timeout=60)
                server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    server.putheader(name, value)  # the host too, which is signed
                server.endheaders(body)
                response = server.getresponse()
                answer = response.read()
                fault = proxy.choose(self.command, self.path)
                if fault is None or not fault(self, response, answer):
                    self.send_response(response.status)
                    for name, value in response.getheaders():
                        if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                            self.send_header(name, value)
                    length = response.getheader("Content-Length") if self.command == "HEAD" else None
                    self.send_header("Content-Length", length or str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                server.close()

            def log_message(self, *arguments: Any) -> None:
                pass

        for method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
            setattr(Handler, f"do_{method}", Handler.handle_one)
        return Handler

"""Middleware of the service on a real HTTP server, without the deployments."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api import add_middleware, make_app
from serve.errors import ApiError
from serve.failures import private_traceback
from serve.health import EVERY
from serve.keys import Admission, add_key
from serve.middleware import FailureMiddleware
from serve.proxy import ProxyMiddleware
from serve.service import Service
from serve.settings import read_settings
from tests.conftest import free_port, wait_for

from .running import graph_without_deployments

STALLED = "POST /v1/videos HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
STALLED += "X-Deadline-Seconds: {seconds}\r\nContent-Length: 1000\r\n\r\n{{"
ORIGIN = "https://page.example"


@dataclass
class Stack:
    """Server of the ingress's application, as Serve's proxy calls it; `behind` is the same behind a proxy's prefix."""

    url: str
    behind: str
    service: Service
    loop: asyncio.AbstractEventLoop
    keys: Path
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    def stalled(self, seconds: float) -> socket.socket:
        """Connection with a request whose body does not come."""
        parts = urlsplit(self.url)
        connection = socket.create_connection((parts.hostname, parts.port), timeout=30)
        connection.sendall(STALLED.format(key=self.secret, seconds=seconds).encode())
        return connection


@contextlib.contextmanager
def running(folder: Path, has_keys: bool = True) -> Iterator[Stack]:
    keys = folder / "keys.json"
    secret = add_key(str(keys), "alice")
    settings = read_settings(
        {
            "storage": str(folder / "data"),
            "keys": str(keys) if has_keys else None,
            "limits": {"in_flight": 2, "body_megabytes": 1},
            "cors_origins": [ORIGIN],
        }
    )
    made: list[Service] = []
    loop = asyncio.new_event_loop()
    servers: list[uvicorn.Server] = []
    ports = free_port(), free_port()

    async def serve() -> None:
        service = Service(settings, graph_without_deployments())
        made.append(service)
        application = make_app(service)
        add_middleware(application, service)
        app = ProxyMiddleware(application)
        for port, prefix, lifespan in ((ports[0], "", "on"), (ports[1], "/video", "off")):
            config = uvicorn.Config(app, port=port, root_path=prefix, lifespan=lifespan, log_level="critical")  # type: ignore[arg-type]
            servers.append(uvicorn.Server(config))
        await asyncio.gather(*(server._serve() for server in servers))

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        wait_for(lambda: len(servers) == 2 and all(server.started for server in servers), "the server is not up")
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        yield Stack(urls[0], f"{urls[1]}", made[0], loop, keys, secret)
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack")) as made:
        yield made


def answer_on(connection: socket.socket) -> str:
    """Everything that the server sends until it closes the connection."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received.decode()


# ---- bodies that do not come ----------------------------------------------------------------------------------------


def test_bodies_that_never_come_hold_no_place_and_end_at_their_deadline(stack: Stack) -> None:
    """Twice as many as there are places; other clients are answered all the time."""
    began = time.monotonic()
    connections = [stack.stalled(seconds=1.5) for _ in range(4)]
    try:
        answer = requests.post(f"{stack.url}/v1/videos", json={"prompt": "x"}, headers=stack.headers, timeout=30)
        assert answer.status_code == 200, answer.text
        assert time.monotonic() - began < 1.5
        for connection in connections:
            text = answer_on(connection)
            assert text.startswith("HTTP/1.1 504")
            assert "not finished within 1.5 s" in text
    finally:
        for connection in connections:
            connection.close()
    assert stack.service.admission._of_owner == {"alice": 0}


def test_bodies_on_their_way_are_bounded_in_number_and_bytes() -> None:
    admission = Admission(None, max_in_flight=1, max_body_bytes=10)
    come = asyncio.Event()

    async def slowly() -> dict[str, object]:
        if not come.is_set():
            come.set()
            return {"type": "http.request", "body": b"x" * 8, "more_body": True}
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def at_once() -> dict[str, object]:
        return {"type": "http.request", "body": b"x" * 8, "more_body": False}

    async def run() -> None:
        later = asyncio.get_running_loop().time() + 10

        async def received(receive: Receive) -> list[bytes]:
            async with admission.body(receive, later, 10) as messages:
                with pytest.raises(
                    ApiError, match="too many large bodies"
                ) as refused:  # beside the bytes that it holds
                    async with admission.body(at_once, later, 10):
                        raise AssertionError
                assert refused.value.status == 429
                return [message["body"] for message in messages]

        first = asyncio.create_task(received(slowly))
        await come.wait()
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="too many large bodies"):
            async with admission.body(at_once, later, 10):
                raise AssertionError
        assert await first == [b"x" * 8, b""]
        assert await received(at_once) == [b"x" * 8]

    asyncio.run(run())


# ---- what clients and browsers expect -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/health", "/healthz", "/docs", "/openapi.json", "/v1/models", "/v1/videos"])
def test_head_is_answered_as_get_without_the_body(stack: Stack, path: str) -> None:
    head, get = (
        requests.request(method, stack.url + path, headers=stack.headers, timeout=30) for method in ("HEAD", "GET")
    )
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert get.content


@pytest.mark.parametrize("prefix", ["", "/video"])
def test_documentation_and_page_load_from_the_service_alone(stack: Stack, prefix: str) -> None:
    """The proxy in front of the service removes the prefix, which browsers see."""
    url = stack.behind if prefix else stack.url
    page = requests.get(f"{url}/docs", timeout=30).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) == 3
    for address in [*loaded, f"{prefix}/openapi.json"]:
        assert address.startswith(f"{prefix}/")
        assert address in page
        assert requests.get(url + address.removeprefix(prefix), timeout=30).status_code == 200
    assert requests.get(f"{url}/openapi.json", timeout=30).json().get("servers", [{"url": ""}])[0]["url"] == prefix
    page = requests.get(f"{url}/", timeout=30).text
    assert f'<base href="{prefix}/">' in page
    assets = set(re.findall(r'(?:src|href)="(page/[^"]+)"', page))
    assert len(assets) == 3
    for asset in assets:
        answer = requests.get(f"{url}/{asset}", timeout=30)
        assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff")
        assert not re.search(r'["\'`(]/(v1|docs|metrics|page)\b', page + answer.text)
    assert requests.get(f"{url}/page/none.js", timeout=30).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("POST", "/chat/completions", 404, "there is no POST /chat/completions: calls begin with /v1"),
        ("POST", "/v1/images/edits", 404, "there is no POST /v1/images/edits"),
        ("PUT", "/v1/videos", 405, "there is no PUT /v1/videos: /docs lists the methods"),
    ],
)
def test_calls_that_do_not_exist_are_named(stack: Stack, method: str, path: str, status: int, says: str) -> None:
    answer = requests.request(method, stack.url + path, headers=stack.headers, timeout=30)
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith(says)


def test_keys_are_checked_behind_a_prefix_too(stack: Stack) -> None:
    assert requests.get(f"{stack.behind}/v1/models", timeout=30).status_code == 401
    assert requests.get(f"{stack.behind}/v1/models", headers=stack.headers, timeout=30).status_code == 200


def test_listed_origins_may_call_the_service(stack: Stack) -> None:
    def preflight(origin: str) -> requests.Response:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        return requests.options(f"{stack.url}/v1/chat/completions", headers={"Origin": origin} | asked, timeout=30)

    allowed = preflight(ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in preflight("https://other.example").headers
    refused = requests.get(f"{stack.url}/v1/models", headers={"Origin": ORIGIN}, timeout=30)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    assert "Retry-After" in refused.headers["access-control-expose-headers"]


def test_answers_tell_the_rate_limit_and_the_scheme_of_keys(stack: Stack) -> None:
    answer = requests.post(f"{stack.url}/v1/videos", json={"prompt": ""}, headers=stack.headers, timeout=30)
    assert answer.status_code == 400
    assert answer.headers["x-ratelimit-limit-requests"] == "100"
    assert 90 <= int(answer.headers["x-ratelimit-remaining-requests"]) < 100
    assert 0 < float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) < 10
    assert requests.get(f"{stack.url}/v1/models", timeout=30).headers["www-authenticate"] == "Bearer"


def test_odd_bytes_in_headers_are_no_error(stack: Stack) -> None:
    odd = {"X-Request-ID": b"\xff", "Serve-Multiplexed-Model-Id": b"\xfe"}
    assert requests.get(f"{stack.url}/v1/models", headers=stack.headers | odd, timeout=30).status_code == 200


# ---- errors of Serve's proxy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 500, None])
def test_errors_of_serve_itself_become_errors_of_the_api(status: int | None) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if status is not None:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-request-id", b"abc")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"Path '/v1/videos' not found."})

    sent = asyncio.run(_messages(ProxyMiddleware(serve)))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 503
    headers = dict(sent[0]["headers"])
    assert headers[b"retry-after"] == b"2"
    assert headers.get(b"x-request-id") == (None if status is None else b"abc")
    assert json.loads(sent[1]["body"])["error"]["code"] == "unavailable"


async def _messages(app: ASGIApp) -> list[dict[str, object]]:
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/videos", "headers": []}
    await app(scope, None, send)  # type: ignore[arg-type]
    return sent


# ---- keys and the end -----------------------------------------------------------------------------------------------


def test_changes_of_the_file_of_keys_are_followed(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    def accepted(secret: str) -> bool:
        headers = {"Authorization": f"Bearer {secret}"}
        return requests.get(f"{stack.url}/v1/models", headers=headers, timeout=30).status_code == 200

    added = add_key(str(stack.keys), "bob")
    wait_for(lambda: accepted(added), "the new key is not accepted", 5)
    before = stack.keys.read_text()
    stack.keys.write_text("{")
    wait_for(lambda: "not a file of API keys" in caplog.text, "nothing is logged", 5)
    time.sleep(2)
    assert caplog.text.count("stay valid") == 1
    assert accepted(added)
    assert accepted(stack.secret)
    only_alice = json.loads(before)
    only_alice["keys"] = [key for key in only_alice["keys"] if key["name"] == "alice"]
    stack.keys.write_text(json.dumps(only_alice))
    wait_for(lambda: not accepted(added), "the revoked key is accepted", 5)
    assert accepted(stack.secret)


def test_a_stopping_service_answers_503_and_shows_jobs(tmp_path: Path) -> None:
    with running(tmp_path) as stack:
        body = {"prompt": "x"}
        job = requests.post(f"{stack.url}/v1/videos", json=body, headers=stack.headers, timeout=30).json()["id"]
        answering = asyncio.run_coroutine_threadsafe(_future(), stack.loop).result(5)
        stack.service.answering.add(answering)
        stalled = stack.stalled(seconds=60)
        wait_for(lambda: bool(stack.service.admission._receiving), "the request has not come", 5)
        drained = asyncio.run_coroutine_threadsafe(stack.service.drain(30), stack.loop)
        with pytest.raises(TimeoutError):
            drained.result(1)
        stack.loop.call_soon_threadsafe(answering.set_result, None)
        drained.result(5)
        assert answer_on(stalled).startswith("HTTP/1.1 503")
        stalled.close()
        ready = requests.get(f"{stack.url}/readyz", timeout=30)
        refused = requests.post(f"{stack.url}/v1/videos", json=body, headers=stack.headers, timeout=30)
        assert (ready.status_code, refused.status_code) == (503, 503)
        assert int(ready.headers["Retry-After"]) > 0
        assert int(refused.headers["Retry-After"]) > 0
        assert "stopping" in refused.json()["error"]["message"]
        assert requests.get(f"{stack.url}/v1/videos/{job}", headers=stack.headers, timeout=30).json()["id"] == job
        assert requests.get(f"{stack.url}/healthz", timeout=30).status_code == 200


async def _future() -> "asyncio.Future[None]":
    """Answer that has begun and not ended."""
    return asyncio.get_running_loop().create_future()


# ---- pages of other sites -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Service without keys."""
    with running(tmp_path_factory.mktemp("open"), has_keys=False) as made:
        yield made


FOREIGN = [
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_sites_get_nothing(stack: Stack, open_stack: Stack, headers: dict[str, str]) -> None:
    for one in (stack, open_stack):
        for path, method in (("/v1/videos", "POST"), ("/v1/videos", "GET"), ("/metrics", "GET")):
            answer = requests.request(
                method, one.url + path, headers=one.headers | headers, data="prompt=x", timeout=30
            )
            assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
        assert one.service.store.counts() == {} or one is stack


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://seen-by-the-browser.example"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://a.example", "X-Forwarded-Host": "a.example"},
    ],
    ids=str,
)
def test_own_and_listed_pages_are_answered(stack: Stack, headers: dict[str, str]) -> None:
    assert requests.get(f"{stack.url}/v1/models", headers=stack.headers | headers, timeout=30).status_code == 200


def test_without_keys_no_other_name_is_answered(stack: Stack, open_stack: Stack) -> None:
    def status(one: Stack, host: str) -> int:
        return requests.get(f"{one.url}/v1/models", headers=one.headers | {"Host": host}, timeout=30).status_code

    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "127.0.0.1"):
        assert status(open_stack, host) == 200
    for host in ("evil.example", "localhost.evil.example", "10.0.0.1", "[::", "0.0.0.0"):
        assert status(open_stack, host) == 403, host
    assert status(stack, "public.example") == 200


def test_media_types_are_compared_as_a_whole(stack: Stack) -> None:
    for kind in ("text/plain; json", "application/jsonp", "application/x-json", "multipart/form-data-not"):
        headers = stack.headers | {"Content-Type": kind}
        answer = requests.post(f"{stack.url}/v1/videos", data='{"prompt": "x"}', headers=headers, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_content_type"), kind
    headers = stack.headers | {"Content-Type": "Application/JSON ; charset=utf-8"}
    answer = requests.post(f"{stack.url}/v1/videos", data='{"prompt": "x"}', headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


# ---- what would stop the service ------------------------------------------------------------------------------------


def test_json_of_very_many_parts_is_refused_at_once(stack: Stack) -> None:
    fields = {"prompt": "x"} | {f"k{number}": number for number in range(60_000)}
    body = json.dumps(fields).encode()
    assert len(body) < 1 << 20
    for path, kind in itertools.product(
        ("/v1/videos", "/v1/chat/completions", "/v1/images/generations"), ("application/json", "Application/JSON")
    ):
        headers = stack.headers | {"Content-Type": kind}
        answer = requests.post(stack.url + path, data=body, headers=headers, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_large")


def test_requests_for_results_have_a_limit_too() -> None:
    admission = Admission(None, max_in_flight=1, max_body_bytes=10)
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(admission.read("anybody"))
        with pytest.raises(ApiError) as refused, admission.read("anybody"):
            raise AssertionError
        assert refused.value.status == 429
    with admission.read("anybody"):
        pass


def test_readiness_is_not_asked_anew_by_every_client(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("serve.health._deployments", lambda: asked.append(time.monotonic()) or {})
    began = time.monotonic()
    for _ in range(40):
        assert requests.get(f"{stack.url}/readyz", timeout=30).status_code == 503  # there are no deployments
    assert len(asked) <= 1 + (time.monotonic() - began) / EVERY


# ---- private texts --------------------------------------------------------------------------------------------------


def test_a_locked_database_is_answered_with_503_and_logs_no_prompt(
    stack: Stack, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "SECRET-PROMPT-4711"
    assert stack.service.store.url.startswith("sqlite:///")
    with contextlib.closing(sqlite3.connect(stack.service.folder.path + "/jobs.sqlite", isolation_level=None)) as other:
        other.execute("begin immediate")
        answer = requests.post(f"{stack.url}/v1/videos", json={"prompt": secret}, headers=stack.headers, timeout=30)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert not stack.service.health._check_store()
        other.execute("rollback")
    assert stack.service.health._check_store()
    assert secret not in caplog.text + answer.text + "".join(capfd.readouterr())
    assert os.stat(stack.service.folder.path).st_mode & 0o077 == 0


def test_log_lines_of_failures_name_types_and_places_only() -> None:
    try:
        try:
            raise ValueError("SECRET")
        except ValueError as error:
            raise RuntimeError("SECRET") from error
    except RuntimeError as error:
        line = private_traceback(error)
    assert re.fullmatch(
        r"RuntimeError at test_middleware.py:\d+ test_\w+; from ValueError at test_middleware.py:.*", line
    )
    assert "SECRET" not in line


@pytest.mark.parametrize("end", ["leaves", "fails", "fails late"])
def test_only_failures_are_answered_and_logged(end: str, caplog: pytest.LogCaptureFixture) -> None:
    """A client that left gets no answer, and none is logged as if it had failed; a begun answer is not begun again."""
    sent: list[Message] = []

    async def routes(scope: Scope, receive: Receive, send: Send) -> None:
        if end == "fails late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if end != "leaves":
            raise LookupError("private")

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "state": {"request_id": "r1"}}
    with contextlib.suppress(LookupError):
        asyncio.run(FailureMiddleware(routes)(scope, receive, send))
    assert [one.get("status") for one in sent] == {"leaves": [], "fails": [500, None], "fails late": [200]}[end]
    assert [("r1" in line, "private" in line) for line in caplog.messages] == (
        [(True, False)] if end == "fails" else []
    )

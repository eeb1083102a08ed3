"""The running service as its operator sees it."""

import re

import requests

from tests.conftest import wait_for

from .running import Running

LINE = re.compile(r"^\d\d:\d\d:\d\d (\S+ \S+ \d+) \d+ ms (.*)$", re.MULTILINE)


def test_requests_appear_on_the_console_without_what_is_secret(service: Running) -> None:
    service.get("/v1/models?token=hidden", headers={"X-Request-ID": "first"})
    service.post(
        "/v1/videos", json={"prompt": "a whispered prompt", "size": "huge"}, headers={"X-Request-ID": "second"}
    )
    requests.get(f"{service.url}/v1/videos", headers={"X-Request-ID": "third"}, timeout=30)
    wait_for(lambda: " third" in service.log.read_text(), "the line is missing", 10)
    console = service.log.read_text()
    lines = LINE.findall(console)
    assert ("GET /v1/models 200", "alice first") in lines
    assert ("POST /v1/videos 400", "alice second invalid_value") in lines
    assert ("GET /v1/videos 401", "- third invalid_api_key") in lines
    for secret in ("hidden", "whispered", *service.secrets.values()):
        assert secret not in console


def test_serves_proxy_fails_on_no_header(service: Running) -> None:
    headers = {"X-Request-ID": b"\xff", "Serve-Multiplexed-Model-Id": b"\xff"}
    answer = requests.get(f"{service.url}/v1/models", headers=service.headers() | headers, timeout=30)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"].isascii()


def test_head_tells_that_the_service_is_ready(service: Running) -> None:
    answer = requests.head(f"{service.url}/readyz", timeout=30)
    assert (answer.status_code, answer.content) == (200, b"")

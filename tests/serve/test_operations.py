"""The running service as its operator sees it."""

import re
from concurrent.futures import ThreadPoolExecutor

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


def test_metrics_tell_the_speed_and_the_load_of_the_language_model(service: Running) -> None:
    names = ["time_to_first_token_seconds", "time_per_output_token_seconds"]
    before = [service.metric(f"videolavit_{name}_count") for name in names]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 400, "min_tokens": 400}
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(service.post, "/v1/chat/completions", json=body) for _ in range(3)]
        wait_for(lambda: service.metric("videolavit_language_model_requests_running") > 0, "nothing runs", 30)
        assert all(answer.result().status_code == 200 for answer in asked)
    assert [service.metric(f"videolavit_{name}_count") for name in names] == [count + 3 for count in before]
    assert 0 < service.metric("videolavit_time_per_output_token_seconds_sum") < 3
    assert service.metric("videolavit_language_model_requests_running") == 0
    assert requests.head(f"{service.url}/metrics", headers=service.headers(), timeout=30).status_code == 200


def test_metrics_tell_what_the_prefix_cache_held(service: Running) -> None:
    def held() -> float:
        return service.metric("videolavit_prefix_cache_hit_tokens_total")

    body = {"model": "tiny", "messages": [{"role": "user", "content": "a long question " * 8}], "max_tokens": 8}
    service.post("/v1/chat/completions", json=body)
    before = held()
    usage = service.post("/v1/chat/completions", json=body).json()["usage"]
    assert held() - before == usage["prompt_tokens_details"]["cached_tokens"] > 0

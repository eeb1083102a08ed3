"""Requests that the service refuses, and its errors."""

import asyncio
import base64
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import openai
import pytest
import requests

from serve.errors import ApiError
from serve.keys import Admission, Key

from .running import Running, picture, serving, video

PIXEL = "data:image/png;base64," + base64.b64encode(picture(0, 8, 8)).decode()
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}


def error_of(answer: requests.Response) -> dict[str, str]:
    """Error of an answer, after checks that every error must pass."""
    error: dict[str, str] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    for inner in ("Traceback", "/site-packages", "ray.exceptions", ".py"):
        assert inner not in answer.text
    assert answer.headers["x-request-id"]
    return error


# ---- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer vl-wrong", "Basic abc", "Bearer \x00"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/videos", "/metrics"])
def test_wrong_and_missing_keys_are_refused(service: Running, path: str, header: str | None) -> None:
    answer = requests.get(service.url + path, headers={"Authorization": header} if header else {}, timeout=30)
    assert answer.status_code in (400, 401) if header == "Bearer \x00" else answer.status_code == 401
    if answer.status_code == 401:
        assert error_of(answer)["code"] == "invalid_api_key"


def test_nobody_sees_the_jobs_of_another_key(service: Running) -> None:
    alice, bob = service.client("alice"), service.client("bob")
    job = alice.videos.create_and_poll(prompt="alice's")
    assert job.status == "completed"
    for call in (bob.videos.retrieve, bob.videos.delete, bob.videos.download_content):
        with pytest.raises(openai.NotFoundError):
            call(job.id)
    assert job.id not in [one.id for one in bob.videos.list()]
    after = requests.get(
        f"{service.url}/v1/videos", params={"after": job.id}, headers=service.headers("bob"), timeout=30
    )
    assert after.status_code == 404
    assert alice.videos.retrieve(job.id).status == "completed"


def test_keys_are_stored_as_hashes(service: Running) -> None:
    kept = (service.storage.parent / "keys.json").read_text()
    assert all(secret not in kept for secret in service.secrets.values())
    assert [key["name"] for key in json.loads(kept)["keys"]] == ["alice", "bob", "carol", "dave"]


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/v1/chat/completions", ASK | {"max_tokens": 5000}, "max_tokens", "at most 4096"),
        ("/v1/chat/completions", ASK | {"temprature": 1}, "temprature", "unknown field"),
        ("/v1/chat/completions", ASK | {"messages": []}, "messages", "at least 1"),
        ("/v1/chat/completions", ASK | {"messages": [{"role": "user", "content": "x" * 30_000}]}, "messages", "30000"),
        ("/v1/chat/completions", ASK | {"messages": [{"role": "user", "content": "x" * 6000}]}, None, "context"),
        ("/v1/chat/completions", ASK | {"messages": [{"role": "assistant", "content": "x"}]}, "messages", "user"),
        ("/v1/chat/completions", ASK | {"n": 2}, "n", "is not supported: leave it out, or send 1"),
        ("/v1/chat/completions", ASK | {"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "surrogate"),
        ("/v1/videos", {"prompt": "x\0"}, "prompt", "NUL"),
        ("/v1/videos", {"prompt": "x" * 30_000, "input_reference": {"image_url": PIXEL}}, "prompt", "30000"),
        ("/v1/images/generations", {"prompt": "x", "n": 3}, "n", "at most 2"),
        ("/v1/images/generations", {"prompt": " "}, "prompt", "empty"),
        ("/v1/images/generations", {"prompt": "x", "size": "8000x8000"}, "size", "pixels"),
        ("/v1/images/generations", {"prompt": "x", "quality": "high"}, "quality", "is not supported"),
        ("/v1/videos", {"prompt": "x", "seconds": 60}, "seconds", "at most 8"),
        ("/v1/videos", {"prompt": "x" * 5000}, None, "context"),
        ("/v1/videos", {"prompt": "x", "num_frames": 90}, "num_frames", "at most 8"),
        ("/v1/videos", {"prompt": "x", "size": "8000x8000"}, "size", "pixels"),
        ("/v1/videos", {"prompt": "x", "num_inference_steps": 101}, "num_inference_steps", "at most 100"),
        ("/v1/videos", {"prompt": "x", "guidance_scale": 0.5}, "guidance_scale", "at least 1"),
        ("/v1/videos", {"prompt": "x", "negative_prompt": "fog"}, "negative_prompt", "is not supported"),
        ("/v1/videos", {"prompt": "x", "size": "huge"}, "size", "such as 256x256"),
        ("/v1/videos", {"prompt": ""}, "prompt", "empty"),
        ("/v1/videos", {"prompt": "x", "steps": 3}, "steps", "unknown field"),
    ],
)
def test_errors_name_the_field_and_the_reason(
    service: Running, path: str, body: dict[str, object], param: str | None, says: str
) -> None:
    answer = service.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["param"] == param
    assert says in error["message"]


def test_an_unknown_model_is_named(service: Running) -> None:
    answer = service.post("/v1/chat/completions", json=ASK | {"model": "gpt-9"})
    assert answer.status_code == 404
    assert "'tiny'" in error_of(answer)["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2", 404), ("PUT", "/v1/videos", 405)])
def test_unknown_routes_have_the_same_format_of_error(service: Running, method: str, path: str, status: int) -> None:
    answer = requests.request(method, service.url + path, headers=service.headers(), timeout=30)
    assert answer.status_code == status
    error_of(answer)


def test_a_body_of_a_too_large_declared_size_is_refused(service: Running) -> None:
    answer = service.post("/v1/videos/reconstruct", files={"video": ("a.mp4", b"x" * (3 << 20))})
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "too_large"


def test_a_body_without_a_declared_size_is_cut_off_while_it_is_received(service: Running) -> None:
    """The answer comes although the body never ends."""
    parts = urlsplit(service.url)
    head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nAuthorization: {service.headers()['Authorization']}\r\n"
    head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = 0
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(head.encode())
        connection.settimeout(0.01)
        answer = b""
        deadline = time.monotonic() + 30
        while b"\r\n\r\n" not in answer and time.monotonic() < deadline:
            try:
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
            except (TimeoutError, BrokenPipeError, ConnectionResetError):
                pass
            try:
                answer += connection.recv(4096)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 413")
    assert sent < 64 << 20


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://example.com/a.png", "does not fetch"),
        ("https://127.0.0.1/a.png", "does not fetch"),
        ("file:///etc/passwd", "data URL"),
        ("data:image/png;base64,!!!!", "base64"),
        ("data:image/png,abc", "looks like"),
        ("data:image/png;base64," + base64.b64encode(b"#EXTM3U\nfile:///etc/passwd").decode(), "image"),
        ("data:image/png;base64," + base64.b64encode(picture()[:300]).decode(), "decoded"),
    ],
)
def test_hostile_pictures_are_refused(service: Running, url: str, says: str) -> None:
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]
    answer = service.post("/v1/chat/completions", json=ASK | {"messages": [{"role": "user", "content": parts}]})
    assert answer.status_code == 400
    assert says in error_of(answer)["message"]
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", ""),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", ""),
        (video(seconds=3)[:-4000], ""),
        (video(seconds=12), "lasts 12 s"),
    ],
    ids=["playlist", "concat", "truncated", "long"],
)
def test_hostile_videos_are_refused(service: Running, data: bytes, says: str) -> None:
    url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    parts = [{"type": "text", "text": "what?"}, {"type": "video_url", "video_url": {"url": url}}]
    answer = service.post("/v1/chat/completions", json=ASK | {"messages": [{"role": "user", "content": parts}]})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["code"] == "invalid_media"
    assert says in error["message"]


def test_a_deadline_ends_a_request_and_its_calls(service: Running) -> None:
    began = time.monotonic()
    answer = service.post(
        "/v1/images/generations", json={"prompt": "x", "size": "480x320"}, headers={"X-Deadline-Seconds": "0.3"}
    )
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "deadline_exceeded"
    assert time.monotonic() - began < 5
    assert service.post("/v1/images/generations", json={"prompt": "x"}).status_code == 200


def test_more_jobs_than_a_key_may_have_are_refused(service: Running) -> None:
    body = {"prompt": "x", "seconds": "8"}
    answers = [
        requests.post(f"{service.url}/v1/videos", json=body, headers=service.headers("bob"), timeout=30)
        for _ in range(8)
    ]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert error_of(refused[0])["code"] == "queue_full"
    assert int(refused[0].headers["Retry-After"]) > 0
    for answer in answers:
        if answer.ok:
            requests.delete(
                f"{service.url}/v1/videos/{answer.json()['id']}", headers=service.headers("bob"), timeout=30
            )


def test_more_requests_than_may_be_in_flight_are_refused_at_once(service: Running) -> None:
    body = {"prompt": "x", "size": "288x192"}

    def ask(number: int) -> tuple[int, float, str]:
        began = time.monotonic()
        answer = service.post("/v1/images/generations", json=body)
        return answer.status_code, time.monotonic() - began, answer.headers.get("Retry-After", "")

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    assert {status for status, _, _ in answers} == {200, 429}
    assert all(wait for status, _, wait in answers if status == 429)
    refused = max(seconds for status, seconds, _ in answers if status == 429)
    assert refused < min(seconds for status, seconds, _ in answers if status == 200)


def test_a_key_has_its_own_rate() -> None:
    key = Key(name="a", sha256="0" * 64, requests_per_minute=60, concurrent=2)
    admission = Admission([key], max_in_flight=100, max_body_bytes=1)

    async def spend(times: int) -> None:
        for _ in range(times):
            async with admission.admit("a"):
                pass

    asyncio.run(spend(10))  # the requests of ten seconds
    with pytest.raises(ApiError) as refused:
        asyncio.run(spend(1))
    assert refused.value.status == 429
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 1


def test_without_keys_the_service_listens_on_loopback_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(AssertionError, match="give API keys"), serving(tmp_path_factory.mktemp("open"), host="0.0.0.0"):
        pass

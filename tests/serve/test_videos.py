"""Video jobs of a running service: what their files hold, waiting for a video, and idempotency keys."""

import io
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import av
import pytest
import requests

from tests.conftest import wait_for
from videolavit.media import decompose

from .running import Running, picture, video


def held(data: bytes) -> dict[str, Any]:
    """Content of a video file, in the words of a job."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.duration is not None
        seconds = float(stream.duration * (stream.time_base or 0))
        rate = stream.average_rate
    assert rate is not None
    assert abs(len(frames) / rate - seconds) < 0.001  # a file with B-frames has its length in milliseconds
    size = f"{frames[0].width}x{frames[0].height}"
    return {"seconds": str(round(seconds, 3)).removesuffix(".0"), "size": size, "num_frames": len(frames), "fps": rate}


def told(job: dict[str, Any]) -> dict[str, Any]:
    return {name: job[name] for name in ("seconds", "size", "num_frames", "fps")}


def ended(service: Running, job_id: str) -> dict[str, Any]:
    path = f"/v1/videos/{job_id}"
    wait_for(lambda: service.get(path).json()["status"] not in ("queued", "in_progress"), "the job does not end")
    job: dict[str, Any] = service.get(path).json()
    return job


def post(
    service: Running, path: str, owner: str = "alice", key: str | None = None, **options: Any
) -> requests.Response:
    headers = service.headers(owner) | ({} if key is None else {"Idempotency-Key": key})
    return requests.post(service.url + path, headers=headers | options.pop("headers", {}), timeout=240, **options)


def ids(service: Running, owner: str) -> set[str]:
    page = requests.get(f"{service.url}/v1/videos?limit=100", headers=service.headers(owner), timeout=30).json()
    return {job["id"] for job in page["data"]}


# ---- what a file holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "warnings"),
    [
        ({"seconds": "6"}, ["seconds is 7.833, not 6"]),
        ({"extra_body": {"width": 90, "height": 50, "num_frames": 96, "fps": 24}}, ["num_frames", "fps", "size"]),
    ],
)
def test_a_job_says_at_once_what_its_file_will_hold(service: Running, asked: Any, warnings: list[str]) -> None:
    client = service.client()
    with pytest.warns(DeprecationWarning, match="permanently shut down"):  # says the client of OpenAI's service
        first = client.videos.create(prompt="a circle", **asked).model_dump()
    last = ended(service, first["id"])
    assert last["status"] == "completed"
    assert told(first) == told(last) == held(client.videos.download_content(first["id"]).read())
    assert first["warnings"] == last["warnings"]
    assert [says for says, begin in zip(first["warnings"], warnings, strict=True) if says.startswith(begin)]


def test_a_reconstruction_says_what_its_file_holds_when_that_is_known(service: Running) -> None:
    source = video(seconds=9)
    first = post(service, "/v1/videos/reconstruct", files={"video": ("a.mp4", source)}).json()
    assert set(told(first).values()) == {None}
    last = ended(service, first["id"])
    assert told(last) == held(service.get(f"/v1/videos/{first['id']}/content").content)
    assert last["num_frames"] == sum(clip.num_frames for clip in list(decompose(source))[:2]) == 48
    assert last["warnings"] == ["the video goes on: its first 2 clips are reconstructed, up to the limit"]


def test_options_of_the_samplers_are_honoured(service: Running) -> None:
    names = {"keyframe_detokenizer", "video_detokenizer"}

    def steps() -> dict[str, float]:
        return {name: service.metric("videolavit_step_seconds_count", deployment=name) for name in names}

    def made(**options: Any) -> bytes:
        answer = post(service, "/v1/videos/sync", json={"prompt": "a circle", "seed": 3} | options)
        assert answer.status_code == 200, answer.text
        return answer.content

    before = steps()
    one = made(num_inference_steps=1)
    assert steps() == {name: count + 1 for name, count in before.items()}
    assert b'"num_inference_steps": 1' in one
    assert len({one, made(), made(guidance_scale=9), made(guidance_scale=1)}) == 4


# ---- waiting for a video --------------------------------------------------------------------------------------------


def test_a_video_is_the_answer_itself(service: Running) -> None:
    form = {"prompt": "it moves", "width": "96", "height": "64", "num_frames": "30", "seed": "0", "negative_prompt": ""}
    answer = post(service, "/v1/videos/sync", data=form, files={"input_reference": ("a.png", picture(), "image/png")})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4"), answer.text
    job = service.get(f"/v1/videos/{answer.headers['x-video-id']}").json()
    assert (job["status"], job["seed"]) == ("completed", 0)
    content = held(answer.content)
    assert content == told(job)
    headers = {"seed": "seed", "seconds": "seconds", "size": "size", "frames": "num_frames", "fps": "fps"}
    assert all(answer.headers[f"x-video-{name}"] == str(job[field]) for name, field in headers.items())
    assert answer.headers["x-video-warnings"] == job["warnings"][0]
    assert "num_frames is 24, not 30" in job["warnings"][0]
    assert service.get(f"/v1/videos/{job['id']}/content").content == answer.content


def test_a_failed_job_is_an_error_of_the_request(service: Running) -> None:
    files = {"input_reference": ("a.png", b"no image", "image/png")}
    answer = post(service, "/v1/videos/sync", data={"prompt": "x"}, files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_media")
    answer = post(service, "/v1/videos/sync", json={"prompt": "x" * 5000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_job_ends_with_the_request_that_waits_for_it(service: Running) -> None:
    before, body = ids(service, "bob"), {"prompt": "x", "seconds": 8, "size": "480x320"}
    answer = post(service, "/v1/videos/sync", "bob", json=body, headers={"X-Deadline-Seconds": "1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    wait_for(lambda: ids(service, "bob") == before, "the job outlives the deadline")
    parts, sent = urlsplit(service.url), json.dumps(body)
    head = f"POST /v1/videos/sync HTTP/1.1\r\nHost: x\r\nAuthorization: {service.headers('bob')['Authorization']}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall((head + sent).encode())
        wait_for(lambda: len(ids(service, "bob") - before) == 1, "there is no job")
    wait_for(lambda: ids(service, "bob") == before, "the job outlives its client")


# ---- idempotency keys -----------------------------------------------------------------------------------------------


def test_a_repeated_request_gives_the_same_job_however_full_the_queue_is(service: Running) -> None:
    body = {"prompt": "again", "seconds": 4, "size": "480x320"}
    forms: list[dict[str, Any]] = [
        {"json": body},
        {"data": body},
        {"files": {name: (None, str(body[name])) for name in body}},
    ]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: post(service, "/v1/videos", "carol", "once", **forms[n % 3]), range(12)))
    assert {answer.status_code for answer in answers} == {200}
    (job_id,) = {answer.json()["id"] for answer in answers}
    while post(service, "/v1/videos", "carol", json=body).status_code == 200:
        time.sleep(0.01)
    assert post(service, "/v1/videos", "carol", "once", json=body).json()["id"] == job_id
    other = post(service, "/v1/videos", "carol", "once", json=body | {"prompt": "private words"})
    error = other.json()["error"]
    assert (other.status_code, error["code"], error["param"]) == (422, "idempotency_key_reused", "Idempotency-Key")
    assert "private" not in other.text
    assert post(service, "/v1/videos", "carol", "new", json=body).status_code == 429
    assert post(service, "/v1/videos", "alice", "once", json=body).json()["id"] != job_id
    for owner in ("carol", "alice"):
        for name in ids(service, owner):
            requests.delete(f"{service.url}/v1/videos/{name}", headers=service.headers(owner), timeout=30)
    assert b"once" not in (service.storage / "jobs.sqlite").read_bytes()


def test_a_repeated_request_waits_for_the_same_video(service: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: post(service, "/v1/videos/sync", key="w", json={"prompt": "x"}), range(2)))
    answers.append(post(service, "/v1/videos/sync", key="w", data={"prompt": "x"}))
    assert len({(answer.headers["x-video-id"], answer.content) for answer in answers}) == 1
    job = post(service, "/v1/videos", key="w", json={"prompt": "x"}).json()
    assert (job["id"], job["status"]) == (answers[0].headers["x-video-id"], "completed")


def test_a_repeated_upload_gives_the_same_job(service: Running) -> None:
    def reconstruct(data: bytes) -> requests.Response:
        return post(service, "/v1/videos/reconstruct", key="upload", files={"video": ("a.mp4", data)})

    first, again, other = reconstruct(video(1)), reconstruct(video(1)), reconstruct(video(1, seed=1))
    assert (first.json()["id"], other.status_code) == (again.json()["id"], 422)


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_lengths_of_keys_are_limited(service: Running, key: str) -> None:
    answer = post(service, "/v1/videos", key=key, json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")

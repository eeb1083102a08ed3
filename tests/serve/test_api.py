"""HTTP API, mostly through the official client."""

import base64
import io
import json
import time
from typing import Any

import numpy as np
import openai
import pytest
import requests
from PIL import Image

from tests.conftest import wait_for
from videolavit.media import decompose, probe

from .running import QUICK, Running, picture, video

MODEL = "tiny"


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_models(service: Running) -> None:
    client = service.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.models.retrieve("sora-2")


# ---- chat -----------------------------------------------------------------------------------------------------------


def test_a_chat_answers_and_counts_its_tokens(service: Running) -> None:
    answer = service.client().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=12
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens > len("hello")


def test_an_answer_has_at_least_min_tokens(service: Running) -> None:
    create, messages = service.client().chat.completions.create, [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.BadRequestError, match="min_tokens must not be above max_tokens, 12"):
        create(model=MODEL, messages=messages, max_tokens=12, extra_body={"min_tokens": 13})  # type: ignore[arg-type]
    answer = create(model=MODEL, messages=messages, max_tokens=40, extra_body={"min_tokens": 40})  # type: ignore[arg-type]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 40


def test_a_stream_gives_the_same_text_as_the_complete_answer(service: Running) -> None:
    request = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 600, "seed": 5}
    request |= {"temperature": 0.7}
    client = service.client()
    whole = client.chat.completions.create(**request)  # type: ignore[call-overload]
    events = list(
        client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    )
    said = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert said.strip() == whole.choices[0].message.content
    assert len([event for event in events if event.choices and event.choices[0].delta.content]) > 2
    assert events[-1].usage == whole.usage
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_string(service: Running, stream: bool) -> None:
    create = service.client().chat.completions.create
    messages = [{"role": "user", "content": "hello"}]
    request: Any = {"model": MODEL, "messages": messages, "max_tokens": 60, "temperature": 0}
    said = create(**request).choices[0].message.content
    assert said is not None
    stop = said[len(said) // 2 :][:4]
    if stream:
        events = list(create(**request, stop=stop, stream=True))
        short = "".join(event.choices[0].delta.content or "" for event in events)
        reason = events[-1].choices[0].finish_reason
    else:
        choice = create(**request, stop=["not in it", stop]).choices[0]
        short, reason = choice.message.content, choice.finish_reason
    assert (short.strip(), reason) == (said[: said.index(stop)].strip(), "stop")


@pytest.mark.parametrize("kind", ["image", "video", "file"])
def test_chats_about_images_and_videos(service: Running, kind: str) -> None:
    part: dict[str, object] = {
        "image": {"type": "image_url", "image_url": {"url": data_url("image/png", picture())}},
        "video": {"type": "video_url", "video_url": {"url": data_url("video/mp4", video())}},
        "file": {"type": "file", "file": {"file_data": data_url("video/mp4", video()), "filename": "a.mp4"}},
    }[kind]
    question = {"type": "text", "text": "what is it?"}
    create = service.client().chat.completions.create
    seen = create(model=MODEL, messages=[{"role": "user", "content": [question, part]}], max_tokens=8)  # type: ignore[list-item, misc]
    blind = create(model=MODEL, messages=[{"role": "user", "content": [question]}], max_tokens=8)  # type: ignore[list-item, misc]
    assert seen.usage is not None
    assert blind.usage is not None
    assert seen.usage.prompt_tokens > blind.usage.prompt_tokens


def test_a_chat_remembers_its_turns(service: Running) -> None:
    turns = [{"role": "system", "content": "be short"}, {"role": "user", "content": "one"}]
    answered = [*turns, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
    create = service.client().chat.completions.create
    short, long = (create(model=MODEL, messages=each, max_tokens=8).usage for each in (turns, answered))  # type: ignore[arg-type]
    assert long.prompt_tokens > short.prompt_tokens + len("two three")


# ---- images ---------------------------------------------------------------------------------------------------------


def test_images_are_determined_by_their_seed(service: Running) -> None:
    create = service.client().images.generate
    first = create(prompt="a red circle", n=2, extra_body={"seed": 5}).data
    second = create(prompt="a red circle", extra_body={"seed": 6}).data
    assert first is not None
    assert second is not None
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.b64_json or "")))) for one in (*first, *second)]
    assert pictures[0].shape == (48, 72, 3)
    assert np.abs(pictures[1].astype(int) - pictures[2]).max() <= 2  # the rest of the batch changes rounding only
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() > 20


def test_an_image_has_the_requested_size(service: Running) -> None:
    made = service.client().images.generate(prompt="a circle", size="96x64", response_format="url")  # type: ignore[call-overload]
    assert made.data[0].url.startswith("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(made.data[0].url.split(",")[1]))).size == (96, 64)
    with pytest.raises(openai.BadRequestError, match="multiples of 8"):
        service.client().images.generate(prompt="a circle", size="97x64")  # type: ignore[call-overload]


# ---- videos ---------------------------------------------------------------------------------------------------------


def test_a_video_is_generated_and_downloaded(service: Running) -> None:
    client = service.client()
    job = client.videos.create_and_poll(prompt="a red circle moves left", seconds="8", extra_body={"seed": 4})
    assert (job.status, job.progress, job.prompt, job.seconds) == ("completed", 100, "a red circle moves left", "7.833")
    data = client.videos.download_content(job.id).read()
    info = probe(data)
    assert (info.width, info.height, info.codec) == (72, 48, "h264")
    assert info.num_frames == 24 + 23
    assert info.seconds == pytest.approx(47 / 6, abs=0.05)
    for variant, size in (("thumbnail", (72, 48)), ("spritesheet", None)):
        shown = Image.open(io.BytesIO(client.videos.download_content(job.id, variant=variant).read()))  # type: ignore[arg-type]
        assert size in (None, shown.size)
    again = client.videos.create_and_poll(prompt="a red circle moves left", seconds="8", extra_body={"seed": 4})
    assert client.videos.download_content(again.id).read() == data


def test_a_video_starts_from_its_image(service: Running) -> None:
    client = service.client()
    job = client.videos.create_and_poll(prompt="it moves", input_reference=("a.png", picture(), "image/png"))
    assert job.status == "completed"
    shown = Image.open(io.BytesIO(client.videos.download_content(job.id, variant="thumbnail").read()))
    assert (np.asarray(shown) == np.asarray(Image.open(io.BytesIO(picture())))).all()
    by_url = {"prompt": "", "input_reference": {"image_url": data_url("image/png", picture())}}
    assert service.post("/v1/videos", json=by_url).json()["status"] == "queued"
    assert not list((service.storage / "uploads").glob(f"{job.id}*"))


def test_jobs_are_listed_in_pages_and_deleted(service: Running) -> None:
    client = service.client("carol")
    made = [client.videos.create(prompt=f"number {number}") for number in range(3)]
    listed = list(client.videos.list(limit=2))
    assert [job.id for job in listed] == [job.id for job in reversed(made)]
    oldest = service_page(service, "carol", order="asc", limit="2")
    assert ([job["id"] for job in oldest["data"]], oldest["has_more"]) == ([made[0].id, made[1].id], True)
    for job in made:
        assert client.videos.delete(job.id).deleted
    assert list(client.videos.list()) == []
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(made[0].id)


def service_page(service: Running, owner: str, **query: str) -> dict[str, object]:
    page: dict[str, object] = requests.get(
        f"{service.url}/v1/videos", params=query, headers=service.headers(owner), timeout=30
    ).json()
    return page


def test_a_deleted_job_stops_and_leaves_nothing(service: Running) -> None:
    def steps() -> float:
        parts = ("keyframe_detokenizer", "video_detokenizer")
        return sum(service.metric("videolavit_step_seconds_count", deployment=part) for part in parts)

    def resting() -> bool:  # the lease is checked every second, and a step may be running
        seen = steps()
        time.sleep(3)
        return steps() == seen

    client = service.client("bob")
    wait_for(resting, "jobs of other tests go on")
    before = steps()
    job = client.videos.create(prompt="to be stopped", seconds="8", size="480x320")  # type: ignore[arg-type]
    wait_for(lambda: steps() > before, "nothing is sampled")
    client.videos.delete(job.id)
    wait_for(resting, "the job goes on")
    clips = 2  # in eight seconds
    assert steps() < before + clips * (QUICK["keyframe_steps"] + QUICK["video_steps"])
    assert not (service.storage / "results" / job.id).exists()
    assert service.client().videos.create_and_poll(prompt="another").status == "completed"


def test_progress_is_that_of_the_steps(service: Running) -> None:
    client = service.client()
    job = client.videos.create(prompt="a circle", seconds="8", size="144x96")  # type: ignore[arg-type]
    seen = []
    while job.status in ("queued", "in_progress"):
        seen.append(job.progress)
        time.sleep(0.1)
        job = client.videos.retrieve(job.id)
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert max(seen) < 100


def test_a_video_is_reconstructed_from_its_tokens(service: Running) -> None:
    source = video(seconds=5)
    job = service.post("/v1/videos/reconstruct", files={"video": ("a.mp4", source)}, data={"seed": "2"}).json()
    client = service.client()
    while (current := client.videos.retrieve(job["id"])).status in ("queued", "in_progress"):
        time.sleep(0.2)
    assert current.status == "completed", current.error
    clips = list(decompose(source))
    made = probe(client.videos.download_content(job["id"]).read())
    assert made.num_frames == sum(clip.num_frames for clip in clips)
    tokens = service.get(f"/v1/videos/{job['id']}").json()["tokens"]
    assert tokens["motion"] == 18 * len(clips)
    assert 0 < tokens["visual"] <= 36 * len(clips)


def test_an_invalid_video_fails_with_its_reason(service: Running) -> None:
    job = service.post("/v1/videos/reconstruct", files={"video": ("a.mp4", b"no video at all")}).json()
    client = service.client()
    while (current := client.videos.retrieve(job["id"])).status in ("queued", "in_progress"):
        time.sleep(0.1)
    assert current.status == "failed"
    assert current.error is not None
    assert current.error.code == "invalid_input"
    assert "container" in current.error.message or "format" in current.error.message
    answer = service.get(f"/v1/videos/{job['id']}/content")
    assert answer.status_code == 404
    assert current.error.message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("requested", "status", "bounds"),
    [
        ("bytes=0-99", 206, (0, 100)),
        ("bytes=100-", 206, (100, None)),
        ("bytes=-50", 206, (-50, None)),
        ("bytes=99999999-", 416, None),
        ("bytes=-0", 416, None),
        ("lines=1-2", 200, (0, None)),
    ],
)
def test_ranges_of_a_video(
    service: Running, requested: str, status: int, bounds: tuple[int, int | None] | None
) -> None:
    path = _finished_video(service)
    whole = service.get(path).content
    part = service.get(path, headers={"Range": requested})
    assert part.status_code == status
    if bounds is not None:
        assert part.content == whole[bounds[0] : bounds[1]]
    else:
        assert part.headers["Content-Range"] == f"bytes */{len(whole)}"


def _finished_video(service: Running) -> str:
    done = [job for job in service.client().videos.list() if job.status == "completed"]
    job = done[0] if done else service.client().videos.create_and_poll(prompt="a circle")
    return f"/v1/videos/{job.id}/content"


# ---- the service ----------------------------------------------------------------------------------------------------


def test_health_documentation_and_metrics(service: Running) -> None:
    assert requests.get(f"{service.url}/healthz", timeout=30).json()["status"] == "ok"
    ready = requests.get(f"{service.url}/readyz", timeout=30).json()
    assert set(ready["deployments"].values()) == {"HEALTHY"}
    assert len(ready["deployments"]) == 5
    assert "swagger" in requests.get(f"{service.url}/docs", timeout=30).text.lower()
    before = service.metric("videolavit_tokens_total", kind="written")
    service.client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=9)
    assert service.metric("videolavit_tokens_total", kind="written") == before + 9
    request, label = {"prompt": "x", "seed": 1}, {"deployment": "keyframe_detokenizer"}
    names = [f"videolavit_{name}_seconds_count" for name in ("step", "decode")]
    counted = [service.metric(name, **label) for name in names]
    assert service.post("/v1/images/generations", json=request).ok
    assert [service.metric(name, **label) for name in names] == [counted[0] + QUICK["keyframe_steps"], counted[1] + 1]
    assert service.metric("videolavit_decode_seconds_sum", **label) > 0
    done = service.metric("videolavit_jobs", status="completed")
    assert service.client().videos.create_and_poll(prompt="x", seconds="4").status == "completed"
    assert service.metric("videolavit_jobs", status="completed") == done + 1


def test_a_request_id_comes_back_and_prompts_are_not_logged(service: Running) -> None:
    secret = "a sentence that no log may hold"
    request = {"model": MODEL, "messages": [{"role": "user", "content": secret}], "max_tokens": 8}
    answer = service.post("/v1/chat/completions", json=request, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert len(service.post("/v1/chat/completions", json=request).headers["x-request-id"]) > 10
    lines = service.log_lines()
    own = [json.loads(line) for line in lines if line.startswith("{") and "mine-1" in line]
    assert own
    assert (own[0]["route"], own[0]["status"], own[0]["owner"]) == ("/v1/chat/completions", 200, "alice")
    assert not any(secret in line for line in lines)

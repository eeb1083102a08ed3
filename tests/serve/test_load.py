"""The service under load, and when processes of it are killed."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from serve.store import JobStore
from tests.conftest import wait_for

from .running import QUICK, Running, picture, serving

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
SLOW = QUICK | {"video_steps": 20}
ALONE = {part: {"batch_size": 1} for part in ("language_model", "keyframe_detokenizer", "video_detokenizer")}
"""Settings for batches of one, since the batch size decides how sums are rounded."""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with room for 26 requests and 200 jobs."""
    limits = {"in_flight": 26, "open_jobs": 200, "open_jobs_per_key": 200}
    with serving(tmp_path_factory.mktemp("busy"), limits=limits, lease_seconds=3) as running:
        yield running


def _kinds(service: Running) -> list[Callable[[int], requests.Response]]:
    def chat(number: int) -> requests.Response:
        return service.post("/v1/chat/completions", json=ASK | {"max_tokens": 8 + number % 40})

    def stream(number: int) -> requests.Response:
        return service.post("/v1/chat/completions", json=ASK | {"max_tokens": 16, "stream": True})

    def image(number: int) -> requests.Response:
        return service.post("/v1/images/generations", json={"prompt": "x", "seed": number})

    def late(number: int) -> requests.Response:
        body = {"prompt": "x", "size": "288x192", "seed": number}
        return service.post("/v1/images/generations", json=body, headers={"X-Deadline-Seconds": "0.02"})

    def video(number: int) -> requests.Response:
        return service.post("/v1/videos", json={"prompt": "x", "seed": number})

    def broken(number: int) -> requests.Response:
        return service.post("/v1/images/generations", data=b"{", headers={"Content-Type": "application/json"})

    return [chat, chat, chat, stream, stream, image, late, video, broken, chat]


def test_two_hundred_mixed_requests_are_all_accounted_for(busy: Running) -> None:
    kinds = _kinds(busy)
    calls = [kinds[number % len(kinds)] for number in range(200)]
    random.Random(5).shuffle(calls)
    before = _count_requests(busy)
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda pair: _with_retries(pair[1], pair[0]), enumerate(calls)))
    counts = Counter((call.__name__, answers[-1].status_code) for call, answers in zip(calls, answers, strict=True))
    assert sum(counts.values()) == 200
    allowed = {"late": {504, 429}, "broken": {400}}
    for name, status in counts:
        assert status in allowed.get(name, {200, 429}), counts
    assert counts["broken", 400] == 20
    assert any(status == 504 for _, status in counts)
    assert sum(count for (_, status), count in counts.items() if status == 200) >= 100, counts
    for call, tries in zip(calls, answers, strict=True):
        assert all(answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1 for answer in tries[:-1])
        if call.__name__ == "stream" and tries[-1].ok:
            assert tries[-1].text.endswith("data: [DONE]\n\n")
    after = _count_requests(busy)
    assert sum(after.values()) - sum(before.values()) == sum(map(len, answers))  # counted by the service
    jobs = [tries[-1].json()["id"] for call, tries in zip(calls, answers, strict=True) if _queued_video(call, tries)]
    assert jobs
    wait_for(lambda: all(_status(busy, job) == "completed" for job in jobs), "jobs are not done", 200)
    assert busy.metric("videolavit_requests_in_flight") == 1


def _with_retries(call: Callable[[int], requests.Response], number: int) -> list[requests.Response]:
    """Answers to a client that retries after the time in `Retry-After`, up to nine times."""
    answers = [call(number)]
    while answers[-1].status_code == 429 and len(answers) < 10:
        time.sleep(int(answers[-1].headers["Retry-After"]))
        answers.append(call(number))
    return answers


def _queued_video(call: Callable[[int], requests.Response], tries: list[requests.Response]) -> bool:
    return call.__name__ == "video" and tries[-1].ok


def _count_requests(service: Running) -> Counter[str]:
    counted: Counter[str] = Counter()
    for line in service.get("/metrics").text.splitlines():
        if line.startswith("videolavit_requests_total{") and "POST" not in line:
            labels, value = line.removeprefix("videolavit_requests_total").rsplit(" ", 1)
            # by admission, before routing: too many, or too late
            refused = any(f'route="other",status="{status}"' in labels for status in (429, 504))
            if refused or any(path in labels for path in ("completions", "generations", '"/v1/videos"')):
                counted[labels] += round(float(value))
    return counted


def _status(service: Running, job: str) -> str:
    status: str = service.get(f"/v1/videos/{job}").json()["status"]
    return status


def test_requests_join_a_batch(busy: Running) -> None:
    """Batch sizes as the service measures them."""
    name, label = "videolavit_step_batch", {"deployment": "keyframe_detokenizer"}
    before = [busy.metric(f"{name}_{part}", **label) for part in ("sum", "count")]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda seed: busy.post("/v1/images/generations", json={"prompt": "x", "seed": seed}), range(8))
        )
    assert all(answer.ok for answer in answers)
    after = [busy.metric(f"{name}_{part}", **label) for part in ("sum", "count")]
    assert (after[0] - before[0]) / (after[1] - before[1]) > 1.5


def test_a_client_that_leaves_is_not_in_flight(busy: Running) -> None:
    body = {"prompt": "x", "size": "960x640"}
    for _ in range(16):
        with pytest.raises(requests.Timeout):
            requests.post(f"{busy.url}/v1/images/generations", json=body, timeout=0.4)
    wait_for(lambda: busy.metric("videolavit_requests_in_flight") == 1, "requests are in flight", 30)
    began = time.monotonic()
    assert busy.post("/v1/images/generations", json={"prompt": "x"}).status_code == 200
    assert time.monotonic() - began < 15


def test_a_client_that_leaves_a_stream_stops_it(busy: Running) -> None:
    before = busy.metric("videolavit_tokens_total", kind="written")
    with requests.post(
        f"{busy.url}/v1/chat/completions", json=ASK | {"max_tokens": 1024, "stream": True}, stream=True, timeout=30
    ) as answer:
        next(answer.iter_lines())
    wait_for(lambda: busy.metric("videolavit_requests_in_flight") == 1, "the stream goes on", 10)
    assert busy.metric("videolavit_tokens_total", kind="written") == before  # counted at an answer's end


@pytest.mark.parametrize("deployment", ["KeyframeDetokenizer", "LanguageModel"])
def test_a_replica_that_is_killed_is_replaced_and_its_requests_are_repeated(busy: Running, deployment: str) -> None:
    body = {"prompt": "x", "size": "288x192"}
    undisturbed = busy.post("/v1/images/generations", json=body | {"seed": 0}).json()["data"]
    (victim,) = busy.replicas(deployment)
    step = ("videolavit_step_seconds_count", {"deployment": "keyframe_detokenizer"})
    before = busy.metric(step[0], **step[1])
    with ThreadPoolExecutor(7) as pool:
        pending = [pool.submit(busy.post, "/v1/images/generations", json=body | {"seed": seed}) for seed in range(6)]
        if deployment == "KeyframeDetokenizer":  # in the middle of a batch
            wait_for(lambda: busy.metric(step[0], **step[1]) > before, "nothing is sampled")
        victim.kill()
        noticed = pool.submit(
            wait_for, lambda: _unhealthy(busy) == [deployment], "it is ready without a deployment", 30
        )
        answers = [future.result() for future in pending]
        noticed.result()
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) <= {200, 503}
    assert counts[200] >= 1, counts  # repeated, unless Serve notices the death only after the second try
    assert all(answer.ok or answer.json()["error"]["code"] == "unavailable" for answer in answers)
    wait_for(lambda: busy.post("/v1/images/generations", json={"prompt": "x"}).ok, "no new replica", 60)
    assert busy.replicas(deployment)[0].pid != victim.pid
    again = busy.post("/v1/images/generations", json=body | {"seed": 0}).json()["data"]
    assert again == undisturbed


def _unhealthy(service: Running) -> list[str]:
    """The deployments that make a service not ready."""
    answer = service.get("/readyz")
    unhealthy = [name for name, state in answer.json()["deployments"].items() if state != "HEALTHY"]
    assert answer.status_code == (503 if unhealthy else 200)
    return unhealthy


def test_jobs_survive_the_death_of_every_process(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Killed in the middle of jobs and started again, with two ingresses that share what is left: each is done once,
    and looks as if nothing had been."""
    folder = tmp_path_factory.mktemp("killed")
    with serving(folder, generation=SLOW, lease_seconds=3, **ALONE) as running:
        jobs = [_create(running, seed) for seed in range(3)]
        wait_for(lambda: any(_progress(running, job) > 20 for job in jobs), "no progress", 60)
        running.kill()
    assert not list((folder / "data" / "results").glob("*/*/video.mp4"))
    with serving(folder, generation=SLOW, lease_seconds=3, ingress={"min_replicas": 2}, **ALONE) as running:
        assert len(running.replicas("Ingress")) == 2
        wait_for(lambda: all(_status(running, job) == "completed" for job in jobs), "jobs are not done", 200)
        contents = {job: running.get(f"/v1/videos/{job}/content").content for job in jobs}
        undisturbed = _create(running, 1)
        wait_for(lambda: _status(running, undisturbed) == "completed", "the job is not done", 100)
        assert running.get(f"/v1/videos/{undisturbed}/content").content == contents[jobs[1]]
        listed = [job["id"] for job in running.get("/v1/videos").json()["data"]]
        assert sorted(listed) == sorted([*jobs, undisturbed])
        assert not list((folder / "data" / "uploads").iterdir())
        for job in jobs:
            assert len(list((folder / "data" / "results" / job).iterdir())) == 1


def _create(service: Running, seed: int) -> str:
    answer = service.post("/v1/videos", data={"prompt": "x", "seed": str(seed)}, files={"input_reference": picture()})
    job: str = answer.json()["id"]
    return job


def _progress(service: Running, job: str) -> int:
    progress: int = service.get(f"/v1/videos/{job}").json()["progress"]
    return progress


def test_an_orderly_end_finishes_requests_and_gives_jobs_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("ended")
    with (
        serving(folder, generation=SLOW | {"video_steps": 400}, lease_seconds=60) as running,
        ThreadPoolExecutor(1) as pool,
    ):
        job = _create(running, 1)
        wait_for(lambda: _progress(running, job) > 35, "no progress", 60)
        image = pool.submit(running.post, "/v1/images/generations", json={"prompt": "x", "size": "480x320"})
        wait_for(lambda: running.metric("videolavit_requests_in_flight") == 2, "the request is not in flight")
        running.process.terminate()
        assert image.result().status_code == 200
        running.process.wait(120)
    store = JobStore(f"sqlite:///{folder / 'data' / 'jobs.sqlite'}")
    assert store.counts() == {"queued": 1}
    store.beat("test", 60)
    again = store.claim("test")
    assert again is not None
    assert again.attempts == 1  # the released attempt is not counted
    assert store.release(again)
    store.leave("test")
    with serving(folder) as running:
        wait_for(lambda: _status(running, job) == "completed", "the job is not done", 60)

"""Requests of runs to S3: those that a run states are those that reach the server."""

import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.requests import measure
from tests import runs
from tests.conftest import Job, s3_filesystem
from tests.faulty_proxy import FaultyProxy, status
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.traffic import S3_TRAFFIC

METHODS = {
    "GetObject": "GET",
    "HeadObject": "HEAD",
    "ListObjectsV2": "GET",
    "PutObject": "PUT",
    "DeleteObjects": "POST",
}
"""HTTP methods of the operations that a run may use."""


@pytest.mark.parametrize("job", [("decompose",), ("tokenize", "--model", "tiny")], ids=lambda job: job[0])
def test_a_run_states_the_requests_of_all_starts(
    job: tuple[str, ...], run_job: Job, s3: dict[str, str], small_corpus: Path
) -> None:
    """Requests of the driver, of actors that read headers, of tasks that read plans, and of actors that make shards."""
    place = f"bucket/stated/{job[0]}"
    url = f"s3://{place}/run"
    fs = s3_filesystem(s3)
    for number in range(2):
        fs.put_file(str(small_corpus / f"video{number}.mp4"), f"{place}/in/{number}.mp4")
    words = (*job, "--input", f"s3://{place}/in", "--output", url)
    storage = {
        "key": s3["AWS_ACCESS_KEY_ID"],
        "secret": s3["AWS_SECRET_ACCESS_KEY"],
        "endpoint_url": s3["AWS_ENDPOINT_URL"],
    }
    with contextlib.closing(FaultyProxy(s3["AWS_ENDPOINT_URL"])) as proxy:
        for starts in (1, 2):
            done = run_job(*words, **s3 | {"AWS_ENDPOINT_URL": proxy.url, "RAY_ADDRESS": "local"})
            assert done.returncode == 0, done.stderr
            stated = runs.run(url, **storage)["s3"]
            received, sent = stated.pop("bytes_received"), stated.pop("bytes_sent")
            asked = Counter(method for method, _ in proxy.asked)
            asked["PUT"] -= starts  # the file that states them
            methods = Counter[str]()
            for name, count in stated.items():
                methods[METHODS[name]] += count
            assert methods == asked, stated
            assert received > 0
            assert sent > 0
            assert "GetObject" in done.stdout
    before = json.loads(fs.cat_file(f"{place}/run/live.json"))["s3"]
    left = {"identity": runs.run(url, **storage)["identity"], "complete": False}
    fs.pipe_file(f"{place}/run/run.json", json.dumps(left).encode())  # left by a start that was killed
    done = run_job(*words, **s3 | {"RAY_ADDRESS": "local"})
    assert done.returncode == 0, done.stderr
    after = runs.run(url, **storage)["s3"]
    assert not Counter(before) - Counter(after)
    assert after["ListObjectsV2"] > before["ListObjectsV2"]
    assert "S3, all starts" in run_job("status", url, **s3).stdout


def test_repeated_attempts_and_bytes_are_counted(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(FaultyProxy(s3["AWS_ENDPOINT_URL"])) as proxy:
        folder = Folder("s3://bucket/repeated", StorageSettings(proxy.url))
        S3_TRAFFIC.take()
        folder.replace("file", b"x" * 1000)
        proxy.fail_next(status(503, "SlowDown"), 2, "GET")
        assert folder.read("file") == b"x" * 1000
        counts = S3_TRAFFIC.take()
        methods = Counter(method for method, _ in proxy.asked)
    assert (counts["PutObject"], counts["HeadObject"], counts["GetObject"]) == (1, methods["HEAD"], 3)
    assert methods["GET"] == 3
    assert counts["bytes_sent"] == 1000
    assert 1000 < counts["bytes_received"] < 2000  # the errors have bodies too


def test_requests_grow_with_shards_and_not_with_samples(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is sent in one request. Its footer is read once, and its numbers and a clip of it for the card."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    few, full, many = (
        measure(f"s3://bucket/steps/{shards}-{samples}", shards, samples)
        for shards, samples in ((4, 5), (4, 100), (12, 5))
    )
    assert full == few
    assert (few["commit the shards"], many["commit the shards"]) == ({"PutObject": 4}, {"PutObject": 12})
    for step in ("publish a plan", "look for shards that are left", "hand the plan to workers"):
        assert few[step] == many[step], step
    assert many["look again, nothing is left"] == few["look again, nothing is left"]
    first, again = Counter(many["finish"]), Counter(many["finish again"])
    assert (first - Counter(few["finish"])).total() <= 3 * 8
    assert (first - again)["GetObject"] >= 12, "no footer is read again"
    assert (again - Counter(few["finish again"])).total() <= 2 * 8

"""Requests of runs to S3: those that a run states are those that reach the server."""

import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.requests import measure
from tests import runs
from tests.conftest import Job, s3_filesystem
from tests.faulty_proxy import FaultyProxy

METHODS = {
    "GetObject": "GET",
    "HeadObject": "HEAD",
    "ListObjectsV2": "GET",
    "PutObject": "PUT",
    "DeleteObjects": "POST",
}
"""HTTP methods of the operations that a run may use."""


def test_a_run_states_the_requests_of_all_starts(
    run_job: Job, s3: dict[str, str], small_corpus: Path, tmp_path: Path
) -> None:
    """The requests of the driver, of those that read headers and plans, and of those that make shards."""
    for number in range(2):
        s3_filesystem(s3).put_file(str(small_corpus / f"video{number}.mp4"), f"bucket/stated/in/{number}.mp4")
    words = ("decompose", "--input", "s3://bucket/stated/in", "--output", "s3://bucket/stated/run")
    storage = {
        "key": s3["AWS_ACCESS_KEY_ID"],
        "secret": s3["AWS_SECRET_ACCESS_KEY"],
        "endpoint_url": s3["AWS_ENDPOINT_URL"],
    }
    with contextlib.closing(FaultyProxy(s3["AWS_ENDPOINT_URL"])) as proxy:
        for starts in (1, 2):
            done = run_job(*words, **s3 | {"AWS_ENDPOINT_URL": proxy.url, "RAY_ADDRESS": "local"})
            assert done.returncode == 0, done.stderr
            stated = runs.run("s3://bucket/stated/run", **storage)["s3"]
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
    fs = s3_filesystem(s3)
    before = json.loads(fs.cat_file("bucket/stated/run/live.json"))["s3"]
    left = {"identity": runs.run("s3://bucket/stated/run", **storage)["identity"], "complete": False}
    fs.pipe_file("bucket/stated/run/run.json", json.dumps(left).encode())  # left by a start that was killed
    done = run_job(*words, **s3 | {"RAY_ADDRESS": "local"})
    assert done.returncode == 0, done.stderr
    after = runs.run("s3://bucket/stated/run", **storage)["s3"]
    assert not Counter(before) - Counter(after)
    assert after["ListObjectsV2"] > before["ListObjectsV2"]
    assert "S3, all starts" in run_job("status", "s3://bucket/stated/run", **s3).stdout


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

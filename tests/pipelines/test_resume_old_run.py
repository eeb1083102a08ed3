"""Runs that version 0.1 made are continued. `fixtures/run-0.1` has one of each pipeline and the corpus behind them."""

import importlib.metadata
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import Job, s3_filesystem
from videolavit.records.identity import library_versions

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-0.1"
BASE = "bucket/old"
URL = f"s3://{BASE}"
RUNS = {
    "decompose": ("clips-run", "clips", ("videos", "manifest.jsonl", "pack.tar"), ()),
    "tokenize": (
        "tokens-run",
        "tokens",
        ("pictures", "texts.jsonl", "pictures.parquet", "pack.tar"),
        ("--model", "tiny"),
    ),
}


@pytest.fixture(scope="module")
def old_bucket(s3: dict[str, str]) -> Iterator[Any]:
    """The fixture in a bucket, as it was when the runs were made: sample ids come from its addresses."""
    fs = s3_filesystem(s3)
    for file in FIXTURE.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"{BASE}/{file.relative_to(FIXTURE)}", file.read_bytes())
    yield fs
    fs.rm(BASE, recursive=True)


def _command(job: str) -> list[str]:
    run, _, inputs, options = RUNS[job]
    named = [f"{URL}/corpus/{name}" for name in inputs]
    if job == "tokenize":
        named = [f"{URL}/clips-run", *named]
    return [job, "--input", *named, "--output", f"{URL}/{run}", "--segment-seconds", "8", *options]


def _set_versions(fs: Any, run: str, **versions: str) -> None:
    """The identity of the run with the versions of this machine, and others where they are given."""
    path = f"{BASE}/{run}/run.json"
    found = json.loads(fs.cat_file(path))
    ours = library_versions()
    found["identity"] |= ours | versions
    for name in ("torch", "numpy"):
        if name in found["identity"]:
            found["identity"][name] = importlib.metadata.version(name)
    fs.pipe_file(path, json.dumps(found).encode())


def _rows(data: bytes) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(data)).to_pylist()


@pytest.mark.parametrize("job", ["decompose", "tokenize"])
def test_a_run_of_version_0_1_is_continued(job: str, old_bucket: Any, s3: dict[str, str], run_job: Job) -> None:
    """Missing shards come back with the rows that they had; the others are not touched, and nothing is planned."""
    fs, (run, kind, _, _) = old_bucket, RUNS[job]
    _set_versions(fs, run)
    shards = sorted(fs.ls(f"{BASE}/{run}/{kind}", detail=False))
    kept, lost = shards[::2], shards[1::2]
    assert kept
    assert lost
    before = {name: fs.cat_file(name) for name in shards}
    fs.rm(lost)
    plans = fs.find(f"{BASE}/{run}/plan")
    done = run_job(*_command(job), **s3)
    assert done.returncode == 0, done.stderr
    fs.invalidate_cache()
    assert fs.find(f"{BASE}/{run}/plan") == plans
    assert sorted(fs.ls(f"{BASE}/{run}/{kind}", detail=False)) == shards
    for name in kept:
        assert fs.cat_file(name) == before[name]
    for name in lost:
        assert _rows(fs.cat_file(name)) == _rows(before[name])
    stored = json.loads((FIXTURE / run / "run.json").read_text())["counts"]
    counts = json.loads(fs.cat_file(f"{BASE}/{run}/run.json"))["counts"]
    timed = {"core_hours"}
    assert {name: counts[name] for name in stored if name not in timed} == {
        name: stored[name] for name in stored if name not in timed
    }


def test_a_run_of_another_pillow_is_continued_where_that_is_accepted(
    old_bucket: Any, s3: dict[str, str], run_job: Job
) -> None:
    fs, (run, kind, _, _) = old_bucket, RUNS["decompose"]
    _set_versions(fs, run, pillow="11.0.0")
    lost = sorted(fs.ls(f"{BASE}/{run}/{kind}", detail=False))[-1]
    before = _rows(fs.cat_file(lost))
    fs.rm(lost)
    refused = run_job(*_command("decompose"), **s3)
    assert refused.returncode == 2
    assert "pillow: 11.0.0 ->" in refused.stderr
    assert "pillow (accept_changes)" in refused.stderr
    accepted = run_job(*_command("decompose"), "--accept-changes", "pillow", **s3)
    assert accepted.returncode == 0, accepted.stderr
    fs.invalidate_cache()
    assert _rows(fs.cat_file(lost)) == before
    metadata = pq.read_metadata(io.BytesIO(fs.cat_file(lost))).metadata
    assert json.loads(metadata[b"videolavit.made_by"])["pillow"] == library_versions()["pillow"]
    again = run_job(*_command("decompose"), **s3)  # accepted changes stay accepted
    assert again.returncode == 0, again.stderr

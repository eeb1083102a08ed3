"""SIGKILL at any moment, then the same command again: every planned sample exactly once, with the same content.

The crash points follow the order of a run: while it plans, before the first commit, between commits, at the last one.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.faults import STOP_AFTER
from tests import runs
from tests.conftest import ROOT, Job, command, moving_texture, s3_filesystem, wait_for
from tests.faulty_proxy import FaultyProxy
from videolavit.media import write_mp4

NUM_VIDEOS = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough work to be killed in: 16 videos, in some shards, and two that are rejected."""
    folder = tmp_path_factory.mktemp("kill-corpus")
    write_mp4(moving_texture(24 * 20, 288, 352, 1), folder / "video00.mp4", 24)
    for index in range(1, NUM_VIDEOS):
        os.link(folder / "video00.mp4", folder / f"video{index:02d}.mp4")
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    return folder


@pytest.fixture(scope="module")
def undisturbed_run(on_head: Job, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    done = on_head("decompose", "--input", corpus, "--output", output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def undisturbed(undisturbed_run: Path) -> dict[str, str]:
    samples = runs.samples(str(undisturbed_run))
    assert len(samples) == NUM_VIDEOS
    assert len(runs.rejects(str(undisturbed_run))) == 2
    return samples


class Started:
    """A job in its own process."""

    def __init__(self, corpus: Path, output: str, environment: dict[str, str]) -> None:
        self.arguments = ("decompose", "--input", corpus, "--output", output)
        self.output = output
        self.process = subprocess.Popen(
            command(*self.arguments), cwd=ROOT, env=os.environ | environment, stderr=subprocess.DEVNULL
        )

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(lambda: self.process.poll() is not None or condition(), what)
        assert self.process.poll() is None, "the job ended before it could be killed"

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def decoders() -> list[psutil.Process]:
    """Child processes that decode, of whatever actor on the tests' Ray head; never another job's."""
    return below_head("read_clips")


def actors() -> list[psutil.Process]:
    """Worker processes of the tests' Ray head that hold a shard-making actor."""
    return below_head("ShardMaker")


def below_head(word: str) -> list[psutil.Process]:
    """Processes of the tests' Ray head whose command line has a word."""
    below = psutil.Process(int(os.environ["TESTS_RAY_HEAD"])).children(recursive=True)
    return [process for process in below if word in _command_line(process)]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def start(corpus: Path, ray_head: str, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    jobs: list[Started] = []

    def start(**environment: str) -> Started:
        jobs.append(Started(corpus, str(tmp_path / "out"), {"RAY_ADDRESS": ray_head} | environment))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            job.kill()


def _check(output: str, undisturbed: dict[str, str]) -> None:
    assert runs.samples(output) == undisturbed
    assert len({row["sample_id"] for row in runs.rejects(output)}) == len(runs.rejects(output)) == 2
    counts = runs.run(output)["counts"]
    assert counts["planned"] == counts["samples"] + counts["rejects"] == NUM_VIDEOS + 2


def test_driver_killed_at_every_stage(
    start: Callable[..., Started], on_head: Job, undisturbed: dict[str, str], undisturbed_run: Path
) -> None:
    """While planning, before the first commit, and between commits: four kills of one run, then its completion."""
    job = start()
    job.wait_until((Path(job.output) / "run.json").exists, "the run did not start")
    job.kill()
    assert not (Path(job.output) / "plan").exists()

    shards = len(runs.shards(str(undisturbed_run)))
    for commits in (0, 1, shards // 2):
        job = start()
        job.wait_until(
            lambda: bool(decoders()) and len(runs.shards(job.output)) >= commits,  # noqa: B023
            f"never at {commits} commits",
        )
        job.kill()
        kept = {name: Path(name).stat().st_mtime_ns for name in runs.shards(job.output)}
        assert len(kept) < shards, "nothing was left to do"
        assert runs.samples(job.output).items() <= undisturbed.items()

    done = on_head(*job.arguments)
    assert done.returncode == 0, done.stderr
    _check(job.output, undisturbed)
    assert kept == {name: Path(name).stat().st_mtime_ns for name in kept}, "committed work was computed again"


def test_driver_killed_with_a_ray_of_its_own(
    start: Callable[..., Started], run_job: Job, undisturbed: dict[str, str]
) -> None:
    """Ray started for the job alone, as on a laptop: the whole of it dies with the driver."""
    job = start(RAY_ADDRESS="local")
    job.wait_until(lambda: len(runs.shards(job.output)) >= 2, "no such moment")
    job.kill()
    done = run_job(*job.arguments, RAY_ADDRESS="local")
    assert done.returncode == 0, done.stderr
    _check(job.output, undisturbed)


def test_workers_killed(start: Callable[..., Started], undisturbed: dict[str, str]) -> None:
    """A decoding child, then a whole actor: the same start goes on and ends complete."""
    job = start()
    job.wait_until(lambda: len(decoders()) == 2, "no decoders")
    decoders()[0].kill()
    job.wait_until(lambda: len(runs.shards(job.output)) >= 3, "no progress after a decoder was killed")
    victims = actors()
    assert victims
    victims[0].kill()
    assert job.process.wait(120) == 0
    _check(job.output, undisturbed)


def test_two_runs_at_once(start: Callable[..., Started], on_head: Job, undisturbed: dict[str, str]) -> None:
    """Started together, one may ask to be started again, because the other has planned; no sample is doubled."""
    jobs = [start(), start()]
    ends = sorted(job.process.wait(120) for job in jobs)
    assert ends in ([0, 0], [0, 2])
    assert on_head(*jobs[0].arguments).returncode == 0
    _check(jobs[0].output, undisturbed)


def test_on_s3(
    start: Callable[..., Started],
    run_job: Job,
    corpus: Path,
    s3: dict[str, str],
    undisturbed_run: Path,
) -> None:
    """Source and output on S3, killed and continued; the content is that of the local run."""
    fs = s3_filesystem(s3)
    for name in sorted(corpus.iterdir()):
        if name.stem in ("video00", "video01", "video02", "video03", "video04", "video05", "empty", "noise"):
            fs.put_file(str(name), f"bucket/corpus/{name.name}")
    storage = {
        "key": s3["AWS_ACCESS_KEY_ID"],
        "secret": s3["AWS_SECRET_ACCESS_KEY"],
        "endpoint_url": s3["AWS_ENDPOINT_URL"],
    }
    url = "s3://bucket/run"
    arguments = ("decompose", "--input", "s3://bucket/corpus", "--output", url)
    job = subprocess.Popen(
        command(*arguments), cwd=ROOT, env=os.environ | s3 | {"RAY_ADDRESS": "local"}, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: job.poll() is not None or len(runs.shards(url, **storage)) >= 1, "no progress on S3")
    assert job.poll() is None
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    done = run_job(*arguments, RAY_ADDRESS="local", **s3)
    assert done.returncode == 0, done.stderr
    found = runs.samples(url, **storage)
    assert len(found) == 6
    assert set(runs.contents(url, **storage)) == set(runs.contents(str(undisturbed_run)))
    assert {row["error_type"] for row in runs.rejects(url, **storage)} == {"SourceEmpty", "UnknownFormat"}
    assert b"secret" not in fs.cat_file("bucket/run/run.json")
    assert b"data:image/jpeg" in fs.cat_file("bucket/run/report.html")


def test_workers_without_credentials_for_the_output_end_the_run(on_head: Job, corpus: Path, s3: dict[str, str]) -> None:
    """Credentials that the driver has and the nodes lack."""
    url, arguments = "s3://bucket/without-credentials", ("--input", corpus, "--s3-endpoint", s3["AWS_ENDPOINT_URL"])
    storage = {"key": s3["AWS_ACCESS_KEY_ID"], "secret": s3["AWS_SECRET_ACCESS_KEY"]}
    storage["endpoint_url"] = s3["AWS_ENDPOINT_URL"]
    done = on_head("decompose", *arguments, "--output", url, **s3)
    assert done.returncode == 1
    assert "the output cannot be written: " in done.stderr
    assert "credentials" in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert runs.shards(url, **storage) == []


def test_workers_that_may_not_write_decode_nothing(run_job: Job, corpus: Path, s3: dict[str, str]) -> None:
    """Credentials that read the output on the nodes and do not write it: shards fail before their first sample."""
    url, storage = "s3://bucket/read-only", {"key": s3["AWS_ACCESS_KEY_ID"], "secret": s3["AWS_SECRET_ACCESS_KEY"]}
    storage["endpoint_url"] = s3["AWS_ENDPOINT_URL"]
    with contextlib.closing(FaultyProxy(s3["AWS_ENDPOINT_URL"])) as proxy:
        proxy.denies = lambda method, path: method == "PUT" and ("/.writable-" in path or "/clips/" in path)
        environment = s3 | {"AWS_ENDPOINT_URL": proxy.url, "RAY_ADDRESS": "local"}
        done = run_job("decompose", "--input", corpus, "--output", url, **environment)
        tries = [path for method, path in proxy.asked if method == "PUT" and "/.writable-" in path]
    assert done.returncode == 1
    assert "the output cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr
    assert len(tries) >= STOP_AFTER
    assert runs.shards(url, **storage) == []
    counts = runs.run(url, **storage)["counts"]
    assert (counts["samples"], counts["rejects"]) == (0, 0)

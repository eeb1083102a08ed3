"""Trainings whose folders, models and inputs are on a real S3 server: killed in a save, cut off, started twice, and on
several ranks."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.conftest import ROOT, Job, command, environment_without_ray, free_port, s3_filesystem, wait_for
from tests.faulty_proxy import FaultyProxy, status
from tests.training.test_trainer import Killed, losses, run, same, settings
from tests.training.token_runs import random_rows, write_run
from tests.training.toys import toy
from videolavit.models.folder import ModelFolder
from videolavit.records.storage import StorageDown, StorageError, StorageSettings
from videolavit.records.traffic import RECEIVED, S3_TRAFFIC
from videolavit.training import remote as remote_module
from videolavit.training.checkpoint import CheckpointError
from videolavit.training.components.vae import VAETraining
from videolavit.training.lease import LEASE, FolderInUse
from videolavit.training.parallel import Ranks
from videolavit.training.rejects import SKIPPED
from videolavit.training.remote import RemoteRun, brought_here
from videolavit.training.replay import replay
from videolavit.training.settings import TrainInputs, TrainSettings
from videolavit.training.task import TrainTask
from videolavit.training.trainer import Stopped, Trainer

LIMIT = 240.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "PAUSES", (0.2,))
    monkeypatch.setattr(remote_module, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(remote_module, "LEASE_SECONDS", 2.0)


@pytest.fixture
def url(s3: dict[str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return "s3://bucket/" + "".join(one if one.isalnum() else "-" for one in request.node.name)


def names(url: str, s3: dict[str, str]) -> set[str]:
    """Files below an address, as another client sees them."""
    fs = s3_filesystem(s3)
    prefix = url.removeprefix("s3://")
    return {str(path).removeprefix(f"{prefix}/") for path in fs.find(prefix)}


def committed(url: str, s3: dict[str, str]) -> list[int]:
    found = [name.split("/") for name in names(url, s3)]
    return sorted(int(parts[1][5:]) for parts in found if parts[0] == "checkpoints" and parts[-1] == "manifest.json")


def trained(url: str, local: Path, stop: int | None = None, **changes: Any) -> Trainer:
    """Trains the toy in a folder that is sent to an address; with `stop`, its process dies there."""
    lines: list[str] = []
    place = RemoteRun(url, StorageSettings(), local, lines.append)
    with place.leased(), contextlib.suppress(Killed):
        place.fetch()
        place.sweep()
        trainer = Trainer(
            toy(), settings(**changes), Ranks(), local, remote=place, on_progress=lambda one: lines.append(one.message)
        )
        trainer.lines = lines  # type: ignore[attr-defined]
        with place.sending():
            if stop is not None:
                trainer._train = dying(trainer, stop)  # type: ignore[method-assign]
            trainer.run()
    trainer._checkpoints._writer.shutdown()
    return trainer


def dying(trainer: Trainer, stop: int) -> Callable[..., Any]:
    train = trainer._train

    def train_or_die(*args: Any) -> Any:
        if trainer.step == stop:
            trainer._checkpoints.commit(wait=True)
            raise Killed
        return train(*args)

    return train_or_die


def test_a_run_goes_on_from_the_storage_alone(url: str, s3: dict[str, str], tmp_path: Path) -> None:
    """A first machine is gone; old checkpoints are removed, and nothing else is there."""
    whole = run(tmp_path / "whole")
    trained(url, tmp_path / "one", stop=12)
    assert committed(url, s3) == [5, 10]
    second = trained(url, tmp_path / "two")
    assert any("continues from step-00000010" in line for line in second.lines)  # type: ignore[attr-defined]
    same(whole, second)
    assert losses(tmp_path / "two") == losses(tmp_path / "whole")
    assert committed(url, s3) == [15, 20]
    found = names(url, s3)
    assert len([name for name in found if name.startswith("checkpoints/")]) == 4
    assert {name for name in found if not name.startswith("checkpoints/")} == {"metrics.jsonl"}
    logged = s3_filesystem(s3).cat_file(f"{url}/metrics.jsonl")
    assert logged == (tmp_path / "two" / "metrics.jsonl").read_bytes()


BROKEN = frozenset({3, 9, 20})
"""Samples that cannot be used."""

CHANGES: dict[str, Any] = {"keep_best": "validation/loss", "validate_every": 5, "micro_batch": 4}


def _rank(rank: int, world: int, port: int, url: str, folder: Path, stop: int) -> None:
    """Trains the toy up to a step, on a rank with a folder of its own; the first one sends what changes, as under Ray
    Train."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    place = RemoteRun(url, StorageSettings(), folder / str(rank))
    place.local.mkdir(parents=True)
    place.fetch()
    trainer = Trainer(
        toy(broken=BROKEN),
        settings(**CHANGES),
        Ranks.here("cpu"),
        place.local,
        remote=place,
        should_stop=lambda: trainer.step == stop,
    )
    with contextlib.suppress(Stopped), place.sending() if rank == 0 else contextlib.nullcontext():
        trainer.run()
    dist.destroy_process_group()


def test_ranks_with_folders_of_their_own_go_on_from_the_storage(url: str, s3: dict[str, str], tmp_path: Path) -> None:
    """Two ranks, then one and two again, each from the storage alone; rejects of all ranks are kept."""
    for world, stop in ((2, 8), (1, 13), (2, 20)):
        mp.spawn(_rank, (world, free_port(), url, tmp_path / str(stop), stop), nprocs=world)
        assert committed(url, s3)[-1] == stop
    whole = run(tmp_path / "whole", toy(broken=BROKEN), **CHANGES)
    brought = RemoteRun(url, StorageSettings(), tmp_path / "brought")
    brought.fetch()
    ours = Trainer(toy(broken=BROKEN), settings(**CHANGES), Ranks(), brought.local, remote=brought)
    same(whole, ours, rtol=1e-3, atol=1e-5)
    for file in (SKIPPED, "metrics.jsonl"):
        assert steps_of(ours.folder / file) == steps_of(whole.folder / file), file


WIDTH = 20_000
"""Width of a toy whose checkpoint is some megabytes, much more than the headers of its files."""


def _wide_rank(rank: int, world: int, port: int, url: str, folder: Path, stop: int) -> None:
    """Trains a wide toy up to a step; writes where it began and the bytes that it received for that."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    place = RemoteRun(url, StorageSettings(), folder / str(rank))
    place.local.mkdir(parents=True)
    place.fetch()
    S3_TRAFFIC.take()
    trainer = Trainer(
        toy(width=WIDTH),
        settings(steps=15),
        Ranks.here("cpu"),
        place.local,
        remote=place,
        should_stop=lambda: trainer.step == stop,
    )
    begun = {"step": trainer.step, "received": S3_TRAFFIC.take().get(RECEIVED, 0)}
    (folder / f"{rank}.json").write_text(json.dumps(begun))
    with contextlib.suppress(Stopped):
        trainer.run()
    dist.destroy_process_group()


def test_a_rank_brings_its_share_of_a_checkpoint(url: str, s3: dict[str, str], tmp_path: Path) -> None:
    """Verifies its share of the files and brings the tensors that it holds, also where another number of ranks saved
    them, and where the newest checkpoint is broken."""

    def ranks(world: int, stop: int) -> list[dict[str, int]]:
        folder = tmp_path / str(stop)
        mp.spawn(_wide_rank, (world, free_port(), url, folder, stop), nprocs=world)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]

    ranks(4, 5)
    size = s3_filesystem(s3).du(f"{url}/checkpoints/step-00000005")
    for begun in ranks(4, 10):
        assert begun["step"] == 5
        assert begun["received"] < 0.6 * size  # a quarter to verify, a quarter to load, headers
    fs = s3_filesystem(s3)
    broken = next(name for name in names(url, s3) if name.startswith("checkpoints/step-00000010/") and "00002" in name)
    content = fs.cat_file(f"{url}/{broken}")
    fs.pipe_file(f"{url}/{broken}", content[:-1] + bytes([content[-1] ^ 1]))
    assert {begun["step"] for begun in ranks(2, 15)} == {5}
    whole = run(tmp_path / "whole", toy(width=WIDTH), steps=15)
    brought = RemoteRun(url, StorageSettings(), tmp_path / "brought")
    brought.fetch()
    ours = Trainer(toy(width=WIDTH), settings(steps=15), Ranks(), brought.local, remote=brought)
    assert ours.step == 15
    same(whole, ours, rtol=1e-3, atol=1e-5)


def steps_of(file: Path) -> list[int]:
    """Steps of the lines of a log, in order."""
    return sorted(json.loads(line)["step"] for line in file.read_text().splitlines())


def test_what_killed_starts_have_left_is_removed(url: str, s3: dict[str, str], tmp_path: Path) -> None:
    """Files without a manifest, files that the manifest does not name, and parts of an upload."""
    trained(url, tmp_path / "one", steps=10)
    fs = s3_filesystem(s3)
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    fs.pipe_file(f"{url}/checkpoints/step-00000015/0000-shard", b"half of it")
    fs.pipe_file(f"{url}/checkpoints/step-00000010/0000-shard", b"of another start")
    before = names(url, s3)
    key = f"{prefix}/checkpoints/step-00000015/1111-shard"
    fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)["Uploads"]
    RemoteRun(url, StorageSettings(), tmp_path / "two").sweep()
    assert before - names(url, s3) == {f"checkpoints/step-000000{step}/0000-shard" for step in ("10", "15")}
    assert not fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix).get("Uploads")
    assert committed(url, s3) == [5, 10]


def test_a_broken_checkpoint_is_skipped_and_written_again(url: str, s3: dict[str, str], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    trained(url, tmp_path / "one", stop=12)
    fs = s3_filesystem(s3)
    broken = next(name for name in names(url, s3) if name.startswith("checkpoints/step-00000010/") and "shard" in name)
    fs.pipe_file(f"{url}/{broken}", b"x" + fs.cat_file(f"{url}/{broken}")[1:])
    second = trained(url, tmp_path / "two", stop=13)
    lines: list[str] = second.lines  # type: ignore[attr-defined]
    assert any("skipped the checkpoint step-00000010" in line for line in lines)
    assert any("continues from step-00000005" in line for line in lines)
    assert committed(url, s3) == [5, 10]
    third = trained(url, tmp_path / "three")
    assert any("continues from step-00000010" in line for line in third.lines)  # type: ignore[attr-defined]
    same(whole, third)


def test_a_manifest_of_another_start_is_not_replaced(url: str, s3: dict[str, str], tmp_path: Path) -> None:
    """Two that both take themselves for the only one: the second to commit a step ends, and harms nothing."""
    one, two = (RemoteRun(url, StorageSettings(), tmp_path / name) for name in ("one", "two"))
    first = Trainer(toy(), settings(steps=5), Ranks(), tmp_path / "one", remote=one)
    second = Trainer(toy(), settings(steps=5), Ranks(), tmp_path / "two", remote=two)
    first.run()
    before = {name: s3_filesystem(s3).cat_file(f"{url}/{name}") for name in names(url, s3) if "checkpoints" in name}
    with pytest.raises(FolderInUse, match=r"another training has written step-00000005 to s3://bucket/"):
        second.run()
    assert {name: s3_filesystem(s3).cat_file(f"{url}/{name}") for name in before} == before
    same(trained(url, tmp_path / "three", steps=5), first)


def test_one_run_at_a_time(url: str, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (RemoteRun(url, StorageSettings(), tmp_path / name) for name in ("one", "two"))
    with one.leased():
        assert LEASE in names(url, s3)
        with (
            pytest.raises(FolderInUse, match=f"another training writes to {url} \\(process {os.getpid()} on "),
            two.leased(),
        ):
            pass
    assert LEASE not in names(url, s3)
    gone = subprocess.run(["true"], check=True) and {"owner": "0", "host": "elsewhere", "pid": 1, "beat": 0}
    s3_filesystem(s3).pipe_file(f"{url}/{LEASE}", json.dumps(gone).encode())
    started = time.monotonic()
    with two.leased():  # after a while without a sign of life
        assert time.monotonic() - started > 1.5
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = json.loads(remote_module._lease({"owner": "0", "host": os.uname().nodename, "pid": ended.pid}, 0))
    s3_filesystem(s3).pipe_file(f"{url}/{LEASE}", json.dumps(here).encode())
    started = time.monotonic()
    with two.leased():  # at once, where its process is known to have ended
        assert time.monotonic() - started < 1.5


@pytest.fixture
def proxy(s3: dict[str, str]) -> Iterator[FaultyProxy]:
    made = FaultyProxy(s3["AWS_ENDPOINT_URL"])
    yield made
    made.close()


def test_a_server_that_fails_for_a_while_is_waited_for(
    url: str, s3: dict[str, str], proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a checkpoint is written; not one step is lost, and nobody is trained on nothing."""
    whole = run(tmp_path / "whole")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    failing = threading.Event()
    failed: list[str] = []

    def choose(method: str, path: str) -> Any:
        if "step-00000010" in path and not failed:
            failing.set()
            threading.Timer(6.0, failing.clear).start()
        if failing.is_set():
            failed.append(path)
            return status(503, "SlowDown")
        return None

    proxy.choose = choose
    trainer = trained(url, tmp_path / "run")
    assert failed
    same(whole, trainer)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert committed(url, s3) == [15, 20]


def test_a_storage_that_stays_away_ends_the_run(
    url: str, s3: dict[str, str], proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "PATIENCE", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    proxy.choose = lambda method, path: status(500, "InternalError") if "step-00000010" in path else None
    with pytest.raises(StorageDown, match=r"s3://bucket/.* \(for \d minutes\)"):
        trained(url, tmp_path / "run")
    proxy.choose = lambda method, path: None
    same(run(tmp_path / "whole"), trained(url, tmp_path / "two"))


def test_places_that_cannot_be_written_to_are_refused_before_training(url: str, tmp_path: Path) -> None:
    for address, expected in (
        ("nosuch://run", "cannot use nosuch://run"),
        ("https://localhost:1/run", "cannot"),
    ):
        with pytest.raises(StorageError, match=expected):
            RemoteRun(address, StorageSettings(), tmp_path).claim()


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ModelFolder("tiny")
    return write_run(tmp_path_factory.mktemp("run") / "tokens", model, random_rows(model, 40), shards=2)


def arguments(tokens: Path | str, output: Path | str, *more: Any) -> list[Any]:
    options = {"steps": 12, "batch": 4, "micro-batch": 2, "log-every": 1, "save-every": 4, "trackers": "[]"}
    named = [word for name, value in options.items() for word in (f"--{name}", value)]
    length = ["--objective.sequence_length", 256]
    return ["train", "language-model", "--model", "tiny", "--input", tokens, "--output", output, *named, *length, *more]


@pytest.mark.slow
def test_the_command_killed_in_a_save_goes_on_bit_for_bit(
    url: str, s3: dict[str, str], tokens: Path, tmp_path: Path, run_job: Job
) -> None:
    """On S3 with model, inputs and output; then a step of it comes again from there."""
    whole = tmp_path / "whole"
    assert run_job(*arguments(tokens, whole)).returncode == 0
    fs = s3_filesystem(s3)
    fs.put(str(tokens), f"{url}-tokens", recursive=True)
    words = arguments(f"{url}-tokens", url)
    job = subprocess.Popen(command(*words), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT
    try:
        while not any("step-00000008/" in name for name in names(url, s3)):
            assert job.poll() is None
            assert time.monotonic() < deadline
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait()
    done = run_job(*words)
    assert done.returncode == 0, done.stderr
    assert "continues from step-" in done.stderr
    assert done.stdout.strip() == f"{url}/model"
    lines = [json.loads(line) for line in fs.cat_file(f"{url}/metrics.jsonl").decode().splitlines()]
    ours = [(line["step"], line["loss"], line["grad_norm"]) for line in lines]
    theirs = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert ours == [(line["step"], line["loss"], line["grad_norm"]) for line in theirs]
    assert committed(url, s3) == [8, 12]
    name = "model/language_model/model.safetensors"
    assert fs.cat_file(f"{url}/{name}") == (whole / name).read_bytes()
    again = replay(url, 10)
    assert (again.loss, again.grad_norm) == ours[9][1:]
    status_of = run_job("status", url)
    assert "complete" in status_of.stdout
    more = ["--continue-from", url, "--model", f"{url}/model", "--steps", 1]
    continued = run_job(*arguments(f"{url}-tokens", tmp_path / "continued", *more))
    assert continued.returncode == 0, continued.stderr
    assert "begins with the weights of" in continued.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_killed_in_a_save_go_on(url: str, s3: dict[str, str], tokens: Path, tmp_path: Path) -> None:
    """Two workers, each with a folder of its own; all processes of the first start are killed."""
    whole = tmp_path / "whole"
    words = [*arguments(tokens, whole, "--workers", 2), "--cpus-per-worker", 0.5]
    subprocess.run(command(*words), cwd=ROOT, env=environment_without_ray(), check=True, timeout=LIMIT)
    words[words.index(whole)] = url
    environment = environment_without_ray() | s3
    job = subprocess.Popen(command(*words), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: any("step-00000008/" in name for name in names(url, s3)), "no save", LIMIT)
        assert job.poll() is None
    finally:
        for process in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        job.wait()
    done = subprocess.run(command(*words), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert "continues from step-" in done.stderr
    assert done.stdout.strip() == f"{url}/model"
    fs = s3_filesystem(s3)
    ours = [json.loads(line) for line in fs.cat_file(f"{url}/metrics.jsonl").decode().splitlines()]
    theirs = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [(one["step"], one["loss"]) for one in ours] == [(one["step"], one["loss"]) for one in theirs]
    assert committed(url, s3) == [8, 12]
    name = "model/language_model/model.safetensors"
    assert fs.cat_file(f"{url}/{name}") == (whole / name).read_bytes()
    assert json.loads(fs.cat_file(f"{url}/live.json"))["ended"]


def test_a_model_that_is_not_there_is_named(url: str, s3: dict[str, str], tokens: Path, run_job: Job) -> None:
    done = run_job(*arguments(tokens, url, "--model", "s3://bucket/nowhere"))
    assert done.returncode == 2
    assert "no model in s3://bucket/nowhere: model.json is missing" in done.stderr
    with pytest.raises(CheckpointError, match="no folder of a training"):
        replay(url, 1)


def test_ranks_of_a_machine_bring_a_model_once(
    url: str, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fs, place = s3_filesystem(s3), url.removeprefix("s3://")
    for name, content in {"model.json": b"{}", "part/weights": b"1"}.items():
        fs.pipe_file(f"{place}/{name}", content)
    with contextlib.closing(FaultyProxy(s3["AWS_ENDPOINT_URL"])) as proxy:
        inputs = TrainInputs(train=[], storage=StorageSettings(s3_endpoint=proxy.url))
        task = TrainTask("vae", url, inputs, VAETraining(), TrainSettings(), str(tmp_path))
        with brought_here(task) as one, brought_here(task) as other:
            assert one.model == other.model
            assert {path.name for path in Path(one.model).rglob("*")} == {"model.json", "part", "weights"}
            fs.pipe_file(f"{place}/model.json", b'{"changed": 1}')
            with brought_here(task) as changed:
                assert changed.model != one.model
        asked = [path for method, path in proxy.asked if method == "GET" and path.endswith("weights")]
    assert len(asked) == 2, "once for each model"
    assert list(tmp_path.iterdir()) == []

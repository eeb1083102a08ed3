"""Faults of the environment: no sample is rejected for them, the run waits or stops, and says why."""

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import faults
from pipelines.common import SampleWork, WorkerSettings
from pipelines.faults import FailingStorage, FaultWitness, StorageFails, StorageStopped, failing_storage
from tests import runs
from tests.conftest import Job, s3_filesystem
from tests.disks import disk
from tests.faulty_proxy import Fault, FaultyProxy, status
from tests.tokens import picture
from videolavit.progress import Progress
from videolavit.records.kinds import read_clips
from videolavit.records.rows import PlanRow
from videolavit.records.samples import SampleSettings
from videolavit.records.source_files import isolated
from videolavit.records.storage import StorageSettings
from videolavit.sandbox.errors import ProcessNotStarted


def row_of(path: Path, planned: float | None = 4.0) -> PlanRow:
    return PlanRow(source=str(path), url=str(path), kind="video", sample_id=path.name, planned_seconds=planned)


def test_a_missing_file_is_believed_while_others_can_be_read(tmp_path: Path) -> None:
    there, gone = tmp_path / "there.mp4", tmp_path / "gone.mp4"
    there.write_bytes(b"x")
    rows = [row_of(there), row_of(gone)]
    witness = FaultWitness(StorageSettings(), believe=False)
    witness.check(rows[1], "SourceMissing", rows)
    there.unlink()
    for error in ("SourceMissing", "SourceForbidden", "SourceUnreadable"):
        with pytest.raises(StorageFails) as failed:
            witness.check(rows[1], error, rows)
    witness.check(rows[1], "CorruptVideo", rows)
    witness.check(rows[1], "SourceMissing", [rows[1], replace(rows[0], planned_seconds=None)])  # never seen
    FaultWitness(StorageSettings(), believe=True).check(rows[1], "SourceMissing", rows)
    found = failing_storage(f"00000-000001.parquet: {failed.value}")
    assert found is not None
    assert (found.url, "no such file" in found.reason) == (str(there), True)
    assert failing_storage("00000-000001.parquet: ValueError('x')") is None


def test_the_last_good_file_is_the_witness(tmp_path: Path) -> None:
    """Also for images, whose headers no plan reads, and in shards of one row."""
    good, gone = tmp_path / "good.png", tmp_path / "gone.png"
    good.write_bytes(b"x")
    witness = FaultWitness(StorageSettings(), believe=False)
    witness.check(row_of(gone, planned=0.0), "SourceMissing", [])
    witness.read(row_of(good, planned=0.0))
    witness.check(row_of(gone, planned=0.0), "SourceMissing", [])
    good.unlink()
    with pytest.raises(StorageFails):
        witness.check(row_of(gone, planned=0.0), "SourceMissing", [])


def test_a_storage_that_has_given_nothing_yet_is_asked_for_other_files(tmp_path: Path) -> None:
    """Images, whose headers no plan reads."""
    paths = [tmp_path / f"{name}.png" for name in range(20)]
    rows = [row_of(path, planned=0.0) for path in paths]
    witness = FaultWitness(StorageSettings(), believe=False)
    with pytest.raises(StorageFails):
        witness.check(rows[0], "SourceMissing", rows)
    paths[1].write_bytes(b"x")  # the first of the files that are asked for
    FaultWitness(StorageSettings(), believe=False).check(rows[0], "SourceMissing", rows)
    alone = FaultWitness(StorageSettings(), believe=False)
    for row in rows[2:4]:
        alone.check(row, "SourceMissing", [row])
    with pytest.raises(StorageFails):
        alone.check(rows[4], "SourceMissing", [rows[4]])


def test_the_file_that_holds_a_sample_is_its_witness(tmp_path: Path) -> None:
    """Members of a tar, which was listed when it was planned."""
    tar = tmp_path / "a.tar"
    member = replace(row_of(tar, planned=0.0), source=f"{tar}/b.png", offset=512)
    witness = FaultWitness(StorageSettings(), believe=False)
    with pytest.raises(StorageFails):
        witness.check(member, "SourceMissing", [member])
    tar.write_bytes(b"x")
    witness.check(member, "SourceMissing", [member])


def test_a_storage_that_forbids_everything_for_a_while_rejects_nothing(
    run_job: Job, s3: dict[str, str], tmp_path: Path
) -> None:
    """Secrets that are wrong from the first picture on, and right again later."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        (pictures / f"{number}.png").write_bytes(picture(number))
    s3_filesystem(s3).put(str(pictures), "bucket/forbidden", recursive=True)
    denied, forbidden = list[float](), status(403, "AccessDenied")

    def choose(method: str, path: str) -> Fault | None:
        if ".png" not in path or (denied and time.monotonic() - denied[0] > 20):
            return None
        denied.append(time.monotonic())
        return forbidden

    words = ("tokenize", "--model", "tiny", "--input", "s3://bucket/forbidden", "--output", tmp_path / "run")
    with contextlib.closing(FaultyProxy(s3["AWS_ENDPOINT_URL"])) as proxy:
        proxy.choose = choose
        done = run_job(*words, "--attempts", 1, **s3 | {"AWS_ENDPOINT_URL": proxy.url, "RAY_ADDRESS": "local"})
    assert denied
    assert done.returncode == 0, done.stderr
    assert "waiting for the storage" in done.stderr
    counts = json.loads((tmp_path / "run" / "run.json").read_text())["counts"]
    assert (counts["rejects"], counts["samples"]) == (0, 12)


def test_a_machine_that_starts_no_process_rejects_nothing(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child is started in a folder of its own, for which there may be no room."""
    row, storage = row_of(small_corpus / "video0.mp4"), StorageSettings()
    work = SampleWork(isolated(read_clips, storage), WorkerSettings(), "decompose")
    with disk(tmp_path / "full", "nr_inodes=1") as full, monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(full))
        with pytest.raises(ProcessNotStarted, match="No space left"):
            work(row, SampleSettings(), storage)
    assert work(row, SampleSettings(), storage).num_clips == 1


def test_a_storage_is_waited_for(tmp_path: Path) -> None:
    file, reports = tmp_path / "file", list[Progress]()
    failing = FailingStorage(str(file), "it is away")

    def sleep(seconds: float) -> None:
        if len(reports) == 3:
            file.write_bytes(b"x")

    faults.wait_for_storage(failing, StorageSettings(), reports.append, sleep=sleep)
    assert [one.message.partition(",")[0] for one in reports[:3]] == ["waiting for the storage"] * 3
    assert reports[-1].message == f"{file} can be read again"
    file.unlink()
    with pytest.raises(StorageStopped, match="No sample was rejected for it"):
        faults.wait_for_storage(
            failing, StorageSettings(), reports.append, limit=0.05, sleep=lambda _: time.sleep(0.02)
        )


def test_a_folder_that_goes_away_in_the_middle_rejects_nothing(
    on_head: Job, small_corpus: Path, tmp_path: Path
) -> None:
    """All but one of the planned videos are behind a link that leads nowhere for a while."""
    videos, away, run = tmp_path / "videos", tmp_path / "away", tmp_path / "run"
    shutil.copytree(small_corpus, videos)
    words = ("decompose", "--input", videos, "--output", run, "--attempts", 1)
    assert on_head(*words, "--plan").returncode == 0
    started = threading.Event()

    def take_away() -> None:
        while not (run / "plan").exists() or not any((run / "plan").glob("*.parquet")):
            time.sleep(0.01)
        videos.rename(away)
        started.set()
        time.sleep(15)
        away.rename(videos)

    thread = threading.Thread(target=take_away)
    thread.start()
    done = on_head(*words)
    thread.join()
    assert started.is_set()
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "run.json").read_text())["counts"]["rejects"] == 0
    assert len(runs.samples(str(run))) == len(os.listdir(videos))

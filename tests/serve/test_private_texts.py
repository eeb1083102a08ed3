"""Requests that fail in every way, on a storage of little room: no log says what they were about."""

import base64
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from tests.conftest import wait_for
from tests.disks import disk
from videolavit.models.folder import ModelFolder
from videolavit.models.model_file import finish_model_folder

from .running import Running, picture, serving, video


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Service whose storage is a disk of 24 MiB, and whose model fails at each picture, but not at videos of one."""
    folder = tmp_path_factory.mktemp("small")
    model = folder / "tiny"
    ModelFolder("tiny").save(model)
    config = model / "keyframe_detokenizer" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "nothing"}))
    finish_model_folder(model, ModelFolder("tiny").facts)
    with (
        disk(folder / "disk", "size=24m") as made,
        serving(folder, model=str(model), storage=str(made / "data"), keys=("alice",), lease_seconds=3) as running,
    ):
        yield running


def _locked_database(service: Running, text: str) -> None:
    with contextlib.closing(sqlite3.connect(service.storage / "jobs.sqlite", isolation_level=None)) as other:
        other.execute("begin immediate")
        assert service.post("/v1/videos", json={"prompt": text}).status_code == 503
        other.execute("rollback")


def _full_storage(service: Running, text: str) -> None:
    """An upload and a result that find no room leave nothing; with room again the result is made."""
    file = {"input_reference": picture()}
    job = service.post("/v1/videos", data={"prompt": text}, files=file).json()["id"]
    with _no_room(service.storage):
        before = set((service.storage / "uploads").glob("*"))
        answer = service.post("/v1/videos", data={"prompt": text}, files=file)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert set((service.storage / "uploads").glob("*")) == before
        time.sleep(5)  # the result of the job is finished meanwhile
        assert not list((service.storage / "results").rglob("*.mp4"))
    wait_for(lambda: _status(service, job) in ("completed", "failed"), "the job does not end", 60)
    if _status(service, job) == "completed":
        assert service.get(f"/v1/videos/{job}/content").content[4:8] == b"ftyp"
    assert service.post("/v1/videos", data={"prompt": text}, files=file).status_code == 200


@contextlib.contextmanager
def _no_room(folder: Path) -> Iterator[None]:
    filler = folder.parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass
    try:
        yield
    finally:
        filler.unlink()


def _passed_deadline(service: Running, text: str) -> None:
    body = {"prompt": text, "size": "480x320"}
    answer = service.post("/v1/images/generations", json=body, headers={"X-Deadline-Seconds": "0.2"})
    assert answer.status_code == 504


def _refused_media(service: Running, text: str) -> None:
    assert _ask_about(service, text, b"no video").status_code == 400
    files = {"input_reference": (f"{text}.png", b"no picture", "image/png")}
    job = service.post("/v1/videos", data={"prompt": text}, files=files).json()["id"]
    wait_for(lambda: _status(service, job) == "failed", "the job does not fail", 60)


def _long_prompt(service: Running, text: str) -> None:
    assert service.post("/v1/videos", json={"prompt": text * 500}).status_code == 400


def _model_error(service: Running, text: str) -> None:
    assert service.post("/v1/images/generations", json={"prompt": text}).status_code == 500
    job = service.post("/v1/videos", json={"prompt": text}).json()["id"]
    wait_for(lambda: _status(service, job) == "failed", "the job does not fail", 60)


def _killed_decoder(service: Running, text: str) -> None:
    over = threading.Event()

    def kill() -> None:
        while not over.is_set():
            for process in psutil.Process(service.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if any("read_upload_clips" in word for word in process.cmdline()):
                        process.kill()

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        try:
            answer = _ask_about(service, text, video(seconds=3))
        finally:
            over.set()
        killing.result()
    assert answer.status_code == 400
    assert "SIGKILL" in answer.json()["error"]["message"]


def _killed_replica(service: Running, text: str) -> None:
    (victim,) = service.replicas("LanguageModel")
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 1024, "stream": True}
    with requests.post(
        f"{service.url}/v1/chat/completions", json=body, headers=service.headers(), stream=True, timeout=60
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        victim.kill()
        assert any(b"error" in line for line in lines)


def _ask_about(service: Running, text: str, file: bytes) -> requests.Response:
    url = f"data:video/mp4;base64,{base64.b64encode(file).decode()}"
    parts = [{"type": "text", "text": text}, {"type": "video_url", "video_url": {"url": url}}]
    return service.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": [{"role": "user", "content": parts}]}
    )


def _status(service: Running, job: str) -> str:
    status: str = service.get(f"/v1/videos/{job}").json()["status"]
    return status


@pytest.mark.parametrize(
    "fail",
    [
        _locked_database,
        _full_storage,
        _passed_deadline,
        _refused_media,
        _long_prompt,
        _model_error,
        _killed_decoder,
        _killed_replica,
    ],
    ids=lambda fail: fail.__name__.strip("_"),
)
def test_no_log_holds_the_text_of_a_request_that_fails(small: Running, fail: Callable[[Running, str], None]) -> None:
    text = f"whispered {fail.__name__.replace('_', ' ')}"
    fail(small, text)
    time.sleep(1)  # logs of other processes
    folders = [small.session(), small.storage]
    files = [small.log, *(file for folder in folders for file in folder.rglob("*") if file.is_file())]
    of_jobs = {small.storage / "jobs.sqlite", small.storage / "jobs.sqlite-wal", *small.storage.glob("results/**/*")}
    files = [file for file in files if file not in of_jobs]  # requests, and what results tell of their making
    assert len(files) > 10
    assert [file for file in files if text.encode() in file.read_bytes()] == []
    assert small.storage.stat().st_mode & 0o077 == 0
    assert (small.storage / "jobs.sqlite").stat().st_mode & 0o077 == 0

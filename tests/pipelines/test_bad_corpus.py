"""Bad input in a run: each becomes a typed reject, and the run goes on."""

import gzip
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import runs
from tests.conftest import Job, moving_texture
from tests.media.videos import make, moving
from tests.pipelines.test_kill import decoders
from videolavit.media import write_mp4


def test_each_kind_is_rejected_with_its_reason(on_head: Job, small_corpus: Path, tmp_path: Path) -> None:
    videos, output = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    good = small_corpus / "video3.mp4"
    shutil.copy(good, videos / "good.mp4")
    (videos / "empty.mp4").touch()
    (videos / "noise.mp4").write_bytes(bytes(range(256)) * 9)
    (videos / "text.mp4").write_text("not a video\n")
    (videos / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n")
    (videos / "cut.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    write_mp4(moving_texture(1, 96, 128, 0), videos / "single.mp4", 12)
    make(videos / "sound.m4a", ("-f", "lavfi", "-i", "sine=duration=1"))
    make(videos / "picture.png", (*moving(), "-frames:v", "1"))
    (videos / "packed.tar").write_bytes(gzip.compress(b"x" * 9999))
    with tarfile.open(videos / "captions.tar", "w") as archive:
        archive.add(videos / "text.mp4", "a.txt")
    with tarfile.open(videos / "latin1.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(good, "caf\udce9.mp4")
        archive.add(videos / "noise.mp4", "\udce9.mp4")
        (tmp_path / "half.json").write_text('{"caption": "\\ud83d"}')
        archive.add(tmp_path / "half.json", "caf\udce9.json")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("video\nvideos/nowhere.mp4\n")

    done = on_head("decompose", "--input", videos, manifest, "--output", output)

    assert done.returncode == 0, done.stderr
    reasons = {Path(row["source"]).name: row["error_type"] for row in runs.rejects(str(output))}
    assert reasons == {
        "empty.mp4": "SourceEmpty",
        "noise.mp4": "UnknownFormat",
        "text.mp4": "UnknownFormat",
        "playlist.mp4": "UnknownFormat",
        "cut.mp4": "CorruptVideo",
        "single.mp4": "TooFewFrames",
        "sound.m4a": "NoVideoStream",
        "picture.png": "ForbiddenFormat",
        "packed.tar": "UnknownFormat",
        "captions.tar": "NoVideoStream",
        r"\xe9.mp4": "UnknownFormat",
        "nowhere.mp4": "SourceMissing",
    }
    assert all(row["message"] and row["attempts"] == 1 for row in runs.rejects(str(output)))
    found = {Path(row["source"]).name: row["text"] for row in runs.rows(str(output))}
    assert found == {"good.mp4": None, r"caf\xe9.mp4": r"\xed\xa0\xbd"}
    assert "TooFewFrames" in done.stdout


@pytest.mark.parametrize(
    ("sent", "reason", "attempts"),
    [(signal.SIGSTOP, "TimeLimitExceeded", 1), (signal.SIGKILL, "ProcessDied", 3)],
)
def test_a_decoder_that_hangs_or_dies(
    on_head: Job, tmp_path: Path, sent: signal.Signals, reason: str, attempts: int
) -> None:
    """Every decoding process is stopped or killed from outside, as a poisonous file would do. No endless retries."""
    (tmp_path / "in").mkdir()
    write_mp4(moving_texture(24 * 30, 288, 352, 1), tmp_path / "in" / "a.mp4", 24)
    arguments = ("decompose", "--input", tmp_path / "in", "--output", tmp_path / "out", "--time-limit", 15)

    done = _while_sending(sent, lambda: on_head(*arguments))

    assert done.returncode == 0, done.stderr
    (reject,) = runs.rejects(str(tmp_path / "out"))
    assert (reject["error_type"], reject["attempts"]) == (reason, attempts)
    if reason == "ProcessDied":
        assert "SIGKILL" in reject["message"]
        assert on_head(*arguments, "--retry-rejects").returncode == 0
        assert len(runs.samples(str(tmp_path / "out"))) == 1
        assert runs.rejects(str(tmp_path / "out")) == []


def _while_sending(
    sent: signal.Signals, call: Callable[[], "subprocess.CompletedProcess[str]"]
) -> "subprocess.CompletedProcess[str]":
    over = threading.Event()

    def disturb() -> None:
        while not over.is_set():
            for process in decoders():
                process.send_signal(sent)
            time.sleep(0.05)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        return call()
    finally:
        over.set()
        thread.join()

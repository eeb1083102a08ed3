"""Files of generated pictures and videos: pixels, metadata, and playback in a browser."""

import json
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import moving_texture
from videolavit.generation.output import model_hash, provenance, save_picture, save_video, side_by_side
from videolavit.generation.prompts import Picture
from videolavit.generation.runtime import MODEL_PARTS
from videolavit.models.folder import ModelFolder
from videolavit.models.part_files import save_part

PROMPT = 'a "red" ball; 赤い玉\nrolls away'


@pytest.fixture(scope="module")
def frames() -> Picture:
    return np.stack(list(moving_texture(24, 64, 128, 3)))


@pytest.fixture(scope="module")
def video(frames: Picture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("output") / "new" / "video.mp4"
    save_video(frames, path, 6, provenance(PROMPT, 7, "abc", clips=1))
    return path


def test_a_video_is_h264_in_a_format_for_browsers(video: Path, frames: Picture) -> None:
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.profile, stream.pix_fmt) == ("h264", "High", "yuv420p")
        assert (stream.average_rate, stream.frames, stream.width, stream.height) == (6, 24, 128, 64)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert np.abs(decoded.astype(float) - frames).mean() < 10


def test_the_index_is_in_front(video: Path) -> None:
    names = [name for name, _ in _boxes(video.read_bytes())]
    assert names.index(b"moov") < names.index(b"mdat")


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    place = 0
    while place < len(data):
        size, name = struct.unpack(">I4s", data[place : place + 8])
        yield name, size
        place += size


def test_a_video_has_its_provenance_as_metadata(video: Path) -> None:
    with av.open(str(video)) as container:
        metadata = container.metadata
    assert metadata["title"] == PROMPT
    assert json.loads(metadata["comment"]) == {
        "prompt": PROMPT,
        "seed": 7,
        "model": "abc",
        "clips": 1,
        "software": "videolavit",
    }


def test_the_same_frames_are_the_same_bytes(video: Path, frames: Picture, tmp_path: Path) -> None:
    """Also at a width that is no multiple of 128, where the bytes would be random with x264's macroblock tree."""
    save_video(frames, tmp_path / "again.mp4", 6, provenance(PROMPT, 7, "abc", clips=1))
    assert (tmp_path / "again.mp4").read_bytes() == video.read_bytes()
    narrow = tmp_path / "narrow.mp4"
    contents = set()
    for _ in range(12):
        save_video(np.ascontiguousarray(frames[:, :, :96]), narrow, 6, {})
        contents.add(narrow.read_bytes())
    assert len(contents) == 1


def test_a_picture_is_lossless_and_has_its_provenance_as_metadata(frames: Picture, tmp_path: Path) -> None:
    save_picture(frames[0], tmp_path / "new" / "picture.png", provenance(PROMPT, 7, "abc"))
    with Image.open(tmp_path / "new" / "picture.png") as image:
        assert np.array_equal(np.asarray(image), frames[0])
        assert image.text["title"] == PROMPT  # type: ignore[attr-defined]
        assert json.loads(image.text["comment"])["seed"] == 7  # type: ignore[attr-defined]


def test_side_by_side(frames: Picture) -> None:
    both = side_by_side(frames, 255 - frames)
    assert both.shape == (24, 64, 128 + 4 + 128, 3)
    assert np.array_equal(both[:, :, :128], frames)
    assert np.array_equal(both[:, :, 132:], 255 - frames)
    assert (both[:, :, 128:132] == 255).all()


def test_the_hash_of_a_model_depends_on_its_weights(model_path: Path, model: ModelFolder, tmp_path: Path) -> None:
    whole = model_hash(model, MODEL_PARTS)
    assert whole == model_hash(ModelFolder(model_path), MODEL_PARTS)
    assert len(whole) == 64
    without = [part for part in MODEL_PARTS if part != "motion_tokenizer"]
    assert model_hash(model, without) != whole
    shutil.copytree(model_path, tmp_path / "other")
    tokenizer = model.load("motion_tokenizer")
    with torch.no_grad():
        next(tokenizer.parameters()).view(-1)[0] += 1e-3
    save_part(tokenizer, tmp_path / "other" / "motion_tokenizer")
    other = ModelFolder(tmp_path / "other")
    assert model_hash(other, MODEL_PARTS) != whole
    assert model_hash(other, without) == model_hash(model, without)
    shutil.rmtree(tmp_path / "other" / "motion_tokenizer")
    assert model_hash(ModelFolder(tmp_path / "other"), MODEL_PARTS) == model_hash(model, without)


PAGE = """<!doctype html><video muted></video><script>
const video = document.querySelector("video"), seen = [];
const report = () => fetch("/report", {method: "POST", body: JSON.stringify(
    {seen, width: video.videoWidth, height: video.videoHeight, duration: video.duration, at: video.currentTime})});
for (const name of ["loadedmetadata", "canplay", "playing", "timeupdate"])
    video.addEventListener(name, () => seen.includes(name) || seen.push(name));
for (const name of ["ended", "error"]) video.addEventListener(name, () => { seen.push(name); report(); });
video.playbackRate = 8;
video.src = location.hash.slice(1);
video.play().catch(() => {});
</script>"""


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and receives the report of the page."""

    def __init__(self, reports: "Queue[dict[str, Any]]", *rest: Any, **named: Any) -> None:
        self._reports = reports
        super().__init__(*rest, **named)

    def do_POST(self) -> None:
        self._reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def _play(folder: Path, name: str) -> dict[str, Any]:
    """Plays a video in a browser, and returns the report of the page."""
    (folder / "page.html").write_text(PAGE)
    reports: Queue[dict[str, Any]] = Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, reports, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = subprocess.Popen(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--mute-audio",
            "--autoplay-policy=no-user-gesture-required",
            f"--user-data-dir={folder / 'profile'}",
            "--remote-debugging-port=0",  # keeps it open
            f"http://127.0.0.1:{server.server_port}/page.html#{name}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return reports.get(timeout=90)
    finally:
        browser.terminate()
        browser.wait(20)
        server.shutdown()
        server.server_close()


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_a_browser_plays_it_to_the_end(video: Path, tmp_path: Path) -> None:
    shutil.copy(video, tmp_path / "video.mp4")
    report = _play(tmp_path, "video.mp4")
    assert {"loadedmetadata", "canplay", "playing", "ended"} <= set(report["seen"])
    assert (report["width"], report["height"]) == (128, 64)
    assert report["duration"] == pytest.approx(4, abs=0.05)
    assert report["at"] == pytest.approx(4, abs=0.05)


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_a_browser_does_not_play_a_broken_one(video: Path, tmp_path: Path) -> None:
    data = bytearray(video.read_bytes())
    data[data.index(b"moov") : data.index(b"moov") + 4] = b"free"
    (tmp_path / "broken.mp4").write_bytes(data)
    report = _play(tmp_path, "broken.mp4")
    assert report["seen"][-1] == "error"
    assert not {"playing", "ended"} & set(report["seen"])

"""The functions behind the commands: typed summaries and progress, and nothing on stdout or stderr."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from tests.conftest import ROOT
from videolavit.files import write_beside
from videolavit.generation.describe import DescribeSummary
from videolavit.generation.generate import GenerateSummary, generate
from videolavit.generation.reconstruct import ReconstructionSummary, reconstruct
from videolavit.generation.settings import GenerateSettings
from videolavit.media import MediaError
from videolavit.models.network import ModelError
from videolavit.progress import Progress

FAST = {"keyframe_steps": 1, "video_steps": 1, "max_visual": 4, "video_width": 32, "video_height": 32}
UNTRAINED = Progress("load model", message="the weights of tiny are untrained: the output is meaningless")

CHILD = """
import pickle, sys
from pathlib import Path

def call(function, *arguments, **settings):
    reports, texts = [], []
    if function.__name__ == "describe":
        settings["on_text"] = lambda *piece: texts.append(piece)
    summary = function(*arguments, on_progress=reports.append, **settings)
    Path(sys.argv[1]).write_bytes(pickle.dumps((summary, reports, texts)))

"""


def call_in_child(code: str, folder: Path) -> tuple[Any, list[Progress], list[tuple[int, str]]]:
    """Summary, progress and texts of a call in a process of its own, which must print nothing."""
    result = folder / "result.pickle"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD + code, str(result)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    summary, reports, texts = pickle.loads(result.read_bytes())
    return summary, reports, texts


@pytest.mark.parametrize("kind", ["image", "video"])
def test_generate(kind: str, picture_file: Path, tmp_path: Path) -> None:
    code = f"""
from videolavit.generation.generate import generate
from videolavit.generation.settings import GenerateSettings
call(
    generate, {kind!r}, ["a <image> ball", "<image>"], "tiny", images=[{str(picture_file)!r}], seed=3,
    output={str(tmp_path / "out")!r}, settings=GenerateSettings(**{FAST!r}),
)
"""
    summary, reports, _ = call_in_child(code, tmp_path)
    suffix = "png" if kind == "image" else "mp4"
    names = [f"1-a-image-ball-seed3.{suffix}", f"2-image-seed3.{suffix}"]
    files = tuple(tmp_path / "out" / name for name in names)
    assert summary == GenerateSummary(files, summary.model_hash, model_is_trained=False)
    assert len(summary.model_hash) == 64
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert reports[0] == UNTRAINED
    stage = "clip 1 keyframe" if kind == "image" else "clip 1 frames"
    assert Progress(stage, 1, 1) in reports
    if kind == "image":
        with Image.open(files[0]) as image:
            comment = json.loads(image.text["comment"])  # type: ignore[attr-defined]
    else:
        with av.open(str(files[0])) as container:
            comment = json.loads(container.metadata["comment"])
            assert sum(1 for _ in container.decode(video=0)) == 24
    assert (comment["prompt"], comment["seed"], comment["model"]) == ("a   ball", 3, summary.model_hash)


def test_describe(picture_file: Path, video_file: Path, tmp_path: Path) -> None:
    code = f"""
from videolavit.generation.describe import DescribeSettings, describe
call(
    describe, [{str(picture_file)!r}, {str(video_file)!r}], "tiny", "What is it?",
    settings=DescribeSettings(min_tokens=12, max_tokens=12),
)
"""
    summary, reports, texts = call_in_child(code, tmp_path)
    assert isinstance(summary, DescribeSummary)
    assert not summary.model_is_trained
    assert len(summary.answers) == 2
    assert all(summary.answers)
    for index, answer in enumerate(summary.answers):
        assert "".join(text for row, text in texts if row == index).strip() == answer
    assert reports == [Progress("read files", 1, 2), Progress("read files", 2, 2), UNTRAINED]


def test_reconstruct(video_file: Path, tmp_path: Path) -> None:
    code = f"""
from videolavit.generation.reconstruct import ReconstructSettings, reconstruct
settings = ReconstructSettings(keyframe_steps=1, video_steps=1, video_width=32, video_height=32)
call(reconstruct, {str(video_file)!r}, "tiny", {str(tmp_path / "new" / "made.mp4")!r}, settings=settings)
"""
    summary, reports, _ = call_in_child(code, tmp_path)
    assert isinstance(summary, ReconstructionSummary)
    assert [clip.frames for clip in summary.clips] == [24, 6]
    assert all(clip.motion_tokens > 0 for clip in summary.clips)
    assert all(0 < clip.psnr < 40 and -1 <= clip.ssim < 1 for clip in summary.clips)
    assert summary.frames == 30
    assert summary.psnr == pytest.approx((24 * summary.clips[0].psnr + 6 * summary.clips[1].psnr) / 30)
    assert summary.ssim == pytest.approx((24 * summary.clips[0].ssim + 6 * summary.clips[1].ssim) / 30)
    assert (summary.video, summary.side_by_side) == (
        tmp_path / "new" / "made.mp4",
        tmp_path / "new" / "made-side-by-side.mp4",
    )
    assert {path.name for path in summary.video.parent.iterdir()} == {"made.mp4", "made-side-by-side.mp4"}
    assert reports[0] == UNTRAINED
    assert reports[-1] == Progress("clip 2 frames", 1, 1)


def test_mistakes_are_typed_errors(tmp_path: Path, video_file: Path) -> None:
    with pytest.raises(ModelError, match=r"no model in .*huge: model.json is missing"):
        generate("image", ["a"], tmp_path / "huge")
    with pytest.raises(MediaError, match=r"missing.png"):
        generate("image", ["a"], "tiny", images=[tmp_path / "missing.png"])
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate("image", [], "tiny")
    with pytest.raises(ValueError, match=r"made.mkv: the result is a .mp4 file"):
        reconstruct(video_file, "tiny", tmp_path / "made.mkv")


def test_a_call_that_is_stopped_leaves_no_file(tmp_path: Path, model_path: Path, video_file: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "clip 1 frames":
            raise InterruptedError

    settings = GenerateSettings(keyframe_steps=1, video_steps=1, max_visual=4)
    with pytest.raises(InterruptedError):
        generate("video", ["a"], model_path, output=tmp_path / "out", settings=settings, on_progress=stop)
    with pytest.raises(InterruptedError):
        reconstruct(video_file, model_path, tmp_path / "new" / "made.mp4", on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_files_are_replaced_all_at_once_or_not_at_all(tmp_path: Path) -> None:
    targets = [tmp_path / "one.txt", tmp_path / "new" / "two.txt"]
    targets[0].write_text("old")

    def fail() -> None:
        with write_beside(*targets) as temporary:
            for file in temporary:
                file.write_text("new")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert list(tmp_path.rglob("*")) == [targets[0]]
    assert targets[0].read_text() == "old"
    with write_beside(*targets) as temporary:
        for file in temporary:
            file.write_text("new")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(targets)
    assert [target.read_text() for target in targets] == ["new", "new"]

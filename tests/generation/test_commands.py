"""The commands as processes, and the mistakes that they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from jobs import describe, generate, reconstruct
from tests.conftest import ROOT, Job
from videolavit.generation.generate import generate_images
from videolavit.generation.output import model_hash
from videolavit.generation.prompts import Picture, Prompt
from videolavit.generation.runtime import MODEL_PARTS, Runtime
from videolavit.generation.settings import GenerateSettings
from videolavit.models.folder import ModelFolder

FAST = ("--keyframe-steps", "2", "--video-steps", "1")
FEW = (*FAST, "--max-visual", "24")
SMALL = ("--video-width", "32", "--video-height", "32")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
UNTRAINED = "are untrained: the output is meaningless"


def _facts(path: Path) -> dict[str, Any]:
    """Codec, size, frames and metadata of an mp4 file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return {
            "codec": (stream.codec_context.name, stream.codec_context.profile, stream.pix_fmt),
            "size": (stream.width, stream.height),
            "frames": sum(1 for _ in container.decode(stream)),
            "title": container.metadata["title"],
            **json.loads(container.metadata["comment"]),
        }


def test_generate_videos_of_two_prompts(run_job: Job, model_path: Path, model: ModelFolder, tmp_path: Path) -> None:
    prompts = ("A red ball, rolling!", "a cube")
    shared = ("--model", model_path, "--clips", 2, "--seed", 5, *FEW, *SMALL)
    done = run_job("generate", "video", "--prompt", *prompts, "--output", tmp_path / "out", *shared, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    assert [file.name for file in files] == ["1-a-red-ball-rolling-seed5.mp4", "2-a-cube-seed5.mp4"]
    assert UNTRAINED in done.stderr
    assert "clip 2 motion tokens" in done.stderr
    for file, prompt in zip(files, prompts, strict=True):
        facts = _facts(file)
        assert facts["codec"] == ("h264", "High", "yuv420p")
        assert (facts["size"], facts["frames"]) == ((32, 32), 24 + 23)
        assert (facts["title"], facts["prompt"], facts["seed"], facts["clips"]) == (prompt, prompt, 5, 2)
        assert facts["model"] == model_hash(model, [unit for unit in MODEL_PARTS if unit != "understanding"])
        data = file.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")


def test_generate_a_picture_from_marked_pictures(
    run_job: Job, model_path: Path, runtime: Runtime, picture_file: Path, pictures: list[Picture], tmp_path: Path
) -> None:
    """With the pixels that the library gives for the parts in order."""
    where = ("--image", picture_file, picture_file, "--output", tmp_path / "new" / "made.png")
    text = "a <image> beside <image> in blue"
    done = run_job("generate", "image", "--prompt", text, *where, "--model", model_path, *FEW, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "new" / "made.png")]
    parts = ("a ", pictures[0], " beside ", pictures[0], " in blue")
    settings = GenerateSettings(keyframe_steps=2, max_visual=24)
    (expected,) = generate_images(runtime, [Prompt(parts)], settings)
    made = np.asarray(Image.open(tmp_path / "new" / "made.png"))
    assert np.array_equal(made, expected)


def test_describe_a_picture_and_a_video(
    run_job: Job, model_path: Path, picture_file: Path, video_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--question", "What is it?", "--model", model_path, "--max-tokens", 12)
    done = run_job("describe", picture_file, video_file, *options, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert UNTRAINED in done.stderr
    for path in (picture_file, video_file):
        assert f"{path}: " in done.stdout
        describe.main([str(word) for word in (path, *options)])  # a single answer is streamed
        alone = capsys.readouterr().out
        assert f"{path}: {alone.strip()}" in done.stdout.replace("\r", "\n")


def test_reconstruct_a_video(run_job: Job, model_path: Path, video_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "made.mp4"
    done = run_job("reconstruct", video_file, "--output", target, "--model", model_path, *FAST, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert "PSNR" in done.stdout
    assert "SSIM" in done.stdout
    assert [line.split()[1:4:2] for line in done.stdout.splitlines() if line.startswith(("│ 1", "│ 2"))] == [
        ["1", "24"],
        ["2", "6"],
    ]
    beside = target.with_name("made-side-by-side.mp4")
    assert sorted(path.name for path in target.parent.iterdir()) == ["made-side-by-side.mp4", "made.mp4"]
    ours, both = _facts(target), _facts(beside)
    assert ours["frames"] == both["frames"] == 30
    assert both["size"] == (2 * ours["size"][0] + 4, ours["size"][1])
    assert ours["codec"] == both["codec"] == ("h264", "High", "yuv420p")
    assert (ours["title"], ours["seed"], len(ours["model"])) == ("reconstruction of video.mp4", 0, 64)


Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Runs a command that must end with status 2, one message and no new file; returns the message."""

    def run(job: Any, *words: object, model: object = "tiny") -> str:
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as end:
            job.main([*map(str, words), "--model", str(model)])
        assert end.value.code == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if UNTRAINED not in line]
        assert captured.out == ""
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0].removeprefix("error: ")

    return run


def test_missing_models_are_refused(refuse: Refuse, tmp_path: Path, video_file: Path) -> None:
    for job, words in [
        (generate, ["video", "--prompt", "a"]),
        (describe, [video_file]),
        (reconstruct, [video_file]),
    ]:
        assert "no model in huge: model.json is missing. Name a model folder, the shipped model shapes" in refuse(
            job, *words, model="huge"
        )
    assert "model.json is missing" in refuse(generate, "image", "--prompt", "a", model=tmp_path)


def test_impossible_prompts_are_refused(refuse: Refuse, picture_file: Path) -> None:
    assert "the prompt is empty" in refuse(generate, "image")
    assert "the prompt has 9000 tokens, too many" in refuse(generate, "image", "--prompt", "a" * 9000)
    assert "99 clips do not fit" in refuse(generate, "video", "--prompt", "a", "--clips", 99)
    assert "at least one clip, not 0" in refuse(generate, "video", "--prompt", "a", "--clips", 0)
    assert "has 2 <image> markers for 1 pictures" in refuse(
        generate, "image", "--prompt", "<image> <image>", "--image", picture_file
    )


def test_files_without_a_picture_are_refused(
    refuse: Refuse, tmp_path: Path, picture_file: Path, video_file: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(picture_file.read_bytes()[:-40])
    for name, message in [
        ("text.png", "text.png: no image in a known format"),
        ("cut.png", "cut.png: cannot be"),
        (video_file, "video.mp4: no image"),
        ("missing.png", "no such file or key: missing.png"),
    ]:
        assert message in refuse(generate, "image", "--prompt", "a", "--image", name)


def test_files_without_a_video_are_refused(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for job in (describe, reconstruct):
        assert "text.mp4" in refuse(job, "text.mp4")
        assert "missing.mp4" in refuse(job, "missing.mp4")


def test_impossible_settings_are_refused(refuse: Refuse) -> None:
    for words, message in [
        (["--temperature", -1], "temperature must be at least 0, top_p above 0 and at most 1, top_k at least 1"),
        (["--max-visual", 300], "min_visual, 3, must be at most max_visual, 300, which must be at most 36"),
        (["--video-steps", 0], "video_steps must be at least 1, not 0"),
        (["--width", 100], "width and height must be multiples of 8, not 100 x"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
    ]:
        assert refuse(generate, "image", "--prompt", "a", *words).startswith(message)


def test_impossible_outputs_are_refused(refuse: Refuse, tmp_path: Path, video_file: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for kind, output, message in [
        ("video", "made.png", "made.png: the result is a .mp4 file; name it so"),
        ("image", "made.jpg", "made.jpg: the result is a .png file; name it so"),
        ("image", "file", "the output file exists and is not a folder"),
    ]:
        assert message in refuse(generate, kind, "--prompt", "a", "--output", output)
    assert "2 prompts need a folder" in refuse(generate, "image", "--prompt", "a", "b", "--output", "made.png")
    assert "the result is a .mp4 file" in refuse(reconstruct, video_file, "--output", "made.mkv")


def test_a_file_that_cannot_be_written_is_named(model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        generate.main(["image", "--prompt", "a", "--output", "/proc/made.png", "--model", str(model_path), *FEW])
    assert end.value.code == 2
    assert "/proc/made.png" in capsys.readouterr().err.splitlines()[-1]


def test_a_mistake_as_a_process_has_no_traceback(run_job: Job) -> None:
    refused = run_job("generate", "audio", "--prompt", "a", "--model", "tiny")
    assert refused.returncode == 2
    assert "audio" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (ROOT / "generated").exists() is False

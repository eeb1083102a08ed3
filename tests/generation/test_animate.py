"""Animation of a picture with the motion of a video."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs import animate as job
from videolavit.generation.animate import AnimatedClip, AnimateSettings, animate, animate_clips
from videolavit.generation.prompts import Picture
from videolavit.generation.reconstruct import ReconstructSettings, reconstruct_clips
from videolavit.generation.runtime import Runtime
from videolavit.media import decompose

FAST = AnimateSettings(video_steps=1, video_width=32, video_height=32)


@pytest.fixture(scope="module")
def clips(runtime: Runtime, pictures: list[Picture], video_file: Path) -> list[AnimatedClip]:
    return list(animate_clips(runtime, pictures[0], video_file, FAST))


def test_a_video_s_own_keyframe_gives_its_reconstruction(runtime: Runtime, video_file: Path) -> None:
    keyframe = next(iter(decompose(video_file))).keyframe
    ours = next(animate_clips(runtime, keyframe, video_file, FAST))
    settings = ReconstructSettings(keyframes="original", video_steps=1, video_width=32, video_height=32)
    theirs = next(reconstruct_clips(runtime, video_file, settings))
    assert ours.motion == theirs.motion
    assert ours.frames.tobytes() == theirs.frames.tobytes()


def test_a_later_clip_goes_on_from_the_last_frame(
    runtime: Runtime, video_file: Path, clips: list[AnimatedClip], pictures: list[Picture]
) -> None:
    assert [clip.frames.shape for clip in clips] == [(24, 32, 32, 3), (5, 32, 32, 3)]
    other = list(animate_clips(runtime, pictures[1], video_file, FAST))
    assert [clip.motion for clip in other] == [clip.motion for clip in clips]
    assert np.abs(other[1].frames.astype(int) - clips[1].frames).max() > 0
    (first,) = animate_clips(runtime, pictures[0], video_file, replace(FAST, clips=1))
    assert first.frames.tobytes() == clips[0].frames.tobytes()


def test_the_size_follows_the_picture(runtime: Runtime, video_file: Path, pictures: list[Picture]) -> None:
    settings = AnimateSettings(video_steps=1, clips=1)
    high, wide = (next(animate_clips(runtime, one, video_file, settings)).frames.shape[1:3] for one in pictures)
    assert high[1] > high[0]
    assert wide[0] > wide[1]


def test_the_command_writes_a_file(
    model_path: Path,
    picture_file: Path,
    video_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clips: list[AnimatedClip],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(picture_file), str(video_file), "--model", str(model_path)]
    job.main([*words, "--video-steps", "1", "--video-width", "32", "--video-height", "32"])
    assert capsys.readouterr().out.splitlines()[-1] == "picture-animated.mp4"
    written = sum(clip.num_frames for clip in decompose("picture-animated.mp4"))
    assert written == sum(len(one.frames) for one in clips)
    summary = animate(video_file, video_file, model_path, "own.mp4", settings=replace(FAST, clips=1))
    assert (summary.clips, summary.frames, summary.video) == (1, 24, Path("own.mp4"))
    for mistake in (["--clips", "0"], ["--video-width", "32"], ["--output", "a.gif"]):
        with pytest.raises(SystemExit) as end:
            job.main([*words, *mistake])
        assert end.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.mp4", "picture-animated.mp4"]

"""Rendered videos: reproducible, described truthfully, and with the motion that they claim to have."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from jobs.synth import main
from tests.conftest import run_silently
from videolavit.media import BLOCK, iter_frames, write_mp4
from videolavit.progress import Progress
from videolavit.synth import (
    COLOURS,
    DIRECTIONS,
    OUTLINES,
    MovingShape,
    SynthSettings,
    draw_scene,
    is_held_out,
    render,
    render_corpus,
)

FEW_BLOCKS = 8
"""Hardly a block is ever inside a small shape; so few say nothing about a median."""

FIRST = ("a large orange square moves up slowly; a large green triangle moves up fast", 7654355389934507510)
"""Caption and texture seed of video 0 of seed 3."""

SHORT = ("--width=128", "--height=96", "--seconds=1", "--fps=12")


def corpus(folder: Path, videos: int, seed: int, *options: str) -> dict[str, bytes]:
    """Relative name -> content of every file that the job leaves in the folder."""
    main([f"--output={folder}", f"--videos={videos}", f"--seed={seed}", *SHORT, *options])
    return files_of(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def manifest(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files["manifest.jsonl"].splitlines()]


# ---- reproducible -------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first, second, other = corpus(tmp_path / "a", 2, 3), corpus(tmp_path / "b", 2, 3), corpus(tmp_path / "c", 2, 4)
    assert set(first) == {"manifest.jsonl", "videos/000000.mp4", "videos/000001.mp4"}
    assert first == second
    assert all(first[name] != other[name] for name in first)
    assert first["videos/000000.mp4"] != first["videos/000001.mp4"]


def test_a_larger_number_adds_videos_to_the_same_ones(tmp_path: Path) -> None:
    small = corpus(tmp_path, 1, 3)
    (tmp_path / "videos" / "000000.mp4").write_bytes(b"spoilt")
    large = corpus(tmp_path, 3, 3)
    assert len(large) == 4
    assert large["videos/000000.mp4"] == small["videos/000000.mp4"]
    assert large["manifest.jsonl"].startswith(small["manifest.jsonl"])


def test_an_interrupted_call_leaves_no_manifest_of_other_videos(tmp_path: Path) -> None:
    corpus(tmp_path, 2, 3)

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    settings = SynthSettings(width=128, height=96, seconds=1, fps=12)
    with pytest.raises(KeyboardInterrupt):
        render_corpus(str(tmp_path), 2, settings, seed=4, on_progress=interrupt)
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["000000.mp4", "000001.mp4"]


def test_the_library_renders_what_the_command_renders_and_prints_nothing(tmp_path: Path) -> None:
    code = """
import sys
from videolavit.synth import SynthSettings, render_corpus
seen = []
settings = SynthSettings(width=128, height=96, seconds=1, fps=12)
corpus = render_corpus(sys.argv[1], 2, settings, seed=3, questions=True, on_progress=seen.append)
assert [(progress.stage, progress.done, progress.total) for progress in seen] == [("render", 1, 2), ("render", 2, 2)]
assert corpus.manifest == sys.argv[1] + "/manifest.jsonl" and corpus.questions == sys.argv[1] + "/questions.jsonl"
assert (corpus.num_videos, corpus.video_seconds) == (2, 2.0) and 2 <= corpus.num_shapes <= 4
"""
    run_silently(code, tmp_path / "library")
    assert files_of(tmp_path / "library") == corpus(tmp_path / "command", 2, 3, "--questions")


# ---- the truth ----------------------------------------------------------------------------------------------------


def test_measured_motion_is_the_true_motion(tmp_path: Path) -> None:
    """The motion vectors of a re-encoded video follow the motion of its scene."""
    settings = SynthSettings()
    blocks: Counter[str] = Counter()
    background = []
    for index in range(8):
        scene = draw_scene(settings, 15, index)
        write_mp4(render(scene, settings), tmp_path / "video.mp4", settings.fps)
        measured: dict[MovingShape, list[NDArray[np.float64]]] = {shape: [] for shape in scene.shapes}
        for frame in iter_frames(tmp_path / "video.mp4"):
            if frame.type == "I":
                continue
            displacement = frame.motion / 2
            far = np.ones(displacement.shape[:2], bool)
            now = frame.seconds + 1 / settings.fps  # the last of the source frames that round to a tick is shown
            for shape in scene.shapes:
                before, after = (by_block(mask(shape, time, -4, settings)) for time in (now - 1 / 6, now))
                measured[shape].extend(displacement[before.all(axis=2) & after.all(axis=2)])
                for time in (now - 1 / 6, now):
                    far &= ~by_block(mask(shape, time, 6 * BLOCK, settings)).any(axis=2)
            background.append(np.abs(displacement[far]).max(axis=1))
        for shape, displacements in measured.items():
            if len(displacements) < FEW_BLOCKS:
                continue
            blocks[shape.direction] += len(displacements)
            errors = np.abs(np.array(displacements) - np.array(shape.velocity) / 6)
            assert (np.median(errors, axis=0) <= 0.5).all(), shape
            assert (errors <= 0.75).all(axis=1).mean() >= 0.9, shape
    assert all(blocks[direction] >= 30 for direction in DIRECTIONS), blocks
    assert blocks.total() >= 250
    still = np.concatenate(background)
    assert len(still) >= 20_000
    assert (still == 0).mean() >= 0.99
    assert still.max() <= 1


def mask(shape: MovingShape, seconds: float, larger: float, settings: SynthSettings) -> NDArray[np.bool_]:
    """bool [height, width] of the pixels of a shape that is larger by a number of pixels."""
    picture = Image.new("L", (settings.width, settings.height))
    ImageDraw.Draw(picture).polygon(shape.outline(seconds, 1 + larger / shape.size), fill=1)
    return np.asarray(picture, bool)


def by_block(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[blocks_high, blocks_wide, BLOCK * BLOCK]"""
    high, wide = pixels.shape[0] // BLOCK, pixels.shape[1] // BLOCK
    return pixels.reshape(high, BLOCK, wide, BLOCK).swapaxes(1, 2).reshape(high, wide, -1)


def test_shapes_stay_inside_and_apart_and_move_as_named() -> None:
    settings = SynthSettings()
    for index in range(100):
        scene = draw_scene(settings, 0, index)
        assert 1 <= len(scene.shapes) <= 2
        assert len({shape.colour for shape in scene.shapes}) == len(scene.shapes)
        for shape in scene.shapes:
            for seconds in (0, settings.seconds):
                x, y = shape.centre(seconds)
                assert shape.size / 2 <= x <= settings.width - shape.size / 2
                assert shape.size / 2 <= y <= settings.height - shape.size / 2
            assert tuple(np.sign(shape.velocity)) == DIRECTIONS[shape.direction]
            assert np.abs(shape.velocity).max() / 6 <= 12
        for seconds in np.linspace(0, settings.seconds, 9):
            covered = [mask(shape, seconds, 0, settings).astype(int) for shape in scene.shapes]
            assert np.sum(covered, axis=0).max() == 1


def test_the_caption_names_colour_shape_direction_and_speed_of_every_shape(tmp_path: Path) -> None:
    rows = manifest(corpus(tmp_path, 4, 0))
    assert any(len(row["shapes"]) == 2 for row in rows)
    for row in rows:
        sentences = row["text"].split("; ")
        for sentence, shape in zip(sentences, row["shapes"], strict=True):
            for name in ("size_name", "colour", "shape", "direction", "speed"):
                assert shape[name] in sentence


def test_pyarrow_reads_the_manifest_with_its_nested_truth(tmp_path: Path) -> None:
    corpus(tmp_path, 4, 0)
    table = pyarrow.json.read_json(tmp_path / "manifest.jsonl")
    assert table.column_names == ["video", "text", "shapes"]
    shape = table.schema.field("shapes").type.value_type
    kinds = {shape.field(i).name: shape.field(i).type for i in range(shape.num_fields)}
    assert {kinds[name] for name in ("size", "x", "y")} == {pa.float64()}
    assert kinds["velocity"] == pa.list_(pa.float64())
    for name, text, shapes in zip(*(table[column].to_pylist() for column in table.column_names), strict=True):
        assert (tmp_path / name).is_file()
        assert text
        assert all(len(shape["velocity"]) == 2 for shape in shapes)


# ---- splits and questions -----------------------------------------------------------------------------------------


def test_no_training_video_has_a_held_out_combination() -> None:
    seen: dict[str, set[tuple[str, str, str]]] = {}
    for split in ("train", "held-out"):
        settings = SynthSettings(split=split)  # type: ignore[arg-type]
        shapes = [shape for index in range(150) for shape in draw_scene(settings, 0, index).shapes]
        seen[split] = {(shape.colour, shape.shape, shape.direction) for shape in shapes}
        for place, names in enumerate((COLOURS, OUTLINES, DIRECTIONS)):
            assert {one[place] for one in seen["train"]} == set(names)
    assert not seen["train"] & seen["held-out"]
    assert 15 <= len(seen["held-out"]) <= 35  # 160 pixels


def test_the_default_has_both_splits_and_is_what_it_was() -> None:
    shapes = [shape for index in range(200) for shape in draw_scene(SynthSettings(), 0, index).shapes]
    held_out = [is_held_out(shape.colour, shape.shape, shape.direction, 0.15) for shape in shapes]
    assert 0.05 < np.mean(held_out) < 0.25
    first = draw_scene(SynthSettings(), 3, 0)
    assert (first.text, first.texture_seed) == FIRST


def test_videos_of_one_shape_have_one() -> None:
    settings = SynthSettings(max_shapes=1)
    assert all(len(draw_scene(settings, 0, index).shapes) == 1 for index in range(30))


def test_questions_are_answered_by_the_truth(tmp_path: Path) -> None:
    files = corpus(tmp_path, 4, 0, "--questions")
    records = [json.loads(line) for line in files["questions.jsonl"].splitlines()]
    shapes = {row["video"]: row["shapes"] for row in manifest(files)}
    assert len(records) == sum(3 if len(of) == 1 else 2 * len(of) for of in shapes.values())
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        asked, answered = record["conversations"]
        assert (asked["from"], answered["from"]) == ("human", "gpt")
        assert asked["value"].startswith("<video>\n")
        of = shapes[record["video"]]
        (one,) = of if len(of) == 1 else [shape for shape in of if shape["colour"] in asked["value"]]
        topic = record["id"].rsplit("-", 1)[1]
        assert answered["value"].rstrip(".").split()[-1] == one[topic]


# ---- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--videos=0"], "the number of videos must be at least 1, not 0"),
        (["--videos=many"], "videos"),
        (["--videos=1", "--seed=-1"], "the seed must be at least 0"),
        (["--videos=1", "--height=64"], "height must be 96 to 8192 pixels, not 64"),
        (["--videos=1", "--fps=0"], "fps must be 1 to 240"),
        (["--videos=1", "--seconds=0"], "seconds must be at least"),
        (["--videos=1", "--seconds=.nan"], "seconds must be at least"),
        (["--videos=1", "--seconds=.inf"], "leaves the picture"),
        (["--videos=1", "--seconds=60"], "use at most 4.186 seconds, or at most speed 0.01"),
        (["--videos=1", "--speed=0"], "speed must be above 0"),
        (["--videos=1", "--max-shapes=3"], "max_shapes must be 1 or 2, not 3"),
        (["--videos=1", "--split=train", "--held-out-share=0.98"], "every one with some colour, shape or direction"),
        (["--videos=1", "--split=held-out", "--held-out-share=0"], "holds out no combination"),
        (["--videos=1", "--split=none"], "split"),
        (["--videos=1", "--sped=1"], "sped"),
        (["--videos=1", "--output=unknown://place"], "unknown"),
    ],
)
def test_mistakes_end_with_status_2_and_a_message(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([f"--output={tmp_path / 'new'}", *options])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "new").exists()


def test_output_that_is_a_file_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main([f"--output={tmp_path / 'file'}", "--videos=1", *SHORT])
    assert stopped.value.code == 2
    assert "file" in capsys.readouterr().err


def test_shapes_have_the_scale_that_is_asked_for() -> None:
    usual, larger = SynthSettings(speed=0.1), SynthSettings(speed=0.1, shape_scale=1.4)
    for index in range(20):
        before, after = (draw_scene(settings, 3, index) for settings in (usual, larger))
        if len(before.shapes) == len(after.shapes) == 1:
            assert after.text == before.text
            assert after.shapes[0].size == pytest.approx(1.4 * before.shapes[0].size, abs=0.01)
    with pytest.raises(ValueError, match="shape_scale must be"):
        SynthSettings(shape_scale=3)
    with pytest.raises(ValueError, match="use at most 3"):
        SynthSettings(shape_scale=1.4)

"""Clips, pictures and frames as sources for training."""

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import moving_texture
from tests.training.toys import InMemorySource
from videolavit.media import MediaError, decompose, iter_pictures, write_mp4
from videolavit.media.resize import resize_picture
from videolavit.records.inspection import ShardFacts, inspect
from videolavit.records.kinds import read_clips
from videolavit.records.rows import PlanRow, video_sample_to
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import ShardWriter
from videolavit.records.storage import Folder, StorageSettings
from videolavit.training.data import DataError
from videolavit.training.frames import frame_sources
from videolavit.training.settings import TrainInputs
from videolavit.training.sources import CachedSource, clip_sources, picture_sources, sample_stream, validation_items

STORAGE = StorageSettings()


def write_run(folder: Path, sources: list[dict[str, Any]]) -> str:
    """A decompose run of two shards."""
    run = Folder(str(folder), STORAGE)
    half = (len(sources) + 1) // 2
    for number, part in enumerate((sources[:half], sources[half:])):
        with ShardWriter(run, f"00000-{number:05d}.parquet", []) as shard:
            for source in part:
                row = PlanRow(
                    **{"url": source["source"]} | source,
                    kind="video",
                    sample_id=source["source"],
                    text=f"caption of {Path(source['source']).stem}",
                    start_seconds=0.0,
                    planned_seconds=30.0,
                )
                shard.add(video_sample_to(read_clips(row, SampleSettings(), STORAGE)))
            shard.commit()
    run.replace("run.json", b'{"identity": {"kind": "clips"}}')
    return run.url


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three videos of 4, 9 and 5 seconds."""
    folder = tmp_path_factory.mktemp("videos")
    files = [folder / f"video{index}.mp4" for index in range(3)]
    for index, (file, seconds) in enumerate(zip(files, (4, 9, 5), strict=True)):
        write_mp4(moving_texture(15 * seconds, 48, 64, index), file, 15)
    return files


@pytest.fixture(scope="module")
def run(videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_run(tmp_path_factory.mktemp("run"), [{"source": str(file)} for file in videos])


def test_a_clip_source_gives_the_clips_of_every_video(run: str, videos: list[Path]) -> None:
    (source,) = clip_sources([run], STORAGE)
    assert list(source.sizes) == [4, 2]
    clips = [source.load(shard, row) for shard, size in enumerate(source.sizes) for row in range(size)]
    expected = [(str(file), clip) for file in videos for clip in decompose(str(file))]
    for ours, (name, theirs) in zip(clips, expected, strict=True):
        assert (ours.source, ours.text) == (name, f"caption of {Path(name).stem}")
        assert (ours.start_frame, ours.start_seconds) == (theirs.start_frame, theirs.seconds)
        np.testing.assert_array_equal(ours.motion, theirs.motion[: theirs.num_frames])


def test_frames_are_those_of_the_clip(run: str, videos: list[Path]) -> None:
    """The second clip of the second video, decoded again; the keyframe is its first frame as the encoder left it."""
    (source,) = frame_sources([run], STORAGE, (24, 40))
    framed = source.load(0, 2)
    assert (framed.clip.source, framed.clip.start_frame) == (str(videos[1]), 24)
    pictures = list(iter_pictures(str(videos[1])))[24:48]
    np.testing.assert_array_equal(framed.frames, np.stack([resize_picture(one, 24, 40) for one in pictures]))
    errors = np.abs(framed.frames.astype(int) - framed.keyframe).mean((1, 2, 3))
    assert errors.argmin() == 0


def test_a_video_that_was_replaced_is_noticed(videos: list[Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine.mp4"
    shutil.copy(videos[0], mine)
    (source,) = frame_sources([write_run(tmp_path / "run", [{"source": str(mine)}])], STORAGE, (24, 40))
    shutil.copy(videos[1], mine)
    with pytest.raises(MediaError, match="is not the video that it was"):
        source.load(0, 0)
    mine.unlink()
    with pytest.raises(MediaError, match="no such file"):
        source.load(0, 0)


def test_frames_of_a_tars_member(videos: list[Path], tmp_path: Path) -> None:
    archive = tmp_path / "videos.tar"
    with tarfile.open(archive, "w") as tar:
        for file in videos[:2]:
            tar.add(file, file.name)
    with tarfile.open(archive) as tar:
        place = tar.getmember(videos[1].name)
    name = f"{archive}/{place.name}"
    member = {"source": name, "url": str(archive), "offset": place.offset_data, "length": place.size}
    (source,) = frame_sources([write_run(tmp_path / "run", [member])], STORAGE, (24, 40))
    assert source.load(0, 1).clip.start_frame == 24


def test_pictures_are_keyframes_and_images(run: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        Image.new("RGB", (8, 6), (index, 0, 0)).save(images / f"{index}.png")
    (images / "bad.png").write_bytes(b"no picture")
    keyframes, files = picture_sources([run, str(images)], STORAGE)
    assert keyframes.load(0, 0).shape == (48, 64, 3)
    assert list(files.sizes) == [4]
    assert [files.load(0, row)[0, 0, 0] for row in range(3)] == [0, 1, 2]
    with pytest.raises(MediaError):
        files.load(0, 3)


def test_keyframes_of_strangers_are_decoded_in_another_process(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In trainings, and where shards are looked at."""

    def tripwire(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("a keyframe is decoded here")

    monkeypatch.setattr(Image, "open", tripwire)
    (keyframes,) = picture_sources([run], STORAGE)
    assert keyframes.load(0, 0).shape == (48, 64, 3)
    (shard, *_) = (Path(run) / "clips").iterdir()
    found = inspect(str(shard))
    assert isinstance(found, ShardFacts)
    assert found.cells[0].picture.shape == (48, 64, 3)


def test_what_cannot_be_trained_on_is_refused(videos: list[Path]) -> None:
    with pytest.raises(DataError, match="videolavit decompose"):
        clip_sources([str(videos[0])], STORAGE)
    with pytest.raises(DataError, match="videolavit decompose"):
        picture_sources([str(videos[0])], STORAGE)


def test_an_epoch_has_every_clip_once(run: str) -> None:
    sources = clip_sources([run], STORAGE)
    clips = [item.load() for item in sample_stream(sources, TrainInputs(train=[run])).take(6)]
    assert len({(clip.source, clip.start_frame) for clip in clips}) == 6


def test_validation_is_spread_and_shares_no_positions_with_training() -> None:
    sources = [InMemorySource("a", list(range(10))), InMemorySource("b", list(range(10, 20)))]
    items = validation_items(sources, 3)
    assert [item.load() for item in items] == [0, 10, 19]
    assert all(item.position < 0 for item in items)
    assert len(validation_items(sources, 50)) == 20


def test_what_was_computed_once_is_read_from_the_cache(tmp_path: Path) -> None:
    computed: list[int] = []

    def function(sample: int) -> dict[str, torch.Tensor]:
        computed.append(sample)
        return {"value": torch.full((2,), float(sample))}

    def loaded(identity: str) -> list[float]:
        source = CachedSource(samples, function, Folder(str(tmp_path), STORAGE), {"of": identity})
        return [float(source.load(0, row)["value"][0]) for row in (0, 1, 0)]

    samples = InMemorySource("samples", [5, 6])
    assert loaded("one") == loaded("one") == [5, 6, 5]
    assert computed == [5, 6]
    assert loaded("other") == [5, 6, 5]
    assert computed == [5, 6, 5, 6]

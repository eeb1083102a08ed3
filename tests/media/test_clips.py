"""Clip policies, drawing and writing."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import ImageDraw

from tests.conftest import moving_texture
from videolavit.media import (
    Cell,
    DecomposedFrame,
    DecomposeSettings,
    contact_sheet,
    corpus_groups,
    decompose,
    decompose_frames,
    draw_motion,
    motion_features,
    motion_score,
    write_mp4,
)


def _stream(types: str) -> list[DecomposedFrame]:
    still, picture = np.zeros((1, 1, 2), np.int16), np.zeros((16, 16, 3), np.uint8)
    return [DecomposedFrame(i, kind, i / 6, still, 0, picture if kind == "I" else None) for i, kind in enumerate(types)]


@pytest.mark.parametrize(
    ("types", "lengths"),
    [
        ("IPPPPPPPPPPP" * 4, [24, 24]),
        ("IPPPPPPPPPPP" * 2 + "IPP", [24, 3]),
        ("IPPPP" + "IPPPPPPPPPPP" * 2, [5, 24]),  # a scene cut in the first group of pictures
        ("IPPPPPPPPPPP" + "IPPP" + "IPPPPPPPPPPP" * 2, [16, 24]),  # and in the second
        ("II", [1, 1]),
        ("", []),
    ],
)
def test_corpus_policy(types: str, lengths: list[int]) -> None:
    groups = list(corpus_groups(_stream(types)))
    assert [len(group) for group in groups] == lengths
    assert all(group[0].type == "I" for group in groups)
    assert [frame.index for group in groups for frame in group] == list(range(len(types)))


def test_a_scene_cut_ends_a_clip(tmp_path: Path) -> None:
    """With the real encoder: a texture after an empty scene."""
    frames = [*[np.full((96, 128, 3), 40, np.uint8)] * 20, *moving_texture(28, 96, 128, 2)]
    write_mp4(frames, tmp_path / "cut.mp4", 6)
    assert [(clip.start_frame, clip.num_frames) for clip in decompose(tmp_path / "cut.mp4")] == [
        (0, 20),
        (20, 24),
        (44, 4),
    ]


def test_short_clips_are_still_behind_their_end(tmp_path: Path) -> None:
    write_mp4(moving_texture(5, 96, 128, 1), tmp_path / "short.mp4", 6)
    (clip,) = decompose(tmp_path / "short.mp4")
    assert clip.num_frames == 5
    assert clip.motion.shape == (24, 6, 8, 2)
    assert clip.motion[1:5].any()
    assert not clip.motion[5:].any()
    assert clip.features().shape == (2, 24, 20, 36)
    assert clip.motion_score > 0


@pytest.mark.parametrize(("fps", "frames"), [(6, 30), (2, 90), (12, 15)])
def test_frames_become_clips(fps: float, frames: int) -> None:
    given = list(moving_texture(30, 64, 96, 1))
    clips = list(decompose_frames(given, fps))
    assert sum(clip.num_frames for clip in clips) == frames
    assert np.abs(clips[0].keyframe.astype(int) - given[0]).mean() < 12
    assert np.median(clips[0].motion[1 : clips[0].num_frames], axis=(0, 1, 2)).any() == (
        fps >= 6
    )  # else most stand still


def test_motion_score_is_in_percent_of_the_diagonal() -> None:
    motion = np.zeros((2, 3, 4, 2), np.int16)
    motion[1] = (6, 8)  # half pixels: 5 pixels
    assert motion_score(motion, np.array([0, 12]), 64, 48) == pytest.approx(100 * 5 / 80)
    assert motion_score(motion, np.array([0, 0]), 64, 48) == 0


def test_features_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"must be \[up to 24, 3, 4, 2\]"):
        motion_features(np.zeros((24, 3, 5, 2), np.int16), 64, 48)


@pytest.mark.parametrize("field", ["fps", "bit_rate", "max_clips", "max_width"])
def test_settings_refuse_nonsense(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        DecomposeSettings(**{field: 0})
    with pytest.raises(TypeError):
        DecomposeSettings(frames=6)  # type: ignore[call-arg]


def test_arrows_point_where_the_content_moves() -> None:
    motion = np.zeros((6, 6, 2), np.int16)
    motion[2:4, 2:4] = (40, 0)  # to the right, in the middle
    drawn = draw_motion(np.zeros((96, 96, 3), np.uint8), motion, spacing=2)
    lit = np.argwhere(drawn.any(axis=2))
    assert lit[:, 0].min() > 32
    assert lit[:, 0].max() < 64  # nothing is drawn where nothing moves
    left, right = drawn[:, :48].any(axis=2).sum(axis=0).max(), drawn[:, 48:].any(axis=2).sum(axis=0).max()
    assert right > left  # the head is on the right
    assert not draw_motion(np.zeros((96, 96, 3), np.uint8), motion * 0).any()


def test_contact_sheet() -> None:
    cells = [Cell(np.full((40, 60 + index, 3), 40 * index, np.uint8), f"cell {index}") for index in range(5)]
    sheet = contact_sheet(cells, columns=3, cell_width=90)
    assert sheet.shape[1] == 3 * 98 + 8
    assert {0, 40, 80, 120, 160} <= set(np.unique(sheet))
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_written_video_is_what_was_given(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = [np.repeat(frame[..., :1], 3, axis=2) for frame in moving_texture(10, *size, 3)]  # 4:2:0 blurs colours
    buffer = io.BytesIO()
    for target in (tmp_path / "out.mp4", buffer):
        assert write_mp4(iter(frames), target, 10) == 10
    buffer.seek(0)
    for source in (str(tmp_path / "out.mp4"), buffer):
        with av.open(source) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == 10
            read = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(read) == 10
        for got, given in zip(read, frames, strict=True):
            assert abs(got[: size[0], : size[1]].astype(int) - given).mean() < 3


def test_writing_refuses_what_is_no_video(tmp_path: Path) -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="no frames"):
        write_mp4([], tmp_path / "a.mp4", 6)
    with pytest.raises(ValueError, match="the first was"):
        write_mp4([frame, frame[:16]], tmp_path / "a.mp4", 6)
    with pytest.raises(ValueError, match="must be uint8"):
        write_mp4([frame.astype(np.float32)], tmp_path / "a.mp4", 6)


def test_a_long_caption_is_cut_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    measure = ImageDraw.ImageDraw.textlength

    def textlength(pen: ImageDraw.ImageDraw, text: str, *arguments: Any) -> float:
        measured.append(len(text))
        return measure(pen, text, *arguments)

    monkeypatch.setattr(ImageDraw.ImageDraw, "textlength", textlength)
    contact_sheet([Cell(np.zeros((30, 40, 3), np.uint8), "caption " * 10_000)], cell_width=90)
    assert len(measured) < 20
    assert max(measured) < 2000

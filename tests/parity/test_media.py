"""The media layer against recorded outputs of the reference: digests, clip selections and motion features.

Everything that belongs to one pack (videos, cases, sizes, tolerances) is read from its files.
"""

import hashlib
from typing import Any

import numpy as np
import pytest

from tests.parity.pack import Pack, case_ids
from videolavit.media import (
    DecomposeSettings,
    decompose,
    iter_frames,
    motion_features,
    motion_grid,
    normalize_motion,
    select_eval_clips,
)

VECTOR_FIELDS = (
    "frame",
    "source",
    "w",
    "h",
    "src_x",
    "src_y",
    "dst_x",
    "dst_y",
    "motion_x",
    "motion_y",
    "motion_scale",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a video or case of the pack."""
    pack = Pack.given(metafunc.config)
    for fixture, ids in {
        "video": case_ids(pack, "decomposition.json", "videos"),
        "vector_case": case_ids(pack, "modules.json", "modules", "motion_vectors", "config", "cases"),
    }.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, ids or [pytest.param("none", marks=pytest.mark.skip(pack.absent))])


def test_reencoded_stream(pack: Pack, video: str) -> None:
    """Picture types, motion vectors and keyframe pixels are the reference command's, bit for bit."""
    expected = pack.json("decomposition.json")["videos"][video]
    vectors, types, counts, images = hashlib.sha256(), [], [], {}
    for frame in iter_frames(pack.video(video)):
        assert frame.motion.shape == (expected["blocks_high"], expected["blocks_wide"], 2)
        vectors.update(frame.motion.astype("<i2").tobytes())
        types.append(frame.type)
        counts.append(frame.num_vectors)
        if frame.image is not None:
            assert frame.image.shape == (expected["height"], expected["width"], 3)
            images[str(frame.index)] = hashlib.sha256(frame.image.tobytes()).hexdigest()
    assert "".join(types) == expected["types"]
    assert counts == expected["vectors_per_frame"]
    assert vectors.hexdigest() == expected["vectors_sha256"]
    assert images == expected["iframe_rgb_sha256"]


def test_eval_clips_and_their_features(pack: Pack, video: str) -> None:
    golden = pack.json("decomposition.json")
    expected = golden["videos"][video]
    settings = DecomposeSettings(policy="eval", max_clips=golden["max_clips"])
    clips = {clip.start_frame: clip for clip in decompose(pack.video(video), settings)}
    assert [[clip.start_frame, clip.num_frames] for clip in clips.values()] == expected["eval_clips"]
    features = pack.arrays("decomposition.npz")
    for start in expected["processed_clips"]:
        np.testing.assert_allclose(
            clips[start].features(), features[f"{video}/{start}"], **golden["processed_tolerance"]
        )


def test_corpus_clips_hold_every_frame_once(pack: Pack, video: str) -> None:
    position = 0
    for clip in decompose(pack.video(video)):
        assert clip.start_frame == position
        position += clip.num_frames
    assert position == pack.json("decomposition.json")["videos"][video]["frames"]


def test_clip_selection(pack: Pack) -> None:
    cases = pack.json("clip_selection.json")["cases"]
    assert cases
    for case in cases:
        if isinstance(case["clips"], dict):
            with pytest.raises(ValueError, match="no I frame"):
                select_eval_clips(case["types"], case["max_clips"])
        else:
            assert [list(clip) for clip in select_eval_clips(case["types"], case["max_clips"])] == case["clips"], case


def test_motion_vectors(pack: Pack, vector_case: str) -> None:
    """Exported vectors to the block grid, to normalised values, to the tokenizer's tensor."""
    module = pack.json("modules.json")["modules"]["motion_vectors"]
    arrays = pack.arrays("motion_vectors.npz")
    case = module["config"]["cases"][vector_case]
    height, width, rescale = case["height"], case["width"], case["rescale"]
    motion = _grids(arrays[f"in.{vector_case}.vectors"], height, width)
    checked = 0
    for name, spec in module["outputs"].items():
        owner, kind, *mode = name.split(".")
        if owner != vector_case:
            continue
        if kind == "pooled":
            got = normalize_motion(motion, width, height, rescale).transpose(0, 3, 1, 2)
        else:
            rows, columns = map(int, kind.split("x"))
            got = motion_features(
                motion, width, height, (rows, columns), rescale=rescale, antialias=mode == ["antialias"]
            )
        assert list(got.shape) == spec["shape"]
        reference = arrays[f"out.{name}"]
        np.testing.assert_allclose(got.ravel()[:: spec["stride"]], reference, atol=spec["atol"], rtol=spec["rtol"])
        checked += 1
    assert checked >= 2


def _grids(rows: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 [24, blocks_high, blocks_wide, 2] of a case's vectors."""
    vectors: Any = np.zeros(len(rows), [(name, "<i4") for name in VECTOR_FIELDS])
    for index, name in enumerate(VECTOR_FIELDS):
        vectors[name] = rows[:, index]
    frames = [vectors[vectors["frame"] == index] for index in range(24)]
    return np.stack([motion_grid(frame, height, width, np.float32)[0] for frame in frames])


def test_results_are_equal_from_run_to_run(pack: Pack) -> None:
    name = next(iter(pack.json("decomposition.json")["videos"]))
    first, second = (
        [(frame.type, frame.motion.tobytes()) for frame in iter_frames(pack.video(name))] for _ in range(2)
    )
    assert first == second
    assert len(first) > 1

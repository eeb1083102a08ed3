"""A planned segment to the clips of a shard's row, and stored clips back to pictures and motion."""

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from videolavit.media import Clip, DecomposeSettings, MediaError, decompose
from videolavit.media.errors import DurationMismatch

from . import schema
from .pictures import MAX_PIXELS, CorruptImage, ImageTooLarge
from .rows import PlanRow, VideoSample

_KEYFRAME_FORMATS = ("JPEG", "PNG")
"""All that shards are written with. Others that Pillow knows run programs, or are rarely looked after."""

SEGMENT_VALUES = 3_000_000
"""Motion values of a segment: writing them to Parquet takes some 30 bytes each. Pictures above half a megapixel are
therefore cut shorter than the settings say, to a whole number of clips."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings(DecomposeSettings):
    """Settings by which a segment becomes a row.

    Args:
        keyframe_format: `jpeg` is quality 95 without chroma subsampling; `png` is exact.
        segment_seconds: Longer videos are cut into ranges of this length.
    """

    keyframe_format: Literal["jpeg", "png"] = "jpeg"
    segment_seconds: float = 120.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keyframe_format not in ("jpeg", "png"):
            raise ValueError(f"keyframe_format must be 'jpeg' or 'png', not {self.keyframe_format!r}")
        if self.segment_seconds < 4:
            raise ValueError(f"segment_seconds must be at least 4 (one clip), not {self.segment_seconds:g}")


def decompose_segment(file: BinaryIO, row: PlanRow, settings: SampleSettings) -> VideoSample:
    """Decomposes a planned segment of an open video.

    Raises:
        MediaError: the typed reason why it has no clips.
    """
    started = time.process_time()
    start = row.start_seconds or 0.0
    clips = _ClipColumns(settings)
    for clip in decompose(file, settings, start_seconds=start, end_seconds=row.end_seconds):
        clips.add(clip)
        _check_length(row, clips.end_seconds, settings)
    return VideoSample(
        sample_id=row.sample_id,
        source=row.source,
        text=row.text,
        start_seconds=start,
        end_seconds=clips.end_seconds,
        fps=float(settings.fps),
        width=clips.width,
        height=clips.height,
        clips=clips.array(),
        work_seconds=time.process_time() - started,
    )


def _check_length(row: PlanRow, end_seconds: float, settings: SampleSettings) -> None:
    """Keeps a segment that runs to the end of its video from growing without bound."""
    start = row.start_seconds or 0.0
    limit = start + (row.planned_seconds or 0.0) + settings.segment_seconds
    if row.end_seconds is not None or end_seconds <= limit:
        return
    if row.planned_seconds is None:
        raise DurationMismatch(f"runs beyond {limit:g} s, and its header could not be read before; retry it")
    raise DurationMismatch(f"runs beyond {limit:g} s; its header declares {start + row.planned_seconds:g} s")


class _ClipColumns:
    """Clips of a sample, collected column by column: encoded keyframes and packed motion, no pictures."""

    def __init__(self, settings: SampleSettings) -> None:
        self._settings = settings
        self._scalars: dict[str, list[Any]] = {
            name: [] for name in ("start_frame", "num_frames", "keyframe", "blocks_high", "blocks_wide", "motion_score")
        }
        self._motion: list[NDArray[np.int16]] = []
        self._num_vectors: list[NDArray[np.int32]] = []
        self.width = self.height = 0
        self.end_seconds = 0.0

    def __len__(self) -> int:
        return len(self._motion)

    def add(self, clip: Clip) -> None:
        values = {
            "start_frame": clip.start_frame,
            "num_frames": clip.num_frames,
            "keyframe": encode_picture(clip.keyframe, self._settings.keyframe_format),
            "blocks_high": clip.motion.shape[1],
            "blocks_wide": clip.motion.shape[2],
            "motion_score": clip.motion_score,
        }
        for name, value in values.items():
            self._scalars[name].append(value)
        self._motion.append(clip.motion[: clip.num_frames].ravel())
        self._num_vectors.append(clip.num_vectors[: clip.num_frames])
        self.width, self.height = clip.width, clip.height
        self.end_seconds = clip.seconds + clip.num_frames / self._settings.fps

    def array(self) -> pa.Array:
        """A list array of one row."""
        columns = {name: pa.array(values, schema.CLIP.field(name).type) for name, values in self._scalars.items()}
        columns["motion"] = _list_array(self._motion, pa.int16())
        columns["num_vectors"] = _list_array(self._num_vectors, pa.int32())
        clips = pa.StructArray.from_arrays([columns[field.name] for field in schema.CLIP], fields=list(schema.CLIP))
        return pa.ListArray.from_arrays(pa.array([0, len(self)], pa.int32()), clips)


def _list_array(parts: list[NDArray[Any]], kind: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(parts), kind))


def encode_picture(image: NDArray[np.uint8], kind: str) -> bytes:
    """An image file of uint8 [height, width, 3]: `jpeg` of quality 95 in 4:4:4, or exact `png`."""
    sink = io.BytesIO()
    if kind == "jpeg":
        Image.fromarray(image).save(sink, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(image).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def decode_picture(data: bytes) -> NDArray[np.uint8]:
    """The uint8 [height, width, 3] of a stored keyframe.

    Raises:
        MediaError: it is no JPEG or PNG, is damaged, or declares more pixels than a video may have.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_KEYFRAME_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageTooLarge(f"a keyframe declares more than {MAX_PIXELS:,} pixels")
            return np.asarray(image.convert("RGB"))
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type
        raise CorruptImage(f"a keyframe cannot be decoded: {error or type(error).__name__}") from None


def stored_clips(clips: pa.ListArray) -> Iterator[tuple[bytes, NDArray[np.int16]]]:
    """Yields the `stored_clip` of each clip."""
    for index in range(len(clips.flatten())):
        yield stored_clip(clips, index)


def stored_clip(clips: pa.ListArray, index: int) -> tuple[bytes, NDArray[np.int16]]:
    """Keyframe file and motion grid of a clip in a shard's `clips`, without a Python object a value.

    Returns:
        The file, and int16 [num_frames, blocks_high, blocks_wide, 2].
    """
    clip = clips.flatten()[index]
    shape = (*(clip[name].as_py() for name in ("num_frames", "blocks_high", "blocks_wide")), 2)
    return clip["keyframe"].as_py(), clip["motion"].values.to_numpy().reshape(shape)

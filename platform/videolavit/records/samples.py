"""One planned segment in, one row of a clip shard or one reject out."""

import io
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from videolavit.media import Clip, DecomposeSettings, decompose
from videolavit.media.errors import DurationMismatch, NoVideoStream, SourceUnreadable

from . import schema
from .identity import run_identity
from .inputs import EXTRA, TAR, tar_members
from .storage import StorageSettings, open_source

SEGMENT_VALUES = 3_000_000
"""Motion values of a segment: writing them to Parquet takes some 30 bytes each. Pictures above half a megapixel are
therefore cut shorter than the settings say, to a whole number of clips."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings(DecomposeSettings):
    """How a segment becomes a row.

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

    def identity(self) -> dict[str, Any]:
        """What a run with these settings depends on."""
        return run_identity(self, segment_values=SEGMENT_VALUES)

    def key(self) -> dict[str, Any]:
        """What a sample's name depends on."""
        return asdict(self)


def decompose_row(row: dict[str, Any], settings: SampleSettings, storage: StorageSettings) -> pa.Table:
    """Decomposes a planned segment.

    Args:
        row: Of a plan (`schema.PLAN`).

    Returns:
        One-row table of `schema.CLIPS`, with the core-seconds it took in the metadata.

    Raises:
        MediaError: the typed reason why there is none.
    """
    started = time.process_time()
    if row["url"].lower().endswith(TAR) and row["offset"] is None:
        _explain_tar(row["url"], storage)
    clips = _ClipColumns(settings)
    with open_source(row["url"], storage, row["offset"] or 0, row["length"]) as file:
        for clip in decompose(file, settings, start_seconds=row["start_seconds"], end_seconds=row["end_seconds"]):
            clips.add(clip)
            _check_length(row, clips, settings)
    return pa.table(
        {
            "sample_id": [row["sample_id"]],
            "source": [row["source"]],
            "text": [row["text"]],
            "start_seconds": [row["start_seconds"]],
            "end_seconds": [clips.end_seconds],
            "fps": [float(settings.fps)],
            "width": [clips.width],
            "height": [clips.height],
            "num_clips": [len(clips)],
            "clips": clips.array(),
        },
        schema=schema.CLIPS.with_metadata({schema.WORK_SECONDS: f"{time.process_time() - started:.6f}"}),
    )


def _explain_tar(url: str, storage: StorageSettings) -> NoReturn:
    """Raises why a tar was planned as a whole and not member by member."""
    if tar_members(url, storage):
        raise SourceUnreadable(f"the members of {url} could not be listed when it was planned; retry it")
    raise NoVideoStream("a tar without video members")


def _check_length(row: dict[str, Any], clips: "_ClipColumns", settings: SampleSettings) -> None:
    """Keeps a segment that runs to the end from growing without bound."""
    planned = row["planned_seconds"]
    limit = row["start_seconds"] + (planned or 0.0) + settings.segment_seconds
    if row["end_seconds"] is not None or clips.end_seconds <= limit:
        return
    if planned is None:
        raise DurationMismatch(f"runs beyond {limit:g} s, and its header could not be read before; retry it")
    raise DurationMismatch(f"runs beyond {limit:g} s; its header declares {row['start_seconds'] + planned:g} s")


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
    """The uint8 [height, width, 3] of a stored keyframe."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def stored_clips(clips: pa.ListArray) -> Iterator[tuple[bytes, NDArray[np.int16]]]:
    """The keyframe files and motion grids (as `clip_motion`) of a shard's `clips`, without a Python object a value."""
    structs = clips.flatten()
    motion = structs.field("motion")
    for index in range(len(structs)):
        shape = (*(structs.field(name)[index].as_py() for name in ("num_frames", "blocks_high", "blocks_wide")), 2)
        values = motion[index].values.to_numpy()
        yield structs.field("keyframe")[index].as_py(), values.reshape(shape)


def clip_motion(clip: dict[str, Any]) -> NDArray[np.int16]:
    """The motion of a stored clip (a struct of `schema.CLIP`) as int16 [num_frames, blocks_high, blocks_wide, 2]."""
    shape = (clip["num_frames"], clip["blocks_high"], clip["blocks_wide"], 2)
    return np.asarray(clip["motion"], np.int16).reshape(shape)


def extra_columns(row: dict[str, Any]) -> dict[str, Any]:
    """A plan row's manifest columns under the names that they have in a shard."""
    return {name.removeprefix(EXTRA): value for name, value in row.items() if name.startswith(EXTRA)}

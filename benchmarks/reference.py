"""The work that is measured: the reference procedure of decomposition, and what it is compared with.

Every function here runs in a fresh process, so this module imports next to nothing, and a function imports what it
needs itself: no side pays time or memory for another's libraries.

The reference writes a re-encoded file with the `ffmpeg` command, reads every frame and its vectors back with
`motion-vector-extractor`, puts the vectors of all frames on dense float64 canvases, and pools those with PyTorch. It is
written here from that description, without loops over vectors or pixels. A second, lean version keeps one canvas at a
time and pools it in numpy; it is no reference, but says how much of the difference is only a matter of canvases.
"""

import functools
import importlib
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from videolavit.records.rows import PlanRow

CLIP_FRAMES, GOP_FRAMES, BLOCK = 24, 12, 16
EMPTY, MASKED = -10000.0, -1000.0
VECTOR_STD = (0.0993703 / 10, 0.1130276 / 10)
GRID = (20, 36)
DECODER_THREADS = 8

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ClipResult:
    """Clip that every side produces: keyframe uint8 [height, width, 3] RGB, features float32 [2, 24, 20, 36]."""

    start_frame: int
    num_frames: int
    keyframe: NDArray[np.uint8]
    features: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Frame:
    """A frame as `motion-vector-extractor` reads it: picture type, RGB picture, rows of vectors."""

    kind: str
    picture: NDArray[np.uint8]
    vectors: NDArray[np.int32]


# ---- the sides ----------------------------------------------------------------------------------------------------


def reference_clips(path: str) -> Iterator[ClipResult]:
    """The clips of a video by the reference procedure: pictures and canvases of the whole video are kept."""
    with _reencoded(path) as stream:
        frames = [(frame, _canvas(frame)) for frame in _extracted(stream)]
    for start, group in _groups(frames, lambda pair: pair[0].kind):
        canvases = np.stack([canvas for _, canvas in group])
        yield _result(start, [frame for frame, _ in group], _torch_pooled(canvases))


def lean_reference_clips(path: str) -> Iterator[ClipResult]:
    """Clips of the reference procedure, but a canvas is pooled as soon as it is filled, and only a clip is kept."""
    with _reencoded(path) as stream:
        for start, group in _groups(_extracted(stream), lambda frame: frame.kind):
            grids = [_pooled(_canvas(frame)[None])[0] for frame in group]
            yield _result(start, group, np.stack(grids))


def our_clips(path: str) -> Iterator[ClipResult]:
    """The clips of a video by `videolavit.media`."""
    from videolavit.media import decompose

    for clip in decompose(path):
        yield ClipResult(clip.start_frame, clip.num_frames, clip.keyframe, clip.features())


IMPORTS = {
    "reference": ("imageio_ffmpeg", "mvextractor.videocap", "torch.nn.functional"),
    "lean reference": ("imageio_ffmpeg", "mvextractor.videocap"),
    "ours": ("videolavit.media",),
}
"""Modules that a side's process imports before its clock starts."""

SIDES: dict[str, Callable[[str], Iterator[ClipResult]]] = {
    "reference": reference_clips,
    "lean reference": lean_reference_clips,
    "ours": our_clips,
}


# ---- steps of the reference ---------------------------------------------------------------------------------------


@contextmanager
def _reencoded(path: str) -> Iterator[str]:
    """The re-encoded stream of a video as a temporary file."""
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-y", "-loglevel", "error", "-nostdin", "-threads", str(DECODER_THREADS), "-i", path]
    command += ["-filter:v", "fps=6", "-b:v", "8000k", "-c:v", "mpeg4", "-threads", "1", "-f", "rawvideo"]
    with tempfile.TemporaryDirectory(prefix="videolavit-bench-") as scratch:
        stream = str(Path(scratch) / "reencoded.mp4")
        subprocess.run([*command, stream], check=True)
        yield stream


def _extracted(stream: str) -> Iterator[_Frame]:
    from mvextractor.videocap import VideoCap

    reader = VideoCap()
    if not reader.open(stream):
        raise RuntimeError("motion-vector-extractor cannot open the re-encoded stream")
    while True:
        found, picture, vectors, kind = reader.read()
        if not found:
            break
        yield _Frame(kind, picture[:, :, ::-1], vectors)
    reader.release()


def _groups(frames: Iterable[T], kind: Callable[[T], str]) -> Iterator[tuple[int, list[T]]]:
    """(index of the first frame, frames) of clips: 24 frames, or up to an I frame out of the regular pattern."""
    start, group = 0, list[T]()
    for index, frame in enumerate(frames):
        if len(group) == CLIP_FRAMES or (group and kind(frame) == "I" and len(group) != GOP_FRAMES):
            yield start, group
            start, group = index, []
        group.append(frame)
    if group:
        yield start, group


def _canvas(frame: _Frame) -> NDArray[np.float64]:
    """Normalised vectors, each written at its destination pixel of a [height, width, 2] canvas."""
    height, width = frame.picture.shape[:2]
    canvas = np.full((height, width, 2), EMPTY)
    vectors = frame.vectors
    if len(vectors):
        moved = vectors[:, :1] * vectors[:, 7:9] / vectors[:, 9:10] / (width, height) / VECTOR_STD
        canvas[np.clip(vectors[:, 6], 0, height - 1), np.clip(vectors[:, 5], 0, width - 1)] = moved
    return canvas


def _torch_pooled(canvases: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maximum of every block of 16 x 16 pixels of [frames, height, width, 2], as the published code does it."""
    from torch import from_numpy
    from torch.nn.functional import max_pool2d, pad

    clip = from_numpy(canvases).permute(0, 3, 1, 2)
    clip = pad(clip, (0, -clip.shape[3] % BLOCK, 0, -clip.shape[2] % BLOCK), value=EMPTY)
    pooled: NDArray[np.float64] = max_pool2d(clip, BLOCK, BLOCK).permute(0, 2, 3, 1).numpy()
    return pooled


def _pooled(canvases: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maximum of every block of 16 x 16 pixels of [frames, height, width, 2], after padding to whole blocks."""
    frames, height, width, _ = canvases.shape
    if height % BLOCK or width % BLOCK:
        margins = ((0, 0), (0, -height % BLOCK), (0, -width % BLOCK), (0, 0))
        canvases = np.pad(canvases, margins, constant_values=EMPTY)
    high, wide = canvases.shape[1] // BLOCK, canvases.shape[2] // BLOCK
    # One axis after the other: numpy's maximum over both at once is several times slower.
    rows = canvases.reshape(frames, high, BLOCK, wide * BLOCK * 2).max(axis=2)
    pooled: NDArray[np.float64] = rows.reshape(frames, high, wide, BLOCK, 2).max(axis=3)
    return pooled


def _result(start: int, frames: list[_Frame], grids: NDArray[np.float64]) -> ClipResult:
    """Masks, fills frame 12 and resizes the pooled [frames, blocks_high, blocks_wide, 2]."""
    clip = np.zeros((CLIP_FRAMES, *grids.shape[1:]))
    clip[: len(grids)] = np.where(grids < MASKED, 0, grids)
    clip[12] = (clip[11] + clip[13]) / 2
    rows, columns = _cubic_weights(clip.shape[1], GRID[0]), _cubic_weights(clip.shape[2], GRID[1])
    features = rows @ clip.transpose(3, 0, 1, 2) @ columns.T
    return ClipResult(start, len(frames), np.ascontiguousarray(frames[0].picture), features.astype(np.float32))


@functools.cache
def _cubic_weights(source: int, target: int) -> NDArray[np.float64]:
    """Weights [target, source]: cubic convolution with a = -0.75, half-pixel centres, edge values repeated."""
    position = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(position).astype(int)
    weights = np.zeros((target, source))
    for tap in range(-1, 3):
        x = np.abs(position - (first + tap))
        value = np.where(x <= 1, 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4))
        np.add.at(weights, (np.arange(target), np.clip(first + tap, 0, source - 1)), value)
    return weights


# ---- what the child processes run ---------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """User and system time of this process and of the children that it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(side: str, path: str) -> tuple[float, float]:
    """CPU seconds of one side for one video: for starting the process with its imports, and for the work."""
    for name in IMPORTS[side]:
        importlib.import_module(name)
    started = cpu_seconds()
    for _ in SIDES[side](path):
        pass
    return started, cpu_seconds() - started


def clips(side: str, path: str) -> list[ClipResult]:
    """The clips of one side, for comparing them."""
    return list(SIDES[side](path))


def stream_peak(path: str) -> dict[str, float]:
    """Peak memory of a process that reads a whole file, clip by clip."""
    for _ in our_clips(path):
        pass
    return {"parent": peak_megabytes(os.getpid())}


def unit_peak(rows: "list[PlanRow]", output: str) -> dict[str, float]:
    """Peak memory of a pipeline's worker without Ray: segments decomposed by a child, written to a shard here."""
    from videolavit.records.kinds import read_clips
    from videolavit.records.rows import video_sample_to
    from videolavit.records.samples import SampleSettings
    from videolavit.records.shards import ShardWriter
    from videolavit.records.source_files import isolated
    from videolavit.records.storage import Folder, StorageSettings

    settings, storage = SampleSettings(), StorageSettings()
    clips = isolated(read_clips, storage)
    with ShardWriter(Folder(output, storage), rows[0].shard or "", []) as writer:
        for row in rows:
            writer.add(video_sample_to(clips(row, settings, storage, time_limit=1500.0)), row.extra)
        writer.commit()
    peaks = {"parent": peak_megabytes(os.getpid()), "child": peak_megabytes(clips.pid or 0)}
    clips.close()
    return peaks


def peak_megabytes(pid: int) -> float:
    """Largest resident size that a running process has had, in units of 10^6 bytes.

    From the kernel's VmHWM: `ru_maxrss` of a fresh process starts at the size of the process that started it.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6

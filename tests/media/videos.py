"""Shared parts of the media tests: videos, the reference command, and functions that misbehave in a child process."""

import ctypes
import hashlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from videolavit.media import DecomposedFrame, DecomposeSettings, MediaError, VideoInput, iter_frames, motion_grid, probe
from videolavit.sandbox.sendable import sendable

NOBODY = 65534


# ---- making files ------------------------------------------------------------------------------------------------


def ffmpeg(*arguments: str | Path) -> None:
    """Runs the ffmpeg binary.

    Raises:
        RuntimeError: it failed; holds what it printed.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{run.stderr[-2000:]}")


def moving(size: str = "160x120", rate: str = "30", seconds: float = 3) -> tuple[str, ...]:
    """Arguments of a synthetic input with moving content."""
    return ("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds:g}")


def make(path: Path, *steps: Sequence[str]) -> Path:
    """Makes a video in steps of the ffmpeg binary; `{}` in a step is the file of the step before."""
    made = path
    for number, step in enumerate(steps, 1):
        target = path if number == len(steps) else path.with_name(f"step{number}-{path.name}")
        ffmpeg(*(part.replace("{}", str(made)) for part in step), target)
        made = target
    return path


def without_default_duration(matroska: bytes) -> bytes:
    """The file with its track's frame duration overwritten by a Void element, so that it declares no frame rate."""
    start = matroska.index(b"\x23\xe3\x83")
    size = matroska[start + 3] & 0x7F
    return matroska[:start] + b"\xec" + bytes([0x80 | (size + 2)]) + bytes(size + 2) + matroska[start + 4 + size :]


# ---- the reference command and what is compared ------------------------------------------------------------------


@sendable
@dataclass(frozen=True)
class Outline:
    """All that must be equal of two decompositions: picture types, every vector, every keyframe pixel."""

    types: str
    motion_sha256: str
    keyframes_sha256: tuple[str, ...]


def reference(path: Path, before: Sequence[str] = (), after: Sequence[str] = ()) -> Outline:
    """The reference command, then a decode of its output with motion-vector export.

    Args:
        before: Options in front of `-i`, such as `-ss`.
        after: Options behind it, such as `-t`.
    """
    encoded = path.with_name(f"{path.name}.{'_'.join((*before, *after))}.m4v")
    resample = ("-filter:v", "fps=6", "-b:v", "8000k", "-c:v", "mpeg4", "-threads", "1", "-an", "-f", "rawvideo")
    ffmpeg(*before, "-i", path, *after, *resample, encoded)
    types, motion, keyframes = "", hashlib.sha256(), []
    with av.open(str(encoded), format="m4v") as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"flags2": "+export_mvs"}
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        for frame in container.decode(stream):
            kind = PictureType(frame.pict_type).name
            types += kind
            side_data: Any = frame.side_data
            vectors = None if kind == "I" else side_data["MOTION_VECTORS"].to_ndarray()
            motion.update(motion_grid(vectors, frame.height, frame.width)[0].tobytes())
            if kind == "I":
                keyframes.append(hashlib.sha256(frame.to_ndarray(format="rgb24").tobytes()).hexdigest())
    encoded.unlink()
    return Outline(types, motion.hexdigest(), tuple(keyframes))


def outline(source: VideoInput, start_seconds: float = 0.0, end_seconds: float | None = None) -> Outline:
    """Outline of the library's decomposition, in the form of `reference_outline`."""
    types, motion, keyframes = "", hashlib.sha256(), []
    for frame in iter_frames(source, start_seconds=start_seconds, end_seconds=end_seconds):
        types += frame.type
        motion.update(frame.motion.tobytes())
        if frame.image is not None:
            keyframes.append(hashlib.sha256(frame.image.tobytes()).hexdigest())
    return Outline(types, motion.hexdigest(), tuple(keyframes))


def consume(frames: Iterable[DecomposedFrame]) -> int:
    """Number of decoded frames."""
    return sum(1 for _ in frames)


# ---- functions for a child process -------------------------------------------------------------------------------


def process_id() -> int:
    return os.getpid()


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


def spin_in_native_code() -> None:
    """A loop that never releases the interpreter lock, as a native library may."""
    pattern = ctypes.create_string_buffer(b"x" * 1_000_000)
    while True:
        bytes(pattern).count(b"y")


def die(number: int) -> None:
    """Sends itself a signal, as a crash in a decoder does."""
    os.kill(os.getpid(), number)
    signal.pause()


def modules(*names: str) -> list[str]:
    """Modules of the process whose names begin with one of these."""
    return [module for module in sys.modules if module.startswith(names)]


@cache
def cached(number: int) -> int:
    return number**2


def leave(status: int) -> None:
    os._exit(status)


def fail(message: str) -> None:
    raise MediaError(message)


def shout(text: str) -> str:
    """Prints from Python and from below Python."""
    print(text, flush=True)
    os.write(1, text.encode())
    return text.upper()


def many_bytes(count: int) -> bytes:
    return bytes(range(256)) * (count // 256)


def outline_on_one_cpu(source: VideoInput) -> Outline:
    """The decomposition in a process that sees a single processor."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return outline(source)


def outcome(source: VideoInput, start_seconds: float = 0.0, end_seconds: float | None = None) -> str:
    """`ok`, or the name of the MediaError; any other exception propagates."""
    try:
        probe(source)
        consume(iter_frames(source, start_seconds=start_seconds, end_seconds=end_seconds))
    except MediaError as error:
        return type(error).__name__
    return "ok"


def outcome_and_memory(source: VideoInput, settings: DecomposeSettings) -> tuple[str, int]:
    """The error of a decomposition, and by how many bytes the process grew at its largest."""
    before = _peak_memory()
    try:
        consume(iter_frames(source, settings))
    except MediaError as error:
        return type(error).__name__, _peak_memory() - before
    return "ok", _peak_memory() - before


def _peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_declaring(file: Path, frames: Iterable[NDArray[np.uint8]], declared: float) -> None:
    """Makes a Matroska file of frames, 64 x 48 and 6 per second, whose header declares another length, in seconds.

    Matroska has its length in milliseconds, as a double behind the bytes 44 89 88.
    """
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(file.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3
    data[place : place + 8] = struct.pack(">d", declared * 1000)
    file.write_bytes(data)

"""Frames in, mp4 out."""

import os
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray


def write_mp4(
    frames: Iterable[NDArray[np.uint8]],
    path: str | os.PathLike[str] | BinaryIO,
    fps: float | Fraction,
    *,
    crf: int = 18,
    threads: int = 1,
) -> int:
    """Writes frames as H.264 in mp4; a file by name has its index in front, so that it plays while it loads.

    Args:
        frames: uint8 [height, width, 3] RGB, all of one size. An odd side is extended by repeating its last line,
            since 4:2:0 video has even sides.
        path: File to write, or a seekable binary file object.
        fps: Frames per second.
        crf: Quality, lower is better; 18 is visually close to lossless.
        threads: Encoder threads. The bytes depend on it.

    Returns:
        How many frames were written.

    Raises:
        ValueError: no frames, or a frame of another size or type.
    """
    target: Any = path
    options = {}
    if isinstance(path, str | os.PathLike):
        target, options = os.fspath(path), {"movflags": "+faststart"}  # which opens the file a second time, by name
    shape = None
    count = 0
    with av.open(target, "w", format="mp4", options=options) as container:
        stream: Any = None
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(f"a frame must be uint8 [height, width, 3], not {frame.dtype} {list(frame.shape)}")
            if shape is None:
                shape = frame.shape
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000))
                stream.height, stream.width = (side + side % 2 for side in shape[:2])
                stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf)}
                stream.codec_context.thread_count = threads
            if frame.shape != shape:
                raise ValueError(f"frame {count} is {list(frame.shape)}, the first was {list(shape)}")
            even = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            count += 1
        if stream is None:
            raise ValueError("no frames to write")
        container.mux(stream.encode(None))
    return count

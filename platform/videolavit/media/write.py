"""Writing of frames to mp4 files."""

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray


class Mp4Writer:
    """Context manager that writes frames as H.264 in mp4, one at a time.

    A file given by its name has the index in front, so that it plays while it loads.

    Args:
        path: File to write: its name, or a seekable binary file object.
        fps: Frames per second.
        crf: Constant rate factor of x264; lower is better, and 18 is visually close to lossless.
        threads: Number of encoder threads; another number gives other bytes.
        metadata: Metadata of the container: `title`, `comment` and the other keys of mp4.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | BinaryIO,
        fps: float | Fraction,
        *,
        crf: int = 18,
        threads: int = 1,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        target: Any = path
        options = {}
        if isinstance(path, str | os.PathLike):
            target, options = (
                os.fspath(path),
                {"movflags": "+faststart"},
            )  # faststart opens the file a second time, by name
        self._fps, self._crf, self._threads = Fraction(fps).limit_denominator(100_000), crf, threads
        self._container: Any = av.open(target, "w", format="mp4", options=options)
        self._container.metadata.update(metadata or {})
        self._stream: Any = None
        self._shape: tuple[int, ...] = ()
        self.count = 0

    def __enter__(self) -> "Mp4Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is not None:
                return  # after an error, such as of a full disk, libav crashes at the next packet
            if self._stream is None:
                raise ValueError("no frames to write")
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Appends a frame.

        Args:
            frame: uint8 [height, width, 3] RGB. An odd side is extended by repeating its last line, since the
                sides of 4:2:0 video are even.

        Raises:
            ValueError: a frame of another size than the first, or no image.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame must be uint8 [height, width, 3], not {frame.dtype} {list(frame.shape)}")
        if self._stream is None:
            self._start(frame.shape)
        if frame.shape != self._shape:
            raise ValueError(f"frame {self.count} is {list(frame.shape)}, the first was {list(self._shape)}")
        even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        self.count += 1

    def _start(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._stream = self._container.add_stream("libx264", rate=self._fps)
        self._stream.height, self._stream.width = (side + side % 2 for side in shape[:2])
        # with its macroblock tree, x264 gives other bytes from run to run at most widths
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": str(self._crf), "x264-params": "mbtree=0"}
        self._stream.codec_context.thread_count = self._threads


def write_mp4(
    frames: Iterable[NDArray[np.uint8]],
    path: str | os.PathLike[str] | BinaryIO,
    fps: float | Fraction,
    *,
    crf: int = 18,
    threads: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Writes frames with an `Mp4Writer`, and returns their number.

    Raises:
        ValueError: no frames, or a frame of another size or type.
    """
    with Mp4Writer(path, fps, crf=crf, threads=threads, metadata=metadata) as writer:
        for frame in frames:
            writer.add(frame)
    return writer.count

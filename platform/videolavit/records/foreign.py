"""Pictures and videos of others, decoded in child processes of the sandbox: none is decoded in this one."""

import contextlib
import functools
import io
import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from videolavit.media import Clip, DecomposeSettings, MediaError, VideoInfo, decompose, iter_pictures, probe
from videolavit.media.errors import StreamEnded
from videolavit.media.resize import resize_picture
from videolavit.sandbox.call import Arguments, IsolatedIterator, Result
from videolavit.sandbox.pool import ChildPool

from .kinds import open_named_video
from .pictures import decode_image
from .samples import decode_picture
from .source_files import SourceFiles, isolated, naming_faults
from .storage import StorageSettings, open_source
from .table_reader import SourceChanged

DECODE_SECONDS = 300.0
"""Longest time of decoding a picture, a whole video, or the next clip of one, in seconds."""

SAME_PICTURE = 32.0
"""Mean difference of 8-bit values between a keyframe and the frame it was encoded from; two scenes differ more."""


@dataclass(frozen=True)
class FramesPlace:
    """Place of frames in a video.

    Args:
        seconds: Start of the segment that frames are counted from, in seconds: a seek to the frames themselves may be
            off by one.
        fps: Frames per second.
        first: Number of the first frame.
        count: Number of frames.
    """

    seconds: float
    fps: int
    first: int
    count: int


def read_picture(source: str | bytes, storage: StorageSettings, size: int | None = None) -> NDArray[np.uint8]:
    """Decodes a picture, uint8 [height, width, 3].

    Args:
        source: Address, or the file itself.
        size: See `decode_image`.

    Raises:
        MediaError: it cannot be read or decoded.
    """
    return _in_child(_picture, storage, source, storage, size)


def read_keyframe(data: bytes, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decodes the stored keyframe of a clip, uint8 [height, width, 3].

    Args:
        size: Height and width of the result, in pixels; None keeps those of the keyframe.

    Raises:
        MediaError: see `decode_picture`.
    """
    return _in_child(_keyframe, StorageSettings(), data, size)


def read_header(source: str, storage: StorageSettings) -> VideoInfo:
    """Reads the header of a video. Raises MediaError."""
    return _in_child(_header, storage, source, storage)


def read_clips(source: str | bytes, storage: StorageSettings, settings: DecomposeSettings) -> list[Clip]:
    """Decomposes a video, by its address or the file itself, to clips. Raises MediaError."""
    return _in_child(_clips, storage, source, storage, settings)


def iterate_clips(
    source: str | bytes, storage: StorageSettings, settings: DecomposeSettings
) -> Generator[Clip, None, None]:
    """Decomposes a video to clips one by one, in bounded memory. Raises MediaError."""
    return _from_child(_each_clip, storage, source, storage, settings)


def iterate_pictures(
    source: str | bytes, storage: StorageSettings, settings: DecomposeSettings
) -> Generator[NDArray[np.uint8], None, None]:
    """Decodes the pictures of a video that its clips have. Raises MediaError."""
    return _from_child(_each_picture, storage, source, storage, settings)


def read_frames(
    source: str, place: FramesPlace, keyframe: bytes, size: tuple[int, int], storage: StorageSettings
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Decodes the frames of a stored clip again.

    Args:
        source: Name of the video, as the column `source` of a clip shard has it.
        keyframe: Stored keyframe, which must be alike the first frame.
        size: Height and width of the result, in pixels.

    Returns:
        The keyframe, uint8 [height, width, 3], and the frames, uint8 [frames, height, width, 3].

    Raises:
        MediaError: the video cannot be read any more, or has changed.
    """
    return _in_child(_frames, storage, source, place, keyframe, size, storage)


# ---- in this process ------------------------------------------------------------------------------------------------


def _in_child(function: Callable[[*Arguments], Result], storage: StorageSettings, *arguments: *Arguments) -> Result:
    with naming_faults():
        result: Result = _pool(function, storage)(*arguments, time_limit=DECODE_SECONDS)
    return result


@functools.cache
def _pool(function: Any, storage: StorageSettings) -> ChildPool[*tuple[Any, ...], Any]:
    return ChildPool(lambda: isolated(function, storage))


def _from_child(
    function: Callable[[*Arguments], Iterator[Result]], storage: StorageSettings, *arguments: *Arguments
) -> Generator[Result, None, None]:
    child = IsolatedIterator(function, SourceFiles(storage), errors=(MediaError,))
    with contextlib.closing(child), naming_faults():
        yield from child(*arguments, time_limit=DECODE_SECONDS)


# ---- in a child -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(source: str | bytes, storage: StorageSettings) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    with open_source(source, storage) as file:
        yield file


def _picture(source: str | bytes, storage: StorageSettings, size: int | None) -> NDArray[np.uint8]:
    with _opened(source, storage) as file:
        return decode_image(file.read(), size)


def _keyframe(data: bytes, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    picture = decode_picture(data)
    return picture if size is None else resize_picture(picture, *size)


def _header(source: str, storage: StorageSettings) -> VideoInfo:
    with _opened(source, storage) as file:
        return probe(file)


def _clips(source: str | bytes, storage: StorageSettings, settings: DecomposeSettings) -> list[Clip]:
    return list(_each_clip(source, storage, settings))


def _each_clip(source: str | bytes, storage: StorageSettings, settings: DecomposeSettings) -> Iterator[Clip]:
    with _opened(source, storage) as file:
        yield from decompose(file, settings)


def _each_picture(
    source: str | bytes, storage: StorageSettings, settings: DecomposeSettings
) -> Iterator[NDArray[np.uint8]]:
    with _opened(source, storage) as file:
        yield from iter_pictures(file, settings)


def _frames(
    source: str, place: FramesPlace, keyframe: bytes, size: tuple[int, int], storage: StorageSettings
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    with open_named_video(source, storage) as file:
        pictures = iter_pictures(file, DecomposeSettings(fps=place.fps), start_seconds=place.seconds)
        frames: list[NDArray[np.uint8]] = []
        with contextlib.suppress(StreamEnded):
            frames.extend(itertools.islice(pictures, place.first, place.first + place.count))
    stored = decode_picture(keyframe)
    if len(frames) < place.count or not _alike(frames[0], stored):
        raise SourceChanged(f"{source} is not the video that it was when it was decomposed")
    return resize_picture(stored, *size), np.stack([resize_picture(one, *size) for one in frames])


def _alike(frame: NDArray[np.uint8], keyframe: NDArray[np.uint8]) -> bool:
    if frame.shape != keyframe.shape:
        return False
    return float(np.abs(frame.astype(np.int16) - keyframe).mean()) < SAME_PICTURE

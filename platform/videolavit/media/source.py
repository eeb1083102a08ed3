"""Opening of videos: the only module that passes untrusted bytes to libavformat, and the limits that it sets.

Only the bytes of the given source are read. The container must be on the allow list, no protocol is available to the
demuxer, and a request to open anything else fails, so that a playlist cannot reach another file or address.
"""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.logging
from av.container import InputContainer
from av.video.stream import VideoStream

from .errors import (
    CorruptVideo,
    EncryptedVideo,
    ForbiddenFormat,
    FrameTooLarge,
    MediaError,
    NoVideoStream,
    SourceEmpty,
    SourceForbidden,
    SourceMissing,
    SourceUnreadable,
    StillPicture,
    UnexpectedError,
    UnknownFormat,
    UnknownFrameRate,
    UnsupportedCodec,
)
from .settings import DecomposeSettings

VideoInput = str | os.PathLike[str] | bytes | BinaryIO

ALLOWED_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
    "mpegts",
    "mpeg",
    "flv",
    "live_flv",
    "asf",
    "ogg",
    "rm",
    "nut",
    "ivf",
    "mxf",
    "dv",
    "h264",
    "hevc",
    "m4v",
    "mpegvideo",
    "obu",
    "gif",
    "apng",
)
"""Self-contained containers and elementary streams. None of them can refer to another file while external references
are off, which is libavformat's default for mov."""

_PICTURE_BRANDS = frozenset({"mif1", "mif2", "msf1", "heic", "heix", "heim", "heis", "hevc", "hevx", "avif", "avis"})
"""Brands of HEIF files (HEIC, AVIF), which hold still pictures, sequences of pictures, or both."""

ENCODER_SIDE = 8191
"""Largest frame side that the mpeg4 encoder takes, in pixels."""

_READ_SIZE = 1 << 18
_LARGEST_OFFSET = 1 << 43
"""Largest offset of a seek, in bytes; file systems and object stores have various limits above it."""

_TS_PACKETS = (188, 192, 204)
"""Lengths of a transport stream's packets: plain, with a time code, with error correction; in bytes."""

_FIRST_PACKETS = 8
"""Number of packets that are searched for a mark of encryption where the stream's header cannot be read."""

_SCRAMBLED_WITHIN = 1 << 20
"""Number of bytes of a transport stream that are searched for scrambled packets."""

_HEAD_SIZE = 256
_SEGMENT = b"\x18\x53\x80\x67"
"""Element id of the Matroska segment, which holds everything after a short header."""

_EBML = b"\x1a\x45\xdf\xa3"
_SIGNATURES = ((4, b"ftyp"), (4, b"moov"), (0, _EBML), (8, b"AVI "))
"""Offsets and bytes that identify allowed containers whose header may be unreadable."""

av.logging.restore_default_callback()  # the Python log callback deadlocks with decoder threads (PyAV #2394)
av.logging.set_libav_level(av.logging.PANIC)


@contextmanager
def open_video(source: VideoInput, settings: DecomposeSettings) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a source and selects its video stream.

    Raises:
        MediaError: the source cannot be read, or must not be decoded.
    """
    with _reader(source) as file, _naming_faults():
        file.seek(0)
        head = file.read(_HEAD_SIZE)
        if not head:
            raise SourceEmpty("the file is empty")
        file.seek(0, os.SEEK_END)
        _check_length(file.tell(), _declared_end(head))
        file.seek(0)
        with _open_container(file, head) as container:
            stream = _best_video_stream(container)
            for other in container.streams:
                if other is not stream:
                    other.discard = av.stream.Discard.all
            _check_encryption(container, stream, file)
            try:
                _check_stream(stream, settings)
            except MediaError:
                # Encrypted data read as a header is noise: libavformat looks for sizes and formats in it all the same.
                if _begins_encrypted(container, stream):
                    raise EncryptedVideo("the video is encrypted") from None
                raise
            _check_length(container.size, _indexed_end(container, stream))
            yield container, stream


@contextmanager
def _reader(source: VideoInput) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise SourceMissing(f"no such file: {path}") from None
        except PermissionError:
            raise SourceForbidden(f"no permission to read {path}") from None
        except OSError as error:
            raise SourceUnreadable(f"{path}: {error.strerror}") from None
        with file:
            yield file
    else:
        yield source


@contextmanager
def _naming_faults() -> Iterator[None]:
    """Converts errors of libav and of the file object to MediaError."""
    try:
        yield
    except (MediaError, MemoryError):
        raise
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise CorruptVideo(f"damaged or cut short: {error.strerror}") from error
    except av.error.FFmpegError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"decoding it: {error.strerror}") from error
        raise CorruptVideo(f"cannot be decoded: {error.strerror}") from error
    except FileNotFoundError as error:
        raise SourceMissing(f"no such file or key: {error}") from error
    except PermissionError as error:
        raise SourceForbidden(f"no permission to read it: {error}") from error
    except OSError as error:
        raise SourceUnreadable(f"reading failed: {error}") from error
    except Exception as error:  # one file may not end a run, whatever it does to a library
        raise UnexpectedError(f"{type(error).__name__}: {error}") from error


class _LibavFile:
    """File object for libavformat.

    Damaged files make libavformat seek to impossible offsets. It expects an error code, as from the operating system,
    and then continues as it does in the command; an exception of the file object would end the reading.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._seek, self.read, self.tell, self.seekable = file.seek, file.read, file.tell, file.seekable
        name = getattr(file, "name", None)
        self.name = name if isinstance(name, str) else ""  # libavformat uses the extension to guess the format

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and not 0 <= offset < _LARGEST_OFFSET:
            return -errno.EINVAL
        return self._seek(offset, whence)


def _open_container(file: BinaryIO, head: bytes) -> InputContainer:
    try:
        return av.open(
            _LibavFile(file),
            mode="r",
            options={
                "format_whitelist": ",".join(ALLOWED_FORMATS),
                "protocol_whitelist": "none",
                "fflags": "-genpts",  # PyAV asks for invented timestamps, the command does not
            },
            metadata_errors="replace",
            buffer_size=_READ_SIZE,
            io_open=_refuse_nested_open,
        )
    except (av.error.ArgumentError, av.error.InvalidDataError) as error:
        if any(head[offset:].startswith(signature) for offset, signature in _SIGNATURES):
            raise CorruptVideo("a video container without a readable index: damaged or cut short") from None
        if isinstance(error, av.error.ArgumentError):
            # libavformat answers "invalid argument" when the format it recognised is not on the list.
            raise ForbiddenFormat("not an allowed video container (a playlist, a script, a picture or sound)") from None
        raise UnknownFormat("not a readable video file: unknown format, or damaged in its first bytes") from None


def _refuse_nested_open(url: str, flags: int, options: dict[str, Any]) -> Any:
    raise PermissionError("a video may not open other files")


def _best_video_stream(container: InputContainer) -> VideoStream:
    """Selects a stream as the `ffmpeg` command does: flagged as default, then the largest frame; no cover images."""

    def score(stream: VideoStream) -> int:
        default = bool(stream.disposition & av.stream.Disposition.default)
        context = stream.codec_context
        return (context.width * context.height if context else 0) + 5_000_000 * default

    covers = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        raise NoVideoStream(f"no video stream among {len(container.streams)} streams")
    if _holds_pictures(container):
        streams = [stream for stream in streams if stream.duration is not None]
        if not streams:
            raise StillPicture("a photo, not a video")
    return max(streams, key=score)  # the first of equals, as the command does


def _holds_pictures(container: InputContainer) -> bool:
    """True for HEIF, whose still pictures are streams of one frame without a duration."""
    brands = container.metadata.get("major_brand", "") + container.metadata.get("compatible_brands", "")
    return any(brands[start : start + 4] in _PICTURE_BRANDS for start in range(0, len(brands), 4))


def _check_stream(stream: VideoStream, settings: DecomposeSettings) -> None:
    context = stream.codec_context
    if context is None:
        raise UnsupportedCodec("no decoder for this video codec")
    check_size(context.width, context.height, settings)
    if context.width < 1 or context.height < 1 or not context.pix_fmt:
        raise CorruptVideo("the stream header has no picture size or pixel format")
    if not stream.guessed_rate:
        raise UnknownFrameRate("the stream declares no frame rate (0/0)")


def _check_encryption(container: InputContainer, stream: VideoStream, file: BinaryIO) -> None:
    """Rejects streams that their container declares as encrypted. In mp4 packets do it, one by one."""
    context = stream.codec_context
    unreadable = context is None or not context.width
    if (
        "enc_key_id" in stream.metadata  # Matroska
        or "asf_protection_type" in map(str.lower, container.metadata)
        or (unreadable and container.format.name == "mpegts" and _is_scrambled(file, stream.id))
    ):
        raise EncryptedVideo("the video is encrypted")


def _begins_encrypted(container: InputContainer, stream: VideoStream) -> bool:
    """True if one of the stream's first packets is marked as encrypted. Moves the container's position."""
    with suppress(av.error.FFmpegError):
        return any(packet.has_sidedata("encryption_info") for packet in islice(container.demux(stream), _FIRST_PACKETS))
    return False


def _is_scrambled(file: BinaryIO, program_id: int) -> bool:
    """True if a packet of a transport stream's elementary stream among the first is marked as scrambled."""
    position = file.tell()
    file.seek(0)
    data = file.read(_SCRAMBLED_WITHIN)
    file.seek(position)
    start = max(data.find(b"\x47"), 0)
    step = next((size for size in _TS_PACKETS if data[start + size : start + size + 1] == b"\x47"), _TS_PACKETS[0])
    headers = (data[at : at + 4] for at in range(start, len(data) - 3, step))
    return any((int.from_bytes(one[1:3]) & 0x1FFF) == program_id and one[3] & 0xC0 for one in headers)


def check_size(width: int, height: int, settings: DecomposeSettings) -> None:
    """Rejects frames above the limits of the settings or of the encoder.

    Raises:
        FrameTooLarge: the frame is larger.
    """
    widest, highest = min(settings.max_width, ENCODER_SIDE), min(settings.max_height, ENCODER_SIDE)
    if width > widest or height > highest:
        raise FrameTooLarge(f"{width} x {height} pixels; the limit is {widest} x {highest}")


def _check_length(size: int, declared: int) -> None:
    """Rejects a file that is shorter than it declares: libavformat reads some of these without an error."""
    if 0 < size < declared:
        raise CorruptVideo(f"cut short: {size} bytes of at least {declared}")


def _indexed_end(container: InputContainer, stream: VideoStream) -> int:
    """Returns the end of the last frame in an mp4's index, in bytes; 0 for formats without an index in the header."""
    if not container.format.name.startswith("mov") or not len(stream.index_entries):
        return 0
    last = stream.index_entries[-1]
    return last.pos + last.size


def _declared_end(head: bytes) -> int:
    """Returns the smallest length of a file by its first bytes: the end of the Matroska segment or mp4 box; else 0."""
    if head.startswith(_EBML):
        start = head.find(_SEGMENT) + len(_SEGMENT)
        return _segment_end(head, start) if len(_SEGMENT) <= start < len(head) else 0
    end = 0
    while head[4:8] == b"ftyp" and end + 16 <= len(head):
        size = int.from_bytes(head[end : end + 4])
        size = (
            int.from_bytes(head[end + 8 : end + 16]) if size == 1 else size
        )  # 1 means that a long size follows the name
        if size < 8:
            break  # 0 means up to the end of the file
        end += size
    return end


def _segment_end(head: bytes, start: int) -> int:
    width = 9 - head[start].bit_length()
    unknown = (1 << 7 * width) - 1  # a live recording
    size = int.from_bytes(head[start : start + width]) & unknown
    return 0 if size == unknown else start + width + size

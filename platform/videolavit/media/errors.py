"""Errors for the reasons why a video cannot be decomposed.

The name of a class is stored as the `error_type` of a reject, so that renaming a class changes a stored value.
"""


class MediaError(ValueError):
    """Fault of the source, not of the program. The message says what is wrong with the source."""


class SourceMissing(MediaError):
    """No file, key or archive member has that name."""


class SourceForbidden(MediaError):
    """The source exists, but credentials or permissions do not allow to open it."""


class SourceUnreadable(MediaError):
    """The storage failed while the source was read."""


class NotAFile(MediaError):
    """The address is that of a folder, a pipe, a socket or a device."""


class SourceTooLarge(MediaError):
    """The storage gives the source only as a whole, and it is larger than what is read so."""


class SourceEmpty(MediaError):
    """The source has zero bytes."""


class UnknownFormat(MediaError):
    """The bytes are no media container that the decoder knows."""


class ForbiddenFormat(MediaError):
    """The container is not on the allow list: a playlist, a script, an image."""


class CorruptVideo(MediaError):
    """The file is damaged or cut short: frames that the header announces cannot be decoded."""


class NoVideoStream(MediaError):
    """The container has only sound or subtitles."""


class UnsupportedCodec(MediaError):
    """The installed libav has no decoder for the video stream."""


class FrameTooLarge(MediaError):
    """The declared frame size is above the limit; nothing was decoded."""


class UnknownFrameRate(MediaError):
    """The stream declares no frame rate (0/0), so its timestamps mean nothing."""


class EncryptedVideo(MediaError):
    """The pictures are encrypted, and there is no key."""


class StillPicture(MediaError):
    """The file is a photo (HEIC, AVIF), not a video. `tokenize` reads it as an image."""


class TooFewFrames(MediaError):
    """The video has fewer than two frames, so it has no motion."""


class StreamEnded(TooFewFrames):
    """The stream ends before the segment begins, although the header declares more."""

    @classmethod
    def before(cls, seconds: float) -> "StreamEnded":
        """The error of a segment that begins at a time, in seconds."""
        return cls(f"no frame at {seconds:g} s or later: the stream ends before, whatever its header declares")


class DurationMismatch(MediaError):
    """The stream runs far beyond the length that its header declares."""


class UnexpectedError(MediaError):
    """A library failed in a way that no other error names. The message holds its error."""

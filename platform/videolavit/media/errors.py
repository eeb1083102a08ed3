"""Why a video cannot be decomposed, as types.

The class name is the `error_type` of a reject row, so a name is part of the data contract.
"""


class MediaError(ValueError):
    """The source is at fault, not the program. The message says what is wrong with it."""


class SourceMissing(MediaError):
    """No file, key or archive member under that name."""


class SourceForbidden(MediaError):
    """It exists, but these credentials or permissions do not open it."""


class SourceUnreadable(MediaError):
    """The storage failed while it was read."""


class SourceEmpty(MediaError):
    """Zero bytes."""


class UnknownFormat(MediaError):
    """The bytes are no media container that the decoder knows."""


class ForbiddenFormat(MediaError):
    """A container that is not on the allow list: a playlist, a script, a picture."""


class CorruptVideo(MediaError):
    """Damaged or cut short: what the header promises cannot be decoded."""


class NoVideoStream(MediaError):
    """Sound or subtitles only."""


class UnsupportedCodec(MediaError):
    """A video stream that this build has no decoder for."""


class FrameTooLarge(MediaError):
    """The declared picture size is above the limit; nothing was decoded."""


class UnknownFrameRate(MediaError):
    """The stream declares no frame rate (0/0), so its timestamps mean nothing."""


class FrameSizeChanged(MediaError):
    """The picture size changes in the middle of the stream."""


class TooFewFrames(MediaError):
    """Fewer than two frames: there is no motion to describe."""


class DurationMismatch(MediaError):
    """The stream runs far beyond the length that its header declares."""

"""Names of samples, and what a run depends on. Both are explicit lists of stored names: renaming a field or adding a
setting moves neither."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Collection, Mapping
from typing import Any

import av

from videolavit import __version__

from . import schema
from .samples import SEGMENT_VALUES, SampleSettings

VERSIONS = ("av", "codecs", "numpy", "pillow", "torch")
"""Entries of a run's identity that are versions of libraries: a difference can be accepted by name."""


class IdentityMismatch(ValueError):
    """The output folder was made with other settings or other libraries; the message says which."""


def identifying_settings(settings: SampleSettings) -> dict[str, Any]:
    """Settings that decide what a sample is, by their stored names. Version 1 of the list.

    A later setting is added only where its value is not the default, so that samples made before keep their names.
    """
    return {
        "fps": settings.fps,
        "bit_rate": settings.bit_rate,
        "policy": settings.policy,
        "max_clips": settings.max_clips,
        "max_width": settings.max_width,
        "max_height": settings.max_height,
        "keyframe_format": settings.keyframe_format,
        "segment_seconds": settings.segment_seconds,
    }


def sample_id(
    source: str, start_seconds: float, depends_on: Mapping[str, Any], end_seconds: float | None = None
) -> str:
    """Stable name of a sample, as 32 hexadecimal digits.

    Args:
        source: Name of the origin.
        start_seconds: Start of the sample in the video, in seconds.
        depends_on: Settings that decide what the sample is: `identifying_settings` of a video, the modality of others.
        end_seconds: End of a range that the input names, in seconds; None for all other kinds of input.
    """
    parts: list[Any] = [source, round(start_seconds, 3), dict(depends_on)]
    if end_seconds is not None:
        parts.append(round(end_seconds, 3))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def range_id(source: str, start_seconds: float, end_seconds: float) -> str:
    """Stable name of a range of a video, as 32 hexadecimal digits. Samples that are parts of one range share it."""
    key = json.dumps(["range", source, round(start_seconds, 3), round(end_seconds, 3)])
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def run_identity(settings: SampleSettings) -> dict[str, Any]:
    """Everything that decides the bytes of a run's clips, by stored names: settings, codec builds, architecture."""
    return {
        "schema": schema.VERSION,
        "settings": identifying_settings(settings) | {"segment_values": SEGMENT_VALUES},
        **library_versions(),
        "architecture": platform.machine(),
    }


def library_versions() -> dict[str, Any]:
    """Versions of the libraries that decide the bytes of clips."""
    return {
        "codecs": {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())},
        "av": av.__version__,
        "pillow": importlib.metadata.version("pillow"),
    }


def made_by(further: Mapping[str, str] | None = None) -> dict[str, str]:
    """Parquet metadata of a shard: the versions that made it.

    Args:
        further: Versions of further libraries.
    """
    versions = {**library_versions(), **(further or {}), "architecture": platform.machine()}
    return {"videolavit.made_by": json.dumps({"videolavit": __version__, **versions})}


def check_identity(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], accepted: Collection[str], folder: str
) -> list[str]:
    """Compares a folder's identity with ours; returns the differences that were accepted.

    Args:
        accepted: Entries of VERSIONS whose difference is accepted.

    Raises:
        IdentityMismatch: something else differs, with the way out.
    """
    unknown = sorted(set(accepted) - set(VERSIONS))
    if unknown:
        raise IdentityMismatch(
            f"changes of {', '.join(unknown)} cannot be accepted; those of {', '.join(VERSIONS)} can"
        )
    changed = {name: differences(theirs, ours, name) for name in sorted(theirs.keys() | ours.keys())}
    refused = {name: lines for name, lines in changed.items() if lines and name not in accepted}
    if refused:
        hint = "Choose another output, or undo what differs"
        if refused.keys() <= set(VERSIONS):
            hint += f"; accepting the changes of {', '.join(refused)} (accept_changes) continues with today's versions"
        lines = "".join(f"\n  {line}" for lines in refused.values() for line in lines)
        raise IdentityMismatch(f"{folder} was made by a different run. {hint} (theirs -> ours):{lines}")
    return [line for lines in changed.values() for line in lines]


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], name: str | None = None) -> list[str]:
    """Lines `name: theirs -> ours` for every value that differs; of one entry, or of all."""
    names = sorted(theirs.keys() | ours.keys()) if name is None else [name]
    lines: list[str] = []
    for one in names:
        old, new = theirs.get(one), ours.get(one)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += [f"{one}.{line}" for line in differences(old, new)]
        elif old != new:
            lines.append(f"{one}: {old} -> {new}")
    return lines

"""Who a sample is, and what a run depends on."""

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict
from typing import Any

import av

from videolavit.media import DecomposeSettings

from . import schema


class IdentityMismatch(ValueError):
    """The output folder was made with other settings or other codecs; the message says which."""


def sample_id(source: str, start_seconds: float, settings: dict[str, Any]) -> str:
    """A stable name of 32 hexadecimal digits, from the source's address, the range's start and the settings."""
    key = json.dumps([source, round(start_seconds, 3), settings], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def run_identity(settings: DecomposeSettings, **further: Any) -> dict[str, Any]:
    """Everything that decides the bytes of a run's clips: settings, codec builds, processor architecture.

    Args:
        further: Settings of the run beyond the decomposition (segment length, keyframe format).
    """
    return {
        "schema": schema.VERSION,
        "settings": asdict(settings) | further,
        "codecs": {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())},
        "av": av.__version__,
        "pillow": importlib.metadata.version("pillow"),
        "architecture": platform.machine(),
    }


def differences(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines `name: theirs -> ours` for every value that is not the same."""
    lines = []
    for name in sorted(theirs.keys() | ours.keys()):
        old, new = theirs.get(name), ours.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old} -> {new}")
    return lines

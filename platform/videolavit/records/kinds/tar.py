"""WebDataset tars: their members are samples, and the `.txt` and `.json` files beside them describe these."""

import contextlib
import functools
import itertools
import json
import posixpath
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import BinaryIO

import pyarrow as pa

from videolavit.media import MediaError
from videolavit.media.errors import NoVideoStream, SourceMissing, SourceUnreadable

from ..files import SIDECARS, TAR_SUFFIX, InputError, is_hidden, names_tar, suffix_of
from ..inputs import InputSettings
from ..prepare import NothingInside, Prepared, PrepareSettings
from ..rows import PlanRow, Source, VideoSample
from ..samples import SampleSettings
from ..storage import StorageSettings, open_source
from ..tars import CorruptTar, Member, read_members
from .base import Kind, PlanSettings
from .image import ImageFile
from .text import MAX_TEXT_BYTES
from .video import VideoFile


class UnreadableMember(MediaError):
    """A member of a tar whose bytes cannot be found."""


class Tar(Kind):
    """An uncompressed tar of videos or images."""

    name = "tar"
    modality = None
    is_decomposed = True
    is_container = True
    extra = (pa.field("tar_json", pa.string()),)

    def takes_file(self, name: str, settings: InputSettings) -> bool:
        if names_tar(name) and not settings.member_suffixes():
            raise InputError(f"{name}: texts in tars are not read; unpack it")
        return names_tar(name)

    def expand(self, source: Source, settings: PlanSettings, storage: StorageSettings) -> list[Source]:
        """Samples; beside them, under this kind, members that cannot be read, and the tar itself if it is damaged."""
        return tar_samples(source, storage, settings.inputs)

    def plan_unread(self, source: Source, settings: PlanSettings) -> PlanRow:
        if settings.makes_clips:  # runs of clips name it as a video without a readable header
            return VideoFile().plan_unread(source, settings)
        return super().plan_unread(source, settings)

    def clips(self, row: PlanRow, settings: SampleSettings, storage: StorageSettings) -> VideoSample:
        _explain(row, storage, InputSettings(modality="video"))
        raise NoVideoStream("a tar without video members")

    def prepare(self, row: PlanRow, settings: PrepareSettings, storage: StorageSettings) -> Prepared:
        _explain(row, storage, settings.inputs)
        raise NothingInside("a tar without videos or images")

    def names(self, source: str) -> bool:
        return f"{TAR_SUFFIX}/" in source.lower()

    def open(self, source: str, storage: StorageSettings) -> AbstractContextManager[BinaryIO]:
        """Opens the member `TAR/MEMBER`."""
        end = source.lower().index(f"{TAR_SUFFIX}/") + len(TAR_SUFFIX)
        member = _members(source[:end], storage).get(source[end + 1 :])
        if member is None:
            raise SourceMissing(f"no such member of a tar: {source}")
        return open_source(source[:end], storage, member.offset, member.size)


@functools.lru_cache(maxsize=16)
def _members(url: str, storage: StorageSettings) -> dict[str, Member]:
    """Members of a tar, by name."""
    found = {}
    with open_source(url, storage) as file, contextlib.suppress(CorruptTar):
        for member in read_members(file):
            found[member.name] = member
    return found


SampleKey = tuple[int, str]
"""Number of an archive, and the part of a member's name that the files of one sample share."""


@dataclass(frozen=True)
class _Content:
    """Content of a tar, without hidden members.

    Args:
        members: Members that may be samples, with their extensions.
        texts: Content of the `.txt` and `.json` files, by extension.
        damage: Reason why what follows could not be read.
    """

    members: Mapping[SampleKey, Sequence[tuple[str, Member]]]
    texts: Mapping[SampleKey, Mapping[str, str]]
    damage: CorruptTar | None


def tar_samples(tar: Source, storage: StorageSettings, inputs: InputSettings) -> list[Source]:
    """Samples of a tar as ranges of its bytes, with captions from `.txt` or `.json` neighbours.

    Raises:
        MediaError: it is missing, or no uncompressed tar.
    """
    content = _read(tar.url, storage)
    found = []
    for key, members in content.members.items():
        known = [one for one in members if _suffix(one[0]) in inputs.member_suffixes()]
        samples = known or members  # a file of another suffix is tried, as in a folder
        for extension, member in samples:
            source = Source(source=f"{tar.url}/{member.name}", url=tar.url, kind=Tar.name, extra=tar.extra)
            if not member.fault:
                texts = content.texts.get(key, {})
                text, described = (_neighbour(extension, texts, kind, len(samples) == 1) for kind in ("txt", "json"))
                source = replace(
                    source,
                    kind="image" if ImageFile().takes_file(member.path, inputs) else "video",
                    offset=member.offset,
                    length=member.size,
                    text=_caption(text, described),
                    extra={**tar.extra, "tar_json": described},
                )
            found.append(source)
    if content.damage:
        found.append(Source(source=tar.url, url=tar.url, kind=Tar.name, extra=tar.extra))
    return found


def _explain(row: PlanRow, storage: StorageSettings, inputs: InputSettings) -> None:
    """Raises why a tar or a member was planned under this kind; returns if the tar has no samples."""
    content = _read(row.url, storage)
    for _, member in itertools.chain(*content.members.values()):
        if member.fault and row.source == f"{row.url}/{member.name}":
            raise UnreadableMember(member.fault)
    if content.damage:
        raise content.damage
    if tar_samples(row, storage, inputs):
        raise SourceUnreadable(f"{row.url} could not be listed when it was planned; retry it")


def _read(url: str, storage: StorageSettings) -> _Content:
    members: dict[SampleKey, list[tuple[str, Member]]] = {}
    texts: dict[SampleKey, dict[str, str]] = {}
    damage = None
    with open_source(url, storage) as file:
        try:
            for member in read_members(file):
                path = posixpath.normpath(member.path)
                folder, _, name = path.rpartition("/")
                stem, _, extension = name.partition(".")
                key, suffix = (member.archive, f"{folder}/{stem}"), _suffix(extension)
                if is_hidden(path):
                    continue
                if suffix not in SIDECARS:
                    members.setdefault(key, []).append((extension, member))
                elif suffix in (".txt", ".json") and not member.fault and member.size <= MAX_TEXT_BYTES:
                    file.seek(member.offset)
                    content = file.read(member.size).decode("utf-8-sig", "replace")
                    texts.setdefault(key, {})[extension.lower()] = content
        except CorruptTar as error:
            damage = error
    return _Content(members, texts, damage)


def _suffix(extension: str) -> str:
    """Suffix of a name, from all that follows its first dot."""
    return suffix_of(f"name.{extension}")


def _neighbour(extension: str, texts: Mapping[str, str], kind: str, is_alone: bool) -> str | None:
    """Text beside a sample: under the sample's name, or under the key alone, or else under the key and more.

    Args:
        extension: Extension of the sample, such as `front.mp4`.
        texts: Content of the files of the sample's key, by extension.
        kind: Suffix of the file, without its dot.
        is_alone: True if the sample is the only one of its key.
    """
    for name in (f"{extension.lower().rpartition('.')[0]}.{kind}", kind):
        if name in texts:
            return texts[name]
    others = [text for name, text in texts.items() if name.endswith(f".{kind}")]
    return others[-1] if others and is_alone else None


def _caption(text: str | None, described: str | None) -> str | None:
    candidates = [text]
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(described or "null")
        candidates += [values.get(key) for key in ("text", "caption")] if isinstance(values, dict) else []
    return next((one.strip() for one in candidates if isinstance(one, str) and one.strip()), None)

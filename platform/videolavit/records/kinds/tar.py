"""WebDataset tars: their members are samples, and the `.txt` and `.json` files beside them describe these."""

import contextlib
import functools
import json
import tarfile
from contextlib import AbstractContextManager
from typing import BinaryIO

import pyarrow as pa

from videolavit.media.errors import NoVideoStream, SourceMissing, SourceUnreadable, UnknownFormat

from ..files import TAR_SUFFIX, VIDEO_SUFFIXES, InputError, names_tar, readable, suffix_of
from ..inputs import InputSettings
from ..prepare import NothingInside, Prepared, PrepareSettings
from ..rows import PlanRow, Source, VideoSample
from ..samples import SampleSettings
from ..storage import StorageSettings, open_source
from .base import Kind, PlanSettings
from .video import VideoFile


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
        return tar_members(source, storage, settings.inputs.member_suffixes())

    def plan_unread(self, source: Source, settings: PlanSettings) -> PlanRow:
        if settings.makes_clips:  # runs of clips name it as a video without a readable header
            return VideoFile().plan_unread(source, settings)
        return super().plan_unread(source, settings)

    def clips(self, row: PlanRow, settings: SampleSettings, storage: StorageSettings) -> VideoSample:
        """Raises why the tar was planned as a whole and not member by member."""
        if tar_members(row, storage, VIDEO_SUFFIXES):
            raise SourceUnreadable(f"the members of {row.url} could not be listed when it was planned; retry it")
        raise NoVideoStream("a tar without video members")

    def prepare(self, row: PlanRow, settings: PrepareSettings, storage: StorageSettings) -> Prepared:
        """Raises why the tar was planned as a whole and not member by member."""
        if tar_members(row, storage, settings.inputs.member_suffixes()):
            raise SourceUnreadable(f"{row.url} could not be listed when it was planned; retry it")
        raise NothingInside("a tar without videos or images")

    def names(self, source: str) -> bool:
        return f"{TAR_SUFFIX}/" in source

    def open(self, source: str, storage: StorageSettings) -> AbstractContextManager[BinaryIO]:
        """Opens the member `TAR/MEMBER`."""
        url = source[: source.index(f"{TAR_SUFFIX}/") + len(TAR_SUFFIX)]
        places = _places(url, storage)
        if source not in places:
            raise SourceMissing(f"no such member of a tar: {source}")
        return open_source(url, storage, *places[source])


@functools.lru_cache(maxsize=16)
def _places(url: str, storage: StorageSettings) -> dict[str, tuple[int, int | None]]:
    """Byte ranges of a tar's videos, by their names."""
    members = tar_members(Source(source=url, url=url, kind=Tar.name), storage, VIDEO_SUFFIXES)
    return {member.source: (member.offset or 0, member.length) for member in members}


def tar_members(tar: Source, storage: StorageSettings, suffixes: frozenset[str]) -> list[Source]:
    """Samples of a tar as ranges of its bytes, with captions from `.txt` or `.json` neighbours.

    Args:
        suffixes: Suffixes of the members that are samples.

    Raises:
        MediaError: it is missing, or no uncompressed tar.
    """
    found: list[tuple[str, tarfile.TarInfo]] = []
    neighbours: dict[tuple[str, str], str] = {}
    with open_source(tar.url, storage) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    key, suffix = _webdataset_key(member.name)
                    if member.isfile() and suffix in suffixes:
                        found.append((key, member))
                    elif member.isfile() and suffix in (".txt", ".json") and (content := archive.extractfile(member)):
                        neighbours[key, suffix] = content.read().decode("utf-8", "replace")
        except tarfile.TarError as error:
            raise UnknownFormat(f"not a readable tar ({error}); a compressed tar must be unpacked first") from None
    return [
        Source(
            source=f"{tar.url}/{readable(member.name)}",
            url=tar.url,
            kind="video" if suffix_of(member.name) in VIDEO_SUFFIXES else "image",
            offset=member.offset_data,
            length=member.size,
            text=_caption(neighbours.get((key, ".txt")), neighbours.get((key, ".json"))),
            extra={**tar.extra, "tar_json": neighbours.get((key, ".json"))},
        )
        for key, member in found
    ]


def _webdataset_key(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}", suffix_of(file)


def _caption(text: str | None, described: str | None) -> str | None:
    if text is None and described is not None:
        with contextlib.suppress(ValueError):
            values = json.loads(described)
            if isinstance(values, dict):
                text = next((values[key] for key in ("text", "caption") if isinstance(values.get(key), str)), None)
    return text.strip() or None if text else None

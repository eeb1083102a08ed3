"""Members of uncompressed tars as ranges of bytes: links, members of one name, joined tars, tars that were cut."""

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from videolavit.media import MediaError
from videolavit.media.errors import UnknownFormat

from .files import readable

_READ_AT_ONCE = 1 << 20


class CorruptTar(MediaError):
    """The tar is damaged or cut short. Members before the damage were read."""


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Args:
        path: Name in the tar, in a readable form.
        name: Name of its own: that in the tar, or `NAME#2` for the second member of one name.
        offset: First byte in the tar.
        size: Number of bytes.
        archive: Number of its archive, where tars were joined.
        fault: Reason why its bytes cannot be read; None if they can.
    """

    path: str
    name: str
    offset: int
    size: int
    archive: int
    fault: str | None = None


def read_members(file: BinaryIO) -> Iterator[Member]:
    """Yields the files in a tar in their order. The file may be read in between.

    Raises:
        UnknownFormat: it is no uncompressed tar.
        CorruptTar: what follows the members that were yielded cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    places: dict[str, tuple[int, int]] = {}
    counts: Counter[str] = Counter()
    start = number = 0
    while start < size or not number:
        file.seek(start)
        try:
            archive = tarfile.open(fileobj=file, mode="r:", encoding="utf-8")  # noqa: SIM115 - the file is the caller's
        except tarfile.TarError as error:
            raise UnknownFormat(f"not a readable tar ({error}); a compressed tar must be unpacked first") from None
        try:
            for info in archive:
                if not (info.isreg() or info.islnk() or info.issym()):
                    continue
                if info.offset_data + (info.size if info.isreg() else 0) > size:
                    raise CorruptTar(f"cut inside of its member {readable(info.name)}")
                counts[info.name] += 1
                yield _member(info, counts[info.name], number, places)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            if isinstance(error, MediaError):
                raise
            raise CorruptTar(f"damaged near byte {archive.offset}: {error}") from None
        start, number = _next_archive(file, archive.offset), number + 1


def _member(info: tarfile.TarInfo, count: int, archive: int, places: dict[str, tuple[int, int]]) -> Member:
    """The member that a header describes.

    Args:
        count: Number of members of this name, with this one.
        places: Ranges of the members before it, by name; this one is added.
    """
    place: tuple[int, int] | None = (info.offset_data, info.size)
    fault = None
    if info.issparse():
        fault = "a sparse file, whose bytes are not together"
    elif info.islnk() or info.issym():
        folder = posixpath.dirname(info.name) if info.issym() else ""
        place = places.get(posixpath.normpath(posixpath.join(folder, info.linkname)))
        fault = None if place else f"a link to {readable(info.linkname)}, which is no member before it"
    offset, size = place or (info.offset_data, 0)
    if not fault:
        places[posixpath.normpath(info.name)] = (offset, size)
    path = readable(info.name)
    return Member(path, path if count == 1 else f"{path}#{count}", offset, size, archive, fault)


def _next_archive(file: BinaryIO, end: int) -> int:
    """Start of the archive that follows the end mark of another; the end of the file if there is none.

    Raises:
        CorruptTar: there is no end mark.
    """
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if any(block):
        raise CorruptTar(f"{'cut inside of a' if len(block) < tarfile.BLOCKSIZE else 'no'} header at byte {end}")
    position = end + len(block)
    while block := file.read(_READ_AT_ONCE):
        if any(block):
            position += len(block) - len(block.lstrip(b"\0"))
            return position - position % tarfile.BLOCKSIZE
        position += len(block)
    return position

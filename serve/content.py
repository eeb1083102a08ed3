"""Answers with files from the storage, with range requests."""

import asyncio
import re
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from videolavit.records.storage import Folder

from .errors import ApiError

CHUNK_BYTES = 1 << 20
"""Size of the reads from the storage, in bytes."""

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


async def file_response(folder: Folder, name: str, media_type: str, request: Request) -> Response:
    """Answer with a file, or with the requested range of it. Raises ApiError if either does not exist."""
    path = folder.join(name)
    try:
        size = int(await asyncio.to_thread(folder.fs.size, path))
    except FileNotFoundError:
        raise ApiError(404, "the files of this video are gone", "not_found", param="video_id") from None
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600", "Content-Disposition": "inline"}
    requested = _RANGE.fullmatch(request.headers.get("range", ""))
    start, end, status = 0, size, 200
    if requested is not None and any(requested.groups()):
        start, end = _bounds(requested[1], requested[2], size)
        if not 0 <= start < end:
            raise _OutOfRange(size)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        status = 206
    headers["Content-Length"] = str(end - start)

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(start, end, CHUNK_BYTES):
            yield await asyncio.to_thread(folder.fs.cat_file, path, start=at, end=min(at + CHUNK_BYTES, end))

    return StreamingResponse(chunks(), status, headers, media_type)


class _OutOfRange(ApiError):
    """The range begins after the end of the file."""

    def __init__(self, size: int) -> None:
        super().__init__(416, "the range is not in the file", "range_not_satisfiable")
        self._size = size

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer, with the size of the file."""
        return {"Content-Range": f"bytes */{self._size}"}


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """Start and end of a range, in bytes; without a first byte, `last` counts from the end."""
    if not first:
        return max(0, size - int(last)), size if int(last) else 0
    return int(first), min(size, int(last) + 1) if last else size

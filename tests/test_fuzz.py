"""Fuzzing: whatever bytes come, the answer is a result or a typed error. `make fuzz` does it for long.

Bytes of good files are changed, since random ones do not come far. What native code reads, it reads in a child.
"""

import contextlib
import csv
import functools
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from serve.errors import ApiError
from serve.failures import invalid_request
from serve.protocol.chat import ChatRequest
from serve.protocol.videos import VideoRequest
from tests.conftest import moving_texture
from videolavit.media import DecomposeSettings, MediaError, write_mp4
from videolavit.records import foreign, table_files
from videolavit.records.storage import StorageSettings
from videolavit.records.tars import read_members
from videolavit.records.text_tables import read_csv, read_json
from videolavit.sandbox.wire import WireError, decode, encode

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
"""Number of changed files that each target gets."""

fuzzing = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
places = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=12)
ends = st.floats(0.05, 1.0)


def changed(data: bytes, changes: list[tuple[float, bytes]], end: float) -> bytes:
    """Bytes with others at some places, and without their end."""
    result = bytearray(data)
    for share, new in changes:
        place = int(share * max(len(result) - len(new), 0))
        result[place : place + len(new)] = new
    return bytes(result[: max(1, int(end * len(result)))])


@functools.cache
def seed(name: str) -> bytes:
    """Good file of a kind."""
    file = io.BytesIO()
    match name:
        case "tar":
            with tarfile.open(fileobj=file, mode="w") as archive:
                for number in range(4):
                    member = tarfile.TarInfo(f"folder/{number}.mp4")
                    member.size = 700
                    archive.addfile(member, io.BytesIO(b"x" * 700))
        case "csv":
            return b"video,text,score\n" + b"".join(b'"a%d.mp4","a, ""b""\nc",%d.5\n' % (n, n) for n in range(20))
        case "jsonl":
            rows = (
                {"video": f"{n}.mp4", "text": "x\u20ac", "meta": {"a": [n, None]}, "score": n / 2} for n in range(20)
            )
            return "".join(json.dumps(row) + "\n" for row in rows).encode()
        case "parquet":
            pq.write_table(pa.table({"video": ["a.mp4", "b.mp4"] * 50, "tags": [["x"], []] * 50}), file)
        case "png" | "jpeg" | "webp":
            Image.fromarray(next(moving_texture(1, 40, 56, 0))).save(file, name)
        case _:
            raise AssertionError(name)
    return file.getvalue()


@fuzzing
@given(places, ends)
def test_tars(changes: list[tuple[float, bytes]], end: float) -> None:
    data = changed(seed("tar"), changes, end)
    with contextlib.suppress(MediaError):
        for member in read_members(io.BytesIO(data)):
            assert member.fault or 0 <= member.offset <= member.offset + member.size <= len(data)


@pytest.mark.parametrize(("name", "read"), [("csv", read_csv), ("jsonl", read_json)])
@fuzzing
@given(places, ends)
def test_tables_in_text(
    name: str, read: Callable[[bytes], pa.Table], changes: list[tuple[float, bytes]], end: float
) -> None:
    with contextlib.suppress(pa.ArrowException, ValueError, csv.Error):
        read(changed(seed(name), changes, end)).validate(full=True)


@fuzzing
@given(places, ends)
def test_parquet(tmp_path: Path, changes: list[tuple[float, bytes]], end: float) -> None:
    file = tmp_path / "m.parquet"
    file.write_bytes(changed(seed("parquet"), changes, end))
    with contextlib.suppress(MediaError):
        content = table_files.table_content(str(file), StorageSettings())
        for rows in table_files.parquet_rows(str(file), StorageSettings(), content.columns.column_names):
            assert rows.rows.num_rows <= table_files.READ_ROWS


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
@fuzzing
@given(places, ends)
def test_pictures(name: str, changes: list[tuple[float, bytes]], end: float) -> None:
    with contextlib.suppress(MediaError):
        picture = foreign.read_picture(changed(seed(name), changes, end), StorageSettings())
        assert picture.ndim == 3


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("video") / "video.mp4"
    write_mp4(moving_texture(12, 48, 64, 0), file, 6)
    return file.read_bytes()


@fuzzing
@given(changes=places, end=ends)
def test_containers(video: bytes, tmp_path: Path, changes: list[tuple[float, bytes]], end: float) -> None:
    file = tmp_path / "video.mp4"
    file.write_bytes(changed(video, changes, end))
    with contextlib.suppress(MediaError):
        for clip in foreign.read_clips(str(file), StorageSettings(), DecomposeSettings()):
            assert clip.keyframe.ndim == 3


@functools.cache
def message() -> bytes:
    value = {"a": [1, None, "x"], "b": pa.table({"c": [[1], None], "d": ["x", "y"]}), "e": b"bytes"}
    return b"".join(encode(value))


@fuzzing
@given(places, ends)
def test_answers_of_children(changes: list[tuple[float, bytes]], end: float) -> None:
    with contextlib.suppress(WireError):
        decode(memoryview(changed(message(), changes, end)))


CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "x"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "y"}, {"type": "image_url", "image_url": {"url": "data:,"}}],
        },
        {"role": "assistant", "content": None, "refusal": None},
        {"role": "user", "content": "z"},
    ],
    "temperature": 0.5,
    "stop": ["a"],
}
VIDEO = {"model": "m", "prompt": "x", "seconds": "4", "size": "96x64", "num_frames": 24, "guidance_scale": 2.0}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(("kind", "good"), [(ChatRequest, CHAT), (VideoRequest, VIDEO)])
@fuzzing
@given(st.data())
def test_requests(kind: Any, good: dict[str, Any], data: st.DataObject) -> None:
    """A field of another value, or one that nobody knows: accepted, or an error with words for people."""
    body = json.loads(json.dumps(good))
    name = data.draw(st.sampled_from([*good, "unknown"]))
    place = body
    if name == "messages" and data.draw(st.booleans()):
        place = data.draw(st.sampled_from(body["messages"]))
        name = data.draw(st.sampled_from([*place, "unknown"]))
    place[name] = data.draw(values)
    try:
        kind.model_validate_json(json.dumps(body))
    except ValidationError as error:
        answer = invalid_request(error.errors())
        assert isinstance(answer, ApiError)
        assert answer.status == 400
        assert not any(word in answer.message for word in ("constrained", "Input should", "pydantic", "regex"))

"""Files on web servers: a real one, with and without range requests, and one that goes wrong."""

import io
import json
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.records.listed import STORAGE, list_videos
from tests.web import WebServer, web
from videolavit.media.errors import (
    MediaError,
    SourceForbidden,
    SourceMissing,
    SourceTooLarge,
    SourceUnreadable,
)
from videolavit.records import web as web_files
from videolavit.records.addresses import folder_of, resolved, shown
from videolavit.records.files import InputError, resolve, suffix_of
from videolavit.records.inputs import InputSettings
from videolavit.records.kinds.tar import tar_samples
from videolavit.records.rows import Source, sources_from
from videolavit.records.storage import Folder, StorageError, open_source

__all__ = ["web"]

SECRETS = "http://user:pass-word@host/a.mp4?token=to-ken"


def read(url: str) -> bytes:
    with open_source(url, STORAGE) as file:
        return file.read()


def test_files_are_read_in_ranges_or_once_as_a_whole(web: WebServer) -> None:
    data = bytes(range(256)) * 40_000  # more than two reads ahead
    (web.folder / "a b.bin").write_bytes(data)
    for _ in range(2):
        with open_source(f"{web.url}/a%20b.bin?signature=x", STORAGE) as file:
            assert file.seek(-10, 2) == len(data) - 10
            assert file.read() == data[-10:]
            file.seek(5_000_000)
            assert file.read(3) == data[5_000_000:5_000_003]
            file.seek(0)
            assert file.read(9_000_000) == data[:9_000_000]
        with open_source(f"{web.url}/a%20b.bin?signature=x", STORAGE, 100, 50) as file:
            assert file.read() == data[100:150]
    whole = [request for request in web.requests if request[2] is None]
    assert len(whole) == (0 if web.ranges else 1)
    assert {request[0] for request in web.requests} == {"GET"}  # a signed address allows no HEAD


def test_an_empty_file(web: WebServer) -> None:
    (web.folder / "empty.mp4").touch()
    assert read(f"{web.url}/empty.mp4") == b""


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (404, SourceMissing, "no such file or key"),
        (410, SourceMissing, "no such file or key"),
        (401, SourceForbidden, "no permission to read"),
        (403, SourceForbidden, "no permission to read"),
        (400, SourceUnreadable, "the server answered with status 400"),
        (503, SourceUnreadable, "the server answered with status 503"),
        ("cut", SourceUnreadable, "the answer was cut short"),
        ("/a.mp4", SourceUnreadable, "too many redirects"),
        ("ftp://127.0.0.1/b.mp4", SourceUnreadable, "NonHttpUrlRedirect"),
    ],
)
def test_faults_of_a_source_are_typed(web: WebServer, fault: int | str, error: type[MediaError], message: str) -> None:
    (web.folder / "a.mp4").write_bytes(b"x" * 1000)
    web.faults["/a.mp4"] = fault
    url = f"{web.url}/a.mp4?token=to-ken"
    with pytest.raises(error, match=message) as raised:
        read(url)
    assert f"{web.url}/a.mp4?..." in str(raised.value)
    assert "to-ken" not in str(raised.value)


def test_servers_that_cannot_be_reached(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceUnreadable, match="Connect"):
        read("http://127.0.0.1:1/a.mp4")
    with pytest.raises(SourceUnreadable, match=r"(?i)ssl"):
        read(web.url.replace("http", "https") + "/a.mp4")
    with pytest.raises(SourceUnreadable, match="Invalid IPv6 URL"):
        read("http://[/a.mp4")
    web.faults["/a.mp4"] = "silent"
    monkeypatch.setattr(web_files, "SILENCE_SECONDS", 0.2)
    web_files.WebFileSystem.clear_instance_cache()
    started = time.monotonic()
    with pytest.raises(SourceUnreadable, match="no answer within"):
        read(f"{web.url}/a.mp4")
    assert time.monotonic() - started < 4
    web_files.WebFileSystem.clear_instance_cache()


def test_redirects_are_followed(web: WebServer) -> None:
    (web.folder / "b.mp4").write_bytes(b"x" * 1000)
    web.faults["/a.mp4"] = "/b.mp4"
    assert read(f"{web.url}/a.mp4") == b"x" * 1000


def test_a_file_that_changes_length_is_no_shorter_video(web: WebServer) -> None:
    file = web.folder / "a.bin"
    file.write_bytes(b"x" * 6_000_000)
    if not web.ranges:
        pytest.skip("a whole file is checked by the length that the server announces")

    def read_on() -> None:
        with open_source(f"{web.url}/a.bin", STORAGE) as opened:
            opened.read(10)
            file.write_bytes(b"x" * 5_000_000)
            opened.seek(4_000_000)
            opened.read(2_000_000)

    with pytest.raises(SourceUnreadable, match=r"the server sent \d+ of \d+ bytes"):
        read_on()


def test_a_large_file_needs_range_requests(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_files, "MAX_DOWNLOAD", 1 << 20)
    (web.folder / "a.mp4").write_bytes(b"x" * (3 << 20))
    if web.ranges:
        assert len(read(f"{web.url}/a.mp4")) == 3 << 20
        return
    with pytest.raises(SourceTooLarge, match="larger than 1 MiB, from a server without range requests"):
        read(f"{web.url}/a.mp4")


def test_answers_are_bounded(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends without end must not fill the memory of a process that keeps credentials."""
    (web.folder / "videos").mkdir()
    (web.folder / "videos" / "a.mp4").write_bytes(b"x" * 1000)
    if web.ranges:
        web.faults["/videos/a.mp4"] = "more"
        with pytest.raises(SourceUnreadable, match="the server sent more than 1000 bytes"):
            read(f"{web.url}/videos/a.mp4")
    monkeypatch.setattr(web_files, "MAX_PAGE", 100)
    with pytest.raises(StorageError, match="the server sent more than 100 bytes"):
        list_videos(f"{web.url}/videos")


# ---- inputs ---------------------------------------------------------------------------------------------------------


def test_index_pages_are_folders(web: WebServer) -> None:
    for name in ("b/two.mkv", "one one.mp4", "b/c/ä#.mp4", "notes.txt", ".hidden.mp4", ".git/x.mp4", "b/100%.mp4"):
        (web.folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (web.folder / "videos" / name).write_bytes(b"x")
    (web.folder / "other.mp4").write_bytes(b"x")
    videos = f"{web.url}/videos"
    names = ["b/100%25.mp4", "b/c/%C3%A4%23.mp4", "b/two.mkv", "one%20one.mp4"]
    for named in (videos, f"{videos}/"):
        addresses = list_videos(named)["url"].to_pylist()
        assert addresses == [f"{videos}/{name}" for name in names]
        assert [read(address) for address in addresses] == [b"x"] * 4
    assert list_videos(f"{videos}/*.mp4")["url"].to_pylist() == [f"{videos}/one%20one.mp4"]
    assert list_videos(f"{videos}/**/*.m*")["url"].to_pylist() == [f"{videos}/{name}" for name in names]
    assert list_videos(f"{videos}/b/two.mkv")["url"].to_pylist() == [f"{videos}/b/two.mkv"]


def test_passwords(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (web.folder / "videos").mkdir()
    (web.folder / "videos" / "a.mp4").write_bytes(b"x")
    web.login = "user:pass-word"
    host = web.url.removeprefix("http://")
    for folder in (f"http://user:pass-word@{host}/videos", f"http://user:pass-word@{host}/videos/"):
        (address,) = list_videos(folder)["url"].to_pylist()
        assert address == f"http://user:pass-word@{host}/videos/a.mp4"
        assert read(address) == b"x"
    with pytest.raises(StorageError, match=rf"no permission for http://{host}/videos: .*401") as raised:
        list_videos(f"http://user:wrong-word@{host}/videos")
    assert "wrong-word" not in str(raised.value)
    with pytest.raises(SourceForbidden):
        read(f"{web.url}/videos/a.mp4")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password pass-word")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert read(f"{web.url}/videos/a.mp4") == b"x"
    assert list_videos(f"{web.url}/videos")["url"].to_pylist() == [f"{web.url}/videos/a.mp4"]


def test_links_of_other_index_pages(web: WebServer) -> None:
    """Columns to sort by, links up, out and to places on the page: Apache, nginx and people write them."""
    (web.folder / "v").mkdir()
    (web.folder / "v" / "index.html").write_text(
        """<html><body><a href="?C=N;O=D">Name</a> <a href="/">Parent</a> <A HREF='../'>up</A> <a name="x">x</a>
        <a href="a.mp4">a</a> <a class=y href="./b.mp4">b</a> <a href="#top">top</a> <a href="a.mp4#again">a</a>
        <a href="/v/c&amp;d.mp4">c</a> <a href="https://elsewhere.invalid/v/e.mp4">e</a> <a href="mailto:a@b.c">mail</a>
        <a href="f.mp4?version=2">f</a> <a href="/videos.mp4">g</a> <a href=".">self</a></body></html>"""
    )
    names = ["a.mp4", "b.mp4", "c&d.mp4", "f.mp4?version=2"]
    assert list_videos(f"{web.url}/v/")["url"].to_pylist() == [f"{web.url}/v/{name}" for name in names]


def test_a_folder_below_that_fails_is_not_left_out(web: WebServer) -> None:
    (web.folder / "videos" / "b").mkdir(parents=True)
    (web.folder / "videos" / "a.mp4").write_bytes(b"x")
    web.faults["/videos/b/"] = 503
    with pytest.raises(StorageError, match=r"cannot use .*/videos: the server answered with status 503"):
        list_videos(f"{web.url}/videos")


def test_manifests_and_the_links_in_them(web: WebServer) -> None:
    rows = [
        {"video": "../videos/a.mp4", "text": "one"},
        {"video": "b.mp4?version=2", "text": "two"},
        {"video": "https://elsewhere.invalid/c.mp4", "text": "three"},
        {"video": "HTTPS://elsewhere.invalid/d.mp4", "text": "four"},
        {"video": "S3://bucket/e.mp4", "text": "five"},
        {"video": "/local/f.mp4", "text": "six"},
    ]
    addresses = [
        f"{web.url}/videos/a.mp4",
        f"{web.url}/sets/b.mp4?version=2",
        "https://elsewhere.invalid/c.mp4",
        "https://elsewhere.invalid/d.mp4",
        "s3://bucket/e.mp4",
        "/local/f.mp4",
    ]
    (web.folder / "sets").mkdir()
    (web.folder / "sets" / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), web.folder / "sets" / "m.parquet")
    for name in ("m.jsonl", "m.parquet", "m.jsonl?token=a/b"):
        listed = sources_from(list_videos(f"{web.url}/sets/{name}"))
        assert [(one.url, one.text) for one in listed] == list(
            zip(addresses, [row["text"] for row in rows], strict=True)
        )


def test_archives_and_videos_in_parquet(web: WebServer) -> None:
    with tarfile.open(web.folder / "set.tar", "w") as archive:
        for name, data in {"a.mp4": b"video a", "a.txt": b"caption"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    pq.write_table(pa.table({"video": [b"stored"], "text": ["t"]}), web.folder / "stored.parquet")
    url = f"{web.url}/set.tar?signature=x"
    (tar, row) = sources_from(list_videos(url, f"{web.url}/stored.parquet"))
    assert (tar.kind, row.kind, row.text) == ("tar", "stored_video", "t")
    (member,) = tar_samples(Source(source=url, url=url, kind="tar"), STORAGE, InputSettings(modality="video"))
    assert member.text == "caption"
    with open_source(member.url, STORAGE, member.offset or 0, member.length) as file:
        assert file.read() == b"video a"


def test_mistakes_are_one_line(web: WebServer) -> None:
    for fault, error, message in (
        (404, InputError, "no such file, folder or key"),
        (403, StorageError, "no permission for .*status 403"),
        (500, StorageError, "status 500"),
    ):
        web.faults["/a.mp4"] = fault
        with pytest.raises(error, match=message) as raised:
            list_videos(f"{web.url}/a.mp4?token=to-ken")
        assert "\n" not in str(raised.value)
        assert "to-ken" not in str(raised.value)
    with pytest.raises(StorageError, match=r"cannot use http://127\.0\.0\.1:1/a\.mp4: .*onnect"):
        list_videos("http://127.0.0.1:1/a.mp4")
    (web.folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"nothing to decompose in .*/empty/"):
        list_videos(f"{web.url}/empty/")


def test_a_web_server_is_no_output(web: WebServer) -> None:
    with pytest.raises(StorageError, match="files are not written to web servers"):
        Folder(f"{web.url}/run", STORAGE).claim("run.json", b"{}")


def test_files_of_a_folder_with_a_token(web: WebServer) -> None:
    (web.folder / "run").mkdir()
    (web.folder / "run" / "run.json").write_text("{}")
    folder = Folder(f"{web.url}/run?token=x", STORAGE)
    assert folder.read("run.json") == b"{}"
    assert folder.read("nothing.json") is None
    assert web.requests[-2][1] == "/run/run.json?token=x"
    assert Folder(f"{web.url}/", STORAGE).names("run", ".json") == ["run.json"]


# ---- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relative", "address"),
    [
        ("a.mp4", "s3://bucket/sets/a.mp4"),
        ("./a.mp4", "s3://bucket/sets/a.mp4"),
        ("../videos/./a.mp4", "s3://bucket/videos/a.mp4"),
        ("../../../a.mp4", "s3://bucket/a.mp4"),
        ("x//a.mp4", "s3://bucket/sets/x//a.mp4"),
    ],
)
def test_relative_addresses_below_a_bucket(relative: str, address: str) -> None:
    assert resolve(relative, "s3://bucket/sets") == address
    assert resolved("https://host/sets", relative) == address.replace("s3://bucket", "https://host")


def test_messages_hide_secrets() -> None:
    assert shown(SECRETS) == "http://host/a.mp4?..."
    assert shown("sftp://user:pass-word@host/a?b.mp4") == "sftp://host/a?..."
    for address in ("s3://bucket/a?b.mp4", "/x/a@b?c.mp4", "a::b.mp4", "http://host/a.mp4"):
        assert shown(address) == address


def test_parts_of_web_addresses() -> None:
    assert suffix_of("https://host.com") == ""
    assert suffix_of("https://host/a.mp4?name=b.csv#c.tar") == ".mp4"
    assert suffix_of("/x/a.mp4?name=b.csv") == ".csv"
    assert suffix_of("http://[/a.mp4") == ".mp4"
    assert folder_of("https://host/x/a.csv?token=a/b") == "https://host/x"

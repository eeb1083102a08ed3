"""Addresses that tables of strangers may name, and those that they are kept from."""

import http.server
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from videolavit.media.errors import MediaError
from videolavit.records.confinement import OutsideAddress, check_named
from videolavit.records.files import InputError
from videolavit.records.inputs import InputSettings
from videolavit.records.listing import Listing
from videolavit.records.storage import StorageSettings, confined, open_source


def listed(manifest: Path, allow: Sequence[str] = ()) -> list[str]:
    storage = StorageSettings(allow=allow)
    listing = Listing([str(manifest)], InputSettings(), storage, lambda kind: True, frozenset(), "decompose")
    return [url for batch in listing for url in batch["url"].to_pylist()]


def manifest_of(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "m.jsonl"
    file.write_text("".join(json.dumps({"video": name}) + "\n" for name in names))
    return file


def test_rows_name_what_lies_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    names = ("a.mp4", "deep/b.mp4", "./deep/../c.mp4", f"{folder}/d.mp4", "https://example.com/e.mp4")
    assert len(listed(manifest_of(folder, *names))) == 5


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/passwd", "names /etc/passwd, outside of its folder; allow /etc if you trust it"),
        ("../beside.mp4", "beside.mp4, outside of its folder"),
        ("../set-not/x.mp4", "x.mp4, outside of its folder"),
        ("file:///etc/hostname", "names /etc/hostname, outside of its folder"),
        ("s3://private/x.mp4", "outside of its bucket; allow s3://private/ if you trust it"),
        ("memory://x/y.mp4", "outside of its bucket"),
    ],
)
def test_rows_do_not_lead_out_of_it(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(InputError, match=r"cannot read the manifest .*m.jsonl") as refused:
        listed(manifest_of(tmp_path / "set", "good.mp4", name))
    assert why in str(refused.value)


def test_links_do_not_either(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "set", "inside.mp4", "linked.mp4", "folder/x.mp4")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "x.mp4").write_bytes(b"")
    (tmp_path / "set" / "inside.mp4").symlink_to("real.mp4")
    (tmp_path / "set" / "linked.mp4").symlink_to(tmp_path / "private" / "x.mp4")
    with pytest.raises(InputError, match="outside of its folder, through a symbolic link"):
        listed(manifest)
    (tmp_path / "set" / "linked.mp4").unlink()
    (tmp_path / "set" / "folder").symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match=r"through a symbolic link; allow .*/private if you trust it"):
        listed(manifest)
    assert len(listed(manifest, [str(tmp_path / "private")])) == 3


def test_what_is_allowed_may_be_named(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "set", "/data/x/a.mp4", "s3://videos/b.mp4")
    found = ["/data/x/a.mp4", "s3://videos/b.mp4"]
    for allow in (["/data", "s3://videos"], ["file:///data/", "S3://videos/"], [os.path.relpath("/data"), "s3://"]):
        assert listed(manifest, allow) == found
    for allow in (["/data"], ["/dat", "s3://videos"], ["/data", "s3://video"]):
        with pytest.raises(InputError):
            listed(manifest, allow)


@pytest.mark.parametrize(
    ("address", "table", "may"),
    [
        ("s3://a/other/x.mp4", "s3://a/lists/m.csv", True),
        ("s3://b/x.mp4", "s3://a/lists/m.csv", False),
        ("/etc/passwd", "s3://a/m.csv", False),
        ("/etc/passwd", "https://example.com/m.csv", False),
        ("s3://a/x.mp4", "https://example.com/m.csv", False),
        ("hf://datasets/o/n/x.mp4", "hf://datasets/o/n/lists/m.csv", True),
        ("hf://datasets/o/secret/x.mp4", "hf://datasets/o/n/m.csv", False),
    ],
)
def test_tables_in_a_storage_name_their_own_bucket(address: str, table: str, may: bool) -> None:
    if may:
        check_named(address, table, ())
        return
    with pytest.raises(OutsideAddress):
        check_named(address, table, ())


# ---- web servers ----------------------------------------------------------------------------------------------------


class _Private(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"secret")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def private() -> Iterator[str]:
    """Web server on this machine."""
    _Private.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Private) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_tables_do_not_lead_into_private_networks(private: str) -> None:
    port = private.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        url, storage = f"http://{host}:{port}/x.mp4", confined(StorageSettings(), ["list.csv"])
        with (
            pytest.raises(MediaError, match="not on the public internet") as refused,
            open_source(url, storage) as file,
        ):
            file.read()
        assert type(refused.value) is OutsideAddress
    assert _Private.asked == []


def test_servers_that_the_user_named_may_be_private(private: str) -> None:
    for storage in (
        StorageSettings(),
        confined(StorageSettings(), [f"{private}/lists/m.csv"]),
        confined(StorageSettings(allow=[private]), ["list.csv"]),
    ):
        with open_source(f"{private}/x.mp4", storage) as file:
            assert file.read() == b"secret"

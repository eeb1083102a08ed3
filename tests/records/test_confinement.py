"""Addresses that tables of strangers may name, and those that they are kept from."""

import http.server
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.web import WebServer
from videolavit.media.errors import MediaError
from videolavit.records.confinement import OutsideAddress, check_named
from videolavit.records.files import InputError
from videolavit.records.inputs import InputSettings
from videolavit.records.listing import Listing
from videolavit.records.storage import StorageSettings, confined, open_source
from videolavit.records.web import WebFileSystem


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
        ("hf://datasets/o/n/../../../o/secret/x.mp4", "hf://datasets/o/n/m.csv", False),
        ("s3://a/../b/x.mp4", "s3://a/m.csv", False),
        ("s3://a/x..y/..z.mp4", "s3://a/m.csv", True),
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


def test_servers_that_the_user_named_lead_into_no_private_network(private: str, tmp_path: Path) -> None:
    """A redirect of a server that is trusted to be private to another one, of another port."""
    server = WebServer(tmp_path)
    try:
        server.faults = {"/x.mp4": f"{private}/x.mp4", "/y.mp4": "/z.mp4"}
        (tmp_path / "z.mp4").write_bytes(b"own")
        storage = confined(StorageSettings(), [f"{server.url}/list.csv"])
        with open_source(f"{server.url}/y.mp4", storage) as file:
            assert file.read() == b"own"
        with (
            pytest.raises(OutsideAddress, match="not on the public internet"),
            open_source(f"{server.url}/x.mp4", storage) as file,
        ):
            file.read()
        assert _Private.asked == []
        both = confined(StorageSettings(allow=[private]), [f"{server.url}/list.csv"])
        with open_source(f"{server.url}/x.mp4", both) as file:
            assert file.read() == b"secret"
    finally:
        server.close()


@pytest.mark.parametrize("variables", [{"no_proxy": "localhost"}, {"http_proxy": "PROXY", "no_proxy": "127.0.0.1"}])
def test_proxies_open_no_private_network(
    private: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Neither an environment that names hosts without a proxy only, nor a proxy that is passed by."""
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Private)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("PROXY", f"http://127.0.0.1:{proxy.server_port}"))
    WebFileSystem.clear_instance_cache()
    storage = confined(StorageSettings(), ["list.csv"])
    try:
        with pytest.raises(OutsideAddress), open_source(f"{private}/x.mp4", storage) as file:
            file.read()
        assert _Private.asked == []
        if "http_proxy" in variables:  # a proxy is on a private network more often than not
            with open_source("http://videos.example/x.mp4", storage) as file:
                assert file.read() == b"secret"
            assert set(_Private.asked) == {"http://videos.example/x.mp4"}
    finally:
        WebFileSystem.clear_instance_cache()
        proxy.shutdown()
        proxy.server_close()

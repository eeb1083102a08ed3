"""Runs over a web server, with what goes wrong there as rejects or as a mistake of the command."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Job
from tests.web import WebServer


@pytest.fixture
def server(small_corpus: Path, tmp_path: Path) -> Iterator[WebServer]:
    folder = tmp_path / "web"
    for name, video in (("videos/a b.mp4", "video0"), ("videos/more/c.mp4", "video1"), ("sets/d.mp4", "video2")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(small_corpus / f"{video}.mp4")
    server = WebServer(folder)
    yield server
    server.close()


def test_a_run_from_a_web_server(on_head: Job, server: WebServer, tmp_path: Path) -> None:
    server.faults |= {"/sets/forbidden.mp4": 403, "/sets/cut.mp4": "cut", "/sets/moved.mp4": "/sets/d.mp4"}
    (server.folder / "sets" / "cut.mp4").write_bytes(b"x" * 1000)
    (server.folder / "sets" / "page.mp4").write_text("<html>no video</html>")
    names = ["d.mp4?to-ken", "moved.mp4", "missing.mp4", "forbidden.mp4?to-ken", "cut.mp4", "page.mp4", "../videos/"]
    rows = [{"video": name, "text": name} for name in [*names, "http://127.0.0.1:1/e.mp4"]]
    (server.folder / "sets" / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = tmp_path / "run"
    words = ("decompose", "--input", f"{server.url}/videos/", f"{server.url}/sets/m.jsonl", "--output", run)
    done = on_head(*words, "--attempts", 1)
    assert done.returncode == 0, done.stderr
    rejects = pq.read_table(run / "rejects.parquet").to_pylist()
    assert {reject["source"].rpartition("/")[2]: reject["error_type"] for reject in rejects} == {
        "missing.mp4": "SourceMissing",
        "forbidden.mp4?to-ken": "SourceForbidden",
        "cut.mp4": "SourceUnreadable",
        "page.mp4": "UnknownFormat",
        "": "UnknownFormat",
        "e.mp4": "OutsideAddress",  # a server of this machine that the command does not name
    }
    assert not [reject for reject in rejects if "to-ken" in reject["message"]]
    counts = json.loads((run / "run.json").read_text())["counts"]
    assert (counts["samples"], counts["rejects"]) == (4, 6)
    assert on_head(*words, "--plan").stdout.count("new") == 1
    again = on_head(*words)
    assert "nothing new to do" in again.stderr


def test_mistakes_are_one_line(on_head: Job, server: WebServer, tmp_path: Path) -> None:
    server.faults["/a.mp4"] = 403
    for name, message in (
        (f"{server.url}/a.mp4?to-ken", "no permission for"),
        (f"{server.url}/none.mp4", "no such file, folder or key"),
        ("http://127.0.0.1:1/a.mp4", "Cannot connect to host"),
        ("hf://datasets/nobody/nothing/a.mp4", "cannot use hf://datasets/nobody/nothing/a.mp4"),
    ):
        done = on_head("decompose", "--input", name, "--output", tmp_path / "run", HF_ENDPOINT="http://127.0.0.1:1")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert "to-ken" not in done.stderr
    assert not (tmp_path / "run").exists()

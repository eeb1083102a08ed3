"""Text from elsewhere on a terminal: names, captions and messages with markup, escape sequences and line breaks."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import inspect, runs
from jobs.common import fail, foreign
from jobs.progress import show_progress
from pipelines.run import RunSummary
from tests.conftest import ROOT, Job
from videolavit.progress import Progress
from videolavit.records.files import InputError
from videolavit.records.identity import IdentityMismatch

Captured = pytest.CaptureFixture[str]

EVIL = "a\x1b[2Jb\r\x07c\x9bd\u202ee\u2066f\x00g[/]h[red]i\nj"
SHOWN = r"a\x1b[2Jb\r\x07c\x9bd\u202ee\u2066f\x00g[/]h[red]i\nj"


def is_plain(text: str) -> bool:
    return not any(character in text for character in EVIL if not character.isprintable() and character != "\n")


def test_what_a_terminal_obeys_is_escaped() -> None:
    assert foreign(EVIL).plain == SHOWN
    assert not foreign(EVIL).spans
    assert foreign("one\ntwo\x1b", lines=True).plain == "one\ntwo\\x1b"
    assert foreign("\udcff\u2028\t\ufeff").plain == r"\udcff\u2028\t\ufeff"
    for text in ("größe 日本語 עברית", "نیم\u200cکن", "👩\u200d💻", r"a\b", "x\u00a0y"):
        assert foreign(text).plain == text


def test_messages(capsys: Captured) -> None:
    for error, lines in ((InputError(EVIL), 1), (IdentityMismatch("other run:\n  pillow: 1 -> 2\x1b"), 2), (EVIL, 2)):
        with pytest.raises(SystemExit):
            fail(error)
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert is_plain(message)
        assert message.count("\n") == lines
    with show_progress() as on_progress:
        on_progress(Progress("failed shard", message=EVIL))
        on_progress(Progress("decompose", 1, 2, EVIL))
    assert capsys.readouterr().err == f"failed shard: {SHOWN}\ndecompose: 1/2, {SHOWN}\n"


def test_tables(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    Path("a[").mkdir()
    pq.write_table(pa.table({EVIL: [EVIL, None]}), "a[/b].parquet")
    inspect.main(["a[/b].parquet"])
    printed = capsys.readouterr().out
    assert is_plain(printed)
    assert printed.count(SHOWN) == 2
    assert "a[/b].parquet" in printed
    numbers = {"planned": 1, "samples": 0, "rejects": 1, "shards": 1, "shards_left": 0}
    summary = RunSummary(
        folder=f"/x/{EVIL}",
        rejects_by_type={"UnknownFormat": 1},
        video_hours=0,
        core_hours=0,
        counts={},
        seconds=1,
        report=EVIL,
        left_out=[f"the column `{EVIL}` cannot travel"],
        **numbers,
    )
    runs.print_run(summary)
    captured = capsys.readouterr()
    assert is_plain(captured.out + captured.err)
    assert captured.out.count(SHOWN) == 2
    assert captured.err == f"left out: the column `{SHOWN}` cannot travel\n"


def test_a_run_and_what_it_left(on_head: Job, tmp_path: Path) -> None:
    names = [f"{number}{EVIL.replace(chr(0), '')}.mp4" for number in range(2)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / names[0].replace("/", "")).write_text("no video")
    rows = [{"video": name.replace("/", ""), "text": EVIL, EVIL: "x"} for name in names]
    (tmp_path / "in" / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = on_head("decompose", "--input", tmp_path / "in" / "m.jsonl", "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    shown = on_head("inspect", tmp_path / "run", COLUMNS="500")
    assert shown.returncode == 0, shown.stderr
    assert r"0a\x1b[2Jb" in shown.stdout
    assert is_plain(done.stdout + done.stderr + shown.stdout + shown.stderr)


def test_every_command_uses_the_helper() -> None:
    for file in (ROOT / "jobs").glob("*.py"):
        assert "rich.markup" not in file.read_text(), f"{file.name}: `foreign` escapes more than markup"

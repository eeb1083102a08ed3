"""The commands around the main job: what they print, draw and refuse."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import videolavit
from jobs import cli, inspect
from tests.commands import printed_by
from tests.conftest import Job, run_silently
from tests.tokens import picture, write_model
from videolavit.records import inspection

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(on_head: Job, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("inspected")
    (output / "in").mkdir()
    for video in small_corpus.glob("video[012].mp4"):
        (output / "in" / video.name).symlink_to(video)
    (output / "in" / "bad.mp4").write_text("no video")
    assert on_head("decompose", "--input", output / "in", "--output", output / "run").returncode == 0
    return output / "run"


def test_inspect_a_run(finished: Path, tmp_path: Path, capsys: Captured) -> None:
    inspect.main([str(finished), "--png", str(tmp_path / "new" / "sheet.png"), "--html", str(tmp_path / "page.html")])
    printed = capsys.readouterr().out
    assert "UnknownFormat" in printed
    assert "complete" in printed
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    assert sheet.shape[1] > 900  # three cells side by side
    assert sheet.std() > 20
    assert "data:image/jpeg;base64," in (tmp_path / "page.html").read_text()


def test_inspect_a_shard_and_other_tables(finished: Path, capsys: Captured) -> None:
    inspect.main([str(next((finished / "clips").iterdir()))])
    assert "clip shard" in capsys.readouterr().out
    inspect.main([str(finished / "rejects.parquet")])
    assert "UnknownFormat" in capsys.readouterr().out
    inspect.main([str(next((finished / "plan").iterdir()))])
    assert "plan" in capsys.readouterr().out


def test_the_library_inspects_and_prints_nothing(finished: Path, small_corpus: Path) -> None:
    code = """
import sys
from videolavit.records.inspection import RunFacts, ShardFacts, VideoFacts, inspect
run, shard, rejects, video = map(inspect, sys.argv[1:])
assert isinstance(run, RunFacts) and run.kind == "clips" and run.num_pending == 0
assert (run.num_planned, run.num_samples, run.num_rejects) == (4, 3, 1) and len(run.cells) == 3
assert [(reject.error_type, reject.count) for reject in run.rejects] == [("UnknownFormat", 1)]
assert isinstance(shard, ShardFacts) and shard.kind == "clips" and len(shard.rows) == shard.num_rows > 0 and shard.cells
assert isinstance(rejects, ShardFacts) and rejects.kind == "rejects"
assert rejects.rows[0]["error_type"] == "UnknownFormat" and not rejects.cells
assert isinstance(video, VideoFacts) and (video.info.width, video.info.height) == (128, 96)
assert sum(clip.num_frames for clip in video.clips) == 120 and 0 < len(video.cells) <= len(video.clips)
assert all(0 < clip.vector_share <= 1 and clip.motion_score > 0 for clip in video.clips)
"""
    shard = max((finished / "clips").iterdir(), key=lambda file: file.stat().st_size)  # another holds the reject only
    run_silently(code, finished, shard, finished / "rejects.parquet", small_corpus / "video5.mp4")


def test_a_long_table_is_shown_by_its_first_rows(tmp_path: Path, capsys: Captured) -> None:
    rows = [{"number": index} for index in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet", row_group_size=15)
    found = inspection.inspect(str(tmp_path / "table.parquet"))
    assert isinstance(found, inspection.ShardFacts)
    assert (found.kind, found.num_rows, found.rows) == (None, 50, tuple(rows[:20]))
    inspect.main([str(tmp_path / "table.parquet")])
    assert "the first 20 of 50 rows" in " ".join(capsys.readouterr().out.split())


def test_inspect_tokens(on_head: Job, tmp_path: Path, capsys: Captured) -> None:
    """A run, its shard, and a run with rejects; usage and lengths are said of both."""
    model, output = write_model(tmp_path / "model"), tmp_path / "run"
    (tmp_path / "in").mkdir()
    for index in range(3):
        (tmp_path / "in" / f"{index}.jpg").write_bytes(picture(index))
    (tmp_path / "in" / "bad.jpg").write_text("no image")
    (tmp_path / "texts.jsonl").write_text('{"text": "word"}\n')
    inputs = (tmp_path / "in", tmp_path / "texts.jsonl")
    assert on_head("tokenize", "--input", *inputs, "--output", output, "--model", model).returncode == 0
    inspect.main([str(output), "--html", str(tmp_path / "page.html")])
    printed = capsys.readouterr().out
    assert "NotAnImage" in printed
    inspect.main([str(next((output / "tokens").iterdir()))])
    for shown in (printed, capsys.readouterr().out):
        assert re.search(r"image samples +3\b", shown)
        assert re.search(r"text samples +1\b", shown)
        assert re.search(r"visual codebook used +\d+ of 64 \(\d+\.\d%\)", shown)
        assert re.search(r"visual perplexity +\d", shown)
        assert re.search(r"visual codes of a picture +\d+ to \d+, median", shown)
        assert re.search(r"characters of a text +4 to 4\b", shown)
    assert "visual perplexity" in (tmp_path / "page.html").read_text()


def test_inspect_a_video(small_corpus: Path, tmp_path: Path, capsys: Captured) -> None:
    inspect.main([str(small_corpus / "video5.mp4"), "--png", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr().out
    assert "h264" in printed
    assert "128 x 96" in printed
    assert "120" in printed  # frames at 6 fps
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


@pytest.mark.parametrize("what", ["nowhere.mp4", "nowhere.parquet", ".", "README.md"])
def test_inspect_refuses_by_name(what: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        inspect.main([what])
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr("sys.argv", ["videolavit"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "decompose" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["videolavit", "decompos"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "no command 'decompos'" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["videolavit", "--version"])
    cli.main()
    assert capsys.readouterr().out == f"videolavit {videolavit.__version__}\n"


@pytest.mark.parametrize("job", cli.COMMANDS)
def test_help_and_config_files(job: str, tmp_path: Path, capsys: Captured) -> None:
    words = [job, "vae"] if job == "train" else [job]
    shown = printed_by(capsys, *words, "--help", status=0)
    assert "--config" in shown
    assert "_" not in "".join(word for word in shown.split() if word.startswith("--"))
    (tmp_path / "config.yaml").write_text("no_such_option: 1\n")
    assert "no_such_option" in printed_by(capsys, *words, "--config", tmp_path / "config.yaml", status=2)


def test_a_command_as_a_process(run_job: Job) -> None:
    shown = run_job("cli", "decompose", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "usage: videolavit decompose" in shown.stdout
    refused = run_job("cli", "decompose", "--no-such-option", 1)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "unrecognized arguments: --no-such-option 1;" in refused.stderr
    assert "Traceback" not in refused.stderr

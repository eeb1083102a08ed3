"""The pipeline as its users run it: its own process, on a real Ray, over real files."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from tests import runs
from tests.commands import printed_by
from tests.conftest import Job
from videolavit.media import decompose
from videolavit.records.samples import decode_picture


@pytest.fixture(scope="module")
def finished(on_head: Job, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run over the small corpus, with segments of 8 s."""
    output = tmp_path_factory.mktemp("finished")
    done = on_head("decompose", "--input", small_corpus, "--output", output, "--segment-seconds", 8)
    assert done.returncode == 0, done.stderr
    return output


def test_rows_hold_what_the_media_layer_computes(finished: Path, small_corpus: Path) -> None:
    checked = 0
    for name in runs.shards(str(finished)):
        for row in pq.read_table(name).to_pylist():
            end = row["end_seconds"] if row["start_seconds"] + 8 == row["end_seconds"] else None
            expected = list(decompose(row["source"], start_seconds=row["start_seconds"], end_seconds=end))
            assert [clip["start_frame"] for clip in row["clips"]] == [clip.start_frame for clip in expected]
            for stored, clip in zip(row["clips"], expected, strict=True):
                assert (runs.clip_motion(stored) == clip.motion[: clip.num_frames]).all()
                assert stored["num_vectors"] == clip.num_vectors[: clip.num_frames].tolist()
                assert abs(decode_picture(stored["keyframe"]).astype(int) - clip.keyframe).mean() < 3
                checked += 1
    assert checked > 10


def test_long_videos_are_cut_and_every_frame_kept(finished: Path, small_corpus: Path) -> None:
    rows = duckdb.sql(
        f"select start_seconds, end_seconds from '{finished}/clips/*.parquet' "
        "where source like '%video5.mp4' order by 1"
    ).fetchall()
    assert rows == [(0.0, 8.0), (8.0, 20.0)]  # a rest shorter than a clip is not cut off


def test_shards_are_plain_parquet(finished: Path) -> None:
    """DuckDB reads them without this project; no column has an extension type."""
    frames = duckdb.sql(
        f"select sum(clip.num_frames) from (select unnest(clips) as clip from '{finished}/clips/*.parquet')"
    ).fetchall()
    assert frames == [(6 * (2 + 3 + 4 + 5 + 6 + 20),)]
    schema = pq.read_schema(runs.shards(str(finished))[0])
    assert schema.metadata[b"videolavit.version"] == b"1"
    assert not any(key.startswith(b"ARROW:extension") for field in schema for key in field.metadata or {})


def test_run_folder_is_complete(finished: Path) -> None:
    run = runs.run(str(finished))
    assert run["complete"]
    assert run["counts"]["planned"] == run["counts"]["samples"] == 7
    assert runs.rejects(str(finished)) == []
    page = (finished / "report.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "<svg" in page


def test_a_second_start_does_nothing(on_head: Job, finished: Path, small_corpus: Path) -> None:
    before = {name: Path(name).stat().st_mtime_ns for name in runs.shards(str(finished))}
    done = on_head("decompose", "--input", small_corpus, "--output", finished, "--segment-seconds", 8)
    assert done.returncode == 0
    assert "nothing new" in done.stderr
    assert before == {name: Path(name).stat().st_mtime_ns for name in runs.shards(str(finished))}


def test_other_settings_are_refused(on_head: Job, finished: Path, small_corpus: Path) -> None:
    done = on_head("decompose", "--input", small_corpus, "--output", finished, "--segment-seconds", 9)
    assert done.returncode == 2
    assert "segment_seconds: 8.0 -> 9.0" in done.stderr
    assert "Traceback" not in done.stderr


def test_output_does_not_depend_on_the_number_of_workers(
    on_head: Job, finished: Path, small_corpus: Path, tmp_path: Path
) -> None:
    done = on_head("decompose", "--input", small_corpus, "--output", tmp_path, "--segment-seconds", 8, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert runs.samples(str(tmp_path)) == runs.samples(str(finished))
    assert [Path(name).name for name in runs.shards(str(tmp_path))] == [
        Path(name).name for name in runs.shards(str(finished))
    ]


def test_a_grown_input_adds_the_new_part_and_rejects_can_be_retried(
    on_head: Job, small_corpus: Path, tmp_path: Path
) -> None:
    videos, output = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    shutil.copy(small_corpus / "video0.mp4", videos / "a.mp4")
    (videos / "b.mp4").write_bytes(b"")
    (videos / "c.mp4").write_text("no video")
    done = on_head("decompose", "--input", videos, "--output", output)
    assert done.returncode == 0, done.stderr
    first = runs.samples(str(output))
    assert len(first) == 1
    assert {row["error_type"] for row in runs.rejects(str(output))} == {"SourceEmpty", "UnknownFormat"}

    shutil.copy(small_corpus / "video1.mp4", videos / "b.mp4")  # repaired
    shutil.copy(small_corpus / "video2.mp4", videos / "d.mp4")  # new
    done = on_head("decompose", "--input", videos, "--output", output)
    assert done.returncode == 0, done.stderr
    second = runs.samples(str(output))
    assert len(second) == 2
    assert first.items() < second.items()

    done = on_head("decompose", "--output", output, "--retry-rejects", "--only", "SourceEmpty")
    assert done.returncode == 0, done.stderr
    third = runs.samples(str(output))
    assert len(third) == 3
    assert second.items() < third.items()
    (left,) = runs.rejects(str(output))
    assert (left["error_type"], left["attempts"]) == ("UnknownFormat", 1)
    assert left["source"].endswith("c.mp4")
    assert runs.run(str(output))["counts"]["planned"] == 4


def test_plan_writes_nothing(on_head: Job, small_corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = on_head("decompose", "--input", small_corpus / "*.mp4", "--output", output, "--plan")
    assert done.returncode == 0, done.stderr
    assert "core-hours" in done.stdout
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x"], "--input is missing"),
        (["--input", "nowhere", "--output", "x"], "no such file, folder or key"),
        (["--input", "README.md"], "--output is missing"),
        (["--input", "README.md", "--output", "x", "--only", "X"], "--retry-rejects"),
        (["--input", "README.md", "--output", "x", "--workers", "0"], "workers must be at least 1"),
        (["--input", "README.md", "--output", "x", "--fps", "fast"], "fps"),
        (["--input", "README.md", "--output", "x", "--colour", "red"], "colour"),
        (["--input", "foo://bar", "--output", "x"], "foo"),
    ],
)
def test_user_mistakes_name_the_fix(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    words = [str(tmp_path / word) if word == "x" else word for word in arguments]
    assert message in printed_by(capsys, "decompose", *words, status=2)


def test_manifests_and_tars(on_head: Job, small_corpus: Path, tmp_path: Path) -> None:
    """Captions and further columns travel to the shards; a tar's members are read where they lie."""
    manifest = tmp_path / "manifest.jsonl"
    rows = [
        {"video": str(small_corpus / "video0.mp4"), "text": "first\nline", "licence": "CC0", "score": 0.5},
        {"video": str(small_corpus / "video0.mp4"), "text": "named twice", "licence": "CC0", "score": 0.5},
        {"video": "missing.mp4", "text": "gone", "licence": "CC0", "score": 0.1},
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tar = tmp_path / "set.tar"
    with tarfile.open(tar, "w") as archive:
        for name, data in {
            "000.mp4": (small_corpus / "video1.mp4").read_bytes(),
            "000.txt": b"from a tar\n",
            "001.mp4": (small_corpus / "video2.mp4").read_bytes(),
            "001.json": b'{"caption": "from json", "id": 7}',
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    output = tmp_path / "out"
    refused = on_head("decompose", "--input", manifest, tar, "--output", output)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"allow {small_corpus} if you trust it" in refused.stderr
    done = on_head("decompose", "--input", manifest, tar, "--output", output, "--allow", small_corpus)
    assert done.returncode == 0, done.stderr
    found = duckdb.sql(
        "select text, licence, score, tar_json, num_clips "
        f"from read_parquet('{output}/clips/*.parquet', union_by_name=true) order by 1"
    ).fetchall()
    assert found == [
        ("first\nline", "CC0", 0.5, None, 1),
        ("from a tar", None, None, None, 1),
        ("from json", None, None, '{"caption": "from json", "id": 7}', 1),
    ]
    (reject,) = runs.rejects(str(output))
    assert (reject["error_type"], reject["source"]) == ("SourceMissing", str(tmp_path / "missing.mp4"))


def test_a_tar_that_was_missing_is_read_on_retry(on_head: Job, small_corpus: Path, tmp_path: Path) -> None:
    """The tar's own reject gives way to its members, one of which is no video."""
    manifest, tar, output = tmp_path / "m.jsonl", tmp_path / "set.tar", tmp_path / "out"
    manifest.write_text(json.dumps({"video": str(tar), "text": "x", "id": 1}) + "\n")
    assert on_head("decompose", "--input", manifest, "--output", output).returncode == 0
    assert [row["error_type"] for row in runs.rejects(str(output))] == ["SourceMissing"]
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    with tarfile.open(tar, "w") as archive:
        archive.add(small_corpus / "video0.mp4", "a.mp4")
        archive.add(tmp_path / "noise.mp4", "b.mp4")
    for attempts in (1, 2):
        assert on_head("decompose", "--output", output, "--retry-rejects").returncode == 0
        (reject,) = runs.rejects(str(output))
        assert (reject["source"], reject["attempts"]) == (f"{tar}/b.mp4", 1 + attempts)
        assert len(runs.samples(str(output))) == 1
        assert runs.run(str(output))["counts"]["planned"] == 2


def test_the_rest_of_a_damaged_tar_is_read_when_it_was_repaired(
    on_head: Job, small_corpus: Path, tmp_path: Path
) -> None:
    """The tar's reject stands beside its whole members until then, whatever else is retried."""
    tar, output = tmp_path / "set.tar", tmp_path / "out"
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    with tarfile.open(tar, "w") as archive:
        for name, file in {"a": "video0", "b": "noise", "c": "video1"}.items():
            archive.add((tmp_path if file == "noise" else small_corpus) / f"{file}.mp4", f"{name}.mp4")
            end = archive.offset - 1000
    whole = tar.read_bytes()
    tar.write_bytes(whole[:end])

    def rejects(*arguments: object) -> dict[str, str]:
        assert on_head("decompose", "--output", output, *arguments).returncode == 0
        return {row["source"].removeprefix(str(tar)): row["error_type"] for row in runs.rejects(str(output))}

    both = {"": "CorruptTar", "/b.mp4": "UnknownFormat"}
    assert rejects("--input", tar) == both
    assert rejects("--retry-rejects", "--only", "UnknownFormat") == both
    assert rejects("--retry-rejects") == both
    assert (len(runs.samples(str(output))), runs.run(str(output))["counts"]["planned"]) == (1, 3)
    tar.write_bytes(whole)
    assert rejects("--retry-rejects") == {"/b.mp4": "UnknownFormat"}
    assert (len(runs.samples(str(output))), runs.run(str(output))["counts"]["planned"]) == (2, 3)

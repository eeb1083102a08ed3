"""Tokenizing as its users run it: its own process, on a real Ray, over real files, with a small real model."""

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import runs
from tests.commands import printed_by
from tests.conftest import Job
from tests.tokens import MOTION_CODES, VISUAL_CODES, picture, write_model, write_tar

DECOMPOSE = ("--segment-seconds", 8, "--keyframe-format", "png")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model")


ALLOW = ("--allow", "/")
"""The manifest names videos of another folder."""


@pytest.fixture(scope="module")
def clips(on_head: Job, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decompose run over captioned videos, one of 20 s and one that is rejected."""
    folder = tmp_path_factory.mktemp("clips")
    rows = [{"video": str(small_corpus / f"video{index}.mp4"), "text": f"no {index}", "id": index} for index in (1, 5)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"video": "gone.mp4", "id": 9}]))
    done = on_head("decompose", "--input", folder / "m.jsonl", "--output", folder / "run", *DECOMPOSE, *ALLOW)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def from_clips(on_head: Job, clips: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("from-clips") / "out"
    done = on_head("tokenize", "--input", clips / "run", "--output", output, "--model", model, *DECOMPOSE)
    assert done.returncode == 0, done.stderr
    return output


def _codes(url: Path) -> dict[str, list[dict[str, list[int]]]]:
    return {row["sample_id"]: row["clips"] for row in runs.rows(str(url), "tokens")}


def test_rows_hold_what_the_tokenizers_say(from_clips: Path, clips: Path, model: Path) -> None:
    """Computed again from the clip shards, one clip at a time, through the library alone."""
    import torch

    from videolavit.media import motion_features
    from videolavit.models.folder import ModelFolder
    from videolavit.models.visual_tokenizer import normalize_images, resize_image
    from videolavit.records.samples import decode_picture

    folder = ModelFolder(model)
    visual, motion = folder.load("visual_tokenizer"), folder.load("motion_tokenizer")
    found = {row["sample_id"]: row for row in runs.rows(str(from_clips), "tokens")}
    stored = list(runs.rows(str(clips / "run")))
    assert len(found) == len(stored) == 3
    for row in stored:
        tokens = found[row["sample_id"]]
        for clip, codes in zip(row["clips"], tokens["clips"], strict=True):
            image = normalize_images(resize_image(decode_picture(clip["keyframe"]))[None])
            assert codes["visual_tokens"] == visual.encode(image)[0].tolist()
            features = motion_features(runs.clip_motion(clip), row["width"], row["height"])
            assert codes["motion_tokens"] == motion.encode(torch.from_numpy(features)[None])[0].tolist()
        assert tokens["num_tokens"] == sum(len(clip[kind]) for clip in tokens["clips"] for kind in clip)
        same = ("source", "text", "start_seconds", "end_seconds", "id")
        assert [tokens[name] for name in same] == [row[name] for name in same]
        assert tokens["modality"] == "video"


def test_shards_are_plain_parquet(from_clips: Path) -> None:
    rows = duckdb.sql(
        "select text, len(clip.motion_tokens), list_max(clip.visual_tokens) from "
        f"(select text, unnest(clips) as clip from '{from_clips}/tokens/*.parquet')"
    ).fetchall()
    assert len(rows) == 1 + 5
    assert {row[0] for row in rows} == {"no 1", "no 5"}
    assert {row[1] for row in rows} == {135}
    assert max(row[2] for row in rows) < VISUAL_CODES
    metadata = pq.read_schema(runs.shards(str(from_clips), "tokens")[0]).metadata
    assert metadata[b"videolavit.kind"] == b"tokens"
    assert metadata[b"videolavit.motion_codes"] == str(MOTION_CODES).encode()


def test_videos_at_once_and_step_by_step_give_the_same(
    on_head: Job, clips: Path, from_clips: Path, model: Path, tmp_path: Path
) -> None:
    """Decomposition and tokenizing in one job; then the clips of the same videos add nothing."""
    arguments = ("--output", tmp_path / "out", "--model", model, *DECOMPOSE)
    done = on_head("tokenize", "--input", clips / "m.jsonl", *arguments, *ALLOW, "--workers", 1, "--encoders", 2)
    assert done.returncode == 0, done.stderr
    assert runs.samples(str(tmp_path / "out"), "tokens") == runs.samples(str(from_clips), "tokens")
    (reject,) = runs.rejects(str(tmp_path / "out"))
    assert (reject["error_type"], reject["stage"]) == ("SourceMissing", "tokenize")
    done = on_head("tokenize", "--input", clips / "run", *arguments)
    assert done.returncode == 0, done.stderr
    assert "nothing new" in done.stderr


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad images and texts in every kind of container."""
    root = tmp_path_factory.mktemp("pictures")
    folder = root / "folder"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(picture(0))
    (folder / "a.txt").write_text("a caption\n")
    (folder / "b.PNG").write_bytes(picture(1, kind="PNG"))
    (folder / "cut.jpg").write_bytes(picture(2, (300, 300))[:2000])
    (folder / "none.jpg").write_text("no image")
    (folder / "empty.webp").touch()
    (folder / "odd.bin").write_bytes(bytes(400))
    write_tar(root / "set.tar", {"0.jpg": picture(3), "0.txt": b"in a tar", "1.webp": picture(4, kind="WEBP")})
    structs = [{"bytes": picture(5), "path": "x"}, {"bytes": None, "path": "folder/a.jpg"}, None]
    table = pa.table({"image": structs, "text": ["x", "y", "z"], "licence": ["CC0", None, None]})
    pq.write_table(table, root / "structs.parquet", row_group_size=2)
    pq.write_table(pa.table({"picture": [picture(6), b"bad"]}), root / "bytes.parquet")
    (root / "addresses.csv").write_text("image,caption\nfolder/b.PNG,named twice\nfolder/gone.png,lost\n")
    (root / "texts.jsonl").write_text('{"text": "one"}\n{"text": " "}\n{"text": "two"}\n')
    (root / "text.txt").write_text("three\n")
    (root / "latin.txt").write_bytes(b"\xe4")
    return root


@pytest.fixture(scope="module")
def from_pictures(on_head: Job, pictures: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("from-pictures") / "out"
    names = ("folder", "set.tar", "structs.parquet", "addresses.csv", "texts.jsonl", "*.txt")
    done = on_head("tokenize", "--input", *(pictures / name for name in names), "--output", output, "--model", model)
    assert done.returncode == 0, done.stderr
    return output


def test_images_and_texts_of_every_kind(from_pictures: Path, pictures: Path) -> None:
    rows = {row["source"].removeprefix(f"{pictures}/"): row for row in runs.rows(str(from_pictures), "tokens")}
    assert {name: (row["modality"], row["text"]) for name, row in rows.items()} == {
        "folder/a.jpg": ("image", "a caption"),
        "folder/b.PNG": ("image", None),
        "set.tar/0.jpg": ("image", "in a tar"),
        "set.tar/1.webp": ("image", None),
        "structs.parquet#row0": ("image", "x"),
        "structs.parquet#row1": ("image", "y"),
        "texts.jsonl#row0": ("text", "one"),
        "texts.jsonl#row2": ("text", "two"),
        "text.txt": ("text", "three\n"),
    }
    for row in rows.values():
        assert [len(clip["motion_tokens"]) for clip in row["clips"]] == [0] * (row["modality"] == "image")
        assert row["num_tokens"] == sum(len(clip["visual_tokens"]) for clip in row["clips"])
    assert rows["folder/a.jpg"]["clips"] == rows["structs.parquet#row1"]["clips"]
    assert rows["structs.parquet#row0"]["licence"] == "CC0"


def test_bad_images_and_texts_are_rejected_with_their_reasons(from_pictures: Path, pictures: Path) -> None:
    rejects = runs.rejects(str(from_pictures))
    reasons = {row["source"].removeprefix(f"{pictures}/"): row["error_type"] for row in rejects}
    assert reasons == {
        "folder/cut.jpg": "CorruptImage",
        "folder/none.jpg": "NotAnImage",
        "folder/empty.webp": "SourceEmpty",
        "folder/odd.bin": "UnknownFormat",  # tried as a video
        "structs.parquet#row2": "SourceMissing",
        "folder/gone.png": "SourceMissing",
        "texts.jsonl#row1": "EmptyText",
        "latin.txt": "NotAText",
    }
    counts = runs.run(str(from_pictures))["counts"]
    assert (counts["images"], counts["texts"], counts["videos"], counts["planned"]) == (6, 3, 0, 17)


def test_a_grown_input_retries_and_another_identity(on_head: Job, pictures: Path, model: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(pictures / "folder", folder)
    (folder / "set.tar").write_bytes(b"no tar yet")
    arguments = ("--input", folder, "--output", output, "--model", model, "--modality", "image")
    assert on_head("tokenize", *arguments).returncode == 0
    first = runs.samples(str(output), "tokens")
    assert len(first) == 2
    assert {row["error_type"] for row in runs.rejects(str(output)) if "set.tar" in row["source"]} == {"UnknownFormat"}

    (folder / "none.jpg").write_bytes(picture(7))  # repaired
    shutil.copy(pictures / "set.tar", folder)  # repaired
    (folder / "new.jpg").write_bytes(picture(8))
    assert on_head("tokenize", *arguments, "--retry-rejects").returncode == 0
    second = runs.samples(str(output), "tokens")
    assert first.items() < second.items()
    assert len(second) == 2 + 1 + 2 + 1
    assert {Path(row["source"]).name for row in runs.rejects(str(output))} == {"cut.jpg", "empty.webp", "odd.bin"}

    other = write_model(tmp_path / "other", seed=1)
    refused = on_head("tokenize", "--input", folder, "--output", output, "--model", other, "--dtype", "bfloat16")
    assert refused.returncode == 2
    assert "tokenizers.digests.visual_tokenizer" in refused.stderr
    assert "dtype: float32 -> bfloat16" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere", "--input", "README.md"], "no model in nowhere"),
        (["--model", "tiny", "--input", "empty"], "nothing to tokenize"),
        (["--model", "tiny", "--input", "README.md", "--gpu-fraction", "2"], "gpu_fraction must be from 0 to 1"),
        (["--input", "README.md"], "model"),
    ],
)
def test_user_mistakes_name_the_fix(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / word) if word == "empty" else word for word in arguments]
    assert message in printed_by(capsys, "tokenize", *words, "--output", tmp_path / "out", status=2)


def test_plan_writes_nothing(on_head: Job, clips: Path, model: Path, tmp_path: Path) -> None:
    done = on_head("tokenize", "--input", clips / "run", "--output", tmp_path / "out", "--model", model, "--plan")
    assert done.returncode == 0, done.stderr
    assert "core-hours" in done.stdout
    assert "tokenizers, as timed on a few batches: ~" in done.stdout
    assert not (tmp_path / "out").exists()


def test_run_folder_and_card(from_clips: Path) -> None:
    run = runs.run(str(from_clips))
    assert run["complete"]
    assert run["identity"]["tokenizers"]["num_codes"] == {"visual": VISUAL_CODES, "motion": MOTION_CODES}
    assert (run["counts"]["clips"], run["counts"]["motion_tokens"]) == (6, 6 * 135)
    page = (from_clips / "report.html").read_text()
    assert "visual perplexity" in page
    assert "<svg" in page
    codes = np.concatenate([clip["motion_tokens"] for row in _codes(from_clips).values() for clip in row])
    shares = np.bincount(codes) / len(codes)
    perplexity = np.exp(-sum(share * np.log(share) for share in shares if share))
    assert f"{perplexity:,.1f}" in page

"""Inputs of tokenizing, and the shards that they are planned into."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.records.listed import STORAGE, list_corpus
from tests.tokens import picture, write_tar
from videolavit.records import schema
from videolavit.records.files import InputError
from videolavit.records.identity import identifying_settings, sample_id
from videolavit.records.inputs import InputSettings
from videolavit.records.kinds import KINDS, PlanSettings, expand_source, shard_by
from videolavit.records.kinds.base import PICTURE_BYTES
from videolavit.records.plan import MAX_TOKEN_SHARD_BYTES, assign_token_shards
from videolavit.records.rows import PlanRow, Source, plan_rows_to, sources_from
from videolavit.records.samples import SampleSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b/c.JPG", "b/c.txt", "d.png", "e", "f.tar", "notes.txt", "m.jsonl", ".h/x.png", "x.json"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path / "in"


def _kinds(*inputs: object, **options: str) -> dict[str, str]:
    rows = sources_from(list_corpus(*inputs, settings=InputSettings(**options)))  # type: ignore[arg-type]
    return {row.source.rsplit("/", 1)[1]: row.kind for row in rows}


def test_kinds_of_files(folder: Path) -> None:
    assert _kinds(folder) == {"a.mp4": "video", "c.JPG": "image", "d.png": "image", "e": "video", "f.tar": "tar"}
    assert set(_kinds(folder, modality="image").values()) == {"image", "tar"}
    assert _kinds(folder / "*.txt") == {"notes.txt": "text"}
    assert _kinds(folder / "notes.txt", folder / "d.png") == {"notes.txt": "text", "d.png": "image"}
    assert _kinds(folder / "b", modality="text") == {"c.JPG": "text", "c.txt": "text"}  # to be rejected: no text
    (caption,) = list_corpus(folder / "b")["text_url"].to_pylist()
    assert caption == str(folder / "b" / "c.txt")


def test_a_folder_of_tables_is_a_corpus(tmp_path: Path) -> None:
    for index in range(2):
        pq.write_table(pa.table({"text": [f"text {index}"], "page": [index]}), tmp_path / f"{index}.parquet")
    sources = list_corpus(tmp_path)
    assert sources["source"].to_pylist() == [f"{tmp_path}/{index}.parquet#row0" for index in range(2)]
    assert sources["extra.page"].to_pylist() == [0, 1]
    (tmp_path / "picture.png").write_bytes(picture(0, kind="PNG"))
    assert _kinds(tmp_path) == {"picture.png": "image"}  # now they describe it


def test_kinds_of_tables(tmp_path: Path) -> None:
    def kind(**columns: list) -> set[tuple[str, int | None]]:
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        return {(row.kind, row.row) for row in sources_from(list_corpus(tmp_path / "t.parquet"))}

    assert kind(video=["a.mp4"], text=["x"]) == {("video", None)}
    assert kind(image=["a.png"], text=["x"]) == {("image", None)}
    assert kind(image=[b"bytes"], text=["x"]) == {("image", 0)}
    assert kind(image=[{"bytes": b"bytes", "path": None}]) == {("image", 0)}
    assert kind(caption=["x"], url=["y"]) == {("text", 0)}
    with pytest.raises(InputError, match="videos and images; set the modality"):
        kind(video=["a.mp4"], image=["a.png"])
    with pytest.raises(InputError, match="none of the columns `video`, `image`, `text`; it has x"):
        kind(x=[1])
    with pytest.raises(InputError, match="not addresses"):
        kind(image=[[1]])


def test_names_that_shards_have_are_given_way_to(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "modality": ["y"], "width": [1]}), tmp_path / "t.parquet")
    sources = list_corpus(tmp_path / "t.parquet")
    assert {name for name in sources.column_names if "extra" in name} == {
        "extra.manifest_modality",
        "extra.manifest_width",
    }


def test_what_cannot_be_tokenized_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        _kinds(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nothing to tokenize"):
        _kinds(tmp_path)
    pq.write_table(schema.TOKENS.empty_table().cast(schema.versioned(schema.TOKENS, "tokens")), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"table of a run \(tokens\)"):
        _kinds(tmp_path / "t.parquet")
    (tmp_path / "run.json").write_text('{"identity": {"kind": "tokens"}}')
    with pytest.raises(InputError, match="a run of tokens"):
        _kinds(tmp_path)
    (tmp_path / "run.json").write_text('{"identity": {}}')
    with pytest.raises(InputError, match="goes with modality auto or video, not image"):
        _kinds(tmp_path, modality="image")


def test_members_of_a_tar(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", {"0.jpg": b"x", "0.mp4": b"y", "1.gif": b"y", "2.txt": b"z"})
    (source,) = sources_from(list_corpus(tar))

    def members(modality: str) -> list[str]:
        inputs = InputSettings(modality=modality)  # type: ignore[arg-type]
        return [
            one.kind for one in expand_source(source, PlanSettings(sample=SampleSettings(), inputs=inputs), STORAGE)
        ]

    assert members("auto") == ["image", "video", "image"]
    assert members("image") == ["image", "image"]
    assert members("video") == ["video", "video"]  # an animated GIF is one


def test_names_of_a_tar_that_cannot_be_listed(tmp_path: Path) -> None:
    """Clip runs and token runs have always named it each in its own way; a retry must find it again."""
    (source,) = sources_from(list_corpus(write_tar(tmp_path / "t.tar", {})))
    for makes_clips, depends_on in ((True, identifying_settings(SampleSettings())), (False, {"modality": "tar"})):
        settings = PlanSettings(sample=SampleSettings(), inputs=InputSettings(), makes_clips=makes_clips)
        row = KINDS["tar"].plan_unread(source, settings)
        assert (row.kind, row.sample_id) == ("tar", sample_id(source.source, 0.0, depends_on))


def _row(index: int, kind: str, clips: int, text: str) -> PlanRow:
    source = Source(source=f"{kind}{index}", url="u", kind=kind, row=index, text=text)
    row = KINDS[kind].plan_unread(source, PlanSettings(sample=SampleSettings(), inputs=InputSettings()))
    row = dataclasses.replace(row, num_clips=clips)
    (size,) = KINDS[kind].token_bytes(plan_rows_to([row])).to_pylist()
    return dataclasses.replace(row, size_bytes=size)


def _assigned(rows: list[PlanRow]) -> dict[str, str]:
    plan = assign_token_shards(plan_rows_to(rows), 2, shard_by)
    return dict(zip(plan["sample_id"].to_pylist(), plan["shard"].to_pylist(), strict=True))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["clips", "image", "text"]), st.integers(0, 300)), min_size=1), st.randoms())
def test_shards_are_bounded_and_do_not_depend_on_the_order(samples: list, random) -> None:  # noqa: ANN001
    rows = [_row(index, kind, size, "x" * size * 500) for index, (kind, size) in enumerate(samples)]
    first = _assigned(rows)
    random.shuffle(rows)
    assert first == _assigned(rows)
    assert len(first) == len(samples)
    pictures: dict[str, list[int]] = {}
    for row in rows:
        pictures.setdefault(first[row.sample_id], []).append(row.num_clips if row.kind != "text" else 0)
    for counts in pictures.values():
        assert sum(counts) <= MAX_TOKEN_SHARD_BYTES // PICTURE_BYTES or len(list(filter(None, counts))) == 1

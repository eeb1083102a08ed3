"""Planned samples that have changed, or are not what they seem, become typed rejects."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.records.listed import STORAGE, list_corpus
from tests.tokens import picture, write_tar
from videolavit.media.errors import MediaError
from videolavit.records import schema
from videolavit.records.inputs import InputSettings
from videolavit.records.kinds import KINDS, PlanSettings, prepare_sample
from videolavit.records.kinds.text import MAX_TEXT_BYTES
from videolavit.records.prepare import PrepareSettings
from videolavit.records.rows import PlanRow, sources_from
from videolavit.records.samples import SampleSettings

SETTINGS = PrepareSettings(SampleSettings(), InputSettings(), 224, (20, 36))


def _planned(path: Path, **options: str) -> list[PlanRow]:
    inputs = InputSettings(**options)  # type: ignore[arg-type]
    settings = PlanSettings(sample=SampleSettings(), inputs=inputs)
    return [KINDS[one.kind].plan_unread(one, settings) for one in sources_from(list_corpus(path, settings=inputs))]


def _reason(row: PlanRow) -> str:
    with pytest.raises(MediaError) as caught:
        prepare_sample(row, SETTINGS, STORAGE)
    return type(caught.value).__name__


def test_rows_of_a_table_that_changes(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"photo": [picture(0), picture(1), picture(2)]}), table, row_group_size=2)
    rows = _planned(table, image_column="photo")
    sizes = [prepare_sample(row, SETTINGS, STORAGE).pictures.shape for row in rows]
    assert sizes == [(1, 224, 224, 3)] * 3
    assert _reason(replace(rows[0], row=3)) == "SourceChanged"
    other = tmp_path / "other.parquet"
    other.write_bytes(table.read_bytes()[:-9])
    assert _reason(replace(rows[0], url=str(other))) == "CorruptTable"


def test_a_clip_shard_that_changes(tmp_path: Path) -> None:
    clips = schema.versioned(schema.CLIPS, "clips")
    shard = pa.Table.from_pylist([{"sample_id": "now", "source": "s", "clips": []}], clips)
    pq.write_table(shard, tmp_path / "c.parquet")
    (row,) = _planned(tmp_path / "c.parquet")
    assert _reason(replace(row, row=0, sample_id="before")) == "SourceChanged"
    assert _reason(row) == "SourceUnreadable"  # could not be listed when it was planned; now it can


def test_tars_and_texts(tmp_path: Path) -> None:
    (tar,) = _planned(write_tar(tmp_path / "t.tar", {"a.txt": b"x"}))
    assert _reason(tar) == "NothingInside"
    (tmp_path / "large.txt").write_bytes(b"x" * (MAX_TEXT_BYTES + 1))
    (large,) = _planned(tmp_path / "large.txt")
    assert _reason(large) == "TextTooLarge"
    (tmp_path / "marked.txt").write_bytes("\ufeffmarked".encode())
    (marked,) = _planned(tmp_path / "marked.txt")
    assert prepare_sample(marked, SETTINGS, STORAGE).text == "marked"

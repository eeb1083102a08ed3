"""The kind of input that docs/extending.md shows works as it is written there."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, moving_texture
from videolavit.media import write_mp4
from videolavit.records.kinds import KINDS, expand_source, plan_source, read_clips
from videolavit.records.prepare import NothingInside
from videolavit.records.rows import PlanRow, Source, plan_rows_from, sources_from

from .reading import SETTINGS, STORAGE, listed


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kind of the page, in the registry above `video`."""
    page = (ROOT / "docs" / "extending.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class AddressList" in block)
    values: dict[str, type] = {}
    exec(compile(code, "docs/extending.md", "exec"), values)
    before = dict(KINDS)
    KINDS.clear()
    KINDS.update({"address_list": values["AddressList"](), **before})
    yield "address_list"
    KINDS.clear()
    KINDS.update(before)


def _planned(source: Source) -> list[PlanRow]:
    inside = expand_source(source, SETTINGS, STORAGE)
    return [row for one in inside for row in plan_rows_from(plan_source(one, SETTINGS, STORAGE, []))]


def test_the_kind_of_the_page(kind: str, tmp_path: Path) -> None:
    write_mp4(moving_texture(48, 48, 64, 1), tmp_path / "a.mp4", 12)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "videos.list").write_text("../a.mp4\n\n../b.mp4\n")
    (batch,) = listed(tmp_path / "in")
    (source,) = sources_from(batch)
    assert source.kind == kind
    rows = _planned(source)
    assert [row.source for row in rows] == [f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4"]
    assert [read_clips(row, SETTINGS.sample, STORAGE).num_clips for row in rows] == [1, 1]
    (tmp_path / "m.csv").write_text("video\nin/videos.list\n")  # a row of a manifest may name one
    (batch,) = listed(tmp_path / "m.csv")
    assert sources_from(batch) == [source]


def test_an_empty_one_gives_a_typed_reject(kind: str, tmp_path: Path) -> None:
    (tmp_path / "empty.list").write_text("\n")
    (batch,) = listed(tmp_path / "empty.list")
    (source,) = sources_from(batch)
    assert _planned(source) == []
    row = KINDS[kind].plan_unread(source, SETTINGS)
    with pytest.raises(NothingInside, match="without addresses"):
        read_clips(row, SETTINGS.sample, STORAGE)

"""Manifests in CSV and JSON lines: what is text stays as it is written."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.records.listed import list_corpus, list_videos
from videolavit.records.files import InputError


def _listed(folder: Path, name: str, text: str) -> list[dict[str, Any]]:
    (folder / name).write_text(text)
    return list_videos(folder / name).to_pylist()


def test_csv_with_line_breaks_in_texts(tmp_path: Path) -> None:
    rows = "".join(f'v{index}.mp4,"A man walks.\nThen he sits. {"x" * 40}"\n' for index in range(20_000))
    found = _listed(tmp_path, "m.csv", f"video,text\n{rows}")
    assert len(found) == 20_000
    assert {row["text"] for row in found} == {f"A man walks.\nThen he sits. {'x' * 40}"}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("0", 0),
        ("1.50", 1.5),
        (".5", 0.5),
        ("1e-05", 1e-05),
        ("1.5E3", 1500.0),
        ("true", True),
        ("", None),
        ("NA", None),
        ("0042", "0042"),
        ("1e10", "1e10"),
        ("+5", "+5"),
        ("99999999999999999999", 1e20),
        ("00:00:19", "00:00:19"),
        ("2020-01-01", "2020-01-01"),
        ("2020-01-01 10:00:00", "2020-01-01 10:00:00"),
        ("a", "a"),
    ],
)
def test_values_of_csv(tmp_path: Path, written: str, value: object) -> None:
    (row,) = _listed(tmp_path, "m.csv", f"video,x\na.mp4,{written}\n")
    assert (row["extra.x"], type(row["extra.x"])) == (value, type(value))


def test_one_value_decides_for_its_column(tmp_path: Path) -> None:
    rows = _listed(tmp_path, "m.csv", "video,x,y,z\na,1,1,\nb,007,2.5,\nc,2,,\n")
    assert [row["extra.x"] for row in rows] == ["1", "007", "2"]
    assert [row["extra.y"] for row in rows] == [1.0, 2.5, None]
    assert [row["extra.z"] for row in rows] == [None] * 3


def test_the_caption_column_that_was_named_is_text(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("video,title\na,1.50\nb,007\n")
    assert list_videos(tmp_path / "m.csv", text_column="title")["text"].to_pylist() == ["1.50", "007"]


def test_captions_of_json_lines(tmp_path: Path) -> None:
    lines = ("null", "NaN", '"x"', "2", "2.5", "true", '"2020-01-01"', r'"\ud83d"')
    rows = _listed(tmp_path, "m.jsonl", "".join(f'{{"video": "v{i}", "text": {one}}}\n' for i, one in enumerate(lines)))
    assert [row["text"] for row in rows] == [None, None, "x", "2", "2.5", "true", "2020-01-01", r"\xed\xa0\xbd"]
    assert [row["text"] for row in _listed(tmp_path, "none.jsonl", '{"video": "a", "text": NaN}\n')] == [None]


def test_keys_inside_of_values_are_no_columns(tmp_path: Path) -> None:
    text = '{"video": "a", "caption": "a cat"}\n{"video": "b", "caption": "a dog", "ocr": [{"text": "STOP"}]}\n'
    rows = _listed(tmp_path, "m.jsonl", text)
    assert [row["text"] for row in rows] == ["a cat", "a dog"]
    assert [row["extra.ocr"] for row in rows] == [None, [{"text": "STOP"}]]
    with pytest.raises(InputError, match="no column `video`; it has path, meta"):
        _listed(tmp_path, "wrong.jsonl", '{"path": "a.mp4", "meta": {"video": "x"}}\n')


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["1", "2.5"], [1.0, 2.5]),
        (["1", '"x"'], ["1", "x"]),
        (["1", "true"], ["1", "true"]),
        (["{}", '{"a": []}'], [{"a": None}, {"a": []}]),
        (["{}", "null"], ["{}", None]),
        (['{"a": {}}', "null"], ['{"a": {}}', None]),
        (["[1]", '["x"]'], ["[1]", '["x"]']),
        (["18446744073709551616", "1"], ["18446744073709551616", "1"]),
        (['"2020-01-01T10:00:00"', "null"], ["2020-01-01T10:00:00", None]),
    ],
)
def test_values_of_json_lines(tmp_path: Path, values: list[str], found: list[object]) -> None:
    lines = "".join(f'{{"video": "v{index}", "x": {one}}}\n' for index, one in enumerate(values))
    assert [row["extra.x"] for row in _listed(tmp_path, "m.jsonl", lines)] == found


def test_types_agree_over_all_of_a_file(tmp_path: Path) -> None:
    """More rows than are held at a time; the last one decides."""
    lines = [f'{{"video": "{index}", "x": 1, "y": {{}}}}' for index in range(20_000)]
    text = "\n".join([*lines, '{"video": "last", "x": 1.5, "y": {"a": 1}}'])
    rows = _listed(tmp_path, "m.jsonl", text)
    assert (rows[0]["extra.x"], rows[-1]["extra.x"]) == (1.0, 1.5)
    assert (rows[0]["extra.y"], rows[-1]["extra.y"]) == ({"a": None}, {"a": 1})


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    for line, message in (("{not json", "line 3: Expecting"), ("[1]", "line 3 is no JSON object")):
        with pytest.raises(InputError, match=message):
            _listed(tmp_path, "m.jsonl", f'\ufeff{{"video": "a"}}\n\n{line}\n')


def test_texts_are_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("text,page\n1.50,1\n007,2\n")
    found = list_corpus(tmp_path / "m.csv")
    assert (found["text"].to_pylist(), found["extra.page"].type) == (["1.50", "007"], pa.int64())

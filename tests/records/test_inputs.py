"""Inputs of decomposition: folders, globs and manifests."""

import json
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.records.listed import STORAGE, list_videos, videos
from videolavit.media.errors import NotAFile
from videolavit.records import schema
from videolavit.records.files import InputError, find_files
from videolavit.records.rows import sources_from
from videolavit.records.storage import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/two.mkv", "one.mp4", "b/odd", "captions.jsonl", "one.txt", ".hidden.mp4", ".git/x.mp4"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path / "in"


def _names(*inputs: object) -> list[str]:
    return [source.rsplit("/", 1)[1] for source in list_videos(*inputs)["source"].to_pylist()]


def test_folders_globs_and_files(folder: Path) -> None:
    assert _names(folder) == ["odd", "two.mkv", "one.mp4"]  # sidecars and hidden files are no input
    assert _names(folder / "*.mp4") == ["one.mp4"]
    assert _names(folder / "**" / "*.m*") == ["two.mkv", "one.mp4"]
    assert _names(folder / "one.mp4", folder) == ["one.mp4", "odd", "two.mkv"]  # named twice, listed once


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_manifests(folder: Path, suffix: str) -> None:
    rows = [{"video": "one.mp4", "caption": "eins", "id": 1}, {"video": "s3://b/two.mkv", "caption": None, "id": 2}]
    manifest = folder / f"manifest.{suffix}"
    table = pa.Table.from_pylist(rows)
    if suffix == "parquet":
        pq.write_table(table, manifest)
    elif suffix == "csv":
        pyarrow.csv.write_csv(table, manifest)
    else:
        manifest.write_text("\n".join(map(json.dumps, rows)))
    sources = list_videos(manifest)
    assert sources["source"].to_pylist() == [str(folder / "one.mp4"), "s3://b/two.mkv"]
    assert sources["text"].to_pylist()[0] == "eins"
    assert sources["extra.id"].to_pylist() == [1, 2]
    assert list_videos(manifest, text_column="id")["text"].to_pylist() == ["1", "2"]


def test_mistakes_are_named(folder: Path) -> None:
    (folder / "bad.csv").write_text("file,text\na.mp4,x\n")
    with pytest.raises(InputError, match="no column `video`; it has file, text"):
        list_videos(folder / "bad.csv")
    (folder / "worse.jsonl").write_text("{not json")
    with pytest.raises(InputError, match="cannot read the manifest"):
        list_videos(folder / "worse.jsonl")
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"nothing to decompose in .*; name a folder, glob, manifest or tar"):
        list_videos(folder / "empty")
    pq.write_table(pa.table({"video": pa.array([], pa.string())}), folder / "none.parquet")
    with pytest.raises(InputError, match=r"nothing to decompose in .*none\.parquet"):
        list_videos(folder / "none.parquet")
    with pytest.raises(InputError, match="no such file"):
        list_videos(folder / "nowhere")


@pytest.mark.parametrize(
    "name", ["c.tar.gz", "C.TGZ", "z.zip", "v.mp4.gz", "m.csv.zst", "m.json", "m.ndjson", "m.tsv", "m.xlsx"]
)
def test_a_named_file_that_is_not_read_is_a_mistake(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    hint = "uncompressed .tar" if name[0] in "cCzv" or "zst" in name else "from .parquet, .jsonl and .csv"
    for named in (folder / name, folder / f"*{Path(name).suffix}"):
        with pytest.raises(InputError, match=hint):
            list_videos(named)
    assert "one.mp4" in _names(folder)  # in a folder it stops nothing


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.parquet", b"PAR1 no table"),
        ("m.parquet", b""),
        ("m.csv", b"video,text\na.mp4,\xff\n"),
        ("m.csv", b""),
        ("m.csv", b"\x1f\x8b\x08\x00\x00"),
        ("m.jsonl", b'{"video": "a.mp4"}\n\x8b\x00'),
    ],
)
def test_a_named_table_that_cannot_be_read_is_a_mistake(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"cannot read the manifest .*{name}"):
        list_videos(folder / name)


def test_rows_without_a_video_are_kept_to_be_rejected(folder: Path) -> None:
    (folder / "m.jsonl").write_text('{"video": "one.mp4"}\n{"video": null}\n{"video": ""}\n')
    sources = list_videos(folder / "m.jsonl")["source"].to_pylist()
    assert sources == [str(folder / "one.mp4"), f"{folder}/m.jsonl#row1", f"{folder}/m.jsonl#row2"]


@pytest.mark.parametrize("name", ["a::b.mp4", "100%.mp4", "a#b?.mp4", "a b [c].mp4", "ä.mp4", "-x.mp4"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    (tmp_path / ".cache").mkdir()  # files below a hidden folder are listed if that folder was named
    video = tmp_path / ".cache" / name
    video.write_bytes(b"x")
    for named in (video.parent, video, video.parent / "*.mp4"):
        (url,) = list_videos(named)["url"].to_pylist()
        assert url == str(video)
        with open_source(url, STORAGE) as file:
            assert file.read() == b"x"


def test_names_that_are_no_utf8_are_kept_to_be_rejected(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(b"x")
    assert list_videos(tmp_path)["url"].to_pylist() == [f"{tmp_path}/\\xff.mp4"]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    for name in ("in/a.mp4", "elsewhere/b.mp4", "elsewhere/deep/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    links = {
        "in/linked": "../elsewhere",
        "in/one": "../elsewhere/b.mp4",
        "in/gone.mp4": "nowhere",
        "in/self": ".",
        "elsewhere/back": "../in",
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    found = ["a.mp4", "gone.mp4", "linked/b.mp4", "linked/deep/c.mp4", "one"]  # the missing one will be rejected
    assert list_videos(tmp_path / "in")["url"].to_pylist() == [f"{tmp_path}/in/{name}" for name in found]
    assert _names(tmp_path / "in" / "**" / "*.mp4") == ["a.mp4", "gone.mp4", "b.mp4", "c.mp4"]
    assert _names(tmp_path / "in" / "linked") == ["b.mp4", "c.mp4"]
    outside = [f"{tmp_path}/in/{name}" for name in ("linked/b.mp4", "linked/deep/c.mp4", "one")]
    assert find_files(str(tmp_path / "in"), STORAGE).linked == outside
    assert find_files(f"{tmp_path}/in/**/*.mp4", STORAGE).linked == outside[:2]
    assert find_files(str(tmp_path / "in" / "linked"), STORAGE).linked == []  # which was named
    (line,) = videos([tmp_path / "in"]).linked
    assert line.startswith(f"3 files of {tmp_path}/in are symbolic links that lead out of it")


def test_only_regular_files_are_tried(tmp_path: Path) -> None:
    (tmp_path / "in" / "folder.mp4").mkdir(parents=True)
    os.mkfifo(tmp_path / "in" / "camera.mp4")
    (tmp_path / "in" / "null.mp4").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "in" / "socket.mp4"))
        with pytest.raises(InputError, match="nothing to decompose"):
            list_videos(tmp_path / "in")
    for name in ("camera.mp4", "null.mp4", "socket.mp4"):
        with pytest.raises(InputError, match="neither a file nor a folder"):
            list_videos(tmp_path / "in" / name)
    for name in ("camera.mp4", "null.mp4", "socket.mp4", "folder.mp4"):  # a manifest may name them
        with pytest.raises(NotAFile), open_source(str(tmp_path / "in" / name), STORAGE):
            pass


def test_addresses_and_captions_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("video,caption,id\n0001,007,0042\nfile:///x//y/../z.mp4,2020-01-01,1\n")
    sources = list_videos(tmp_path / "m.csv")
    assert sources["url"].to_pylist() == [f"{tmp_path}/0001", "/x/z.mp4"]
    assert sources["text"].to_pylist() == ["007", "2020-01-01"]
    (tmp_path / "m.jsonl").write_text('{"video": "a", "text": "2020-01-01"}\n' + f'{{"video": "b{"x" * 2_000_000}"}}\n')
    assert list_videos(tmp_path / "m.jsonl")["text"].to_pylist() == ["2020-01-01", None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"video": [{"path": "a"}]}, "`video` of .* is struct|holds struct"),
        ({"video": [["a"]]}, "not addresses"),
        ({"video": ["a"], "text": [["x"]]}, "cannot read the manifest"),
        ({"video": ["a"], "source": ["x"], "manifest_source": ["y"]}, "both `source` and `manifest_source`|rename one"),
    ],
)
def test_manifests_that_cannot_be_used_are_refused(tmp_path: Path, columns: dict, message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(InputError, match=message):
        list_videos(tmp_path / "m.parquet")


def test_columns_become_plain(tmp_path: Path) -> None:
    table = pa.table({"video": ["a"], "none": [None], "kind": pa.array(["x"]).dictionary_encode(), "width": [5]})
    pq.write_table(table, tmp_path / "m.parquet")
    sources = list_videos(tmp_path / "m.parquet")
    assert sources.schema.field("extra.none").type == pa.string()
    assert sources.schema.field("extra.kind").type == pa.string()
    assert sources["extra.manifest_width"].to_pylist() == [5]


def test_a_table_says_more_of_a_file_than_its_name(folder: Path) -> None:
    (folder / "captions.jsonl").write_text('{"video": "one.mp4", "text": "eins"}\n')
    texts = {row.source: row.text for row in sources_from(list_videos(folder / "*"))}
    assert texts == {str(folder / "one.mp4"): "eins"}


def test_the_output_may_be_the_folder_of_the_input(folder: Path) -> None:
    before = _names(folder)
    clips = schema.CLIPS.empty_table().cast(schema.versioned(schema.CLIPS, "clips"))
    (folder / "clips").mkdir()
    pq.write_table(clips, folder / "clips" / "0.parquet")
    (folder / "run.json").write_text('{"identity": {}}')
    assert _names(folder) == before
    with pytest.raises(InputError, match="of the kind `clips`, which cannot be decomposed"):
        list_videos(folder / "clips")


def test_captions_are_joined_beside_a_column_of_their_name(tmp_path: Path) -> None:
    file = tmp_path / "several.csv"
    file.write_text("video,text,texts\na.mp4,one,x\na.mp4,two,y\nb.mp4,three,z\n")
    rows = {row.source: row for row in sources_from(list_videos(file))}
    first, other = rows[f"{tmp_path}/a.mp4"], rows[f"{tmp_path}/b.mp4"]
    assert (first.text, dict(first.extra)) == ("one", {"texts": ["one", "two"], "manifest_texts": "x"})
    assert (other.text, dict(other.extra)) == ("three", {"texts": None, "manifest_texts": "z"})
    (tmp_path / "second.csv").write_text("video,texts\nc.mp4,w\n")
    third = sources_from(list_videos(file, tmp_path / "second.csv"))[-1]
    assert dict(third.extra) == {"texts": None, "manifest_texts": "w"}


def test_values_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    for name, value in (("whole", 2**60 + 1), ("real", 1.5)):
        pq.write_table(pa.table({"video": ["a.mp4"], "x": [value]}), tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match="do not fit together"):
        list_videos(tmp_path / "whole.parquet", tmp_path / "real.parquet")


def test_captions_in_lists_behind_one_that_is_null(tmp_path: Path) -> None:
    file = tmp_path / "lists.jsonl"
    first = {"video": "a.mp4", "start": [0], "end": [1], "text": None}
    file.write_text(json.dumps(first) + "\n" + json.dumps(first | {"start": [1], "end": [2], "text": ["x"]}) + "\n")
    assert list_videos(file)["text"].to_pylist() == [None, "x"]

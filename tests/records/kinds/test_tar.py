"""WebDataset tars: which members are samples, what describes them, and tars that are damaged, joined or odd."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tokens import write_tar
from videolavit.media.errors import MediaError, NoVideoStream, SourceUnreadable, UnknownFormat
from videolavit.records.inputs import InputSettings
from videolavit.records.kinds import KINDS, open_named_video, read_clips
from videolavit.records.kinds.tar import UnreadableMember, tar_samples
from videolavit.records.rows import Source
from videolavit.records.tars import CorruptTar

from .reading import SETTINGS, STORAGE

VIDEO = bytes(range(250)) * 12
VIDEOS = InputSettings(modality="video")


def _samples(tar: Path, inputs: InputSettings = VIDEOS) -> list[Source]:
    return tar_samples(Source(source=str(tar), url=str(tar), kind="tar"), STORAGE, inputs)


def _found(tar: Path, inputs: InputSettings = VIDEOS) -> dict[str, str | None]:
    """Captions of samples, by their names in the tar."""
    return {one.source.removeprefix(f"{tar}/"): one.text for one in _samples(tar, inputs)}


def _content(source: Source) -> bytes:
    """Bytes of a sample, which are found by its range and by its name."""
    assert source.offset is not None
    assert source.length is not None
    content = Path(source.url).read_bytes()[source.offset : source.offset + source.length]
    with open_named_video(source.source, STORAGE) as file:
        assert file.read() == content
    return content


def _reason(source: Source) -> str:
    """Type and message of the reject of a source that was planned under its tar's kind."""
    assert source.kind == "tar"
    with pytest.raises(MediaError) as caught:
        read_clips(KINDS["tar"].plan_unread(source, SETTINGS), SETTINGS.sample, STORAGE)
    return f"{type(caught.value).__name__}: {caught.value}"


def _write(file: Path, *headers: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(file, "w") as archive:
        for info, data in headers:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def _link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def test_members_lie_where_they_are_said_to(tmp_path: Path) -> None:
    members = {"a.mp4": b"video a", "a.txt": b" caption \n", "b.seg.mkv": b"video b", "c.txt": b"no video"}
    tar = write_tar(tmp_path / "SET.TAR", members)
    assert _found(tar) == {"a.mp4": "caption", "b.seg.mkv": None}
    assert [_content(one) for one in _samples(tar)] == [b"video a", b"video b"]


@pytest.mark.parametrize(
    ("members", "caption"),
    [
        ({"a.txt": "the caption", "a.words.txt": "0.1 the"}, "the caption"),
        ({"a.words.txt": "0.1 the", "a.TXT": "the caption"}, "the caption"),
        ({"a.caption.txt": "the caption"}, "the caption"),
        ({"a.json": '{"caption": "the caption"}', "a.mp4.json": '{"caption": "h264"}'}, "the caption"),
        ({"a.txt": " \n", "a.json": '{"caption": "the caption"}'}, "the caption"),
        ({"a.json": '{"text": "", "caption": "the caption"}'}, "the caption"),
        ({"a.txt": "\ufeffthe caption"}, "the caption"),
        ({"a.json": '\ufeff{"text": "the caption"}'}, "the caption"),
        ({"._a.txt": "finder", "a.json": "[" * 100_000}, None),
        ({"b.txt": "of another"}, None),
    ],
)
def test_captions(tmp_path: Path, members: dict[str, str], caption: str | None) -> None:
    texts = {name: text.encode() for name, text in members.items()}
    for ordered in ({**texts, "a.mp4": VIDEO}, {"a.mp4": VIDEO, **texts}):
        assert _found(write_tar(tmp_path / "t.tar", ordered)) == {"a.mp4": caption}


def test_a_huge_neighbour_costs_its_sample_the_caption_only(tmp_path: Path) -> None:
    """Six gigabytes that take no room on the disk, and would take as much memory."""
    file = tmp_path / "t.tar"
    with file.open("wb") as out:
        for name, size in (("a.mp4", 3000), ("a.txt", 6 << 30), ("b.mp4", 3000), ("b.txt", 3000)):
            info = tarfile.TarInfo(name)
            info.size = size
            out.write(info.tobuf())
            end = out.tell() + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            out.write(b"x" * min(size, 3000))
            out.seek(end)
        out.truncate(out.tell() + 2 * tarfile.BLOCKSIZE)
    assert _found(file) == {"a.mp4": None, "b.mp4": "x" * 3000}


def test_several_samples_of_a_key(tmp_path: Path) -> None:
    texts = {"a.front.txt": b"front", "a.back.json": b'{"text": "back"}'}
    tar = write_tar(tmp_path / "t.tar", {**{f"a.{view}.mp4": VIDEO for view in ("front", "back", "side")}, **texts})
    assert _found(tar) == {"a.front.mp4": "front", "a.back.mp4": "back", "a.side.mp4": None}
    assert [one.extra["tar_json"] for one in _samples(tar)] == [None, '{"text": "back"}', None]


def test_hidden_members_are_no_samples(tmp_path: Path) -> None:
    names = ("._a.mp4", "./a.mp4", ".trash/b.mp4", "__MACOSX/._a.mp4", "./.c.mp4")
    assert list(_found(write_tar(tmp_path / "t.tar", dict.fromkeys(names, VIDEO)))) == ["./a.mp4"]


def test_suffixes_count_as_in_folders(tmp_path: Path) -> None:
    names = [f"{index}.{suffix}" for index, suffix in enumerate(("mts", "M2TS", "asf", "mxf", "h264", "qt", "mp4"))]
    odd = {"7": VIDEO, "8.vid": VIDEO, "9.jpg": VIDEO}  # tried, and rejected if they are no videos
    beside = {"6.npy": b"x", "6.jpg": b"x", "10.srt": b"x", "10.csv": b"x"}
    tar = write_tar(tmp_path / "t.tar", {**dict.fromkeys(names, VIDEO), **odd, **beside})
    assert list(_found(tar)) == [*names, *odd]


def test_links_are_followed(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x/a.mp4")
    links = (
        _link("b.mp4", "x/a.mp4"),
        _link("c.mp4", "b.mp4"),
        _link("x/d.mp4", "a.mp4", tarfile.SYMTYPE),
        _link("e.mp4", "/etc/passwd", tarfile.SYMTYPE),
    )
    *samples, outside = _samples(_write(tmp_path / "t.tar", (info, VIDEO), *links))
    assert [one.source.rsplit("/", 1)[1] for one in samples] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert {_content(one) for one in samples} == {VIDEO}
    assert _reason(outside) == f"{UnreadableMember.__name__}: a link to /etc/passwd, which is no member before it"


def _cut_inside_of_a_member(file: Path) -> None:
    os.truncate(file, 512 + 3072 + 512 + 1000)


def _cut_inside_of_a_header(file: Path) -> None:
    os.truncate(file, 512 + 3072 + 100)


def _overwritten_header(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(512 + 3072)
        opened.write(b"?" * 512)


def _garbage_behind(file: Path) -> None:
    os.truncate(file, 512 + 3072)
    with file.open("ab") as opened:
        opened.write(bytes(1024) + b"garbage" * 100)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_inside_of_a_member, "cut inside of its member b.mp4"),
        (_cut_inside_of_a_header, "cut inside of a header at byte 3584"),
        (_overwritten_header, "no header at byte 3584"),
        (_garbage_behind, "no header at byte 4608"),
    ],
)
def test_a_damaged_tar_gives_its_whole_members_and_a_reject(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    tar = write_tar(tmp_path / "t.tar", {"a.mp4": VIDEO, "b.mp4": VIDEO})
    damage(tar)
    whole, rest = _samples(tar)
    assert _content(whole) == VIDEO
    assert rest.source == str(tar)
    assert _reason(rest) == f"{CorruptTar.__name__}: {message}"


def test_joined_tars_are_read_on(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{index}.tar", {"a.mp4": VIDEO, "a.txt": b"%d" % index}) for index in range(3)]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert _found(joined) == {"a.mp4": "0", "a.mp4#2": "1", "a.mp4#3": "2"}
    assert [_content(one) for one in _samples(joined)] == [VIDEO] * 3


def test_members_of_one_name_are_samples_each(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.mp4")
    tar = _write(tmp_path / "t.tar", (info, VIDEO), (tarfile.TarInfo("a.mp4"), b"later"))
    assert [(one.source, _content(one)) for one in _samples(tar)] == [
        (f"{tar}/a.mp4", VIDEO),
        (f"{tar}/a.mp4#2", b"later"),
    ]


def test_a_tar_without_samples_or_that_is_none(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", {"a.txt": b"x"})
    whole = Source(source=str(tar), url=str(tar), kind="tar")
    assert _samples(tar) == []
    assert _reason(whole).startswith(NoVideoStream.__name__)
    write_tar(tar, {"a.mp4": VIDEO})  # could not be listed when it was planned; now it can
    assert _reason(whole).startswith(SourceUnreadable.__name__)
    for content in (b"", b"\x1f\x8b" + bytes(600), b"x" * 100):
        tar.write_bytes(content)
        with pytest.raises(UnknownFormat, match="not a readable tar"):
            _samples(tar)
    tar.write_bytes(bytes(10240))
    assert _samples(tar) == []

"""Clocks of broadcasts: where they start, and what follows a jump, equals the reference command bit for bit."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path

import pytest

from tests.media.test_bad_input import X264, assert_rejected
from tests.media.videos import make, moving, outline, reference
from videolavit.media import errors, packets, probe

SOUND = ("-f", "lavfi", "-i", "sine=duration=3", "-c:a", "mp2")
MPEG2 = ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "3")
OTHER = ("-f", "lavfi", "-i", "testsrc=size=160x120:rate=30:duration=3")
WRAP = 2**33 / 90_000
"""Seconds after which the clock of a transport or programme stream starts again."""


def _at(seconds: float) -> tuple[str, ...]:
    return ("-output_ts_offset", f"{seconds:.3f}")


PARTS: dict[str, tuple[str, ...]] = {
    "first.ts": (*moving(), *X264, "-bf", "2"),
    "second.ts": (*OTHER, *X264, "-bf", "2"),
    "second-later.ts": (*OTHER, *X264, "-bf", "2", *_at(600)),
    "second-soon.ts": (*OTHER, *X264, "-bf", "2", *_at(9)),
    "first-mpeg2.ts": (*moving(), *MPEG2),
    "second-mpeg2.ts": (*OTHER, *MPEG2, *_at(77)),
    "first-hevc.ts": (*moving(), "-c:v", "libx265", "-x265-params", "log-level=none"),
    "second-hevc.ts": (*OTHER, "-c:v", "libx265", "-x265-params", "log-level=none", *_at(50)),
    "sound-first.ts": (*moving(), *SOUND, *X264),
    "sound-second.ts": (*OTHER, *SOUND, *X264, *_at(77)),
    "first.mpg": (*moving(), *SOUND, *MPEG2, "-f", "vob"),
    "second.mpg": (*OTHER, *SOUND, *MPEG2, "-f", "vob"),
    "wraps.ts": (*moving(), *SOUND, *X264, *_at(WRAP - 3)),
    "wraps-at-once.ts": (*moving(), *SOUND, *X264, *_at(WRAP - 1.45)),
    "late-sound.ts": (*moving(), "-itsoffset", "1.3", *SOUND, *X264),
    "late-video.ts": ("-itsoffset", "1.3", *moving(), *SOUND, *X264),
    "programmes.ts": (
        *(*moving(), *OTHER, *SOUND, "-map", "0", "-map", "1", "-map", "2", *X264),
        *("-program", "program_num=1:st=0", "-program", "program_num=2:st=1:st=2"),
    ),
    "sound.ogv": (*moving(), "-f", "lavfi", "-i", "sine=duration=3", "-c:v", "libtheora", "-q:v", "6"),
    "raw.m4v": (*moving(), "-c:v", "mpeg4", "-q:v", "3"),
}
WHOLE = tuple(name for name in PARTS if not name.startswith("second"))

JOINED = {
    "restart.ts": ("first.ts", "second.ts"),
    "forward.ts": ("first.ts", "second-later.ts"),
    "gap.ts": ("first.ts", "second-soon.ts"),
    "back.ts": ("second-later.ts", "first.ts"),
    "often.ts": ("first.ts", "second-later.ts", "second.ts", "second-later.ts"),
    "mpeg2.ts": ("first-mpeg2.ts", "second-mpeg2.ts"),
    "hevc.ts": ("second-hevc.ts", "first-hevc.ts"),
    "sound.ts": ("sound-first.ts", "sound-second.ts"),
    "restart.mpg": ("first.mpg", "second.mpg"),
}

Videos = Callable[[str], Path]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    """Makes a file of PARTS or JOINED on first use."""
    folder = tmp_path_factory.mktemp("clocks")

    def made(name: str) -> Path:
        path = folder / name
        if name in PARTS and not path.exists():
            return make(path, PARTS[name])
        if not path.exists():
            data = b"".join(made(part).read_bytes() for part in JOINED[name])
            path.write_bytes(counted(data) if name.endswith(".ts") else data)
        return path

    return made


def counted(stream: bytes) -> bytes:
    """The transport stream with continuity counters that go on over its joins, as a splicer writes them."""
    data, counters = bytearray(stream), dict[int, int]()
    for at in range(0, len(data), 188):
        program_id = int.from_bytes(data[at + 1 : at + 3]) & 0x1FFF
        if data[at + 3] & 0x10:
            counters[program_id] = (counters.get(program_id, -1) + 1) % 16
        data[at + 3] = data[at + 3] & 0xF0 | counters.get(program_id, 0)
    return bytes(data)


@pytest.mark.parametrize("name", WHOLE)
def test_starts_where_the_command_starts(video: Videos, name: str) -> None:
    path = video(name)
    expected = reference(path)
    assert len(expected.types) >= 16
    assert outline(path) == expected
    assert probe(path).seconds == pytest.approx(len(expected.types) / 6, abs=0.4)


@pytest.mark.parametrize("name", JOINED)
def test_goes_on_behind_a_jump(video: Videos, name: str) -> None:
    """Nothing is lost, no still picture fills a gap that is none, and the length is not that of the clock."""
    path = video(name)
    expected = reference(path)
    assert len(expected.types) >= 18 * len(JOINED[name]) - 2
    assert outline(path) == expected
    assert probe(path).seconds == pytest.approx(len(expected.types) / 6, abs=0.4)


@pytest.mark.parametrize("name", ["restart.ts", "forward.ts", "back.ts", "mpeg2.ts", "sound.ts", "wraps.ts"])
def test_a_range_is_counted_on_the_repaired_clock(video: Videos, name: str) -> None:
    path = video(name)
    ranges = ((0.5, 2.0), (2.5, 4.0), (4.0, 5.5)) if name in JOINED else ((0.5, 1.5), (1.5, 2.5))
    for start, end in ranges:
        expected = reference(path, after=("-ss", str(start), "-t", f"{end - start:g}"))
        assert len(expected.types) >= 6
        assert outline(path, start, end) == expected, (start, end)


def test_a_range_behind_more_bytes_than_are_held(video: Videos, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets that cannot be held are decoded instead, with the same result."""
    expected = outline(video("forward.ts"), 4.0, 5.5)
    monkeypatch.setattr(packets, "HELD_BYTES", 1)
    assert outline(video("forward.ts"), 4.0, 5.5) == expected


def test_a_plain_join_marks_a_packet_that_is_whole(video: Videos, tmp_path: Path) -> None:
    """Counters that do not go on look like a lost packet; the decoder has nothing to guess."""
    path = tmp_path / "joined.ts"
    path.write_bytes(video("second.ts").read_bytes() + video("first.ts").read_bytes())
    expected = reference(path)
    assert len(expected.types) >= 34
    assert outline(path) == expected


def test_a_recording_begins_anywhere(video: Videos, tmp_path: Path) -> None:
    data = make(tmp_path / "whole.ts", (*moving(), *X264, "-g", "15", "-bf", "2")).read_bytes()
    path = tmp_path / "begun.ts"
    path.write_bytes(data[len(data) // 188 // 3 * 188 :])
    expected = reference(path)
    assert 6 <= len(expected.types) <= 14
    assert outline(path) == expected


@pytest.mark.parametrize("name", ["first.ts", "first-mpeg2.ts", "first.mpg"])
def test_what_the_decoder_must_guess_is_a_reject(video: Videos, tmp_path: Path, name: str) -> None:
    """The command goes on with smeared pictures, whose motion is not that of the video."""
    data = video(name).read_bytes()
    middle = len(data) // 188 // 2 * 188
    path = tmp_path / f"lost-{name}"
    path.write_bytes(reduce(lambda kept, at: kept[:at] + kept[at + 188 :], (middle, middle - 9400), data))
    assert_rejected(path, errors.CorruptVideo, header=False)

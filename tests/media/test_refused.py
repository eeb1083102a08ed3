"""Encrypted videos, photos, and frames that the encoder does not take: each its own typed error."""

import random
from pathlib import Path

import pytest
from PIL import Image

from tests.media.test_bad_input import X264, assert_rejected
from tests.media.videos import make, moving
from videolavit.media import DecomposeSettings, errors, iter_frames, probe


def test_wider_than_the_encoder_takes(tmp_path: Path) -> None:
    path = make(tmp_path / "wide.mkv", (*moving("8192x64", rate="6", seconds=1), "-c:v", "ffv1"))
    assert_rejected(path, errors.FrameTooLarge, "the limit is 8191", DecomposeSettings(max_width=10_000))


def _heif(path: Path, num_pictures: int) -> Path:
    pictures = [Image.effect_mandelbrot((96, 64), (-2 + i / 10, -1.5, 1, 1.5), 50) for i in range(num_pictures)]
    pictures[0].save(path, save_all=num_pictures > 1, append_images=pictures[1:], duration=100)
    return path


def test_photo(tmp_path: Path) -> None:
    """A HEIF photo is a container that libavformat reads as a video of one frame."""
    assert_rejected(_heif(tmp_path / "photo.avif", 1), errors.StillPicture)
    renamed = tmp_path / "photo.mp4"
    renamed.write_bytes((tmp_path / "photo.avif").read_bytes())
    assert_rejected(renamed, errors.StillPicture)


def test_a_sequence_of_pictures_is_a_video(tmp_path: Path) -> None:
    path = _heif(tmp_path / "moving.avif", 12)
    frames = [frame.image for frame in iter_frames(path)]
    assert len(frames) == round(12 / 10 * 6)
    assert probe(path).seconds == pytest.approx(1.2)


KEY = ("-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8")


FRAGMENTED = ("-movflags", "frag_keyframe+empty_moov")


@pytest.mark.parametrize("layout", [(), FRAGMENTED], ids=["whole", "fragmented"])
@pytest.mark.parametrize(("codec", "header"), [(X264, False), (("-c:v", "mpeg4"), True)], ids=["h264", "mpeg4"])
def test_encrypted_mp4(tmp_path: Path, codec: tuple[str, ...], header: bool, layout: tuple[str, ...]) -> None:
    """H.264 keeps its header outside the encrypted packets; of MPEG-4, whose header is inside, only noise is left."""
    encrypted = (*moving(seconds=1), *codec, "-encryption_scheme", "cenc-aes-ctr", *KEY, *layout)
    assert_rejected(make(tmp_path / "cenc.mp4", encrypted), errors.EncryptedVideo, header=header)


@pytest.mark.parametrize(("suffix", "prefix", "video"), [("ts", 0, 0x100), ("m2ts", 4, 0x1011)])
def test_scrambled_transport_stream(tmp_path: Path, suffix: str, prefix: int, video: int) -> None:
    path = make(tmp_path / f"clear.{suffix}", (*moving(seconds=1), *X264))
    data = bytearray(path.read_bytes())
    noise = random.Random(0)
    for at in range(prefix, len(data), 188 + prefix):
        if (int.from_bytes(data[at + 1 : at + 3]) & 0x1FFF) == video:
            payload = at + 4 + (data[at + 4] + 1 if data[at + 3] & 0x20 else 0)
            data[at + 3] |= 0x80
            data[payload : at + 188] = noise.randbytes(at + 188 - payload)
    path.write_bytes(data)
    assert_rejected(path, errors.EncryptedVideo)


def test_encrypted_matroska(tmp_path: Path) -> None:
    """The track's header declares it; the picture data need not be touched."""
    path = make(tmp_path / "clear.webm", (*moving(seconds=1), "-c:v", "libvpx", "-deadline", "realtime"))
    encryption = _element("50 35", _element("47 e1", b"\x05") + _element("47 e2", bytes(range(16))))
    encodings = _element("6d 80", _element("62 40", _element("50 33", b"\x01") + encryption))
    path.write_bytes(_with_in_track(path.read_bytes(), encodings))
    assert_rejected(path, errors.EncryptedVideo)


def _element(name: str, content: bytes) -> bytes:
    """A Matroska element of fewer than 127 bytes."""
    return bytes.fromhex(name) + bytes([0x80 | len(content)]) + content


def _with_in_track(matroska: bytes, element: bytes) -> bytes:
    """The file with an element at the end of its only track, in the place of its tags."""
    data = bytearray(matroska)
    tracks = matroska.rindex(bytes.fromhex("16 54 ae 6b"))
    end = tracks + 5 + (data[tracks + 4] & 0x7F)
    assert data[end : end + 4] == bytes.fromhex("12 54 c3 67"), "tags follow the track"
    tags_end = end + 5 + (data[end + 4] & 0x7F)
    data[tracks + 4] += len(element)
    data[tracks + 6 : tracks + 14] = (int.from_bytes(data[tracks + 6 : tracks + 14]) + len(element)).to_bytes(8)
    rest = tags_end - end - len(element)
    data[end:tags_end] = element + _element("ec", bytes(rest - 2))
    return bytes(data)

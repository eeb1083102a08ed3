"""Image files as pictures: every mode to RGB, every fault to its type."""

import io
import struct
import sys
import zlib

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from tests.tokens import picture
from videolavit.media.errors import MediaError
from videolavit.records.pictures import MAX_PIXELS, CorruptImage, HeicUnsupported, ImageTooLarge, decode_image
from videolavit.records.samples import decode_picture


def _file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _colour(data: bytes) -> list[int]:
    return decode_image(data, 8)[4, 4].tolist()


def test_modes() -> None:
    clear_red = Image.new("RGBA", (9, 9), (255, 0, 0, 0))
    assert _colour(_file(clear_red)) == [255, 255, 255]
    assert _colour(_file(Image.new("RGBA", (9, 9), (255, 0, 0, 128)))) == [255, 127, 127]
    assert _colour(_file(Image.new("LA", (9, 9), (0, 255)))) == [0, 0, 0]
    assert _colour(_file(clear_red.convert("P"), transparency=0)) == [255, 255, 255]
    assert _colour(_file(Image.new("P", (9, 9), 0))) == [0, 0, 0]
    assert _colour(_file(Image.new("1", (9, 9), 1))) == [255, 255, 255]
    assert _colour(_file(Image.new("CMYK", (9, 9), (0, 0, 0, 255)), "TIFF")) == [0, 0, 0]
    deep = Image.fromarray(np.full((9, 9), 128 * 257, np.uint16))
    assert _colour(_file(deep)) == [128, 128, 128]
    assert _colour(_file(Image.fromarray(np.full((9, 9), 0.5, np.float32)), "TIFF")) == [128, 128, 128]
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("blue", "red")]
    assert _colour(_file(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [0, 0, 255]


def test_orientation_is_applied() -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 255, 255), (0, 0, 20, 20))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter: left becomes top
    pixels = decode_image(_file(image, "JPEG", exif=exif), 8)
    assert pixels[1].mean() > 200
    assert pixels[6].mean() < 50


def test_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phone's photo, with the library that reads it and without."""
    photo = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(photo)
    assert _colour(photo.getvalue()) == pytest.approx([200, 30, 30], abs=4)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(HeicUnsupported, match=r"pip install videolavit\[heic\]"):
        decode_image(photo.getvalue())
    assert _colour(_file(Image.new("RGB", (64, 48), (200, 30, 30)), "AVIF")) == pytest.approx([200, 30, 30], abs=4)


def _declaring(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "SourceEmpty"),
        (b"no image", "NotAnImage"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "NotAnImage"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "NotAnImage"),
        (picture(0, (300, 300))[:3000], "CorruptImage"),
        (picture(0, (300, 300), "PNG")[:-3000], "CorruptImage"),
        (picture(0, (90, 90), "WEBP")[:-60], "CorruptImage"),
        (_declaring(9, 9), "CorruptImage"),
        (_declaring(MAX_PIXELS // 100, 101), "ImageTooLarge"),
        (_declaring(65000, 65000), "ImageTooLarge"),
    ],
)
def test_faults_have_their_types(data: bytes, reason: str) -> None:
    with pytest.raises(MediaError) as caught:
        decode_image(data, 8)
    assert type(caught.value).__name__ == reason


def test_keyframes_of_shards_are_jpeg_or_png(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other formats of Pillow start programs, as EPS does, and a small file may declare a huge picture."""
    red = Image.new("RGB", (8, 6), (255, 0, 0))
    assert decode_picture(_file(red)).shape == (6, 8, 3)
    assert decode_picture(_file(red, "JPEG")).shape == (6, 8, 3)
    for kind in ("EPS", "GIF", "BMP", "TIFF"):
        with pytest.raises(CorruptImage, match="a keyframe cannot be decoded"):
            decode_picture(_file(red, kind))
    with pytest.raises(CorruptImage):
        decode_picture(_file(red, "JPEG")[:200])
    monkeypatch.setattr("videolavit.records.samples.MAX_PIXELS", 40)
    with pytest.raises(ImageTooLarge, match="declares more than 40 pixels"):
        decode_picture(_file(red))

"""Foreign image files as RGB pictures. To be called in a child process: decoders of images crash and bloat too."""

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from videolavit.media import MediaError
from videolavit.media.errors import SourceEmpty
from videolavit.media.resize import resize_picture

MAX_PIXELS = 8192 * 8192
"""Largest size of a picture, in pixels: that of a video's frame. A decoded picture of this size takes 200 MB."""

MAX_FILE_BYTES = 512 << 20
"""Largest size of a picture's file, in bytes."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
"""Image formats that are read. Other formats of Pillow run programs (EPS) or are hardly images."""

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1")
"""Major brands of HEIC photos, which Pillow does not read itself."""


class NotAnImage(MediaError):
    """The bytes are no image in a format that is read."""


class HeicUnsupported(MediaError):
    """The image is a HEIC photo, and the library that reads these is not installed."""


class CorruptImage(MediaError):
    """The image is damaged or cut short."""


class ImageTooLarge(MediaError):
    """The file or the declared size of the image is above the limit; nothing was decoded."""


def decode_image(data: bytes, size: int | None = None) -> NDArray[np.uint8]:
    """Decodes an image file: the first frame, turned as its EXIF says, transparency over white.

    Args:
        size: Side of the result; the aspect is not kept, as the tokenizer was trained. None keeps the image's size.

    Returns:
        uint8 [height, width, 3].

    Raises:
        MediaError: the typed reason why there is none.
    """
    if not data:
        raise SourceEmpty("zero bytes")
    with _opened(data) as image:
        try:
            # A JPEG cut short would otherwise come with a grey rest.
            image.load()
            picture = np.asarray(_as_rgb(ImageOps.exif_transpose(image)))
            return picture if size is None else resize_picture(picture, size, size)
        except (MediaError, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders raise nearly every type
            raise CorruptImage(f"cannot be decoded: {error or type(error).__name__}") from None


def _opened(data: bytes) -> Image.Image:
    Image.init()
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS and b"avif" not in data[16:64]:
        _register_heif()
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageTooLarge(f"declares more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise NotAnImage(f"no image in a known format ({', '.join(FORMATS)})") from None
    except MemoryError:
        raise
    except Exception as error:
        raise CorruptImage(f"cannot be opened: {error or type(error).__name__}") from None
    return image


def _register_heif() -> None:
    """Lets Pillow read HEIC, for the rest of the process."""
    try:
        import pillow_heif
    except ImportError:
        raise HeicUnsupported("a HEIC photo; `pip install videolavit[heic]` reads these") from None
    pillow_heif.register_heif_opener()


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    """Grey of more than 8 bits: integers count to 65535; floats to 1, or to 255 if any is above 1."""
    bands = np.array_split(values, min(len(values), 1 + (values.nbytes >> 24)))  # each takes little memory
    highest = 65535.0
    if mode == "F":
        highest = 1.0 if max(_finite(band).max() for band in bands) <= 1 else 255.0
    return np.concatenate([np.rint(np.clip(_finite(one) / highest, 0, 1) * 255).astype(np.uint8) for one in bands])


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64))

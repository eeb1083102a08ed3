"""What is made as files: pictures and videos that say where they come from."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from videolavit.media import write_mp4
from videolavit.models.folder import PARTS, ModelFolder

from .prompts import Picture


def model_hash(model: ModelFolder, units: Iterable[str]) -> str:
    """One SHA-256 over the parts of a model that belong to some units, as far as it has them."""
    digest = hashlib.sha256()
    for part in filter(model.has, PARTS):
        if any(part == unit or part.startswith(f"{unit}/") for unit in units) and not part.endswith("scheduler"):
            digest.update(f"{part} {model.digest(part)}".encode())
    return digest.hexdigest()


def origin(prompt: str, seed: int, model: str, **further: Any) -> dict[str, str]:
    """What a file says about how it was made, in fields that players show: `title`, and JSON in `comment`."""
    comment = {"prompt": prompt, "seed": seed, "model": model, **further, "software": "videolavit"}
    return {"title": prompt, "comment": json.dumps(comment)}


def save_video(frames: Picture, path: Path, fps: int, metadata: Mapping[str, str]) -> None:
    """Writes uint8 [time, height, width, 3] as H.264 in mp4 that browsers play while they load it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(frames, path, fps, metadata=metadata)


def save_picture(picture: Picture, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes uint8 [height, width, 3] as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(picture, metadata))


def png(picture: Picture, metadata: Mapping[str, str]) -> bytes:
    """A PNG file of uint8 [height, width, 3]."""
    texts, file = PngInfo(), io.BytesIO()
    for name, value in metadata.items():
        texts.add_itxt(name, value)
    Image.fromarray(picture).save(file, "PNG", pnginfo=texts)
    return file.getvalue()


def side_by_side(left: Picture, right: Picture) -> Picture:
    """Two videos or pictures of one size, with a thin white line between."""
    line = np.full((*left.shape[:-2], 4, 3), 255, np.uint8)
    return np.concatenate([left, line, right], axis=-2)

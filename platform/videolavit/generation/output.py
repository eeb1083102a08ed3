"""Generated pictures and videos as files, with metadata on how they were generated."""

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
from videolavit.models.folder import ModelFolder
from videolavit.models.parts import PARTS

from .prompts import Picture


def model_hash(model: ModelFolder, parts: Iterable[str]) -> str:
    """SHA-256 of some parts of a model, of `runtime.MODEL_PARTS`, as far as the model has them."""
    digest = hashlib.sha256()
    for name in filter(model.has, PARTS):
        if any(name == part or name.startswith(f"{part}/") for part in parts) and not name.endswith("scheduler"):
            digest.update(f"{name} {model.digest(name)}".encode())
    return digest.hexdigest()


def provenance(prompt: str, seed: int, model: str, **more: Any) -> dict[str, str]:
    """Metadata of a generated file: `title` and `comment`, which players show; the comment is JSON."""
    comment = {"prompt": prompt, "seed": seed, "model": model, **more, "software": "videolavit"}
    return {"title": prompt, "comment": json.dumps(comment)}


def save_video(frames: Picture, path: Path, fps: int, metadata: Mapping[str, str]) -> None:
    """Writes frames uint8 [time, height, width, 3] as an H.264 mp4 file that browsers can play while they load it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(frames, path, fps, metadata=metadata)


def save_picture(picture: Picture, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a picture as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture, metadata))


def encode_png(picture: Picture, metadata: Mapping[str, str]) -> bytes:
    """Encodes a picture as PNG."""
    texts, file = PngInfo(), io.BytesIO()
    for name, value in metadata.items():
        texts.add_itxt(name, value)
    Image.fromarray(picture).save(file, "PNG", pnginfo=texts)
    return file.getvalue()


def side_by_side(left: Picture, right: Picture) -> Picture:
    """Joins two pictures or videos of the same size, with a white line of 4 pixels between them."""
    line = np.full((*left.shape[:-2], 4, 3), 255, np.uint8)
    return np.concatenate([left, line, right], axis=-2)

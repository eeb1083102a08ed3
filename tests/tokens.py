"""A model and inputs for the tests of tokenizing, small enough for two cores."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from videolavit.models.folder import ModelFolder
from videolavit.models.model_file import finish_model_folder
from videolavit.models.motion_tokenizer import MotionTokenizer
from videolavit.models.motion_tokenizer.network import MotionTokenizerConfig
from videolavit.models.part_files import save_part
from videolavit.models.visual_tokenizer import VisualTokenizer, VisualTokenizerConfig

VISUAL_CODES, MOTION_CODES = 64, 32


def write_model(folder: Path, seed: int = 0) -> Path:
    """Two untrained tokenizers, ten times faster than those of the smallest preset."""
    torch.manual_seed(seed)
    visual = VisualTokenizerConfig(
        width=16,
        vit_layers=1,
        vit_heads=1,
        vit_head_out=4,
        mlp_ratio=2.0,
        merger_layers=1,
        merger_heads=1,
        num_codes=VISUAL_CODES,
        code_dim=8,
        features_dim=None,
    )
    motion = MotionTokenizerConfig(dim=8, num_heads=1, mlp_ratio=1.0, num_codes=MOTION_CODES, code_dim=4)
    save_part(VisualTokenizer(visual), folder / "visual_tokenizer")
    save_part(MotionTokenizer(motion), folder / "motion_tokenizer")
    finish_model_folder(folder, ModelFolder("tiny").facts)
    return folder


def picture(seed: int, size: tuple[int, int] = (40, 60), kind: str = "JPEG", **options: Any) -> bytes:
    """An image file of coarse noise."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize(size[::-1]).save(sink, kind, **options)
    return sink.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path

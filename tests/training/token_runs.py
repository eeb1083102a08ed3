"""Token runs without tokenizing: rows of codes in shards as a run leaves them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from videolavit.models.folder import ModelFolder
from videolavit.records import schema
from videolavit.records.encode import read_tokenizers
from videolavit.records.shards import TOKEN_SHARDS, ShardWriter
from videolavit.records.storage import Folder, StorageSettings

Clip = tuple[Sequence[int], Sequence[int]]


def write_run(
    folder: Path, model: ModelFolder, rows: Sequence[tuple[str | None, Sequence[Clip]]], shards: int = 1
) -> Path:
    """A token run of (text, clips of visual and motion codes), dealt out to shards."""
    metadata = read_tokenizers(model.location).metadata()
    for shard in range(shards):
        with ShardWriter(
            Folder(str(folder), StorageSettings()), f"{shard}.parquet", [], TOKEN_SHARDS, metadata
        ) as writer:
            numbered = list(enumerate(rows))[shard::shards]
            values = [_row(f"{folder.name}-{number}", *row) for number, row in numbered]
            writer.add(pa.Table.from_pylist(values, schema=schema.TOKENS))
            writer.commit()
    return folder


def _row(sample_id: str, text: str | None, clips: Sequence[Clip]) -> dict[str, Any]:
    pairs = [{"visual_tokens": list(visual), "motion_tokens": list(motion)} for visual, motion in clips]
    moves = any(motion for _, motion in clips)
    return {
        "sample_id": sample_id,
        "modality": "text" if not clips else "video" if moves else "image",
        "source": "",
        "text": text,
        "start_seconds": 0.0,
        "end_seconds": 4.0,
        "clips": pairs,
        "num_tokens": sum(len(visual) + len(motion) for visual, motion in clips),
    }


def random_rows(model: ModelFolder, count: int, seed: int = 0) -> list[tuple[str | None, list[Clip]]]:
    """Texts, images and videos of different lengths in turn."""
    rng = np.random.default_rng(seed)
    of = model.vocabulary

    def codes(number: int, size: int) -> list[int]:
        return rng.integers(0, size, number).tolist()

    rows: list[tuple[str | None, list[Clip]]] = []
    for index in range(count):
        text = "".join(rng.choice(list("abcdef "), rng.integers(1, 60)))
        clips = [
            (
                codes(int(rng.integers(0, 40)), of.visual_codes),
                codes(model.motion_tokens * (index % 3 == 2), of.motion_codes),
            )
            for _ in range((0, 1, 1 + index % 2)[index % 3])
        ]
        rows.append((text if index % 7 else None, clips))
    return rows

"""Reading a run's folder as a user would, with nothing of this project."""

import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray


def shards(url: str, kind: str = "clips", **storage: Any) -> list[str]:
    fs, path = fsspec.core.url_to_fs(url, **storage)
    fs.invalidate_cache()
    try:
        return sorted(str(name) for name in fs.ls(f"{path}/{kind}", detail=False) if str(name).endswith(".parquet"))
    except FileNotFoundError:
        return []


def rows(url: str, kind: str = "clips", **storage: Any) -> Iterator[dict[str, Any]]:
    fs, _ = fsspec.core.url_to_fs(url, **storage)
    for name in shards(url, kind, **storage):
        yield from pq.read_table(io.BytesIO(fs.cat_file(name))).to_pylist()


def samples(url: str, kind: str = "clips", **storage: Any) -> dict[str, str]:
    """Sample id -> digest of the row. Fails if a sample appears twice."""
    found: dict[str, str] = {}
    for row in rows(url, kind, **storage):
        assert row["sample_id"] not in found, f"{row['source']} is in two shards"
        found[row["sample_id"]] = _digest(row)
    return found


def contents(url: str, **storage: Any) -> list[str]:
    """Digests of the rows' clips alone, which do not depend on where a source lies."""
    return [_digest(row["clips"]) for row in rows(url, **storage)]


def clip_motion(clip: dict[str, Any]) -> NDArray[np.int16]:
    """Motion grid of a stored clip, int16 [num_frames, blocks_high, blocks_wide, 2]."""
    shape = (clip["num_frames"], clip["blocks_high"], clip["blocks_wide"], 2)
    return np.asarray(clip["motion"], np.int16).reshape(shape)


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def rejects(url: str, **storage: Any) -> list[dict[str, Any]]:
    fs, path = fsspec.core.url_to_fs(url, **storage)
    return pq.read_table(io.BytesIO(fs.cat_file(f"{path}/rejects.parquet"))).to_pylist()


def run(url: str, **storage: Any) -> dict[str, Any]:
    fs, path = fsspec.core.url_to_fs(url, **storage)
    return json.loads(fs.cat_file(f"{path}/run.json"))

"""Reading a run's folder as a user would, with nothing of this project."""

import hashlib
import io
import json
from typing import Any

import fsspec
import pyarrow.parquet as pq


def shards(url: str, **storage: Any) -> list[str]:
    fs, path = fsspec.core.url_to_fs(url, **storage)
    fs.invalidate_cache()
    try:
        return sorted(str(name) for name in fs.ls(f"{path}/clips", detail=False) if str(name).endswith(".parquet"))
    except FileNotFoundError:
        return []


def samples(url: str, **storage: Any) -> dict[str, str]:
    """Sample id -> digest of the row. Fails if a sample appears twice."""
    fs, _ = fsspec.core.url_to_fs(url, **storage)
    found: dict[str, str] = {}
    for name in shards(url, **storage):
        for row in pq.read_table(io.BytesIO(fs.cat_file(name))).to_pylist():
            assert row["sample_id"] not in found, f"{row['source']} is in two shards"
            found[row["sample_id"]] = hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()
    return found


def rejects(url: str, **storage: Any) -> list[dict[str, Any]]:
    fs, path = fsspec.core.url_to_fs(url, **storage)
    return pq.read_table(io.BytesIO(fs.cat_file(f"{path}/rejects.parquet"))).to_pylist()


def run(url: str, **storage: Any) -> dict[str, Any]:
    fs, path = fsspec.core.url_to_fs(url, **storage)
    return json.loads(fs.cat_file(f"{path}/run.json"))

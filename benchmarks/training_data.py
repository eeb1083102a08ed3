"""The start of a training on a token run and its data path, on a fabricated run; see README.md beside this file.

python -m benchmarks.training_data [--output bench-output] [--shards 400]
"""

import argparse
import json
import pickle
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from videolavit.models.folder import ModelFolder
from videolavit.records import schema
from videolavit.records.encode import read_tokenizers
from videolavit.records.shards import TOKEN_SHARDS, ShardWriter
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.token_index import TokenIndex
from videolavit.training.texts import TextEncoder
from videolavit.training.token_sources import TokenSource

from .data_path import measure_rank
from .shared import TIME_LIMIT, console, fresh_folder, in_own_process, result_table

ROWS = 78
"""Samples of a shard, as a large corpus of short videos has."""

CLIPS, CAPTION = 3, 90
"""Clips of a sample, and letters of its caption."""

WORLDS = (1, 2, 4)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the measurements and writes their numbers to one JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_data", description="Start of a training.")
    parser.add_argument("--output", type=Path, default=Path("bench-output"), help="folder for the numbers")
    parser.add_argument("--shards", type=int, default=400, help="shards of the fabricated run")
    options = parser.parse_args(argv)
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with fresh_folder(output, "token-run") as folder:
        run, model = Path(folder), ModelFolder("tiny")
        fabricate(run, model, options.shards)
        result = {"start": measure_start(run, model), "data path": measure_path(run)}
    file = output / f"training-data-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"numbers: {options.output / file.name}")


def fabricate(run: Path, model: ModelFolder, shards: int) -> None:
    """Writes a token run of one shard under many names."""
    rng = np.random.default_rng(0)
    visual, motion = model.vocabulary.visual_codes, model.vocabulary.motion_codes
    rows = [
        {
            "sample_id": f"{row:032x}",
            "modality": "video",
            "source": f"{row}.mp4",
            "text": "".join(rng.choice(list("abcdefgh "), CAPTION)),
            "clips": [
                {
                    "visual_tokens": rng.integers(0, visual, int(rng.integers(20, 60))).tolist(),
                    "motion_tokens": rng.integers(0, motion, model.motion_tokens).tolist(),
                }
                for _ in range(CLIPS)
            ],
        }
        for row in range(ROWS)
    ]
    folder = Folder(str(run), StorageSettings())
    with ShardWriter(folder, "0.parquet", [], TOKEN_SHARDS, read_tokenizers(model.location).metadata()) as writer:
        writer.add(pa.Table.from_pylist(rows, schema=schema.TOKENS))
        writer.commit()
    for number in range(1, shards):
        shutil.copy(run / "tokens" / "0.parquet", run / "tokens" / f"00000-{number:06d}-00000000.parquet")


def measure_start(run: Path, model: ModelFolder) -> dict[str, Any]:
    """CPU time of a start, and bytes that a rank holds: without an index, while it is made, and after that."""
    texts, index = TextEncoder(model.text_tokenizer()), TokenIndex(Folder(str(run), StorageSettings()))
    steps: dict[str, Callable[[], Any]] = {
        "start without an index": lambda: _source(run, texts),
        "index, at the end of tokenizing": index.update,
        "first start, which counts texts": lambda: _source(run, texts),
        "further start": lambda: _source(run, texts),
    }
    table = result_table("start of a training", "", "CPU ms a shard", "CPU us a sample", "bytes a shard")
    result = {}
    shards = len(_source(run, texts).sizes)
    for name, step in steps.items():
        started = time.process_time()
        made = step()
        seconds = time.process_time() - started
        held = len(pickle.dumps(made)) if isinstance(made, TokenSource) else 0
        result[name] = {"seconds": seconds, "shards": shards, "bytes": held}
        each = f"{held / shards:.0f}" if held else ""
        table.add_row(name, f"{1e3 * seconds / shards:.3f}", f"{1e6 * seconds / shards / ROWS:.1f}", each)
    console.print(table)
    return result


def measure_path(run: Path) -> dict[int, list[dict[str, float]]]:
    """Data path of a training on 1, 2 and 4 ranks, processes that run at once.

    All have the same steps, so that a rank has less to do where there are more of them.
    """
    rates = ("tokens/s here", "tokens/s of as many cores")
    columns = ("CPU s a rank", "of it planning", "CPU us a token", "shards a rank", "MB read a rank")
    table = result_table("data path of a training", "ranks", *rates, *columns)
    result = {}
    for world in WORLDS:
        with ThreadPoolExecutor(world) as pool:
            measured = [pool.submit(_in_own_process, run, rank, world) for rank in range(world)]
        result[world] = ranks = [one.result() for one in measured]
        slowest = max(ranks, key=lambda one: one["seconds"])
        tokens, seconds = (sum(one[name] for one in ranks) for name in ("tokens", "seconds"))
        table.add_row(
            str(world),
            f"{tokens / max(one['wall'] for one in ranks):,.0f}",
            f"{tokens / slowest['seconds']:,.0f}",
            f"{slowest['seconds']:.2f}",
            f"{slowest['planning']:.2f}",
            f"{1e6 * seconds / tokens:.2f}",
            f"{slowest['shards']:.0f}",
            f"{slowest['bytes'] / 1e6:.1f}",
        )
    console.print(table)
    return result


def _in_own_process(run: Path, rank: int, world: int) -> dict[str, float]:
    return in_own_process(measure_rank, str(run), rank, world, limit=TIME_LIMIT)


def _source(run: Path, texts: TextEncoder) -> TokenSource:
    return TokenSource(str(run), StorageSettings(), texts)


if __name__ == "__main__":
    main()

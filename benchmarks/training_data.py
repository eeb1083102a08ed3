"""The start of a training on a token run and its data path, on a fabricated run; see README.md beside this file.

python -m benchmarks.training_data [--output bench-output] [--shards 400]
"""

import argparse
import json
import pickle
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from videolavit.models.folder import ModelFolder
from videolavit.records import schema
from videolavit.records.encode import read_tokenizers
from videolavit.records.shards import TOKEN_SHARDS, ShardWriter
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.token_index import INDEX_FOLDER, TokenIndex
from videolavit.training.data import Mixture
from videolavit.training.loader import RankSampler
from videolavit.training.packed import PackedStream, PackingSettings
from videolavit.training.texts import TextEncoder
from videolavit.training.token_sources import TokenDocuments, TokenSource
from videolavit.vocabulary.sequences import Assembler

from .shared import console, fresh_folder, result_table

ROWS = 78
"""Samples of a shard, as a large corpus of short videos has."""

CLIPS, CAPTION = 3, 90
"""Clips of a sample, and letters of its caption."""

WORLDS = (1, 2, 4)
STEP_ROWS, STEPS, WARM_STEPS = 64, 12, 1
LENGTH = 2048


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
        result = {"start": measure_start(run, model), "data path": measure_path(run, model)}
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


def measure_path(run: Path, model: ModelFolder) -> dict[str, Any]:
    """CPU time of packing and loading on every rank, with lengths from the index and without it.

    Ranks run one after the other: the slowest of them decides what a core for each would reach.
    """
    texts = TextEncoder(model.text_tokenizer())
    result: dict[str, dict[int, float]] = {"without": {}, "with": {}}
    index, hidden = run / INDEX_FOLDER, run / "hidden"
    for world in WORLDS:
        for name, rates in result.items():
            if name == "without":
                index.rename(hidden)
            rates[world] = min(_rate(_source(run, texts), model, rank, world) for rank in range(world))
            if name == "without":
                hidden.rename(index)
            console.print(f"{world} ranks, {name} an index: {rates[world]:,.0f} documents a second")
    return result


def _source(run: Path, texts: TextEncoder) -> TokenSource:
    return TokenSource(str(run), StorageSettings(), texts)


def _rate(source: TokenSource, model: ModelFolder, rank: int, world: int) -> float:
    """Documents that all ranks load in a CPU second of one of them."""
    assembler = Assembler(model.vocabulary, LENGTH, end=2, begin=1)
    documents = TokenDocuments([source], Mixture([source]), assembler, seed=0)
    stream, sampler = PackedStream(documents, PackingSettings(LENGTH)), RankSampler(STEP_ROWS, STEP_ROWS, rank, world)
    loaded = 0
    for step in range(WARM_STEPS + STEPS):
        if step == WARM_STEPS:
            started, loaded = time.process_time(), 0
        loaded += sum(len(item.load()) for items in sampler.take(stream) for item in items)
    return loaded * world / (time.process_time() - started)


if __name__ == "__main__":
    main()

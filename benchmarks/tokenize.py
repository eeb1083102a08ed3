"""Tokenizing through the pipeline against a bare loop over the same models; see README.md beside this file.

python -m benchmarks.tokenize [--model tiny] [--videos 256] [--rounds 2] [--output bench-output]
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from videolavit.media import motion_features
from videolavit.models.folder import ModelFolder
from videolavit.models.visual_tokenizer import normalize_images, resize_image
from videolavit.records.samples import decode_picture
from videolavit.records.shards import CLIP_SHARDS, TOKEN_SHARDS, Ledger
from videolavit.records.storage import Folder, StorageSettings

from .decompose import machine
from .shared import console, fresh_folder, local_ray, result_table, verdict

GOAL = 0.9
"""Share of the bare loop's throughput."""

SECONDS, SPEED = 16.0, 0.035
"""Length of a rendered video, in seconds, and speed of its shapes: four clips, in which shapes stay in the picture."""

Codes = dict[str, list[tuple[list[int], list[int]]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the numbers to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenize", description=__doc__)
    parser.add_argument("--model", default="tiny", help="model folder or preset")
    parser.add_argument("--videos", type=int, default=256, help="rendered videos, of four clips each")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, in turn, of which the median counts")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    options = parser.parse_args(argv)
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "model": options.model}
    result |= measure(options.model, _clips(output, options.videos), output, options.rounds)
    file = output / f"tokenize-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"numbers: {options.output / file.name}")


def measure(model: str, clips: Path, output: Path, rounds: int) -> dict[str, Any]:
    """Seconds of both sides, after their codes were found equal."""
    seconds: dict[str, list[float]] = {"loop": [], "pipeline": []}
    for _ in range(rounds):
        started = time.monotonic()
        expected = _loop(model, clips)
        seconds["loop"].append(time.monotonic() - started)
        with fresh_folder(output, "tokens") as folder:
            seconds["pipeline"].append(_pipeline(model, clips, folder))
            if _codes(folder) != expected:
                raise AssertionError("the two sides give different codes")
    number = sum(len(codes) for codes in expected.values())
    table = result_table(f"tokenizing {number} clips, {model}", "side", "seconds", "clips a second", "share")
    loop = median(seconds["loop"])
    for name, values in seconds.items():
        table.add_row(name, f"{median(values):.1f}", f"{number / median(values):.2f}", f"{loop / median(values):.2f}")
    console.print(table)
    verdict("pipeline against the loop", loop / median(seconds["pipeline"]), GOAL, at_least=True)
    return {"clips": number, "seconds": seconds}


def _clips(output: Path, videos: int) -> Path:
    """A run of clip shards of rendered videos; made once."""
    corpus, run = output / f"tokenize-videos-{videos}", output / f"tokenize-clips-{videos}"
    synth = ["--output", corpus, "--videos", videos, "--seconds", SECONDS, "--speed", SPEED]
    for job, arguments in (("synth", synth), ("decompose", ["--input", corpus, "--output", run])):
        subprocess.run(
            [sys.executable, "-m", f"jobs.{job}", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
        )
    return run


@torch.inference_mode()
def _loop(model: str, clips: Path) -> Codes:
    """One clip after the other, with as many threads as torch takes."""
    folder = ModelFolder(model)
    visual, motion = folder.load("visual_tokenizer"), folder.load("motion_tokenizer")
    size = (motion.config.grid_height, motion.config.grid_width)
    codes: Codes = {}
    for row in _rows(clips):
        codes[row["sample_id"]] = []
        for clip in row["clips"]:
            picture = resize_image(decode_picture(clip["keyframe"]), visual.config.image_size)
            moving = motion_features(_motion(clip), row["width"], row["height"], size)
            (seen,) = visual.encode(normalize_images(picture[None]))
            moved = motion.encode(torch.from_numpy(moving)[None])[0]
            codes[row["sample_id"]].append((seen.tolist(), moved.tolist()))
    return codes


def _motion(clip: dict[str, Any]) -> NDArray[np.int16]:
    """Motion grid of a stored clip, int16 [num_frames, blocks_high, blocks_wide, 2]."""
    shape = (clip["num_frames"], clip["blocks_high"], clip["blocks_wide"], 2)
    return np.asarray(clip["motion"], np.int16).reshape(shape)


def _rows(clips: Path) -> Iterator[dict[str, Any]]:
    for name in sorted(Ledger(Folder(str(clips), StorageSettings())).committed()):
        shard = pq.ParquetFile(clips / CLIP_SHARDS.folder / name)
        for group in range(shard.num_row_groups):
            yield from shard.read_row_group(group).to_pylist()


def _pipeline(model: str, clips: Path, folder: str) -> float:
    """Seconds from the plan to the last committed shard, the start of the actors included; Ray is running before."""
    from pipelines.feeding import waiting_shards
    from pipelines.planning import Planner
    from pipelines.run import list_inputs
    from pipelines.tokenize import EncoderPoolSettings, Tokenization, TokenizeRequest
    from videolavit.progress import ignore_progress
    from videolavit.records.encode import read_tokenizers
    from videolavit.records.tokenizer_info import EncodeSettings

    pool = EncoderPoolSettings(gpu_fraction=0.0)
    request = TokenizeRequest(encode=EncodeSettings(model=model), encoders=pool)
    ledger = Ledger(Folder(folder, request.storage), TOKEN_SHARDS)
    with local_ray():
        pipeline = Tokenization(request, read_tokenizers(model))
        started = time.monotonic()
        settings, workers, storage = pipeline.settings, request.workers, request.storage
        planner = Planner(ledger, pipeline.assign, settings, workers, storage, ignore_progress)
        with planner:
            planner.commit(list_inputs(pipeline, [str(clips)], storage))
        for record in pipeline.work(waiting_shards(ledger), ledger.folder):
            if record["error"]:
                raise AssertionError(record["error"])
        return time.monotonic() - started


def _codes(folder: str) -> Codes:
    codes: Codes = {}
    for name in Ledger(Folder(folder, StorageSettings()), TOKEN_SHARDS).committed():
        for row in pq.read_table(Path(folder) / TOKEN_SHARDS.folder / name).to_pylist():
            codes[row["sample_id"]] = [(clip["visual_tokens"], clip["motion_tokens"]) for clip in row["clips"]]
    return codes


if __name__ == "__main__":
    main()

"""Data path of a training on one of several ranks that run at once: index, order, packing, reading, collating."""

import resource
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from videolavit.models.folder import ModelFolder
from videolavit.models.language_model.flops import Flops
from videolavit.records.shards import TOKEN_SHARDS
from videolavit.records.storage import StorageSettings
from videolavit.training.data import Mixture
from videolavit.training.loader import Loader, RankSampler
from videolavit.training.packed import PackedCollate, PackedStream, PackingSettings
from videolavit.training.parallel import Ranks
from videolavit.training.texts import TextEncoder
from videolavit.training.token_sources import TokenDocuments, TokenSource
from videolavit.vocabulary.sequences import Assembler

STEP_ROWS, STEPS = 64, 48
"""Rows of a step, over all ranks, and steps that are measured."""

LENGTH = 2048


def measure_rank(run: str, rank: int, world: int) -> dict[str, float]:
    """CPU seconds of a rank to plan the steps and to load them, which plans too; what it read, and what it loaded."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{run}/ranks-{world}", rank=rank, world_size=world)
    ranks, model = Ranks.here("cpu"), ModelFolder("tiny")
    texts, sampler = TextEncoder(model.text_tokenizer()), RankSampler(STEP_ROWS, STEP_ROWS, rank, world)
    collate = PackedCollate(model.vocabulary, Flops.of(model.load("language_model")), LENGTH)

    stream = _stream(run, texts, model, ranks)
    started = _cpu_seconds()
    for _ in range(STEPS):
        sampler.take(stream)
    planning = _cpu_seconds() - started

    opened = _opened_shards(Path(run))
    stream = _stream(run, texts, model, ranks)  # without what the first one has read
    ranks.wait()
    started, began, before = _cpu_seconds(), time.perf_counter(), psutil.Process().io_counters().read_chars
    tokens = rows = 0
    for data in Loader(stream, collate, sampler, STEPS):
        tokens += sum(sum(batch.tokens.values()) for batch in data.batches)
        rows += sum(len(items) for items in data.items)
    seconds, read = _cpu_seconds() - started, psutil.Process().io_counters().read_chars - before
    ranks.wait()
    wall = time.perf_counter() - began
    dist.destroy_process_group()
    return {
        "planning": planning,
        "seconds": seconds,
        "wall": wall,
        "tokens": tokens,
        "rows": rows,
        "shards": len(set(opened)),
        "opened": len(opened),
        "bytes": read,
    }


def _stream(run: str, texts: TextEncoder, model: ModelFolder, ranks: Ranks) -> PackedStream:
    source = TokenSource(run, StorageSettings(), texts, ranks=ranks)
    assembler = Assembler(model.vocabulary, LENGTH, end=2, begin=1)
    return PackedStream(TokenDocuments([source], Mixture([source]), assembler, seed=0), PackingSettings(LENGTH))


def _opened_shards(run: Path) -> list[str]:
    """List that gets the path of each shard of a run that this process opens from now on."""
    opened: list[str] = []
    folder = f"{run / TOKEN_SHARDS.folder}/"

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(folder):
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    return opened


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

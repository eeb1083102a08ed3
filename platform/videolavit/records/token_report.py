"""The dataset card of a run of tokens, and what inspection says of token shards."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from .parquet import ParquetReader
from .rejects import RejectFacts
from .report import REPORT, SAMPLED_SHARDS, histogram, render_page, spread
from .shards import TOKEN_SHARDS, Ledger
from .storage import Folder, naming_location
from .usage import Facts, TokenStatistics

_USAGE_BINS = "codes by how often they occur, log10 of the count"


def write_token_report(folder: Folder, run: dict[str, Any], rejects: Sequence[RejectFacts]) -> None:
    """Writes `report.html` from a run's shards and counts. Raises StorageError where it cannot be written."""
    counts = run["counts"]
    names = sorted(Ledger(folder, TOKEN_SHARDS).committed())
    statistics, chosen = sampled_statistics(folder, names)
    facts = [(name, f"{counts[name]:,}") for name in ("planned", "samples", "rejects", "shards")]
    facts += [(name.replace("_", " "), f"{counts[name]:,}") for name in ("videos", "clips", "images", "texts")]
    page = render_page(
        title=f"Tokens in {folder.url}",
        facts=[*facts, *described(statistics, len(chosen), len(names))],
        cells=[],
        plots=[
            *(histogram(name, values) for name, values in statistics.values().items()),
            *(
                histogram(f"{name} {_USAGE_BINS}", np.log10(usage.counts[usage.counts > 0]))
                for name, usage in statistics.usage.items()
            ),
        ],
        rejects=rejects,
        details=json.dumps(run["identity"], indent=2),
    )
    with naming_location(folder.url):
        folder.replace(REPORT, page.encode())


def sampled_statistics(folder: Folder, names: Sequence[str]) -> tuple[TokenStatistics, list[str]]:
    """Statistics of a run's shards, or of some of them if they are many; and which."""
    chosen = spread(names, SAMPLED_SHARDS)
    statistics = TokenStatistics()
    for name in chosen:
        with folder.open(f"{TOKEN_SHARDS.folder}/{name}") as file:
            statistics.add(ParquetReader(file))
    return statistics, chosen


def described(statistics: TokenStatistics, read: int, shards: int) -> Facts:
    """The statistics as lines for people, which say so if they are of some shards only."""
    facts = statistics.facts()
    return facts if read == shards else [("statistics are of", f"{read:,} of {shards:,} shards"), *facts]

"""Show what is in a video, a shard of clips or tokens, or a run."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from videolavit.media import DecomposeSettings, MediaError, contact_sheet, decompose, probe
from videolavit.records.report import SHEET_CELLS, clip_cell, render_page, shard_cells, stored_cells
from videolavit.records.schema import kind_of
from videolavit.records.shards import CLIPS, TOKENS, Ledger, ShardKind, total
from videolavit.records.storage import Folder, StorageError, StorageSettings, open_source
from videolavit.records.token_report import described, sampled_statistics
from videolavit.records.usage import Facts, TokenStatistics

from .common import JobParser, fail, user_errors

Cells = list[tuple[NDArray[np.uint8], str]]
MOST_ROWS = 20
_TABLES = {
    "rejects": ["error_type", "source", "message", "attempts", "seconds"],
    "plan": ["source", "start_seconds", "end_seconds", "cost", "shard"],
}
"""What is shown of the run's other tables."""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints tables; writes a contact sheet where asked for one."""
    parser = JobParser("inspect", __doc__)
    parser.add_argument("path", type=str, help="video, shard (.parquet) or run folder; local or s3://")
    parser.add_argument("--png", type=str | None, help="write a contact sheet of keyframes with motion arrows here")
    parser.add_argument("--html", type=str | None, help="write a page with the sheet and the facts here")
    parser.add_class_arguments(StorageSettings)
    options = parser.parse(argv)
    storage = StorageSettings(s3_endpoint=options.s3_endpoint)
    with user_errors(MediaError, StorageError, pa.ArrowInvalid, OSError):
        facts, cells = _inspect(options.path, storage)
        if options.png and not cells:
            fail("there is no clip to draw")
        if options.png:
            Image.fromarray(contact_sheet(cells)).save(_new_file(options.png), "PNG")
        if options.html:
            _new_file(options.html).write_text(render_page(title=options.path, facts=facts, cells=cells))


def _inspect(path: str, storage: StorageSettings) -> tuple[Facts, Cells]:
    folder = Folder(path, storage)
    run = folder.read("run.json")
    if run is not None:
        return _run(folder, TOKENS if b'"kind": "tokens"' in run else CLIPS)
    if path.endswith(".parquet"):
        return _shard(path, storage)
    if folder.fs.isdir(folder.path):
        fail(f"{path} is no run: it has no run.json")
    return _video(path, storage)


def _video(path: str, storage: StorageSettings) -> tuple[Facts, Cells]:
    table = Table("clip", "seconds", "frames", "blocks with a vector", "motion, % of diagonal", title=path)
    frames, number, step = 0, 0, 1
    cells: Cells = []
    with open_source(path, storage) as file:
        info = probe(file)
        file.seek(0)
        for number, clip in enumerate(decompose(file, DecomposeSettings()), 1):
            share = clip.num_vectors.sum() / (clip.motion[0, ..., 0].size * max(clip.num_frames - 1, 1))
            score = f"{clip.motion_score:.3f}"
            table.add_row(str(number - 1), f"{clip.seconds:.2f}", str(clip.num_frames), f"{share:.0%}", score)
            frames += clip.num_frames
            if (number - 1) % step == 0:
                cells.append(clip_cell(clip.keyframe, clip.motion[: clip.num_frames], f"{clip.seconds:.2f} s"))
            if len(cells) == 2 * SHEET_CELLS:  # however long the video, few pictures are kept, evenly spread
                cells, step = cells[::2], 2 * step
    facts = [
        ("container", info.container),
        ("codec", info.codec),
        ("picture", f"{info.width} x {info.height}"),
        ("seconds", f"{info.seconds:.2f}" if info.seconds else "unknown"),
        ("frames a second", f"{info.frame_rate:.3f}"),
        ("frames at 6 fps", str(frames)),
        ("clips", str(number)),
    ]
    _print_facts(facts)
    Console().print(table)
    return facts, cells


def _shard(path: str, storage: StorageSettings) -> tuple[Facts, Cells]:
    with open_source(path, storage) as file:
        shard = pq.ParquetFile(file)
        kind = kind_of(shard.schema_arrow)
        if kind == "tokens":
            return _token_shard(path, shard), []
        if kind != "clips":
            columns = _TABLES.get(kind)
            return _rows(path, kind or "a foreign table", shard.read(columns=columns).to_pylist()), []
        columns = ["source", "text", "start_seconds", "end_seconds", "width", "height", "num_clips"]
        rows = shard.read(columns=columns).to_pylist()
        facts = _rows(path, "clip shard", rows)
        return facts, shard_cells(shard, SHEET_CELLS)


def _token_shard(path: str, shard: pq.ParquetFile) -> Facts:
    table = shard.read(columns=["modality", "source", "text", "start_seconds", "clips", "num_tokens"])
    clips = pc.list_value_length(table["clips"])
    facts = _rows(path, "token shard", table.set_column(4, "clips", clips).to_pylist())
    statistics = TokenStatistics()
    statistics.add(shard)
    _print_facts(statistics.facts())
    return [*facts, *statistics.facts()]


def _rows(path: str, kind: str, rows: list[dict[str, Any]]) -> Facts:
    facts = [("kind", kind), ("rows", str(len(rows)))]
    _print_facts(facts)
    if rows:
        table = Table(*rows[0], title=path)
        for row in rows[:MOST_ROWS]:
            table.add_row(*(str(value)[:60] if value is not None else "" for value in row.values()))
        if len(rows) > MOST_ROWS:
            table.caption = f"the first {MOST_ROWS} of {len(rows)} rows"
        Console().print(table)
    return facts


def _run(folder: Folder, kind: ShardKind) -> tuple[Facts, Cells]:
    ledger = Ledger(folder, kind)
    left, summaries, standing = len(ledger.pending()), ledger.summaries(), ledger.standing()
    rejects, totals = ledger.rejects(summaries, standing), total(summaries)
    names = sorted(ledger.committed())
    facts = [
        ("complete", f"no: {left} shards are left; start the job again" if left else "yes"),
        ("planned", f"{len(standing):,}"),
        ("samples", f"{totals['samples']:,}"),
        ("clips", f"{totals['clips']:,}"),
        ("rejects", f"{len(rejects):,}"),
        ("shards", f"{len(summaries):,}"),
        ("hours", f"{totals['video_seconds'] / 3600:.3f}"),
    ]
    if kind is TOKENS:
        statistics, chosen = sampled_statistics(folder, names)
        facts += described(statistics, len(chosen), len(names))
    _print_facts(facts)
    if rejects:
        table = Table("reason", "number", "for example", title="rejects")
        for reason, number in Counter(reject["error_type"] for reject in rejects).most_common():
            example = next(reject for reject in rejects if reject["error_type"] == reason)
            table.add_row(reason, str(number), f"{example['source']}: {example['message']}")
        Console().print(table)
    return facts, stored_cells(folder, names) if kind is CLIPS else []


def _print_facts(facts: Facts) -> None:
    table = Table(show_header=False, box=None)
    for name, value in facts:
        table.add_row(f"[bold]{name}[/]", value)
    Console().print(table)


def _new_file(path: str) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


if __name__ == "__main__":
    main()

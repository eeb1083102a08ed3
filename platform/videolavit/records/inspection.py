"""Contents of a video, a shard or a run, for people who look at them."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from videolavit.media import Cell, Clip, DecomposeSettings, VideoInfo
from videolavit.progress import OnProgress, Progress, ignore_progress

from .addresses import is_web
from .files import suffix_of
from .foreign import iterate_clips, read_header
from .parquet import ParquetReader
from .rejects import RejectFacts
from .report import SHEET_CELLS, clip_cell, shard_cells, stored_cells
from .schema import kind_of
from .shards import CLIP_SHARDS, RUN_FILE, TOKEN_SHARDS, Ledger
from .storage import Folder, StorageError, StorageSettings, open_source
from .table_files import parquet_rows, table_content
from .table_reader import CorruptTable
from .token_report import described, sampled_statistics
from .totals import DifferingShards, RunTotals
from .usage import Facts, TokenStatistics

MAX_ROWS = 20
"""Rows of a shard that are read to be shown."""

_COLUMNS = {
    "clips": ["source", "text", "start_seconds", "end_seconds", "width", "height", "num_clips"],
    "tokens": ["modality", "source", "text", "start_seconds", "clips", "num_tokens"],
    "rejects": ["error_type", "source", "message", "attempts", "seconds"],
    "plan": ["source", "start_seconds", "end_seconds", "cost", "shard"],
}
"""Columns that are shown, for each kind of table; every column of another table."""

_TITLES = {"clips": "clip shard", "tokens": "token shard", None: "a foreign table"}


class NotARun(StorageError):
    """The folder holds no run."""


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """One clip of an inspected video.

    Attributes:
        seconds: Time of the keyframe, in seconds from the start of the video.
        num_frames: Number of frames at 6 frames per second, the keyframe included.
        vector_share: Share of the blocks that have a motion vector, from 0 to 1.
        motion_score: Mean motion, in percent of the frame's diagonal per frame.
    """

    seconds: float
    num_frames: int
    vector_share: float
    motion_score: float


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """Contents of a video.

    Attributes:
        path: Path or URL of the video.
        info: Fields of its header.
        clips: Clips of the video, in the order of time.
        cells: Keyframes with motion arrows, evenly spread over the video.
    """

    path: str
    info: VideoInfo
    clips: tuple[ClipFacts, ...]
    cells: tuple[Cell, ...]

    @property
    def facts(self) -> Facts:
        """Names and values, as text."""
        return [
            ("container", self.info.container),
            ("codec", self.info.codec),
            ("picture", f"{self.info.width} x {self.info.height}"),
            ("seconds", f"{self.info.seconds:.2f}" if self.info.seconds else "unknown"),
            ("frames a second", f"{self.info.frame_rate:.3f}"),
            ("frames at 6 fps", str(sum(clip.num_frames for clip in self.clips))),
            ("clips", str(len(self.clips))),
        ]


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """Contents of a Parquet file: a shard of clips or tokens, another table of a run, or a foreign table.

    Attributes:
        path: Path or URL of the file.
        kind: `clips`, `tokens`, `plan` or `rejects`; None for a foreign table.
        num_rows: Number of rows.
        rows: First rows, each as column -> value, of the columns that are worth showing.
        statistics: Statistics of a token shard; None for other tables.
        cells: Keyframes with motion arrows of a clip shard, evenly spread over its rows; empty for other tables.
    """

    path: str
    kind: str | None
    num_rows: int
    rows: tuple[dict[str, Any], ...]
    statistics: TokenStatistics | None
    cells: tuple[Cell, ...]

    @property
    def facts(self) -> Facts:
        """Names and values, as text."""
        facts = [("kind", _TITLES.get(self.kind) or str(self.kind)), ("rows", str(self.num_rows))]
        return [*facts, *self.statistics.facts()] if self.statistics else facts


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Contents of a run folder.

    Attributes:
        path: Path or URL of the folder.
        kind: `clips` or `tokens`.
        num_planned: Number of samples in the plan.
        num_samples: Number of samples in the shards.
        num_clips: Number of clips in the shards.
        num_rejects: Number of rejected samples.
        num_shards: Number of committed shards.
        num_pending: Number of planned shards that are not committed; 0 for a complete run.
        num_differing: Number of shards that account for another number of samples than planned; 0 for a sound run.
        differing: Name of the first of those shards; empty for none.
        video_seconds: Length of the video in the shards, in seconds.
        rejects: Rejects by error type, the most frequent first.
        statistics: Names and values of a token run's statistics, as text; empty for a run of clips.
        cells: Keyframes with motion arrows of a run of clips, evenly spread over its shards.
    """

    path: str
    kind: str
    num_planned: int
    num_samples: int
    num_clips: int
    num_rejects: int
    num_shards: int
    num_pending: int
    num_differing: int
    differing: str
    video_seconds: float
    rejects: tuple[RejectFacts, ...]
    statistics: Facts
    cells: tuple[Cell, ...]

    @property
    def facts(self) -> Facts:
        """Names and values, as text."""
        complete = "yes"
        if self.num_pending:
            complete = f"no: {self.num_pending} shards are left; start the same command again"
        if self.num_differing:
            complete = (
                f"no: {self.num_differing} shards, such as {self.differing}, do not have the samples that were "
                "planned; delete them and start the same command again"
            )
        return [
            ("complete", complete),
            ("planned", f"{self.num_planned:,}"),
            ("samples", f"{self.num_samples:,}"),
            ("clips", f"{self.num_clips:,}"),
            ("rejects", f"{self.num_rejects:,}"),
            ("shards", f"{self.num_shards:,}"),
            ("hours", f"{self.video_seconds / 3600:.3f}"),
            *self.statistics,
        ]


def inspect(
    path: str, storage: StorageSettings | None = None, on_progress: OnProgress = ignore_progress
) -> VideoFacts | ShardFacts | RunFacts:
    """Reads the contents of a video, a shard (`.parquet`) or a run folder.

    Args:
        path: Local path or URL.
        storage: Options of remote storage.
        on_progress: Called for each clip of a video, with the stage `clips`.

    Raises:
        MediaError: the video is missing or cannot be decomposed.
        NotARun: a folder that holds no run.
        StorageError: the location cannot be used.
        pyarrow.ArrowInvalid: the file is no Parquet file.
        OSError: the location cannot be read.
    """
    storage = storage or StorageSettings()
    folder = Folder(path, storage)
    names_file = is_web(path) and suffix_of(path) != ""  # a presigned address forbids its neighbours
    run = None if names_file else folder.read(RUN_FILE)
    if run is not None:
        return _run(path, folder, b'"kind": "tokens"' in run)
    if suffix_of(path) == ".parquet":
        return _shard(path, storage)
    if folder.fs.isdir(folder.path):
        raise NotARun(f"{path} is no run: it has no run.json")
    return _video(path, storage, on_progress)


def _video(path: str, storage: StorageSettings, on_progress: OnProgress) -> VideoFacts:
    clips: list[ClipFacts] = []
    cells: list[Cell] = []
    step = 1
    info = read_header(path, storage)
    for index, clip in enumerate(iterate_clips(path, storage, DecomposeSettings())):
        clips.append(_clip(clip))
        if index % step == 0:
            cells.append(clip_cell(clip.keyframe, clip.motion[: clip.num_frames], f"{clip.seconds:.2f} s"))
        if len(cells) == 2 * SHEET_CELLS:  # however long the video, few pictures are kept, evenly spread
            cells, step = cells[::2], 2 * step
        on_progress(Progress("clips", len(clips)))
    return VideoFacts(path=path, info=info, clips=tuple(clips), cells=tuple(cells))


def _clip(clip: Clip) -> ClipFacts:
    blocks = clip.motion[0, ..., 0].size * max(clip.num_frames - 1, 1)
    return ClipFacts(
        seconds=clip.seconds,
        num_frames=clip.num_frames,
        vector_share=float(clip.num_vectors.sum() / blocks),
        motion_score=clip.motion_score,
    )


def _shard(path: str, storage: StorageSettings) -> ShardFacts:
    content = table_content(path, storage)
    kind, names = kind_of(content.columns.schema), content.columns.column_names
    if len(set(names)) < len(names):
        raise CorruptTable(f"{path} has a column twice: {', '.join(names)}")
    rows = _first_rows(path, storage, content.columns.select(_shown(kind, names)))
    if kind == "tokens":
        place = rows.schema.get_field_index("clips")
        rows = rows.set_column(place, "clips", pc.list_value_length(rows["clips"]))
    statistics: TokenStatistics | None = None
    cells: list[Cell] = []
    if kind in ("tokens", "clips"):
        with open_source(path, storage) as file:
            shard = ParquetReader(file)
            if kind == "tokens":
                statistics = TokenStatistics()
                statistics.add(shard)
            else:
                cells = shard_cells(shard, SHEET_CELLS)
    return ShardFacts(
        path=path,
        kind=kind or None,
        num_rows=content.num_rows,
        rows=tuple(rows.to_pylist()),
        statistics=statistics,
        cells=tuple(cells),
    )


def _shown(kind: str, columns: Sequence[str]) -> list[str]:
    """Columns of a table that are shown."""
    return [name for name in _COLUMNS.get(kind, columns) if name in columns]


def _first_rows(path: str, storage: StorageSettings, empty: pa.Table) -> pa.Table:
    """Reads the first rows of a table, in a child process: a few bytes of a stranger may hold any amount of data.

    Args:
        empty: Columns to read, without rows.
    """
    found: list[pa.Table] = []
    with contextlib.closing(parquet_rows(path, storage, empty.column_names)) as batches:
        for batch in batches:
            found.append(batch.rows.slice(0, MAX_ROWS))
            if sum(one.num_rows for one in found) >= MAX_ROWS:
                break
    return pa.concat_tables(found, promote_options="permissive").slice(0, MAX_ROWS) if found else empty


def _run(path: str, folder: Folder, of_tokens: bool) -> RunFacts:
    ledger = Ledger(folder, TOKEN_SHARDS if of_tokens else CLIP_SHARDS)
    names, totals, differing = sorted(ledger.committed()), RunTotals(ledger.standing()), DifferingShards(ledger)
    for _ in totals.add(differing.among(ledger.summaries())):
        pass
    statistics: Facts = []
    if of_tokens:
        sampled, chosen = sampled_statistics(folder, names)
        statistics = described(sampled, len(chosen), len(names))
    return RunFacts(
        path=path,
        kind="tokens" if of_tokens else "clips",
        num_planned=totals.standing.planned,
        num_samples=int(totals.counts["samples"]),
        num_clips=int(totals.counts["clips"]),
        num_rejects=totals.rejects.counts.total(),
        num_shards=totals.shards,
        num_pending=sum(len(shards) for _, shards in ledger.pending()),
        num_differing=differing.count,
        differing=differing.first,
        video_seconds=float(totals.counts["video_seconds"]),
        rejects=totals.rejects.facts,
        statistics=statistics,
        cells=() if of_tokens else tuple(stored_cells(folder, names)),
    )

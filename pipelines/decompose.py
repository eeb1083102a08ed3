"""Videos to clip shards.

    sources -> plan (1:N, headers only) -> shards fixed in OUT/plan -> decompose (1 shard : 1 file) -> OUT/clips

The plan is committed before any work starts, and a shard is committed in one step under a name that the plan fixed.
Whatever is killed, and however often Ray repeats a task, a shard is therefore made once, with the same rows. Ray Data's
own checkpointing is not used: it loses rows under fan-out and repeats rejected ones.
"""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from videolavit.isolation import IsolatedFunction
from videolavit.records import schema
from videolavit.records.inputs import EXTRA, VIDEO_MEMBERS, tar_members
from videolavit.records.plan import assign_shards, extra_fields, is_whole_tar, plan_source, plan_table, whole_source
from videolavit.records.samples import SampleSettings, decompose_row, extra_columns
from videolavit.records.shards import Ledger, ShardWriter
from videolavit.records.storage import Folder, StorageSettings

from .common import (
    HEADER_TIME_LIMIT,
    TELL_EVERY,
    Rejected,
    WorkerSettings,
    actor_pool,
    from_blocks,
    pending_shards,
    planned_by,
    progress_record,
    records_of,
    tried,
    tried_sample,
)

__all__ = ["WorkerSettings", "commit_plan", "decompose_shards", "pending_shards", "plan_segments"]

COUNTED = ("samples", "clips", "rejects", "video_seconds")
"""What progress records count."""

_PLANNED = pa.schema([*schema.PLAN, ("pixels", pa.int64())])


def plan_segments(
    sources: pa.Table, settings: SampleSettings, storage: StorageSettings, workers: WorkerSettings
) -> Iterator[pa.Table]:
    """Reads the sources' headers and yields tables of plan rows that have no shard yet."""
    return planned_by(_Planner, {"settings": settings, "storage": storage}, sources, workers)


def commit_plan(ledger: Ledger, planned: pa.Table, generation: int) -> bool:
    """Assigns shards to planned segments and publishes the plan as the given generation.

    The generation must be the number of plans from which the caller took what is already planned. False if another
    run has published since: then some of the segments may be planned twice, and nothing is published.
    """
    rows = assign_shards(planned.drop_columns(["shard"]).to_pylist(), generation)
    return ledger.add_plan(generation, plan_table(rows, extra_fields(planned.schema)))


def decompose_shards(
    shards: list[pa.Table], folder: Folder, settings: SampleSettings, workers: WorkerSettings
) -> Iterator[dict[str, Any]]:
    """Makes and commits shards; yields progress records, the last of a failed shard with its `error`."""
    dataset = from_blocks(shards).map_batches(
        _ShardMaker,
        fn_constructor_kwargs={
            "output": folder.url,
            "storage": folder.settings,
            "settings": settings,
            "workers": workers,
        },
        batch_size=None,
        batch_format="pyarrow",
        **actor_pool(workers, len(shards)),
    )
    yield from records_of(dataset)


class _Planner:
    """Actor: reads headers in a child process, since even a header can crash or hang a demuxer."""

    def __init__(
        self, settings: SampleSettings, storage: StorageSettings, workers: WorkerSettings, extra: list[pa.Field]
    ) -> None:
        self._settings, self._storage, self._workers = settings, storage, workers
        self._schema = pa.schema([*_PLANNED, *extra])
        self._members = IsolatedFunction(tar_members)
        self._plan = IsolatedFunction(plan_source)

    def __call__(self, sources: pa.Table) -> pa.Table:
        rows = [segment for row in sources.to_pylist() for one in self._expand(row) for segment in self._segments(one)]
        return pa.Table.from_pylist(rows, schema=self._schema)

    def _expand(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """A tar's members; any other source, and a tar without members, as it is."""
        if not is_whole_tar(row):
            return [row]
        arguments = (row["url"], self._storage, VIDEO_MEMBERS)
        try:
            members = tried(self._members, arguments, self._workers.time_limit, self._workers.attempts)
        except Exception:
            return [row]  # decomposing it will say what ails it
        return [row | member for member in members] or [row]

    def _segments(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        if is_whole_tar(row):
            return [whole_source(row, self._settings)]
        limit = min(HEADER_TIME_LIMIT, self._workers.time_limit)
        try:
            return tried(self._plan, (row, self._settings, self._storage), limit, self._workers.attempts)
        except Exception:
            return [whole_source(row, self._settings)]


class _ShardMaker:
    """Actor: makes one shard at a time; a child process does the decoding."""

    def __init__(
        self, output: str, storage: StorageSettings, settings: SampleSettings, workers: WorkerSettings
    ) -> None:
        pa.set_memory_pool(pa.system_memory_pool())  # gives back what writing a row took; others keep it
        self._folder = Folder(output, storage)
        self._storage, self._settings, self._workers = storage, settings, workers
        self._decompose = IsolatedFunction(decompose_row)

    def __call__(self, plan: pa.Table) -> Iterator[pa.Table]:
        name = plan["shard"][0].as_py()
        extra = [field.with_name(field.name.removeprefix(EXTRA)) for field in extra_fields(plan.schema)]
        rows = plan.to_pylist()
        counts: Counter[str] = Counter()
        error = None
        told = time.monotonic()
        try:
            with ShardWriter(self._folder, name, extra) as writer:
                for row in rows:
                    counts.update(self._sample(row, writer))
                    if time.monotonic() - told > TELL_EVERY:
                        yield progress_record(COUNTED, counts)
                        counts.clear()
                        told = time.monotonic()
                writer.commit()
        except Exception as failure:
            # The shard stays pending, and the driver can say why. Raising would only lose the reason.
            error = f"{name}: {failure!r}"
        yield progress_record(COUNTED, counts, error)

    def _sample(self, row: dict[str, Any], writer: ShardWriter) -> dict[str, float]:
        try:
            table = tried_sample(self._decompose, (row, self._settings, self._storage), row, self._workers, "decompose")
        except Rejected as reject:
            writer.reject(reject.row)
            return {"samples": 1, "rejects": 1}
        writer.add(table, extra_columns(row))
        return {
            "samples": 1,
            "clips": table["num_clips"][0].as_py(),
            "video_seconds": table["end_seconds"][0].as_py() - row["start_seconds"],
        }

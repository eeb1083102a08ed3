"""The planning part of a run: what is new, what is tried again, what it will cost."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from pipelines.common import SOURCES_PER_PLAN, WorkerSettings, pending_shards
from videolavit.records.inputs import EXTRA, InputError, without_repeats
from videolavit.records.plan import extra_fields
from videolavit.records.shards import Ledger
from videolavit.records.storage import StorageSettings

from .common import console, fail

_FOUND_BY_PLANNING = {
    "sample_id",
    "start_seconds",
    "end_seconds",
    "planned_seconds",
    "cost",
    "shard",
    "pixels",
    "num_clips",
}
Rows = list[dict[str, Any]]
S = TypeVar("S")


class Planner(ABC, Generic[S]):
    """Plans sources with the settings of a run. A pipeline says how a source is read and how shards are assigned.

    `generation` counts the plans that were there when it was looked up what is planned already. Publishing under that
    number fails if another run has published since, so that two runs never plan the same source twice.

    Args:
        ledger: Of the run; None is a run that does not exist yet.
        settings: Of the samples.
    """

    def __init__(self, ledger: Ledger | None, settings: S, workers: WorkerSettings, storage: StorageSettings) -> None:
        self.ledger, self.settings, self.workers, self.storage = ledger, settings, workers, storage
        self.generation = 0

    @abstractmethod
    def read(self, sources: pa.Table) -> Iterable[pa.Table]:
        """Plan rows of the sources, without shards; every source has one, be it without `sample_id`."""

    @abstractmethod
    def publish(self, planned: pa.Table) -> bool:
        """Assigns shards and publishes the plan as that of `generation`. False if there is one already."""

    @abstractmethod
    def figures(self, rows: Rows) -> dict[str, str]:
        """What `show` says of plan rows."""

    def new(self, sources: pa.Table) -> pa.Table:
        """The sources that no plan of the run has.

        Raises:
            InputError: a further column of the manifest has another type than in the run's earlier plans.
        """
        if self.ledger is None:
            return sources
        self.generation = len(self.ledger.plans())
        names = sources["source"]  # of a file also its address; a table's rows share theirs
        known = pa.array([False] * len(names))
        for plan in self.ledger.planned():
            known = pc.or_(known, pc.or_(pc.is_in(names, plan["url"]), pc.is_in(names, plan["source"])))
            for field in extra_fields(plan.schema):
                index = sources.schema.get_field_index(field.name)
                if index >= 0 and sources.schema.field(index).type != field.type:
                    kinds = f"{field.type} in this run, {sources.schema.field(index).type} in the new manifest"
                    raise InputError(f"the column `{field.name.removeprefix(EXTRA)}` is {kinds}; use another --output")
        return sources.filter(pc.invert(known))

    def commit(self, sources: pa.Table) -> None:
        """Plans new sources and publishes the plans, a part at a time."""
        for start in range(0, sources.num_rows, SOURCES_PER_PLAN):
            self._publish(self._unplanned(self.planned(sources.slice(start, SOURCES_PER_PLAN))))

    def commit_retries(self, only: str | None) -> None:
        """Plans the standing rejects again: known segments as they were, unreadable sources from their headers on."""
        assert self.ledger is not None
        self.generation = len(self.ledger.plans())
        rejects = {
            reject["sample_id"]: reject
            for reject in self.ledger.rejects(self.ledger.summaries(), self.ledger.standing())
        }
        chosen = [key for key, reject in rejects.items() if only in (None, reject["error_type"])]
        if not chosen:
            kinds = Counter(reject["error_type"] for reject in rejects.values())
            console.print(f"no rejects to retry; the run has {dict(kinds) or 'none'}")
            return
        rows = self._latest_rows(chosen)
        attempts = [rejects[sample]["attempts"] for sample in rows["sample_id"].to_pylist()]
        index = rows.schema.get_field_index("attempts")
        rows = rows.set_column(index, "attempts", pa.array(attempts, pa.int32()))
        unread = pc.is_null(rows["planned_seconds"])
        parts = [rows.filter(pc.invert(unread))]
        if pc.any(unread).as_py():
            given = [name for name in rows.column_names if name not in _FOUND_BY_PLANNING]
            parts.append(self._unplanned(self.planned(rows.filter(unread).select(given)), again=chosen))
        self._publish(pa.concat_tables(parts, promote_options="permissive"))

    def planned(self, sources: pa.Table) -> pa.Table:
        """Plan rows of the samples in the sources, without shards."""
        with console.status(f"reading the headers of {sources.num_rows} sources"):
            tables = list(self.read(sources))
        planned = {url for table in tables for url in table["url"].to_pylist()}
        lost = [url for url in sources["url"].to_pylist() if url not in planned]
        if lost:
            raise RuntimeError(f"planning lost {len(lost)} sources to failing workers, such as {lost[0]}; start again")
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise InputError(f"the further columns of the input do not fit together: {error}") from None
        return table.filter(pc.is_valid(table["sample_id"]))

    def show(self, sources: pa.Table) -> None:
        """Prints what is to be done and what it would cost."""
        rows = self.planned(sources).to_pylist() if sources.num_rows else []
        waiting = [row for shard in pending_shards(self.ledger) for row in shard.to_pylist()] if self.ledger else []
        table = Table(title="plan: nothing is written")
        columns = ["sources", "samples", *self.figures([])]
        for heading in ("", *columns):
            table.add_column(heading, justify="right" if heading else "left")
        for name, group in (("new", rows), ("planned before, not done", waiting)):
            sizes = (f"{len({row['source'] for row in group}):,}", f"{len(group):,}")
            table.add_row(name, *sizes, *self.figures(group).values())
        Console(highlight=False).print(table)
        unread = sum(row["planned_seconds"] is None for row in rows)
        if unread:
            print(f"{unread} sources have no readable header; they will most likely be rejected")

    def _unplanned(self, planned: pa.Table, again: Sequence[str] = ()) -> pa.Table:
        """Without samples that came from elsewhere too, such as a video and the clips of that video."""
        assert self.ledger is not None
        rows = without_repeats(planned, "sample_id")
        for plan in islice(self.ledger.planned(["sample_id"]), self.generation):
            before = pc.is_in(rows["sample_id"], plan["sample_id"])
            rows = rows.filter(pc.or_(pc.invert(before), pc.is_in(rows["sample_id"], pa.array(again, pa.string()))))
        return rows

    def _latest_rows(self, samples: list[str]) -> pa.Table:
        assert self.ledger is not None
        chosen = pa.array(samples)
        plans = [plan.filter(pc.is_in(plan["sample_id"], chosen)) for plan in self.ledger.planned()]
        rows = pa.concat_tables(plans, promote_options="permissive")
        latest = {sample: index for index, sample in enumerate(rows["sample_id"].to_pylist())}
        return rows.take(sorted(latest.values()))

    def _publish(self, planned: pa.Table) -> None:
        assert self.ledger is not None
        if planned.num_rows:
            if not self.publish(planned):
                fail("another run has planned into this output meanwhile; start again to join it")
            self.generation += 1

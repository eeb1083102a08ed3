"""The planning part of `jobs.decompose`: what is new, what is tried again, what it will cost."""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from pipelines.decompose import SOURCES_PER_PLAN, WorkerSettings, commit_plan, pending_shards, plan_segments
from videolavit.records.inputs import EXTRA, InputError
from videolavit.records.plan import extra_fields
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import Ledger
from videolavit.records.storage import StorageSettings

from .common import console, fail

_FOUND_BY_PLANNING = {"sample_id", "start_seconds", "end_seconds", "planned_seconds", "cost", "shard", "pixels"}


@dataclass
class Planner:
    """Plans sources with the settings of a run. A `ledger` of None is a run that does not exist yet.

    `generation` counts the plans that were there when it was looked up what is planned already. Publishing under that
    number fails if another run has published since, so that two runs never plan the same source twice.
    """

    ledger: Ledger | None
    settings: SampleSettings
    workers: WorkerSettings
    storage: StorageSettings
    generation: int = 0

    def new(self, sources: pa.Table) -> pa.Table:
        """The sources that no plan of the run has.

        Raises:
            InputError: a further column of the manifest has another type than in the run's earlier plans.
        """
        if self.ledger is None:
            return sources
        self.generation = len(self.ledger.plans())
        urls = sources["url"]
        known = pa.array([False] * len(urls))
        for plan in self.ledger.planned():
            known = pc.or_(known, pc.is_in(urls, plan["url"]))
            for field in extra_fields(plan.schema):
                index = sources.schema.get_field_index(field.name)
                if index >= 0 and sources.schema.field(index).type != field.type:
                    kinds = f"{field.type} in this run, {sources.schema.field(index).type} in the new manifest"
                    raise InputError(f"the column `{field.name.removeprefix(EXTRA)}` is {kinds}; use another --output")
        return sources.filter(pc.invert(known))

    def commit(self, sources: pa.Table) -> None:
        """Plans new sources and publishes the plans, a part at a time."""
        for start in range(0, sources.num_rows, SOURCES_PER_PLAN):
            self._publish(self.segments(sources.slice(start, SOURCES_PER_PLAN)))

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
        rows = rows.append_column("pixels", pa.array([0] * rows.num_rows, pa.int64()))
        unread = pc.is_null(rows["planned_seconds"])
        parts = [rows.filter(pc.invert(unread))]
        if pc.any(unread).as_py():
            given = [name for name in rows.column_names if name not in _FOUND_BY_PLANNING]
            parts.append(self.segments(rows.filter(unread).select(given)))
        self._publish(pa.concat_tables(parts, promote_options="permissive"))

    def segments(self, sources: pa.Table) -> pa.Table:
        """Plan rows of the sources, without shards; every source has at least one."""
        with console.status(f"reading the headers of {sources.num_rows} sources"):
            tables = list(plan_segments(sources, self.settings, self.storage, self.workers))
        planned = {url for table in tables for url in table["url"].to_pylist()}
        lost = [url for url in sources["url"].to_pylist() if url not in planned]
        if lost:
            raise RuntimeError(f"planning lost {len(lost)} sources to failing workers, such as {lost[0]}; start again")
        return pa.concat_tables(tables)

    def show(self, sources: pa.Table) -> None:
        """Prints what is to be done and what it would cost."""
        rows = self.segments(sources).to_pylist() if sources.num_rows else []
        waiting = [row for shard in pending_shards(self.ledger) for row in shard.to_pylist()] if self.ledger else []
        table = Table(title="plan: nothing is written")
        for heading in ("", "sources", "samples", "hours", "clips", "core-hours"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, group in (("new", rows), ("planned before, not done", waiting)):
            seconds = [row["planned_seconds"] or 0.0 for row in group]
            table.add_row(
                name,
                f"{len({row['source'] for row in group}):,}",
                f"{len(group):,}",
                f"{sum(seconds) / 3600:.2f}",
                f"~{sum(-(-int(length * self.settings.fps) // 24) for length in seconds):,}",
                f"~{sum(row['cost'] for row in group) / 3600:.2g}",
            )
        Console(highlight=False).print(table)
        unread = sum(row["planned_seconds"] is None for row in rows)
        if unread:
            print(f"{unread} sources have no readable header; they will most likely be rejected")

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
            if not commit_plan(self.ledger, planned, self.generation):
                fail("another run has planned into this output meanwhile; start again to join it")
            self.generation += 1

"""Planning a run: which sources are new, which samples they hold, which shards will hold those.

A plan is published in one step, under a number that counts the plans before it. Publishing fails if another run has
published since, so that two runs never plan the same source twice.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from videolavit.progress import OnProgress, Progress
from videolavit.records import schema
from videolavit.records.kinds import KINDS, PlanSettings, unread_row
from videolavit.records.listing import Listing, rebatched, without_repeats
from videolavit.records.rows import (
    extra_fields,
    keys,
    plan_rows_from,
    plan_rows_to,
    sources_from,
    sources_of_plan,
)
from videolavit.records.shards import Ledger
from videolavit.records.storage import StorageSettings

from .common import WorkerSettings
from .headers import HeaderReaders, PlanningIncomplete, joined_rows
from .planned import PlannedNames, other_captions

SOURCES_PER_PLAN = 20_000
"""Largest number of sources per plan: an interrupted planning of a large corpus repeats the headers of one plan."""


class PlanningConflict(RuntimeError):
    """Another run has planned into the folder meanwhile; starting again joins it."""


def pending_rows(ledger: Ledger) -> Iterator[pa.Table]:
    """Rows of each plan whose shards are not committed, the oldest plan first."""
    for name, shards in ledger.pending():
        plan = ledger.plan(name)
        yield plan.filter(pc.is_in(plan["shard"], pa.array(sorted(shards), pa.string())))


@dataclass
class Planner:
    """Plans sources with the settings of a run. A context manager, at whose end the actors that read headers end.

    Args:
        ledger: Ledger of the run; None for a run that does not exist yet.
        assign: Puts rows of a plan into shards; called with the number of the plan.
        generation: Number of plans that were there when it was looked up what is planned already.
        ignored_captions: Further captions of sources that an earlier input named or that are planned already.
    """

    ledger: Ledger | None
    assign: Callable[[pa.Table, int], pa.Table]
    settings: PlanSettings
    workers: WorkerSettings
    storage: StorageSettings
    on_progress: OnProgress
    generation: int = 0
    ignored_captions: int = 0
    _planned: PlannedNames = field(default_factory=PlannedNames, init=False)

    def __post_init__(self) -> None:
        self._readers = HeaderReaders(self.settings, self.storage, self.workers)

    def __enter__(self) -> "Planner":
        return self

    def __exit__(self, *exc: object) -> None:
        self._readers.close()

    def commit(self, listing: Listing) -> None:
        """Plans the sources that no plan of the run has, and publishes the plans, a part at a time."""
        for batch in rebatched(iter(listing), SOURCES_PER_PLAN):
            new = self.new(batch)
            if new.num_rows:
                rows = self._not_planned(self.read(new))
                self._publish(rows, is_new=not self._planned.has_source_of(rows))

    def commit_retries(self, only: str | None) -> None:
        """Plans standing rejects again: known segments as they were, unreadable sources from their headers on.

        Args:
            only: Type of error to retry; None for all.
        """
        assert self.ledger is not None
        self.generation = len(self.ledger.plans())  # before the rejects, so that a retry of another run is noticed
        standing, plans = self.ledger.standing(), self.ledger.plans_by_generation()
        kinds: Counter[str] = Counter()
        chosen: list[pa.Table] = []
        is_any = False
        for generation, summaries in groupby(self.ledger.summaries(), lambda one: one.generation):
            rejects = [reject for one in summaries for reject in one.standing_rejects(standing)]
            kinds.update(one.error_type for one in rejects)
            attempts = {one.sample_id: one.attempts for one in rejects if only in (None, one.error_type)}
            if attempts:
                chosen.append(self._rows_of(plans[generation], attempts))
            if sum(rows.num_rows for rows in chosen) >= SOURCES_PER_PLAN:
                self._retry(pa.concat_tables(chosen, promote_options="permissive"))
                chosen, is_any = [], True
        if chosen:
            self._retry(pa.concat_tables(chosen, promote_options="permissive"))
        elif not is_any:
            self.on_progress(Progress("plan", message=f"no rejects to retry; the run has {dict(kinds) or 'none'}"))

    def _rows_of(self, plan: str, attempts: Mapping[str, int]) -> pa.Table:
        """Rows of some samples of a plan, with the attempts that were made at them."""
        assert self.ledger is not None
        found = self.ledger.plan(plan)
        found = found.filter(pc.is_in(found["sample_id"], pa.array(list(attempts), pa.string())))
        rows = [replace(row, attempts=attempts[row.sample_id]) for row in plan_rows_from(found)]
        return plan_rows_to(rows, extra_fields(found.schema))

    def _retry(self, rows: pa.Table) -> None:
        """Publishes a plan of rows of earlier plans: of known segments as they are, of unread sources as read now."""
        assert self.ledger is not None
        is_known = pc.is_valid(rows["planned_seconds"])
        parts, unread = [rows.filter(is_known)], rows.filter(pc.invert(is_known))
        if unread.num_rows:
            self._planned.follow(self.ledger, self.generation)
            again = self.read(sources_of_plan(unread))
            counts = dict(zip(keys(unread).to_pylist(), unread["attempts"].to_pylist(), strict=True))
            named = zip(keys(again).to_pylist(), again["url"].to_pylist(), strict=True)
            before = pa.array([counts.get(key, counts.get(url, 0)) for key, url in named], pa.int32())
            again = again.set_column(again.schema.get_field_index("attempts"), schema.PLAN.field("attempts"), before)
            parts.append(self._not_planned(again, retried=rows["sample_id"].to_pylist()))
        together = pa.concat_tables(parts, promote_options="permissive")
        # a damaged tar lists rejects of its members again
        self._publish(without_repeats(together, together["sample_id"]), is_new=False)

    def new(self, sources: pa.Table) -> pa.Table:
        """The sources that no plan of the run has, each once.

        Raises:
            InputError: a further column has another type than in the run's earlier plans.
        """
        named = sources
        sources = without_repeats(named, keys(named))
        self.ignored_captions += other_captions(sources, named) if sources.num_rows < named.num_rows else 0
        if self.ledger is None:
            return sources
        self.generation = self._planned.follow(self.ledger)
        sources = self._planned.typed(sources)
        known, ignored = self._planned.sources(sources)
        self.ignored_captions += ignored
        return sources.filter(pc.invert(known))

    def read(self, sources: pa.Table) -> pa.Table:
        """Plan rows of the samples in sources, without shards. Headers, tars and clip shards are read by actors."""
        fields = extra_fields(sources.schema)
        added = {field.name: field for name in sources["kind"].unique().to_pylist() for field in KINDS[name].extra}
        fields += [field for name, field in added.items() if name not in {one.name for one in fields}]
        reads = pa.array([KINDS[name].reads_header for name in sources["kind"].to_pylist()], pa.bool_())
        known = [unread_row(source, self.settings) for source in sources_from(sources.filter(pc.invert(reads)))]
        tables = [plan_rows_to(known, fields)]
        others = sources.filter(reads)
        if others.num_rows:
            message = f"reading the headers of {others.num_rows} sources"
            self.on_progress(Progress("plan", 0, others.num_rows, message))
            done = 0
            for table in self._readers.read(others, fields):
                done += len(pc.unique(keys(table)))
                self.on_progress(Progress("plan", min(done, others.num_rows), others.num_rows))
                tables.append(table)
        rows = joined_rows(tables)
        planned = pa.concat_arrays([*_chunks(keys(rows)), *_chunks(rows["url"])])
        lost = sources.filter(pc.invert(pc.is_in(keys(sources), planned)))["source"].to_pylist()
        if lost:
            raise PlanningIncomplete(
                f"planning lost {len(lost)} sources to failing workers, such as {lost[0]} "
                f"({self._readers.failure or 'no worker said why'}); start again"
            )
        return rows.filter(pc.not_equal(rows["sample_id"], ""))

    def _not_planned(self, rows: pa.Table, retried: Sequence[str] = ()) -> pa.Table:
        """Rows without samples that another source gave already, such as a video and the clips of that video."""
        rows = without_repeats(rows, rows["sample_id"])
        before = self._planned.samples(rows["sample_id"].to_pylist())
        return rows.filter(pc.or_(pc.invert(before), pc.is_in(rows["sample_id"], pa.array(retried, pa.string()))))

    def _publish(self, rows: pa.Table, is_new: bool) -> None:
        assert self.ledger is not None
        if rows.num_rows:
            if not self.ledger.add_plan(self.generation, self.assign(rows, self.generation), is_new):
                raise PlanningConflict("another run has planned into this output meanwhile; start again to join it")
            self.generation += 1


def _chunks(values: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return values.chunks if isinstance(values, pa.ChunkedArray) else [values]

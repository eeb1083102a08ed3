"""Planning a run: which sources are new, which samples they hold, which shards will hold those.

A plan is published in one step, under a number that counts the plans before it. Publishing fails if another run has
published since, so that two runs never plan the same source twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from videolavit.progress import OnProgress, Progress
from videolavit.records import schema
from videolavit.records.confinement import OutsideAddress, check_named
from videolavit.records.files import InputError
from videolavit.records.kinds import KINDS, PlanSettings, expand_source, plan_source, unread_row
from videolavit.records.listing import Listing, rebatched, without_repeats
from videolavit.records.rows import (
    Source,
    extra_fields,
    keys,
    plan_rows_from,
    plan_rows_to,
    sources_from,
    sources_of_plan,
    sources_to,
)
from videolavit.records.shards import Ledger
from videolavit.records.source_files import isolated
from videolavit.records.storage import StorageSettings
from videolavit.records.traffic import with_traffic, without_traffic
from videolavit.sandbox.errors import ProcessDied

from .common import Failed, WorkerSettings, actor_pool, call_with_limits, from_blocks
from .planned import PlannedNames, other_captions

SOURCES_PER_PLAN = 20_000
"""Largest number of sources per plan: an interrupted planning of a large corpus repeats the headers of one plan."""

SOURCES_PER_TASK, MAX_SOURCES_PER_TASK = 16, 1024
"""Sources that an actor plans in one call, and the most where they share a row group or a video."""

HEADER_TIME_LIMIT = 60.0
"""Longest time that reading a header may take, in seconds, all attempts together."""

PLAN_BLOCK = 16 << 20
"""Bytes of planned rows that travel at once."""

_MISFIT = "misfit"
"""Column of an actor's answer that says why its rows cannot be one table."""


class PlanningConflict(RuntimeError):
    """Another run has planned into the folder meanwhile; starting again joins it."""


class PlanningIncomplete(RuntimeError):
    """Planning lost sources to failing workers; starting again continues it."""


def pending_rows(ledger: Ledger) -> Iterator[pa.Table]:
    """Rows of each plan whose shards are not committed, the oldest plan first."""
    for name, shards in ledger.pending():
        plan = ledger.plan(name)
        yield plan.filter(pc.is_in(plan["shard"], pa.array(sorted(shards), pa.string())))


@dataclass
class Planner:
    """Plans sources with the settings of a run.

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
            tables += self._read_by_actors(others, fields)
        rows = _joined(tables)
        planned = pa.concat_arrays([*_chunks(keys(rows)), *_chunks(rows["url"])])
        lost = sources.filter(pc.invert(pc.is_in(keys(sources), planned)))["source"].to_pylist()
        if lost:
            raise PlanningIncomplete(
                f"planning lost {len(lost)} sources to failing workers, such as {lost[0]}; start again"
            )
        return rows.filter(pc.not_equal(rows["sample_id"], ""))

    def _read_by_actors(self, sources: pa.Table, fields: list[pa.Field]) -> Iterator[pa.Table]:
        blocks = planning_blocks(sources)
        dataset = from_blocks(blocks, PLAN_BLOCK).map_batches(
            _HeaderReader,
            fn_constructor_kwargs={
                "settings": self.settings,
                "storage": self.storage,
                "workers": self.workers,
                "extra": fields,
            },
            batch_size=None,
            batch_format="pyarrow",
            **actor_pool(self.workers, len(blocks)),
        )
        done = 0
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            if table.column_names == [_MISFIT]:
                raise InputError(table[_MISFIT][0].as_py())
            table = without_traffic(table)
            done += len(pc.unique(keys(table)))
            self.on_progress(Progress("plan", min(done, sources.num_rows), sources.num_rows))
            yield table

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


def planning_blocks(sources: pa.Table) -> list[pa.Table]:
    """Parts of a listing, some 16 sources each; those in one row group or one video are planned by one actor."""
    kinds = sources["kind"].to_pylist()
    columns = {name: sources[name].to_pylist() for kind in set(kinds) for name in KINDS[kind].shard_by}
    groups = [tuple(columns[name][row] for name in KINDS[kind].shard_by) for row, kind in enumerate(kinds)]
    starts = [0]
    for row in range(1, len(groups)):
        size = row - starts[-1]
        is_same = bool(groups[row]) and groups[row] == groups[row - 1]
        if size >= MAX_SOURCES_PER_TASK or (size >= SOURCES_PER_TASK and not is_same):
            starts.append(row)
    return [sources.slice(start, end - start) for start, end in zip(starts, [*starts[1:], len(groups)], strict=True)]


class _HeaderReader:
    """Actor: lists containers and reads headers, in child processes."""

    def __init__(
        self, settings: PlanSettings, storage: StorageSettings, workers: WorkerSettings, extra: list[pa.Field]
    ) -> None:
        self._settings, self._storage, self._workers, self._extra = settings, storage, workers, extra
        self._expand = isolated(expand_source, storage)
        self._plan = isolated(plan_source, storage)

    def __call__(self, sources: pa.Table) -> pa.Table:
        tables = [table for source in sources_from(sources) for table in self._planned(source)]
        try:
            return with_traffic(_joined(tables))
        except InputError as error:  # an exception here would lose the reason
            return pa.table({_MISFIT: [str(error)]})

    def _planned(self, source: Source) -> Iterable[pa.Table]:
        """Plan rows of what is in a source, or else of itself, so that working on it gives the reject its reason."""
        limit, attempts = self._workers.time_limit, self._workers.attempts
        inside = [source]
        if KINDS[source.kind].is_container:
            try:
                inside = call_with_limits(
                    self._expand, source, self._settings, self._storage, time_limit=limit, attempts=attempts
                )
                self._check_answer(source, inside)
            except Failed:
                inside = []
            if not inside:
                yield plan_rows_to([unread_row(source, self._settings)], self._extra)
        for one in inside:
            try:
                rows = call_with_limits(
                    self._plan,
                    one,
                    self._settings,
                    self._storage,
                    self._extra,
                    time_limit=min(HEADER_TIME_LIMIT, limit),
                    attempts=attempts,
                )
                self._check_answer(one, rows)
            except Failed:
                rows = plan_rows_to([unread_row(one, self._settings)], self._extra)
            yield rows

    def _check_answer(self, source: Source, answer: pa.Table | Iterable[Source]) -> None:
        """Keeps a child to files that its source may name, as the rows of a table are kept to those of the table: one
        that was broken into would have any other opened and handed to the next child.

        Raises:
            Failed: it names another file, or is no answer.
        """
        try:
            rows = answer if isinstance(answer, pa.Table) else sources_to(answer)
            named = {one for column in ("url", "text_url") for one in rows[column].to_pylist() if one is not None}
            for address in named - {source.url, source.text_url}:
                check_named(address, source.url, self._storage.allow)
            if not set(rows["kind"].to_pylist()) <= KINDS.keys():
                raise TypeError("of no kind")
        except OutsideAddress as error:
            raise Failed(error, 1) from None
        except (AttributeError, KeyError, TypeError, pa.ArrowException):
            raise Failed(ProcessDied("its process answers with something else"), 1) from None


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of several plans as one.

    Raises:
        InputError: clip shards have further columns of one name and different types.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"the further columns of the input do not fit together: {error}") from None


def _chunks(values: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return values.chunks if isinstance(values, pa.ChunkedArray) else [values]

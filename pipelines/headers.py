"""Actors that read the headers of sources: one pool for a whole planning, however many parts it has."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from videolavit.records.confinement import OutsideAddress, check_named
from videolavit.records.files import InputError
from videolavit.records.kinds import KINDS, PlanSettings, expand_source, plan_source, unread_row
from videolavit.records.rows import Source, plan_rows_to, sources_from, sources_to
from videolavit.records.source_files import isolated
from videolavit.records.storage import StorageSettings
from videolavit.records.traffic import with_traffic, without_traffic
from videolavit.sandbox.errors import ProcessDied

from .common import Failed, WorkerSettings, call_with_limits, cluster_has

SOURCES_PER_TASK, MAX_SOURCES_PER_TASK = 16, 1024
"""Sources that an actor plans in one call, and the most where they share a row group or a video."""

HEADER_TIME_LIMIT = 60.0
"""Longest time that reading a header may take, in seconds, all attempts together."""

IN_FLIGHT = 2
"""Calls that an actor has at once: with a second one it never waits for the driver."""

MAX_DEATHS = 3
"""Actors that may die over the same sources before these are given up, or at their starts in a row."""

_MISFIT = "misfit"
"""Column of an actor's answer that says why its rows cannot be one table."""


class PlanningIncomplete(RuntimeError):
    """Planning lost sources to failing workers; starting again continues it."""


class HeaderReaders:
    """Pool of actors that plan sources. It starts with the first of them, and ends with `close`.

    Args:
        settings: Settings of what is planned.
        workers: Number of actors, at most, and the limits of a call.

    Attributes:
        failure: Last error over which sources were given up, in a line; empty where none were.
    """

    def __init__(self, settings: PlanSettings, storage: StorageSettings, workers: WorkerSettings) -> None:
        self._arguments, self._workers = (settings, storage, workers), workers.workers
        self._starting: dict[Any, Any] = {}  # actors by the answers that say that they are there
        self._room: dict[Any, int] = {}  # further calls that each actor may have
        self._failed_starts = 0
        self.failure = ""

    def read(self, sources: pa.Table, extra: list[pa.Field]) -> Iterator[pa.Table]:
        """Plan rows of sources, a table for each part of them; of parts that were given up, none.

        Args:
            extra: Fields of further columns.

        Raises:
            InputError: rows of a part cannot be one table.
            PlanningIncomplete: no actor can start.
        """
        waiting = deque((block, 0) for block in planning_blocks(sources))
        running: dict[Any, tuple[Any, pa.Table, int]] = {}
        most = max(min(self._workers or int(cluster_has("CPU")), len(waiting)), 1)
        while waiting or running:
            self._grow(most)
            while waiting and (actor := self._freest()):
                block, deaths = waiting.popleft()
                self._room[actor] -= 1
                running[actor.read.remote(block, extra)] = actor, block, deaths
            (answer,), _ = ray.wait([*self._starting, *running], num_returns=1)
            if answer in self._starting:
                self._welcome(answer)
                continue
            actor, block, deaths = running.pop(answer)
            try:
                table = ray.get(answer)
            except RayTaskError as error:  # a machine in trouble; the caller sees what is missing
                self._answered(actor)
                self.failure = _line(error.cause)
            except RayError as error:
                self._end(actor)
                if deaths + 1 < MAX_DEATHS:
                    waiting.append((block, deaths + 1))
                else:
                    self.failure = _line(error)
            else:
                self._answered(actor)
                if table.column_names == [_MISFIT]:
                    raise InputError(table[_MISFIT][0].as_py())
                yield without_traffic(table)

    def close(self) -> None:
        """Ends the actors."""
        for actor in [*self._starting.values(), *self._room]:
            self._end(actor)
        self._starting = {}

    def _end(self, actor: Any) -> None:
        """Ends an actor, also one of which only an answer was lost."""
        self._room.pop(actor, None)
        ray.kill(actor)

    def _answered(self, actor: Any) -> None:
        """Gives an actor room for a call, unless it has died over another one."""
        if actor in self._room:
            self._room[actor] += 1

    def _grow(self, most: int) -> None:
        """Starts actors that are missing. Those that find no core yet let an autoscaling cluster grow: they ask for no
        memory, of which descriptions of clusters often say nothing."""
        for _ in range(most - len(self._starting) - len(self._room)):
            actor = ray.remote(num_cpus=1)(HeaderReader).remote(*self._arguments)
            self._starting[actor.is_there.remote()] = actor

    def _freest(self) -> Any:
        """Actor with the fewest calls; None if all have as many as they may."""
        actor = max(self._room, key=self._room.__getitem__, default=None)
        return actor if actor is not None and self._room[actor] else None

    def _welcome(self, answer: Any) -> None:
        """Takes an actor that has started into the pool; another is started for one that could not."""
        actor = self._starting.pop(answer)
        try:
            ray.get(answer)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= MAX_DEATHS and not self._room:
                raise PlanningIncomplete(f"no worker that reads headers can start: {_line(error)}") from error
            return
        self._room[actor], self._failed_starts = IN_FLIGHT, 0


def _line(error: Exception) -> str:
    """Type of an error, and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


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


class HeaderReader:
    """Actor: lists containers and reads headers, in child processes."""

    def __init__(self, settings: PlanSettings, storage: StorageSettings, workers: WorkerSettings) -> None:
        self._settings, self._storage, self._workers = settings, storage, workers
        self._expand = isolated(expand_source, storage)
        self._plan = isolated(plan_source, storage)

    def is_there(self) -> None:
        """Answers once the actor has started."""

    def read(self, sources: pa.Table, extra: list[pa.Field]) -> pa.Table:
        """Plan rows of sources with further columns."""
        tables = [table for source in sources_from(sources) for table in self._planned(source, extra)]
        try:
            return with_traffic(joined_rows(tables))
        except InputError as error:  # an exception here would lose the reason
            return pa.table({_MISFIT: [str(error)]})

    def _planned(self, source: Source, extra: list[pa.Field]) -> Iterable[pa.Table]:
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
                yield plan_rows_to([unread_row(source, self._settings)], extra)
        for one in inside:
            try:
                rows = call_with_limits(
                    self._plan,
                    one,
                    self._settings,
                    self._storage,
                    extra,
                    time_limit=min(HEADER_TIME_LIMIT, limit),
                    attempts=attempts,
                )
                self._check_answer(one, rows)
            except Failed:
                rows = plan_rows_to([unread_row(one, self._settings)], extra)
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


def joined_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of several plans as one.

    Raises:
        InputError: clip shards have further columns of one name and different types.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"the further columns of the input do not fit together: {error}") from None

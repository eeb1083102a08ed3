"""Video jobs in one table of SQLite or PostgreSQL; they outlive the processes that work on them.

A job in progress is leased to a holder, which is one run of a process. Holders send heartbeats (`serve.heartbeat`), and
a lease is valid while its holder's last heartbeat is. When a process dies, its heartbeat expires, and another process
claims its jobs. Only the holder of the current lease can end a job, so that a result is published once.

Attempts count the ends of processes, not late heartbeats: when a holder whose job was claimed by another sends a
heartbeat again, it was alive all the time, and the attempt is given back.

An idempotency key is a unique column beside the owner, so that two requests with the same key at the same moment make
one job, also in two processes. It lasts as long as the row.
"""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    not_,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from .clock import StoreClock, clock_table

OPEN = ("queued", "in_progress")
STATUSES = (*OPEN, "completed", "failed")

FORGET_HOLDERS_SECONDS = 86400.0
"""Age of the last heartbeat after which a holder is removed from the table, in seconds."""

MIGRATION_LOCK = 0x766C6A6F
"""Advisory lock of PostgreSQL under which tables are created."""

_METADATA = MetaData()
JOBS = Table(
    "video_jobs",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("owner", String(200), nullable=False, index=True),
    Column("kind", String(20), nullable=False),
    Column("status", String(20), nullable=False, index=True),
    Column("progress", Integer, nullable=False, default=0),
    Column("order", BigInteger, nullable=False, index=True),
    Column("created_at", Integer, nullable=False),
    Column("completed_at", Integer),
    Column("expires_at", Integer, index=True),
    Column("request", JSON, nullable=False),
    Column("error_code", String(60)),
    Column("error_message", Text),
    Column("tokens", JSON),
    Column("lease", String(64)),
    # end of a lease without a holder: a delayed retry, or a process of an earlier version
    Column("lease_until", Float),
    Column("attempts", Integer, nullable=False, default=0),
    Column("result", String(200)),
    Column("holder", String(100)),
    Column("idempotency_key", String(64)),
    Column("request_digest", String(64)),
)
KEY_INDEX = Index("video_jobs_idempotency_keys", JOBS.c.owner, JOBS.c.idempotency_key, unique=True)
ADDED_COLUMNS = ("holder", "idempotency_key", "request_digest")
"""Columns that the table of version 0.1 lacks."""

HOLDERS = Table(
    "video_job_holders",
    _METADATA,
    Column("id", String(100), primary_key=True),
    Column("alive_until", Float, nullable=False),
)
TAKEOVERS = Table(
    "video_job_takeovers",
    _METADATA,
    Column("lease", String(64), primary_key=True),
    Column("holder", String(100), nullable=False, index=True),
    Column("job", String(64), nullable=False),
)
"""Leases that expired and whose jobs were claimed by another holder, each counted as an attempt of the job."""

CLOCK = clock_table(_METADATA)


@dataclass(frozen=True)
class Job:
    """Video job, as stored.

    Args:
        kind: `generate` or `reconstruct`.
        request: Prompt, seed, options of the samplers, and name of an uploaded file; and length, size and rate of the
            video, as soon as they are known.
        lease: Token of the current lease; None for a job that is not in progress.
        attempts: Number of times the job was started, without those that ended in an orderly way.
        result: Folder of the result files; None until the job is completed.
        request_digest: Hash of the request, for a job with an idempotency key.
    """

    id: str
    owner: str
    kind: str
    status: str
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    request: dict[str, Any]
    error_code: str | None
    error_message: str | None
    tokens: dict[str, int] | None
    lease: str | None
    attempts: int
    result: str | None
    request_digest: str | None


@dataclass(frozen=True)
class Idempotency:
    """Hashes by which a repeated request finds the job of the first one.

    Args:
        key: Hash of the key that the client chose.
        digest: Hash of the content of the request.
    """

    key: str
    digest: str


_FIELDS = [JOBS.c[name] for name in Job.__dataclass_fields__]


class JobStore:
    """Table of video jobs. All methods block; call them in a thread.

    Args:
        url: Database URL, as SQLAlchemy takes it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        # the parameters of statements are private: without this, messages of errors have them
        self._engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _prepare_sqlite)
        _create_tables(self._engine)
        self._clock = StoreClock(self._engine, CLOCK)

    @property
    def engine(self) -> Engine:
        """Connections to the database."""
        return self._engine

    def add(
        self,
        owner: str,
        kind: str,
        request: dict[str, Any],
        max_open: int,
        max_open_of_owner: int,
        job_id: str,
        idempotency: Idempotency | None = None,
    ) -> Job | None:
        """Queues a job; None if all owners, or this one, have as many open jobs as allowed.

        With an idempotency key that is taken, the job that has it is returned, and nothing is queued.
        """
        row = {"id": job_id, "owner": owner, "kind": kind, "status": "queued", "progress": 0, "attempts": 0}
        row["request"] = request
        if idempotency is not None:
            row |= {"idempotency_key": idempotency.key, "request_digest": idempotency.digest}
        is_open = JOBS.c.status.in_(OPEN)
        try:
            with self._engine.connect() as connection:
                if self._engine.dialect.name == "postgresql":
                    connection.execute(text(f"LOCK TABLE {JOBS.name} IN SHARE ROW EXCLUSIVE MODE"))
                now = self._clock.now(connection)
                times = {"order": round(now * 1e9), "created_at": int(now)}
                # counted after the insertion, which waits for other writers, so that no two take the last place
                connection.execute(insert(JOBS).values(row | times))
                total = connection.scalar(select(func.count()).where(is_open)) or 0
                own = connection.scalar(select(func.count()).where(is_open, JOBS.c.owner == owner)) or 0
                if total > max_open or own > max_open_of_owner:
                    return None
                connection.commit()
        except IntegrityError:  # the key is taken, if only by a job that is deleted at this moment
            if idempotency is None:
                raise
            again = (owner, kind, request, max_open, max_open_of_owner, job_id, idempotency)
            return self.find(owner, idempotency) or self.add(*again)
        return self.get(owner, job_id)

    def find(self, owner: str, idempotency: Idempotency) -> Job | None:
        """Job of an owner with an idempotency key, whatever its request was; None if there is none."""
        with self._engine.connect() as connection:
            has_key = and_(JOBS.c.owner == owner, JOBS.c.idempotency_key == idempotency.key)
            row = connection.execute(select(*_FIELDS).where(has_key)).first()
        return None if row is None else Job(**row._mapping)

    def get(self, owner: str, job_id: str) -> Job | None:
        """Job with an id; None if there is none or it belongs to another owner."""
        with self._engine.connect() as connection:
            row = connection.execute(select(*_FIELDS).where(JOBS.c.id == job_id, JOBS.c.owner == owner)).first()
        return None if row is None else Job(**row._mapping)

    def page(self, owner: str, after: str | None, limit: int, oldest_first: bool) -> tuple[list[Job], bool] | None:
        """Jobs of an owner that follow the job `after`, and whether there are more; None if there is no such job."""
        by = JOBS.c.order.asc() if oldest_first else JOBS.c.order.desc()
        query = select(*_FIELDS).where(JOBS.c.owner == owner).order_by(by).limit(limit + 1)
        with self._engine.connect() as connection:
            if after is not None:
                place = connection.scalar(select(JOBS.c.order).where(JOBS.c.id == after, JOBS.c.owner == owner))
                if place is None:
                    return None
                query = query.where(JOBS.c.order > place if oldest_first else JOBS.c.order < place)
            rows = connection.execute(query).all()
        return [Job(**row._mapping) for row in rows[:limit]], len(rows) > limit

    def remove(self, owner: str, job_id: str) -> Job | None:
        """Deletes a job, whose holder thereby loses its lease; None if there is no such job."""
        with self._engine.begin() as connection:
            condition = and_(JOBS.c.id == job_id, JOBS.c.owner == owner)
            row = connection.execute(delete(JOBS).where(condition).returning(*_FIELDS)).first()
        return None if row is None else Job(**row._mapping)

    def beat(self, holder: str, lease_seconds: float) -> None:
        """Records that a holder is alive, and gives back the attempts counted while it seemed dead.

        Args:
            holder: Name of one run of a process.
            lease_seconds: Time after which its leases expire without another heartbeat, in seconds.
        """
        with self._engine.begin() as connection:
            alive_until = self._clock.now(connection) + lease_seconds
            known = update(HOLDERS).where(HOLDERS.c.id == holder).values(alive_until=alive_until)
            if connection.execute(known).rowcount == 0:
                connection.execute(insert(HOLDERS).values(id=holder, alive_until=alive_until))
            _give_back_attempts(connection, holder)
            self._clock.remember(connection)

    def leave(self, holder: str) -> None:
        """Removes a holder that ends in an orderly way."""
        with self._engine.begin() as connection:
            _give_back_attempts(connection, holder)
            connection.execute(delete(HOLDERS).where(HOLDERS.c.id == holder))

    def claim(self, holder: str, running: Collection[str] = ()) -> Job | None:
        """Leases the oldest job that has no valid lease; None if there is none, or if the holder's heartbeat is late.

        Args:
            holder: Name of one run of a process.
            running: Leases that the holder works on. Any other lease that it has was lost to an error on its side.
        """
        now = self._now()
        alive = select(HOLDERS.c.id).where(HOLDERS.c.alive_until >= now)
        held = or_(
            and_(
                JOBS.c.holder.is_not(None),
                JOBS.c.holder.in_(alive),
                or_(JOBS.c.holder != holder, JOBS.c.lease.in_(running)),
            ),
            and_(JOBS.c.holder.is_(None), func.coalesce(JOBS.c.lease_until, 0.0) >= now),
        )
        free = or_(JOBS.c.status == "queued", and_(JOBS.c.status == "in_progress", not_(held)))
        oldest = select(JOBS.c.id, JOBS.c.lease, JOBS.c.holder).where(free).order_by(JOBS.c.order).limit(1)
        with self._engine.begin() as connection:
            if connection.scalar(alive.where(HOLDERS.c.id == holder)) is None:
                return None
            found = connection.execute(oldest.with_for_update(skip_locked=True, of=JOBS)).first()
            if found is None:
                return None
            values = {
                "status": "in_progress",
                "progress": 0,
                "lease": secrets.token_hex(8),
                "lease_until": None,
                "holder": holder,
                "attempts": JOBS.c.attempts + 1,
            }
            unchanged = and_(JOBS.c.id == found.id, JOBS.c.lease.is_not_distinct_from(found.lease), free)
            row = connection.execute(update(JOBS).where(unchanged).values(values).returning(*_FIELDS)).first()
            if row is None:
                return None  # SQLite has no row locks: another process was faster
            if found.holder not in (None, holder):
                taken = {"lease": found.lease, "holder": found.holder, "job": found.id}
                connection.execute(insert(TAKEOVERS).values(taken))
        return Job(**row._mapping)

    def set_progress(self, job: Job, progress: int) -> bool:
        """Stores the progress of a job, in percent; False if the lease is lost."""
        return self._change(job, progress=progress)

    def set_request(self, job: Job, request: dict[str, Any]) -> bool:
        """Stores a request with what has become known of its result; False if the lease is lost."""
        return self._change(job, request=request)

    def release(self, job: Job) -> bool:
        """Queues a started job again without counting the attempt; False if the lease is lost."""
        return self._change(job, status="queued", progress=0, lease=None, holder=None, attempts=JOBS.c.attempts - 1)

    def retry_later(self, job: Job, delay_seconds: float) -> bool:
        """Lets any process start a job again after a delay, as another attempt; False if the lease is lost."""
        return self._change(job, progress=0, lease=None, holder=None, lease_until=self._now() + delay_seconds)

    def complete(self, job: Job, result: str, tokens: dict[str, int], keep_seconds: float) -> bool:
        """Ends a job with a result; False if the lease is lost."""
        now = self._now()
        times = {"completed_at": int(now), "expires_at": int(now + keep_seconds)}
        values = {"status": "completed", "progress": 100, "result": result, "tokens": tokens}
        return self._change(job, lease=None, holder=None, **values, **times)

    def fail(self, job: Job, code: str, message: str, keep_seconds: float) -> bool:
        """Ends a job without a result; False if the lease is lost."""
        values = {"status": "failed", "error_code": code, "error_message": message}
        return self._change(job, lease=None, holder=None, **values, expires_at=int(self._now() + keep_seconds))

    def remove_expired(self) -> list[str]:
        """Deletes the jobs whose results have expired, and what is known of processes long dead; ids of the jobs."""
        now = self._now()
        expired = and_(JOBS.c.expires_at.is_not(None), JOBS.c.expires_at < now)
        still_open = select(JOBS.c.id).where(JOBS.c.status.in_(OPEN))
        with self._engine.begin() as connection:
            removed = list(connection.scalars(delete(JOBS).where(expired).returning(JOBS.c.id)))
            connection.execute(delete(TAKEOVERS).where(TAKEOVERS.c.job.not_in(still_open)))
            connection.execute(delete(HOLDERS).where(HOLDERS.c.alive_until < now - FORGET_HOLDERS_SECONDS))
        return removed

    def ids(self) -> set[str]:
        """Ids of all jobs."""
        with self._engine.connect() as connection:
            return set(connection.scalars(select(JOBS.c.id)))

    def counts(self) -> dict[str, int]:
        """Number of jobs by status."""
        with self._engine.connect() as connection:
            rows: Sequence[Any] = connection.execute(select(JOBS.c.status, func.count()).group_by(JOBS.c.status)).all()
        return {str(status): int(count) for status, count in rows}

    def check(self) -> None:
        """Raises an SQLAlchemyError if jobs cannot be written."""
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.execute(select(1))

    def _now(self) -> float:
        with self._engine.connect() as connection:
            return self._clock.now(connection)

    def _change(self, job: Job, **values: Any) -> bool:
        leased = and_(JOBS.c.id == job.id, JOBS.c.lease == job.lease, JOBS.c.status == "in_progress")
        with self._engine.begin() as connection:
            return connection.execute(update(JOBS).where(leased).values(**values)).rowcount == 1


def new_id() -> str:
    """Random id of a new job."""
    return f"video_{secrets.token_hex(16)}"


def is_id(text: str) -> bool:
    """Tells whether a text has the form of a job id."""
    return len(text) <= 64 and text.startswith("video_") and text.removeprefix("video_").isalnum()


def _give_back_attempts(connection: Connection, holder: str) -> None:
    """Uncounts the attempts of jobs that were claimed from a holder which is alive after all."""
    taken = delete(TAKEOVERS).where(TAKEOVERS.c.holder == holder).returning(TAKEOVERS.c.job)
    for job in connection.scalars(taken).all():
        still_open = and_(JOBS.c.id == job, JOBS.c.status.in_(OPEN))
        connection.execute(update(JOBS).where(still_open).values(attempts=JOBS.c.attempts - 1))


def _create_tables(engine: Engine) -> None:
    """Creates what is missing: all tables in a new database, and what earlier versions did not have in theirs.

    Processes of the earlier version keep working on the same database: to them, leases with a holder never expire.
    """
    with engine.connect() as connection:
        if not _missing(connection):
            return
    with engine.begin() as connection:  # one process at a time
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        missing = _missing(connection)
        _METADATA.create_all(connection)
        for name in ADDED_COLUMNS:
            if name in missing:
                kind = JOBS.c[name].type.compile(engine.dialect)
                connection.execute(text(f"ALTER TABLE {JOBS.name} ADD COLUMN {name} {kind}"))
        KEY_INDEX.create(connection, checkfirst=True)


def _missing(connection: Connection) -> set[str]:
    """Tables that the database lacks, and columns that the table of jobs of an earlier version lacks."""
    found = inspect(connection)
    tables = set(_METADATA.tables) - set(found.get_table_names())
    if JOBS.name in tables:
        return tables
    return tables | (set(ADDED_COLUMNS) - {column["name"] for column in found.get_columns(JOBS.name)})


def _prepare_sqlite(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=3000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()

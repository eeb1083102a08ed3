"""Video jobs that outlive the processes which work on them: one table, in SQLite or PostgreSQL.

A job in work is leased: whoever works on it renews the lease while it runs, and only its holder can end the job. When a
process dies, the lease runs out and the job is begun again by another; what the first might still write is not taken.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
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
    or_,
    select,
    text,
    update,
)
from sqlalchemy.engine import Engine

OPEN = ("queued", "in_progress")
STATUSES = (*OPEN, "completed", "failed")

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
    Column("lease_until", Float),
    Column("attempts", Integer, nullable=False, default=0),
    Column("result", String(200)),
)


@dataclass(frozen=True)
class Job:
    """A row.

    Args:
        kind: `generate` or `reconstruct`.
        request: What was asked for: prompt, seconds, size, seed, model, and the name of an uploaded file.
        lease: Of the process that works on it.
        result: Folder of its files.
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


_FIELDS = [JOBS.c[name] for name in Job.__dataclass_fields__]


class JobStore:
    """The table of jobs. Its methods block; call them in a thread.

    Args:
        url: Of SQLAlchemy.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, pool_pre_ping=True)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _prepare_sqlite)
        _METADATA.create_all(self._engine)

    @property
    def engine(self) -> Engine:
        return self._engine

    def add(
        self, owner: str, kind: str, request: dict[str, Any], most: int, most_of_owner: int, job_id: str
    ) -> Job | None:
        """Queues a job; None if as many are open as may be, of all owners or of this one."""
        row = {"id": job_id, "owner": owner, "kind": kind, "status": "queued", "progress": 0, "attempts": 0}
        row |= {"order": time.time_ns(), "created_at": int(time.time()), "request": request}
        is_open = JOBS.c.status.in_(OPEN)
        with self._engine.connect() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(text(f"LOCK TABLE {JOBS.name} IN SHARE ROW EXCLUSIVE MODE"))
            # counted behind the insertion, which waits for other writers: no two take the last place
            connection.execute(insert(JOBS).values(row))
            total = connection.scalar(select(func.count()).where(is_open)) or 0
            own = connection.scalar(select(func.count()).where(is_open, JOBS.c.owner == owner)) or 0
            if total > most or own > most_of_owner:
                return None
            connection.commit()
        return self.get(owner, job_id)

    def get(self, owner: str, job_id: str) -> Job | None:
        """A job of an owner; nobody else's."""
        with self._engine.connect() as connection:
            row = connection.execute(select(*_FIELDS).where(JOBS.c.id == job_id, JOBS.c.owner == owner)).first()
        return None if row is None else Job(**row._mapping)

    def page(self, owner: str, after: str | None, limit: int, oldest_first: bool) -> tuple[list[Job], bool] | None:
        """Jobs of an owner behind one of them, and whether there are more; None if there is no such one."""
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
        """Deletes a job; whoever works on it loses its lease. None if there is none."""
        with self._engine.begin() as connection:
            condition = and_(JOBS.c.id == job_id, JOBS.c.owner == owner)
            row = connection.execute(delete(JOBS).where(condition).returning(*_FIELDS)).first()
        return None if row is None else Job(**row._mapping)

    def claim(self, lease_seconds: float) -> Job | None:
        """The oldest job that nobody works on, leased to the caller; None if there is none."""
        free = _free(time.time())
        oldest = select(JOBS.c.id).where(free).order_by(JOBS.c.order).limit(1).scalar_subquery()
        values = {
            "status": "in_progress",
            "progress": 0,
            "lease": secrets.token_hex(8),
            "lease_until": time.time() + lease_seconds,
            "attempts": JOBS.c.attempts + 1,
        }
        statement = update(JOBS).where(JOBS.c.id == oldest, free).values(values).returning(*_FIELDS)
        with self._engine.begin() as connection:
            row = connection.execute(statement).first()
        return None if row is None else Job(**row._mapping)

    def renew(self, job: Job, progress: int, lease_seconds: float) -> bool:
        """Keeps a lease; False if it is lost, because the job was deleted or begun again."""
        return self._change(job, progress=progress, lease_until=time.time() + lease_seconds)

    def release(self, job: Job) -> bool:
        """Gives a job back that was begun: another process may begin it, and this try does not count."""
        return self._change(job, status="queued", progress=0, lease=None, attempts=JOBS.c.attempts - 1)

    def complete(self, job: Job, result: str, tokens: dict[str, int], keep_seconds: float) -> bool:
        """Ends a job with a result; False if the lease is lost."""
        now = time.time()
        times = {"completed_at": int(now), "expires_at": int(now + keep_seconds)}
        done = {"status": "completed", "progress": 100, "result": result, "tokens": tokens, "lease": None}
        return self._change(job, **done, **times)

    def fail(self, job: Job, code: str, message: str, keep_seconds: float) -> bool:
        """Ends a job without a result; False if the lease is lost."""
        values = {"status": "failed", "error_code": code, "error_message": message, "lease": None}
        return self._change(job, **values, expires_at=int(time.time() + keep_seconds))

    def expired(self) -> list[str]:
        """Deletes the jobs whose results are kept no longer; returns their ids."""
        gone = and_(JOBS.c.expires_at.is_not(None), JOBS.c.expires_at < time.time())
        with self._engine.begin() as connection:
            return list(connection.scalars(delete(JOBS).where(gone).returning(JOBS.c.id)))

    def ids(self) -> set[str]:
        """Of all jobs."""
        with self._engine.connect() as connection:
            return set(connection.scalars(select(JOBS.c.id)))

    def counts(self) -> dict[str, int]:
        """Jobs by status."""
        with self._engine.connect() as connection:
            rows: Sequence[Any] = connection.execute(select(JOBS.c.status, func.count()).group_by(JOBS.c.status)).all()
        return {str(status): int(count) for status, count in rows}

    def _change(self, job: Job, **values: Any) -> bool:
        mine = and_(JOBS.c.id == job.id, JOBS.c.lease == job.lease, JOBS.c.status == "in_progress")
        with self._engine.begin() as connection:
            return connection.execute(update(JOBS).where(mine).values(**values)).rowcount == 1


def new_id() -> str:
    """Of a job."""
    return f"video_{secrets.token_hex(16)}"


def is_id(text: str) -> bool:
    """Whether a text can be the id of a job."""
    return len(text) <= 64 and text.startswith("video_") and text.removeprefix("video_").isalnum()


def _free(now: float) -> Any:
    """Jobs that nobody works on."""
    return or_(JOBS.c.status == "queued", and_(JOBS.c.status == "in_progress", JOBS.c.lease_until < now))


def _prepare_sqlite(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=3000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()

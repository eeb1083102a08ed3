"""Time of a job store, which does not jump when somebody sets a clock.

On PostgreSQL it is the time of the database. An SQLite file is used by the processes of one machine: there it goes on
evenly from the start of the machine, and is as near to the clock on the wall as that was when the file was first opened
after the start.
"""

import time
from pathlib import Path

from sqlalchemy import Column, Connection, Float, Integer, MetaData, String, Table, func, insert, select, update
from sqlalchemy.engine import Engine

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def clock_table(metadata: MetaData) -> Table:
    """Table with the one row that ties the time of the store to the start of the machine."""
    return Table(
        "video_job_clock",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("boot", String(64), nullable=False),
        Column("since_boot", Float, nullable=False),
        Column("seconds", Float, nullable=False),
    )


class StoreClock:
    """Clock of a job store.

    Args:
        engine: Database with the table.
        table: Table from `clock_table`.
    """

    def __init__(self, engine: Engine, table: Table) -> None:
        self._table = table
        self._offset = None if engine.dialect.name != "sqlite" else _offset(engine, table)

    def now(self, connection: Connection) -> float:
        """Seconds since 1970."""
        if self._offset is not None:
            return _since_boot() + self._offset
        return float(connection.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0)

    def remember(self, connection: Connection) -> None:
        """Stores the time, before which a machine that starts with a wrong clock does not go back."""
        if self._offset is not None:
            since_boot = _since_boot()
            values = {"since_boot": since_boot, "seconds": since_boot + self._offset}
            connection.execute(update(self._table).where(self._table.c.id == 1).values(values))


def _since_boot() -> float:
    """Seconds since the start of the machine, those in which it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _offset(engine: Engine, table: Table) -> float:
    """Difference between the time of the store and that since the start of the machine, in seconds."""
    boot = BOOT_ID.read_text().strip()
    with engine.begin() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # one process at a time
        found = connection.execute(select(table).where(table.c.id == 1)).first()
        if found is not None and found.boot == boot:
            return float(found.seconds - found.since_boot)
        since_boot, seconds = _since_boot(), max(time.time(), found.seconds if found is not None else 0.0)
        values = {"boot": boot, "since_boot": since_boot, "seconds": seconds}
        if found is None:
            connection.execute(insert(table).values(id=1, **values))
        else:
            connection.execute(update(table).where(table.c.id == 1).values(values))
        return seconds - since_boot

"""Sets of names that outgrow memory: on the disk, looked up by name."""

import hashlib
import sqlite3
from collections.abc import Collection, Iterable

INDEX_CACHE = 65536
"""Memory that an index takes at most, about; what is more lies in a file without a name, gone with its process."""


class NameIndex:
    """Names with a number each.

    A name is kept as 128 bits of its hash, so that two names never meet.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # on the disk, in a file that only this process sees
        self._database.execute(f"PRAGMA cache_size = -{INDEX_CACHE}")
        self._database.execute("CREATE TABLE names (name BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        self._database.execute("CREATE TEMP TABLE asked (place INTEGER PRIMARY KEY, name BLOB)")

    def add(self, names: Iterable[tuple[str, int | None]]) -> None:
        """Adds names. The first number that a name is given stays."""
        rows = sorted((_digest(name), number) for name, number in dict(reversed(list(names))).items())
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO names VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET number = excluded.number "
            "WHERE number IS NULL AND excluded.number IS NOT NULL",
            rows,
        )
        self._database.execute("COMMIT")

    def find(self, names: Collection[str]) -> dict[int, int | None]:
        """Returns the places of the names that are known, with their numbers."""
        self._database.execute("BEGIN")
        self._database.execute("DELETE FROM asked")
        self._database.executemany("INSERT INTO asked VALUES (?, ?)", enumerate(map(_digest, names)))
        found = dict(self._database.execute("SELECT place, number FROM asked JOIN names USING (name)"))
        self._database.execute("COMMIT")
        return found


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def repeated_hashes(names: Iterable[Collection[str]]) -> frozenset[int]:
    """Hashes, of this process, of the names that come more than once in many batches."""
    database = sqlite3.connect("", isolation_level=None)
    try:
        database.execute(f"PRAGMA cache_size = -{INDEX_CACHE}")
        database.execute("CREATE TABLE seen (hash INTEGER)")
        database.execute("BEGIN")
        for batch in names:
            database.executemany("INSERT INTO seen VALUES (?)", ((hash(name),) for name in batch))
        database.execute("COMMIT")
        found = database.execute("SELECT hash FROM seen GROUP BY hash HAVING count(*) > 1")
        return frozenset(one for (one,) in found)
    finally:
        database.close()

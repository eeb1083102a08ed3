"""Listing of inputs: sources in Arrow batches of bounded size. Tables are opened; videos, images and texts are not."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from .addresses import is_web, shown
from .files import (
    SIDECARS,
    TEXT_SUFFIXES,
    InputError,
    NamedFiles,
    find_files,
    is_hidden,
    is_table,
    refuse_unread,
    suffix_of,
)
from .inputs import InputSettings
from .kinds import KINDS, Kind
from .kinds.manifest import join_captions, repeated_addresses
from .rows import extra_fields
from .schema import EXTRA_PREFIX, SOURCES, TEXTS
from .storage import StorageSettings
from .tables import BATCH_ROWS, CAPTIONS, Table, open_table


@dataclass(frozen=True)
class _Files:
    """Files of one kind.

    Args:
        neighbours: Addresses of all files that were found beside them.
    """

    kind: Kind
    addresses: Sequence[str]
    neighbours: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Rows:
    """Rows of a table.

    Args:
        names_files: True if each names a whole file.
        repeated: Addresses that the table names more than once.
    """

    kind: Kind
    table: Table
    names_files: bool
    repeated: frozenset[str]


class Listing:
    """The sources that inputs name, in batches of at most `BATCH_ROWS`. It can be iterated more than once.

    Args:
        inputs: Runs of `videolavit decompose` and their shards; folders, globs, tables, tars and files, on any fsspec
            location.
        takes: Returns True for a kind that is accepted.
        reserved: Columns of the shards; a table's column of such a name is called `manifest_NAME`.
        action: Verb for error messages, such as `decompose`.

    Attributes:
        extra: Further columns of the batches, by their names in a shard.
        joined_rows: Rows that named a source a second time within their table, and gave it a further caption.
        linked: Lines about files that symbolic links bring in from outside of a folder that was named.
        left_out: Columns of tables that do not travel, and why, in words. Complete when all batches were taken.

    Raises:
        InputError: nothing is there, or what is there cannot be used.
        StorageError: a location cannot be used.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        settings: InputSettings,
        storage: StorageSettings,
        takes: Callable[[Kind], bool],
        reserved: frozenset[str],
        action: str,
    ) -> None:
        self._settings, self._storage, self._takes = settings, storage, takes
        self.linked: list[str] = []
        self._parts = [
            part for url in inputs for part in self._named(url if is_web(url) else url.rstrip("/") or url, action)
        ]
        for part in self._parts:
            if not takes(part.kind):
                where = part.table.url if isinstance(part, _Rows) else part.addresses[0]
                raise InputError(f"{where} is of the kind `{part.kind.name}`, which cannot be {action}d")
        joins = any(isinstance(part, _Rows) and part.repeated for part in self._parts)
        self._reserved = reserved | {TEXTS} if joins else reserved
        self.joined_rows = 0
        self.extra = self._unified_extra()
        if inputs and all(isinstance(part, _Rows) and not part.table.num_rows for part in self._parts):
            raise InputError(f"nothing to {action} in {', '.join(map(shown, inputs))}: no table has a row")

    @property
    def left_out(self) -> list[str]:
        return [
            f"the column `{name}` of {part.table.url} {reason}"
            for part in self._parts
            if isinstance(part, _Rows)
            for name, reason in part.table.left_out.items()
        ]

    def __iter__(self) -> Iterator[pa.Table]:
        self.joined_rows = 0
        further = [one.with_name(EXTRA_PREFIX + one.name) for one in self.extra]
        fields = pa.schema([*SOURCES, *further])
        for part in self._parts:
            for batch in self._files(part) if isinstance(part, _Files) else self._rows(part):
                listed = set(batch.column_names)
                missing = [one for one in further if one.name not in listed]
                for one in missing:
                    batch = batch.append_column(one, pa.nulls(batch.num_rows, one.type))
                try:
                    batch = batch.select(fields.names).cast(fields)
                except pa.ArrowException as error:
                    raise InputError(f"the manifests do not fit together: {error}") from None
                yield batch

    # ---- what an input is -----------------------------------------------------------------------------------------

    def _named(self, url: str, action: str) -> Iterator[_Files | _Rows]:
        """Files and tables that an input names."""
        for kind in filter(self._takes, KINDS.values()):
            addresses = kind.list_folder(url, self._settings, self._storage)
            if addresses is not None:
                yield _Files(kind, addresses)
                return
        found = find_files(url, self._storage)
        if found.named != "folder" and not self._settings.must_be("text"):
            refuse_unread(url)
        media, tables = self._chosen(url, found)
        if not media and not tables:
            hint = "name a folder, glob, manifest or tar"
            if any(kind.modality == "text" for kind in filter(self._takes, KINDS.values())):
                hint = "name a folder, glob, table, tar or run; the modality text takes .txt files in a folder"
            raise InputError(f"nothing to {action} in {shown(url)}; {hint}")
        if found.linked:
            what = f"{len(found.linked)} files of {shown(url)} are symbolic links that lead out of it"
            self.linked.append(f"{what}, or lie behind such, as {found.linked[0]} does")
        neighbours = frozenset(address for _, address in found.files if suffix_of(address) in TEXT_SUFFIXES)
        by_kind: dict[str, list[str]] = {}
        for address in media:
            kind = next(kind for kind in KINDS.values() if kind.takes_file(address, self._settings))
            by_kind.setdefault(kind.name, []).append(address)
        for address in tables:  # first, since a row says more of a file than its name
            yield self._table(address)
        for name, addresses in by_kind.items():
            yield _Files(KINDS[name], addresses, neighbours)

    def _chosen(self, url: str, found: NamedFiles) -> tuple[list[str], list[str]]:
        """Addresses of media and of tables. Tables beside media describe them; a folder of tables is an input."""
        texts_are_named = self._settings.must_be("text") or (
            found.named != "folder" and suffix_of(url) in TEXT_SUFFIXES
        )
        sidecars = SIDECARS - TEXT_SUFFIXES if texts_are_named else SIDECARS
        names = [
            (name, address)
            for name, address in found.files
            if found.named == "file" or (not is_hidden(name) and (suffix_of(name) not in sidecars or is_table(name)))
        ]
        media = [address for name, address in names if not is_table(name)]
        tables = [address for name, address in names if is_table(name)]
        if found.named == "folder" and media and not self._settings.must_be("text"):
            tables = []
        return media, tables

    def _table(self, url: str) -> _Files | _Rows:
        table = open_table(url, self._storage)
        kind = self._kind_of_rows(table)
        if not kind.lists_rows:
            return _Files(kind, [url])
        column = kind.media_column(self._settings)
        table = table.typed({*CAPTIONS, *kind.text_columns, *filter(None, (self._settings.text_column, column))})
        if column is None or column not in table.names or not kind.joins_captions or table.holds_bytes(column):
            return _Rows(kind, table, False, frozenset())
        return _Rows(kind, table, True, repeated_addresses(column, table))

    def _kind_of_rows(self, table: Table) -> Kind:
        settings = self._settings
        both = {"video", settings.image_column} <= set(table.names)
        if settings.modality == "auto" and both and not table.made_by:
            raise InputError(f"the table {table.url} has videos and images; set the modality to video or image")
        for kind in KINDS.values():
            if kind.takes_table(table, settings):
                return kind
        raise InputError(
            f"the table {table.url} has none of the columns `video`, `{settings.image_column}`, "
            f"`{settings.text_column or 'text'}`; it has {', '.join(table.names)}"
        )

    # ---- batches --------------------------------------------------------------------------------------------------

    def _unified_extra(self) -> list[pa.Field]:
        """Further columns of all inputs, in types that fit all of them."""
        schemas = []
        for part in self._parts:
            if isinstance(part, _Rows):
                empty = part.table.fields.empty_table()
                columns = self._list_rows(part, empty, 0, 0)
                if part.repeated:
                    columns = join_captions(columns)
                schemas.append(pa.schema(extra_fields(columns.schema)))
        try:
            return list(pa.unify_schemas(schemas, promote_options="permissive")) if schemas else []
        except pa.ArrowException as error:
            raise InputError(f"the manifests do not fit together: {error}") from None

    def _files(self, part: _Files) -> Iterator[pa.Table]:
        for start in range(0, len(part.addresses), BATCH_ROWS):
            yield part.kind.list_files(part.addresses[start : start + BATCH_ROWS], part.neighbours)

    def _list_rows(self, part: _Rows, rows: pa.Table, first: int, group: int) -> pa.Table:
        reserved = self._reserved | {one.name for one in part.kind.extra}
        sources = part.kind.list_rows(part.table, rows, first, group, self._settings, reserved)
        return self._naming_containers(sources) if part.names_files else sources

    def _naming_containers(self, sources: pa.Table) -> pa.Table:
        """Sources of the rows of a table, of which some may name a container such as a tar."""
        containers = [kind for kind in KINDS.values() if kind.is_container and self._takes(kind)]
        kinds = [
            next((kind.name for kind in containers if kind.takes_file(url, self._settings)), name)
            for url, name in zip(sources["url"].to_pylist(), sources["kind"].to_pylist(), strict=True)
        ]
        return sources.set_column(sources.schema.get_field_index("kind"), "kind", pa.array(kinds, pa.string()))

    def _rows(self, part: _Rows) -> Iterator[pa.Table]:
        column = part.kind.media_column(self._settings)
        stored = column is not None and part.table.holds_bytes(column)
        repeated: list[pa.Table] = []
        for rows, first, group in part.table.batches(without=column if stored else None):
            sources = self._list_rows(part, rows, first, group)
            if part.repeated:
                again = pc.is_in(sources["source"], pa.array(sorted(part.repeated), pa.string()))
                repeated.append(sources.filter(again))
                sources = sources.filter(pc.invert(again))
            if sources.num_rows:
                yield sources
        if repeated:
            several = pa.concat_tables(repeated)
            joined = join_captions(several)
            self.joined_rows += several.num_rows - joined.num_rows
            for start in range(0, joined.num_rows, BATCH_ROWS):
                yield joined.slice(start, BATCH_ROWS)


def without_repeats(table: pa.Table, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The first row of each value."""
    first: dict[str, int] = {}
    for index, value in enumerate(values.to_pylist()):
        first.setdefault(value, index)
    return table if len(first) == table.num_rows else table.take(list(first.values()))


def rebatched(batches: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The batches put together to some `rows` each."""
    waiting: list[pa.Table] = []
    for batch in batches:
        for start in range(0, batch.num_rows, rows):
            waiting.append(batch.slice(start, rows))
            if sum(one.num_rows for one in waiting) >= rows:
                yield pa.concat_tables(waiting)
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting)

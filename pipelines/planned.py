"""Index of what the plans of a run have: a source is compared with one entry, however many there are."""

from collections.abc import Sequence

import pyarrow as pa

from videolavit.records.files import InputError
from videolavit.records.names import NameIndex
from videolavit.records.rows import extra_column, extra_fields, keys, planned_names
from videolavit.records.schema import EXTRA_PREFIX, TEXTS
from videolavit.records.shards import Ledger

_COLUMNS = ["sample_id", "source", "url", "key", "text", EXTRA_PREFIX + TEXTS]

NO_CAPTIONS = 0
"""Number that stands for a source without captions."""


class PlannedNames:
    """Sources and samples of the plans of a run, in an index on the disk of this machine.

    Attributes:
        generation: Number of plans that are in it.
    """

    def __init__(self) -> None:
        self._sources, self._samples = NameIndex(), NameIndex()
        self._fields: list[pa.Field] = []
        self.generation = 0

    def follow(self, ledger: Ledger, until: int | None = None) -> int:
        """Takes in the plans that were published since, up to a number of them, and returns how many there are."""
        for name in ledger.plans()[self.generation : until]:
            with ledger.open_plan(name) as plan:
                fields = extra_fields(plan.schema_arrow)
                rows = plan.read(columns=_COLUMNS)
            self._fields += [one for one in fields if one not in self._fields]
            captions = zip(keys(rows).to_pylist(), caption_numbers(rows), strict=True)
            self._sources.add([*captions, *((name, None) for name in planned_names(rows))])
            self._samples.add((sample, None) for sample in rows["sample_id"].to_pylist())
            self.generation += 1
        return self.generation

    def sources(self, sources: pa.Table) -> tuple[pa.Array, int]:
        """Which sources of a listing are planned, and how many of those have other captions in it."""
        found = self._sources.find(keys(sources).to_pylist())
        known = pa.array([place in found for place in range(sources.num_rows)], pa.bool_())
        if not found:
            return known, 0
        ours = caption_numbers(sources.take(list(found)))
        pairs = zip(ours, found.values(), strict=True)
        return known, sum(our != NO_CAPTIONS and their is not None and our != their for our, their in pairs)

    def samples(self, samples: Sequence[str]) -> pa.Array:
        """Which samples are planned."""
        found = self._samples.find(samples)
        return pa.array([place in found for place in range(len(samples))], pa.bool_())

    def has_source_of(self, plan: pa.Table) -> bool:
        """True if a source of a plan, or a file of its own, is planned already."""
        return bool(self._sources.find(planned_names(plan)))

    def typed(self, sources: pa.Table) -> pa.Table:
        """The sources with further columns of the types that they have in the run.

        Raises:
            InputError: a value does not fit.
        """
        for field in self._fields:
            name = EXTRA_PREFIX + field.name
            index = sources.schema.get_field_index(name)
            if index < 0 or sources.schema.field(index).type == field.type:
                continue
            try:
                sources = sources.set_column(index, name, sources.column(index).cast(field.type))
            except pa.ArrowException:
                kinds = f"{field.type} in this run, {sources.schema.field(index).type} in the new manifest"
                raise InputError(f"the column `{field.name}` is {kinds}; choose another output") from None
        return sources


def caption_numbers(rows: pa.Table) -> list[int]:
    """Number of the captions of each row of a listing or plan: equal captions have one number in this process."""
    return [hash(tuple(captions)) or 1 if captions else NO_CAPTIONS for captions in captions_of(rows)]


def captions_of(rows: pa.Table) -> list[list[str]]:
    """All captions of each row of a listing or plan."""
    texts = extra_column(rows, TEXTS)
    several = texts.to_pylist() if texts is not None else [None] * rows.num_rows
    one = rows["text"].to_pylist()
    return [many or ([] if text is None else [text]) for many, text in zip(several, one, strict=True)]


def other_captions(sources: pa.Table, named: pa.Table) -> int:
    """Number of rows of a listing that give a source other captions than its first row.

    Args:
        sources: First row of each source.
        named: All rows.
    """
    first = dict(zip(keys(sources).to_pylist(), caption_numbers(sources), strict=True))
    numbers = zip(keys(named).to_pylist(), caption_numbers(named), strict=True)
    return sum(number not in (NO_CAPTIONS, first[key]) for key, number in numbers)

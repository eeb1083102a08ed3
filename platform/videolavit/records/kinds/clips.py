"""Shards of clips that `videolavit decompose` made."""

import functools
import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videolavit.media.errors import SourceUnreadable

from .. import schema
from ..files import InputError
from ..inputs import InputSettings
from ..parquet import ParquetReader
from ..prepare import NothingInside
from ..rows import PlanRow, Source, VideoSample, plan_rows_to
from ..samples import SampleSettings
from ..schema import EXTRA_PREFIX, RESERVED
from ..shards import RUN_FILE
from ..storage import Folder, StorageError, StorageSettings, open_source
from ..table_reader import SourceChanged, TableReader
from ..tables import Table
from .base import Kind, PlanSettings

SECONDS_PER_CLIP = 0.015
"""Core-seconds until a stored clip is ready for the tokenizers, about."""

_READ = ["sample_id", "source", "text", "start_seconds", "end_seconds", "num_clips"]


class ClipShard(Kind):
    """A shard of clips; its rows are samples, under the names that they have."""

    name = "clips"
    modality = "video"
    lists_rows = False

    def list_folder(self, url: str, settings: InputSettings, storage: StorageSettings) -> Sequence[str] | None:
        """Shards of a run of `videolavit decompose`."""
        try:
            run = Folder(url, storage)
            found = run.read(RUN_FILE)
            made = json.loads(found)["identity"].get("kind", self.name) if found else None
        except (ValueError, KeyError, TypeError, AttributeError, StorageError):
            return None
        if made is None:
            return None
        if made != self.name:
            raise InputError(f"{url} is a run of {made}, which cannot be tokenized")
        if not settings.may_be("video"):
            raise InputError(f"{url} is a run of clips; it goes with modality auto or video, not {settings.modality}")
        return [f"{run.url}/{self.name}/{name}" for name in run.names(self.name, ".parquet")]

    def takes_table(self, table: Table, settings: InputSettings) -> bool:
        if table.made_by == self.name:
            if not settings.may_be("video"):
                raise InputError(
                    f"{table.url} is a clip shard; it goes with modality auto or video, not {settings.modality}"
                )
            return True
        if table.made_by:
            raise InputError(f"{table.url} is a table of a run ({table.made_by}); name the run's folder or its clips")
        return False

    def plan(
        self, source: Source, settings: PlanSettings, storage: StorageSettings, extra: Sequence[pa.Field]
    ) -> pa.Table:
        with open_source(source.url, storage) as file:
            shard = ParquetReader(file)
            further = [name for name in shard.schema_arrow.names if name not in schema.CLIPS.names]
            rows = shard.read(columns=[*_READ, *further])
        if not rows.num_rows:  # stands for the source: nothing in it is a sample
            return plan_rows_to([PlanRow(**vars(source), sample_id="")], extra)
        count = rows.num_rows
        columns = {
            **{name: rows[name] for name in _READ},
            "url": pa.array([source.url] * count, pa.string()),
            "kind": pa.array([self.name] * count, pa.string()),
            "row": pa.array(range(count), pa.int64()),
            "planned_seconds": pc.subtract(rows["end_seconds"], rows["start_seconds"]),
            "cost": pc.multiply(pc.cast(rows["num_clips"], pa.float64()), SECONDS_PER_CLIP),
            "size_bytes": pa.array([0.0] * count, pa.float64()),
            "attempts": pa.array([0] * count, pa.int32()),
        }
        arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema.PLAN]
        table = pa.Table.from_arrays(arrays, names=schema.PLAN.names).cast(schema.PLAN)
        for name in further:
            shard_name = f"manifest_{name}" if name in RESERVED else name
            table = table.append_column(pa.field(EXTRA_PREFIX + shard_name, rows.schema.field(name).type), rows[name])
        return table

    def clips(self, row: PlanRow, settings: SampleSettings, storage: StorageSettings) -> VideoSample:
        if row.row is None:
            self._explain(row, storage)
        assert row.row is not None
        table = _tables(storage).row(row.url, row.row, ("sample_id", "end_seconds", "width", "height", "clips"))
        if table["sample_id"][0].as_py() != row.sample_id:
            raise SourceChanged(f"row {row.row} of {row.url} is another sample than when it was planned")
        return VideoSample(
            sample_id=row.sample_id,
            source=row.source,
            text=row.text,
            start_seconds=row.start_seconds or 0.0,
            end_seconds=table["end_seconds"][0].as_py(),
            fps=float(settings.fps),
            width=table["width"][0].as_py(),
            height=table["height"][0].as_py(),
            clips=table["clips"].combine_chunks(),
        )

    def _explain(self, row: PlanRow, storage: StorageSettings) -> None:
        """Raises why the shard was planned as a whole and not row by row."""
        with open_source(row.url, storage) as file:
            if pq.read_metadata(file).num_rows:
                raise SourceUnreadable(f"{row.url} could not be listed when it was planned; retry it")
        raise NothingInside("a clip shard without samples")


@functools.lru_cache(maxsize=1)
def _tables(storage: StorageSettings) -> TableReader:
    """Reader of this process. A plan keeps neighbours together, so that the last row group is enough."""
    return TableReader(storage)

"""The protocol of a kind of input: how it is listed, planned and worked on. Each kind is one file beside this one."""

from abc import ABC
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from ..identity import sample_id
from ..inputs import InputSettings, Modality
from ..prepare import Prepared, PrepareSettings, prepare_clips
from ..rows import PlanRow, Source, VideoSample, listing, plan_rows_to
from ..samples import SampleSettings
from ..storage import StorageSettings, open_source
from ..tables import Table

PICTURE_BYTES = 1 << 18
"""Memory that a picture takes while its token shard is made, about."""

UNREAD_COST = 1.0
"""Core-seconds that are planned for what could not be read."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Settings that decide what is planned.

    Args:
        sample: Settings of the decomposition of videos.
        inputs: Settings of the reading of inputs.
        makes_clips: True for a run of decomposition.
    """

    sample: SampleSettings
    inputs: InputSettings
    makes_clips: bool = False


class Kind(ABC):
    """A kind of input.

    Listing runs in the driver and opens no media. `expand`, `plan`, `clips` and `prepare` run in a child process with
    limits of time and memory; they raise MediaError, whose type and message become the reject.

    Attributes:
        name: Name in listings and plans. Stored: it never changes.
        modality: Modality of the samples; None for a container of several.
        is_decomposed: True if `videolavit decompose` takes it.
        is_container: True if a source holds samples of other kinds; `expand` lists them.
        reads_header: True if planning opens the source.
        lists_rows: False if planning lists the rows of a table, and not listing.
        joins_captions: True if rows that name one file share a sample, which gets all their captions.
        text_columns: Columns of tables that are read as text from CSV and JSON, whatever they look like.
        extra: Further columns that it adds to those of the input.
        shard_by: Columns of a plan; rows that agree in them share a shard, so that what they lie in is read once.
    """

    name: ClassVar[str]
    modality: ClassVar[Modality | None]
    is_decomposed: ClassVar[bool] = False
    is_container: ClassVar[bool] = False
    reads_header: ClassVar[bool] = True
    lists_rows: ClassVar[bool] = True
    joins_captions: ClassVar[bool] = False
    text_columns: ClassVar[Sequence[str]] = ()
    extra: ClassVar[Sequence[pa.Field]] = ()
    shard_by: ClassVar[Sequence[str]] = ()

    # ---- listing --------------------------------------------------------------------------------------------------

    def takes_file(self, name: str, settings: InputSettings) -> bool:
        """True if a file of this name is of this kind."""
        return False

    def list_folder(self, url: str, settings: InputSettings, storage: StorageSettings) -> Sequence[str] | None:
        """Addresses of the files of a folder that is of this kind as a whole, such as a run; None for any other.

        Raises:
            InputError: the folder is of this kind, and cannot be used.
        """
        return None

    def takes_table(self, table: Table, settings: InputSettings) -> bool:
        """True if the rows of a table are of this kind."""
        return False

    def list_files(self, addresses: Sequence[str], neighbours: frozenset[str]) -> pa.Table:
        """Sources of files.

        Args:
            neighbours: Addresses of the files that were found beside them.
        """
        return listing({"source": list(addresses), "url": list(addresses), "kind": self.name})

    def list_rows(
        self, table: Table, rows: pa.Table, first: int, group: int, settings: InputSettings, reserved: frozenset[str]
    ) -> pa.Table:
        """Sources of rows of a table.

        Args:
            first: Number of the first row in the table.
            group: Number of the row group.
            reserved: Columns that a further column must not be called.

        Raises:
            InputError: the table cannot be used.
        """
        raise NotImplementedError(f"{self.name} is not read from tables")

    def media_column(self, settings: InputSettings) -> str | None:
        """Column of a table that holds the file or its address."""
        return None

    # ---- planning -------------------------------------------------------------------------------------------------

    def expand(self, source: Source, settings: PlanSettings, storage: StorageSettings) -> list[Source]:
        """Sources inside a container."""
        return [source]

    def plan(
        self, source: Source, settings: PlanSettings, storage: StorageSettings, extra: Sequence[pa.Field]
    ) -> pa.Table:
        """Rows of the plan for a source, without shards: by default one, without reading the source.

        Args:
            extra: Further columns of the plan.

        Raises:
            MediaError: the source cannot be read now; `plan_unread` stands for it.
        """
        return plan_rows_to([self.plan_unread(source, settings)], extra)

    def plan_unread(self, source: Source, settings: PlanSettings) -> PlanRow:
        """Row of the plan for a source that was not read; working on it gives a reject its reason."""
        name = sample_id(source.source, 0.0, {"modality": self.name})
        return PlanRow(**vars(source), sample_id=name, num_clips=0, cost=UNREAD_COST)

    def token_bytes(self, plan: pa.Table) -> pa.Array:
        """Memory that each sample of a plan takes while its token shard is made."""
        pictures = pc.max_element_wise(pc.cast(plan["num_clips"], pa.float64()), 1.0)
        return pc.multiply(pictures, float(PICTURE_BYTES))

    # ---- work -----------------------------------------------------------------------------------------------------

    def clips(self, row: PlanRow, settings: SampleSettings, storage: StorageSettings) -> VideoSample:
        """Clips of a planned sample, decomposed or stored."""
        raise NotImplementedError(f"{self.name} has no clips")

    def prepare(self, row: PlanRow, settings: PrepareSettings, storage: StorageSettings) -> Prepared:
        """Pictures, motion and text of a planned sample, as the tokenizers read them."""
        return prepare_clips(self.clips(row, settings.sample, storage), row.text, settings)

    # ---- the video behind a stored sample -------------------------------------------------------------------------

    def names(self, source: str) -> bool:
        """True for names that this kind gives to sources beyond the addresses of files."""
        return False

    def open(self, source: str, storage: StorageSettings) -> AbstractContextManager[BinaryIO]:
        """Opens the video of a source by its name. Raises MediaError."""
        return open_source(source, storage)

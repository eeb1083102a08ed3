"""A whole shard, ready for the tokenizers, on its way from the actors that decode to the actors that encode."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from videolavit.media import CLIP_FRAMES

from . import schema
from .kinds import KINDS
from .prepare import Prepared, PrepareSettings
from .rows import PlanRow, Reject, reject_from, reject_to
from .traffic import with_traffic

_OWN = [field for field in schema.TOKENS if field.name not in ("clips", "num_tokens")]


@dataclass(eq=False)
class ShardBuilder:
    """Collects the samples of a shard.

    Args:
        name: Name of the shard.
        extra: Further columns.
    """

    name: str
    extra: list[pa.Field]
    rejects: list[Reject] = field(default_factory=list)
    _samples: list[tuple[PlanRow, Prepared]] = field(default_factory=list)

    def add(self, row: PlanRow, sample: Prepared) -> None:
        """Adds a planned sample."""
        self._samples.append((row, sample))

    def to_block(self) -> pa.Table:
        """One row of plain types. Ray would cut a block of several rows, and a shard must stay whole."""
        sink = pa.BufferOutputStream()
        samples = self._table()
        with pa.ipc.new_stream(sink, samples.schema) as stream:
            stream.write_table(samples)
        return _block(
            shard=self.name,
            samples=sink.getvalue().to_pybytes(),
            rejects=json.dumps([reject_to(one) for one in self.rejects]),
            num_pictures=[len(sample.pictures) for _, sample in self._samples],
            num_motions=[len(sample.motion) for _, sample in self._samples],
            pictures=b"".join(sample.pictures.tobytes() for _, sample in self._samples),
            motion=b"".join(sample.motion.tobytes() for _, sample in self._samples),
            work_seconds=sum(sample.work_seconds for _, sample in self._samples),
        )

    def _table(self) -> pa.Table:
        columns: dict[str, list[Any]] = {
            "sample_id": [row.sample_id for row, _ in self._samples],
            "modality": [KINDS[row.kind].modality for row, _ in self._samples],
            "source": [row.source for row, _ in self._samples],
            "text": [sample.text for _, sample in self._samples],
            "start_seconds": [row.start_seconds for row, _ in self._samples],
            "end_seconds": [sample.end_seconds for _, sample in self._samples],
        }
        columns |= {one.name: [row.extra.get(one.name) for row, _ in self._samples] for one in self.extra}
        fields = pa.schema([*_OWN, *self.extra])
        return pa.Table.from_arrays([pa.array(columns[one.name], one.type) for one in fields], schema=fields)


@dataclass(frozen=True, eq=False)
class PreparedShard:
    """A shard that `ShardBuilder` collected.

    Attributes:
        samples: Rows of `schema.TOKENS` without the tokens, and extra columns.
        rejects: Samples that could not be prepared.
        num_pictures: int32 [samples], pictures of each sample.
        num_motions: int32 [samples], motions of each sample.
        pictures: uint8 [pictures, size, size, 3], those of all samples in their order.
        motion: float32 [motions, 2, 24, *motion_size].
    """

    name: str
    samples: pa.Table
    rejects: list[Reject]
    num_pictures: NDArray[np.int32]
    num_motions: NDArray[np.int32]
    pictures: NDArray[np.uint8]
    motion: NDArray[np.float32]
    work_seconds: float

    @classmethod
    def from_block(cls, block: pa.Table, settings: PrepareSettings) -> "PreparedShard":
        size = settings.picture_size
        pictures, motion, samples = (block[name][0].as_buffer() for name in ("pictures", "motion", "samples"))
        return cls(
            name=block["shard"][0].as_py(),
            samples=pa.ipc.open_stream(samples).read_all(),
            rejects=[reject_from(one) for one in json.loads(block["rejects"][0].as_py())],
            num_pictures=block["num_pictures"][0].values.to_numpy(),
            num_motions=block["num_motions"][0].values.to_numpy(),
            pictures=np.frombuffer(pictures, np.uint8).reshape(-1, size, size, 3),
            motion=np.frombuffer(motion, np.float32).reshape(-1, 2, CLIP_FRAMES, *settings.motion_size),
            work_seconds=block["work_seconds"][0].as_py(),
        )

    def extra(self) -> list[pa.Field]:
        """Further columns of the samples."""
        own = {field.name for field in _OWN}
        return [field for field in self.samples.schema if field.name not in own]


def waiting_block(shard: str, node: str) -> pa.Table:
    """Returns the block that an actor sends while it works on a shard, so that it is not taken for stuck.

    Args:
        node: Address of the actor's node.
    """
    return _block(shard=shard, node=node)


def failed_block(shard: str, error: str) -> pa.Table:
    """A shard that could not be prepared as a whole."""
    return _block(shard=shard, error=error)


def waiting_node(block: pa.Table) -> str | None:
    """Node that works on a shard, from a waiting block; None for other blocks."""
    return block["node"][0].as_py()  # type: ignore[no-any-return]


_BLOCK = pa.schema(
    [
        ("shard", pa.string()),
        ("error", pa.string()),
        ("node", pa.string()),
        ("samples", pa.large_binary()),
        ("rejects", pa.large_string()),
        ("num_pictures", pa.list_(pa.int32())),
        ("num_motions", pa.list_(pa.int32())),
        ("pictures", pa.large_binary()),
        ("motion", pa.large_binary()),
        ("work_seconds", pa.float64()),
    ]
)


def _block(**values: Any) -> pa.Table:
    columns = {field.name: pa.array([values.get(field.name)], field.type) for field in _BLOCK}
    return with_traffic(pa.table(columns, schema=_BLOCK))

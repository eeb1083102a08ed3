"""A whole shard, ready for the tokenizers, on its way from the actors that decode to the actors that encode."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from videolavit.media import CLIP_FRAMES

from . import schema
from .inputs import EXTRA
from .plan import extra_fields
from .prepare import Prepared, PrepareSettings
from .samples import extra_columns

_OWN = [field for field in schema.TOKENS if field.name not in ("clips", "num_tokens")]
_COUNTS = [pa.field("num_pictures", pa.int32()), pa.field("num_motions", pa.int32())]


@dataclass(eq=False)
class ShardBuilder:
    """Collects the samples of a shard.

    Args:
        plan: Plan rows of the shard.
    """

    plan: pa.Table
    rejects: list[dict[str, Any]] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    _motion: list[NDArray[np.float32]] = field(default_factory=list)
    _work_seconds: float = 0.0

    def add(self, row: dict[str, Any], sample: Prepared) -> None:
        """Adds what became of a plan row."""
        counts = {"num_pictures": len(sample.pictures), "num_motions": len(sample.motion)}
        values = {"modality": "video" if row["kind"] == "clips" else row["kind"], "text": sample.text}
        values |= {"end_seconds": sample.end_seconds}
        self._rows.append(row | values | counts | extra_columns(row))
        self._pictures.append(sample.pictures)
        self._motion.append(sample.motion)
        self._work_seconds += sample.work_seconds

    def to_block(self) -> pa.Table:
        """One row of plain types. Ray would cut a block of several rows, and a shard must stay whole."""
        extra = [field.with_name(field.name.removeprefix(EXTRA)) for field in extra_fields(self.plan.schema)]
        samples = pa.Table.from_pylist(self._rows, pa.schema([*_OWN, *_COUNTS, *extra]))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, samples.schema) as stream:
            stream.write_table(samples)
        return _block(
            shard=self.plan["shard"][0].as_py(),
            samples=sink.getvalue().to_pybytes(),
            rejects=json.dumps(self.rejects),
            pictures=_joined(self._pictures),
            motion=_joined(self._motion),
            work_seconds=self._work_seconds,
        )


@dataclass(frozen=True, eq=False)
class PreparedShard:
    """What `ShardBuilder` collected.

    Attributes:
        samples: Rows of `schema.TOKENS` without the tokens, with `num_pictures` and `num_motions`, and extra columns.
        rejects: Rows of `schema.REJECTS`.
        pictures: uint8 [pictures, size, size, 3], those of all samples in their order.
        motion: float32 [motions, 2, 24, *motion_size].
    """

    name: str
    samples: pa.Table
    rejects: list[dict[str, Any]]
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
            rejects=json.loads(block["rejects"][0].as_py()),
            pictures=np.frombuffer(pictures, np.uint8).reshape(-1, size, size, 3),
            motion=np.frombuffer(motion, np.float32).reshape(-1, 2, CLIP_FRAMES, *settings.motion_size),
            work_seconds=block["work_seconds"][0].as_py(),
        )

    def extra(self) -> list[pa.Field]:
        """Fields of the further columns."""
        own = {field.name for field in (*_OWN, *_COUNTS)}
        return [field for field in self.samples.schema if field.name not in own]


def waiting_block() -> pa.Table:
    """What an actor sends while its shard is not ready, so that nobody takes it for stuck."""
    return _block()


def failed_block(shard: str, error: str) -> pa.Table:
    """A shard that could not be prepared as a whole."""
    return _block(shard=shard, error=error)


_BLOCK = pa.schema(
    [
        ("shard", pa.string()),
        ("error", pa.string()),
        ("samples", pa.large_binary()),
        ("rejects", pa.large_string()),
        ("pictures", pa.large_binary()),
        ("motion", pa.large_binary()),
        ("work_seconds", pa.float64()),
    ]
)


def _block(**values: Any) -> pa.Table:
    return pa.table({field.name: pa.array([values.get(field.name)], field.type) for field in _BLOCK}, schema=_BLOCK)


def _joined(parts: list[NDArray[Any]]) -> bytes:
    return b"".join(part.tobytes() for part in parts)

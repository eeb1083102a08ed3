"""The tables on disk. This module is the contract: plain Arrow types, and a version in the Parquet metadata."""

from collections.abc import Mapping

import pyarrow as pa

VERSION = "1"
KIND = b"videolavit.kind"
WORK_SECONDS = b"work_seconds"
"""Metadata of a table in memory: the core-seconds that its rows took."""

CLIP = pa.struct(
    [
        ("start_frame", pa.int32()),  # index of the keyframe in the sample's re-encoded stream
        ("num_frames", pa.int16()),  # real frames, up to 24
        ("keyframe", pa.large_binary()),  # JPEG or PNG file
        ("motion", pa.list_(pa.int16())),  # [num_frames, blocks_high, blocks_wide, 2], half pixels, x first
        ("num_vectors", pa.list_(pa.int32())),  # [num_frames], blocks that have a vector
        ("blocks_high", pa.int16()),
        ("blocks_wide", pa.int16()),
        ("motion_score", pa.float32()),  # mean displacement a frame, percent of the diagonal
    ]
)

CLIPS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        ("text", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("fps", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("num_clips", pa.int32()),
        ("clips", pa.list_(CLIP)),
    ]
)
"""A row is a sample: a video, or a segment of a long one. Columns of the input's manifest follow behind."""

TOKEN_CLIP = pa.struct(
    [
        ("visual_tokens", pa.list_(pa.int32())),  # codes of the keyframe or image, as many as the tokenizer kept
        ("motion_tokens", pa.list_(pa.int32())),  # codes of the motion; none for an image
    ]
)
"""Codes are 0-based in the codebook of their kind; a language model's vocabulary adds its offsets later."""

TOKENS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),  # video, image, text
        pa.field("source", pa.string(), nullable=False),
        ("text", pa.string()),  # kept as text: its token ids depend on a language model
        ("start_seconds", pa.float64()),  # start of the segment of a video; null otherwise
        ("end_seconds", pa.float64()),
        ("clips", pa.list_(TOKEN_CLIP)),  # an image is one clip without motion, a text has no clip
        ("num_tokens", pa.int32()),  # visual and motion codes of the sample
    ]
)
"""A row is a sample. Columns of the input's manifest follow behind."""

TOKEN_INDEX = pa.schema(
    [
        ("shard", pa.string()),
        ("rows", pa.int32()),
        ("made_by", pa.string()),  # JSON: digests of the tokenizers and sizes of their codebooks
        ("num_clips", pa.list_(pa.int32())),  # clips of each row of the shard
        ("visual_tokens", pa.list_(pa.int32())),  # number of codes of each clip
        ("motion_tokens", pa.list_(pa.int32())),
    ]
)
"""Index of token shards: one row a shard."""

TOKEN_TEXTS = pa.schema(
    [
        ("shard", pa.string()),
        ("text_tokens", pa.list_(pa.int32())),  # length of the text of each row of the shard, in ids
    ]
)
"""Beside a file of the index: lengths of the texts of its shards, for one text tokenizer."""

REJECTS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        ("start_seconds", pa.float64()),
        ("stage", pa.string()),
        ("error_type", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("seconds", pa.float64()),
    ]
)

SOURCES = pa.schema(
    [
        ("source", pa.string()),  # name of the sample's origin: an address, `TAR/MEMBER` or `TABLE#rowN`
        ("url", pa.string()),  # file that holds it
        ("kind", pa.string()),  # name in `kinds.KINDS`
        ("text", pa.string()),
        ("offset", pa.int64()),  # first byte in `url`: a member of a tar
        ("length", pa.int64()),  # bytes; null: the whole file
        ("row", pa.int64()),  # row of the table `url`
        ("row_group", pa.int64()),  # row group of the table `url` that holds `row`
        ("column", pa.string()),  # column of that table that holds the file
        ("text_url", pa.string()),  # file that holds the text
        ("start_seconds", pa.float64()),  # start of the range that the input names; null for the whole video
        ("end_seconds", pa.float64()),
        ("key", pa.string()),  # distinguishes sources of one `source`, such as ranges of a video; null: `source` does
    ]
)
"""A listing: what the inputs name, before any of it is opened."""

PLAN = pa.schema(
    [
        ("sample_id", pa.string()),
        *(field for field in SOURCES if field.name not in ("start_seconds", "end_seconds")),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),  # null: to the end
        ("planned_seconds", pa.float64()),  # null: the header could not be read
        ("num_clips", pa.int32()),  # expected
        ("cost", pa.float64()),  # estimated core-seconds
        ("size_bytes", pa.float64()),  # estimated, in the shard or in memory while the shard is made
        ("attempts", pa.int32()),  # made before this plan
        ("shard", pa.string()),  # name of the shard that will hold the sample or its reject
    ]
)
"""A plan: one row a sample. Plans of version 0.1 lack `key`, and `kind`, `row`, `row_group`, `column`, `text_url`,
`num_clips` and `size_bytes` where nothing needed them."""

EXTRA_PREFIX = "extra."
"""Prefix of a manifest's further columns in a listing and in a plan."""

TEXTS = "texts"
"""Further column of all captions of a video that a manifest names more than once."""

RESERVED = frozenset({*CLIPS.names, *TOKENS.names, "num_pictures", "num_motions"})
"""Columns of shards, and two names that version 0.1 reserved. A manifest's column of such a name becomes
`manifest_NAME`."""


def versioned(schema: pa.Schema, kind: str, further: Mapping[str, str] | None = None) -> pa.Schema:
    """The schema with its kind and version in the metadata, and what further the metadata is to hold."""
    metadata = {KIND.decode(): kind, "videolavit.version": VERSION}
    return schema.with_metadata(metadata | dict(further or {}))


def kind_of(schema: pa.Schema) -> str:
    """The kind that `versioned` wrote; empty for a foreign table."""
    return str((schema.metadata or {}).get(KIND, b"").decode())

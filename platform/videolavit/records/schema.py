"""The tables on disk. This module is the contract: plain Arrow types, and a version in the Parquet metadata."""

import pyarrow as pa

VERSION = "1"

CLIP = pa.struct(
    [
        ("start_frame", pa.int32()),  # of the keyframe in the sample's re-encoded stream
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

PLAN = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("url", pa.string()),
        ("offset", pa.int64()),  # of the bytes in `url`: a member of a tar
        ("length", pa.int64()),  # null: the whole file
        ("text", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),  # null: to the end
        ("planned_seconds", pa.float64()),  # null: the header could not be read
        ("cost", pa.float64()),  # estimated core-seconds
        ("attempts", pa.int32()),  # made before this plan
        ("shard", pa.string()),  # name of the shard that will hold the sample or its reject
    ]
)


def versioned(schema: pa.Schema, kind: str) -> pa.Schema:
    """The schema with its kind and version in the metadata."""
    return schema.with_metadata({"videolavit.kind": kind, "videolavit.version": VERSION})

"""Inputs as the two pipelines list them."""

from collections.abc import Iterable

import pyarrow as pa

from videolavit.records import schema
from videolavit.records.inputs import InputSettings
from videolavit.records.listing import Listing, rebatched, without_repeats
from videolavit.records.rows import keys
from videolavit.records.storage import StorageSettings

STORAGE = StorageSettings(allow=["/", "s3://"])


def videos(inputs: Iterable[object], text_column: str | None = None) -> Listing:
    """Listing of `videolavit decompose`."""
    settings = InputSettings(modality="video", text_column=text_column)
    return Listing(
        [str(one) for one in inputs],
        settings,
        STORAGE,
        lambda kind: kind.is_decomposed,
        frozenset(schema.CLIPS.names),
        "decompose",
    )


def corpus(inputs: Iterable[object], settings: InputSettings) -> Listing:
    """Listing of `videolavit tokenize`."""
    names = [str(one) for one in inputs]
    return Listing(names, settings, STORAGE, lambda kind: True, schema.RESERVED, "tokenize")


def sources(listing: Listing) -> pa.Table:
    """All that a listing has, each source once, as one table."""
    batches = [schema.SOURCES.empty_table(), *rebatched(iter(listing), 1000)]
    table = pa.concat_tables(batches, promote_options="default")
    return without_repeats(table, keys(table))


def list_videos(*inputs: object, text_column: str | None = None) -> pa.Table:
    """Sources of `videolavit decompose` as one table."""
    return sources(videos(inputs, text_column))


def list_corpus(*inputs: object, settings: InputSettings | None = None) -> pa.Table:
    """Sources of `videolavit tokenize` as one table."""
    return sources(corpus(inputs, settings or InputSettings()))

"""Listing, planning and decomposing a few inputs in this process, as the pipeline does with actors."""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from videolavit.records.inputs import InputSettings
from videolavit.records.kinds import PlanSettings, plan_source
from videolavit.records.listing import Listing
from videolavit.records.rows import PlanRow, plan_rows_from, sources_from
from videolavit.records.samples import SampleSettings
from videolavit.records.schema import CLIPS
from videolavit.records.storage import StorageSettings

STORAGE = StorageSettings(allow=["/", "s3://"])
SETTINGS = PlanSettings(sample=SampleSettings(segment_seconds=8), inputs=InputSettings(modality="video"))
_COUNTED: dict[str, int] = {}


def listed(*inputs: object, settings: PlanSettings = SETTINGS) -> Listing:
    reserved = frozenset(CLIPS.names)
    return Listing(
        [str(one) for one in inputs], settings.inputs, STORAGE, lambda kind: kind.is_decomposed, reserved, "decompose"
    )


def plan_table(*inputs: object, settings: PlanSettings = SETTINGS) -> pa.Table:
    listing = listed(*inputs, settings=settings)
    sources = [source for batch in listing for source in sources_from(batch)]
    return pa.concat_tables([plan_source(source, settings, STORAGE, listing.extra) for source in sources])


def planned(*inputs: object, settings: PlanSettings = SETTINGS) -> list[PlanRow]:
    return plan_rows_from(plan_table(*inputs, settings=settings))


def kinds_of(*inputs: object) -> set[str]:
    return {kind for batch in listed(*inputs) for kind in batch["kind"].to_pylist()}


def count_opens(file: Path) -> None:
    """Counts from now on how often this process opens a file."""
    if not _COUNTED:
        sys.addaudithook(_count)
    _COUNTED[str(file)] = 0


def opens(file: Path) -> int:
    return _COUNTED[str(file)]


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]) in _COUNTED:
        _COUNTED[str(arguments[0])] += 1

"""The dataset card of a run of clips, contact sheets of stored clips, and the page that all cards are."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from videolavit.media import Cell, arrow_style, contact_sheet, draw_motion

from .foreign import read_keyframe
from .parquet import ParquetReader
from .rejects import RejectFacts
from .samples import stored_clip
from .shards import CLIP_SHARDS, Ledger
from .storage import Folder, naming_location

T = TypeVar("T")

REPORT = "report.html"
SHEET_CELLS = 12
SAMPLED_SHARDS = 200
"""Largest number of shards that the card of a run describes, evenly spread; its counts are of all shards."""

_BINS = 24
_NUMBERS = {
    "seconds of a sample": "end_seconds",
    "clips of a sample": "num_clips",
    "width in pixels": "width",
    "motion of a clip, % of the diagonal a frame": "motion_score",
    "frames of a clip": "num_frames",
}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar of a plot, in the plot's coordinates."""

    x: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A histogram, with the ends of its axis."""

    title: str
    bars: Sequence[Bar] = ()
    low: str = ""
    high: str = ""


def write_clip_report(folder: Folder, run: dict[str, Any], rejects: Sequence[RejectFacts]) -> None:
    """Writes `report.html` from a run's shards and counts. Raises StorageError where it cannot be written."""
    counts = run["counts"]
    names = spread(sorted(Ledger(folder).committed()), SAMPLED_SHARDS)
    tables = [_read_numbers(folder, name) for name in names] or [dict.fromkeys(_NUMBERS.values(), np.zeros(0))]
    facts = [(name, f"{counts[name]:,}") for name in ("planned", "samples", "clips", "frames", "rejects", "shards")]
    facts += [("hours of video", f"{counts['video_hours']:.2f}"), ("core-hours", f"{counts['core_hours']:.2g}")]
    plots = [histogram(title, np.concatenate([table[name] for table in tables])) for title, name in _NUMBERS.items()]
    page = render_page(
        title=f"Clips in {folder.url}",
        facts=facts,
        cells=stored_cells(folder, names),
        plots=plots,
        rejects=rejects,
        details=json.dumps(run["identity"], indent=2),
    )
    with naming_location(folder.url):
        folder.replace(REPORT, page.encode())


def render_page(
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    cells: Sequence[Cell],
    plots: Sequence[Plot] = (),
    rejects: Sequence[RejectFacts] = (),
    details: str = "",
    note: str = "",
    videos: Sequence[tuple[bytes, str]] = (),
    pictures: Sequence[tuple[bytes, str]] = (),
) -> str:
    """Renders a self-contained HTML page with a contact sheet; text from the data is escaped.

    Args:
        title: Title of the page.
        facts: Names and values.
        cells: Cells of the contact sheet.
        plots: Histograms, from `histogram`.
        rejects: Samples that could not be made, by error type.
        details: Text at the end of the page, in a fixed-width font.
        note: Text at the beginning of the page.
        videos: mp4 files and their captions.
        pictures: PNG files and their captions.
    """
    template = resources.files("videolavit.records").joinpath("report.html.j2").read_text()
    sheet = ""
    if cells:
        sink = io.BytesIO()
        Image.fromarray(contact_sheet(cells)).save(sink, "JPEG", quality=88)
        sheet = base64.b64encode(sink.getvalue()).decode()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=title,
        facts=facts,
        sheet=sheet,
        plots=plots,
        rejects=sorted(rejects, key=lambda one: one.error_type),
        details=details,
        note=note,
        videos=[(base64.b64encode(video).decode(), caption) for video, caption in videos],
        pictures=[(base64.b64encode(picture).decode(), caption) for picture, caption in pictures],
    )


def clip_cell(keyframe: NDArray[np.uint8], motion: NDArray[np.int16], caption: str) -> Cell:
    """A keyframe with the mean motion of its clip's first second, for a contact sheet.

    Args:
        keyframe: uint8 [height, width, 3].
        motion: int16 [frames, blocks_high, blocks_wide, 2] in half pixels.
    """
    mean = motion[1:7].mean(axis=0) if len(motion) > 1 else motion[0].astype(np.float64)
    return Cell(draw_motion(keyframe, mean, **arrow_style(mean, keyframe.shape[1])), caption)


def stored_cells(folder: Folder, names: Sequence[str], limit: int = SHEET_CELLS) -> list[Cell]:
    """Cells of clips taken evenly from shards."""
    chosen = spread(names, limit)
    cells: list[Cell] = []
    for position, name in enumerate(chosen):
        share = -(-(limit - len(cells)) // (len(chosen) - position))
        with folder.open(f"{CLIP_SHARDS.folder}/{name}") as file:
            cells += shard_cells(ParquetReader(file), share)
    return cells


def shard_cells(shard: ParquetReader, limit: int) -> list[Cell]:
    """One cell each of up to `limit` samples of a shard: the middle clip. Raises MediaError."""
    cells = []
    for index in spread(range(shard.num_row_groups), limit):
        columns = shard.read_row_group(index, columns=["source", "text", "clips"])
        source, text, clips = (columns[name].combine_chunks() for name in ("source", "text", "clips"))
        if count := len(clips.flatten()):
            keyframe, motion = stored_clip(clips, count // 2)
            caption = text[0].as_py() or source[0].as_py().rsplit("/", 1)[-1]
            cells.append(clip_cell(read_keyframe(keyframe), motion, caption))
    return cells


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Up to `limit` of the items, evenly taken."""
    if len(items) <= limit:
        return list(items)
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, limit)]


def _read_numbers(folder: Folder, name: str) -> dict[str, NDArray[Any]]:
    nested = {field: f"clips.list.element.{field}" for field in ("motion_score", "num_frames")}
    flat = ["start_seconds", "end_seconds", "num_clips", "width"]
    with folder.open(f"{CLIP_SHARDS.folder}/{name}") as file:
        table = ParquetReader(file).read(columns=[*flat, *nested.values()])
    clips = table["clips"].combine_chunks().flatten()
    numbers = {column: table[column].to_numpy() for column in flat}
    numbers["end_seconds"] = numbers["end_seconds"] - numbers["start_seconds"]
    return numbers | {field: clips.field(field).to_numpy(zero_copy_only=False) for field in nested}


def histogram(title: str, values: NDArray[Any]) -> Plot:
    """A plot of how numbers are distributed, for `render_page`."""
    values = values.astype(float)
    if not len(values):
        return Plot(title=f"{title}: none")
    low, high = float(values.min()), float(values.max())
    bins = _BINS if high > low else 1
    heights, edges = np.histogram(values, bins=bins, range=(low, high if high > low else low + 1))
    width = 260 / bins
    bars = [
        Bar(
            x=round(index * width, 2),
            width=round(width - 1, 2),
            height=round(float(90 * count / heights.max()), 2),
            label=f"{edges[index]:.4g} to {edges[index + 1]:.4g}: {count}",
        )
        for index, count in enumerate(heights)
    ]
    title = f"{title} (median {np.median(values):.3g})"
    return Plot(title=title, bars=bars, low=f"{low:.4g}", high=f"{high:.4g}")

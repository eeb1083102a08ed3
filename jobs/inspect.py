"""Show the contents of a video, a shard of clips or tokens, or a run."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image
from rich.console import Console
from rich.table import Table

from videolavit.files import write_beside
from videolavit.media import MediaError, contact_sheet
from videolavit.records.inspection import RunFacts, ShardFacts, VideoFacts, inspect
from videolavit.records.report import render_page
from videolavit.records.storage import StorageError, StorageSettings

from .common import JobParser, add_storage_options, fail, foreign, return_memory, user_errors
from .progress import show_progress


def main(argv: Sequence[str] | None = None) -> None:
    """Prints tables, and writes a contact sheet or a page where one is asked for."""
    parser = JobParser("inspect", __doc__)
    parser.add_argument("path", type=str, help="video, shard (.parquet) or run folder; local, s3://, https:// or hf://")
    parser.add_argument(
        "--png", type=str | None, help="file to write a contact sheet of keyframes with motion arrows to"
    )
    parser.add_argument("--html", type=str | None, help="file to write a page with the sheet and the facts to")
    add_storage_options(parser)
    options = parser.parse(argv)
    return_memory()
    with user_errors(MediaError, StorageError, pa.ArrowInvalid, OSError):
        with show_progress() as on_progress:
            found = inspect(options.path, StorageSettings(options.s3_endpoint), on_progress)
        print_contents(found)
        if options.png and not found.cells:
            fail("there is no clip to draw")
        if options.png:
            with write_beside(Path(options.png)) as (unfinished,):
                Image.fromarray(contact_sheet(found.cells)).save(unfinished, "PNG")
        if options.html:
            page = render_page(title=options.path, facts=found.facts, cells=found.cells)
            with write_beside(Path(options.html)) as (unfinished,):
                unfinished.write_text(page)


def print_contents(found: VideoFacts | ShardFacts | RunFacts) -> None:
    """Prints a table of facts, and one of clips, rows or rejects where there are any."""
    facts = Table(show_header=False, box=None)
    for name, value in found.facts:
        facts.add_row(foreign(name, "bold"), foreign(value))
    stdout = Console()
    stdout.print(facts)
    table = _table(found)
    if table.rows:
        stdout.print(table)


def _table(found: VideoFacts | ShardFacts | RunFacts) -> Table:
    """Returns the clips of a video, the first rows of a shard, or the rejects of a run."""
    if isinstance(found, VideoFacts):
        table = Table(
            "clip", "seconds", "frames", "blocks with a vector", "motion, % of diagonal", title=foreign(found.path)
        )
        for index, clip in enumerate(found.clips):
            numbers = (
                f"{clip.seconds:.2f}",
                str(clip.num_frames),
                f"{clip.vector_share:.0%}",
                f"{clip.motion_score:.3f}",
            )
            table.add_row(str(index), *numbers)
    elif isinstance(found, ShardFacts):
        table = Table(title=foreign(found.path))
        for name in found.rows[0] if found.rows else ():
            table.add_column(foreign(name))
        for row in found.rows:
            table.add_row(*(foreign(str(value)[:60]) if value is not None else "" for value in row.values()))
        if len(found.rows) < found.num_rows:
            table.caption = f"the first {len(found.rows)} of {found.num_rows} rows"
    else:
        table = Table("reason", "number", "for example", title="rejects")
        for reject in found.rejects:
            table.add_row(reject.error_type, str(reject.count), foreign(f"{reject.source}: {reject.message}"))
    return table


if __name__ == "__main__":
    main()

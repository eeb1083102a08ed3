"""Convert a model folder to the published layout of `rain1011/Video-LaVIT-v1`, for code that reads that layout, or its
language model to a folder for plain `transformers`.

Tensors are copied bit for bit, a file at a time. Weights that were imported keep the licences of the published ones.
With `--layout transformers` the tokenizer names the ids of pictures and motion: `[IMG]`, `<visual_0>`, `<motion_0>`.
`video_3d_unet.bin` is not written: its tensors are those of `video_detokenizer/unet` in another arrangement.
"""

from collections.abc import Sequence
from typing import Literal

from rich.console import Console

from videolavit.models.checkpoint import ExportSettings, export_checkpoint
from videolavit.models.network import ModelError

from .common import JobParser, foreign, user_errors
from .import_checkpoint import LICENCES, add_only, files_bar, interruptible


def main(argv: Sequence[str] | None = None) -> None:
    """Exports a checkpoint. Exits with 2 after a user's mistake, with 130 when interrupted."""
    parser = JobParser("export-checkpoint", __doc__)
    parser.add_argument("--from", type=str, required=True, help="model folder")
    parser.add_argument("--to", type=str, required=True, help="new folder")
    parser.add_argument(
        "--layout",
        type=Literal["published", "transformers"],
        default=ExportSettings.layout,
        help="layout of the new folder: `published`, or `transformers` for one language model with its tokenizer",
    )
    add_only(parser, "parts to export")
    options = parser.parse(argv)
    with user_errors(ModelError, OSError), interruptible(), files_bar() as on_progress:
        settings = ExportSettings(layout=options.layout, only=tuple(options.only) if options.only else None)
        summary = export_checkpoint(options["from"], options.to, settings, on_progress)
    stdout = Console(highlight=False)
    for remark in summary.remarks:
        stdout.print(foreign(remark), soft_wrap=True)
    size = f"{summary.tensors:,} tensors, {summary.nbytes / 1e9:.3f} GB in {summary.folder}"
    stdout.print(foreign(size), soft_wrap=True)
    stdout.print(LICENCES, soft_wrap=True)


if __name__ == "__main__":
    main()

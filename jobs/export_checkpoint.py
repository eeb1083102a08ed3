"""Turn a model folder back into the published layout of `rain1011/Video-LaVIT-v1`, for code that reads that.

Tensors are copied bit for bit, a file at a time. Weights that were imported keep the licences of the published ones.
`video_3d_unet.bin` is not written: its tensors are those of `video_detokenizer/unet` in another arrangement.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from videolavit.models.checkpoint import new_folder, plan_export, selected_parts
from videolavit.models.network import ModelError

from .common import JobParser, user_errors
from .import_checkpoint import LICENCES, add_only, file_bar, interruptible, say


def main(argv: Sequence[str] | None = None) -> None:
    """Exports; exits with 2 on a user's mistake, with 130 when interrupted. Neither leaves a folder behind."""
    parser = JobParser("export-checkpoint", __doc__)
    parser.add_argument("--from", type=str, required=True, help="model folder")
    parser.add_argument("--to", type=str, required=True, help="new folder for the published layout")
    add_only(parser, "export these parts only")
    options = parser.parse(argv)
    with user_errors(ModelError, OSError):
        plan = plan_export(Path(options["from"]), selected_parts(options.only))
        with (
            interruptible(),
            new_folder(Path(options.to), plan.nbytes, say) as folder,
            file_bar("export", plan.nbytes) as on_write,
        ):
            plan.write(folder, on_write)
    stdout = Console(highlight=False)
    count = sum(len(tensors) for tensors in plan.weights.values())
    stdout.print(f"{count:,} tensors, {plan.nbytes / 1e9:.3f} GB in {options.to}", soft_wrap=True, markup=False)
    stdout.print(LICENCES, soft_wrap=True)


if __name__ == "__main__":
    main()

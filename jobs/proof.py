"""The proof that it learns: everything trained from nothing on a synthetic corpus, and measured on what was held out.

Renders captioned videos, decomposes them, trains all parts of the preset `tiny`, tokenizes, trains the language model
and tunes it on questions; then generates videos from combinations of colour, shape and direction that were not in the
training set, and lets the project's own decomposition say where they move. Two cores are enough. The same command
continues where the last one stopped.

With `--corpus` the same is trained on a folder of videos with captions, as a check of overfitting: the captions must
bring back their own videos.

With `--backbone` a language model that is on disk learns the tokens of the shipped model `shapes` instead: the proof
measures what it learns of videos, and what it forgets of plain English.
"""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pipelines.proof import (
    BackboneSizes,
    MemorySummary,
    ProofSizes,
    ProofSummary,
    memorise,
    prove,
    prove_backbone,
)
from pipelines.stages import StageFailed
from videolavit.records.files import InputError

from .common import INTERRUPTED, JobParser, console, foreign, pick, user_errors
from .progress import show_progress


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the proof; exits with 0 when every goal is reached, 1 when one is missed or a stage failed."""
    parser = JobParser("proof", __doc__)
    parser.add_argument("--output", type=str, default="proof-output", help="folder of the proof")
    parser.add_argument("--corpus", type=str | None, help="folder of videos with captions.jsonl: {video, caption}")
    parser.add_argument("--backbone", type=str | None, help="folder of a causal language model, or a GGUF file")
    parser.add_class_arguments(ProofSizes, "sizes")
    parser.add_class_arguments(BackboneSizes, "backbone_sizes")
    options = parser.parse(argv)
    with user_errors(ValueError):
        sizes, backbone_sizes = pick(ProofSizes, options.sizes), pick(BackboneSizes, options.backbone_sizes)
    proof: ProofSummary
    try:
        with user_errors(InputError), show_progress() as on_progress:
            if options.corpus:
                memory = memorise(
                    options.output, options.corpus, sizes.recipe, max_steps=sizes.max_steps, on_progress=on_progress
                )
            elif options.backbone:
                proof = prove_backbone(options.output, options.backbone, backbone_sizes, on_progress)
            else:
                proof = prove(options.output, sizes, on_progress)
    except StageFailed as error:
        console.print(foreign(error, "red"), soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues where it stopped")
        sys.exit(INTERRUPTED)
    if options.corpus:
        _print_memory(memory)
        return
    _print_proof(proof)
    sys.exit(0 if proof.is_reached else 1)


def _print_memory(summary: MemorySummary) -> None:
    comparison = summary.comparison
    table = Table("PSNR, dB", "caption", title=f"overfitting check, loss {comparison.loss:.3g}")
    for clip in comparison.clips:
        table.add_row(f"{clip.psnr:.1f}", foreign(clip.caption))
    table.add_section()
    table.add_row(f"{comparison.psnr:.1f}", "mean")
    Console(highlight=False).print(table)
    Console(highlight=False).print(foreign(summary.report), soft_wrap=True)


def _print_proof(summary: ProofSummary) -> None:
    table = Table("criterion", "reached", "goal", "", title=f"proof, {summary.total_minutes:.0f} minutes")
    for one in summary.criteria:
        mark = "[green]met[/]" if one.reached else "[red]missed[/]"
        table.add_row(one.name, f"{one.value:.3g}", one.goal, mark)
    Console(highlight=False).print(table)
    Console(highlight=False).print(foreign(summary.report), soft_wrap=True)


if __name__ == "__main__":
    main()

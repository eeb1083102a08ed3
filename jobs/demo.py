"""The demo: real footage and a synthetic captioned corpus, decomposed into clip shards; two parts of a model trained
on them for a minute; the clips tokenized, and one sent through its tokens and back; with a report to look at.

Files go to `demo-output/`. The same command continues where the last one stopped.
"""

import sys

from pipelines.demo import demonstrate
from pipelines.planning import PlanningIncomplete
from pipelines.run import RunIncomplete
from pipelines.train import TRAIN_ERRORS
from videolavit.media import MediaError

from .common import INTERRUPTED, console, foreign, user_errors
from .inspect import print_contents
from .progress import show_progress
from .reconstruct import print_reconstruction
from .runs import USER_ERRORS, print_run

OUTPUT = "demo-output"


def main() -> None:
    """Runs the demo; exits with 1 when work is left, with 2 on a user's mistake."""
    try:
        with user_errors(*USER_ERRORS, *TRAIN_ERRORS, MediaError, OSError), show_progress() as on_progress:
            summary = demonstrate(OUTPUT, on_progress=on_progress)
    except (PlanningIncomplete, RunIncomplete) as error:
        console.print(foreign(error), soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues where it stopped")
        sys.exit(INTERRUPTED)
    clips, tokens = summary.clips, summary.tokens
    print_run(clips)
    print_contents(summary.token_facts)
    print_reconstruction(summary.reconstruction, "a clip through its tokens and back")
    speed = clips.video_hours / clips.core_hours if clips.core_hours else 0.0
    print(f"clips   {clips.counts['clips']} of {clips.samples} videos in {clips.shards} shards: {clips.folder}/clips")
    print(f"tokens  {tokens.counts['clips']} clips in {tokens.shards} shards: {tokens.folder}/tokens")
    print(f"model   {summary.trainings[-1].model}")
    print(f"speed   {speed:.0f} video hours a core hour to clips; the demo took {summary.seconds:.0f} s")
    print(f"sheet   {summary.sheet}")
    print(f"report  {summary.report.resolve()}")


if __name__ == "__main__":
    main()

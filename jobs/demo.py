"""The demo: real and rendered videos to clips and tokens, and what a small trained model does with tokens: it rebuilds
videos, makes them from words, answers questions about them, and mixes them. It ends with a page to look at.

Files go to `demo-output/`. The same command continues where the last one stopped.
"""

import sys

from pipelines.demo import demonstrate, num_tokens
from pipelines.demo_page import NextCommand
from pipelines.headers import PlanningIncomplete
from pipelines.run import RunIncomplete
from videolavit.media import MediaError
from videolavit.models.network import ModelError

from .common import INTERRUPTED, console, foreign, user_errors
from .progress import show_progress
from .runs import USER_ERRORS

OUTPUT = "demo-output"
NEXT = (
    NextCommand("make serve", "Serves the model at http://127.0.0.1:8000: a page to try it, and the OpenAI API."),
    NextCommand(
        '.venv/bin/videolavit generate video --model shapes --prompt "a large red star moves left fast"',
        "Makes a video from your own words: a size, a colour, a form, a direction and a speed.",
    ),
    NextCommand(
        ".venv/bin/videolavit decompose --input FOLDER --output clips",
        "Takes your own videos apart: Parquet files that pandas and DuckDB read, and a report.",
    ),
)


def main() -> None:
    """Runs the demo; exits with 1 when work is left, with 2 on a user's mistake."""
    try:
        with user_errors(*USER_ERRORS, ModelError, MediaError, OSError), show_progress() as on_progress:
            summary = demonstrate(OUTPUT, commands=NEXT, on_progress=on_progress)
    except (PlanningIncomplete, RunIncomplete) as error:
        console.print(foreign(error), soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues where it stopped")
        sys.exit(INTERRUPTED)
    clips, tokens = summary.clips, summary.tokens
    print(f"clips   {clips.counts['clips']} of {clips.samples} videos, {clips.rejects} rejects: {clips.folder}")
    print(f"tokens  {num_tokens(tokens)} of {tokens.counts['clips']} clips: {tokens.folder}")
    print(f"videos  {summary.report.parent / 'videos'}")
    for one in summary.exhibits.asked:
        question, answer = one.answers[0]
        print(f"asked   {one.caption}: {question} {answer}")
    print(f"\nThe page, after {summary.seconds:.0f} s: {summary.report.resolve().as_uri()}\n\nTry next:")
    for command in NEXT:
        print(f"  {command.words}\n      {command.purpose}")


if __name__ == "__main__":
    main()

"""Train a component of the model: in one process on a laptop, or with FSDP on a cluster, with the same loop.

The output folder gets `model/` (a complete model with the trained parts, for every other command), `checkpoints/`,
`metrics.jsonl`, `tensorboard/` and `samples/`. The same command continues a run from its last checkpoint. SIGTERM and
the first Ctrl-C save after the step that runs, and end with the status 143 or 130; so does, with 143, Ray's notice that
it takes a node away.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from videolavit.records.storage import StorageSettings
from videolavit.training.components import COMPONENTS

from .common import INTERRUPTED, JobParser, add_storage_options, console, fail, foreign, pick, user_errors
from .models import MODEL_HELP
from .progress import show_message
from .stopping import SIGNALLED, StopSignals


def main(argv: Sequence[str] | None = None) -> None:
    """Trains; exits with 0 when the training is complete, 1 when it failed, 2 on a user's mistake, and with 128 and the
    number of a signal that stopped it."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name not in COMPONENTS:
        _show_usage(name)
    with console.status("loading torch"):  # torch and Ray Train take seconds
        from pipelines.train import TRAIN_ERRORS, ClusterSettings, TrainingFailed, train
        from videolavit.training.components import settings_type
        from videolavit.training.rejects import TooManyRejects
        from videolavit.training.settings import TrainInputs, TrainSettings
        from videolavit.training.trainer import Stopped
    kind: Any = settings_type(name)
    parser = JobParser(f"train {name}", __doc__)
    _add_options(parser, [kind, TrainSettings, ClusterSettings])
    add_storage_options(parser, with_tables=True)
    options = parser.parse(_with_recipe(name, words[1:]))
    for required in ("model", "input", "output"):
        if not options[required] and not (required == "model" and options.continue_from):
            fail(f"--{required} is missing; `videolavit train {name} --help` says what it is")
    with user_errors(ValueError):
        objective, settings, cluster = (
            pick(kind, options.objective),
            pick(TrainSettings, options),
            pick(ClusterSettings, options),
        )
        inputs = TrainInputs(
            train=options.input,
            weights=options.weights,
            validation=options.validation or [],
            seed=settings.seed,
            window=options.window,
            storage=pick(StorageSettings, options),
        )
    try:
        with StopSignals() as signals, user_errors(*TRAIN_ERRORS, OSError):
            summary = train(
                name,
                options.model,
                inputs,
                options.output,
                objective=objective,
                settings=settings,
                cluster=cluster,
                on_progress=show_message,
                should_stop=lambda: signals.received is not None,
            )
    except Stopped as error:
        console.print(foreign(f"{error}; the same command continues"), soft_wrap=True)
        sys.exit(SIGNALLED + (signals.received or signal.SIGTERM))  # Ray may have taken a node away
    except TooManyRejects as error:
        fail(error, status=1)
    except TrainingFailed as error:
        console.print("[red]the training failed:[/]", foreign(error, lines=True), soft_wrap=True)
        console.print("the same command continues from the last checkpoint")
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues from the last checkpoint")
        sys.exit(INTERRUPTED)
    Console(highlight=False).print(foreign(summary.model), soft_wrap=True)


# ---- options ------------------------------------------------------------------------------------------------------


def _show_usage(name: str) -> None:
    """Lists the components and exits."""
    from videolavit.training.recipes import recipe_names

    asked = name in ("-h", "--help")
    out = sys.stdout if asked else sys.stderr
    if not asked:
        print(f"videolavit train: there is no component {name!r}\n", file=out)
    print(
        "usage: videolavit train COMPONENT --model M --input RUN --output DIR [--config RECIPE] [options]\n", file=out
    )
    for component, (_, purpose) in COMPONENTS.items():
        print(f"  {component:<22} {purpose}", file=out)
    print(f"\nrecipes for --config: {', '.join(recipe_names())}, or a YAML file of options", file=out)
    print("`videolavit train COMPONENT --help` says more.", file=out)
    sys.exit(0 if asked else 2)


def _with_recipe(name: str, words: list[str]) -> list[str]:
    """Command line with the name of a recipe after --config replaced by its file."""
    from videolavit.training.recipes import UnknownRecipe, recipe_file, recipe_names

    result = list(words)
    for index, word in enumerate(words):
        option, _, value = word.partition("=")
        if option != "--config" or (not value and index + 1 == len(words)):
            continue
        chosen = value or words[index + 1]
        if chosen in recipe_names() and not Path(chosen).is_file():
            with user_errors(UnknownRecipe):
                file = recipe_file(chosen, name)
            result[index : index + 1 if value else index + 2] = [f"--config={file}"] if value else [word, str(file)]
    return result


def _add_options(parser: JobParser, kinds: list[Any]) -> None:
    parser.add_argument("--model", type=str | None, help=f"model that training starts from: {MODEL_HELP}")
    parser.add_argument(
        "--input",
        type=str,
        nargs="+",
        help="runs of `videolavit decompose` or `tokenize`, or corpora of pictures or chats; each is a source",
    )
    parser.add_argument("--weights", type=float, nargs="+", help="share of each input; default: its number of samples")
    parser.add_argument("--validation", type=str, nargs="+", help="held-out inputs")
    parser.add_argument("--window", type=int, default=16, help="shards of an input whose samples are mixed at a time")
    parser.add_argument(
        "--output",
        type=str | None,
        help="folder or s3:// prefix of the run; with workers, a folder that all nodes share, or a prefix",
    )
    objective, *others = kinds
    parser.add_class_arguments(objective, "objective")
    for kind in others:
        parser.add_class_arguments(kind, skip={"accept_changes", "trainable"})
    parser.add_argument(
        "--trainable",
        type=str,
        nargs="+",
        default=[],
        help="patterns of the names of the parameters that are trained, such as '*lm_head*'; by default those that the "
        "component trains",
    )
    parser.add_argument(
        "--accept_changes",
        type=str,
        nargs="+",
        default=[],
        help="names of changes, as the refusal of a resume shows them, with which the run continues all the same",
    )


if __name__ == "__main__":
    main()

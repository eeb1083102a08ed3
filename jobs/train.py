"""Train a component of the model: from one process on a laptop to FSDP on a cluster, with the same loop.

The output folder gets `model/` (a complete model with the trained parts, for every other command), `checkpoints/`,
`metrics.jsonl`, `tensorboard/` and `samples/`. The same command continues where the last one stopped.
"""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from videolavit.records.storage import StorageError, StorageSettings

from .common import INTERRUPTED, JobParser, console, fail, pick, ray_runtime, user_errors
from .models import MODEL_HELP

RECIPES = resources.files("videolavit.config").joinpath("training")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains; exits with 0 when the training is complete, 1 when it failed, 2 on a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = _component(words)
    with console.status("loading torch"):
        from pipelines.train import ClusterSettings, train_on_ray  # torch and Ray Train take seconds
        from videolavit.training.inputs import Inputs
        from videolavit.training.run import TrainTask, component_module
        from videolavit.training.settings import TrainSettings
    parser = JobParser(f"train {name}", __doc__)
    kinds = {"objective": component_module(name).Settings, "train": TrainSettings, "cluster": ClusterSettings}
    _add_options(parser, kinds)
    options = parser.parse(_with_recipe(name, words[1:]))
    with user_errors(ValueError):
        objective = pick(kinds["objective"], options.objective)
        train_settings, cluster = pick(TrainSettings, options), pick(ClusterSettings, options)
    for required in ("model", "input", "output"):
        if not options[required]:
            fail(f"--{required} is missing; `videolavit train {name} --help` says what it is")
    inputs = Inputs(
        train=options.input,
        weights=options.weights,
        validation=options.validation or [],
        seed=train_settings.seed,
        window=options.window,
        storage=pick(StorageSettings, options),
    )
    task = TrainTask(name, options.model, inputs, objective, train_settings, options.output)
    if cluster.workers:
        with user_errors(StorageError), ray_runtime(), _following(Path(task.output)):
            _on_ray(lambda: train_on_ray(task, cluster))
    else:
        _here(task)
    Console(highlight=False).print(str(Path(task.output) / "model"), soft_wrap=True)


def _here(task: Any) -> None:
    from pipelines.train import USER_MISTAKES
    from videolavit.training.parallel import Ranks
    from videolavit.training.run import train

    try:
        with user_errors(*USER_MISTAKES):
            train(task, Ranks.here(), line=lambda text: console.print(text, soft_wrap=True, markup=False))
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues from the last checkpoint")
        sys.exit(INTERRUPTED)


def _on_ray(run: Any) -> None:
    from pipelines.train import TrainingFailed, UserMistake

    try:
        with user_errors(UserMistake):
            run()
    except TrainingFailed as error:
        console.print(f"[red]the training failed:[/] {escape(str(error))}", soft_wrap=True)
        console.print("the same command continues from the last checkpoint")
        sys.exit(1)


@contextmanager
def _following(output: Path) -> Iterator[None]:
    """Shows the lines that the first worker writes."""
    from pipelines.train import LOG

    log, stop = output / LOG, threading.Event()
    start = log.stat().st_size if log.exists() else 0

    def follow() -> None:
        position = start
        while True:
            ending = stop.is_set()
            if log.exists():
                with log.open() as file:
                    file.seek(position)
                    for line in file:
                        console.print(line.rstrip("\n"), soft_wrap=True, markup=False)
                    position = file.tell()
            if ending:
                return
            time.sleep(0.5)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# ---- options ------------------------------------------------------------------------------------------------------


def _component(words: list[str]) -> str:
    from videolavit.training.components import COMPONENTS

    name = words[0] if words else "--help"
    if name in COMPONENTS:
        return name
    asked = name in ("-h", "--help")
    out = sys.stdout if asked else sys.stderr
    if not asked:
        print(f"videolavit train: there is no component {name!r}\n", file=out)
    print(
        "usage: videolavit train COMPONENT --model M --input RUN --output DIR [--config RECIPE] [options]\n", file=out
    )
    for component, purpose in COMPONENTS.items():
        print(f"  {component:<22} {purpose}", file=out)
    print(f"\nrecipes for --config: {', '.join(_recipes())}, or a YAML file of options", file=out)
    print("`videolavit train COMPONENT --help` says more.", file=out)
    sys.exit(0 if asked else 2)


def _recipes() -> list[str]:
    return sorted(folder.name for folder in RECIPES.iterdir() if folder.is_dir() and not folder.name.startswith("_"))


def _with_recipe(name: str, words: list[str]) -> list[str]:
    """The words with the name of a recipe behind --config replaced by its file."""
    result = list(words)
    for index, word in enumerate(words):
        option, _, value = word.partition("=")
        if option != "--config" or (not value and index + 1 == len(words)):
            continue
        place = index if value else index + 1
        chosen = value or words[place]
        if chosen in _recipes() and not Path(chosen).is_file():
            file = RECIPES / chosen / f"{name}.yaml"
            if not file.is_file():
                fail(f"the recipe {chosen} has no {name}")
            result[place] = f"--config={file}" if value else str(file)
    return result


def _add_options(parser: JobParser, kinds: dict[str, Any]) -> None:
    parser.add_argument("--model", type=str | None, help=f"what training starts from: {MODEL_HELP}")
    parser.add_argument(
        "--input",
        type=str,
        nargs="+",
        help="runs of `videolavit decompose` or `tokenize`, or corpora of pictures or chats; each is a source",
    )
    parser.add_argument("--weights", type=float, nargs="+", help="share of each input; default: its size")
    parser.add_argument("--validation", type=str, nargs="+", help="held-out inputs")
    parser.add_argument("--window", type=int, default=16, help="shards of an input whose samples are mixed at a time")
    parser.add_argument("--output", type=str | None, help="folder of the run; on a cluster, one that all nodes share")
    parser.add_class_arguments(kinds["objective"], "objective")
    parser.add_class_arguments(kinds["train"])
    parser.add_class_arguments(kinds["cluster"])
    parser.add_class_arguments(StorageSettings)


if __name__ == "__main__":
    main()

"""The proof that it learns: everything trained from nothing on a synthetic corpus, and measured on what was held out.

Renders captioned videos, decomposes them, trains all parts of the preset `tiny`, tokenizes, trains the language model
and tunes it on questions; then generates videos from combinations of colour, shape and direction that were not in the
training set, and lets the project's own decomposition say where they move. Two cores are enough. The same command
continues where the last one stopped.

With `--corpus` the same is trained on a folder of videos with captions, as a check of overfitting: the captions must
bring back their own videos.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from videolavit.files import write_beside
from videolavit.progress import Progress

from .common import JobParser, console, fail, pick

STAGES = "stages.json"
TICK = 10.0
"""Seconds between two notes of a running stage's time."""

ENVIRONMENT = {
    # two chains of stages share the cores, and networks this small gain nothing from more than one
    "OMP_NUM_THREADS": "1",
    # glibc hands what a step frees back to the kernel and asks for it again at the next, page by page
    "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
"""Environment variables of every stage."""


@dataclass(frozen=True)
class ProofSizes:
    """Sizes of the proof.

    Args:
        train_videos: Number of videos in the training corpus.
        held_out_videos: Number of videos with combinations that the training corpus does not have.
        prompts: Number of held-out captions that videos are generated from.
        recipe: Recipe of the trainings, in `config/training/`.
        shape_scale: Size of the shapes, relative to the default; see `videolavit synth --help`.
        speed: Speed of the fastest shapes, in shorter frame sides per second.
        background_contrast: Contrast of the background's texture, from 0 to 1.
        seed: Seed of the corpus.
    """

    train_videos: int = 3000
    held_out_videos: int = 200
    prompts: int = 100
    recipe: str = "tiny"
    shape_scale: float = 1.75
    speed: float = 0.09
    background_contrast: float = 0.1
    seed: int = 7


class Stages:
    """Runs the stages of the proof as processes of their own, each once; keeps when they ran, also in vain."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._lock = threading.Lock()
        file = output / STAGES
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        self._done: list[str] = found.get("done", [])
        self._times: dict[str, list[tuple[float, float]]] = {
            name: [(start, end) for start, end in spans] for name, spans in found.get("times", {}).items()
        }

    def run(self, name: str, job: str, *words: object) -> None:
        """Runs `python -m jobs.JOB WORDS`, unless the stage is done; ends the proof if it fails."""
        if name in self._done:
            console.print(f"{name}: done before")
            return
        console.print(f"{name} ...")
        log = self._output / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out, self.timed(name):
            command = [sys.executable, "-m", f"jobs.{job}", *map(str, words)]
            done = subprocess.run(command, stdout=out, stderr=out, env=os.environ | ENVIRONMENT)
            if done.returncode:
                tail = log.read_text(errors="replace").splitlines()[-5:]
                raise StageFailed(f"the stage {name} failed; {log} ends with:\n" + "\n".join(tail))

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A stage that is done when the body has ended without an error."""
        started = time.time()
        stop = threading.Event()
        clock = threading.Thread(target=self._tick, args=(name, started, stop), daemon=True)
        clock.start()
        done = False
        try:
            yield
            done = True
        finally:
            stop.set()
            clock.join()
            self._note(name, started, done)
        console.print(f"{name}: {self.minutes[name]:.1f} min")

    def _tick(self, name: str, started: float, stop: threading.Event) -> None:
        """Keeps the time of a stage, so that what is killed counts too."""
        self._note(name, started)
        while not stop.wait(TICK):
            self._note(name, started)

    def _note(self, name: str, started: float, done: bool = False) -> None:
        with self._lock:
            others = [span for span in self._times.get(name, []) if span[0] != started]
            self._times[name] = [*others, (started, time.time())]
            self._done += [name] if done else []
            with write_beside(self._output / STAGES) as (unfinished,):
                unfinished.write_text(json.dumps({"done": self._done, "times": self._times}, indent=2))

    @property
    def minutes(self) -> dict[str, float]:
        """Time of each stage, in minutes."""
        return {name: sum(end - start for start, end in spans) / 60 for name, spans in self._times.items()}

    @property
    def total(self) -> float:
        """Minutes in which there was a stage at work, or two."""
        seconds = until = 0.0
        for start, end in sorted(span for spans in self._times.values() for span in spans):
            seconds += max(end - max(start, until), 0.0)
            until = max(until, end)
        return seconds / 60


class StageFailed(RuntimeError):
    """A stage of the proof ended with an error."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the proof; exits with 0 when every number is reached, 1 when one is missed or a stage failed."""
    parser = JobParser("proof", __doc__)
    parser.add_argument("--output", type=str, default="proof-output", help="folder of the proof")
    parser.add_argument("--corpus", type=str | None, help="folder of videos with captions.jsonl: {video, caption}")
    parser.add_class_arguments(ProofSizes, "sizes")
    options = parser.parse(argv)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    sizes, stages = pick(ProofSizes, options.sizes), Stages(output)
    try:
        if options.corpus:
            _take_corpus(Path(options.corpus), output, stages)
        else:
            _make_corpus(output, sizes, stages)
        _train_model(output, sizes.recipe, stages)
    except StageFailed as error:
        console.print(str(error), style="red", soft_wrap=True, markup=False)
        sys.exit(1)
    if options.corpus:
        _compare(output)
        return
    from pipelines.proof_results import measure, write_report  # torch takes seconds

    with stages.timed("measuring"), console.status("measuring") as status:
        results = measure(output, sizes.prompts, lambda progress: status.update(_line(progress)))
    report = write_report(output, results, {"all": stages.total} | stages.minutes)
    _print(results, stages.total)
    Console(highlight=False).print(str(report), soft_wrap=True)
    sys.exit(0 if all(one["reached"] for one in results["criteria"]) else 1)


def _take_corpus(corpus: Path, output: Path, stages: Stages) -> None:
    captions = corpus / "captions.jsonl"
    if not captions.is_file():
        fail(f"{captions} is missing: a line for each video, as " + '{"video": "a.mp4", "caption": "a dog runs"}')
    clips, held_out = output / "train-clips", output / "held-out-clips"
    stages.run("decompose", "decompose", "--input", captions, "--text-column", "caption", "--output", clips)
    if not held_out.is_symlink():  # no held-out videos: the corpus is to be memorised
        held_out.symlink_to(clips.name)


def _compare(output: Path) -> None:
    from pipelines.proof_corpus import compare  # torch takes seconds

    results = compare(output)
    table = Table("PSNR, dB", "caption", title=f"overfitting check, loss {results['loss']:.3g}")
    for one in results["clips"]:
        table.add_row(f"{one['psnr']:.1f}", one["caption"])
    table.add_section()
    table.add_row(f"{results['psnr']:.1f}", "mean")
    Console(highlight=False).print(table)
    Console(highlight=False).print(str(output / "report.html"), soft_wrap=True)


def _make_corpus(output: Path, sizes: ProofSizes, stages: Stages) -> None:
    for number, (split, videos) in enumerate((("train", sizes.train_videos), ("held-out", sizes.held_out_videos))):
        corpus = output / split
        looks = {"width": 192, "height": 128, "fps": 6, "max-shapes": 1, "split": split, "seed": sizes.seed + number}
        looks |= {
            "shape-scale": sizes.shape_scale,
            "speed": sizes.speed,
            "background-contrast": sizes.background_contrast,
        }
        words = [word for name, value in looks.items() for word in (f"--{name}", str(value))]
        stages.run(f"corpus-{split}", "synth", "--output", corpus, "--videos", videos, "--questions", *words)
        stages.run(
            f"decompose-{split}",
            "decompose",
            *("--input", corpus / "manifest.jsonl", "--output", output / f"{split}-clips"),
        )


def _train_model(output: Path, recipe: str, stages: Stages) -> None:
    """Two chains side by side: pictures and then language, which needs both tokenizers; motion and videos."""

    def train(component: str, model: object, name: str | None = None, *words: object) -> Path:
        return _train(output, recipe, stages, component, model, name, *words)

    cache = ("--objective.cache", output / "cache")
    motion: Future[Path] = Future()
    video_vae: Future[Path] = Future()

    def pictures() -> Path:
        with _promised(video_vae):
            vae = train("vae", "tiny", "keyframe-vae", "--objective.part", "keyframe_detokenizer/vae")
            video_vae.set_result(_train(output, f"{recipe}-video", stages, "vae", vae, "video-vae"))
        tokenizer = train("visual-tokenizer", vae)
        keyframe = train("keyframe-detokenizer", tokenizer, None, *cache)
        _merge([motion.result(), keyframe], output / "tokenizers")
        return _train_language(output, recipe, stages)

    def videos() -> Path:
        with _promised(motion):
            motion.set_result(train("motion-tokenizer", "tiny"))
        parts = output / "video-parts"
        _merge([video_vae.result(), motion.result()], parts)
        return train("video-detokenizer", parts, None, *cache)

    with ThreadPoolExecutor(2) as chains:
        running = [chains.submit(videos), chains.submit(pictures)]
        models = [one.result() for one in running]
    _merge(models, output / "model")


@contextlib.contextmanager
def _promised(result: "Future[Path]") -> Iterator[None]:
    """Whoever waits for the result hears of it when the body fails."""
    try:
        yield
    except BaseException as error:
        result.set_exception(error)
        raise


def _merge(models: list[Path], target: Path) -> None:
    from videolavit.models.folder import ModelFolder
    from videolavit.training.run import merge_models

    if not target.exists():
        merge_models([ModelFolder(model) for model in models], target)


def _train_language(output: Path, recipe: str, stages: Stages) -> Path:
    model = output / "tokenizers"
    for split in ("train", "held-out"):
        stages.run(
            f"tokenize-{split}",
            "tokenize",
            *("--input", output / f"{split}-clips", "--output", output / f"{split}-tokens", "--model", model),
        )
    of_tokens = ("--input", output / "train-tokens", "--validation", output / "held-out-tokens")
    language = _train(output, recipe, stages, "language-model", model, None, *of_tokens)
    if not (output / "train" / "questions.jsonl").exists():
        return language
    of_chat = ("--input", output / "train" / "questions.jsonl", "--validation", output / "held-out" / "questions.jsonl")
    return _train(output, f"{recipe}-chat", stages, "language-model", language, "chat", *of_chat)


def _train(
    output: Path, recipe: str, stages: Stages, component: str, model: object, name: str | None, *words: object
) -> Path:
    folder = output / (name or component)
    clips = ("--input", output / "train-clips", "--validation", output / "held-out-clips")
    own = words if "--input" in words else (*clips, *words)
    common = ("--config", recipe, "--model", model, "--output", folder, *own)
    stages.run(name or component, "train", component, *common)
    return folder / "model"


def _line(progress: Progress) -> str:
    return progress.message or f"{progress.stage}: {progress.done:g} of {progress.total:g}"


def _print(results: dict[str, Any], minutes: float) -> None:
    table = Table("criterion", "reached", "goal", "", title=f"proof, {minutes:.0f} minutes")
    for one in results["criteria"]:
        mark = "[green]met[/]" if one["reached"] else "[red]missed[/]"
        table.add_row(one["name"], f"{one['value']:.3g}", one["goal"], mark)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()

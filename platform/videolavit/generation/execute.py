"""Execution of programs in this process: equal steps of several programs are one batch."""

from collections.abc import Callable, Sequence
from itertools import groupby

from videolavit.progress import OnProgress, Progress

from .detokenize import generate_clips, generate_keyframes, keyframe_size, video_size
from .program import STEP_KINDS, ClipCodes, CodesByClip, FramesStep, KeyframeStep, Program, Step, TokensRequest
from .prompts import Picture
from .runtime import Runtime
from .settings import GenerateSettings
from .token_generator import TokenGenerator, TokenGrammar

SIZE_OF = {KeyframeStep: keyframe_size, FramesStep: video_size}
GENERATE: dict[type[Step], Callable[..., Picture]] = {KeyframeStep: generate_keyframes, FramesStep: generate_clips}


def execute(
    runtime: Runtime, programs: Sequence[Program], settings: GenerateSettings, on_progress: OnProgress
) -> tuple[list[CodesByClip], dict[Step, Picture]]:
    """Returns the codes of each program, and the results of the steps of all of them.

    Raises:
        ValueError: a prompt or a size that the model cannot handle; then nothing was generated.
        ModelError: the model lacks a part.
    """
    for kind in {type(step) for program in programs for step in program.steps}:
        SIZE_OF[kind](runtime, settings)  # refuses an impossible size
    codes = _codes(runtime, programs, settings, on_progress)
    results: dict[Step, Picture] = {}
    work = [(step, own[step.clip]) for program, own in zip(programs, codes, strict=True) for step in program.steps]
    for _, equal in groupby(sorted(work, key=_place), _place):
        batch = list(equal)
        first, requests = batch[0][0], [step.request(own, results) for step, own in batch]
        stage = f"clip {first.clip + 1} {first.name}"

        def on_step(done: int, total: int, stage: str = stage) -> None:
            on_progress(Progress(stage, done, total))

        pixels = GENERATE[type(first)](runtime, requests, settings, on_step)
        results |= zip((step for step, _ in batch), pixels, strict=True)
    return codes, results


def _place(item: tuple[Step, ClipCodes]) -> tuple[int, int]:
    """Place of a step in the order of steps; those of several programs that have the same place are one batch."""
    return item[0].clip, STEP_KINDS.index(type(item[0]))


def _codes(
    runtime: Runtime, programs: Sequence[Program], settings: GenerateSettings, on_progress: OnProgress
) -> list[CodesByClip]:
    """Codes of each program, which the language model generates where they are not known."""
    requests = [program.codes for program in programs if isinstance(program.codes, TokensRequest)]
    generated: list[CodesByClip] = []
    if requests:
        with runtime.use("language_model") as language_model:
            grammar = TokenGrammar(runtime.model, runtime.model.text_tokenizer(), settings)
            generated = TokenGenerator(language_model, grammar).generate(requests, on_progress)
    return [generated.pop(0) if isinstance(one.codes, TokensRequest) else one.codes for one in programs]

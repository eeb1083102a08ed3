"""Calls of the deployments for a request, in sequence or in parallel; a cancelled request cancels its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import ray
from ray.serve.handle import DeploymentHandle

from videolavit.generation.detokenize import size_like
from videolavit.generation.program import (
    STEP_KINDS,
    ClipCodes,
    ClipRequest,
    CodesByClip,
    FramesStep,
    GeneratedVideo,
    KeyframeRequest,
    KeyframeStep,
    Program,
    Step,
    TokensRequest,
    picture_program,
    reconstruction_steps,
    video_program,
)
from videolavit.generation.prompts import EncodedPart, Picture
from videolavit.generation.settings import GenerateSettings
from videolavit.media import MediaError
from videolavit.models.folder import ModelFolder

from .batching import Finished, StepDone
from .failures import REPLICA_DIED
from .requests import Answer, AnswerRequest, EncodedClip, EncodedPicture, FrameFiles, PixelsRequest, Upload

OnShare = Callable[[float], None]
"""Receives the share of the work that is done, from 0 to 1."""

OnEvent = Callable[[str, StepDone | Finished[Picture]], None]
"""Receives the name of a deployment, and a step of a request to it or its result."""

MAX_PIXEL_RATIO = 2.0
"""Most pixels of a reconstruction, in multiples of the pixels of the videos that the model generates."""

LOAD_SECONDS = 2.0
"""Time that the replicas of the language model may take to tell their load, in seconds."""

RETRY_SECONDS = 0.5
"""Delay before a request of a replica that died is sent to another one, in seconds."""

SHARES = {"tokens": 0.1, "keyframe": 0.3, "frames": 0.6}
"""Shares of the work on a clip, estimated from the cost of the denoising steps."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Program that reconstructs a video.

    Args:
        program: Codes of the video, and the steps from them.
        size: Height and width of the result, in pixels.
        is_cut: True if the video goes on after the last clip.
    """

    program: Program
    size: tuple[int, int]
    is_cut: bool


class Graph:
    """Client of the deployments.

    Args:
        model: Model that they run; only its configuration is read.
    """

    def __init__(
        self,
        visual_tokenizer: DeploymentHandle,
        language_model: DeploymentHandle,
        keyframe_detokenizer: DeploymentHandle,
        video_detokenizer: DeploymentHandle,
        model: ModelFolder,
    ) -> None:
        self._visual_tokenizer, self._language_model = visual_tokenizer, language_model
        self._detokenizers: dict[type[Step], tuple[str, Any]] = {
            KeyframeStep: ("keyframe_detokenizer", keyframe_detokenizer.generate),
            FramesStep: ("video_detokenizer", video_detokenizer.generate),
        }
        self._model = model
        self.keyframe_size = model.sizes.keyframe_height, model.sizes.keyframe_width
        self.video_size = model.sizes.video_height, model.sizes.video_width
        self.on_step: OnEvent = lambda deployment, event: None

    async def encode_context(self, upload: Upload | FrameFiles, max_clips: int | None) -> ray.ObjectRef[object]:
        """Reference to the features of an image or a video for a chat. Raises MediaError."""
        return ray.put(await _call(self._visual_tokenizer.encode_context, upload, max_clips))

    async def answer(self, request: AnswerRequest) -> AsyncGenerator[Answer]:
        """Yields the answer of the language model, in parts if the request is for a stream."""
        if not request.stream:
            yield await _call(self._language_model.answer, request)
            return
        async with aclosing(_stream(self._language_model.stream_answer, request, repeatable=False)) as parts:
            async for part in parts:
                yield part

    async def language_model_load(self) -> tuple[int, int]:
        """Number of requests that the replicas of the language model run, and of those that wait there."""
        answers = self._language_model.broadcast("load")
        loads = await asyncio.to_thread(answers.results, timeout_s=LOAD_SECONDS)
        return sum(running for running, _ in loads), sum(waiting for _, waiting in loads)

    async def image(self, prompt: str, seed: int, size: tuple[int, int], settings: GenerateSettings) -> Picture:
        """Generates an image from a text."""
        program = picture_program([prompt], seed)
        _, results = await self._run(program, _sized(settings, size), lambda share: None)
        return results[program.steps[-1]]

    async def video_program(
        self, prompt: str, reference: bytes | None, seed: int, clips: int, settings: GenerateSettings
    ) -> Program:
        """Program of a video from a text, an image, or both. Raises MediaError for an invalid image."""
        parts: list[EncodedPart] = [prompt] if prompt else []
        picture = None
        if reference is not None:
            upload = Upload(ray.put(reference), "image")
            encoded: EncodedPicture = await _call(self._visual_tokenizer.encode_image, upload)
            parts.insert(0, encoded.codes)
            picture = encoded.picture
        return video_program(parts, seed, clips, settings.constraint, picture)

    async def reconstruction(self, data: bytes, seed: int, max_clips: int) -> Reconstruction:
        """Tokenizes a video. Raises MediaError for an invalid one."""
        upload = Upload(ray.put(data), "video")
        # one clip more tells whether the video goes on
        clips: list[EncodedClip] = await _call(self._visual_tokenizer.encode_video, upload, max_clips + 1)
        kept = clips[:max_clips]
        program = Program(
            {number: clip.codes for number, clip in enumerate(kept)},
            [step for number, clip in enumerate(kept) for step in reconstruction_steps(seed, number, clip.num_frames)],
        )
        return Reconstruction(program, self._size_like(kept[0]), len(clips) > max_clips)

    async def video(
        self, program: Program, size: tuple[int, int], settings: GenerateSettings, on_progress: OnShare
    ) -> GeneratedVideo:
        """Runs the program of a video.

        Args:
            size: Height and width, in pixels.
        """
        codes, results = await self._run(program, _sized(settings, self.keyframe_size, size), on_progress)
        return program.video(codes, results)

    def _size_like(self, clip: EncodedClip) -> tuple[int, int]:
        """Height and width of the reconstruction of a clip.

        Raises:
            MediaError: the aspect ratio would need many more pixels, since the sides have a minimum length.
        """
        high, wide = size_like(self._model, clip.height, clip.width)
        if high * wide > MAX_PIXEL_RATIO * self.video_size[0] * self.video_size[1]:
            raise MediaError(f"the aspect ratio of the video, {clip.width} x {clip.height}, is too extreme")
        return high, wide

    async def _run(
        self, program: Program, settings: GenerateSettings, on_progress: OnShare
    ) -> tuple[CodesByClip, dict[Step, Picture]]:
        """Runs a program: a task for each step waits for the codes of its clip and for the steps that it needs.

        A detokenizer works on one step of the program at a time, so that a long video leaves room for other requests.
        """
        loop = asyncio.get_running_loop()
        codes: dict[int, asyncio.Future[ClipCodes]] = {step.clip: loop.create_future() for step in program.steps}
        tasks: dict[Step, asyncio.Task[Picture]] = {}
        turns = {kind: asyncio.Lock() for kind in STEP_KINDS}
        progress = _Progress(program, on_progress)

        async def generate_codes(request: TokensRequest) -> None:
            clips = iter(codes.values())
            try:
                async with aclosing(_stream(self._language_model.generate_tokens, request, settings)) as events:
                    async for event in events:
                        if isinstance(event, ClipCodes):
                            next(clips).set_result(event)
                        else:
                            progress.report("tokens", event.done / event.total)
            finally:
                for missing in clips:  # so that no step waits for codes that never come
                    missing.cancel()

        async def generate(step: Step) -> Picture:
            results = {needed: await tasks[needed] for needed in step.needs}
            request = step.request(await codes[step.clip], results)
            async with turns[type(step)]:
                return await self._sample(type(step), request, settings, partial(progress.report, step))

        async with asyncio.TaskGroup() as group:
            if isinstance(program.codes, TokensRequest):
                group.create_task(generate_codes(program.codes))
            else:
                for clip, known in program.codes.items():
                    codes[clip].set_result(known)
            for step in program.steps:
                tasks[step] = group.create_task(generate(step))
        return (
            {clip: future.result() for clip, future in codes.items()},
            {step: task.result() for step, task in tasks.items()},
        )

    async def _sample(
        self, kind: type[Step], request: KeyframeRequest | ClipRequest, settings: GenerateSettings, on_progress: OnShare
    ) -> Picture:
        deployment, method = self._detokenizers[kind]
        async with aclosing(_stream(method, PixelsRequest(ray.put(request), settings))) as events:
            async for event in events:
                self.on_step(deployment, event)
                if isinstance(event, Finished):
                    pixels: Picture = event.value
                    return pixels
                on_progress(event.done / event.total)
        raise RuntimeError(f"{deployment} ended without a result")


def _sized(
    settings: GenerateSettings, keyframe: tuple[int, int], video: tuple[int, int] | None = None
) -> GenerateSettings:
    """Settings with the height and width of keyframes and of videos."""
    sized = replace(settings, height=keyframe[0], width=keyframe[1])
    return sized if video is None else replace(sized, video_height=video[0], video_width=video[1])


class _Progress:
    """Share of the work on a program that is done."""

    def __init__(self, program: Program, on_progress: OnShare) -> None:
        self._weights: dict[Step | Literal["tokens"], float] = {step: SHARES[step.name] for step in program.steps}
        if isinstance(program.codes, TokensRequest):
            self._weights["tokens"] = SHARES["tokens"] * max(program.codes.clips, 1)
        self._done = dict.fromkeys(self._weights, 0.0)
        self._on_progress = on_progress

    def report(self, part: Step | Literal["tokens"], share: float) -> None:
        """Sets the share of a part that is done, from 0 to 1."""
        self._done[part] = share
        done = sum(weight * self._done[part] for part, weight in self._weights.items())
        self._on_progress(done / sum(self._weights.values()))


async def _stream(method: Any, *arguments: object, repeatable: bool = True) -> AsyncGenerator[Any]:
    """Yields the results of a call; cancels the call when the caller stops reading.

    Results depend only on the request and its seed, so when a replica dies, another one repeats the request. Its steps
    are reported again; results that were yielded before are left out.

    Args:
        repeatable: False for text that may be cut elsewhere the second time: after a first result, the death of the
            replica is raised as an error.
    """
    yielded = 0
    for last_try in (False, True):
        response = method.options(stream=True).remote(*arguments)
        ended, number = False, 0
        try:
            async for event in response:
                number += not isinstance(event, StepDone)
                if number > yielded or isinstance(event, StepDone):
                    yielded = max(yielded, number)
                    yield event
            ended = True
            return
        except REPLICA_DIED:
            ended = True
            if last_try or (yielded and not repeatable):
                raise
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            if not ended:
                response.cancel()


async def _call(method: Any, *arguments: object) -> Any:
    """Result of a call, which is repeated once if its replica dies, and cancelled with the caller."""
    for last_try in (False, True):
        response = method.remote(*arguments)
        try:
            return await response
        except REPLICA_DIED:
            if last_try:
                raise
            await asyncio.sleep(RETRY_SECONDS)
        except asyncio.CancelledError:
            response.cancel()
            raise
    raise AssertionError("the second try returns or raises")

"""Calls of the deployments for a request, in sequence or in parallel; a cancelled request cancels its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import ray
from ray.serve.handle import DeploymentHandle

from videolavit.generation.prompts import Picture
from videolavit.generation.settings import GenerateSettings
from videolavit.media import MediaError
from videolavit.models.folder import ModelFolder

from .batching import Finished, StepDone
from .failures import REPLICA_DIED
from .requests import (
    Answer,
    AnswerRequest,
    ClipTokens,
    EncodedClip,
    EncodedPicture,
    RemoteClipRequest,
    RemoteKeyframeRequest,
    TokensRequest,
    Upload,
)

OnShare = Callable[[float], None]
"""Receives the share of the work that is done, from 0 to 1."""

OnEvent = Callable[[str, StepDone | Finished[Picture]], None]
"""Receives the name of a deployment, and a step of a request to it or its result."""

MAX_PIXEL_RATIO = 2.0
"""Most pixels of a reconstruction, in multiples of the pixels of the videos that the model generates."""

RETRY_SECONDS = 0.5
"""Delay before a request of a replica that died is sent to another one, in seconds."""

SHARES = {"tokens": 0.1, "keyframe": 0.3, "frames": 0.6}
"""Shares of the work on a clip, estimated from the cost of the denoising steps."""


@dataclass(frozen=True, eq=False)
class VideoResult:
    """Generated or reconstructed video.

    Args:
        frames: uint8 [time, height, width, 3].
        keyframes: Keyframe of each clip, uint8 [height, width, 3].
        tokens: Number of `visual` and `motion` tokens.
    """

    frames: Picture
    keyframes: list[Picture]
    tokens: dict[str, int]


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
        self._keyframe_detokenizer, self._video_detokenizer = keyframe_detokenizer, video_detokenizer
        self.keyframe_size = model.sizes.keyframe_height, model.sizes.keyframe_width
        self.video_size = model.sizes.video_height, model.sizes.video_width
        self._video_multiple = model.pixel_multiple("video_detokenizer")
        self.on_step: OnEvent = lambda deployment, event: None

    async def encode_context(self, data: bytes, kind: Literal["image", "video"]) -> ray.ObjectRef[object]:
        """Reference to the features of an image or a video for a chat. Raises MediaError."""
        return ray.put(await _call(self._visual_tokenizer.encode_context, Upload(ray.put(data), kind)))

    async def answer(self, request: AnswerRequest) -> AsyncGenerator[Answer]:
        """Yields the answer of the language model, in parts if the request is for a stream."""
        if not request.stream:
            yield await _call(self._language_model.answer, request)
            return
        async with aclosing(_stream(self._language_model.stream_answer, request, repeatable=False)) as parts:
            async for part in parts:
                yield part

    async def image(self, prompt: str, seed: int, size: tuple[int, int], settings: GenerateSettings) -> Picture:
        """Generates an image from a text."""
        request = TokensRequest((prompt,), seed, clips=0, first_given=False, settings=settings)
        events = _stream(self._language_model.generate_tokens, request)
        (tokens,) = [event async for event in events if isinstance(event, ClipTokens)]
        assert tokens.visual is not None
        keyframe = RemoteKeyframeRequest(tokens.visual, seed, 0, None, size, settings)
        return await self.keyframe(keyframe, lambda share: None)

    async def video(
        self,
        prompt: str,
        reference: bytes | None,
        seed: int,
        clips: int,
        size: tuple[int, int],
        settings: GenerateSettings,
        on_progress: OnShare,
    ) -> VideoResult:
        """Generates a video from a text, an image, or both. Raises MediaError for an invalid image."""
        given: EncodedPicture | None = None
        if reference is not None:
            upload = Upload(ray.put(reference), "image")
            given = await _call(self._visual_tokenizer.encode_image, upload)
        parts = tuple(part for part in (given.codes if given else None, prompt or None) if part is not None)
        request = TokensRequest(parts, seed, clips, given is not None, settings)
        progress = _Progress(clips, on_progress)
        tokens: list[asyncio.Future[ClipTokens]] = [asyncio.get_running_loop().create_future() for _ in range(clips)]
        task = _VideoTask(self, tokens, given, seed, size, settings, progress)

        async def generate_tokens() -> None:
            """Hands the tokens of each clip to the task as soon as they are generated."""
            clip = 0
            async with aclosing(_stream(self._language_model.generate_tokens, request)) as events:
                async for event in events:
                    if isinstance(event, ClipTokens):
                        tokens[clip].set_result(event)
                        clip += 1
                    else:
                        progress.tokens(event.done / event.total)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(generate_tokens())
            video = tasks.create_task(task.run())
        return video.result()

    async def reconstruct(
        self, data: bytes, seed: int, max_clips: int, settings: GenerateSettings, on_progress: OnShare
    ) -> VideoResult:
        """Tokenizes a video and reconstructs it from the tokens. Raises MediaError for an invalid video."""
        upload = Upload(ray.put(data), "video")
        encoded: list[EncodedClip] = await _call(self._visual_tokenizer.encode_video, upload, max_clips)
        progress = _Progress(len(encoded), on_progress)
        progress.tokens(1.0)
        size = self.size_like(encoded[0].height, encoded[0].width)
        settings = replace(settings, constraint="none")  # each keyframe is reconstructed from its own codes

        def start_keyframe(clip: int) -> asyncio.Task[Picture]:
            request = RemoteKeyframeRequest(encoded[clip].visual, seed, clip, None, self.keyframe_size, settings)
            return asyncio.create_task(self.keyframe(request, partial(progress.keyframe, clip)))

        keyframes: list[Picture] = []
        frames: list[Picture] = []
        next_keyframe = start_keyframe(0)
        try:
            for number, clip in enumerate(encoded):
                keyframes.append(await next_keyframe)
                if number + 1 < len(encoded):
                    next_keyframe = start_keyframe(number + 1)
                request = RemoteClipRequest(ray.put(keyframes[-1]), clip.motion, seed, number, size, settings)
                video = await self.clip(request, partial(progress.frames, number))
                frames.append(video[: clip.num_frames])
        finally:
            next_keyframe.cancel()
        return VideoResult(np.concatenate(frames), keyframes, _count_codes(encoded))

    def size_like(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of about as many pixels as the model's own videos, in the aspect ratio of another video.

        Raises:
            MediaError: the aspect ratio would need many more pixels, since the sides have a minimum length.
        """
        scale = (self.video_size[0] * self.video_size[1] / (height * width)) ** 0.5
        multiple = self._video_multiple
        high, wide = (max(round(side * scale / multiple), 1) * multiple for side in (height, width))
        if high * wide > MAX_PIXEL_RATIO * self.video_size[0] * self.video_size[1]:
            raise MediaError(f"the aspect ratio of the video, {width} x {height}, is too extreme")
        return high, wide

    async def keyframe(self, request: RemoteKeyframeRequest, on_progress: OnShare) -> Picture:
        """Generates a keyframe, uint8 [height, width, 3]."""
        return await self._sample("keyframe_detokenizer", self._keyframe_detokenizer.generate, request, on_progress)

    async def clip(self, request: RemoteClipRequest, on_progress: OnShare) -> Picture:
        """Generates the frames of a clip, uint8 [time, height, width, 3]."""
        return await self._sample("video_detokenizer", self._video_detokenizer.generate, request, on_progress)

    async def _sample(self, deployment: str, method: Any, request: object, on_progress: OnShare) -> Picture:
        async with aclosing(_stream(method, request)) as events:
            async for event in events:
                self.on_step(deployment, event)
                if isinstance(event, Finished):
                    frames: Picture = event.value
                    return frames
                on_progress(event.done / event.total)
        raise RuntimeError(f"{deployment} ended without a result")


@dataclass(frozen=True, eq=False)
class _VideoTask:
    """Generation of the keyframes and frames of a video while its tokens are generated.

    Args:
        tokens: Tokens of each clip.
        given: Image that is the first keyframe; None to generate it.
    """

    graph: Graph
    tokens: Sequence[asyncio.Future[ClipTokens]]
    given: EncodedPicture | None
    seed: int
    size: tuple[int, int]
    settings: GenerateSettings
    progress: _Progress

    async def run(self) -> VideoResult:
        """Generates all clips. Unless clips start from the clip before, the next keyframe is generated in parallel."""
        independent = self.settings.constraint == "none"
        keyframe_tasks = [asyncio.ensure_future(self._keyframe(0, None))]
        keyframes: list[Picture] = []
        frames: list[Picture] = []
        try:
            for clip, tokens in enumerate(self.tokens):
                if independent and clip + 1 < len(self.tokens):
                    keyframe_tasks.append(asyncio.ensure_future(self._keyframe(clip + 1, None)))
                keyframe = await keyframe_tasks[clip]
                motion = (await tokens).motion
                assert motion is not None
                request = RemoteClipRequest(ray.put(keyframe), motion, self.seed, clip, self.size, self.settings)
                video = await self.graph.clip(request, partial(self.progress.frames, clip))
                keyframes.append(keyframe)
                frames.append(video if clip == 0 else video[1:])
                if not independent and clip + 1 < len(self.tokens):
                    keyframe_tasks.append(asyncio.ensure_future(self._keyframe(clip + 1, video[-1])))
        finally:
            for task in keyframe_tasks:
                task.cancel()
        codes = _count_codes([tokens.result() for tokens in self.tokens])
        return VideoResult(np.concatenate(frames), keyframes, codes)

    async def _keyframe(self, clip: int, last_frame: Picture | None) -> Picture:
        """Keyframe of a clip: the given image for the first clip, or one generated from the tokens."""
        if clip == 0 and self.given is not None:
            self.progress.keyframe(0, 1.0)
            return self.given.picture
        codes = (await asyncio.shield(self.tokens[clip])).visual
        assert codes is not None
        previous = None if last_frame is None else ray.put(last_frame)
        request = RemoteKeyframeRequest(codes, self.seed, clip, previous, self.graph.keyframe_size, self.settings)
        return await self.graph.keyframe(request, partial(self.progress.keyframe, clip))


def _count_codes(clips: Sequence[ClipTokens | EncodedClip]) -> dict[str, int]:
    """Number of codes of a video by kind."""
    return {kind: sum(len(getattr(clip, kind) or ()) for clip in clips) for kind in ("visual", "motion")}


class _Progress:
    """Share of the work on a video that is done, from the steps of its clips."""

    def __init__(self, clips: int, on_progress: OnShare) -> None:
        self._tokens, self._keyframes, self._frames = 0.0, [0.0] * clips, [0.0] * clips
        self._on_progress = on_progress

    def tokens(self, share: float) -> None:
        self._tokens = share
        self._report()

    def keyframe(self, clip: int, share: float) -> None:
        self._keyframes[clip] = share
        self._report()

    def frames(self, clip: int, share: float) -> None:
        self._frames[clip] = share
        self._report()

    def _report(self) -> None:
        count = len(self._frames)
        keyframes, frames = sum(self._keyframes) / count, sum(self._frames) / count
        done = SHARES["tokens"] * self._tokens + SHARES["keyframe"] * keyframes + SHARES["frames"] * frames
        self._on_progress(done)


async def _stream(method: Any, request: object, repeatable: bool = True) -> AsyncGenerator[Any]:
    """Yields the results of a call; cancels the call when the caller stops reading.

    Results depend only on the request and its seed, so when a replica dies, another one repeats the request. Its steps
    are reported again; results that were yielded before are left out.

    Args:
        repeatable: False for text that may be cut elsewhere the second time: after a first result, the death of the
            replica is raised as an error.
    """
    yielded = 0
    for last_try in (False, True):
        response = method.options(stream=True).remote(request)
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

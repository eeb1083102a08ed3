"""What a request goes through: deployments, called in turn or side by side; a request that is given up stops them."""

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
from .failures import DIED
from .requests import (
    AnimateRequest,
    Answer,
    AnswerRequest,
    ClipTokens,
    EncodedClip,
    EncodedPicture,
    PaintRequest,
    TokensRequest,
    Upload,
)

OnProgress = Callable[[float], None]
"""Called with the share of the work that is done, 0 to 1."""

OnEvent = Callable[[str, StepDone | Finished[Picture]], None]
"""Called with the name of a deployment and a step of it, or its end."""

WIDEST = 2.0
"""A reconstruction has at most so many times the pixels of the model's own videos."""

RETRY_SECONDS = 0.5
"""Before an order of a replica that died is given to another."""

SHARES = {"tokens": 0.1, "keyframe": 0.3, "frames": 0.6}
"""Of a clip's work; about what its denoising steps cost."""


def _unheard(part: str, step: StepDone | Finished[Picture]) -> None:
    """A step that nobody listens to."""


@dataclass(frozen=True, eq=False)
class VideoResult:
    """A video.

    Args:
        frames: uint8 [time, height, width, 3].
        keyframes: One a clip.
        tokens: Ids, visual and motion, that it came through.
    """

    frames: Picture
    keyframes: list[Picture]
    tokens: dict[str, int]


class Graph:
    """The deployments as a client of them sees them.

    Args:
        model: What they run; its weights are not read.
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
        self.on_step: OnEvent = _unheard

    async def look(self, data: bytes, kind: Literal["image", "video"]) -> ray.ObjectRef[object]:
        """What a question can be about. Raises MediaError."""
        return ray.put(await _call(self._visual_tokenizer.look, Upload(ray.put(data), kind)))

    async def answer(self, order: AnswerRequest) -> AsyncGenerator[Answer]:
        """Yields an answer's pieces, or the whole."""
        if not order.in_pieces:
            yield await _call(self._language_model.whole_answer, order)
            return
        async with aclosing(_stream(self._language_model.answer, order, repeatable=False)) as pieces:
            async for piece in pieces:
                yield piece

    async def image(self, prompt: str, seed: int, size: tuple[int, int], settings: GenerateSettings) -> Picture:
        """A picture from a text."""
        order = TokensRequest((prompt,), seed, clips=0, first_given=False, settings=settings)
        written = [event async for event in _stream(self._language_model.write, order) if isinstance(event, ClipTokens)]
        codes = written[0].visual
        assert codes is not None
        return await self.paint(PaintRequest(codes, seed, 0, None, size, settings), lambda share: None)

    async def video(
        self,
        prompt: str,
        reference: bytes | None,
        seed: int,
        clips: int,
        size: tuple[int, int],
        settings: GenerateSettings,
        on_progress: OnProgress,
    ) -> VideoResult:
        """A video from a text, a picture, or both. Raises MediaError for a picture that is none."""
        given: EncodedPicture | None = None
        if reference is not None:
            upload = Upload(ray.put(reference), "image")
            given = await _call(self._visual_tokenizer.encode_picture, upload)
        parts = tuple(part for part in (given.codes if given else None, prompt or None) if part is not None)
        order = TokensRequest(parts, seed, clips, given is not None, settings)
        progress = _Progress(clips, on_progress)
        scripts: list[asyncio.Future[ClipTokens]] = [asyncio.get_running_loop().create_future() for _ in range(clips)]
        making = _VideoTask(self, scripts, given, seed, size, settings, progress)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(order, scripts, progress))
            made = tasks.create_task(making.clips())
        return made.result()

    async def _write(
        self, order: TokensRequest, scripts: list[asyncio.Future[ClipTokens]], progress: _Progress
    ) -> None:
        """Has all clips written; each is used as soon as it is there."""
        number = 0
        async with aclosing(_stream(self._language_model.write, order)) as events:
            async for event in events:
                if isinstance(event, ClipTokens):
                    scripts[number].set_result(event)
                    number += 1
                else:
                    progress.tokens(event.done / event.total)

    async def reconstruct(
        self, data: bytes, seed: int, max_clips: int, settings: GenerateSettings, on_progress: OnProgress
    ) -> VideoResult:
        """A video through its tokens and back. Raises MediaError."""
        upload = Upload(ray.put(data), "video")
        encoded: list[EncodedClip] = await _call(self._visual_tokenizer.encode_video, upload, max_clips)
        progress = _Progress(len(encoded), on_progress)
        progress.tokens(1.0)
        size = self.like(encoded[0].height, encoded[0].width)
        settings = replace(settings, constraint="none")  # each keyframe has its own codes to follow

        def painting(number: int) -> asyncio.Task[Picture]:
            order = PaintRequest(encoded[number].visual, seed, number, None, self.keyframe_size, settings)
            return asyncio.create_task(self.paint(order, partial(progress.keyframe, number)))

        keyframes: list[Picture] = []
        frames: list[Picture] = []
        ahead = painting(0)
        try:
            for number, clip in enumerate(encoded):
                keyframes.append(await ahead)
                if number + 1 < len(encoded):
                    ahead = painting(number + 1)
                order = AnimateRequest(ray.put(keyframes[-1]), clip.motion, seed, number, size, settings)
                video = await self.animate(order, partial(progress.frames, number))
                frames.append(video[: clip.num_frames])
        finally:
            ahead.cancel()
        return VideoResult(np.concatenate(frames), keyframes, _counted(encoded))

    def like(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of about the model's own number of pixels, in another aspect ratio.

        Raises:
            MediaError: of a shape that would need many more, since sides have a least length.
        """
        scale = (self.video_size[0] * self.video_size[1] / (height * width)) ** 0.5
        multiple = self._video_multiple
        high, wide = (max(round(side * scale / multiple), 1) * multiple for side in (height, width))
        if high * wide > WIDEST * self.video_size[0] * self.video_size[1]:
            raise MediaError(f"its picture, {width} x {height}, is too narrow")
        return high, wide

    async def paint(self, order: PaintRequest, on_share: OnProgress) -> Picture:
        """A keyframe."""
        picture: Picture = await self._sampled(
            "keyframe_detokenizer", self._keyframe_detokenizer.paint, order, on_share
        )
        return picture

    async def animate(self, order: AnimateRequest, on_share: OnProgress) -> Picture:
        """Frames of a clip."""
        frames: Picture = await self._sampled("video_detokenizer", self._video_detokenizer.animate, order, on_share)
        return frames

    async def _sampled(self, part: str, method: Any, order: object, on_share: OnProgress) -> Any:
        async with aclosing(_stream(method, order)) as events:
            async for event in events:
                self.on_step(part, event)
                if isinstance(event, Finished):
                    return event.value
                on_share(event.done / event.total)
        raise RuntimeError(f"{part} ended without a result")


@dataclass(frozen=True, eq=False)
class _VideoTask:
    """Keyframes and frames of a video, as its script comes."""

    graph: Graph
    scripts: Sequence[asyncio.Future[ClipTokens]]
    given: EncodedPicture | None
    seed: int
    size: tuple[int, int]
    settings: GenerateSettings
    progress: _Progress

    async def clips(self) -> VideoResult:
        """All clips; unless a clip starts from the one before, its keyframe is painted while that one is made."""
        alone = self.settings.constraint == "none"
        ahead = [asyncio.ensure_future(self._keyframe(0, None))]
        keyframes: list[Picture] = []
        frames: list[Picture] = []
        try:
            for clip, script in enumerate(self.scripts):
                if alone and clip + 1 < len(self.scripts):
                    ahead.append(asyncio.ensure_future(self._keyframe(clip + 1, None)))
                keyframe = await ahead[clip]
                motion = (await script).motion
                assert motion is not None
                order = AnimateRequest(ray.put(keyframe), motion, self.seed, clip, self.size, self.settings)
                video = await self.graph.animate(order, partial(self.progress.frames, clip))
                keyframes.append(keyframe)
                frames.append(video if clip == 0 else video[1:])
                if not alone and clip + 1 < len(self.scripts):
                    ahead.append(asyncio.ensure_future(self._keyframe(clip + 1, video[-1])))
        finally:
            for task in ahead:
                task.cancel()
        tokens = _counted([script.result() for script in self.scripts])
        return VideoResult(np.concatenate(frames), keyframes, tokens)

    async def _keyframe(self, clip: int, last: Picture | None) -> Picture:
        """The given picture for the first clip, or one painted from the script."""
        if clip == 0 and self.given is not None:
            self.progress.keyframe(0, 1.0)
            return self.given.picture
        codes = (await asyncio.shield(self.scripts[clip])).visual
        assert codes is not None
        before = None if last is None else ray.put(last)
        order = PaintRequest(codes, self.seed, clip, before, self.graph.keyframe_size, self.settings)
        return await self.graph.paint(order, partial(self.progress.keyframe, clip))


def _counted(clips: Sequence[ClipTokens | EncodedClip]) -> dict[str, int]:
    """Codes of a video by kind."""
    return {kind: sum(len(getattr(clip, kind) or ()) for clip in clips) for kind in ("visual", "motion")}


class _Progress:
    """The share of a video's work that is done, out of the steps that were made."""

    def __init__(self, clips: int, on_progress: OnProgress) -> None:
        self._tokens, self._keyframes, self._frames = 0.0, [0.0] * clips, [0.0] * clips
        self._on_progress = on_progress

    def tokens(self, share: float) -> None:
        self._tokens = share
        self._tell()

    def keyframe(self, clip: int, share: float) -> None:
        self._keyframes[clip] = share
        self._tell()

    def frames(self, clip: int, share: float) -> None:
        self._frames[clip] = share
        self._tell()

    def _tell(self) -> None:
        count = len(self._frames)
        keyframes, frames = sum(self._keyframes) / count, sum(self._frames) / count
        done = SHARES["tokens"] * self._tokens + SHARES["keyframe"] * keyframes + SHARES["frames"] * frames
        self._on_progress(done)


async def _stream(method: Any, order: object, repeatable: bool = True) -> AsyncGenerator[Any]:
    """What a deployment yields. Whoever stops listening, stops it.

    Everything follows from an order and its seed; so when a replica dies, another one does it again. Its steps are told
    again, and results that were yielded before are left out.

    Args:
        repeatable: False for results in pieces, which may be cut elsewhere the second time: once there was one, the
            death of the replica is an error.
    """
    yielded = 0
    for last_try in (False, True):
        response = method.options(stream=True).remote(order)
        ended, number = False, 0
        try:
            async for event in response:
                number += not isinstance(event, StepDone)
                if number > yielded or isinstance(event, StepDone):
                    yielded = max(yielded, number)
                    yield event
            ended = True
            return
        except DIED:
            ended = True
            if last_try or (yielded and not repeatable):
                raise
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            if not ended:
                response.cancel()


async def _call(method: Any, *arguments: object) -> Any:
    """What a deployment answers; as `_stream`."""
    for last_try in (False, True):
        response = method.remote(*arguments)
        try:
            return await response
        except DIED:
            if last_try:
                raise
            await asyncio.sleep(RETRY_SECONDS)
        except asyncio.CancelledError:
            response.cancel()
            raise
    raise AssertionError("the second try returns or raises")

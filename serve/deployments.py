"""The parts of the model, each in processes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
import torch

from videolavit.generation.decoding import Sampling, TokenPolicy, embed_prompts
from videolavit.generation.describe import (
    TextStream,
    VisualContext,
    answer_policy,
    embed_chat_prompt,
    encode_visual_context,
)
from videolavit.generation.detokenize import ClipRequest, KeyframeRequest, generate_clips, generate_keyframes
from videolavit.generation.engine import Engine, EngineRequest
from videolavit.generation.prompts import Picture, Prompt, encode_pictures, prompt_ids
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import generator
from videolavit.generation.token_generator import GeneratedTokens, TokenGenerator, TokenSpan
from videolavit.isolation import Arguments, IsolatedFunction, ProcessDied, Result, TimeLimitExceeded
from videolavit.media import Clip, MediaError
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model import VisualPrompts
from videolavit.models.sampling import OnStep

from .batching import Finished, StepBatcher, StepDone
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
from .settings import ServeSettings
from .uploads import read_clips, read_image

T = TypeVar("T")

CHILDREN = 2
"""Uploads that are decoded at once."""

PIECE_SECONDS, LONGEST_PIECE = 0.02, 0.2
"""Between two pieces of an answer that is written alone, and of one among many: each piece costs this
process a millisecond and more."""

STEP_SECONDS = 0.1
"""Between two looks at what nobody reads along."""


class VisualTokenizer:
    """Uploads to codes and features: guarded decoding, then both tokenizers."""

    def __init__(self, settings: ServeSettings) -> None:
        self._limits = settings.limits
        self._runtime = Runtime(ModelFolder(settings.model), settings.runtime)
        runtime, model = self._runtime, self._runtime.model
        for unit in ("visual_tokenizer", "motion_tokenizer"):
            runtime.loaded(unit)
        self._eyes = [
            model.load(f"understanding/{part}", runtime.device, runtime.dtype)
            for part in ("visual_tokenizer", "motion_tokenizer")
            if model.has(f"understanding/{part}")
        ]
        # a request that is given up does not stop its thread: what it uses is free when the thread is done
        self._networks, self._decoding = ThreadPoolExecutor(1), ThreadPoolExecutor(CHILDREN)
        self._image_readers, self._clip_readers = _isolated(read_image), _isolated(read_clips)

    async def look(self, upload: Upload) -> VisualContext:
        """What a question can be about. Raises MediaError."""
        about: Picture | list[Clip]
        about = await self._picture(upload) if upload.kind == "image" else await self._clips(upload, "eval", None)
        visual, motion = self._eyes
        sight = await self._run(self._networks, encode_visual_context, visual, motion, about)
        assert sight is not None
        return sight.cpu()

    async def encode_picture(self, upload: Upload) -> EncodedPicture:
        """A picture for a prompt. Raises MediaError."""
        picture = await self._picture(upload)
        (codes,) = await self._encode([picture])
        return EncodedPicture(picture, codes)

    async def encode_video(self, upload: Upload, max_clips: int) -> list[EncodedClip]:
        """The codes of a video's clips. Raises MediaError."""
        clips = await self._clips(upload, "corpus", max_clips)
        visual = await self._encode([clip.keyframe for clip in clips])
        motion = await self._encode_motion(clips)
        return [
            EncodedClip(keyframe, moving, clip.num_frames, clip.height, clip.width)
            for clip, keyframe, moving in zip(clips, visual, motion, strict=True)
        ]

    async def _encode(self, pictures: Sequence[Picture]) -> list[list[int]]:
        return await self._run(self._networks, encode_pictures, pictures, self._runtime.loaded("visual_tokenizer"))

    async def _encode_motion(self, clips: Sequence[Clip]) -> list[list[int]]:
        tokenizer = self._runtime.loaded("motion_tokenizer")

        @torch.inference_mode()
        def encode() -> list[list[int]]:
            features = torch.from_numpy(np.stack([clip.features(tokenizer.config.grid) for clip in clips]))
            codes: list[list[int]] = tokenizer.encode(features.to(self._runtime.device, self._runtime.dtype)).tolist()
            return codes

        return await self._run(self._networks, encode)

    async def _picture(self, upload: Upload) -> Picture:
        return await self._decode(self._image_readers, await upload.data, self._limits.input_pixels)

    async def _clips(self, upload: Upload, policy: str, max_clips: int | None) -> list[Clip]:
        limits = self._limits
        arguments = await upload.data, policy, max_clips, limits.input_seconds, limits.input_pixels
        clips = await self._decode(self._clip_readers, *arguments)
        if not clips:
            raise MediaError("the video has no clip")
        return clips

    async def _decode(
        self, readers: queue.SimpleQueue[IsolatedFunction[*Arguments, Result]], *arguments: *Arguments
    ) -> Result:
        limit = self._limits.decode_seconds

        def call() -> Result:
            reader = readers.get()
            try:
                return reader(*arguments, time_limit=limit)
            finally:
                readers.put(reader)

        try:
            return await self._run(self._decoding, call)
        except TimeLimitExceeded:
            raise MediaError(f"its decoding took longer than {limit:g} s") from None
        except ProcessDied as error:
            raise MediaError(f"it cannot be decoded: {error}") from None

    async def _run(self, threads: ThreadPoolExecutor, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, call, *arguments)


def _isolated(
    function: Callable[[*Arguments], Result],
) -> queue.SimpleQueue[IsolatedFunction[*Arguments, Result]]:
    """A queue of `CHILDREN` processes that call a function."""
    processes: queue.SimpleQueue[IsolatedFunction[*Arguments, Result]] = queue.SimpleQueue()
    for _ in range(CHILDREN):
        processes.put(IsolatedFunction(function))
    return processes


class LanguageModel:
    """Text and codes, token by token; requests join and leave the batch between two tokens."""

    def __init__(self, settings: ServeSettings) -> None:
        runtime = Runtime(ModelFolder(settings.model), settings.runtime)
        self._model, batch = runtime.model, settings.language_model.together
        self._writer_model = runtime.loaded("language_model")
        self._writing = Engine(self._writer_model, max(2, batch))
        self._text = self._model.text_tokenizer()
        self._speaker: VisualPrompts | None = None
        if self._model.has("understanding/language_model"):
            loaded = runtime.loaded("understanding/language_model")
            self._speaker = VisualPrompts(loaded, self._model.vocabulary)
            self._spoken = self._model.text_tokenizer("understanding/language_model")
            self._speaking = Engine(loaded, max(2, batch), settings.language_model.prefix_tokens)

    async def whole_answer(self, order: AnswerRequest) -> Answer:
        """An answer in one piece: one message instead of a stream of them. Raises PromptTooLong."""
        async with aclosing(self.answer(order)) as pieces:
            return await anext(pieces)

    async def answer(self, order: AnswerRequest) -> AsyncGenerator[Answer]:
        """Yields an answer's text as it is made, or in one piece. Raises PromptTooLong."""
        assert self._speaker is not None
        settings = order.settings
        sight = None if order.sight is None else await order.sight
        prompt = await asyncio.to_thread(
            embed_chat_prompt, self._speaker, self._spoken, order.turns, order.question, sight, settings.max_tokens
        )
        ids = _Ids()
        policy, draws = answer_policy(self._speaker, settings), generator(settings.seed, "answer")
        passage = ids.passage(prompt, policy, settings.sampling(), draws, None, order.owner)
        stream, pending, ended = TextStream(self._spoken, order.stops), "", False
        pace = PIECE_SECONDS if order.in_pieces else STEP_SECONDS
        try:
            self._speaking.submit(passage)
            while not stream.stopped and not ended:
                written, ended = await ids.read(pace)
                pending += stream.push(written)
                if pending and order.in_pieces and not stream.stopped and not ended:
                    yield Answer(pending, len(prompt), stream.count)
                    pending, pace = "", min(PIECE_SECONDS * max(1, self._speaking.load[0]), LONGEST_PIECE)
        finally:
            passage.cancelled.set()
        ended_by_length = not stream.stopped and stream.count >= settings.max_tokens
        pending += stream.finish()
        yield Answer(pending, len(prompt), stream.count, "length" if ended_by_length else "stop")

    async def write(self, order: TokensRequest) -> AsyncGenerator[StepDone | ClipTokens]:
        """Yields the ids written so far, and the codes of each clip as it is complete. Raises PromptTooLong."""
        model, settings = self._model, order.settings
        limits = settings.visual_limits(model.num_patches)
        writer = TokenGenerator(self._writer_model, model.vocabulary, model.motion_tokens, limits, settings)
        pictures = [part for part in order.parts if not isinstance(part, str)]
        blank = np.zeros((1, 1, 3), np.uint8)  # stands where a picture's codes go
        parts = tuple(part if isinstance(part, str) else blank for part in order.parts)
        ids = prompt_ids(Prompt(parts, order.seed), pictures, self._text, model.vocabulary, markers=order.clips > 0)
        script = GeneratedTokens(ids, generator(order.seed, "tokens"))
        writer.check_length([script], [max(order.clips, 1) - order.first_given], order.clips)
        total = max(order.clips, 1) * limits[1] + order.clips * model.motion_tokens
        done = 0
        guidance = settings.mixed_guidance if pictures and not order.clips else settings.visual_guidance
        for clip in range(max(order.clips, 1)):
            given = clip == 0 and order.first_given
            segments: list[tuple[TokenSpan, bool]] = [] if given else [(writer.picture_span(guidance), False)]
            segments += [(writer.motion_span(given), True)] if order.clips else []
            rows: dict[bool, list[int]] = {}
            for segment, is_motion in segments:
                codes: list[int] = []
                async with aclosing(self._segment(script, segment)) as growing:
                    async for codes in growing:
                        yield StepDone(min(done + len(codes), total), total, 1, 0.0)
                rows[is_motion] = codes
                done += len(codes)
            yield ClipTokens(rows.get(False), rows.get(True))

    async def _segment(self, script: GeneratedTokens, segment: TokenSpan) -> AsyncGenerator[list[int]]:
        """Writes a segment behind a script; yields its codes so far."""
        script.ids.append(segment.start)
        with torch.inference_mode():
            prompt = embed_prompts(self._writer_model, [script.ids]).embeds[0]
        ids = _Ids()
        passage = ids.passage(prompt, segment.policy, segment.sampling, script.generator, segment.guidance)
        row: list[int] = []
        ended = False
        try:
            self._writing.submit(passage)
            while not ended:
                written, ended = await ids.read(STEP_SECONDS)
                row += written
                yield segment.codes(row)
        finally:
            passage.cancelled.set()
        script.ids += [*row, segment.policy.end]


class _Ids:
    """What an engine's thread writes, for the running loop.

    That thread is not to be held up: it wakes the loop for the first id of a batch of them, not for each.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._last = 0.0
        self._ids: deque[int] = deque()
        self._news, self._end = asyncio.Event(), asyncio.Event()
        self._told = False
        self._error: BaseException | None = None

    def passage(
        self,
        prompt: torch.Tensor,
        policy: TokenPolicy,
        sampling: Sampling,
        draws: torch.Generator,
        guidance: float | None,
        owner: str = "",
    ) -> EngineRequest:
        """A passage that is written to here."""
        return EngineRequest(prompt, policy, sampling, draws, guidance, self._on_id, self._on_end, owner)

    async def read(self, pace: float) -> tuple[list[int], bool]:
        """The next ids, so many seconds after those before, and whether they are the last. Raises what went wrong."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._last + pace):
                await self._end.wait()
        await self._news.wait()
        self._last = self._loop.time()
        self._news.clear()
        self._told, ended = False, self._end.is_set()  # before looking: what comes meanwhile wakes again
        ids = [self._ids.popleft() for _ in range(len(self._ids))]
        if self._error is not None:
            raise self._error
        return ids, ended

    def _on_id(self, token: int) -> None:
        self._ids.append(token)
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._news.set)

    def _on_end(self, error: BaseException | None) -> None:
        self._error = error
        self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        self._end.set()
        self._news.set()


class KeyframeDetokenizer:
    """Visual codes to pictures."""

    def __init__(self, settings: ServeSettings) -> None:
        self._runtime = Runtime(ModelFolder(settings.model), settings.runtime)
        self._runtime.loaded("keyframe_detokenizer")
        self._batcher = StepBatcher[tuple[PaintRequest, Picture | None], Picture](
            self._paint, _paint_shape, settings.keyframe_detokenizer.together, settings.batch_wait
        )

    async def paint(self, order: PaintRequest) -> AsyncGenerator[StepDone | Finished[Picture]]:
        """Yields the steps, and at last the picture."""
        last = None if order.last is None else await order.last
        async with aclosing(self._batcher.run((order, last))) as events:
            async for event in events:
                yield event

    def _paint(self, orders: list[tuple[PaintRequest, Picture | None]], on_step: OnStep) -> Sequence[Picture]:
        size, settings = orders[0][0].size, orders[0][0].settings
        keyframes = [KeyframeRequest(order.codes, order.seed, order.clip, last) for order, last in orders]
        return list(generate_keyframes(self._runtime, keyframes, size, settings, on_step))


def _paint_shape(order: tuple[PaintRequest, Picture | None]) -> object:
    return order[0].size, order[0].settings, order[1] is None


class VideoDetokenizer:
    """Keyframes and motion codes to frames."""

    def __init__(self, settings: ServeSettings) -> None:
        self._runtime = Runtime(ModelFolder(settings.model), settings.runtime)
        for unit in ("video_detokenizer", "motion_tokenizer"):
            self._runtime.loaded(unit)
        self._batcher = StepBatcher[tuple[AnimateRequest, Picture], Picture](
            self._animate, _animate_shape, settings.video_detokenizer.together, settings.batch_wait
        )

    async def animate(self, order: AnimateRequest) -> AsyncGenerator[StepDone | Finished[Picture]]:
        """Yields the steps, and at last the frames."""
        async with aclosing(self._batcher.run((order, await order.keyframe))) as events:
            async for event in events:
                yield event

    def _animate(self, orders: list[tuple[AnimateRequest, Picture]], on_step: OnStep) -> Sequence[Picture]:
        size, settings = orders[0][0].size, orders[0][0].settings
        clips = [ClipRequest(keyframe, order.motion, order.seed, order.clip) for order, keyframe in orders]
        return list(generate_clips(self._runtime, clips, size, settings, on_step))


def _animate_shape(order: tuple[AnimateRequest, Picture]) -> object:
    return order[0].size, order[0].settings

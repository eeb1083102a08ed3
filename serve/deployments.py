"""Deployments: the networks of the model, each in replicas of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, Literal, TypeVar

import torch

from videolavit.generation.decoding import embed_prompts
from videolavit.generation.describe import (
    TextStream,
    VisualContext,
    answer_length,
    answer_policy,
    embed_chat_prompt,
    encode_visual_context,
)
from videolavit.generation.detokenize import generate_clips, generate_keyframes
from videolavit.generation.engine import Engine, EngineRequest
from videolavit.generation.program import ClipCodes, ClipRequest, KeyframeRequest, TokensRequest
from videolavit.generation.prompts import Picture, encode_motion, encode_pictures
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings, generator
from videolavit.generation.token_generator import TokenGrammar, TokenSequence, TokenSpan
from videolavit.media import Clip, MediaError
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model import VisualPrompts
from videolavit.models.sampling import OnStep
from videolavit.sandbox.call import Arguments, IsolatedFunction, Result
from videolavit.sandbox.errors import CallFailed, TimeLimitExceeded
from videolavit.sandbox.pool import ChildPool

from .batching import Finished, StepBatcher, StepDone
from .requests import (
    Answer,
    AnswerRequest,
    EncodedClip,
    EncodedContent,
    EncodedPicture,
    FrameFiles,
    PixelsRequest,
    TokenTimes,
    Upload,
)
from .settings import ServeSettings
from .uploads import read_frames, read_image, read_upload_clips

T = TypeVar("T")

DECODER_PROCESSES = 3
"""Number of uploads that a replica decodes at once; those of one key may take all but one of the places."""

PART_SECONDS, LONGEST_PART_SECONDS = 0.02, 0.2
"""Time between two parts of a streamed answer, in seconds: where it is the only one, and at most. Each part takes a
millisecond or more of the replica's time."""

STEP_SECONDS = 0.1
"""Time between two reads of tokens that are not streamed, in seconds."""


class VisualTokenizerDeployment:
    """Decodes uploads in child processes, and encodes them with both tokenizers."""

    def __init__(self, settings: ServeSettings) -> None:
        self._limits = settings.limits
        self._runtime = Runtime(ModelFolder(settings.model), settings.runtime)
        runtime, model = self._runtime, self._runtime.model
        for component in ("visual_tokenizer", "motion_tokenizer"):
            runtime.loaded(component)
        self._context_encoders = [
            model.load(f"understanding/{component}", runtime.device, runtime.dtype)
            for component in ("visual_tokenizer", "motion_tokenizer")
            if model.has(f"understanding/{component}")
        ]
        # a cancelled request does not stop its thread, whose network is free when the thread ends
        self._networks, self._decoding = ThreadPoolExecutor(1), ThreadPoolExecutor(DECODER_PROCESSES)
        self._read_image, self._read_clips = _in_children(read_image), _in_children(read_upload_clips)
        self._read_frames = _in_children(read_frames)
        places = DECODER_PROCESSES if settings.keys is None else DECODER_PROCESSES - 1
        self._places = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(places))

    async def encode_context(self, upload: Upload | FrameFiles, max_clips: int | None) -> VisualContext:
        """Features of an image or a video for a chat. Raises MediaError."""
        media: Picture | list[Clip]
        if isinstance(upload, FrameFiles):
            limits = self._limits
            arguments = await upload.files, upload.fps, limits.input_seconds, limits.input_pixels
            media = await self._decode(self._read_frames, upload.owner, *arguments)
        elif upload.kind == "image":
            media = await self._picture(upload)
        else:
            media = await self._clips(upload, "eval", max_clips)
        visual, motion = self._context_encoders
        context = await self._run(self._networks, encode_visual_context, visual, motion, media)
        return context.cpu()

    async def encode_image(self, upload: Upload) -> EncodedPicture:
        """Visual codes of an image, for a prompt. Raises MediaError."""
        picture = await self._picture(upload)
        (codes,) = await self._encode_keyframes([picture])
        return EncodedPicture(picture, codes)

    async def encode_video(self, upload: Upload, max_clips: int) -> list[EncodedClip]:
        """Visual and motion codes of the clips of a video. Raises MediaError."""
        clips = await self._clips(upload, "corpus", max_clips)
        visual = await self._encode_keyframes([clip.keyframe for clip in clips])
        motion = await self._run(self._networks, encode_motion, clips, self._runtime.loaded("motion_tokenizer"))
        return [
            EncodedClip(ClipCodes(*codes), clip.num_frames, clip.height, clip.width)
            for clip, *codes in zip(clips, visual, motion, strict=True)
        ]

    async def _encode_keyframes(self, pictures: Sequence[Picture]) -> list[list[int]]:
        return await self._run(self._networks, encode_pictures, pictures, self._runtime.loaded("visual_tokenizer"))

    async def _picture(self, upload: Upload) -> Picture:
        return await self._decode(self._read_image, upload.owner, await upload.data, self._limits.input_pixels)

    async def _clips(self, upload: Upload, policy: str, max_clips: int | None) -> list[Clip]:
        limits = self._limits
        arguments = await upload.data, policy, max_clips, limits.input_seconds, limits.input_pixels
        clips = await self._decode(self._read_clips, upload.owner, *arguments)
        if not clips:
            raise MediaError("the video has no clip")
        return clips

    async def _decode(self, reader: ChildPool[*Arguments, Result], owner: str, *arguments: *Arguments) -> Result:
        limit = self._limits.decode_seconds
        try:
            async with self._places[owner]:
                child = reader.take()
                try:
                    result = await self._run(self._decoding, partial(child, *arguments, time_limit=limit))
                except asyncio.CancelledError:
                    child.give_up()
                    raise
                except BaseException:
                    reader.give_back(child)
                    raise
                reader.give_back(child)
                return result
        except TimeLimitExceeded:
            raise MediaError(f"the upload was not decoded within {limit:g} s") from None
        except CallFailed as error:
            raise MediaError(f"the upload cannot be decoded: {error}") from None

    async def _run(self, threads: ThreadPoolExecutor, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, call, *arguments)


def _in_children(function: Callable[[*Arguments], Result]) -> ChildPool[*Arguments, Result]:
    """A function that decodes uploads, in child processes."""
    return ChildPool(lambda: IsolatedFunction(function, errors=(MediaError,)))


class LanguageModelDeployment:
    """Generates text and codes; requests join and leave the batch between two decoding steps."""

    def __init__(self, settings: ServeSettings) -> None:
        runtime = Runtime(ModelFolder(settings.model), settings.runtime)
        self._model, batch_size = runtime.model, max(2, settings.language_model.largest_batch)
        self._generation_model = runtime.loaded("language_model")
        self._generation_engine = Engine(self._generation_model, batch_size)
        self._generation_tokenizer = self._model.text_tokenizer()
        self._chat_model: VisualPrompts | None = None
        if self._model.has("understanding/language_model"):
            loaded = runtime.loaded("understanding/language_model")
            self._chat_model = VisualPrompts(loaded, self._model.vocabulary)
            self._chat_tokenizer = self._model.text_tokenizer("understanding/language_model")
            self._chat_engine = Engine(loaded, batch_size, settings.language_model.prefix_tokens)
        self._most_tokens = settings.limits.tokens

    async def answer(self, request: AnswerRequest) -> Answer:
        """Complete answer to a chat, sent in one message. Raises PromptTooLong."""
        async with aclosing(self.stream_answer(request)) as parts:
            return await anext(parts)

    async def stream_answer(self, request: AnswerRequest) -> AsyncGenerator[Answer]:
        """Yields an answer in parts while it is generated, or in one if the request is not for a stream.

        Raises:
            PromptTooLong: the chat does not fit into the context.
        """
        assert self._chat_model is not None
        model, tokenizer, engine, settings = (
            self._chat_model,
            self._chat_tokenizer,
            self._chat_engine,
            request.settings,
        )
        turns = [(await _contexts(content), answer) for content, answer in request.turns]
        question = await _contexts(request.question)
        prompt = await asyncio.to_thread(embed_chat_prompt, model, tokenizer, turns, question)
        max_tokens = min(answer_length(model, prompt, settings), self._most_tokens)
        tokens = _TokenQueue()
        engine_request = EngineRequest(
            prompt.embeds,
            answer_policy(model, tokenizer, settings, max_tokens),
            settings.sampling(),
            generator(settings.seed, "answer"),
            None,
            tokens.put,
            tokens.end,
            request.owner,
            tokens.prefilled,
        )
        stream, pending, ended = TextStream(tokenizer, request.stops), "", False
        interval = PART_SECONDS if request.stream else STEP_SECONDS
        try:
            engine.submit(engine_request)
            while not stream.stopped and not ended:
                ids, ended = await tokens.read(interval)
                pending += stream.push(ids)
                if pending and request.stream and not stream.stopped and not ended:
                    yield Answer(pending, len(prompt.embeds), tokens.cached, stream.count)
                    pending = ""
                    interval = min(PART_SECONDS * max(1, engine.load[0]), LONGEST_PART_SECONDS)
        finally:
            engine_request.cancelled.set()
        ended_by_length = not stream.stopped and stream.count >= max_tokens
        pending += stream.finish()
        reason: Literal["length", "stop"] = "length" if ended_by_length else "stop"
        yield Answer(pending, len(prompt.embeds), tokens.cached, stream.count, reason, tokens.times)

    def load(self) -> tuple[int, int]:
        """Number of running requests, whose rows are in a batch, and of waiting ones."""
        running, waiting = self._generation_engine.load
        if self._chat_model is not None:
            chats, waiting_chats = self._chat_engine.load
            return running + chats, waiting + waiting_chats
        return running, waiting

    async def generate_tokens(
        self, request: TokensRequest, settings: GenerateSettings
    ) -> AsyncGenerator[StepDone | ClipCodes]:
        """Yields the number of codes so far, and the codes of each clip when it is complete.

        Raises:
            PromptTooLong: prompt and clips do not fit into the context.
        """
        sequence = TokenGrammar(self._model, self._generation_tokenizer, settings).begin(request)
        total, done = sum(span.policy.max_new for span in sequence.spans), 0
        for _, spans in groupby(sequence.spans, lambda span: span.clip):
            generated: dict[str, list[int]] = {}
            for span in spans:
                async with aclosing(self._generate_span(sequence, span)) as growing:
                    async for codes in growing:
                        generated[span.kind] = codes
                        yield StepDone(done + len(codes), total, 1, 0.0)
                done += span.policy.max_new
            yield ClipCodes(**generated)

    async def _generate_span(self, sequence: TokenSequence, span: TokenSpan) -> AsyncGenerator[list[int]]:
        """Appends a span to a sequence; yields its codes so far."""
        sequence.ids.append(span.start)
        with torch.inference_mode():
            prompt = embed_prompts(self._generation_model, [sequence.ids]).embeds[0]
        tokens = _TokenQueue()
        engine_request = EngineRequest(
            prompt, span.policy, span.sampling, sequence.random, span.guidance, tokens.put, tokens.end
        )
        generated: list[int] = []
        ended = False
        try:
            self._generation_engine.submit(engine_request)
            while not ended:
                ids, ended = await tokens.read(STEP_SECONDS)
                generated += ids
                yield span.codes(generated)
        finally:
            engine_request.cancelled.set()
        sequence.ids += [*generated, span.policy.end]


async def _contexts(content: EncodedContent) -> list[str | VisualContext]:
    """Content of a message with the objects of its references."""
    return [part if isinstance(part, str) else await part for part in content]


class _TokenQueue:
    """Tokens on their way from the thread of an engine to the running event loop.

    The thread wakes the loop for the first of several tokens only, because each wake-up delays its next step.

    Attributes:
        cached: Number of tokens of the prompt that were in the prefix cache.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._last_read = 0.0
        self._ids: deque[int] = deque()
        self._began = time.monotonic()
        self._first = self._last = self._began
        self._count = 0
        self._arrived, self._ended = asyncio.Event(), asyncio.Event()
        self._waking = False
        self._error: BaseException | None = None
        self.cached = 0

    def prefilled(self, cached: int) -> None:
        """Notes the number of cached tokens; called by the engine before the first token."""
        self.cached = cached

    def put(self, token: int) -> None:
        """Adds a token; called by the engine."""
        self._last, self._count = time.monotonic(), self._count + 1
        if self._count == 1:
            self._first = self._last
        self._ids.append(token)
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._arrived.set)

    @property
    def times(self) -> TokenTimes | None:
        """Times of the tokens so far; None without a token."""
        if not self._count:
            return None
        between = (self._last - self._first) / (self._count - 1) if self._count > 1 else None
        return TokenTimes(self._first - self._began, between)

    def end(self, error: BaseException | None) -> None:
        """Ends the tokens, with an error if the request failed; called by the engine."""

        def wake() -> None:
            self._ended.set()
            self._arrived.set()

        self._error = error
        self._loop.call_soon_threadsafe(wake)

    async def read(self, interval: float) -> tuple[list[int], bool]:
        """New tokens, and whether they are the last. Raises the error of the request.

        Args:
            interval: Least time since the read before, in seconds; the end of the request cuts it short.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._last_read + interval):
                await self._ended.wait()
        await self._arrived.wait()
        self._last_read = self._loop.time()
        self._arrived.clear()
        self._waking, ended = (
            False,
            self._ended.is_set(),
        )  # before the tokens are taken: later ones wake again
        ids = [self._ids.popleft() for _ in range(len(self._ids))]
        if self._error is not None:
            raise self._error
        return ids, ended


class KeyframeDetokenizerDeployment:
    """Generates keyframes from visual codes."""

    def __init__(self, settings: ServeSettings) -> None:
        self._runtime = Runtime(ModelFolder(settings.model), settings.runtime)
        self._runtime.loaded("keyframe_detokenizer")
        self._batcher = StepBatcher[tuple[KeyframeRequest, GenerateSettings], Picture](
            self._generate_batch,
            # keyframes of videos of different sizes share a batch
            lambda item: (replace(item[1], video_height=None, video_width=None), item[0].last is None),
            settings.keyframe_detokenizer.largest_batch,
            settings.batch_wait_seconds,
        )

    async def generate(self, request: PixelsRequest[KeyframeRequest]) -> AsyncGenerator[StepDone | Finished[Picture]]:
        """Yields the denoising steps, and then the keyframe."""
        async with aclosing(self._batcher.run((await request.step, request.settings))) as events:
            async for event in events:
                yield event

    def _generate_batch(
        self, batch: list[tuple[KeyframeRequest, GenerateSettings]], on_step: OnStep
    ) -> Sequence[Picture]:
        return list(generate_keyframes(self._runtime, [step for step, _ in batch], batch[0][1], on_step))


class VideoDetokenizerDeployment:
    """Generates frames of clips from keyframes and motion codes."""

    def __init__(self, settings: ServeSettings) -> None:
        self._runtime = Runtime(ModelFolder(settings.model), settings.runtime)
        for component in ("video_detokenizer", "motion_tokenizer"):
            self._runtime.loaded(component)
        self._batcher = StepBatcher[tuple[ClipRequest, GenerateSettings], Picture](
            self._generate_batch,
            lambda item: item[1],
            settings.video_detokenizer.largest_batch,
            settings.batch_wait_seconds,
        )

    async def generate(self, request: PixelsRequest[ClipRequest]) -> AsyncGenerator[StepDone | Finished[Picture]]:
        """Yields the denoising steps, and then the frames."""
        async with aclosing(self._batcher.run((await request.step, request.settings))) as events:
            async for event in events:
                yield event

    def _generate_batch(self, batch: list[tuple[ClipRequest, GenerateSettings]], on_step: OnStep) -> Sequence[Picture]:
        return list(generate_clips(self._runtime, [step for step, _ in batch], batch[0][1], on_step))

"""Work behind the routes: checks requests of the protocol, runs them over the deployments, and builds the answers."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray

from videolavit.generation.describe import DescribeSettings
from videolavit.generation.output import encode_png, provenance
from videolavit.generation.prompts import Picture
from videolavit.models.folder import ModelFolder

from .batching import Finished, StepDone
from .conversation import MessageContent, SentMedium, media_of, read_conversation, texts_of
from .errors import ApiError, bad_request
from .failures import api_error, private_traceback
from .fetching import Fetcher, media_kind
from .graph import Graph
from .health import HealthWatch
from .keys import Admission, deadline_at, follow_keys, read_keys
from .middleware import Metrics
from .prompts import check_model, check_prompt, check_text, given_or_drawn
from .protocol.base import now
from .protocol.chat import (
    AnswerMessage,
    ChatHead,
    ChatRequest,
    ChatResponse,
    Choice,
    PromptTokens,
    Usage,
    chunk,
)
from .protocol.images import GeneratedImage, ImageRequest, ImageResponse
from .protocol.models import Model
from .requests import Answer, AnswerRequest, FrameFiles, Upload
from .settings import ServeSettings
from .storage import database_url, private_storage
from .store import JobStore
from .video_jobs import JobWorker
from .video_plan import offered_seconds
from .videos import Videos

log = logging.getLogger("videolavit.serve")


class Service:
    """State of an ingress replica: settings, admission, video jobs and metrics.

    Args:
        graph: Deployments; the service measures their steps.
    """

    def __init__(self, settings: ServeSettings, graph: Graph) -> None:
        self.settings, self.graph, self.metrics = settings, graph, Metrics()
        self.model = ModelFolder(settings.model)
        graph.on_step = self.measure_step
        limits, body_bytes = settings.limits, settings.limits.body_megabytes << 20
        keys = None if settings.keys is None else read_keys(settings.keys)
        self.admission = Admission(keys, limits.in_flight, limits.bodies_megabytes << 20)
        self.answering: set[asyncio.Future[None]] = set()
        """Requests that are being answered."""
        self.folder = private_storage(settings.storage)
        self.store = JobStore(database_url(settings.database, self.folder))
        self.worker = JobWorker(settings, self.store, self.folder, graph, self._job_ended)
        self._fetcher = Fetcher(settings.fetch_hosts, body_bytes)
        self.videos = Videos(settings, self.model, self.store, self.folder, self.worker, self._fetcher, self.admission)
        self.health = HealthWatch(self.store)
        self._following: list[asyncio.Task[None]] = []
        self.started = now()

    def start(self) -> None:
        """Begins to work on video jobs, and to follow the file of keys and the health of what is behind it."""
        self.worker.start()
        self._following.append(asyncio.create_task(self.health.follow()))
        if self.settings.keys is not None:
            self._following.append(asyncio.create_task(follow_keys(self.settings.keys, self.admission)))

    async def stop(self) -> None:
        """Ends what `start` began; video jobs return to the queue."""
        for task in self._following:
            task.cancel()
        await self.worker.stop()

    async def drain(self, seconds: float) -> None:
        """Admits no more requests, returns video jobs to the queue, and waits for the answers that have begun.

        Args:
            seconds: Longest time to wait, in seconds.
        """
        self.admission.close()
        answering = set(self.answering)
        await self.stop()
        if answering:
            await asyncio.wait(answering, timeout=seconds)

    def measure_step(self, part: str, step: StepDone | Finished[Picture]) -> None:
        """Records the time and the batch size of a denoising step, or the time to decode pixels."""
        if isinstance(step, Finished):
            self.metrics.decoding.labels(part).observe(step.seconds)
            return
        self.metrics.steps.labels(part).observe(step.seconds)
        self.metrics.batch.labels(part).observe(step.batch)

    def _job_ended(self, status: str) -> None:
        self.metrics.ended.labels(status).inc()

    def describe_model(self) -> Model:
        """Served model in the format of the API."""
        return Model(
            id=self.settings.model_name,
            created=self.started,
            video_seconds=offered_seconds(self.settings),
            examples=self.model.facts.examples,
        )

    # ---- chat -------------------------------------------------------------------------------------------------------

    async def answer_request(self, request: ChatRequest, owner: str) -> AnswerRequest:
        """Request to the language model for a chat, with the images and videos encoded. Raises ApiError."""
        check_model(request.model, self.settings)
        if not self.model.has("understanding/language_model"):
            raise bad_request("this model generates images and videos; it cannot answer questions", "model", "not_able")
        limits = self.settings.limits
        most = request.max_completion_tokens or request.max_tokens
        if most is not None and most > limits.tokens:
            raise bad_request(f"at most {limits.tokens} tokens are generated, not {most}", "max_tokens")
        if request.min_tokens is not None and request.min_tokens > (most or limits.tokens):
            raise bad_request(f"min_tokens must not be above max_tokens, {most or limits.tokens}", "min_tokens")
        turns, question = read_conversation(request, request.images_as_video_fps or self.settings.images_as_video_fps)
        texts, media = texts_of(turns, question), media_of(turns, question)
        characters = sum(map(len, texts))
        if characters > limits.prompt_characters:
            message = f"the messages have {characters} characters; at most {limits.prompt_characters} are accepted"
            raise bad_request(message, "messages")
        for text in texts:
            check_text(text, "messages")
        files = sum(len(medium.urls) for medium in media)
        if files > limits.media:
            raise bad_request(
                f"the chat has {files} images and videos; at most {limits.media} are accepted", "messages"
            )
        settings = DescribeSettings(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=request.top_p or 1.0,
            min_tokens=request.min_tokens,
            max_tokens=most,
            seed=given_or_drawn(request.seed),
        )
        async with asyncio.TaskGroup() as tasks:
            encoding = {medium: tasks.create_task(self._encode(medium, owner)) for medium in media}

        def encoded(content: MessageContent) -> list[Any]:
            return [part if isinstance(part, str) else encoding[part].result() for part in content]

        return AnswerRequest(
            [(encoded(content), answer) for content, answer in turns],
            encoded(question),
            settings,
            bool(request.stream),
            owner,
            request.stop or [],
        )

    async def _encode(self, medium: SentMedium, owner: str) -> object:
        """Reference to the features of an image or a video of a chat. Raises ApiError, which names its part."""
        try:
            read = [await self._fetcher.read(url, medium.place) for url in medium.urls]
            upload: Upload | FrameFiles
            if medium.kind == "frames":
                upload = FrameFiles(ray.put([data for data, _ in read]), medium.fps, owner)
            else:
                ((data, media_type),) = read
                kind = medium.kind or media_kind(media_type, medium.place)
                upload = Upload(ray.put(data), kind, owner)
            return await self.graph.encode_context(upload, medium.max_clips)
        except Exception as error:
            answer = api_error(error)
            if answer.status >= 429:
                raise
            message = f"{medium.place}: {answer.message}"
            raise ApiError(answer.status, message, answer.code, param=medium.place) from None

    async def answer(self, request: ChatRequest, answer_request: AnswerRequest) -> ChatResponse:
        """Complete answer to a chat."""
        text, last = "", None
        async with aclosing(self.graph.answer(answer_request)) as pieces:
            async for piece in pieces:
                text, last = text + piece.text, piece
        assert last is not None
        choice = Choice(message=AnswerMessage(content=text.strip()), finish_reason=last.finished or "stop")
        return ChatResponse(choices=[choice], usage=self._usage(last), **_head(request, answer_request).model_dump())

    async def stream(
        self, request: ChatRequest, answer_request: AnswerRequest, deadline: tuple[float, float]
    ) -> AsyncGenerator[str]:
        """Yields an answer as server-sent events, the last of which is an error if one occurs on the way.

        Args:
            deadline: Time of the loop's clock at which the stream is ended, and the number of seconds to name then.

        Raises:
            Exception: an error before the first event.
        """
        head, started = _head(request, answer_request), time.monotonic()
        with_usage = bool(request.stream_options and request.stream_options.include_usage)

        def event(**choice: Any) -> str:
            return f"data: {json.dumps(chunk(head, with_usage, **choice))}\n\n"

        begun, last = False, None
        try:
            async with aclosing(self.graph.answer(answer_request)) as pieces:
                while last is None or last.finished is None:
                    async with deadline_at(*deadline):
                        piece = await anext(pieces)
                    if last is None:
                        self.metrics.first_text.observe(time.monotonic() - started)
                        yield event(delta={"role": "assistant", "content": ""})
                    text = (
                        piece.text if begun else piece.text.lstrip()
                    )  # complete answers have no leading blanks either
                    begun, last = begun or bool(text), piece
                    if text:
                        yield event(delta={"content": text})
            yield event(delta={}, finish_reason=last.finished)
            usage = self._usage(last)
            if with_usage:
                yield event(usage=usage.model_dump())
            yield "data: [DONE]\n\n"
        except Exception as error:
            if last is None:
                raise
            answer = api_error(error)
            if answer.status == 500:
                log.error("a stream failed: %s", private_traceback(error))
            yield f"data: {json.dumps(answer.body)}\n\n"

    def _usage(self, last: Answer) -> Usage:
        """Counts the tokens of an answer in the metrics, and for the client."""
        self.metrics.tokens.labels("read").inc(last.prompt_tokens)
        self.metrics.tokens.labels("written").inc(last.tokens)
        self.metrics.cached_tokens.inc(last.cached_tokens)
        if last.times is not None:
            self.metrics.first_token.observe(last.times.first)
            if last.times.each is not None:
                self.metrics.each_token.observe(last.times.each)
        total = last.prompt_tokens + last.tokens
        details = PromptTokens(cached_tokens=last.cached_tokens)
        return Usage(
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.tokens,
            total_tokens=total,
            prompt_tokens_details=details,
        )

    # ---- images ----------------------------------------------------------------------------------------------------

    async def images(self, request: ImageRequest) -> ImageResponse:
        """Generates images from a prompt; image i has the seed plus i. Raises ApiError."""
        check_model(request.model, self.settings)
        limits, count = self.settings.limits, request.n or 1
        check_prompt(request.prompt, self.settings)
        if count > limits.images:
            raise bad_request(f"at most {limits.images} images are generated per request, not {count}", "n")
        size = self._size(request.size, self.graph.keyframe_size, "keyframe_detokenizer")
        seed = given_or_drawn(request.seed)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self.graph.image(request.prompt, seed + number, size, self.settings.generation))
                for number in range(count)
            ]
        images = []
        for number, task in enumerate(running):
            about = provenance(request.prompt, seed + number, self.settings.model_name)
            encoded = base64.b64encode(await asyncio.to_thread(encode_png, task.result(), about)).decode()
            form = (
                {"url": f"data:image/png;base64,{encoded}"}
                if request.response_format == "url"
                else {"b64_json": encoded}
            )
            images.append(GeneratedImage(seed=seed + number, **form))
        return ImageResponse(created=now(), data=images)

    def _size(self, size: str | None, default: tuple[int, int], component: Any) -> tuple[int, int]:
        """Height and width in pixels. Raises ApiError for a size that is too large or not supported."""
        if size is None or size == "auto":
            return default
        width, height = map(int, size.split("x"))
        multiple, limit = self.model.pixel_multiple(component), self.settings.limits.pixels
        if width % multiple or height % multiple:
            raise bad_request(f"width and height must be multiples of {multiple}, not {size}", "size")
        if width * height > limit:
            raise bad_request(f"at most {limit} pixels are generated, not {size}", "size")
        return height, width


def _head(request: ChatRequest, answer_request: AnswerRequest) -> ChatHead:
    """First fields of an answer."""
    settings, name = answer_request.settings, f"chatcmpl-{random.getrandbits(96):024x}"
    return ChatHead(id=name, created=now(), model=request.model, temperature=settings.temperature, seed=settings.seed)

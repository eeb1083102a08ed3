"""What the routes do, apart from HTTP: requests of the protocol in, answers of the protocol out."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from videolavit.generation.describe import DescribeSettings
from videolavit.generation.output import encode_png, provenance
from videolavit.generation.prompts import Picture
from videolavit.models.folder import ModelFolder
from videolavit.records.storage import Folder, StorageSettings

from .batching import Finished, StepDone
from .errors import ApiError, bad_request, too_many
from .failures import explained
from .fetching import Fetcher, Kind, kind_of
from .graph import Graph
from .keys import Gate, read_keys, until
from .middleware import Metrics
from .protocol import (
    AnswerMessage,
    ChatRequest,
    ChatResponse,
    Choice,
    FilePart,
    Image,
    ImagePart,
    ImageRequest,
    ImageResponse,
    TextPart,
    Usage,
    Video,
    VideoError,
    VideoPart,
    VideoRequest,
    chunk,
    now,
)
from .requests import Answer, AnswerRequest
from .settings import ServeSettings
from .store import Job, JobStore, new_id
from .video_jobs import JobWorker

log = logging.getLogger("videolavit.serve")

MIN_TOKENS = 8
"""Of an answer, as published; a request for fewer gets fewer."""


class Service:
    """The state of an ingress: its settings, its gate, its jobs, its measurements.

    Args:
        graph: Its steps are measured here.
    """

    def __init__(self, settings: ServeSettings, graph: Graph) -> None:
        self.settings, self.graph, self.metrics = settings, graph, Metrics()
        self.model = ModelFolder(settings.model)
        graph.on_step = self.measure_step
        self.gate = Gate(None if settings.keys is None else read_keys(settings.keys), settings.limits.in_flight)
        self.folder = Folder(settings.storage, StorageSettings())
        self.store = JobStore(settings.database or _sqlite(self.folder))
        self.worker = JobWorker(settings, self.store, self.folder, graph, self._job_ended)
        self._fetcher = Fetcher(settings.fetch_hosts, settings.limits.body_megabytes << 20)
        self.started = now()

    def measure_step(self, part: str, step: StepDone | Finished[Picture]) -> None:
        """Notes a step of a sampler, or its end."""
        if isinstance(step, Finished):
            self.metrics.decoding.labels(part).observe(step.seconds)
            return
        self.metrics.steps.labels(part).observe(step.seconds)
        self.metrics.batch.labels(part).observe(step.batch)

    def _job_ended(self, status: str) -> None:
        self.metrics.ended.labels(status).inc()

    def check_model(self, name: str | None) -> None:
        """Raises ApiError for a model that is not served."""
        if name is not None and name != self.settings.model_name:
            message = f"there is no model {name!r}; this service has {self.settings.model_name!r}"
            raise ApiError(404, message, "model_not_found", param="model")

    # ---- chat -------------------------------------------------------------------------------------------------------

    async def question(self, request: ChatRequest, owner: str) -> AnswerRequest:
        """What a chat asks, with what is to be seen. Raises ApiError."""
        self.check_model(request.model)
        if not self.model.has("understanding/language_model"):
            raise bad_request("this model makes pictures and videos, and answers no questions", "model", "not_able")
        limits = self.settings.limits
        most = request.max_completion_tokens or request.max_tokens or min(512, limits.tokens)
        if most > limits.tokens:
            raise bad_request(f"at most {limits.tokens} tokens are written, not {most}", "max_tokens")
        if request.min_tokens is not None and request.min_tokens > most:
            raise bad_request(f"min_tokens must not be above the most, {most}", "min_tokens")
        turns, question, media = _conversation(request)
        if sum(len(text) for turn in (*turns, (question,)) for text in turn) > limits.prompt_characters:
            raise bad_request(f"the messages have more than {limits.prompt_characters} characters", "messages")
        for turn in (*turns, (question,)):
            for text in turn:
                _check_text(text, "messages")
        settings = DescribeSettings(
            temperature=request.temperature or 0.0,
            top_p=request.top_p or 1.0,
            min_tokens=min(MIN_TOKENS, most) if request.min_tokens is None else request.min_tokens,
            max_tokens=most,
            seed=request.seed if request.seed is not None else 0,
        )
        sight = None
        if media is not None:
            data, kind = await self._media(media)
            sight = await self.graph.look(data, kind)
        stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
        return AnswerRequest(turns, question, sight, settings, bool(request.stream), owner, stops)

    async def _media(self, part: ImagePart | VideoPart | FilePart) -> tuple[bytes, Kind]:
        if isinstance(part, FilePart):
            data, media_type = await self._fetcher.read(part.file.file_data, "messages")
            return data, kind_of(media_type, "messages")
        if isinstance(part, ImagePart):
            return (await self._fetcher.read(part.image_url.url, "messages"))[0], "image"
        return (await self._fetcher.read(part.video_url.url, "messages"))[0], "video"

    async def answer(self, request: ChatRequest, order: AnswerRequest) -> ChatResponse:
        """A whole answer."""
        text, last = "", None
        async with aclosing(self.graph.answer(order)) as pieces:
            async for piece in pieces:
                text, last = text + piece.text, piece
        assert last is not None
        choice = Choice(message=AnswerMessage(content=text.strip()), finish_reason=last.finished or "stop")
        return ChatResponse(
            id=f"chatcmpl-{random.getrandbits(96):024x}",
            created=now(),
            model=request.model,
            choices=[choice],
            usage=self._usage(last),
        )

    async def stream(
        self, request: ChatRequest, order: AnswerRequest, deadline: tuple[float, float]
    ) -> AsyncGenerator[str]:
        """An answer as server-sent events; what goes wrong on the way is the last of them.

        Args:
            deadline: As for `keys.until`.
        """
        name, created, started = f"chatcmpl-{random.getrandbits(96):024x}", now(), time.monotonic()

        def event(**choice: Any) -> str:
            return f"data: {json.dumps(chunk(name, request.model, created, **choice))}\n\n"

        begun, last = False, None
        try:
            async with aclosing(self.graph.answer(order)) as pieces:
                while last is None or last.finished is None:
                    async with until(*deadline):
                        piece = await anext(pieces)
                    if last is None:
                        self.metrics.first_text.observe(time.monotonic() - started)
                        yield event(delta={"role": "assistant", "content": ""})
                    text = piece.text if begun else piece.text.lstrip()  # as in a whole answer
                    begun, last = begun or bool(text), piece
                    if text:
                        yield event(delta={"content": text})
            yield event(delta={}, finish_reason=last.finished)
            usage = self._usage(last)
            if request.stream_options is not None and request.stream_options.include_usage:
                yield event(usage=usage.model_dump())
            yield "data: [DONE]\n\n"
        except Exception as error:
            told = explained(error)
            if told.status == 500:
                log.exception("a stream failed")
            yield f"data: {json.dumps(told.body)}\n\n"

    def _usage(self, last: Answer) -> Usage:
        self.metrics.tokens.labels("read").inc(last.prompt_tokens)
        self.metrics.tokens.labels("written").inc(last.tokens)
        total = last.prompt_tokens + last.tokens
        return Usage(prompt_tokens=last.prompt_tokens, completion_tokens=last.tokens, total_tokens=total)

    # ---- pictures ---------------------------------------------------------------------------------------------------

    async def images(self, request: ImageRequest) -> ImageResponse:
        """Pictures of a prompt; number n has the seed plus n."""
        self.check_model(request.model)
        limits, count = self.settings.limits, request.n or 1
        self._check_prompt(request.prompt)
        if count > limits.images:
            raise bad_request(f"at most {limits.images} pictures are made at once, not {count}", "n")
        size = self._size(request.size, self.graph.keyframe_size, "keyframe_detokenizer")
        seed = _seed(request.seed)
        async with asyncio.TaskGroup() as tasks:
            made = [
                tasks.create_task(self.graph.image(request.prompt, seed + number, size, self.settings.generation))
                for number in range(count)
            ]
        about = [provenance(request.prompt, seed + number, self.settings.model_name) for number in range(count)]
        pngs = [await asyncio.to_thread(encode_png, one.result(), told) for one, told in zip(made, about, strict=True)]
        texts = [base64.b64encode(one).decode() for one in pngs]
        if request.response_format == "url":
            return ImageResponse(created=now(), data=[Image(url=f"data:image/png;base64,{text}") for text in texts])
        return ImageResponse(created=now(), data=[Image(b64_json=text) for text in texts])

    def _check_prompt(self, prompt: str, needed: bool = True) -> None:
        limit = self.settings.limits.prompt_characters
        if needed and not prompt.strip():
            raise bad_request("the prompt is empty", "prompt")
        if len(prompt) > limit:
            raise bad_request(f"the prompt has more than {limit} characters", "prompt")
        _check_text(prompt, "prompt")

    def _size(self, asked: str | None, own: tuple[int, int], unit: Any) -> tuple[int, int]:
        """(height, width) in pixels. Raises ApiError for one that the model cannot do."""
        if asked is None or asked == "auto":
            return own
        width, height = map(int, asked.split("x"))
        multiple, limit = self.model.pixel_multiple(unit), self.settings.limits.pixels
        if width % multiple or height % multiple:
            raise bad_request(f"width and height must be multiples of {multiple}, not {asked}", "size")
        if width * height > limit:
            raise bad_request(f"at most {limit} pixels are made, not {asked}", "size")
        return height, width

    # ---- videos -----------------------------------------------------------------------------------------------------

    async def create_video(self, owner: str, request: VideoRequest, reference: bytes | None) -> Video:
        """Queues a video from a text, a picture, or both. Raises ApiError."""
        self.check_model(request.model)
        if request.input_reference is not None:
            if reference is not None:
                raise bad_request("give one input_reference", "input_reference")
            reference, _ = await self._fetcher.read(request.input_reference.image_url, "input_reference")
        self._check_prompt(request.prompt, needed=reference is None)
        limit = self.settings.limits.seconds
        if request.seconds > limit:
            raise bad_request(f"at most {limit:g} seconds are made, not {request.seconds:g}", "seconds")
        height, width = self._size(request.size, self.graph.video_size, "video_detokenizer")
        asked = {"prompt": request.prompt, "seconds": f"{request.seconds:g}", "size": f"{width}x{height}"}
        return await self._queue(owner, "generate", asked | {"seed": _seed(request.seed)}, reference)

    async def create_reconstruction(self, owner: str, video: bytes, seed: int | None) -> Video:
        """Queues a video to go through its tokens and back. Raises ApiError."""
        asked = {"prompt": "", "seconds": f"{self.settings.limits.seconds:g}", "size": "auto", "seed": _seed(seed)}
        return await self._queue(owner, "reconstruct", asked, video)

    async def _queue(self, owner: str, kind: str, asked: dict[str, Any], upload: bytes | None) -> Video:
        job_id, limits = new_id(), self.settings.limits
        if upload is not None:
            asked["upload"] = f"uploads/{job_id}.bin"
            await asyncio.to_thread(self.folder.create_bytes, asked["upload"], upload)
        job = await asyncio.to_thread(
            self.store.add, owner, kind, asked, limits.open_jobs, limits.open_jobs_a_key, job_id
        )
        if job is None:
            if upload is not None:
                await asyncio.to_thread(self.folder.remove, asked["upload"])
            raise too_many("too many videos are queued; try again when one is done", 10, "queue_full")
        self.worker.wake()
        return self.shown(job)

    def shown(self, job: Job) -> Video:
        """A job as clients see it."""
        failed = job.status == "failed"
        return Video(
            id=job.id,
            model=self.settings.model_name,
            status=job.status,  # type: ignore[arg-type]
            progress=job.progress,
            created_at=job.created_at,
            completed_at=job.completed_at,
            expires_at=job.expires_at,
            prompt=job.request["prompt"] or None,
            seconds=job.request["seconds"],
            size=job.request["size"],
            seed=job.request["seed"],
            error=VideoError(code=job.error_code or "", message=job.error_message or "") if failed else None,
            tokens=job.tokens,
        )


def _conversation(
    request: ChatRequest,
) -> tuple[list[tuple[str, str]], str, ImagePart | VideoPart | FilePart | None]:
    """Turns that were answered, the question, and the one picture or video. Raises ApiError."""
    turns: list[tuple[str, str]] = []
    said: list[str] = []
    media: list[ImagePart | VideoPart | FilePart] = []
    for message in request.messages:
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        texts = [part.text for part in parts if isinstance(part, TextPart)]
        seen = [part for part in parts if not isinstance(part, TextPart)]
        if message.role == "assistant":
            if not said or seen:
                raise bad_request("an assistant's message is a text behind a user's", "messages")
            turns.append(("\n".join(said), "\n".join(texts)))
            said = []
        else:
            said += texts
            media += seen
    if len(media) > 1:
        raise bad_request("this model looks at one picture or video in a chat; send one", "messages")
    if not "".join(said).strip():
        raise bad_request("the last message must be a user's question", "messages")
    return turns, "\n".join(said), media[0] if media else None


def _check_text(text: str, param: str) -> None:
    """Raises ApiError for what JSON can hold and is no text: half a character, or NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_request("the text has half a character (a lone surrogate)", param) from None
    if "\0" in text:
        raise bad_request("a text has no NUL character", param)


def _seed(asked: int | None) -> int:
    return random.getrandbits(31) if asked is None else asked


def _sqlite(folder: Folder) -> str:
    path = Path(folder.path)
    path.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path / 'jobs.sqlite'}"

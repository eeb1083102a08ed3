"""Deployment of the language model: streamed and complete answers, and codes."""

import asyncio
import contextlib
import io
import time
from dataclasses import replace

import psutil
import pytest
from PIL import Image

from serve.deployments import LanguageModelDeployment, VisualTokenizerDeployment
from serve.requests import AnswerRequest
from serve.settings import read_settings
from tests.sandbox import hostile
from videolavit.generation.describe import DescribeSettings
from videolavit.generation.program import ClipCodes, TokensRequest
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings
from videolavit.generation.token_generator import TokenGenerator, TokenGrammar
from videolavit.models.folder import ModelFolder
from videolavit.sandbox.call import IsolatedFunction
from videolavit.sandbox.pool import ChildPool

from .running import QUICK


def test_an_answer_is_the_same_streamed_and_complete() -> None:
    async def run() -> None:
        model = LanguageModelDeployment(read_settings({"model": "tiny"}))
        request = AnswerRequest((), ["hello"], DescribeSettings(min_tokens=400, max_tokens=400), stream=True)
        began = time.monotonic()
        parts = [part async for part in model.stream_answer(request)]
        whole = await model.answer(replace(request, stream=False))
        assert len(parts) > 2
        assert "".join(part.text for part in parts) == whole.text
        assert (parts[-1].tokens, parts[-1].finished) == (whole.tokens, whole.finished) == (400, "length")
        assert all(part.times is None for part in parts[:-1])
        times = parts[-1].times
        assert times is not None
        assert times.each is not None
        assert 0 < times.first < times.first + 399 * times.each < time.monotonic() - began

    asyncio.run(run())


def test_an_answer_that_nobody_reads_is_not_generated_on() -> None:
    async def run() -> None:
        model = LanguageModelDeployment(read_settings({"model": "tiny"}))
        settings = DescribeSettings(min_tokens=3000, max_tokens=3000)
        answer = model.stream_answer(AnswerRequest((), ["hello"], settings, stream=True))
        await anext(answer)
        assert model.load() == (1, 0)
        await answer.aclose()
        for _ in range(100):
            if model.load() == (0, 0):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it goes on")

    asyncio.run(run())


@pytest.mark.parametrize(
    "request_for_codes",
    [
        TokensRequest(["a red circle"], seed=3),
        TokensRequest(["a red circle"], seed=3, clips=2),
        TokensRequest([[3, 1, 4, 1, 5], "it moves"], seed=3, clips=2, first_given=True),
    ],
    ids=["image", "text", "picture"],
)
def test_codes_are_those_of_the_library(request_for_codes: TokensRequest) -> None:
    settings, folder = GenerateSettings(**QUICK), ModelFolder("tiny")  # type: ignore[arg-type]

    async def run() -> list[ClipCodes]:
        model = LanguageModelDeployment(read_settings({"model": "tiny"}))
        events = [event async for event in model.generate_tokens(request_for_codes, settings)]
        return [event for event in events if isinstance(event, ClipCodes)]

    with Runtime(folder).use("language_model") as network:
        library = TokenGenerator(network, TokenGrammar(folder, folder.text_tokenizer(), settings))
        assert library.generate([request_for_codes]) == [dict(enumerate(asyncio.run(run())))]


# ---- uploads --------------------------------------------------------------------------------------------------------


def test_a_client_that_leaves_ends_its_child_and_a_key_leaves_a_place() -> None:
    """With a decoder that works for a minute; the child of a good image is used again."""

    async def run() -> None:
        deployment = VisualTokenizerDeployment(read_settings({"model": "tiny", "keys": "keys.json"}))
        slow = ChildPool(lambda: IsolatedFunction(hostile.busy))
        calls = [asyncio.create_task(deployment._decode(slow, "alice", 60.0)) for _ in range(3)]
        await asyncio.sleep(1)
        picture = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(picture, "PNG")
        began = time.monotonic()
        for _ in range(2):
            read = await deployment._decode(deployment._read_image, "bob", picture.getvalue(), 100)
            assert read.shape == (8, 8, 3)
        assert time.monotonic() - began < 20
        assert len(deployment._read_image._idle) == 1
        for call in calls:
            call.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} == {asyncio.CancelledError}
        for _ in range(100):
            if not any("busy" in word for one in psutil.Process().children() for word in _command(one)):
                return
            await asyncio.sleep(0.1)
        raise AssertionError("a child works on for nobody")

    asyncio.run(run())


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []

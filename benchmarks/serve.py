"""Throughput and latency of the service, against the same models in one process; see README.md beside this file.

python -m benchmarks.serve [--model tiny] [--rounds 3] [--each 8] [--chats-only] [--copies N] [--output bench-output]
"""

import argparse
import contextlib
import io
import itertools
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import openai
import requests
import torch
import urllib3
from PIL import Image

from serve.settings import LanguageModelReplicas, Replicas
from videolavit.generation.decoding import GREEDY
from videolavit.generation.describe import DescribeSettings, TextStream, answer_policy, embed_chat_prompt
from videolavit.generation.engine import Engine, EngineRequest
from videolavit.generation.generate import generate_videos
from videolavit.generation.program import GeneratedVideo
from videolavit.generation.prompts import Prompt
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model import VisualPrompts

from .decompose import machine
from .generate import LEVELS
from .shared import console, result_table

T = TypeVar("T")

BATCH, CLIENTS, VIDEOS, TOKENS = 16, 24, 8, 128
"""Batch size of the language model, on both sides; number of clients that keep it busy; number of concurrent videos;
tokens of an answer."""

SETTINGS = GenerateSettings(keyframe_steps=25, video_steps=12, visual_guidance=2.0, motion_guidance=2.0)
GOALS = {
    "chat_share": 0.95,
    "video_share": 0.95,
    "first_text_seconds": 0.15,
    "chats_concurrent": 4.0,
    "videos_concurrent": 1.5,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the measurements, and writes the numbers to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--model", default="tiny", help="model folder or preset")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, of which the median counts")
    parser.add_argument("--each", type=int, default=8, help="number of chats per client, one after the other")
    parser.add_argument("--chats-only", action="store_true", help="skip videos, which take long with a larger model")
    parser.add_argument("--copies", type=int, help="replicas of the video detokenizer, if not the default")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # each replica of the service has one thread too
    with _serving(options.model, options.copies) as url:
        result = measure(options.model, url, options.rounds, options.each, videos=not options.chats_only)
    _show(result)
    values = {name: getattr(options, name) for name in ("model", "rounds", "each", "copies")}
    file = options.output / f"serve-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps({"machine": machine()} | values | result, indent=1) + "\n")
    console.print(f"numbers: {file}")


def measure(model: str, url: str, rounds: int, each: int, videos: bool) -> dict[str, Any]:
    """Seconds per chat and per video, and latencies, of both sides, measured alternately."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
    name = client.models.list().data[0].id
    chat_client = _ChatClient(url, name)
    inside = _Inside(ModelFolder(model))
    # each question is new, so that the prefix cache holds only the system prompt
    questions = (f"{number} balls roll to the left in a video. What happens then?" for number in itertools.count(1000))
    seconds: dict[str, list[float]] = {}
    latencies: dict[str, list[float]] = {}
    firsts: dict[str, list[float]] = {"serve": [], "inside": []}

    def timed(side: str, count: int, work: Callable[[], object]) -> None:
        began = time.monotonic()
        work()
        seconds.setdefault(side, []).append((time.monotonic() - began) / count)

    def new_questions(clients: int, chats: int) -> list[list[str]]:
        return [[next(questions) for _ in range(chats)] for _ in range(clients)]

    def chats(questions: Sequence[Sequence[str]]) -> list[float]:
        per_client = _in_parallel(len(questions), lambda n: [chat_client.chat(question) for question in questions[n]])
        return [seconds for client_seconds in per_client for seconds in client_seconds]

    def concurrent_chats(questions: Sequence[Sequence[str]]) -> None:
        latencies.setdefault("chat", []).extend(chats(questions))

    def concurrent_videos() -> None:
        latencies.setdefault("video", []).extend(_in_parallel(VIDEOS, lambda n: _video(client, n)))

    _compare(client, chat_client, inside, next(questions), videos)  # also warms up both sides
    for _ in range(rounds):
        many, some, single = (new_questions(*sizes) for sizes in ((CLIENTS, each), (BATCH, each), (1, BATCH // 2)))
        timed("chats, service", CLIENTS * each, partial(chats, many))
        timed("chats, inside", CLIENTS * each, partial(inside.concurrent_chats, many))
        timed("chats, concurrent", BATCH * each, partial(concurrent_chats, some))
        timed("chats one by one", BATCH // 2, partial(chats, single))
        firsts["serve"] += [_first_text(client, name, f"{number} is first") for number in range(10)]
        firsts["inside"] += [inside.first_token(f"{number} is first") for number in range(10)]
        if videos:
            timed("videos, concurrent", VIDEOS, concurrent_videos)
            timed("videos, inside", VIDEOS, lambda: inside.videos(VIDEOS))
            timed("videos one by one", VIDEOS, lambda: [_video(client, n) for n in range(VIDEOS)])
    middle = {side: median(values) for side, values in seconds.items()}
    reached = {"first_text_seconds": median(firsts["serve"]) - median(firsts["inside"])}
    for kind in latencies:
        at_once = middle[f"{kind}s, concurrent"]
        reached[f"{kind}_share"] = middle[f"{kind}s, inside"] / middle.get(f"{kind}s, service", at_once)
        reached[f"{kind}s_concurrent"] = middle[f"{kind}s one by one"] / at_once
    percentiles = {kind: _percentiles(values) for kind, values in latencies.items()}
    return {"seconds_each": seconds, "percentiles": percentiles, "reached": reached}


class _Inside:
    """Models called directly, in this process."""

    def __init__(self, model: ModelFolder) -> None:
        self._runtime = Runtime(model)
        self._model = VisualPrompts(self._runtime.loaded("understanding/language_model"), model.vocabulary)
        self._text = model.text_tokenizer("understanding/language_model")
        self._engine = Engine(self._model.language_model, BATCH, LanguageModelReplicas().prefix_tokens)

    def concurrent_chats(self, questions: Sequence[Sequence[str]]) -> None:
        """Answers the questions of all clients in parallel, those of each client one after the other."""

        def chats(number: int) -> None:
            for question in questions[number]:
                self._submit(question, TOKENS, lambda token: None).wait()

        _in_parallel(len(questions), chats)

    def first_token(self, question: str) -> float:
        """Seconds to the first token."""
        first = threading.Event()
        began = time.monotonic()
        end = self._submit(question, 8, lambda token: first.set())
        first.wait()
        taken = time.monotonic() - began
        end.wait()
        return taken

    def _submit(self, question: str, tokens: int, on_token: Callable[[int], None]) -> threading.Event:
        settings = DescribeSettings(min_tokens=tokens, max_tokens=tokens)
        prompt = embed_chat_prompt(self._model, self._text, (), [question]).embeds
        end = threading.Event()
        policy, draws = answer_policy(self._model, self._text, settings, tokens), torch.Generator()
        self._engine.submit(EngineRequest(prompt, policy, GREEDY, draws, None, on_token, lambda error: end.set()))
        return end

    def videos(self, count: int) -> list[GeneratedVideo]:
        """Generates videos, in batches of the size that the service uses."""
        prompts, batch = [Prompt((_prompt(n),), n) for n in range(count)], Replicas().largest_batch
        batches = [prompts[start : start + batch] for start in range(0, count, batch)]
        return [
            video for batch_prompts in batches for video in generate_videos(self._runtime, batch_prompts, 1, SETTINGS)
        ]

    def text(self, question: str) -> str:
        """Answer to a question."""
        ids: list[int] = []
        self._submit(question, TOKENS, ids.append).wait()
        stream = TextStream(self._text)
        return (stream.push(ids) + stream.finish()).strip()


class _ChatClient:
    """Client with little overhead, since it runs on the cores of the service.

    The official client takes some milliseconds per call.
    """

    def __init__(self, url: str, name: str) -> None:
        self._pool = urllib3.PoolManager(maxsize=CLIENTS, block=True, retries=False, timeout=600)
        self._url, self._name = f"{url}/v1/chat/completions", name

    def chat(self, question: str) -> float:
        """Seconds to answer a question."""
        began = time.monotonic()
        answer = self._post(question)
        if answer["usage"]["completion_tokens"] != TOKENS:
            raise AssertionError(f"an answer does not have {TOKENS} tokens: the two sides do different work")
        return time.monotonic() - began

    def text(self, question: str) -> str:
        """Answer to a question."""
        content: str = self._post(question)["choices"][0]["message"]["content"]
        return content

    def _post(self, question: str) -> Any:
        messages = [{"role": "user", "content": question}]
        lengths = {"max_tokens": TOKENS, "min_tokens": TOKENS}
        body = {"model": self._name, "messages": messages, "temperature": 0} | lengths
        response = self._pool.request("POST", self._url, json=body)
        if response.status != 200:
            raise RuntimeError(f"a chat was answered with {response.status}")
        return response.json()


def _compare(client: openai.OpenAI, chat_client: _ChatClient, inside: _Inside, question: str, videos: bool) -> None:
    """Raises AssertionError if the results of the two sides differ, so that their times cannot be compared."""
    if chat_client.text(question) != inside.text(question):
        raise AssertionError("the two sides answer differently")
    if not videos:
        return
    (video,) = inside.videos(1)
    thumbnail = client.videos.download_content(_finished(client, 0), variant="thumbnail").read()
    keyframe = np.asarray(Image.open(io.BytesIO(thumbnail))).astype(int)
    difference = int(np.abs(keyframe - video.keyframes[0]).max())
    if difference > LEVELS:
        raise AssertionError(f"keyframes of the two sides differ by {difference} levels")


def _prompt(number: int) -> str:
    return f"a ball rolls to the left, number {number}"


def _in_parallel(count: int, work: Callable[[int], T]) -> list[T]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def _first_text(client: openai.OpenAI, name: str, question: str) -> float:
    """Seconds to the first event of a stream, which is then cancelled."""
    messages: Any = [{"role": "user", "content": question}]
    began = time.monotonic()
    with client.chat.completions.create(model=name, messages=messages, max_tokens=TOKENS, stream=True) as stream:
        for _ in stream:
            return time.monotonic() - began
    raise RuntimeError("the stream is empty")


def _video(client: openai.OpenAI, number: int) -> float:
    began = time.monotonic()
    _finished(client, number)
    return time.monotonic() - began


def _finished(client: openai.OpenAI, number: int) -> str:
    """Id of a generated video."""
    job = client.videos.create_and_poll(prompt=_prompt(number), seconds="4", extra_body={"seed": number})
    if job.status != "completed":
        raise RuntimeError(f"a video failed: {job.error}")
    return job.id


def _percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 95, 99)}


@contextlib.contextmanager
def _serving(model: str, copies: int | None) -> Iterator[str]:
    """Starts the service as a user does; yields its URL."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        generation = {name: value for name, value in asdict(SETTINGS).items() if value is not None}
        config = {"model": model, "port": port, "storage": folder, "generation": generation}
        config["language_model"] = {"batch_size": BATCH}
        if copies is not None:
            config["video_detokenizer"] = {"min_replicas": copies, "max_replicas": copies}
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "jobs.serve", "--config", str(file)]
        process = subprocess.Popen(command)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(url, process)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(240):
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/readyz", timeout=5).ok:
                return
        if process.poll() is not None:
            raise RuntimeError("the service did not start")
        time.sleep(0.5)
    raise RuntimeError("the service is not ready after two minutes")


def _show(result: dict[str, Any]) -> None:
    names = {
        "chat_share": f"chats of {TOKENS} tokens, {BATCH} a batch: throughput against in-process",
        "video_share": f"{VIDEOS} videos: throughput against in-process",
        "first_text_seconds": "first text: seconds beyond in-process",
        "chats_concurrent": f"{BATCH} chats at once against one by one",
        "videos_concurrent": f"{VIDEOS} videos at once against one by one",
    }
    table = result_table("the service", "measurement", "result", "goal", "")
    for name, value in result["reached"].items():
        goal = GOALS[name]
        met = value <= goal if name == "first_text_seconds" else value >= goal
        table.add_row(names[name], f"{value:.3g}", f"{goal:g}", "met" if met else "missed")
    for kind, found in result["percentiles"].items():
        table.add_row(
            f"{kind}, seconds, p50 / p95 / p99", " / ".join(f"{value:.2f}" for value in found.values()), "", ""
        )
    console.print(table)


if __name__ == "__main__":
    main()

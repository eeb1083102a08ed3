"""Clients that others wrote, unmodified and each in an environment of its own; and requests of programs too large to
install, built as the source of the named version builds them.

The scripts of the clients are in `clients/`; a user can run them against any service.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .running import Running, picture, video
from .test_clients import MODEL, data_url, frame, text, user

pytestmark = pytest.mark.timeout(900)

SCRIPTS = Path(__file__).with_name("clients")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI", "RAY"))}
ENVIRONMENT["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no list of prices is looked up on the web
NO_REGISTRY = "after connection broken by|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ETIMEDOUT"

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(service: Running, tmp_path: Path) -> Ask:
    """Runs the script of a client, and returns what it printed."""
    photo = tmp_path / "picture.png"
    photo.write_bytes(picture())

    def ask(*script: Any) -> dict[str, Any]:
        words = [*map(str, script), service.url, service.secrets["alice"], MODEL, str(photo)]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    return ask


def install(*words: str) -> None:
    """Runs an installer; the test is skipped where no registry can be reached."""
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=800)
    if done.returncode and re.search(NO_REGISTRY, done.stderr):
        pytest.skip(f"{Path(words[0]).name} reaches no registry of packages")
    assert done.returncode == 0, done.stderr[-4000:]


def python_with(folder: Path, requirement: str) -> Path:
    """Python of a new environment that has a package."""
    install(sys.executable, "-m", "venv", str(folder))
    install(str(folder / "bin" / "pip"), "install", "--retries", "1", requirement)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def node_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the scripts for Node and the packages that they import."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    packages = ("openai@6", "ai@6", "@ai-sdk/openai-compatible@2")
    install(npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--fetch-retries=1", *packages)
    for script in SCRIPTS.glob("*.mjs"):  # Node looks for packages beside the script
        shutil.copy(script, folder)
    return folder


def check_chats(seen: dict[str, Any]) -> None:
    assert seen["chat"]
    assert seen["stream"].strip() == seen["chat"].strip()
    assert seen["picture"]
    assert seen["stream_tokens"] == seen["chat_tokens"]
    assert seen["refusal"]["status"] == 400
    assert "temperature must be at most 2" in seen["refusal"]["message"]


def check_follow_up(seen: dict[str, Any]) -> None:
    assert seen["more"]
    assert seen["more_tokens"] > seen["picture_tokens"]


def check_image(seen: dict[str, Any]) -> None:
    assert Image.open(io.BytesIO(base64.b64decode(seen["image"]))).format == "PNG"


def check_video(seen: dict[str, Any]) -> None:
    assert base64.b64decode(seen["video"])[4:8] == b"ftyp"


def test_litellm(ask: Ask, tmp_path: Path) -> None:
    seen = ask(python_with(tmp_path / "venv", "litellm==1.110.2"), SCRIPTS / "litellm_client.py")
    check_chats(seen)
    check_follow_up(seen)
    check_image(seen)
    check_video(seen)


def test_langchain_openai(ask: Ask, tmp_path: Path) -> None:
    seen = ask(python_with(tmp_path / "venv", "langchain-openai==1.7.4"), SCRIPTS / "langchain_client.py")
    check_chats(seen)
    check_follow_up(seen)


def test_openai_for_javascript(ask: Ask, node_project: Path) -> None:
    seen = ask("node", node_project / "openai_client.mjs")
    check_chats(seen)
    check_follow_up(seen)
    check_image(seen)
    check_video(seen)


def test_ai_sdk(ask: Ask, node_project: Path) -> None:
    seen = ask("node", node_project / "ai_client.mjs")
    check_chats(seen)
    check_follow_up(seen)
    check_image(seen)


# ---- requests of larger programs -----------------------------------------------------------------------------------


def open_webui(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Request of Open WebUI 0.12.4 (`routers/openai.py`), which keeps its own `metadata` to itself."""
    return {"model": MODEL, "messages": list(messages)} | fields


def open_webui_task(instructions: str) -> dict[str, Any]:
    """Request of Open WebUI 0.12.4 (`routers/tasks.py`) about a chat, such as for its title."""
    history = "USER: Which shape is it?\nASSISTANT: A circle.\nUSER: And its colour?\nASSISTANT: Red."
    task = f"### Task:\n{instructions}\n### Output:\nJSON format\n### Chat History:\n<chat_history>\n{history}"
    return open_webui({"role": "user", "content": f"{task}\n</chat_history>"}, stream=False)


OPEN_WEBUI_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_current_timestamp",
            "description": "Get the current Unix timestamp in seconds.",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    }
]
"""Tools that Open WebUI 0.12.4 offers the model in every chat (`utils/tools.py`); there are more of them."""


def lmms_eval(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Request of lmms-eval 0.7.3 (`models/chat/openai.py` and `async_openai.py`, messages of `protocol.py`)."""
    return {"model": MODEL, "messages": [user(*content)], "max_tokens": 1024, "temperature": 0} | fields


def vlmevalkit(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Request of VLMEvalKit at commit 00006c5 (`vlmeval/api/gpt.py`)."""
    system = {"role": "system", "content": "You answer questions about pictures."}
    return {"model": MODEL, "messages": [system, user(*content)], "n": 1, "temperature": 0, "max_tokens": 2048} | fields


STILL = {"type": "image_url", "image_url": {"url": data_url("image/png", picture())}}
MOVING = {"type": "video_url", "video_url": {"url": data_url("video/mp4", video())}}
FRAMES = [frame(number) for number in range(64)]
LETTERS = text("Answer with the option's letter from the given choices directly.")


@pytest.mark.parametrize(
    "request_body",
    [
        pytest.param(
            open_webui_task("Generate a concise, 3-5 word title with an emoji summarizing the chat history."),
            id="Open WebUI: title",
        ),
        pytest.param(
            open_webui_task("Generate 1-3 broad tags categorizing the main themes of the chat history."),
            id="Open WebUI: tags",
        ),
        pytest.param(
            open_webui_task("Suggest 3-5 relevant follow-up questions that the user might ask next."),
            id="Open WebUI: follow-ups",
        ),
        pytest.param(
            open_webui(user(text("Which shape is it?"), STILL), tools=OPEN_WEBUI_TOOLS, stream=False, max_tokens=16),
            id="Open WebUI: picture and tools",
        ),
        pytest.param(lmms_eval(*FRAMES, LETTERS), id="lmms-eval: 64 frames"),
        pytest.param(
            lmms_eval(
                *(part for number in range(8) for part in (text(f"<{number / 2:.1f} seconds>"), FRAMES[number])),
                LETTERS,
            ),
            id="lmms-eval: frames with times",
        ),
        pytest.param(
            lmms_eval(MOVING, LETTERS, media_io_kwargs={"video": {"num_frames": 32}}), id="lmms-eval: video as a URL"
        ),
        pytest.param(
            lmms_eval(STILL, LETTERS, chat_template_kwargs={"enable_thinking": False}, top_p=0.9, seed=1),
            id="lmms-eval: without thinking",
        ),
        pytest.param(vlmevalkit(frame(8), frame(16), LETTERS), id="VLMEvalKit: pictures"),
        pytest.param(vlmevalkit(text("Which shape has no corners?")), id="VLMEvalKit: text"),
    ],
)
def test_a_request_of_a_larger_program_is_answered(service: Running, request_body: dict[str, Any]) -> None:
    answer = service.post("/v1/chat/completions", json=request_body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].strip()


def test_open_webui_streams_a_chat_that_goes_on(service: Running) -> None:
    messages = [
        {"role": "system", "content": "The user's name is Alice."},
        user(text("Which shape is it?"), STILL),
        {"role": "assistant", "content": "A circle."},
        {"role": "user", "content": "And its colour?"},
    ]
    body = open_webui(*messages, stream=True, stream_options={"include_usage": True}, tools=OPEN_WEBUI_TOOLS)
    answer = service.post("/v1/chat/completions", json=body | {"temperature": 0.8, "max_tokens": 16})
    assert answer.status_code == 200, answer.text
    *events, end = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert end == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1]).strip()
    assert chunks[-1]["usage"]["prompt_tokens"] > 0


def test_open_webui_draws_an_image(service: Running) -> None:
    """Request of Open WebUI 0.12.4 (`routers/images.py`) for an image beside a chat."""
    body = {"model": MODEL, "prompt": "a red circle", "n": 1, "size": "auto", "response_format": "b64_json"}
    answer = service.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    check_image({"image": answer.json()["data"][0]["b64_json"]})


def test_keys_begin_as_clients_expect(service: Running) -> None:
    """VLMEvalKit (`vlmeval/api/gpt.py`) takes no other keys."""
    assert all(secret.startswith("sk-") for secret in service.secrets.values())

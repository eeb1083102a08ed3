"""LiteLLM with the service: `python litellm_client.py URL KEY MODEL PICTURE` prints what it got, as JSON."""

import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

import litellm

url, key, name, picture = sys.argv[1:]
server = {"api_base": f"{url}/v1", "api_key": key}
model = {"model": f"openai/{name}", **server}


def ask(*messages: Any, **fields: Any) -> Any:
    return litellm.completion(**model, messages=[*messages], **{"temperature": 0, "max_tokens": 16} | fields)


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


hello = user("Hello?")
answer = ask(hello)
events = list(ask(hello, stream=True, stream_options={"include_usage": True}))
image_url = f"data:image/png;base64,{base64.b64encode(Path(picture).read_bytes()).decode()}"
question = user(
    [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": "Which shape is it?"}]
)
seen = ask(question)
more = ask(question, seen.choices[0].message, user("And its colour?"))
image = litellm.image_generation(**model, prompt="a red circle")
job = litellm.video_generation(**model, prompt="a red circle moves right", seconds="4")
while job.status in ("queued", "in_progress"):
    time.sleep(0.2)
    job = litellm.video_status(video_id=job.id, **server)
video = litellm.video_content(video_id=job.id, **server)
try:
    ask(hello, temperature=3)
except litellm.BadRequestError as error:
    refusal = {"status": error.status_code, "message": str(error)}

print(
    json.dumps(
        {
            "chat": answer.choices[0].message.content,
            "chat_tokens": answer.usage.prompt_tokens,
            "stream": "".join(event.choices[0].delta.content or "" for event in events if event.choices),
            "stream_tokens": events[-1].usage.prompt_tokens,
            "picture": seen.choices[0].message.content,
            "picture_tokens": seen.usage.prompt_tokens,
            "more": more.choices[0].message.content,
            "more_tokens": more.usage.prompt_tokens,
            "image": image.data[0].b64_json,
            "video": base64.b64encode(video).decode(),
            "refusal": refusal,
        }
    )
)

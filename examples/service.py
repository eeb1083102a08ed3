"""For services: start the service from Python, and ask it with the official OpenAI client.

The preset `tiny` has untrained weights: everything runs, and the results mean nothing. Run the cells one by one in an
editor, or all with `python examples/service.py`. Files go to the current folder.
"""

# %% Imports
import base64
import contextlib
import socket
from pathlib import Path

from openai import OpenAI

from serve.launch import serving
from serve.settings import ServeSettings
from videolavit.generation.settings import GenerateSettings

# %% Settings: the options of `videolavit serve`, as one typed object
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]  # one that is free; a service of your own has a fixed one

settings = ServeSettings(
    model="tiny",
    storage="service-data",
    port=port,
    generation=GenerateSettings(keyframe_steps=4, video_steps=3),  # few denoising steps, to be quick
)

# %% Start. `with serving(settings) as service:` does the same in a program
stack = contextlib.ExitStack()
service = stack.enter_context(serving(settings))
client = OpenAI(base_url=f"{service.url}/v1", api_key="none")
print(service.model, "is served at", service.url)

# %% A chat, streamed
stream = client.chat.completions.create(
    model=service.model,
    messages=[{"role": "user", "content": "What is a keyframe?"}],
    max_tokens=16,
    seed=1,
    stream=True,
)
answer = "".join(event.choices[0].delta.content or "" for event in stream)
print("answer:", answer)

# %% A picture, and a question about it
image = client.images.generate(prompt="a red circle", extra_body={"seed": 1}).data[0].b64_json
Path("picture.png").write_bytes(base64.b64decode(image))
content = [
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
    {"type": "text", "text": "What is this?"},
]
reply = client.chat.completions.create(
    model=service.model, messages=[{"role": "user", "content": content}], max_tokens=8
)
print("about the picture:", reply.choices[0].message.content)

# %% A video: queued, polled, downloaded
job = client.videos.create_and_poll(prompt="a red circle moves right", seconds="4", extra_body={"seed": 1})
client.videos.download_content(job.id).write_to_file("video.mp4")
print("video:", job.status, Path("video.mp4").stat().st_size, "bytes")

# %% Stop: requests in flight are finished, and video jobs in progress return to the queue
stack.close()

"""LangChain with the service: `python langchain_client.py URL KEY MODEL PICTURE` prints what it got, as JSON."""

import base64
import functools
import json
import operator
import sys
from pathlib import Path
from typing import Any

import openai
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

url, key, name, picture = sys.argv[1:]


def chat_model(**fields: Any) -> ChatOpenAI:
    settings: Any = {"temperature": 0, "max_tokens": 16, "stream_usage": True} | fields
    return ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=name, max_retries=0, **settings)


model = chat_model()
answer = model.invoke("Hello?")
streamed = functools.reduce(operator.add, model.stream("Hello?"))
image = {"type": "image", "base64": base64.b64encode(Path(picture).read_bytes()).decode(), "mime_type": "image/png"}
question = HumanMessage([image, {"type": "text", "text": "Which shape is it?"}])
seen = model.invoke([question])
more = model.invoke([question, seen, HumanMessage("And its colour?")])
try:
    chat_model(temperature=3).invoke("Hello?")
except openai.BadRequestError as error:
    refusal = {"status": error.status_code, "message": error.message}

print(
    json.dumps(
        {
            "chat": answer.content,
            "chat_tokens": answer.usage_metadata["input_tokens"],
            "stream": streamed.content,
            "stream_tokens": streamed.usage_metadata["input_tokens"],
            "picture": seen.content,
            "picture_tokens": seen.usage_metadata["input_tokens"],
            "more": more.content,
            "more_tokens": more.usage_metadata["input_tokens"],
            "refusal": refusal,
        }
    )
)

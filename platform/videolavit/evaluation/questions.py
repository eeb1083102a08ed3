"""Questions about synthetic videos, with answers that are known to be true."""

from collections.abc import Iterator
from typing import Any

from videolavit.synth import DIRECTIONS, MovingShape, Scene

DIRECTION_QUESTION = "Which direction does it move?"


def chat_records(scene: Scene, name: str, video: str) -> Iterator[dict[str, Any]]:
    """Yields conversations in LLaVA's format: each shape's direction and form, and the colour of a single shape.

    Args:
        name: Name of the video, with which the ids start.
        video: Path of the video, relative to the file of the records.
    """
    single = len(scene.shapes) == 1
    for number, shape in enumerate(scene.shapes):
        for topic, (question, answer) in _questions(shape, single).items():
            turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": answer}]
            yield {"id": f"{name}-{number}-{topic}", "video": video, "conversations": turns}


def _questions(shape: MovingShape, single: bool) -> dict[str, tuple[str, str]]:
    """Topic -> question and answer. Several shapes are told apart by their colours, which always differ."""
    it = "it" if single else f"the {shape.colour} one"
    questions = {
        "direction": (f"Which direction does {it} move?", f"It moves {shape.direction}."),
        "shape": (f"What shape is {it}?", f"It is a {shape.shape}."),
    }
    return questions | ({"colour": ("What colour is it?", f"It is {shape.colour}.")} if single else {})


def direction_in_answer(answer: str) -> str | None:
    """First direction that an answer names; None if it names none."""
    words = answer.lower().replace(".", " ").replace(",", " ").split()
    return next((word for word in words if word in DIRECTIONS), None)

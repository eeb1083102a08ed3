"""Questions about synthetic videos, with answers that are known to be true."""

from collections.abc import Iterator
from typing import Any

from videolavit.synth import DIRECTIONS, MovingShape, Scene

DIRECTION = "Which direction does it move?"


def chat_records(scene: Scene, name: str, video: str) -> Iterator[dict[str, Any]]:
    """Records as LLaVA's: a question about each shape's direction, one about its form, and about a lone one's colour.

    Args:
        name: Of the video; the ids start with it.
        video: Where it is, relative to the file of the records.
    """
    for number, shape in enumerate(scene.shapes):
        for topic, (question, answer) in _questions(shape, alone=len(scene.shapes) == 1).items():
            turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": answer}]
            yield {"id": f"{name}-{number}-{topic}", "video": video, "conversations": turns}


def _questions(shape: MovingShape, alone: bool) -> dict[str, tuple[str, str]]:
    """Topic -> question and answer. One of several shapes is named by its colour, which the others never have."""
    it = "it" if alone else f"the {shape.colour} one"
    questions = {
        "direction": (f"Which direction does {it} move?", f"It moves {shape.direction}."),
        "shape": (f"What shape is {it}?", f"It is a {shape.shape}."),
    }
    return questions | ({"colour": ("What colour is it?", f"It is {shape.colour}.")} if alone else {})


def direction_in(answer: str) -> str | None:
    """The direction that an answer names first; None if it names none."""
    words = answer.lower().replace(".", " ").replace(",", " ").split()
    return next((word for word in words if word in DIRECTIONS), None)

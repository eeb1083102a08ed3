"""Questions about synthetic videos, with answers that are true by construction."""

from collections.abc import Iterator
from typing import Any

from .scenes import MovingShape, Scene


def chat_records(scene: Scene, name: str, video: str) -> Iterator[dict[str, Any]]:
    """Yields conversation records in LLaVA's format, one for each question.

    Every shape is asked for its direction and its form; a shape that is alone in its video also for its colour.

    Args:
        name: Name of the video, with which the ids of its records begin.
        video: Path of the video, relative to the file of the records.
    """
    for number, shape in enumerate(scene.shapes):
        for topic, (question, answer) in _questions(shape, alone=len(scene.shapes) == 1).items():
            turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": answer}]
            yield {"id": f"{name}-{number}-{topic}", "video": video, "conversations": turns}


def _questions(shape: MovingShape, alone: bool) -> dict[str, tuple[str, str]]:
    """Returns topic -> (question, answer). Two shapes are distinguished by their colours, which always differ."""
    it = "it" if alone else f"the {shape.colour} one"
    questions = {
        "direction": (f"Which direction does {it} move?", f"It moves {shape.direction}."),
        "shape": (f"What shape is {it}?", f"It is a {shape.shape}."),
    }
    return questions | ({"colour": ("What colour is it?", f"It is {shape.colour}.")} if alone else {})

"""The question that measures what a model understands of motion, and how its answer is read."""

from videolavit.synth import DIRECTIONS

DIRECTION_QUESTION = "Which direction does it move?"


def direction_in_answer(answer: str) -> str | None:
    """First direction that an answer names; None if it names none."""
    words = answer.lower().replace(".", " ").replace(",", " ").split()
    return next((word for word in words if word in DIRECTIONS), None)

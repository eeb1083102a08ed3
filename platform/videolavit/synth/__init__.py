"""Synthetic videos whose content and motion are known: scenes, their frames, and captioned corpora of them."""

from .corpus import MANIFEST, QUESTIONS, RenderedCorpus, render_corpus
from .questions import chat_records
from .scenes import (
    COLOURS,
    DIRECTIONS,
    OUTLINES,
    MovingShape,
    Scene,
    SynthSettings,
    draw_scene,
    is_held_out,
    render,
)

__all__ = [
    "COLOURS",
    "DIRECTIONS",
    "MANIFEST",
    "OUTLINES",
    "QUESTIONS",
    "MovingShape",
    "RenderedCorpus",
    "Scene",
    "SynthSettings",
    "chat_records",
    "draw_scene",
    "is_held_out",
    "render",
    "render_corpus",
]

"""Evaluation of a model on synthetic videos, whose captions and motion are known."""

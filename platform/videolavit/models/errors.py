"""Errors of models, for code that must not load torch."""


class ModelError(ValueError):
    """A model cannot be built or loaded as asked; the message names the fix."""

"""Measures of what a model makes: in pixels, in motion, and against the captions of synthetic videos."""

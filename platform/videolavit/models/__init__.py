"""The networks, at every size.

`diffusers` and `transformers` take seconds to load, which tokenizing does without: modules that are loaded with the
tokenizers import them where they are used.
"""

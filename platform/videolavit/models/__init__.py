"""Networks, their training objectives, and models on disk.

`diffusers` and `transformers` take seconds to import, and the tokenizers need neither. Modules that are imported with
the tokenizers therefore import the two where they are used.
"""

"""Model folders made from weights that people have: language models, diffusion models, and tokenizers."""

from .assembling import AssembleSettings, AssembleSummary, assemble
from .found import PartReport

__all__ = ["AssembleSettings", "AssembleSummary", "PartReport", "assemble"]

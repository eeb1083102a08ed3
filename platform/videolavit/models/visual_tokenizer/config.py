"""Shape of the visual tokenizer."""

from pydantic.dataclasses import dataclass

from ..network import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VisualTokenizerConfig:
    """Shape of the visual tokenizer; the defaults are the published ones.

    Args:
        image_size: Side of the square images, in pixels.
        patch_size: Side of a patch, in pixels.
        width: Channels of the vision transformer, selector and merger.
        vit_layers: Blocks of the vision transformer.
        vit_heads: Attention heads of the vision transformer.
        vit_head_out: Outputs of the vision transformer's head, which is in the weights and unused.
        mlp_ratio: Hidden channels of an MLP, in multiples of `width`.
        merger_layers: Blocks of the merger.
        merger_heads: Attention heads of the merger.
        num_codes: Size of the codebook.
        code_dim: Channels of a code.
        features_dim: Channels of the continuous features for understanding; None for a tokenizer without them.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1408
    vit_layers: int = 40
    vit_heads: int = 16
    vit_head_out: int = 1024
    mlp_ratio: float = 4.3637
    merger_layers: int = 12
    merger_heads: int = 16
    num_codes: int = 16384
    code_dim: int = 32
    features_dim: int | None = 4096

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError("image_size must be a multiple of patch_size")
        if self.width % 2:
            raise ValueError("width must be even: the selector splits it into a local and a global half")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

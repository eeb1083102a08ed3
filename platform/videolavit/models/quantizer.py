"""Vector quantization as in the published tokenizers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CODEBOOK = "quantize.embedding.weight"
"""Name of the codebook among a tokenizer's tensors."""


class CodeOutOfRange(ValueError):
    """Code that is not in the codebook."""


class Quantizer(nn.Module):
    """Codebook of `num_codes` vectors.

    Inputs are normalized and the stored rows are not. These are unit vectors only after initialization, so this is not
    a search by cosine (docs/model.md, section 2.5).
    """

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, code_dim)
        with torch.no_grad():
            self.embedding.weight.copy_(F.normalize(self.embedding.weight, dim=-1))

    @property
    def num_codes(self) -> int:
        return self.embedding.num_embeddings

    def distances(self, z: Tensor) -> Tensor:
        """Computes squared distances [..., num_codes] of normalized vectors [..., code_dim] to all codes in float32."""
        z = F.normalize(z.float(), dim=-1)
        codes = self.embedding.weight.float()
        return z.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * z @ codes.T

    def forward(self, z: Tensor) -> Tensor:
        """Returns the nearest codes [...] of vectors [..., code_dim]."""
        return self.distances(z).argmin(-1)

    def lookup(self, ids: Tensor) -> Tensor:
        """Returns the vectors [..., code_dim] of codes [...]. Raises CodeOutOfRange."""
        check_codes(ids, self.num_codes)
        return self.embedding(ids)


def check_codes(ids: Tensor, num_codes: int) -> None:
    """Raises CodeOutOfRange for a code outside 0 to num_codes - 1."""
    if ids.numel() and not ids.is_meta:
        low, high = (int(value) for value in torch.aminmax(ids))
        if low < 0 or high >= num_codes:
            wrong = low if low < 0 else high
            raise CodeOutOfRange(f"code {wrong} is out of range: the codebook has codes 0 to {num_codes - 1}")

"""Training of a codebook beside a network: k-means start, moving averages, and revival of unused codes.

A codebook has no gradient. Its state is equal on all ranks and is kept in buffers, so that checkpoints contain it.
"""

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from videolavit.perplexity import perplexity

from .network import STRICT
from .objective import Objective, Reduce
from .quantizer import Quantizer

RECENT_PER_CODE = 4
"""Recent vectors that are kept for k-means and revivals, per code."""

LLOYD_STEPS = 20
DISTANCE_CHUNK = 4096
"""Vectors per chunk of k-means; bounds its memory."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CodebookSettings:
    """Training of a codebook.

    Args:
        quantize_from: Optimizer steps before vectors are quantized. The codes then start at the k-means centres of
            recent vectors. 0 quantizes from the start with the network's own codes, to continue training a tokenizer.
            The published model was trained in two such stages; their length is not published.
        decay: Decay of the moving averages per step; 0.995 as published.
        revive_below: Codes whose average use falls below this share of the mean use move to a recent vector. Not
            published. Much higher values keep moving codes that are rare for good reason.
    """

    quantize_from: int = 2000
    decay: float = 0.995
    revive_below: float = 0.1

    def __post_init__(self) -> None:
        if self.quantize_from < 0:
            raise ValueError(f"quantize_from must be at least 0, not {self.quantize_from}")
        for name in ("decay", "revive_below"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be 0 or more and below 1, not {getattr(self, name):g}")


class CodebookLearner(nn.Module):
    """State of training a codebook. The quantizer itself belongs to the network and is passed to every call.

    `forward` collects vectors; `update` learns from them, once per step.
    """

    recent: Tensor
    """Normalized vectors of the last steps, [4 num_codes, code_dim]; zero where there is none yet."""

    def __init__(self, num_codes: int, code_dim: int, settings: CodebookSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("average_uses", torch.ones(num_codes))
        self.register_buffer("average_sums", torch.zeros(num_codes, code_dim))
        self.register_buffer("recent", torch.zeros(RECENT_PER_CODE * num_codes, code_dim))
        self.register_buffer("uses", torch.zeros(num_codes))
        self.register_buffer("revived", torch.zeros(()))
        self.steps: Tensor
        self.started: Tensor
        self.average_uses: Tensor
        self.average_sums: Tensor
        self.uses: Tensor
        self.revived: Tensor
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, quantizer: Quantizer, z: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Quantizes vectors, with the gradient passed straight through.

        Args:
            quantizer: The network's quantizer.
            z: Vectors before quantization, [n, code_dim].
            keys: A uniform random number for each vector, [n]; they decide which vectors are kept as recent ones.

        Returns:
            Code vectors [n, code_dim], or the normalized vectors before quantization begins; and the squared distances
            of the vectors to their codes, float32 [n], for the commitment term.
        """
        with torch.autocast(z.device.type, enabled=False):
            return self._quantized(quantizer, z, keys)

    def _quantized(self, quantizer: Quantizer, z: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        vectors = F.normalize(z.float(), dim=-1)
        if not self.quantizing:
            self._collect(vectors, keys, keys.new_zeros(0, dtype=torch.int64))
            return vectors.to(z.dtype), torch.zeros_like(keys)
        ids = quantizer(vectors.detach())
        self._collect(vectors, keys, ids)
        codes = quantizer.embedding.weight[ids].detach().float()
        distances = (vectors - codes).square().sum(-1)
        return (vectors + (codes - vectors).detach()).to(z.dtype), distances

    @property
    def quantizing(self) -> bool:
        return bool(self.started) or self.settings.quantize_from == 0

    def remaining_warmup(self) -> Tensor:
        """Returns the remaining share of the steps before quantization, from 1 to 0."""
        return (1 - self.steps / max(self.settings.quantize_from, 1)).clamp(min=0) * (not self.quantizing)

    def _collect(self, vectors: Tensor, keys: Tensor, ids: Tensor) -> None:
        if self.training and torch.is_grad_enabled():
            self._seen.append((vectors.detach(), keys, ids))

    def discard(self) -> None:
        """Discards the vectors collected since the last update."""
        self._seen.clear()

    @torch.no_grad()
    def update(self, quantizer: Quantizer, reduce: Reduce) -> None:
        """Learns from the vectors that all ranks collected since the last call."""
        nothing = self.recent[:0], self.uses[:0], self.steps.new_zeros(0)  # for a rank that collected no vector
        vectors, keys, ids = (torch.cat(parts) for parts in zip(nothing, *self._seen, strict=True))
        self._seen.clear()
        self._keep_recent(vectors, keys, reduce)
        self.steps += 1
        codes = quantizer.embedding.weight
        if self.quantizing:
            if not self.started:
                self._start(codes.float())
            self._average(vectors, ids, reduce)
            self._revive()
            codes.copy_(F.normalize(self.average_sums, dim=-1))
        elif self.steps >= self.settings.quantize_from:
            codes.copy_(kmeans(self.recent[self.recent.any(-1)], len(codes)))
            self._start(codes.float())

    def _start(self, codes: Tensor) -> None:
        self.average_sums.copy_(codes)
        self.started.fill_(True)

    def _keep_recent(self, vectors: Tensor, keys: Tensor, reduce: Reduce) -> None:
        """Stores vectors in the slots that their keys select; a slot that two vectors select stays as it is.

        The result is a fair sample that does not depend on the number of ranks.
        """
        places = len(self.recent)
        total = int(reduce(torch.tensor(float(len(vectors)), device=vectors.device)))
        place = (keys.double() * max(total, places)).long()
        kept = place < places
        arrived = self.recent.new_zeros(places, self.recent.shape[1] + 1)
        arrived.index_add_(0, place[kept], F.pad(vectors[kept], (0, 1), value=1.0))
        arrived = reduce(arrived)
        self.recent.copy_(torch.where(arrived[:, -1:] == 1, arrived[:, :-1], self.recent))

    def _average(self, vectors: Tensor, ids: Tensor, reduce: Reduce) -> None:
        """Updates the averages. Uses are counted in multiples of their mean."""
        sums = self.average_sums.new_zeros(len(self.average_uses), vectors.shape[1] + 1)
        sums = reduce(sums.index_add_(0, ids, F.pad(vectors, (0, 1), value=1.0)))
        uses = sums[:, -1]
        self.uses += uses
        mean = uses.mean()
        if mean > 0:
            self.average_sums.lerp_(sums[:, :-1] / mean, 1 - self.settings.decay)
            self.average_uses.lerp_(uses / mean, 1 - self.settings.decay)

    def _revive(self) -> None:
        """Moves codes that are hardly used to recent vectors, which are dense where codes are needed."""
        recent = self.recent[self.recent.any(-1)]
        dead = (self.average_uses < self.settings.revive_below).nonzero().flatten()[: len(recent)]
        if len(dead) == 0:
            return
        shuffled = torch.randperm(len(recent), generator=torch.Generator().manual_seed(int(self.steps)))
        self.average_sums[dead] = recent[shuffled[: len(dead)].to(recent.device)]
        self.average_uses[dead] = 1.0
        self.revived += len(dead)

    def statistics(self) -> dict[str, float]:
        """Returns the use of the codes since the last call; empty before quantization begins.

        `codebook_usage` is the share of codes that were used, `codebook_perplexity` the perplexity of their use, and
        `codebook_revived` the number of unused codes that were moved.
        """
        if not self.uses.any():
            return {}
        statistics = use_of_codes(self.uses) | {"codebook_revived": float(self.revived)}
        self.uses.zero_()
        self.revived.zero_()
        return statistics


class CodebookObjective(Objective):
    """Objective of a tokenizer with a codebook."""

    tokenizer: nn.Module
    codebook: CodebookLearner

    def after_step(self, reduce: Reduce) -> None:
        quantizer = self.tokenizer.quantize
        assert isinstance(quantizer, Quantizer)
        self.codebook.update(quantizer, reduce)

    def drop_step(self) -> None:
        self.codebook.discard()

    def statistics(self) -> dict[str, float]:
        return self.codebook.statistics()


def use_of_codes(uses: Tensor) -> dict[str, float]:
    """Computes the share of codes used and the perplexity from the number of uses of each code, [num_codes]."""
    return {"codebook_usage": float((uses > 0).double().mean()), "codebook_perplexity": perplexity(uses.cpu().numpy())}


def kmeans(vectors: Tensor, num_codes: int) -> Tensor:
    """Clusters unit vectors [n, dim] by Lloyd's algorithm. Returns unit centres [num_codes, dim].

    It runs on the CPU, where every rank gets the same result. A centre without vectors moves to one of the vectors
    furthest from their centres. With fewer vectors than codes, several centres start at the same vector.
    """
    here = vectors.cpu()
    centres = _first_centres(here, num_codes)
    for _ in range(LLOYD_STEPS):
        likeness, ids = _nearest(here, centres)
        sums = torch.zeros_like(centres).index_add_(0, ids, here)
        empty = (torch.bincount(ids, minlength=num_codes) == 0).nonzero().flatten()[: len(here)]
        sums[empty] = here[likeness.argsort()[: len(empty)]]
        centres = F.normalize(sums, dim=-1)
    return centres.to(vectors.device)


def _first_centres(vectors: Tensor, num_codes: int) -> Tensor:
    """Draws first centres by k-means++: a vector is likelier the further it is from the centres so far."""
    chance = torch.rand(num_codes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance = vectors.new_ones(len(vectors), dtype=torch.float64)
    chosen = []
    for share in chance:
        total = distance.cumsum(0)
        chosen.append(min(int(torch.searchsorted(total, share * total[-1])), len(vectors) - 1))
        distance = torch.minimum(distance, (1 - vectors @ vectors[chosen[-1]]).clamp(min=0).double())
    return vectors[chosen]


def _nearest(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cosine of each vector to its nearest centre, and that centre's index, both [n]."""
    found = [(chunk @ centres.T).max(-1) for chunk in vectors.split(DISTANCE_CHUNK)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])

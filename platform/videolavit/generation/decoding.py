"""Token by token out of a language model: guided, constrained, in batches, with a key-value cache."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass as settings_dataclass
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from videolavit.models.network import STRICT

from .kv_cache import ROOM, RowsCache

OnToken = Callable[[int], None]
"""Called with the number of steps made; it may raise to stop."""


@dataclass(frozen=True)
class TokenPolicy:
    """Which ids may come, and how many.

    Args:
        allowed: Ranges of ids.
        end: Ends a row; allowed from `min_new` on, never part of the result.
        min_new: Fewest ids.
        max_new: Most ids.
    """

    allowed: tuple[range, ...]
    end: int
    min_new: int
    max_new: int

    def ids(self, device: torch.device) -> Tensor:
        """All ids that can be chosen, the end last; [n]."""
        ranges = [torch.arange(ids.start, ids.stop, device=device) for ids in self.allowed]
        ids = torch.cat(ranges)
        return torch.cat([ids[ids != self.end], ids.new_tensor([self.end])])


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class Sampling:
    """How an id is chosen from its scores.

    Args:
        temperature: Scores are divided by it; 0 takes the best id always.
        top_k: Only so many of the best ids; None for all.
        top_p: Only the fewest ids that have this share of the probability together.
    """

    temperature: float = 1.0
    top_k: int | None = 200
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise ValueError("temperature must be at least 0, top_p above 0 and at most 1, top_k at least 1")


GREEDY = Sampling(temperature=0.0, top_k=None)


@dataclass(frozen=True)
class Prompts:
    """Prompts as embeddings, padded on the left.

    Args:
        embeds: [batch, length, hidden].
        attention_mask: bool [batch, length].
    """

    embeds: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class DecodeStep:
    """One id of every row.

    Args:
        ids: The id of each row, None for one that has ended.
        scores: Log-probabilities of all ids, after guidance and before the policy, float32 [batch, vocabulary].
    """

    ids: list[int | None]
    scores: Tensor = field(repr=False)


def embed_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Prompts:
    """Prompts of token ids."""
    embed = model.get_input_embeddings()
    return pad_prompts([embed(torch.tensor(prompt, device=model.device)) for prompt in prompts])


def pad_prompts(prompts: Sequence[Tensor]) -> Prompts:
    """Prompts [length, hidden] as a batch."""
    embeds = pad_sequence(list(prompts), batch_first=True, padding_side="left")
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=embeds.device)
    return Prompts(embeds, torch.arange(embeds.shape[1], device=embeds.device) >= embeds.shape[1] - lengths[:, None])


@torch.inference_mode()
def steps(
    model: PreTrainedModel,
    prompts: Prompts,
    policy: TokenPolicy,
    sampling: Sequence[Sampling],
    generators: Sequence[torch.Generator],
    guidance: float | None = None,
) -> Iterator[DecodeStep]:
    """Yields one id a row at a time, until all rows have ended.

    A row's ids depend on its own prompt and generator only. With guidance the batch is doubled: the unconditional half
    starts from the last prompt token alone, as published, and both halves are fed what is chosen. The guided score is
    g (conditional - unconditional) + unconditional, on log-probabilities.

    Args:
        sampling: Of each row.
        generators: Of each row.
        guidance: Scale g; None for none.
    """
    rows = len(prompts.embeds)
    reader = DecodeBatch(model, prompts if guidance is None else _with_unconditional(prompts))
    choosers = [Sampler(one, generator) for one, generator in zip(sampling, generators, strict=True)]
    ids = policy.ids(model.device)
    ended = [False] * rows
    for step in range(policy.max_new):
        scores = F.log_softmax(reader.logits.float(), dim=-1)
        if guidance is not None:
            conditional, unconditional = scores.chunk(2)
            scores = guided(conditional, unconditional, guidance)
        options = len(ids) if step >= policy.min_new else len(ids) - 1
        chosen = [
            policy.end if done else int(ids[choose(row[ids[:options]])])
            for done, choose, row in zip(ended, choosers, scores, strict=True)
        ]
        ended = [done or token == policy.end for done, token in zip(ended, chosen, strict=True)]
        yield DecodeStep([None if done else token for done, token in zip(ended, chosen, strict=True)], scores)
        if all(ended) or step + 1 == policy.max_new:
            return
        reader.feed(chosen if guidance is None else chosen * 2)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Guided scores of log-probabilities."""
    return scale * (conditional - unconditional) + unconditional


def decode(
    model: PreTrainedModel,
    prompts: Prompts,
    policy: TokenPolicy,
    sampling: Sequence[Sampling],
    generators: Sequence[torch.Generator],
    guidance: float | None = None,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """All ids of every row; see `steps`."""
    rows: list[list[int]] = [[] for _ in prompts.embeds]
    for number, step in enumerate(steps(model, prompts, policy, sampling, generators, guidance), 1):
        for row, token in zip(rows, step.ids, strict=True):
            if token is not None:
                row.append(token)
        if on_token is not None:
            on_token(number)
    return rows


class DecodeBatch:
    """The language model, its key-value cache, and its logits [rows, vocabulary] for the next id of each row.

    Rows may come and go between two ids. Their padding is on the left, and positions are a row's own, so that what is
    in the other rows changes nothing.

    Args:
        model: A causal language model.
        prompts: What is to be read.
        known: Keys and values of what comes before each of the prompts, [2, layers, heads, ids, channels], which may
            be without an id.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts, known: Sequence[Tensor] = ()) -> None:
        self._model = model
        self._cache = RowsCache(model.config)
        mask = prompts.attention_mask
        before = torch.tensor([one.shape[3] for one in known] or [0] * len(mask), device=mask.device)
        most, gaps = int(before.max()), mask.shape[1] - mask.sum(1)
        positions = (mask.cumsum(1) - 1).clamp(min=0) + before[:, None]
        self._length = most + mask.shape[1]
        self._set_padding(most - before + gaps)
        if most:
            self._cache.begin(known)
            mask = torch.cat([torch.arange(most, device=mask.device) >= most - before[:, None], mask], dim=1)
        self.logits = self._run(
            mask if most or self._is_padded else None, inputs_embeds=prompts.embeds, position_ids=positions
        )
        self._cache.close(before.tolist(), most, gaps.tolist())

    def feed(self, tokens: list[int]) -> None:
        """Appends one id to every row."""
        ids = torch.tensor(tokens, device=self._model.device)[:, None]
        positions = (self._length - self._padding)[:, None]
        self._length += 1
        self.logits = self._run(self._bias(), input_ids=ids, position_ids=positions)

    def join(self, other: "DecodeBatch") -> None:
        """Takes over the rows of another reader of the same model, behind its own."""
        length = max(self._length, other._length)
        self._set_padding(torch.cat([one._padding + (length - one._length) for one in (self, other)]))
        self._length = length
        self.logits = torch.cat([self.logits, other.logits])
        self._cache.join(other._cache)

    def keep(self, rows: Sequence[int]) -> None:
        """Forgets all rows but these, in this order, and the padding that none of them needs."""
        chosen = torch.tensor(rows, device=self._padding.device)
        padding = self._padding[chosen]
        unused = int(padding.min())
        self._set_padding(padding - unused)
        self._length -= unused
        self.logits = self.logits[chosen]
        self._cache.keep(rows, unused)

    def keys_and_values(self, row: int, first: int, end: int) -> Tensor:
        """Of some ids of a row, [2, layers, heads, ids, channels]."""
        padding = int(self._padding[row])
        return self._cache.read(row, padding + first, padding + end)

    def _set_padding(self, padding: Tensor) -> None:
        """Ids on the left of each row that are none, [rows]."""
        self._padding = padding
        self._is_padded = bool(padding.any())
        self._biases: Tensor | None = None

    def _bias(self) -> Tensor | None:
        """What is added to the attention of one id to all before it, [rows, 1, 1, length].

        Made for many ids to come: the model would make it anew for each, and its kernels convert it in every layer.
        Without padding they need none.
        """
        if not self._is_padded:
            return None
        if self._biases is None or self._biases.shape[-1] < self._length:
            places = torch.arange(self._length + ROOM, device=self._padding.device)
            biases = torch.zeros(len(self._padding), 1, 1, len(places), dtype=self._model.dtype, device=places.device)
            self._biases = biases.masked_fill_(places < self._padding[:, None, None, None], -torch.inf)
        return self._biases[..., : self._length]

    def _run(self, mask: Tensor | None, **inputs: Tensor) -> Tensor:
        output = self._model(
            **inputs, attention_mask=mask, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[:, -1]


class Sampler:
    """Draws an index from scores with a row's own settings and generator."""

    def __init__(self, sampling: Sampling, generator: torch.Generator) -> None:
        self._sampling, self._generator = sampling, generator
        self._warpers = LogitsProcessorList()
        if sampling.temperature not in (0.0, 1.0):
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k is not None:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, scores: Tensor) -> int:
        """Index into scores [n]."""
        if self._sampling.temperature == 0:
            return int(scores.argmax())
        warped = self._warpers(None, scores[None])[0].cpu()
        # Gumbel's trick: the largest of noisy scores is a draw from their softmax, and takes one row of noise only
        noise = torch.empty_like(warped).exponential_(generator=self._generator)
        return int((warped - noise.log()).argmax())


def _with_unconditional(prompts: Prompts) -> Prompts:
    """The prompts, and behind them as many rows of the last token alone."""
    alone = torch.zeros_like(prompts.attention_mask)
    alone[:, -1] = True
    return Prompts(torch.cat([prompts.embeds, prompts.embeds]), torch.cat([prompts.attention_mask, alone]))

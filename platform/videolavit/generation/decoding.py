"""Autoregressive decoding of a language model: prefill, batched decode steps with a KV cache, guidance, sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass as settings_dataclass
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from videolavit.models.language_model.families import has_windows
from videolavit.models.network import STRICT

from .kv_cache import SPARE_TOKENS, BatchKVCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes two seconds to import

OnDecodeStep = Callable[[int], None]
"""Called after each decode step with the number of steps done. It may raise to stop."""


@dataclass(frozen=True)
class TokenPolicy:
    """Constraint on the token ids and on the length of a generated sequence.

    Args:
        allowed: Ranges of ids that may be generated.
        end: Id that ends the sequence. It is allowed after `min_new` ids, and is not part of the result.
        min_new: Smallest number of generated ids.
        max_new: Largest number of generated ids.
        other_ends: Further ids that end the sequence as `end` does.
    """

    allowed: tuple[range, ...]
    end: int
    min_new: int
    max_new: int
    other_ends: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end the sequence."""
        return (self.end, *self.other_ends)

    def ids(self, device: torch.device) -> Tensor:
        """All ids that may be generated, [n], with the ids that end the sequence last."""
        ranges = [torch.arange(ids.start, ids.stop, device=device) for ids in self.allowed]
        ids = torch.cat(ranges)
        ends = ids.new_tensor(self.ends)
        return torch.cat([ids[~torch.isin(ids, ends)], ends])


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class Sampling:
    """Sampling of token ids from logits.

    Args:
        temperature: Divisor of the logits; 0 for greedy decoding.
        top_k: Number of most probable ids to sample from; None for all.
        top_p: Share of the probability that the sampled ids must cover (nucleus sampling); 1 for all.
    """

    temperature: float = 1.0
    top_k: int | None = 200
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise ValueError("temperature must be at least 0, top_p above 0 and at most 1, top_k at least 1")


GREEDY = Sampling(temperature=0.0, top_k=None)


@dataclass(frozen=True)
class PaddedPrompts:
    """Embeddings of a batch of prompts, padded on the left.

    Args:
        embeds: [batch, length, hidden].
        attention_mask: bool [batch, length], False at padding.
    """

    embeds: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class DecodeStep:
    """Token ids that one decode step generated for a batch.

    Args:
        ids: Id of each row; None for a row that has ended.
        log_probs: Log-probabilities of all ids after guidance and before the policy, float32 [batch, vocabulary].
    """

    ids: list[int | None]
    log_probs: Tensor = field(repr=False)


def embed_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> PaddedPrompts:
    """Embeds and pads prompts given as token ids."""
    embed = model.get_input_embeddings()
    return pad_prompts([embed(torch.tensor(prompt, device=model.device)) for prompt in prompts])


def pad_prompts(prompts: Sequence[Tensor]) -> PaddedPrompts:
    """Pads embedded prompts [length, hidden] to a batch."""
    embeds = pad_sequence(list(prompts), batch_first=True, padding_side="left")
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=embeds.device)
    mask = torch.arange(embeds.shape[1], device=embeds.device) >= embeds.shape[1] - lengths[:, None]
    return PaddedPrompts(embeds, mask)


@torch.inference_mode()
def decode_steps(
    model: PreTrainedModel,
    prompts: PaddedPrompts,
    policy: TokenPolicy,
    sampling: Sequence[Sampling],
    generators: Sequence[torch.Generator],
    guidance: float | None = None,
) -> Iterator[DecodeStep]:
    """Yields one decode step of the batch at a time, until all rows have ended.

    The ids of a row depend on its own prompt and generator only. Guidance doubles the batch: the unconditional rows
    have only the last prompt token as their prompt, as published, and both halves are fed the sampled ids. The guided
    log-probability is g (conditional - unconditional) + unconditional.

    Args:
        sampling: Sampling settings of each row.
        generators: Random generator of each row.
        guidance: Guidance scale g; None for decoding without guidance.
    """
    rows = len(prompts.embeds)
    if guidance is not None:  # the unconditional rows, behind the conditional ones
        last_token_mask = torch.zeros_like(prompts.attention_mask)
        last_token_mask[:, -1] = True
        prompts = PaddedPrompts(
            torch.cat([prompts.embeds, prompts.embeds]), torch.cat([prompts.attention_mask, last_token_mask])
        )
    batch = DecodeBatch(model, prompts)
    samplers = [TokenSampler(one, generator) for one, generator in zip(sampling, generators, strict=True)]
    ids = policy.ids(model.device)
    ended = [False] * rows
    for step in range(policy.max_new):
        log_probs = F.log_softmax(batch.logits.float(), dim=-1)
        if guidance is not None:
            conditional, unconditional = log_probs.chunk(2)
            log_probs = guide_log_probs(conditional, unconditional, guidance)
        allowed = ids if step >= policy.min_new else ids[: -len(policy.ends)]
        sampled = [
            policy.end if done else int(allowed[sample(row[allowed])])
            for done, sample, row in zip(ended, samplers, log_probs, strict=True)
        ]
        ended = [done or token in policy.ends for done, token in zip(ended, sampled, strict=True)]
        yield DecodeStep([None if done else token for done, token in zip(ended, sampled, strict=True)], log_probs)
        if all(ended) or step + 1 == policy.max_new:
            return
        batch.append_tokens(sampled if guidance is None else sampled * 2)


def guide_log_probs(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of log-probabilities."""
    return scale * (conditional - unconditional) + unconditional


def decode(
    model: PreTrainedModel,
    prompts: PaddedPrompts,
    policy: TokenPolicy,
    sampling: Sequence[Sampling],
    generators: Sequence[torch.Generator],
    guidance: float | None = None,
    on_step: OnDecodeStep | None = None,
) -> list[list[int]]:
    """Generates the ids of all rows; for the arguments see `decode_steps`."""
    rows: list[list[int]] = [[] for _ in prompts.embeds]
    for number, step in enumerate(decode_steps(model, prompts, policy, sampling, generators, guidance), 1):
        for row, token in zip(rows, step.ids, strict=True):
            if token is not None:
                row.append(token)
        if on_step is not None:
            on_step(number)
    return rows


class DecodeBatch:
    """Running batch of a language model: its KV cache, and the logits [rows, vocabulary] of each row's next token.

    Rows can be added and removed between two decode steps. Rows are padded on the left and have positions of their
    own, so the logits of a row do not depend on the other rows.

    Args:
        model: Causal language model.
        prompts: Prompts to prefill, without their cached prefixes. Each has at least one token.
        prefixes: Cached keys and values of the tokens in front of each prompt, [2, layers, heads, tokens, channels];
            a prefix may have no tokens. Empty if no prompt has a prefix.
    """

    def __init__(self, model: PreTrainedModel, prompts: PaddedPrompts, prefixes: Sequence[Tensor] = ()) -> None:
        self._model = model
        self._has_windows = has_windows(model)
        self._cache = BatchKVCache(model.config)
        mask = prompts.attention_mask
        cached = torch.tensor([one.shape[3] for one in prefixes] or [0] * len(mask), device=mask.device)
        longest, gaps = int(cached.max()), mask.shape[1] - mask.sum(1)
        positions = (mask.cumsum(1) - 1).clamp(min=0) + cached[:, None]
        self._length = longest + mask.shape[1]
        self._set_padding(longest - cached + gaps)
        if longest:
            self._cache.load_prefixes(prefixes)
            mask = torch.cat([torch.arange(longest, device=mask.device) >= longest - cached[:, None], mask], dim=1)
        self.logits = self._forward(
            mask if longest or self._is_padded else None, inputs_embeds=prompts.embeds, position_ids=positions
        )
        self._cache.close_gaps(cached.tolist(), longest, gaps.tolist())

    def append_tokens(self, tokens: list[int]) -> None:
        """Appends one token id to every row, and computes the logits of the next ones."""
        ids = torch.tensor(tokens, device=self._padding.device)[:, None]  # a model looks for its device in its weights
        positions = (self._length - self._padding)[:, None]
        self._length += 1
        self.logits = self._forward(self._attention_bias(), input_ids=ids, position_ids=positions)

    def append_rows(self, other: DecodeBatch) -> None:
        """Adds the rows of another batch of the same model behind the rows of this one."""
        length = max(self._length, other._length)
        self._set_padding(torch.cat([one._padding + (length - one._length) for one in (self, other)]))
        self._length = length
        self.logits = torch.cat([self.logits, other.logits])
        self._cache.append_rows(other._cache)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keeps only the given rows, in the given order, and drops the padding that none of them needs."""
        chosen = torch.tensor(rows, device=self._padding.device)
        padding = self._padding[chosen]
        unused = int(padding.min())
        self._set_padding(padding - unused)
        self._length -= unused
        self.logits = self.logits[chosen]
        self._cache.keep_rows(rows, unused)

    def keys_values(self, row: int, start: int, end: int) -> Tensor:
        """Copies the keys and values of tokens `start` to `end` of a row, [2, layers, heads, tokens, channels]."""
        padding = int(self._padding[row])
        return self._cache.keys_values(row, padding + start, padding + end)

    def _set_padding(self, padding: Tensor) -> None:
        """Sets the number of padding positions on the left of each row, [rows]."""
        self._padding = padding
        self._is_padded = bool(padding.any())
        self._bias: Tensor | None = None

    def _attention_bias(self) -> Tensor | None:
        """Additive attention mask of one query token a row, [rows, 1, 1, length]; None without padding.

        It is built for many steps ahead: the model would build it from a mask in each step, and convert it in each
        layer. A model with sliding windows builds its own masks, from a mask [rows, length].
        """
        if not self._is_padded:
            return None
        if self._has_windows:
            return torch.arange(self._length, device=self._padding.device) >= self._padding[:, None]
        if self._bias is None or self._bias.shape[-1] < self._length:
            positions = torch.arange(self._length + SPARE_TOKENS, device=self._padding.device)
            shape = (len(self._padding), 1, 1, len(positions))
            bias = torch.zeros(*shape, dtype=self._model.dtype, device=positions.device)
            self._bias = bias.masked_fill_(positions < self._padding[:, None, None, None], -torch.inf)
        return self._bias[..., : self._length]

    def _forward(self, mask: Tensor | None, **inputs: Tensor) -> Tensor:
        output = self._model(
            **inputs, attention_mask=mask, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[:, -1]


class TokenSampler:
    """Samples an index from log-probabilities with the settings and the random generator of one row."""

    def __init__(self, sampling: Sampling, generator: torch.Generator) -> None:
        self._sampling, self._generator = sampling, generator
        self._warpers = LogitsProcessorList()
        if sampling.temperature not in (0.0, 1.0):
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k is not None:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, log_probs: Tensor) -> int:
        """Index into log-probabilities [n]."""
        if self._sampling.temperature == 0:
            return int(log_probs.argmax())
        warped = self._warpers(None, log_probs[None])[0].cpu()
        # Gumbel-max trick: the argmax of the noisy values is a sample of their softmax, and needs one row of noise
        noise = torch.empty_like(warped).exponential_(generator=self._generator)
        return int((warped - noise.log()).argmax())

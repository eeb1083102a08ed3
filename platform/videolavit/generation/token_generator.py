"""Generation of visual and motion codes by the language model (docs/model.md, section 5.2 and 5.3)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from videolavit.vocabulary import Vocabulary

from .decoding import OnDecodeStep, Sampling, TokenPolicy, decode, embed_prompts
from .settings import GenerateSettings


class PromptTooLong(ValueError):
    """The prompt and the tokens to generate exceed the language model's context."""


@dataclass
class GeneratedTokens:
    """Token sequence of one request, which grows as pictures and motion are generated.

    Args:
        ids: Ids of the prompt and of all that was generated so far.
        generator: Random generator for the sampling.
        visual: Visual codes of each generated picture.
        motion: Motion codes of each generated clip.
    """

    ids: list[int]
    generator: torch.Generator
    visual: list[list[int]] = field(default_factory=list)
    motion: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class TokenSpan:
    """Picture or motion of a clip to generate, as a span of tokens between two markers.

    Args:
        start: Id of the start marker.
        policy: Constraint on the ids inside; its end is the end marker.
        sampling: Sampling settings.
        guidance: Guidance scale of the language model.
    """

    start: int
    policy: TokenPolicy
    sampling: Sampling
    guidance: float

    def codes(self, ids: Sequence[int]) -> list[int]:
        """Codes of the ids inside."""
        return [token - self.policy.allowed[0].start for token in ids]


@dataclass(frozen=True)
class TokenGenerator:
    """Language model constrained to the grammar of pictures and motion.

    A picture has a number of visual codes within `visual_limits`; the motion of a clip has exactly `motion_tokens`
    motion codes.

    Args:
        model: Language model.
        vocabulary: Layout of its ids.
        motion_tokens: Motion codes of a clip; 135 in the published model.
        visual_limits: Smallest and largest number of visual codes of a picture.
        settings: Sampling and guidance.
    """

    model: PreTrainedModel
    vocabulary: Vocabulary
    motion_tokens: int
    visual_limits: tuple[int, int]
    settings: GenerateSettings

    def check_length(self, sequences: Sequence[GeneratedTokens], pictures: Sequence[int], motions: int) -> None:
        """Raises PromptTooLong if a prompt and the tokens to generate may exceed the context.

        Args:
            pictures: Number of pictures to generate for each sequence.
            motions: Number of clips to generate motion for.
        """
        context = self.model.config.max_position_embeddings
        picture, motion = self.visual_limits[1] + 2, self.motion_tokens + 2
        for sequence, count in zip(sequences, pictures, strict=True):
            length = len(sequence.ids)
            if length + count * picture + motions * motion <= context:
                continue
            given = motions - count if motions else 0
            fitting = max(context - length + given * picture, 0) // (picture + motion)
            if fitting and motions:
                raise PromptTooLong(
                    f"{motions} clips do not fit: after a prompt of {length} tokens the context of {context} holds "
                    f"{fitting} of up to {picture + motion} tokens each"
                )
            raise PromptTooLong(f"the prompt has {length} tokens, too many for a context of {context}; shorten it")

    def picture_span(self, guidance: float) -> TokenSpan:
        """Span of a picture."""
        ids = self.vocabulary
        policy = TokenPolicy((ids.visual_range,), ids.image_end, *self.visual_limits)
        return TokenSpan(ids.image_start, policy, self.settings.sampling(), guidance)

    def motion_span(self, from_picture: bool) -> TokenSpan:
        """Span of a clip's motion, which follows its keyframe.

        Args:
            from_picture: True if the keyframe is a picture of the prompt.
        """
        ids = self.vocabulary
        policy = TokenPolicy((ids.motion_range,), ids.motion_end, self.motion_tokens, self.motion_tokens)
        sampling = self.settings.motion_sampling(from_picture)
        return TokenSpan(ids.motion_start, policy, sampling, self.settings.motion_guidance)

    def generate_pictures(
        self, sequences: Sequence[GeneratedTokens], guidance: float, on_step: OnDecodeStep | None = None
    ) -> None:
        """Appends a picture to each sequence: [IMG] codes [/IMG]."""
        span = self.picture_span(guidance)
        codes = self._generate(sequences, [span] * len(sequences), on_step)
        for sequence, visual in zip(sequences, codes, strict=True):
            sequence.visual.append(visual)

    def generate_motion(
        self, sequences: Sequence[GeneratedTokens], from_picture: Sequence[bool], on_step: OnDecodeStep | None = None
    ) -> None:
        """Appends the motion of a clip to each sequence: [MOV] codes [/MOV].

        Args:
            from_picture: For each sequence, whether the clip's keyframe is a picture of the prompt.
        """
        codes = self._generate(sequences, [self.motion_span(given) for given in from_picture], on_step)
        for sequence, motion in zip(sequences, codes, strict=True):
            sequence.motion.append(motion)

    def _generate(
        self, sequences: Sequence[GeneratedTokens], spans: Sequence[TokenSpan], on_step: OnDecodeStep | None
    ) -> list[list[int]]:
        """Appends a span to each sequence, and returns their codes. The spans differ in their sampling only."""
        for sequence, span in zip(sequences, spans, strict=True):
            sequence.ids.append(span.start)
        prompts = embed_prompts(self.model, [sequence.ids for sequence in sequences])
        generators, sampling = [sequence.generator for sequence in sequences], [span.sampling for span in spans]
        policy, guidance = spans[0].policy, spans[0].guidance
        rows = decode(self.model, prompts, policy, sampling, generators, guidance, on_step)
        for sequence, row in zip(sequences, rows, strict=True):
            sequence.ids += [*row, policy.end]
        return [spans[0].codes(row) for row in rows]

"""Codes of pictures and motion, written by the language model behind prompts (reference 5.2, 5.3)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from videolavit.vocabulary import Vocabulary

from .decoding import OnToken, Sampling, TokenPolicy, decode, embed_prompts
from .settings import GenerateSettings


class PromptTooLong(ValueError):
    """A prompt, with what is to be written behind it, exceeds the language model's context."""


@dataclass
class GeneratedTokens:
    """A prompt's ids as they grow.

    Args:
        ids: All so far.
        generator: For the choice of ids.
        visual: Codes of each picture that was written.
        motion: Codes of each clip's motion that was written.
    """

    ids: list[int]
    generator: torch.Generator
    visual: list[list[int]] = field(default_factory=list)
    motion: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Segment:
    """A picture or a clip's motion that is to be written.

    Args:
        start: Id that begins it.
        policy: Ids inside, and the end.
        sampling: How they are chosen.
        guidance: Of the language model.
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
    """A language model with the grammar of pictures and motion.

    A picture is as many visual codes as `visual_limits` allows, motion is exactly `motion_tokens` motion codes, and
    nothing else comes inside.

    Args:
        model: The language model.
        vocabulary: Its ids.
        motion_tokens: Codes of a clip's motion, 135 as published.
        visual_limits: Fewest and most visual codes of a picture.
    """

    model: PreTrainedModel
    vocabulary: Vocabulary
    motion_tokens: int
    visual_limits: tuple[int, int]
    settings: GenerateSettings

    def check_length(self, scripts: Sequence[GeneratedTokens], pictures: Sequence[int], motions: int) -> None:
        """Raises PromptTooLong if a prompt and what is written behind it may exceed the context.

        Args:
            pictures: Of each script, how many pictures.
            motions: Clips of motion.
        """
        context = self.model.config.max_position_embeddings
        picture, motion = self.visual_limits[1] + 2, self.motion_tokens + 2
        for script, count in zip(scripts, pictures, strict=True):
            length = len(script.ids)
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

    def picture(self, guidance: float) -> Segment:
        """A picture behind whatever there is."""
        ids = self.vocabulary
        policy = TokenPolicy((ids.visual_range,), ids.image_end, *self.visual_limits)
        return Segment(ids.image_start, policy, self.settings.sampling(), guidance)

    def motion(self, from_picture: bool) -> Segment:
        """A clip's motion behind its picture.

        Args:
            from_picture: Whether it is the first behind a given picture.
        """
        ids = self.vocabulary
        policy = TokenPolicy((ids.motion_range,), ids.motion_end, self.motion_tokens, self.motion_tokens)
        sampling = self.settings.motion_sampling(from_picture)
        return Segment(ids.motion_start, policy, sampling, self.settings.motion_guidance)

    def write_pictures(
        self, scripts: Sequence[GeneratedTokens], guidance: float, on_token: OnToken | None = None
    ) -> None:
        """Appends [IMG] codes [/IMG] to each script."""
        segment = self.picture(guidance)
        for script, row in zip(scripts, self._write(scripts, [segment] * len(scripts), on_token), strict=True):
            script.visual.append(segment.codes(row))

    def write_motion(
        self, scripts: Sequence[GeneratedTokens], from_picture: Sequence[bool], on_token: OnToken | None = None
    ) -> None:
        """Appends [MOV] codes [/MOV] to each script.

        Args:
            from_picture: Of each script, whether the motion is the first behind a given picture.
        """
        segments = [self.motion(given) for given in from_picture]
        rows = self._write(scripts, segments, on_token)
        for script, segment, row in zip(scripts, segments, rows, strict=True):
            script.motion.append(segment.codes(row))

    def _write(
        self, scripts: Sequence[GeneratedTokens], segments: Sequence[Segment], on_token: OnToken | None
    ) -> list[list[int]]:
        """Segments of one kind, one behind each script; they differ in their sampling only."""
        for script, segment in zip(scripts, segments, strict=True):
            script.ids.append(segment.start)
        prompts = embed_prompts(self.model, [script.ids for script in scripts])
        generators, sampling = [script.generator for script in scripts], [one.sampling for one in segments]
        policy, guidance = segments[0].policy, segments[0].guidance
        rows = decode(self.model, prompts, policy, sampling, generators, guidance, on_token)
        for script, row in zip(scripts, rows, strict=True):
            script.ids += [*row, policy.end]
        return rows

"""Generation of visual and motion codes by the language model (docs/model.md, section 5.2 and 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import torch

from videolavit.models.folder import ModelFolder
from videolavit.progress import OnProgress, Progress, ignore_progress

from .decoding import Sampling, TokenPolicy, decode, embed_prompts
from .program import ClipCodes, CodesByClip, TokensRequest
from .prompts import prompt_ids
from .settings import GenerateSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase  # take two seconds to import


class PromptTooLong(ValueError):
    """The prompt and the tokens to generate exceed the language model's context."""


@dataclass(frozen=True)
class TokenSpan:
    """Codes of the picture or of the motion of a clip, as a span of tokens between two markers.

    Args:
        clip: Index of the clip.
        kind: Kind of the codes.
        start: Id of the start marker.
        policy: Constraint on the ids inside; its end is the end marker.
        sampling: Sampling settings.
        guidance: Guidance scale of the language model.
    """

    clip: int
    kind: Literal["visual", "motion"]
    start: int
    policy: TokenPolicy
    sampling: Sampling
    guidance: float

    @property
    def stage(self) -> str:
        """Name for progress."""
        return f"clip {self.clip + 1} {'picture' if self.kind == 'visual' else 'motion'} tokens"

    def codes(self, ids: Sequence[int]) -> list[int]:
        """Codes of the ids inside."""
        return [token - self.policy.allowed[0].start for token in ids]


@dataclass
class TokenSequence:
    """Tokens of a request.

    Args:
        ids: Ids of the prompt and of all that was generated so far.
        spans: Spans to generate behind the prompt, in order.
        random: Random numbers of the sampling.
    """

    ids: list[int]
    spans: Sequence[TokenSpan]
    random: torch.Generator


@dataclass(frozen=True)
class TokenGrammar:
    """Grammar of pictures and motion, in which the language model answers a request.

    A picture has a number of visual codes within the limits of the settings; the motion of a clip has exactly
    `folder.motion_tokens` motion codes.

    Args:
        folder: Model; only its configuration is read.
        tokenizer: Text tokenizer of its language model.
        settings: Sampling and guidance.
    """

    folder: ModelFolder
    tokenizer: PreTrainedTokenizerBase
    settings: GenerateSettings

    def begin(self, request: TokensRequest) -> TokenSequence:
        """Starts the sequence of a request with its prompt.

        Raises:
            PromptTooLong: the prompt and the tokens to generate may exceed the context.
            ValueError: a prompt, or a number of visual codes, that the model cannot handle.
        """
        ids = prompt_ids(request.prompt, self.tokenizer, self.folder.vocabulary, markers=request.clips > 0)
        sequence = TokenSequence(ids, self._spans(request), request.random())
        self._check_length(sequence, request)
        return sequence

    def _spans(self, request: TokensRequest) -> list[TokenSpan]:
        """Spans of a request: of each clip the picture, unless it is given, and the motion; or one picture."""
        ids, settings, motion_tokens = self.folder.vocabulary, self.settings, self.folder.motion_tokens
        visual_limits = settings.visual_limits(self.folder.num_patches)
        visual_policy = TokenPolicy((ids.visual_range,), ids.image_end, *visual_limits)
        motion_policy = TokenPolicy((ids.motion_range,), ids.motion_end, motion_tokens, motion_tokens)
        mixed = not request.clips and not all(isinstance(part, str) for part in request.prompt)
        visual_guidance = settings.mixed_guidance if mixed else settings.visual_guidance
        spans: list[TokenSpan] = []
        for clip in range(max(request.clips, 1)):
            given = clip == 0 and request.first_given
            if not given:
                sampling = settings.sampling()
                spans.append(TokenSpan(clip, "visual", ids.image_start, visual_policy, sampling, visual_guidance))
            if request.clips:
                sampling, guidance = settings.motion_sampling(from_picture=given), settings.motion_guidance
                spans.append(TokenSpan(clip, "motion", ids.motion_start, motion_policy, sampling, guidance))
        return spans

    def _check_length(self, sequence: TokenSequence, request: TokensRequest) -> None:
        """Raises PromptTooLong if the sequence may exceed the context."""
        context, length = self.folder.context_length, len(sequence.ids)
        lengths = [span.policy.max_new + 2 for span in sequence.spans]
        if length + sum(lengths) <= context:
            return
        one_clip = sum(lengths[-2:])  # the last of several has both a picture and motion
        given = max(request.clips, 1) * one_clip - sum(lengths)
        fitting = max(context - length + given, 0) // one_clip
        if fitting:
            raise PromptTooLong(
                f"{request.clips} clips do not fit: after a prompt of {length} tokens the context of {context} holds "
                f"{fitting} of up to {one_clip} tokens each"
            )
        raise PromptTooLong(f"the prompt has {length} tokens, too many for a context of {context}; shorten it")


@dataclass(frozen=True)
class TokenGenerator:
    """Language model constrained to the grammar of pictures and motion.

    Args:
        model: Language model.
        grammar: Grammar of its sequences.
    """

    model: PreTrainedModel
    grammar: TokenGrammar

    def generate(
        self, requests: Sequence[TokensRequest], on_progress: OnProgress = ignore_progress
    ) -> list[CodesByClip]:
        """Generates the codes of requests, in batches of equal spans.

        Raises:
            PromptTooLong: as `TokenGrammar.begin`; then nothing was generated.
        """
        sequences = [self.grammar.begin(request) for request in requests]
        generated: list[dict[int, ClipCodes]] = [{} for _ in sequences]
        work = [(row, span) for row, sequence in enumerate(sequences) for span in sequence.spans]
        for _, equal in groupby(sorted(work, key=_place), _place):
            rows, spans = zip(*equal, strict=True)
            codes = self._generate([sequences[row] for row in rows], spans, on_progress)
            for row, span, one in zip(rows, spans, codes, strict=True):
                of_clip = generated[row].get(span.clip, ClipCodes())
                generated[row][span.clip] = replace(of_clip, **{span.kind: one})
        return list(generated)

    def _generate(
        self, sequences: Sequence[TokenSequence], spans: Sequence[TokenSpan], on_progress: OnProgress
    ) -> list[list[int]]:
        """Appends a span to each sequence, and returns their codes. The spans differ in their sampling only."""
        for sequence, span in zip(sequences, spans, strict=True):
            sequence.ids.append(span.start)
        prompts = embed_prompts(self.model, [sequence.ids for sequence in sequences])
        random, sampling = [sequence.random for sequence in sequences], [span.sampling for span in spans]
        stage, policy, guidance = spans[0].stage, spans[0].policy, spans[0].guidance

        def on_step(done: int) -> None:
            on_progress(Progress(stage, done, policy.max_new))

        rows = decode(self.model, prompts, policy, sampling, random, guidance, on_step)
        for sequence, row in zip(sequences, rows, strict=True):
            sequence.ids += [*row, policy.end]
        return [spans[0].codes(row) for row in rows]


def _place(item: tuple[int, TokenSpan]) -> tuple[int, bool, float]:
    """Place of a span in the order of spans; those of several sequences that have the same place are one batch."""
    span = item[1]
    return span.clip, span.kind == "motion", span.guidance

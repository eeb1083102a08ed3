"""Language model with both tokenizers, for questions about images and videos (docs/model.md, section 5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from videolavit.vocabulary import IMAGE, VIDEO, Vocabulary

from ..motion_tokenizer import MotionTokenizer
from ..visual_tokenizer import VisualTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NO_LABEL = -100
"""Positions without a target, as `transformers` marks them."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as embeddings, padded on the left.

    Args:
        embeds: Input embeddings, [batch, length, hidden].
        attention_mask: Mask, bool [batch, length]; False for padding.
        position_ids: Positions, int64 [batch, length]; zero for padding.
        labels: Target ids, int64 [batch, length]; -100 where nothing is predicted.
    """

    embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor


class VisualPrompts(nn.Module):
    """Language model whose prompts contain features of pictures and codes of motion.

    Args:
        language_model: A causal language model with the extended vocabulary.
        vocabulary: Layout of the ids.
    """

    def __init__(self, language_model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.language_model = language_model
        self.vocabulary = vocabulary

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Embeds token ids, [..., hidden]."""
        return self.language_model.get_input_embeddings()(ids)

    def embed_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Embeds pictures as [IMG] features [/IMG], [n + 2, hidden] each, from their features [n, hidden]."""
        markers = torch.tensor([self.vocabulary.image_start, self.vocabulary.image_end], device=features[0].device)
        first, last = self.embed_ids(markers).split(1)
        return [torch.cat([first, one.to(first.dtype), last]) for one in features]

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Embeds clips' motion as [MOV] codes [/MOV], [clips, n + 2, hidden], from motion codes [clips, n]."""
        ids = codes + self.vocabulary.motion_range.start
        first = ids.new_full((len(ids), 1), self.vocabulary.motion_start)
        last = ids.new_full((len(ids), 1), self.vocabulary.motion_end)
        return self.embed_ids(torch.cat([first, ids, last], dim=1))

    def embed_clips(self, features: Sequence[Tensor], codes: Tensor) -> Tensor:
        """Embeds a video as a chain of [IMG] features [/IMG] [MOV] codes [/MOV], [n, hidden].

        Args:
            features: Features of each clip's keyframe.
            codes: Motion codes, [clips, n].
        """
        images, moving = self.embed_features(features), self.embed_codes(codes)
        return torch.cat([part for clip in zip(images, moving, strict=True) for part in clip])

    def assemble(
        self, prompts: list[list[int]], visuals: list[list[Tensor]], labels: list[list[int]] | None = None
    ) -> PromptBatch:
        """Replaces the placeholders `IMAGE` and `VIDEO` of prompts by their visual parts, and pads on the left.

        Args:
            prompts: Token ids.
            visuals: Visual parts of each prompt, [n, hidden], one for each placeholder.
            labels: Target ids, as long as the prompts. Visual parts get -100 at each position.

        Raises:
            ValueError: the numbers of placeholders and of visual parts differ.
        """
        embeds, targets = [], []
        for index, (prompt, visual) in enumerate(zip(prompts, visuals, strict=True)):
            wanted = labels[index] if labels is not None else [NO_LABEL] * len(prompt)
            row, row_labels = self._insert(prompt, visual, wanted)
            embeds.append(row)
            targets.append(row_labels)
        lengths = torch.tensor([len(row) for row in embeds], device=embeds[0].device)
        place = torch.arange(int(lengths.max()), device=lengths.device) - (lengths.max() - lengths)[:, None]
        return PromptBatch(
            embeds=pad_sequence(embeds, batch_first=True, padding_side="left"),
            attention_mask=place >= 0,
            position_ids=place.clamp(min=0),
            labels=pad_sequence(targets, batch_first=True, padding_value=NO_LABEL, padding_side="left"),
        )

    def _insert(self, prompt: list[int], visuals: list[Tensor], labels: list[int]) -> tuple[Tensor, Tensor]:
        device = self.language_model.device
        places = [index for index, token in enumerate(prompt) if token in (IMAGE, VIDEO)]
        if len(places) != len(visuals):
            raise ValueError(f"a prompt has {len(places)} placeholders and {len(visuals)} visual parts")
        ids, targets = torch.tensor(prompt, device=device), torch.tensor(labels, device=device)
        embeds, kept, start = [], [], 0
        for place, visual in zip(places, visuals, strict=True):
            embeds += [self.embed_ids(ids[start:place]), visual.to(device)]
            kept += [targets[start:place], targets.new_full((len(visual),), NO_LABEL)]
            start = place + 1
        return torch.cat([*embeds, self.embed_ids(ids[start:])]), torch.cat([*kept, targets[start:]])


class UnderstandingModel(VisualPrompts):
    """Language model with its tokenizers: keyframes become continuous features, motion becomes codes.

    Args:
        language_model: A causal language model with the extended vocabulary.
        visual_tokenizer: Tokenizer with continuous features of the language model's width.
        motion_tokenizer: Tokenizer with the vocabulary's motion codes.
        vocabulary: Layout of the ids.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        visual_tokenizer: VisualTokenizer,
        motion_tokenizer: MotionTokenizer,
        vocabulary: Vocabulary,
    ) -> None:
        super().__init__(language_model, vocabulary)
        self.visual_tokenizer = visual_tokenizer
        self.motion_tokenizer = motion_tokenizer

    def embed_images(self, images: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """Embeds images as [IMG] features [/IMG], [n + 2, hidden] each.

        Args:
            images: Normalized images, [batch, 3, size, size].
            keep: Mask of kept patches, bool [batch, patches]; None for the selector's decision.
        """
        return self.embed_features(self.visual_tokenizer.embed(images, keep))

    def embed_motion(self, motion: Tensor) -> Tensor:
        """Embeds motion [clips, 2, time, height, width] as [MOV] codes [/MOV], [clips, n + 2, hidden]."""
        return self.embed_codes(self.motion_tokenizer.encode(motion))

    def embed_video(self, frames: Tensor, motion: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeds a video as a chain of [IMG] features [/IMG] [MOV] codes [/MOV], [n, hidden].

        Args:
            frames: Normalized keyframes of the clips, [clips, 3, size, size].
            motion: Motion at the tokenizer scale, [clips, 2, time, height, width].
            keep: Mask of kept patches, bool [clips, patches]; None for the selector's decision.
        """
        return self.embed_clips(self.visual_tokenizer.embed(frames, keep), self.motion_tokenizer.encode(motion))

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
        embeds: [batch, length, hidden].
        attention_mask: bool [batch, length].
        position_ids: int64 [batch, length]; zero in the padding.
        labels: int64 [batch, length]; -100 where nothing is to be predicted.
    """

    embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor


class VisualPrompts(nn.Module):
    """A language model that reads what tokenizers, here or elsewhere, see in pictures and videos.

    Args:
        language_model: A causal language model with the extended vocabulary.
        vocabulary: The layout of the ids.
    """

    def __init__(self, language_model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.language_model = language_model
        self.vocabulary = vocabulary

    def embed_ids(self, ids: Tensor) -> Tensor:
        """[..., hidden] of token ids."""
        return self.language_model.get_input_embeddings()(ids)

    def embed_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[IMG] features [/IMG], [n + 2, hidden], of the continuous features [n, hidden] of each picture."""
        markers = torch.tensor([self.vocabulary.image_start, self.vocabulary.image_end], device=features[0].device)
        first, last = self.embed_ids(markers).split(1)
        return [torch.cat([first, one.to(first.dtype), last]) for one in features]

    def embed_codes(self, codes: Tensor) -> Tensor:
        """[MOV] motion [/MOV] of each clip, [clips, n + 2, hidden], of motion codes [clips, n]."""
        ids = codes + self.vocabulary.motion_range.start
        first = ids.new_full((len(ids), 1), self.vocabulary.motion_start)
        last = ids.new_full((len(ids), 1), self.vocabulary.motion_end)
        return self.embed_ids(torch.cat([first, ids, last], dim=1))

    def embed_clips(self, features: Sequence[Tensor], codes: Tensor) -> Tensor:
        """[IMG] features [/IMG] [MOV] motion [/MOV] of each clip in a row, [n, hidden].

        Args:
            features: As for `embed_features`, of each clip's keyframe.
            codes: As for `embed_codes`.
        """
        images, moving = self.embed_features(features), self.embed_codes(codes)
        return torch.cat([part for clip in zip(images, moving, strict=True) for part in clip])

    def assemble(
        self, prompts: list[list[int]], visuals: list[Tensor | None], labels: list[list[int]] | None = None
    ) -> PromptBatch:
        """Puts each prompt's visual part in the place of its `IMAGE` or `VIDEO`.

        Args:
            prompts: Token ids.
            visuals: [n, hidden] of each prompt, or None where it has no marker.
            labels: As long as the prompts; the marker's is replaced by as many -100 as the visual part is long.

        Raises:
            ValueError: a prompt has more than one marker, or a marker without a visual part or the reverse.
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

    def _insert(self, prompt: list[int], visual: Tensor | None, labels: list[int]) -> tuple[Tensor, Tensor]:
        device = self.language_model.device
        places = [index for index, token in enumerate(prompt) if token in (IMAGE, VIDEO)]
        if len(places) != (visual is not None):
            raise ValueError(f"a prompt has {len(places)} visual markers and {int(visual is not None)} visual parts")
        ids, targets = torch.tensor(prompt, device=device), torch.tensor(labels, device=device)
        if visual is None:
            return self.embed_ids(ids), targets
        (at,) = places
        none = targets.new_full((len(visual),), NO_LABEL)
        return (
            torch.cat([self.embed_ids(ids[:at]), visual.to(device), self.embed_ids(ids[at + 1 :])]),
            torch.cat([targets[:at], none, targets[at + 1 :]]),
        )


class UnderstandingModel(VisualPrompts):
    """Keyframes enter the language model as continuous features, motion as the embeddings of its ids.

    Args:
        language_model: A causal language model with the extended vocabulary.
        visual_tokenizer: Must have continuous features of the language model's width.
        motion_tokenizer: Of the vocabulary's motion codes.
        vocabulary: The layout of the ids.
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
        """[IMG] features [/IMG] of each image, [n + 2, hidden].

        Args:
            images: [batch, 3, size, size], normalised.
            keep: bool [batch, patches] instead of the selector's decision.
        """
        return self.embed_features(self.visual_tokenizer.embed(images, keep))

    def embed_motion(self, motion: Tensor) -> Tensor:
        """[MOV] motion [/MOV] of each clip, [clips, n + 2, hidden], of [clips, 2, time, height, width]."""
        return self.embed_codes(self.motion_tokenizer.encode(motion))

    def embed_video(self, frames: Tensor, motion: Tensor, keep: Tensor | None = None) -> Tensor:
        """[IMG] features [/IMG] [MOV] motion [/MOV] of each clip in a row, [n, hidden].

        Args:
            frames: Keyframes of the clips, [clips, 3, size, size], normalised.
            motion: [clips, 2, time, height, width] at tokenizer scale.
            keep: bool [clips, patches] instead of the selector's decision.
        """
        return self.embed_clips(self.visual_tokenizer.embed(frames, keep), self.motion_tokenizer.encode(motion))

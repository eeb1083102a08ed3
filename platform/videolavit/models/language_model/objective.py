"""Next-token prediction, and training on answers about pictures and videos (docs/model.md, sections 5.2 and 5.4)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from videolavit.vocabulary.sequences import TokenType

from ..objective import SAMPLE_LOSSES, Draws, Objective
from .attention import attend_within_documents
from .families import check_trainable, logit_scale
from .lora import LoRASettings, merged, save_adapter, trained_names
from .loss import token_losses
from .understanding import NO_LABEL, UnderstandingModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NO_ADAPTERS = LoRASettings()


def tables_of(model: PreTrainedModel) -> list[Tensor]:
    """Tables of a language model with a row for each id: of the embeddings and of the head, which may be one."""
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


class LanguageObjective(Objective):
    """Objective of a language model, which may have adapters.

    Args:
        lora: Settings of the adapters that the model has.
    """

    def __init__(self, lora: LoRASettings) -> None:
        super().__init__()
        self._lora = lora
        self.keeps_beside = lora.rank > 0

    @property
    def language_model(self) -> nn.Module:
        """Language model with its adapters."""
        raise NotImplementedError

    def export(self, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        return {part: merged(tensors, self._lora.scale) for part, tensors in super().export(state).items()}

    def save_beside(self, state: dict[str, Tensor], folder: Path) -> None:
        """Writes the adapters in PEFT's format."""
        network = self.language_model
        part = next(part for part, module in self.parts().items() if module is network)
        save_adapter(super().export(state)[part], trained_names(network), self._lora, folder)


class NextToken(LanguageObjective):
    """Next-token prediction over documents of text, visual codes and motion codes.

    Terms: `loss`, and `text`, `visual` and `motion` for reports only. Inputs are those of `training.packed.RowCollate`.

    Args:
        model: Language model.
        packed: True if several documents share a row.
        other_lr_scale: Learning rate of embeddings and head, relative to the other parameters'.
        lora: Settings of the adapters that the model has.
        kept_rows: Number of first rows of embeddings and head that never change.

    Raises:
        ModelError: the model computes in a way that training cannot honour.
    """

    weights = {"loss": 1.0}  # noqa: RUF012

    def __init__(
        self,
        model: PreTrainedModel,
        packed: bool = True,
        other_lr_scale: float = 1.0,
        lora: LoRASettings = NO_ADAPTERS,
        kept_rows: int = 0,
    ) -> None:
        super().__init__(lora)
        check_trainable(model)
        if packed:
            attend_within_documents(model)
        self.model = model
        self._other_lr_scale, self._kept_rows = other_lr_scale, kept_rows

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        packed = {"ends": inputs["ends"]} if "ends" in inputs else {}
        hidden = self.model.base_model(
            input_ids=inputs["ids"], position_ids=inputs["positions"], use_cache=False, **packed
        ).last_hidden_state
        predicting = hidden.flatten(0, 1).index_select(0, inputs["places"])
        scaled = predicting * logit_scale(self.model)
        losses = token_losses(self.model.get_output_embeddings(), scaled, inputs["targets"])
        detached = losses.detach()
        sums = {one.name.lower(): (detached * (inputs["types"] == one)).sum() for one in TokenType}
        return {"loss": losses.sum(), **sums, SAMPLE_LOSSES: _by_document(detached, inputs)}

    @property
    def language_model(self) -> nn.Module:
        return self.model

    def parts(self) -> dict[str, nn.Module]:
        return {"language_model": self.model}

    def units(self) -> list[nn.Module]:
        return list(self.model.base_model.layers)

    def lr_scale(self, name: str) -> float:
        """Returns the scale of the learning rate: rows of new ids start at random and have further to go."""
        return self._other_lr_scale if "embed_tokens" in name or "lm_head" in name else 1.0

    def kept_rows(self) -> Mapping[str, int]:
        tables = {id(table) for table in tables_of(self.model)} if self._kept_rows else set()
        return {name: self._kept_rows for name, value in self.named_parameters() if id(value) in tables}


class AnswerObjective(LanguageObjective):
    """Next-token prediction on the answers to questions about pictures and videos.

    Term: `loss`, over the answers only. Inputs: `prompts` [batch, length] with the placeholders of
    `vocabulary.conversation`, `labels` [batch, length], `lengths` [batch], and numbers of pictures and videos `media`
    [batch]; `frames` [pictures, 3, size, size] and `motion` [clips, 2, time, height, width] of all of them
    concatenated; `pictures` and `clips`, their numbers in each picture or video, [media].

    Args:
        model: Understanding model.
        names: Attribute of the model for each part that is saved.
        visual_lr_scale: Learning rate of the visual tokenizer's merger and projection, relative to the other
            parameters'.
        lora: Settings of the adapters that the language model has.

    Raises:
        ModelError: the language model computes in a way that training cannot honour.
    """

    weights = {"loss": 1.0}  # noqa: RUF012

    def __init__(
        self,
        model: UnderstandingModel,
        names: Mapping[str, str],
        visual_lr_scale: float = 1.0,
        lora: LoRASettings = NO_ADAPTERS,
    ) -> None:
        super().__init__(lora)
        check_trainable(model.language_model)
        self.model = model
        self._names, self._visual_lr_scale = dict(names), visual_lr_scale

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        language_model = self.model.language_model
        lengths = inputs["lengths"].tolist()
        prompts, labels = (
            [row[:length] for row, length in zip(inputs[name].tolist(), lengths, strict=True)]
            for name in ("prompts", "labels")
        )
        batch = self.model.assemble(prompts, self._visuals(inputs), labels)
        hidden = language_model.base_model(
            inputs_embeds=batch.embeds + self._idle(inputs),
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
        labelled = batch.labels[:, 1:] != NO_LABEL
        predicting = hidden[:, :-1][labelled] * logit_scale(language_model)
        losses = token_losses(language_model.get_output_embeddings(), predicting, batch.labels[:, 1:][labelled])
        rows = labelled.nonzero()[:, 0]
        return {"loss": losses.sum(), SAMPLE_LOSSES: _by_sample(losses.detach(), rows, len(prompts))}

    def _visuals(self, inputs: dict[str, Tensor]) -> list[list[Tensor]]:
        """Embeds the pictures and videos of each sample, [n, hidden] each."""
        frames, motion = inputs["frames"], inputs["motion"]
        pictures = iter(self.model.embed_images(frames)) if len(frames) else iter(())
        clips = iter(self.model.embed_motion(motion)) if len(motion) else iter(())
        media: list[Tensor] = []
        for shown, moving in zip(inputs["pictures"].tolist(), inputs["clips"].tolist(), strict=True):
            parts: list[Tensor] = []
            for index in range(shown):
                parts.append(next(pictures))
                if index < moving:
                    parts.append(next(clips))
            media.append(torch.cat(parts))
        of_samples = iter(media)
        return [list(islice(of_samples, count)) for count in inputs["media"].tolist()]

    def _idle(self, inputs: dict[str, Tensor]) -> Tensor | float:
        """Returns a zero that depends on the visual tokenizer, for a batch without pictures.

        All ranks must have gradients for the same parameters, in the same order.
        """
        if len(inputs["frames"]):
            return 0.0
        trained = [value.sum() for value in self.model.visual_tokenizer.parameters() if value.requires_grad]
        return 0.0 * torch.stack(trained).sum() if trained else 0.0

    @property
    def language_model(self) -> nn.Module:
        return self.model.language_model

    def parts(self) -> dict[str, nn.Module]:
        return {part: getattr(self.model, name) for part, name in self._names.items()}

    def units(self) -> list[nn.Module]:
        return list(self.model.language_model.base_model.layers)

    def fixed(self) -> list[nn.Module]:
        return [self.model.visual_tokenizer.encoder, self.model.motion_tokenizer]

    def lr_scale(self, name: str) -> float:
        return self._visual_lr_scale if "visual_tokenizer" in name else 1.0


def _by_document(losses: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Sums the losses of each document of packed rows, or of each row that is one document, as `SAMPLE_LOSSES`."""
    places = inputs["places"]
    if "ends" not in inputs:
        rows, length = inputs["ids"].shape
        return _by_sample(losses, places // length, rows)
    ends = inputs["ends"][1:].to(places.dtype)
    return _by_sample(losses, torch.bucketize(places, ends, right=True), len(ends))


def _by_sample(losses: Tensor, samples: Tensor, number: int) -> Tensor:
    """Sums the losses [n] of each sample, given the index of the sample of each, as `SAMPLE_LOSSES`."""
    pairs = torch.stack([losses, torch.ones_like(losses)], 1)
    return pairs.new_zeros(number, 2).index_add_(0, samples, pairs)

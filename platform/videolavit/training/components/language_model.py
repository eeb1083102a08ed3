"""Trains the language model: on token shards (pre-training), or on conversations (instruction tuning)."""

from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from videolavit.models.folder import ModelFolder
from videolavit.models.language_model import UnderstandingModel
from videolavit.models.language_model.flops import Flops
from videolavit.models.language_model.lora import LoRASettings, add_lora
from videolavit.models.language_model.objective import Answering, NextToken
from videolavit.models.network import STRICT, ModelError
from videolavit.models.objective import Objective
from videolavit.vocabulary.sequences import Assembler, OrderSettings, longest_clip

from ..captions import TEXT_FIRST, caption_losses, write_videos
from ..chat import ChatLimits, ChatSource, collate_chat
from ..component import Component, Show
from ..data import DataError, Item, Mixture
from ..inputs import Inputs
from ..packed import PackedStream, RowCollate, RowSettings, item_of, rows_of
from ..sources import data_facts, sample_stream, validation_items
from ..token_sources import TokenDocuments, TokenSource

FIXED = ("visual_tokenizer", "motion_tokenizer")
UNDERSTANDING = ("language_model", *FIXED)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ChatSettings:
    """Instruction tuning. Published: LLaVA-1.5's and Video-ChatGPT's records, one epoch.

    Args:
        initialise_from: `understanding` goes on with that part of the model; `language_model` starts it anew from the
            pre-trained language model and the two tokenizers that made its tokens.
        train_visual: Whether the visual tokenizer's merger and projection are trained too, as in LaVIT. The ViT and the
            selector never are.
        max_clips: Most clips of a video, selected as for a question to the finished model.
        lora: Adapters in place of the language model's weights.
        cache_gb: Memory of each rank for decoded pictures and clips, in GB.
    """

    initialise_from: Literal["understanding", "language_model"] = "understanding"
    train_visual: bool = True
    max_clips: int = Field(default=8, ge=1)
    lora: LoRASettings = Field(default_factory=LoRASettings)
    cache_gb: float = Field(default=1.0, ge=0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """What the language model is trained for.

    Args:
        stage: `pretrain` on runs of `videolavit tokenize`, or `chat` on files of conversations (JSON lines as LLaVA's).
        sequence_length: Ids of a row; 2048 as published.
        packing: Several documents a row. False gives each a row of its own, padded to the longest of a micro batch.
        pack_over: Samples that are packed together. More leave less room in the rows.
        order: In what order the parts of a sample come.
        noise: Share of the codes of pictures and motion that the model reads as random ones, while it predicts the true
            ones. It keeps a small corpus from being learned by heart; a large one needs none.
        other_lr_scale: Learning rate of the other parts relative to the language model's: of embeddings and head in
            pre-training, of merger and projection in chat. Published are 2e-5 and 5e-5.
        validation_samples: Held-out samples whose loss is measured.
        show_captions: Held-out captions whose effect on the loss is measured.
        show_videos: Of these, the first that videos are made of, to look at.
        chat: Of the stage `chat`.
    """

    stage: Literal["pretrain", "chat"] = "pretrain"
    sequence_length: int = Field(default=2048, ge=2)
    packing: bool = True
    pack_over: int = Field(default=1024, ge=1)
    order: OrderSettings = Field(default_factory=OrderSettings)
    noise: float = Field(default=0.0, ge=0, lt=1)
    other_lr_scale: float = Field(default=2.5, gt=0)
    validation_samples: int = Field(default=256, ge=1)
    show_captions: int = Field(default=32, ge=0)
    show_videos: int = Field(default=0, ge=0)
    chat: ChatSettings = Field(default_factory=ChatSettings)


def build(model: ModelFolder, inputs: Inputs, settings: Settings) -> Component:
    """The component. Raises DataError and ModelError."""
    return _pretraining(model, inputs, settings) if settings.stage == "pretrain" else _chat(model, inputs, settings)


def _pretraining(model: ModelFolder, inputs: Inputs, settings: Settings) -> Component:
    network = model.load("language_model")
    _check_context(model, settings.sequence_length, network.config.max_position_embeddings)
    tokenizer = model.text_tokenizer()
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the text tokenizer of {model.location} has no id that ends a text; set its eos_token")
    assembler = Assembler(
        model.vocabulary, settings.sequence_length, tokenizer.eos_token_id, tokenizer.bos_token_id, settings.order
    )
    rows = RowSettings(settings.sequence_length, settings.packing, settings.pack_over, inputs.seed)

    def sources(named: list[str]) -> list[TokenSource]:
        def encode(texts: Any) -> list[list[int]]:
            ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
            return ids

        found = [TokenSource(url, inputs.storage, encode, 2 * inputs.window) for url in named]
        for source in found:
            source.check(model)
        return found

    train, held_out = sources(inputs.train), sources(inputs.validation)
    mixture = Mixture(train, inputs.weights, seed=inputs.seed, window=inputs.window)
    collate = RowCollate(model.vocabulary, Flops.of(network), settings.sequence_length if settings.packing else None)
    return Component(
        objective=NextToken(network.train().requires_grad_(True), settings.packing, settings.other_lr_scale),
        stream=PackedStream(TokenDocuments(train, mixture, assembler, inputs.seed, settings.noise), rows),
        collate=collate,
        validation=_held_out_rows(held_out, inputs, assembler, rows, settings.validation_samples) if held_out else [],
        show=_show(model, held_out, replace(assembler, order=TEXT_FIRST), collate, settings),
        tokens_an_item=settings.sequence_length,
        facts=data_facts(train) | {"vocabulary": asdict(model.vocabulary), "model": network.config.to_diff_dict()},
    )


def _held_out_rows(
    sources: list[TokenSource], inputs: Inputs, assembler: Assembler, rows: RowSettings, samples: int
) -> list[Item]:
    """Rows of the first samples of all sources, each at most once."""
    mixture = Mixture(sources, seed=inputs.seed, window=inputs.window)
    documents = TokenDocuments(sources, mixture, assembler, inputs.seed)
    count = min(samples, sum(sum(source.sizes) for source in sources))
    return [item_of(documents, row) for row in rows_of(documents, range(count), rows)]


def _show(
    model: ModelFolder, held_out: list[TokenSource], assembler: Assembler, collate: RowCollate, settings: Settings
) -> Show | None:
    places = [(source, shard, row) for source in held_out for shard, n in enumerate(source.sizes) for row in range(n)]
    samples = (source.load(shard, row) for source, shard, row in places)
    shown = list(islice((one for one in samples if len(one.text) and one.clips), settings.show_captions))
    captions = [str(model.text_tokenizer().decode(one.text)) for one in shown[: settings.show_videos]]

    def show(objective: Objective, folder: Path) -> dict[str, float]:
        assert isinstance(objective, NextToken)
        if captions:
            write_videos(objective, model, captions, folder)
        return caption_losses(objective, shown, assembler, collate)

    return show if len(shown) > 1 else None


def _check_context(model: ModelFolder, length: int, context: int) -> None:
    longest = longest_clip(model.num_patches, model.motion_tokens) + 1
    if length > context:
        raise DataError(f"sequence_length {length} exceeds the context of {model.location}, {context}")
    if length < longest:
        raise DataError(f"sequence_length {length} is shorter than a clip may be; use at least {longest}")


def _chat(model: ModelFolder, inputs: Inputs, settings: Settings) -> Component:
    chat = settings.chat
    network = _understanding(model, chat)
    visual, motion = network.visual_tokenizer.config, network.motion_tokenizer.config
    limits = ChatLimits(
        image_size=visual.image_size,
        motion_size=(motion.grid_height, motion.grid_width),
        max_clips=chat.max_clips,
        picture_tokens=visual.num_patches + 2,
        motion_tokens=motion.num_tokens + 2,
        context=network.language_model.config.max_position_embeddings,
    )
    tokenizer = model.text_tokenizer("understanding/language_model")

    def sources(named: list[str]) -> list[ChatSource]:
        cache = int(chat.cache_gb * 1e9 / max(len(named), 1))
        return [ChatSource(url, inputs.storage, tokenizer, limits, cache) for url in named]

    train, held_out = sources(inputs.train), sources(inputs.validation)
    parts = {f"understanding/{name}": name for name in UNDERSTANDING}
    of_what = "" if chat.initialise_from == "language_model" else "understanding/"
    fixed = {part: model.digest(of_what + part) for part in FIXED}
    return Component(
        objective=Answering(network, parts, settings.other_lr_scale, chat.lora.scale),
        stream=sample_stream(train, inputs),
        collate=collate_chat,
        validation=validation_items(held_out, settings.validation_samples),
        facts=data_facts(train) | {"vocabulary": asdict(model.vocabulary), "fixed": fixed},
    )


def _understanding(model: ModelFolder, chat: ChatSettings) -> UnderstandingModel:
    """The networks, with what is trained ready for it."""
    network = model.understanding("cpu", torch.float32)
    if chat.initialise_from == "language_model":
        for name in UNDERSTANDING:
            _take_over(getattr(network, name), model.load(name), name, model)
    if chat.lora.rank:
        add_lora(network.language_model, chat.lora, seed=0)
    else:
        network.language_model.requires_grad_(True)
    if chat.train_visual:
        network.visual_tokenizer.causal_encoder.requires_grad_(True)
        assert network.visual_tokenizer.vit_proj is not None, "understanding has continuous features"
        network.visual_tokenizer.vit_proj.requires_grad_(True)
    return network.train()


def _take_over(target: torch.nn.Module, source: torch.nn.Module, name: str, model: ModelFolder) -> None:
    """Gives a network the weights of one that has fewer or the same."""
    try:
        missing, left = target.load_state_dict(source.state_dict(), strict=False)
    except RuntimeError as error:
        raise ModelError(f"{model.location}/{name} does not fit understanding/{name}: {error}") from None
    if left or any(not key.startswith("vit_proj.") for key in missing):
        raise ModelError(f"{model.location}/{name} does not fit understanding/{name}: {[*missing, *left][:3]} differ")

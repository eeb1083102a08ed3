"""Training of the language model: on token shards (pre-training), or on conversations (instruction tuning)."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from videolavit.generation.generate import generate_videos
from videolavit.generation.prompts import Prompt
from videolavit.generation.runtime import Runtime, RuntimeSettings
from videolavit.media import write_mp4
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model import UnderstandingModel
from videolavit.models.language_model.attention import ordinary_attention
from videolavit.models.language_model.flops import Flops
from videolavit.models.language_model.lora import LoRASettings, add_lora
from videolavit.models.language_model.objective import AnswerObjective, NextToken, tables_of
from videolavit.models.network import STRICT, ModelError
from videolavit.models.objective import Draws, Objective
from videolavit.vocabulary import begin_id
from videolavit.vocabulary.sequences import Assembler, OrderSettings, TokenSample, longest_clip

from ..chat import ChatLimits, ChatSource, collate_chat
from ..component import Component, WriteSamples
from ..data import DataError, Item, Mixture
from ..packed import Document, PackedCollate, PackedStream, PackingSettings, pack_rows, row_item
from ..parallel import Ranks
from ..settings import TrainInputs
from ..shares import is_shared_out, read_share
from ..sources import data_identity, sample_stream, validation_items
from ..texts import TextEncoder
from ..token_sources import TokenDocuments, TokenSource

TOKENIZERS = ("visual_tokenizer", "motion_tokenizer")
UNDERSTANDING = ("language_model", *TOKENIZERS)
PRETRAIN_ONLY = (
    *("sequence_length", "packing", "pack_over", "order", "noise", "new_rows"),
    *("show_captions", "show_videos"),
)
"""Settings of the language model's training that do nothing on conversations."""

TEXT_FIRST = OrderSettings(text_first=1.0, drop_text=0.0, drop_keyframe=0.0)
_DRAWS = (0.5, 0.5)
"""Random numbers of the order of a sample's parts; with TEXT_FIRST any of them give the same order."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ChatSettings:
    """Instruction tuning. Published: one epoch over the records of LLaVA-1.5 and Video-ChatGPT.

    Args:
        initialise_from: First weights: `understanding` for those of that part of the model; `language_model` for those
            of the pre-trained language model and the two tokenizers that made its tokens.
        train_visual: Trains the merger and the projection of the visual tokenizer too, as in LaVIT. ViT and selector
            are never trained.
        max_clips: Largest number of clips of a video, selected as for a question to the finished model.
        cache_gb: Memory for decoded pictures and clips on each rank, in GB.
    """

    initialise_from: Literal["understanding", "language_model"] = "understanding"
    train_visual: bool = True
    max_clips: int = Field(default=8, ge=1)
    cache_gb: float = Field(default=1.0, ge=0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LanguageModelTraining:
    """Training of the language model.

    Args:
        stage: `pretrain` on runs of `videolavit tokenize`, or `chat` on files of conversations.
        sequence_length: Length of a row, in token ids. Published: 2048.
        packing: Packs several documents into a row; False gives each a row of its own, padded to the longest of a
            micro batch.
        pack_over: Samples that are packed at a time, a sixteenth of them into the same rows. More leave less padding.
        order: Order of the parts of a sample.
        noise: Share of the visual and motion codes that are replaced by random ones in the input, while the targets
            stay. It delays overfitting on a small corpus; a large one needs none.
        other_lr_scale: Learning rate of other parts relative to that of the language model: of embeddings and head in
            pre-training, of merger and projection in chat. Published: 5e-5 to 2e-5.
        new_rows: Trains the rows of visual and motion codes in embeddings and head. All else stays, but for adapters
            where `lora` has any: without them texts are read and predicted as before, to the bit. For pre-training.
        lora: LoRA adapters, which are trained instead of the language model's weights. The model that is written has
            them merged; `adapter/` beside it has them in PEFT's format.
        validation_samples: Held-out samples of the validation loss.
        show_captions: Held-out captions whose effect on the loss is measured.
        show_videos: Number of these captions from which videos are generated in `samples/`.
        chat: Settings of the stage `chat`.
    """

    stage: Literal["pretrain", "chat"] = "pretrain"
    sequence_length: int = Field(default=2048, ge=2)
    packing: bool = True
    pack_over: int = Field(default=1024, ge=1)
    order: OrderSettings = Field(default_factory=OrderSettings)
    noise: float = Field(default=0.0, ge=0, lt=1)
    other_lr_scale: float = Field(default=2.5, gt=0)
    new_rows: bool = False
    lora: LoRASettings = Field(default_factory=LoRASettings)
    validation_samples: int = Field(default=256, ge=1)
    show_captions: int = Field(default=32, ge=0)
    show_videos: int = Field(default=0, ge=0)
    chat: ChatSettings = Field(default_factory=ChatSettings)

    def __post_init__(self) -> None:
        other, names = ("pretrain", PRETRAIN_ONLY) if self.stage == "chat" else ("chat", ("chat",))
        for name in names:
            default = type(self).__pydantic_fields__[name].get_default(call_default_factory=True)  # type: ignore[attr-defined]
            if getattr(self, name) != default:
                raise ValueError(f"{name} is for the stage {other}, and does nothing in {self.stage}; leave it out")

    def build(self, model: ModelFolder, inputs: TrainInputs) -> Component:
        return _pretraining(model, inputs, self) if self.stage == "pretrain" else _chat(model, inputs, self)


# ---- pre-training -------------------------------------------------------------------------------------------------


def _pretraining(model: ModelFolder, inputs: TrainInputs, settings: LanguageModelTraining) -> Component:
    # ranks that share the weights read their shares; adapters are made where the weights are
    is_outline = is_shared_out() and model.is_folder and not settings.lora.rank
    network = model.outline("language_model") if is_outline else model.load("language_model")
    length, context = settings.sequence_length, network.config.max_position_embeddings
    longest = longest_clip(model.num_patches, model.motion_tokens) + 1
    if length > context:
        raise DataError(f"sequence_length {length} exceeds the context of {model.location}, {context}")
    if length < longest:
        raise DataError(f"sequence_length {length} is shorter than a clip may be; use at least {longest}")
    tokenizer = model.text_tokenizer()
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the text tokenizer of {model.location} has no id that ends a text; set its eos_token")
    assembler = Assembler(model.vocabulary, length, tokenizer.eos_token_id, begin_id(tokenizer), settings.order)
    packing = PackingSettings(length, settings.packing, settings.pack_over, inputs.seed)

    texts, ranks = TextEncoder(tokenizer), Ranks.here()

    def sources(urls: list[str]) -> list[TokenSource]:
        found = [TokenSource(url, inputs.storage, texts, 4 * inputs.window, ranks) for url in urls]
        for source in found:
            source.check(model)
        return found

    train, held_out = sources(inputs.train), sources(inputs.validation)
    mixture = Mixture(train, inputs.weights, seed=inputs.seed, window=inputs.window)
    validation: list[Item] = []
    if held_out:  # rows of the first samples of all sources, each at most once
        in_order = Mixture(held_out, seed=inputs.seed, window=inputs.window)
        documents = TokenDocuments(held_out, in_order, assembler, inputs.seed)
        count = min(settings.validation_samples, sum(sum(source.sizes) for source in held_out))
        validation = [row_item(documents, row) for row in pack_rows(documents, range(count), packing)]
    collate = PackedCollate(model.vocabulary, Flops.of(network), length if settings.packing else None)
    _make_trainable(network, settings.lora)
    if settings.new_rows:
        _train_new_rows(network, settings.lora)
    kept = model.vocabulary.text_size if settings.new_rows else 0
    return Component(
        objective=NextToken(network.train(), settings.packing, settings.other_lr_scale, settings.lora, kept),
        stream=PackedStream(TokenDocuments(train, mixture, assembler, inputs.seed, settings.noise), packing),
        collate=collate,
        validation=validation,
        write_samples=_caption_samples(model, held_out, replace(assembler, order=TEXT_FIRST), collate, settings),
        tokens_per_item=length,
        fill=partial(read_share, network, model.path / "language_model") if is_outline else None,
        identity=data_identity(train)
        | {"vocabulary": asdict(model.vocabulary), "model": network.config.to_diff_dict()},
    )


def _caption_samples(
    model: ModelFolder,
    held_out: list[TokenSource],
    assembler: Assembler,
    collate: PackedCollate,
    settings: LanguageModelTraining,
) -> WriteSamples | None:
    """Function that measures the effect of held-out captions, and generates videos from some; None without captions."""
    rows = ((source, shard, row) for source in held_out for shard, n in enumerate(source.sizes) for row in range(n))
    samples = (source.load(shard, row) for source, shard, row in rows)
    captioned = list(islice((one for one in samples if len(one.text) and one.clips), settings.show_captions))
    captions = [str(model.text_tokenizer().decode(one.text)) for one in captioned[: settings.show_videos]]

    def write_samples(objective: Objective, folder: Path) -> dict[str, float]:
        assert isinstance(objective, NextToken)
        if captions:
            network = objective.model
            runtime = Runtime(model, RuntimeSettings(device=str(network.device)), {"language_model": network})
            with ordinary_attention(network), torch.no_grad():
                videos = generate_videos(runtime, [Prompt((caption,), seed) for seed, caption in enumerate(captions)])
            for number, video in enumerate(videos):
                write_mp4(video.frames, folder / f"{number}.mp4", 6)
            lines = [f"{number}: {caption}\n" for number, caption in enumerate(captions)]
            (folder / "captions.txt").write_text("".join(lines))
        return caption_losses(objective, captioned, assembler, collate)

    return write_samples if len(captioned) > 1 else None


def caption_losses(
    objective: NextToken, samples: Sequence[TokenSample], assembler: Assembler, collate: PackedCollate
) -> dict[str, float]:
    """Mean loss of visual and motion tokens after a sample's own caption, and after that of the next sample.

    Args:
        samples: Samples with captions and clips.
        assembler: Assembler that puts the text first.
    """
    losses: dict[str, float] = {}
    texts = [sample.text for sample in samples]
    for name, given in (("own", texts), ("other", [*texts[1:], *texts[:1]])):
        sums = {"visual": 0.0, "motion": 0.0}
        counts = dict.fromkeys(sums, 0.0)
        for number, (sample, text) in enumerate(zip(samples, given, strict=True)):
            captioned = TokenSample(text, sample.clips)
            lengths = [(len(visual), len(motion)) for visual, motion in captioned.clips]
            documents = [
                Document(assembler.ids(piece, captioned), "")
                for piece in assembler.pieces(len(text), lengths, _DRAWS)
                if piece.clips
            ]
            items = [Item(number, "", lambda: None)] * len(documents)
            batch = collate(items, [[document] for document in documents])
            device = next(objective.parameters()).device
            inputs = {key: value.to(device) for key, value in batch.inputs.items()}
            terms = objective(inputs, Draws(0, batch.positions, device))
            for kind in sums:
                sums[kind] += float(terms[kind])
                counts[kind] += batch.counts[kind]
        losses |= {f"{kind}_{name}_caption": sums[kind] / max(counts[kind], 1.0) for kind in sums}
    return losses


def _make_trainable(network: Any, lora: LoRASettings) -> None:
    """Gives a language model adapters to train, or makes all of it trainable."""
    if lora.rank:
        add_lora(network, lora, seed=0)
    else:
        network.requires_grad_(True)


def _train_new_rows(network: Any, lora: LoRASettings) -> None:
    """Makes the tables trainable that have rows of codes, and nothing else but adapters."""
    if not lora.rank:
        network.requires_grad_(False)
    for table in tables_of(network):
        table.requires_grad_(True)


# ---- instruction tuning -------------------------------------------------------------------------------------------


def _chat(model: ModelFolder, inputs: TrainInputs, settings: LanguageModelTraining) -> Component:
    chat = settings.chat
    network = _understanding(model, settings)
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

    def sources(urls: list[str]) -> list[ChatSource]:
        cache = int(chat.cache_gb * 1e9 / max(len(urls), 1))
        return [ChatSource(url, inputs.storage, tokenizer, limits, cache) for url in urls]

    train, held_out = sources(inputs.train), sources(inputs.validation)
    parts = {f"understanding/{name}": name for name in UNDERSTANDING}
    prefix = "" if chat.initialise_from == "language_model" else "understanding/"
    fixed = {part: model.digest(prefix + part) for part in TOKENIZERS}
    return Component(
        objective=AnswerObjective(network, parts, settings.other_lr_scale, settings.lora),
        stream=sample_stream(train, inputs),
        collate=collate_chat,
        validation=validation_items(held_out, settings.validation_samples),
        identity=data_identity(train) | {"vocabulary": asdict(model.vocabulary), "fixed": fixed},
    )


def _understanding(model: ModelFolder, settings: LanguageModelTraining) -> UnderstandingModel:
    """Networks of the understanding model. Parameters to train require a gradient."""
    chat = settings.chat
    network = model.understanding("cpu", torch.float32)
    if chat.initialise_from == "language_model":
        for name in UNDERSTANDING:
            _copy_weights(getattr(network, name), model.load(name), name, model)
    _make_trainable(network.language_model, settings.lora)
    if chat.train_visual:
        network.visual_tokenizer.causal_encoder.requires_grad_(True)
        assert network.visual_tokenizer.vit_proj is not None, "understanding has continuous features"
        network.visual_tokenizer.vit_proj.requires_grad_(True)
    return network.train()


def _copy_weights(target: torch.nn.Module, source: torch.nn.Module, name: str, model: ModelFolder) -> None:
    """Loads weights of a network of the model into its counterpart, which may have a projection in addition."""
    try:
        missing, left = target.load_state_dict(source.state_dict(), strict=False)
    except RuntimeError as error:
        raise ModelError(f"{model.location}/{name} does not fit understanding/{name}: {error}") from None
    if left or any(not key.startswith("vit_proj.") for key in missing):
        raise ModelError(f"{model.location}/{name} does not fit understanding/{name}: {[*missing, *left][:3]} differ")

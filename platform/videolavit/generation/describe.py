"""Answers to questions about pictures and videos (docs/model.md, section 5.4)."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pydantic.dataclasses import dataclass as settings_dataclass
from transformers import PreTrainedTokenizerBase

from videolavit.media import Clip
from videolavit.models.language_model import VisualPrompts
from videolavit.models.motion_tokenizer import MotionTokenizer
from videolavit.models.network import STRICT
from videolavit.models.visual_tokenizer import VisualTokenizer
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.vocabulary import IMAGE, VIDEO, chat_prompt, fewest_tokens, stop_ids, stop_strings

from .decoding import Sampling, TokenPolicy, decode_steps, pad_prompts
from .inputs import load_runtime, read_picture_or_clips
from .prompts import Picture, preprocess_pictures
from .runtime import Runtime, RuntimeSettings
from .settings import generator
from .token_generator import PromptTooLong

OnText = Callable[[int, str], None]
"""Called with the index of a question and the next piece of its answer. It may raise to stop."""


Medium = Picture | Sequence[Clip]
"""Picture, uint8 [height, width, 3]; or clips of a video, as `decompose` selects them with the policy `eval`."""

Content = Sequence[str | Medium]
"""Message of the user: texts, pictures and videos, in the order in which the model reads them."""


def ignore_text(index: int, text: str) -> None:
    """Callback of a caller who does not read the answers while they are generated."""


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class DescribeSettings:
    """Settings for generating answers; the defaults are the published ones of greedy decoding.

    Args:
        temperature: Divisor of the logits; 0 for greedy decoding.
        top_k: Number of most probable tokens to sample from; None for all.
        top_p: Share of the probability that the sampled tokens must cover (nucleus sampling); 1 for all.
        min_tokens: Smallest number of tokens of an answer; None for the published 8, or for 0 where the tokenizer has a
            chat template.
        max_tokens: Largest number of tokens of an answer; None for what is left of the context.
        seed: Seed of the sampling.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_tokens: int | None = None
    max_tokens: int | None = 512
    seed: int = 0

    def __post_init__(self) -> None:
        most, fewest = self.max_tokens, self.min_tokens or 0
        if fewest < 0 or (most is not None and not 1 <= most >= fewest):
            raise ValueError("max_tokens must be at least 1 and not below min_tokens")
        self.sampling()

    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True, eq=False)
class Question:
    """Message to be answered, and the conversation before it.

    The model was trained with pictures and videos in front of the text of the first message.

    Args:
        content: Texts, pictures and videos.
        turns: Earlier messages, and their answers.
    """

    content: Content
    turns: Sequence[tuple[Content, str]] = ()


@dataclass(frozen=True, eq=False)
class VisualContext:
    """Output of the tokenizers for a picture or a video, from which the language model's input is made.

    Args:
        features: Continuous features [n, hidden] of the picture, or of the keyframe of each clip.
        motion: Motion codes [clips, n]; None for a picture.
    """

    features: list[torch.Tensor]
    motion: torch.Tensor | None

    def embed(self, model: VisualPrompts) -> torch.Tensor:
        """Embeddings [n, hidden], in place of the marker in a prompt."""
        device = model.language_model.device
        features = [one.to(device) for one in self.features]
        if self.motion is None:
            return model.embed_features(features)[0]
        return model.embed_clips(features, self.motion.to(device))

    @property
    def kind(self) -> int:
        """Placeholder in a prompt: `IMAGE` or `VIDEO`."""
        return IMAGE if self.motion is None else VIDEO

    def cpu(self) -> "VisualContext":
        """Copy in main memory."""
        return VisualContext([one.cpu() for one in self.features], None if self.motion is None else self.motion.cpu())


@dataclass(frozen=True)
class DescribeSummary:
    """Result of `describe`.

    Args:
        answers: Answer about each file, in order.
        model_is_trained: False if the weights are untrained, so that the answers are meaningless.
    """

    answers: tuple[str, ...]
    model_is_trained: bool


def describe(
    paths: Sequence[str | os.PathLike[str]],
    model: str | os.PathLike[str],
    question: str = "Describe it in detail.",
    *,
    max_clips: int = 8,
    settings: DescribeSettings | None = None,
    placement: RuntimeSettings | None = None,
    on_text: OnText = ignore_text,
    on_progress: OnProgress = ignore_progress,
) -> DescribeSummary:
    """Asks a question about each of some pictures and videos, in one batch.

    Args:
        paths: Files or URLs.
        model: Model folder, or name of a preset.
        question: Question about each file.
        max_clips: Largest number of clips of a video that the model sees, of 4 s each.
        settings: Sampling and length of the answers.
        placement: Device and data type of the model.
        on_text: Receives the answers piece by piece while they are generated.
        on_progress: Receives the number of files read, and a message if the weights are untrained.

    Raises:
        ValueError: a setting that is impossible, or a question that is too long (PromptTooLong).
        MediaError: a file cannot be read.
        ModelError: the model cannot be loaded, or lacks a part.
    """
    questions = []
    for number, path in enumerate(paths, 1):
        questions.append(Question((read_picture_or_clips(path, max_clips), question)))
        on_progress(Progress("read files", number, len(paths)))
    runtime = load_runtime(model, placement, on_progress)
    answers = [""] * len(questions)
    for index, text in stream_answers(runtime, questions, settings):
        answers[index] += text
        on_text(index, text)
    return DescribeSummary(tuple(text.strip() for text in answers), runtime.model.is_trained)


def answer(runtime: Runtime, questions: Sequence[Question], settings: DescribeSettings | None = None) -> list[str]:
    """Answers a batch of questions. Raises the errors of `stream_answers`."""
    answers = [""] * len(questions)
    for row, text in stream_answers(runtime, questions, settings):
        answers[row] += text
    return [text.strip() for text in answers]


def stream_answers(
    runtime: Runtime, questions: Sequence[Question], settings: DescribeSettings | None = None
) -> Iterator[tuple[int, str]]:
    """Yields pieces of the answers to a batch of questions as they are generated: (index of the question, text).

    Raises:
        ValueError: a question about a video without clips.
        PromptTooLong: a question, its pictures and clips, and its answer exceed the context.
        ModelError: the model lacks a part for understanding.
    """
    if not questions:
        return
    settings = settings or DescribeSettings()
    tokenizer = runtime.model.text_tokenizer("understanding/language_model")
    streams = [TextStream(tokenizer) for _ in questions]
    with runtime.use("understanding") as model:

        def encoded(content: Content) -> list[str | VisualContext]:
            encode = partial(encode_visual_context, model.visual_tokenizer, model.motion_tokenizer)
            return [part if isinstance(part, str) else encode(part) for part in content]

        prompts, most = [], []
        for question in questions:
            turns = [(encoded(content), answer) for content, answer in question.turns]
            prompts.append(embed_chat_prompt(model, tokenizer, turns, encoded(question.content)))
            most.append(answer_length(model, prompts[-1], settings))
        policy = answer_policy(model, tokenizer, settings, min(most))
        generators = [generator(settings.seed, "answer") for _ in questions]
        sampling = [settings.sampling()] * len(questions)
        for step in decode_steps(
            model.language_model, pad_prompts([prompt.embeds for prompt in prompts]), policy, sampling, generators
        ):
            for row, (stream, token) in enumerate(zip(streams, step.ids, strict=True)):
                text = "" if token is None else stream.push([token])
                if text:
                    yield row, text
            if all(stream.stopped or token is None for stream, token in zip(streams, step.ids, strict=True)):
                break
    for row, stream in enumerate(streams):
        text = stream.finish()
        if text:
            yield row, text


@torch.inference_mode()
def encode_visual_context(
    visual_tokenizer: VisualTokenizer, motion_tokenizer: MotionTokenizer, about: Medium
) -> VisualContext:
    """Runs the tokenizers on a picture or on clips. Raises ValueError for a video without clips."""
    if isinstance(about, np.ndarray):
        return VisualContext(visual_tokenizer.embed(preprocess_pictures([about], visual_tokenizer)), None)
    if not about:
        raise ValueError("the video has no clip to ask about")
    frames = preprocess_pictures([clip.keyframe for clip in about], visual_tokenizer)
    motion = torch.from_numpy(np.stack([clip.features(motion_tokenizer.config.grid) for clip in about]))
    return VisualContext(visual_tokenizer.embed(frames), motion_tokenizer.encode(motion.to(frames)))


@dataclass(frozen=True, eq=False)
class ChatPrompt:
    """Prompt of a chat.

    Args:
        embeds: Embeddings [length, hidden].
        contexts: Pictures and videos in it.
        visual_tokens: Length of the pictures and videos, in tokens.
    """

    embeds: torch.Tensor
    contexts: list[VisualContext]
    visual_tokens: int

    def __str__(self) -> str:
        pictures = sum(context.motion is None for context in self.contexts)
        clips = sum(len(context.features) for context in self.contexts) - pictures
        counted = ((pictures, "picture"), (clips, "clip"))
        shown = " and ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in counted if count)
        text = f"{len(self.embeds) - self.visual_tokens} tokens of text"
        return f"{text} and {self.visual_tokens} of {shown}" if shown else text


@torch.inference_mode()
def embed_chat_prompt(
    model: VisualPrompts,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[tuple[Sequence[str | VisualContext], str]],
    question: Sequence[str | VisualContext],
) -> ChatPrompt:
    """Embeds a question and the turns of the conversation before it."""

    def with_placeholders(content: Sequence[str | VisualContext]) -> list[str | int]:
        return [part if isinstance(part, str) else part.kind for part in content]

    ids = chat_prompt(
        tokenizer, [(with_placeholders(content), answer) for content, answer in turns], with_placeholders(question)
    )
    contents = [*(content for content, _ in turns), question]
    contexts = [part for content in contents for part in content if not isinstance(part, str)]
    visuals = [context.embed(model) for context in contexts]
    return ChatPrompt(model.assemble([ids], [visuals]).embeds[0], contexts, sum(map(len, visuals)))


def answer_length(model: VisualPrompts, prompt: ChatPrompt, settings: DescribeSettings) -> int:
    """Largest number of tokens of an answer. Raises PromptTooLong if the context has no room for it."""
    context = model.language_model.config.max_position_embeddings
    left = context - len(prompt.embeds)
    if left < (settings.max_tokens or 1):
        answer = f", with {settings.max_tokens} for the answer" if settings.max_tokens else ""
        fix = "send fewer or shorter videos and pictures" if prompt.contexts else "shorten the text"
        raise PromptTooLong(f"the chat has {prompt}{answer}: more than the context of {context}; {fix}")
    return settings.max_tokens or left


def answer_policy(
    model: VisualPrompts, tokenizer: PreTrainedTokenizerBase, settings: DescribeSettings, max_tokens: int
) -> TokenPolicy:
    """Constraint on the tokens of an answer: text of the settings' length, and of at most `max_tokens`.

    Ids that the tokenizer does not know, as padded embedding tables have them, are no text.
    """
    configured = model.language_model.config.eos_token_id
    also = configured if isinstance(configured, list) else [] if configured is None else [configured]
    end, *others = dict.fromkeys([*stop_ids(tokenizer), *also])  # fine-tuning uses the first
    text = range(min(len(tokenizer), model.vocabulary.text_size))
    fewest = fewest_tokens(tokenizer) if settings.min_tokens is None else settings.min_tokens
    return TokenPolicy((text,), end, min(fewest, max_tokens), max_tokens, tuple(others))


class TextStream:
    """Incremental decoding of token ids to text, up to a stop string.

    Text is held back while it may still change: incomplete characters, and the beginning of a stop string.

    Args:
        stops: Stop strings, besides that of answers in the published prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = (*stop_strings(tokenizer), *stops)
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False

    def push(self, ids: Sequence[int]) -> str:
        """Appends ids, and returns the text that has become certain."""
        if not ids or self.stopped:
            return ""
        self._ids += ids
        text = self._send(held=max(map(len, self._stops), default=1) - 1)
        while self.stopped and self._stop_position(self._decode(self._ids[:-1])) is not None:
            self._ids.pop()
        return text

    @property
    def count(self) -> int:
        """Number of ids so far, up to the one that completed the stop string."""
        return len(self._ids)

    def finish(self) -> str:
        """Returns the text that was held back."""
        return "" if self.stopped else self._send(held=0, is_last=True)

    def _send(self, held: int, is_last: bool = False) -> str:
        """Returns the new text, without its last `held` characters unless a stop string was found."""
        text = self._decode(self._ids)
        end = self._stop_position(text)
        if end is not None:
            self.stopped = True
            certain = end
        else:
            complete = text if is_last else text.rstrip("\ufffd")  # the bytes of a character may be several ids
            certain = len(complete) - held
        piece = text[self._sent : certain] if certain > self._sent else ""
        self._sent = max(self._sent, certain)
        return piece

    def _stop_position(self, text: str) -> int | None:
        """Start of the stop string that is completed first, so that it does not matter how many ids come at once."""
        positions = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]
        return min(positions)[1] if positions else None

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

"""Questions about images and videos (reference 5.4)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass as settings_dataclass
from transformers import PreTrainedTokenizerBase

from videolavit.media import Clip
from videolavit.models.language_model import VisualPrompts
from videolavit.models.motion_tokenizer import MotionTokenizer
from videolavit.models.network import STRICT
from videolavit.models.visual_tokenizer import VisualTokenizer
from videolavit.vocabulary.conversation import STOP, chat_prompt

from .decoding import Sampling, TokenPolicy, pad_prompts, steps
from .prompts import Picture, read_pictures
from .runtime import Runtime
from .settings import generator
from .token_generator import PromptTooLong


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class DescribeSettings:
    """How an answer is written; the defaults are the published ones of greedy decoding.

    Args:
        temperature: Scores are divided by it; 0 takes the best word always.
        top_k: Only so many of the best words; None for all.
        top_p: Only the fewest words that have this share of the probability together.
        min_tokens: Fewest tokens of an answer.
        max_tokens: Most tokens of an answer.
        seed: Decides all that is drawn.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_tokens: int = 8
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_tokens <= self.max_tokens or self.max_tokens < 1:
            raise ValueError("max_tokens must be at least 1 and not below min_tokens")
        self.sampling()

    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True, eq=False)
class Question:
    """A question about a picture, about the clips of a video, or about nothing.

    Args:
        text: The question.
        about: uint8 [height, width, 3]; or clips as `decompose` selects them under the policy `eval`.
    """

    text: str
    about: Picture | Sequence[Clip] | None = None


@dataclass(frozen=True, eq=False)
class VisualContext:
    """What the tokenizers see in a picture or in a video: all that a language model needs to know of it.

    Args:
        features: Continuous features [n, hidden] of the picture, or of each clip's keyframe.
        motion: Codes [clips, n]; None for a picture.
    """

    features: list[torch.Tensor]
    motion: torch.Tensor | None

    def embedded(self, model: VisualPrompts) -> torch.Tensor:
        """[n, hidden] in place of the prompt's marker."""
        device = model.language_model.device
        features = [one.to(device) for one in self.features]
        if self.motion is None:
            return model.embed_features(features)[0]
        return model.embed_clips(features, self.motion.to(device))

    def on_cpu(self) -> "VisualContext":
        """To be sent elsewhere."""
        return VisualContext([one.cpu() for one in self.features], None if self.motion is None else self.motion.cpu())


def answer(runtime: Runtime, questions: Sequence[Question], settings: DescribeSettings | None = None) -> list[str]:
    """The answers to a batch of questions. Errors as `stream_answers`."""
    answers = [""] * len(questions)
    for row, text in stream_answers(runtime, questions, settings):
        answers[row] += text
    return [text.strip() for text in answers]


def stream_answers(
    runtime: Runtime, questions: Sequence[Question], settings: DescribeSettings | None = None
) -> Iterator[tuple[int, str]]:
    """Yields (index of the question, next piece of its answer) as the answers of a batch are written.

    Raises:
        PromptTooLong: a question with its clips, and the answer, exceed the context.
        ModelError: the model cannot understand: it lacks a part.
    """
    if not questions:
        return
    settings = settings or DescribeSettings()
    tokenizer = runtime.model.text_tokenizer("understanding/language_model")
    ends = [TextStream(tokenizer) for _ in questions]
    with runtime.use("understanding") as model:
        seen = [see(model.visual_tokenizer, model.motion_tokenizer, question.about) for question in questions]
        rows = [
            prompt_of(model, tokenizer, (), question.text, sight, settings.max_tokens)
            for question, sight in zip(questions, seen, strict=True)
        ]
        prompts = pad_prompts(rows)
        policy = answer_policy(model, settings)
        generators = [generator(settings.seed, "answer") for _ in questions]
        sampling = [settings.sampling()] * len(questions)
        for step in steps(model.language_model, prompts, policy, sampling, generators):
            for row, (stream, token) in enumerate(zip(ends, step.ids, strict=True)):
                text = "" if token is None else stream.push([token])
                if text:
                    yield row, text
            if all(stream.stopped or token is None for stream, token in zip(ends, step.ids, strict=True)):
                break
    for row, stream in enumerate(ends):
        text = stream.finish()
        if text:
            yield row, text


@torch.inference_mode()
def see(
    visual_tokenizer: VisualTokenizer, motion_tokenizer: MotionTokenizer, about: Picture | Sequence[Clip] | None
) -> VisualContext | None:
    """What the tokenizers see in what a question is about. Raises ValueError for a video without a clip."""
    if about is None:
        return None
    if isinstance(about, np.ndarray):
        return VisualContext(visual_tokenizer.embed(read_pictures([about], visual_tokenizer)), None)
    if not about:
        raise ValueError("the video has no clip to ask about")
    frames = read_pictures([clip.keyframe for clip in about], visual_tokenizer)
    motion = torch.from_numpy(np.stack([clip.features(motion_tokenizer.config.grid) for clip in about]))
    return VisualContext(visual_tokenizer.embed(frames), motion_tokenizer.encode(motion.to(frames)))


@torch.inference_mode()
def prompt_of(
    model: VisualPrompts,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[tuple[str, str]],
    question: str,
    sight: VisualContext | None,
    max_tokens: int,
) -> torch.Tensor:
    """The prompt [length, hidden] of a question.

    Args:
        turns: Questions and answers before it.
        sight: What the first question is about.
        max_tokens: Most tokens of the answer.

    Raises:
        PromptTooLong: both exceed the context.
    """
    kind: Literal["image", "video"] | None = None
    if sight is not None:
        kind = "image" if sight.motion is None else "video"
    ids = chat_prompt(tokenizer, turns, question, kind)
    prompt = model.assemble([ids], [None if sight is None else sight.embedded(model)]).embeds[0]
    context = model.language_model.config.max_position_embeddings
    if len(prompt) + max_tokens > context:
        clips = len(sight.features) if sight is not None and sight.motion is not None else 0
        fix = "ask with fewer clips" if clips > 1 else "shorten it"
        about_clips = f" with {clips} clips" if clips else ""
        raise PromptTooLong(
            f"the question{about_clips} has {len(prompt)} tokens; with {max_tokens} for the answer it exceeds the "
            f"context of {context}; {fix}"
        )
    return prompt


def answer_policy(model: VisualPrompts, settings: DescribeSettings) -> TokenPolicy:
    """Text of the settings' length. Some language models have several ids that end it; the first is the tuned one."""
    configured = model.language_model.config.eos_token_id
    end = configured[0] if isinstance(configured, list) else configured
    return TokenPolicy((range(model.vocabulary.text_size),), end, settings.min_tokens, settings.max_tokens)


class TextStream:
    """Ids in, text out as soon as it is certain: whole characters, and nothing from a stop string on.

    Args:
        stops: Strings that end the text, besides the model's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = (STOP, *stops)
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False

    def push(self, ids: Sequence[int]) -> str:
        """The text that further ids make certain."""
        if not ids or self.stopped:
            return ""
        self._ids += ids
        text = self._send(held=max(map(len, self._stops)) - 1)
        while self.stopped and self._end(self._decoded(self._ids[:-1])) is not None:
            self._ids.pop()
        return text

    @property
    def count(self) -> int:
        """Ids so far, up to the one that completed the stop string."""
        return len(self._ids)

    def finish(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._send(held=0)

    def _send(self, held: int) -> str:
        text = self._decoded(self._ids)
        end = self._end(text)
        if end is not None:
            self.stopped = True
            certain = end
        else:
            whole = text.rstrip("\ufffd") if held else text  # a character's bytes may come one id at a time
            certain = len(whole) - held
        piece = text[self._sent : certain] if certain > self._sent else ""
        self._sent = max(self._sent, certain)
        return piece

    def _end(self, text: str) -> int | None:
        """Where the stop string begins that is complete first: so it does not matter how many ids come at once."""
        places = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]
        return min(places)[1] if places else None

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

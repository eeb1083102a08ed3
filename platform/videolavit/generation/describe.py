"""Questions about images and videos (reference 5.4)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic.dataclasses import dataclass as settings_dataclass
from transformers import PreTrainedTokenizerBase

from videolavit.media import Clip
from videolavit.models.language_model import UnderstandingModel
from videolavit.models.network import STRICT
from videolavit.vocabulary import understanding_prompt
from videolavit.vocabulary.prompts import STOP

from .decoding import Prompts, Sampling, TokenPolicy, steps
from .prompts import Picture, read_pictures
from .runtime import Runtime
from .settings import generator
from .writing import PromptTooLong


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
    ends = [_TextStream(tokenizer) for _ in questions]
    with runtime.use("understanding") as model:
        prompts = _prompts(model, tokenizer, questions, settings.max_tokens)
        end = _end_id(model.language_model.config.eos_token_id)
        policy = TokenPolicy((range(model.vocabulary.text_size),), end, settings.min_tokens, settings.max_tokens)
        generators = [generator(settings.seed, "answer") for _ in questions]
        sampling = [settings.sampling()] * len(questions)
        for step in steps(model.language_model, prompts, policy, sampling, generators):
            for row, (stream, token) in enumerate(zip(ends, step.ids, strict=True)):
                text = stream.push(token)
                if text:
                    yield row, text
            if all(stream.stopped or token is None for stream, token in zip(ends, step.ids, strict=True)):
                break
    for row, stream in enumerate(ends):
        text = stream.finish()
        if text:
            yield row, text


@torch.inference_mode()
def _prompts(
    model: UnderstandingModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_tokens: int,
) -> Prompts:
    ids: list[list[int]] = []
    visuals: list[torch.Tensor | None] = []
    for question in questions:
        about = question.about
        if about is None:
            ids.append(understanding_prompt(tokenizer, question.text, None))
            visuals.append(None)
        elif isinstance(about, np.ndarray):
            ids.append(understanding_prompt(tokenizer, question.text, "image"))
            visuals.append(model.embed_images(read_pictures([about], model.visual_tokenizer))[0])
        else:
            ids.append(understanding_prompt(tokenizer, question.text, "video"))
            visuals.append(_embed_clips(model, about))
    batch = model.assemble(ids, visuals)
    context = model.language_model.config.max_position_embeddings
    length = batch.embeds.shape[1]
    if length + max_tokens > context:
        clips = max((len(question.about) for question in questions if isinstance(question.about, Sequence)), default=0)
        fix = "ask with fewer clips" if clips > 1 else "shorten it"
        about_clips = f" with {clips} clips" if clips else ""
        raise PromptTooLong(
            f"the question{about_clips} has {length} tokens; with {max_tokens} for the answer it exceeds the context "
            f"of {context}; {fix}"
        )
    return Prompts(batch.embeds, batch.attention_mask)


def _end_id(configured: int | list[int]) -> int:
    """Some language models have several ids that end a text; the first is the one that they were tuned with."""
    return configured[0] if isinstance(configured, list) else configured


def _embed_clips(model: UnderstandingModel, clips: Sequence[Clip]) -> torch.Tensor:
    if not clips:
        raise ValueError("the video has no clip to ask about")
    frames = read_pictures([clip.keyframe for clip in clips], model.visual_tokenizer)
    grid = model.motion_tokenizer.config.grid
    motion = torch.from_numpy(np.stack([clip.features(grid) for clip in clips]))
    return model.embed_video(frames, motion.to(frames))


class _TextStream:
    """Ids in, text out as soon as it is certain: whole characters, and nothing from the stop string on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False

    def push(self, token: int | None) -> str:
        """The text that a token makes certain; "" for None."""
        if token is None or self.stopped:
            return ""
        self._ids.append(token)
        return self._send(held=len(STOP) - 1)

    def finish(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._send(held=0)

    def _send(self, held: int) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        at = text.find(STOP)
        if at >= 0:
            self.stopped = True
            certain = at
        else:
            whole = text.rstrip("\ufffd") if held else text  # a character's bytes may come one id at a time
            certain = len(whole) - held
        piece = text[self._sent : certain] if certain > self._sent else ""
        self._sent = max(self._sent, certain)
        return piece

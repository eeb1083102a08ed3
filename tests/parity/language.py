"""The outputs of the language model: prompts with pictures and motion in them, and greedy continuations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.parity.pack import Module
from tests.parity.results import Results, gap
from videolavit.generation.decoding import GREEDY, PaddedPrompts, TokenPolicy, decode_steps, embed_prompts
from videolavit.models.language_model import NO_LABEL, PromptBatch, UnderstandingModel
from videolavit.vocabulary import VIDEO, Vocabulary

PAD = END_OF_TEXT = 2
MIN_ANSWER = 8
"""New tokens before an answer may end, as published."""

NEW_SCORES = 100
"""Ids whose scores a new pack gets, about."""


def llm(module: Module) -> Results:
    model = module.network("language_model_sft")
    prompts = _prompts(module, model)
    outputs: dict[str, Any] = _motion(module, model)
    for kind, batch in prompts.items():
        outputs |= {f"{kind}.{name}": value for name, value in _read(model, batch).items()}
        first = PaddedPrompts(batch.embeds[:1], batch.attention_mask[:1])
        outputs |= {f"answer.{kind}.{name}": value for name, value in _answer(module, model, first).items()}
    generated = _generated(module, model)
    return Results(outputs | generated.outputs, generated.facts)


def _prompts(module: Module, model: UnderstandingModel) -> dict[str, PromptBatch]:
    texts, clip = module.config["image_prompts"], module.config["video_prompt"]
    labels = module.input("image_labels_in").tolist()
    images = model.embed_images(module.input("images"), module.input("keep_images").bool())
    video = model.embed_video(module.input("frames"), module.input("motion"), module.input("keep_frames").bool())
    marker = clip.index(VIDEO)
    return {
        "image": model.assemble(
            texts, [[image] for image in images], [row[: len(text)] for row, text in zip(labels, texts, strict=True)]
        ),
        "video": model.assemble([clip], [[video]], [[NO_LABEL] * (marker + 1) + clip[marker + 1 :]]),
    }


def _motion(module: Module, model: UnderstandingModel) -> dict[str, Tensor]:
    tokenizer = model.motion_tokenizer
    distances = tokenizer.quantize.distances(tokenizer.to_codebook(module.input("motion")))
    return {
        "motion_tokens": model.motion_tokenizer.encode(module.input("motion")) + model.vocabulary.motion_range.start,
        "motion_token_gap": gap(distances).flatten(),
    }


def _read(model: UnderstandingModel, batch: PromptBatch) -> dict[str, Tensor]:
    done = model.language_model(
        inputs_embeds=batch.embeds,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        labels=batch.labels,
    )
    return {
        "embeds": batch.embeds,
        "attention_mask": batch.attention_mask.to(torch.uint8),
        "position_ids": batch.position_ids,
        "labels": batch.labels,
        "loss": done.loss,
        "last_logits": done.logits[:, -1],
    }


def _answer(module: Module, model: UnderstandingModel, prompt: PaddedPrompts) -> dict[str, Any]:
    text = (range(model.vocabulary.text_size),)
    policy = TokenPolicy(text, END_OF_TEXT, MIN_ANSWER, module.config["answer_tokens"])
    done = _Continuation(model, prompt, policy, None)
    return {"ids": done.ids[0], "top_gap": done.gaps[0]}


def _generated(module: Module, model: UnderstandingModel) -> Results:
    """Greedy images of the generation prompts, then motion behind what remains of them."""
    words, results = module.config, Results({})
    # ids 0 to 2 and the marker itself may come too, as published
    policies = {
        "image": _policy(model.vocabulary, "image", words["min_new"], words["image_tokens"]),
        "motion": _policy(model.vocabulary, "motion", words["min_new"], words["motion_new_tokens"]),
    }
    markers = {"image": model.vocabulary.image_start, "motion": model.vocabulary.motion_start}
    sequences = [list(prompt) for prompt in words["generation_prompts"]]
    for kind, policy in policies.items():
        sequences = [[*sequence, markers[kind]] for sequence in sequences]
        prompts = embed_prompts(model.language_model, sequences)
        done = _Continuation(model, prompts, policy, words[f"cfg_{kind}"])
        kept = [[token for token in row if token != PAD] for row in done.ids.tolist()]
        sequences = [sequence + row for sequence, row in zip(sequences, kept, strict=True)]
        which = _score_ids(module, kind, policy)
        results.outputs |= {
            f"generate.{kind}.ids": done.ids,
            f"generate.{kind}.kept_counts": [len(row) for row in kept],
            f"generate.{kind}.top_gap": done.gaps,
            f"generate.{kind}.score_ids": which,
            f"generate.{kind}.scores_step0": done.scores[0][:, which],
            f"generate.{kind}.scores_step2": done.scores[2][:, which],
        }
        fact = f"generate.{kind}.allowed_ranges_first_and_last_step"
        results.facts[fact] = [_spans(policy, blocked) for blocked in (True, False)]
    return results


def _policy(vocabulary: Vocabulary, kind: str, fewest: int, most: int) -> TokenPolicy:
    marker, codes, end = {
        "image": (vocabulary.image_start, vocabulary.visual_range, vocabulary.image_end),
        "motion": (vocabulary.motion_start, vocabulary.motion_range, vocabulary.motion_end),
    }[kind]
    return TokenPolicy((range(PAD + 1), range(marker, marker + 1), codes), end, fewest, most)


def _score_ids(module: Module, kind: str, policy: TokenPolicy) -> list[int]:
    """The ids whose scores a pack has, or will have; only such as may be chosen at the first step."""
    allowed = policy.ids(torch.device("cpu"))[:-1].tolist()
    recorded = module.recorded().get(f"generate.{kind}.score_ids") if module.outputs else None
    if recorded is None:
        return allowed[:: len(allowed) // NEW_SCORES]
    return [int(token) for token in recorded if token in set(allowed)]


def _spans(policy: TokenPolicy, end_is_blocked: bool) -> list[list[int]]:
    """First and last id of each run of ids that may be chosen."""
    ids = policy.ids(torch.device("cpu"))
    ordered = (ids[:-1] if end_is_blocked else ids).sort().values
    cuts = (ordered.diff() > 1).nonzero().flatten() + 1
    return [[int(run[0]), int(run[-1])] for run in ordered.tensor_split(cuts)]


class _Continuation:
    """Greedy ids of every row, filled with the padding behind the end, and how clear each choice was.

    Args:
        policy: Ids that may be chosen.
        guidance: Scale; None for none.
    """

    def __init__(
        self, model: UnderstandingModel, prompts: PaddedPrompts, policy: TokenPolicy, guidance: float | None
    ) -> None:
        rows = len(prompts.embeds)
        generators = [torch.Generator() for _ in range(rows)]
        ids, gaps, over, ended = [], [], [], [False] * rows
        self.scores: list[Tensor] = []
        greedy: Sequence[Any] = [GREEDY] * rows
        for step in decode_steps(model.language_model, prompts, policy, greedy, generators, guidance):
            options = policy.ids(step.log_probs.device)[: None if len(ids) >= policy.min_new else -1]
            first, second = step.log_probs[:, options].topk(2).values.unbind(-1)
            self.scores.append(step.log_probs)
            gaps.append((first - second).numpy())
            over.append(ended)
            ids.append([_token(token, done, policy.end) for token, done in zip(step.ids, ended, strict=True)])
            ended = [token is None for token in step.ids]
        self.ids = np.array(ids).T
        # scores behind the end of a row are not compared
        self.gaps = np.ma.masked_array(np.stack(gaps, axis=1), np.array(over).T)


def _token(token: int | None, had_ended: bool, end: int) -> int:
    if token is not None:
        return token
    return PAD if had_ended else end

"""Text to video by the published procedure, written straight down: the yardstick of `benchmarks.generate`.

One prompt at a time. Guidance is two forward passes, of the language model and of both U-Nets. The motion context is
spread over the places of a feature map before it is projected, in every step. The language model reads its whole
sequence for every token, or keeps a cache as `transformers` does of itself.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from videolavit.generation.program import GeneratedVideo
from videolavit.generation.prompts import Prompt, prompt_ids
from videolavit.generation.settings import GenerateSettings, generator
from videolavit.media.resize import resize_picture
from videolavit.models.folder import ModelFolder
from videolavit.models.keyframe_detokenizer import Conditions
from videolavit.models.sampling import draw_noise, prepared_scheduler, to_pixels

GRID = 16


class Straightforward:
    """The parts of a model, all loaded."""

    def __init__(self, folder: ModelFolder, cached: bool) -> None:
        self.folder, self.cached = folder, cached
        self.token_seconds = 0.0
        self.language_model = folder.load("language_model")
        self.keyframes = folder.keyframe_detokenizer("cpu", torch.float32)
        self.motion_tokenizer = folder.load("motion_tokenizer")
        self.videos = folder.video_detokenizer("cpu", torch.float32)
        self.context = _Context()
        unet = self.videos.unet.unet
        unet.set_attn_processor(
            {name: _processor(name, stock, self.context) for name, stock in unet.attn_processors.items()}
        )

    @torch.no_grad()
    def generate_video(self, prompt: Prompt, settings: GenerateSettings) -> GeneratedVideo:
        """A clip for a text, with greedy ids."""
        started = time.monotonic()
        vocabulary = self.folder.vocabulary
        ids = [*prompt_ids([prompt.text], self.folder.text_tokenizer(), vocabulary), vocabulary.image_start]
        visual = self._write(
            ids, vocabulary.visual_range, vocabulary.image_end, settings.min_visual, settings.max_visual,
            settings.visual_guidance,
        )  # fmt: skip
        ids += [*visual, vocabulary.image_end, vocabulary.motion_start]
        tokens = self.folder.motion_tokens
        motion = self._write(
            ids, vocabulary.motion_range, vocabulary.motion_end, tokens, tokens, settings.motion_guidance
        )
        visual = [token - vocabulary.visual_range.start for token in visual]
        motion = [token - vocabulary.motion_range.start for token in motion]
        self.token_seconds += time.monotonic() - started
        keyframe = self._paint(visual, prompt, settings)
        return GeneratedVideo(self._animate(keyframe, motion, prompt, settings), [keyframe], [visual], [motion])

    def _write(self, ids: list[int], allowed: range, end: int, least: int, most: int, guidance: float) -> list[int]:
        conditional, unconditional = _Stream(self, ids), _Stream(self, ids[-1:])
        written: list[int] = []
        while len(written) < most:
            scores = [F.log_softmax(stream.logits(), dim=-1) for stream in (conditional, unconditional)]
            guided = guidance * (scores[0] - scores[1]) + scores[1]
            suppressed = torch.full_like(guided, -torch.inf)
            suppressed[allowed.start : allowed.stop] = guided[allowed.start : allowed.stop]
            if len(written) >= least:
                suppressed[end] = guided[end]
            token = int(suppressed.argmax())
            if token == end:
                break
            written.append(token)
            conditional.ids.append(token)
            unconditional.ids.append(token)
        return written

    def _paint(self, visual: list[int], prompt: Prompt, settings: GenerateSettings) -> NDArray[np.uint8]:
        sizes, steps = self.folder.sizes, settings.keyframe_steps
        size = (sizes.keyframe_height, sizes.keyframe_width)
        conditional = self.keyframes.decode_codes([torch.tensor(visual)])
        unconditional = Conditions(torch.zeros_like(conditional.context), torch.zeros_like(conditional.pooled))
        scheduler = prepared_scheduler(self.keyframes.scheduler, steps, torch.device("cpu"))
        latents = self.keyframes.noise(*size, steps, [generator(prompt.seed, "keyframe 0")]).latents
        for timestep in scheduler.timesteps:
            without, with_codes = (
                self.keyframes.unet(
                    scheduler.scale_model_input(latents, timestep),
                    timestep,
                    one.context,
                    added_cond_kwargs={"text_embeds": one.pooled, "time_ids": torch.tensor([[*size, 0, 0, *size]])},
                ).sample
                for one in (unconditional, conditional)
            )
            guided = without + settings.keyframe_guidance * (with_codes - without)
            latents = scheduler.step(guided, timestep, latents).prev_sample
        return self.keyframes.decode(latents)[0]

    def _animate(
        self, keyframe: NDArray[np.uint8], motion: list[int], prompt: Prompt, settings: GenerateSettings
    ) -> NDArray[np.uint8]:
        sizes = self.folder.sizes
        height, width = self.videos.latent_size(sizes.video_height, sizes.video_width)
        picture = resize_picture(keyframe, sizes.video_height, sizes.video_width)[None]
        moving = self.motion_tokenizer.decode_to(torch.tensor([motion]), height, width)
        noise = [generator(prompt.seed, "video 0")]
        like = torch.empty(0)
        reference = self.videos.encode_keyframes(
            picture, draw_noise((3, *picture.shape[1:3]), noise, like), settings.noise_strength
        )
        scheduler = prepared_scheduler(self.videos.scheduler, settings.video_steps, torch.device("cpu"))
        frames = moving.shape[2]
        latents = draw_noise((frames, 4, height, width), noise, like) * scheduler.init_noise_sigma
        weights = torch.linspace(settings.min_guidance, settings.max_guidance, frames)[:, None, None, None]
        motion_states = self.videos.motion_encoder(moving)
        repeated = reference[:, None].expand(-1, frames, -1, -1, -1)
        halves = [
            (
                torch.cat([torch.zeros_like(repeated), torch.zeros_like(moving).transpose(1, 2)], 2),
                torch.zeros_like(motion_states),
            ),
            (torch.cat([repeated, moving.transpose(1, 2)], 2), motion_states),
        ]
        added = torch.tensor([[settings.fps, settings.motion_bucket, settings.noise_strength]])
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, timestep)
            without, with_motion = (
                self._predict(torch.cat([scaled, constant], 2), timestep, context, added)
                for constant, context in halves
            )
            latents = scheduler.step(without + weights * (with_motion - without), timestep, latents).prev_sample
        return self._decode(latents[0], settings.decode_chunk)

    def _predict(self, sample: Tensor, timestep: Tensor, context: Tensor, added: Tensor) -> Tensor:
        self.context.tokens, self.context.size = context, (sample.shape[-2], sample.shape[-1])
        prediction: Tensor = self.videos.unet.unet(sample, timestep, sample.new_zeros(1, 1, 1), added).sample
        return prediction

    def _decode(self, latents: Tensor, chunk: int) -> NDArray[np.uint8]:
        vae = self.videos.vae
        parts = (latents / vae.config.scaling_factor).split(chunk)
        return np.concatenate([to_pixels(vae.decode(part, num_frames=len(part)).sample) for part in parts])


class _Stream:
    """A sequence that grows, and the logits [vocabulary] behind its end."""

    def __init__(self, owner: Straightforward, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self._model = owner.language_model
        self._cache: Any = DynamicCache(config=self._model.config) if owner.cached else None
        self._read = 0

    def logits(self) -> Tensor:
        new = torch.tensor([self.ids[self._read :]])
        output = self._model(input_ids=new, past_key_values=self._cache, use_cache=self._cache is not None)
        if self._cache is not None:
            self._read = len(self.ids)
        last: Tensor = output.logits[0, -1]
        return last


@dataclass
class _Context:
    tokens: Tensor | None = None
    size: tuple[int, int] = (0, 0)


class _Spatial(AttnProcessor2_0):  # type: ignore[misc]
    def __init__(self, context: _Context) -> None:
        super().__init__()
        self._context = context

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        assert self._context.tokens is not None
        attended: Tensor = super().__call__(attn, hidden_states, self._context.tokens.flatten(0, 1))
        return attended


class _Temporal(_Spatial):
    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        assert self._context.tokens is not None
        tokens = self._context.tokens[0]  # [time, 256, channels]
        height, width = self._context.size
        while height * width > len(hidden_states):
            height, width = -(-height // 2), -(-width // 2)
        grid = tokens.transpose(1, 2).unflatten(2, (GRID, GRID))
        spread = F.interpolate(grid, scale_factor=(height / GRID, width / GRID), mode="nearest")
        attended: Tensor = AttnProcessor2_0.__call__(self, attn, hidden_states, spread.flatten(2).permute(2, 0, 1))
        return attended


def _processor(name: str, stock: Any, context: _Context) -> Any:
    if ".attn2." not in name:
        return stock
    return _Temporal(context) if ".temporal_transformer_blocks." in name else _Spatial(context)

"""Program of a picture or a video: what is written, painted and animated, in what order, from which random numbers.

A program calls no network. `execute` runs programs in this process, several in one batch; a service runs each over its
deployments, and starts a step as soon as the codes of its clip and the results that it needs are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from videolavit.media.settings import CLIP_FRAMES

from .prompts import EncodedPart, Picture
from .settings import generator


@dataclass(frozen=True)
class TokensRequest:
    """Request to the language model for the codes of a picture, or of all clips of a video.

    Args:
        prompt: Texts, and the visual codes of pictures.
        seed: Seed of the picture or video.
        clips: Number of clips; 0 for a picture.
        first_given: True if the last picture of the prompt is the keyframe of the first clip.
    """

    prompt: Sequence[EncodedPart]
    seed: int
    clips: int = 0
    first_given: bool = False

    def random(self) -> torch.Generator:
        """Random numbers of the sampling."""
        return generator(self.seed, "tokens")


@dataclass(frozen=True)
class ClipCodes:
    """Codes of a clip, or of a picture.

    Args:
        visual: Codes of the keyframe; None for a keyframe that is given.
        motion: Codes of the motion; None for a picture.
    """

    visual: Sequence[int] | None = None
    motion: Sequence[int] | None = None


CodesByClip = Mapping[int, ClipCodes]
"""Codes by the index of the clip."""


@dataclass(frozen=True, eq=False)
class KeyframeRequest:
    """Request to generate a keyframe.

    Args:
        codes: Visual codes.
        seed: Seed of the video.
        clip: Index of the clip in the video.
        last: Last frame of the clip before, uint8 [height, width, 3], to start near; None to start from noise.
    """

    codes: Sequence[int]
    seed: int
    clip: int = 0
    last: Picture | None = None

    def random(self) -> torch.Generator:
        """Random numbers of the noise that denoising starts from."""
        return generator(self.seed, f"keyframe {self.clip}")

    def step_random(self) -> torch.Generator:
        """Random numbers of the noise that some schedulers add in each step."""
        return generator(self.seed, f"keyframe steps {self.clip}")


@dataclass(frozen=True, eq=False)
class ClipRequest:
    """Request to generate the frames of a clip.

    Args:
        keyframe: uint8 [height, width, 3], of any size.
        motion: Motion codes; or motion at the size of the latents, [2, time, height, width].
        seed: Seed of the video.
        clip: Index of the clip in the video.
    """

    keyframe: Picture
    motion: Sequence[int] | Tensor
    seed: int
    clip: int = 0

    def random(self) -> torch.Generator:
        """Random numbers of all noise."""
        return generator(self.seed, f"video {self.clip}")


@dataclass(frozen=True, eq=False)
class KeyframeStep:
    """Step that generates the keyframe of a clip, uint8 [height, width, 3], from its visual codes.

    Args:
        seed: Seed of the video.
        clip: Index of the clip in the video.
        before: Step of the frames whose last one the keyframe starts near; None to start from noise.
    """

    name: ClassVar = "keyframe"
    seed: int
    clip: int
    before: FramesStep | None = None

    @property
    def needs(self) -> Sequence[Step]:
        """Steps whose results this one needs."""
        return [] if self.before is None else [self.before]

    def request(self, codes: ClipCodes, results: Results) -> KeyframeRequest:
        """Request for the keyframe, from the codes of the clip and the results of the needed steps."""
        assert codes.visual is not None
        last = None if self.before is None else results[self.before][-1]
        return KeyframeRequest(codes.visual, self.seed, self.clip, last)


@dataclass(frozen=True, eq=False)
class FramesStep:
    """Step that generates the frames of a clip, uint8 [time, height, width, 3], from its keyframe and motion.

    Args:
        seed: Seed of the video.
        clip: Index of the clip in the video.
        keyframe: Step of the keyframe, or a given picture.
        kept: Frames that the video keeps.
        motion: Motion in place of that of the motion codes, see `ClipRequest`.
    """

    name: ClassVar = "frames"
    seed: int
    clip: int
    keyframe: KeyframeStep | Picture
    kept: slice
    motion: Tensor | None = None

    @property
    def needs(self) -> Sequence[Step]:
        """Steps whose results this one needs."""
        return [self.keyframe] if isinstance(self.keyframe, KeyframeStep) else []

    def picture(self, results: Results) -> Picture:
        """Keyframe of the clip."""
        return results[self.keyframe] if isinstance(self.keyframe, KeyframeStep) else self.keyframe

    def request(self, codes: ClipCodes, results: Results) -> ClipRequest:
        """Request for the frames, from the codes of the clip and the results of the needed steps."""
        motion = codes.motion if self.motion is None else self.motion
        assert motion is not None
        return ClipRequest(self.picture(results), motion, self.seed, self.clip)


Step = KeyframeStep | FramesStep

STEP_KINDS: tuple[type[KeyframeStep], type[FramesStep]] = (KeyframeStep, FramesStep)
"""Kinds of steps, in the order in which a clip takes them."""

Results = Mapping[Step, Picture]
"""Pixels that steps have generated."""


@dataclass(frozen=True, eq=False)
class GeneratedVideo:
    """Generated video.

    Args:
        frames: uint8 [time, height, width, 3].
        keyframes: Keyframe of each clip: a generated one, or a given picture.
        visual: Visual codes of each keyframe that has any.
        motion: Motion codes of each clip.
    """

    frames: Picture
    keyframes: list[Picture]
    visual: list[list[int]]
    motion: list[list[int]]

    @property
    def tokens(self) -> dict[str, int]:
        """Number of `visual` and of `motion` codes."""
        return {"visual": sum(map(len, self.visual)), "motion": sum(map(len, self.motion))}


@dataclass(frozen=True, eq=False)
class Program:
    """Work on a picture or a video: first the codes, then the steps from codes to pixels.

    Args:
        codes: CodesByClip of the clips, or the request for them.
        steps: Steps, each behind those that it needs.
    """

    codes: CodesByClip | TokensRequest
    steps: Sequence[Step]

    @property
    def num_frames(self) -> int:
        """Number of frames of the video."""
        return sum(len(range(CLIP_FRAMES)[step.kept]) for step in self.steps if isinstance(step, FramesStep))

    def video(self, codes: CodesByClip, results: Results) -> GeneratedVideo:
        """Joins the results of all steps to a video."""
        clips = [step for step in self.steps if isinstance(step, FramesStep)]
        return GeneratedVideo(
            np.concatenate([results[step][step.kept] for step in clips]),
            [step.picture(results) for step in clips],
            [list(one.visual) for one in codes.values() if one.visual is not None],
            [list(one.motion) for one in codes.values() if one.motion is not None],
        )


def picture_program(prompt: Sequence[EncodedPart], seed: int) -> Program:
    """Program of a picture after a prompt: it is the result of the only step."""
    return Program(TokensRequest(prompt, seed), [KeyframeStep(seed, 0)])


def video_program(
    prompt: Sequence[EncodedPart],
    seed: int,
    clips: int,
    constraint: Literal["noise", "inversion", "none"],
    picture: Picture | None = None,
) -> Program:
    """Program of a video after a prompt.

    The first frame of each later clip repeats the last frame before it, and is left out.

    Args:
        clips: Number of clips.
        constraint: Link between clips, see `GenerateSettings`: with `none`, keyframes do not wait for frames.
        picture: Last picture of the prompt, which is the keyframe of the first clip; None to generate one.
    """
    steps: list[Step] = []
    keyframe: KeyframeStep | Picture
    before: FramesStep | None = None
    for clip in range(clips):
        if clip == 0 and picture is not None:
            keyframe = picture
        else:
            keyframe = KeyframeStep(seed, clip, None if constraint == "none" else before)
            steps.append(keyframe)
        before = FramesStep(seed, clip, keyframe, slice(1 if clip else 0, None))
        steps.append(before)
    return Program(TokensRequest(prompt, seed, clips, picture is not None), steps)


def frames_of_clips(clips: int) -> int:
    """Number of frames of a generated video, whose later clips each leave out a frame."""
    return 1 + clips * (CLIP_FRAMES - 1)


def nearest_clips(num_frames: float, most_frames: float) -> int:
    """Number of clips of the generated video whose length is nearest to a number of frames.

    Args:
        num_frames: Wanted number of frames.
        most_frames: Limit of frames, which one clip may exceed.
    """
    later = CLIP_FRAMES - 1
    return max(1, min(round((num_frames - 1) / later), int((most_frames - 1) // later)))


def reconstruction_steps(
    seed: int, clip: int, num_frames: int, keyframe: Picture | None = None, motion: Tensor | None = None
) -> list[Step]:
    """Steps that reconstruct a clip of a video from its codes; clips do not depend on each other.

    Args:
        num_frames: Frames of the clip, without padding.
        keyframe: Keyframe in place of that of the codes.
        motion: Motion in place of that of the codes, see `ClipRequest`.
    """
    kept = slice(num_frames)
    if keyframe is not None:
        return [FramesStep(seed, clip, keyframe, kept, motion)]
    generated = KeyframeStep(seed, clip)
    return [generated, FramesStep(seed, clip, generated, kept, motion)]

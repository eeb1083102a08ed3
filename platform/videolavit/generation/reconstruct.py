"""Reconstruction of a video from its tokens, as in the paper's demonstration."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass as settings_dataclass

from videolavit.files import write_beside
from videolavit.media import Clip, DecomposeSettings, Mp4Writer
from videolavit.media.quality import psnr, ssim
from videolavit.media.resize import resize_picture
from videolavit.models.network import STRICT
from videolavit.progress import OnProgress, ignore_progress
from videolavit.records.foreign import iterate_clips, iterate_pictures
from videolavit.records.storage import StorageSettings

from .clip_settings import ClipSettings
from .execute import execute
from .inputs import check_output, load_runtime, media_errors_of
from .output import model_hash, provenance, side_by_side
from .program import ClipCodes, Program, reconstruction_steps
from .prompts import Picture, encode_motion, encode_pictures
from .runtime import Runtime, RuntimeSettings
from .settings import settings_of_model

RECONSTRUCTION_PARTS = ("visual_tokenizer", "motion_tokenizer", "keyframe_detokenizer", "video_detokenizer")
"""Parts of the model whose weights a reconstruction depends on."""


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class ReconstructSettings(ClipSettings):
    """Settings for reconstructing a video.

    Args:
        keyframes: `tokens` generates keyframes from their codes; `original` keeps them, to see the motion alone.
        motion: `tokens` decodes motion from its codes; `original` gives the U-Net the original motion vectors.
        keyframe_steps: Denoising steps of a keyframe.
        keyframe_guidance: Guidance scale of the keyframe U-Net.
    """

    keyframes: Literal["tokens", "original"] = "tokens"
    motion: Literal["tokens", "original"] = "tokens"
    keyframe_steps: int = 50
    keyframe_guidance: float = 3.0


@dataclass(frozen=True, eq=False)
class ReconstructedClip:
    """Original and reconstruction of a clip.

    Args:
        original: uint8 [time, height, width, 3], resized to the size of the reconstruction.
        frames: Reconstruction, of the same shape.
        keyframe: Keyframe that the frames were generated from, uint8 [height, width, 3].
        visual: Visual codes of the keyframe.
        motion: Motion codes.
    """

    original: Picture
    frames: Picture
    keyframe: Picture
    visual: list[int]
    motion: list[int]

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio over all pixels, in dB."""
        return psnr(self.original, self.frames)

    @property
    def ssim(self) -> float:
        """Structural similarity, averaged over the frames."""
        return ssim(self.original, self.frames)


@dataclass(frozen=True)
class ClipQuality:
    """Size and quality of a reconstructed clip.

    Args:
        frames: Number of frames.
        visual_tokens: Number of visual codes of the keyframe.
        motion_tokens: Number of motion codes.
        psnr: Peak signal-to-noise ratio over all pixels, in dB.
        ssim: Structural similarity, averaged over the frames.
    """

    frames: int
    visual_tokens: int
    motion_tokens: int
    psnr: float
    ssim: float


@dataclass(frozen=True)
class ReconstructionSummary:
    """Result of `reconstruct`.

    Args:
        clips: Quality of each clip.
        video: File of the reconstruction.
        side_by_side: File with the original beside the reconstruction.
        model_is_trained: False if the weights are untrained, so that the reconstruction is meaningless.
    """

    clips: tuple[ClipQuality, ...]
    video: Path
    side_by_side: Path
    model_is_trained: bool

    @property
    def frames(self) -> int:
        """Number of all frames."""
        return sum(clip.frames for clip in self.clips)

    @property
    def psnr(self) -> float:
        """Mean of the clips' PSNR, weighted by their frames, in dB."""
        return float(np.average([clip.psnr for clip in self.clips], weights=[clip.frames for clip in self.clips]))

    @property
    def ssim(self) -> float:
        """Mean of the clips' structural similarity, weighted by their frames."""
        return float(np.average([clip.ssim for clip in self.clips], weights=[clip.frames for clip in self.clips]))


def reconstruct(
    video: str | os.PathLike[str],
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    settings: ReconstructSettings | None = None,
    placement: RuntimeSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ReconstructionSummary:
    """Reconstructs a video from its tokens, and writes the result, alone and beside the original, to two mp4 files.

    The files carry the seed and the model's hash as metadata. A call that fails leaves no file behind.

    Args:
        video: Video file.
        model: Model folder, or name of a preset.
        output: File to write; None for `NAME-reconstructed.mp4` in the working folder. The other file has
            `-side-by-side` after its name.
        settings: Choice of tokens or originals for keyframes and motion, denoising steps and sizes; None for those that
            suit the model.
        placement: Device and data type of the model.
        on_progress: Receives the denoising steps of each clip, and a message if the weights are untrained.

    Raises:
        ValueError: a setting or an output that is impossible.
        MediaError: the video cannot be decomposed.
        ModelError: the model cannot be loaded, or lacks a part.
        OSError: a file cannot be written.
    """
    file = check_output(output or f"{Path(video).stem}-reconstructed.mp4", ".mp4")
    beside = file.with_name(f"{file.stem}-side-by-side.mp4")
    runtime = load_runtime(model, placement, on_progress)
    settings = settings or settings_of_model(runtime.model, ReconstructSettings)
    weights = model_hash(runtime.model, RECONSTRUCTION_PARTS)
    metadata = provenance(f"reconstruction of {Path(video).name}", settings.seed, weights)
    clips = []
    with media_errors_of(video), write_beside(file, beside) as temporary, contextlib.ExitStack() as stack:
        writers = [stack.enter_context(Mp4Writer(path, settings.fps, metadata=metadata)) for path in temporary]
        for clip in reconstruct_clips(runtime, os.fspath(video), settings, on_progress):
            for frame, original in zip(clip.frames, clip.original, strict=True):
                writers[0].add(frame)
                writers[1].add(side_by_side(original, frame))
            clips.append(ClipQuality(len(clip.frames), len(clip.visual), len(clip.motion), clip.psnr, clip.ssim))
    return ReconstructionSummary(tuple(clips), file, beside, runtime.model.is_trained)


def reconstruct_clips(
    runtime: Runtime,
    source: str | os.PathLike[str] | bytes,
    settings: ReconstructSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Iterator[ReconstructedClip]:
    """Encodes the clips of a video to tokens, and yields their reconstructions one by one, in bounded memory.

    Args:
        source: Path or bytes of the video. It is opened twice at once.

    Raises:
        MediaError: the source cannot be decomposed.
        ValueError: a size that the model cannot generate.
        ModelError: the model lacks a part.
    """
    settings = settings or settings_of_model(runtime.model, ReconstructSettings)
    named = source if isinstance(source, bytes) else os.fspath(source)
    arguments = named, StorageSettings(), DecomposeSettings()
    with (
        contextlib.closing(iterate_pictures(*arguments)) as pictures,
        contextlib.closing(iterate_clips(*arguments)) as clips,
    ):
        for number, clip in enumerate(itertools.islice(clips, settings.clips)):
            yield _reconstruct_clip(runtime, clip, number, pictures, settings, on_progress)


def _reconstruct_clip(
    runtime: Runtime,
    clip: Clip,
    number: int,
    pictures: Iterator[Picture],
    settings: ReconstructSettings,
    on_progress: OnProgress,
) -> ReconstructedClip:
    size = settings.size(runtime.model, clip.height, clip.width)
    original = np.stack([resize_picture(next(pictures), *size) for _ in range(clip.num_frames)])
    with runtime.use("visual_tokenizer") as tokenizer:
        (visual,) = encode_pictures([clip.keyframe], tokenizer)
    with runtime.use("motion_tokenizer") as tokenizer:
        (motion,) = encode_motion([clip], tokenizer)
    keyframe, vectors = None, None
    if settings.keyframes == "original":
        keyframe = clip.keyframe
    if settings.motion == "original":
        latent_size = runtime.loaded("video_detokenizer").latent_size(*size)
        vectors = torch.from_numpy(clip.features(latent_size, rescale=False))
    steps = reconstruction_steps(settings.seed, number, clip.num_frames, keyframe, vectors)
    program = Program({number: ClipCodes(visual, motion)}, steps)
    (codes,), results = execute(runtime, [program], settings.generation(size), on_progress)
    made = program.video(codes, results)
    return ReconstructedClip(original, made.frames, made.keyframes[0], visual, motion)

"""Overfitting check: videos generated from the captions of the training set, beside the videos of these captions."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from videolavit.evaluation.synthetic import BATCH_SIZE
from videolavit.generation.generate import generate_videos
from videolavit.generation.prompts import Prompt
from videolavit.generation.runtime import Runtime
from videolavit.media import Cell
from videolavit.media.quality import psnr
from videolavit.models.folder import ModelFolder
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.report import REPORT, render_page
from videolavit.records.storage import StorageSettings
from videolavit.training.frames import decode_clip_frames
from videolavit.training.metrics import CURVES, read_metrics
from videolavit.training.run import MODEL_FOLDER
from videolavit.training.sources import ClipSample, clip_sources

from .proof_results import GENERATION, RESULTS, RUNS, save_sheet, write_results

COMPARISON_SHEET = "side-by-side.png"

RECALL = replace(GENERATION, temperature=0.0, visual_guidance=1.0, motion_guidance=1.0)
"""Settings of generation. A memorised video is the most probable one, so sampling is greedy. Guidance would lead away
from it."""

Frames = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class RecalledVideo:
    """Clip of a caption, and the frames that the model generates from the caption.

    Args:
        original, ours: uint8 [time, height, width, 3].
    """

    caption: str
    original: Frames
    ours: Frames

    @property
    def psnr(self) -> float:
        return psnr(self.original, self.ours)


@dataclass(frozen=True)
class RecalledClip:
    """Clip that was generated from a caption.

    Args:
        caption: Caption of a video.
        psnr: Peak signal-to-noise ratio to the caption's own video, in dB.
    """

    caption: str
    psnr: float


@dataclass(frozen=True)
class Comparison:
    """Generated clips beside the videos of their captions.

    Args:
        loss: Last training loss of the language model.
        psnr: Mean of the clips' PSNR, in dB.
        clips: A clip for each caption.
    """

    loss: float
    psnr: float
    clips: Sequence[RecalledClip]


def compare(output: Path, on_progress: OnProgress = ignore_progress) -> None:
    """Generates a clip for each caption, and writes the results, the side-by-side sheet and the page."""
    model = ModelFolder(output / MODEL_FOLDER)
    videos = _clips_of_captions(output / "train-clips")
    generated = _generated(Runtime(model), list(videos), on_progress)
    recalled = [
        _closest(caption, clips, ours, model) for (caption, clips), ours in zip(videos.items(), generated, strict=True)
    ]
    comparison = Comparison(
        loss=read_metrics(output / "language-model")["loss"][-1][1],
        psnr=float(np.mean([one.psnr for one in recalled])),
        clips=[RecalledClip(one.caption, one.psnr) for one in recalled],
    )
    save_sheet(output / COMPARISON_SHEET, [Cell(_pair(one), f"{one.psnr:.1f} dB: {one.caption}") for one in recalled])
    _write_page(output, comparison)
    write_results(output, asdict(comparison))


def read_comparison(output: Path) -> Comparison:
    """Reads the results of `compare`."""
    results = json.loads((output / RESULTS).read_text())
    return Comparison(**results | {"clips": [RecalledClip(**one) for one in results["clips"]]})


def _clips_of_captions(run: Path) -> dict[str, list[ClipSample]]:
    (source,) = clip_sources([str(run)], StorageSettings())
    clips: dict[str, list[ClipSample]] = {}
    for shard, size in enumerate(source.sizes):
        for row in range(size):
            clip: ClipSample = source.load(shard, row)
            if clip.text:
                clips.setdefault(clip.text, []).append(clip)
    return clips


def _generated(runtime: Runtime, captions: Sequence[str], on_progress: OnProgress) -> list[Frames]:
    videos: list[Frames] = []
    for start in range(0, len(captions), BATCH_SIZE):
        prompts = [Prompt((caption,), seed) for seed, caption in enumerate(captions[start : start + BATCH_SIZE], start)]
        videos += [video.frames for video in generate_videos(runtime, prompts, 1, RECALL)]
        on_progress(Progress("generate", len(videos), len(captions)))
    return videos


def _closest(caption: str, clips: Sequence[ClipSample], ours: Frames, model: ModelFolder) -> RecalledVideo:
    """Pairs generated frames with the closest clip of the caption's video: a caption describes all of them."""
    size = (model.sizes.video_height, model.sizes.video_width)
    originals = [decode_clip_frames(clip, size, StorageSettings()).frames for clip in clips]
    return max((RecalledVideo(caption, one, ours[: len(one)]) for one in originals), key=lambda recalled: recalled.psnr)


def _pair(one: RecalledVideo) -> Frames:
    """First, middle and last frame of the original, above those that were generated."""
    places = [0, len(one.original) // 2, -1]
    return np.concatenate([np.concatenate(list(video[places]), axis=1) for video in (one.original, one.ours)])


def _write_page(output: Path, comparison: Comparison) -> None:
    pictures = [
        (
            (output / COMPARISON_SHEET).read_bytes(),
            "Above: frames of the caption's own video. Below: what was generated",
        )
    ]
    pictures += [((output / name / CURVES).read_bytes(), name) for name in RUNS if (output / name / CURVES).exists()]
    page = render_page(
        title="Overfitting check: the videos that it was trained on, from their captions",
        facts=[("loss of the language model", f"{comparison.loss:.3g}"), ("mean PSNR, dB", f"{comparison.psnr:.1f}")],
        cells=[],
        pictures=pictures,
    )
    (output / REPORT).write_text(page)

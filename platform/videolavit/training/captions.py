"""What a language model makes of held-out captions: whether they help it, and what it writes behind them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from videolavit.generation.generate import generate_videos
from videolavit.generation.prompts import Prompt
from videolavit.generation.runtime import Runtime, RuntimeSettings
from videolavit.media import write_mp4
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model.attention import ordinary_attention
from videolavit.models.language_model.objective import NextToken
from videolavit.models.objective import Batch, Draws
from videolavit.vocabulary.sequences import Assembler, OrderSettings, TokenSample

from .data import Item
from .packed import Document

TEXT_FIRST = OrderSettings(text_first=1.0, drop_text=0.0, drop_keyframe=0.0)
_ANY = (0.5, 0.5)

CollateDocuments = Callable[[Sequence[Item], Sequence[Sequence[Document]]], Batch]


def caption_losses(
    objective: NextToken, samples: Sequence[TokenSample], assembler: Assembler, collate: CollateDocuments
) -> dict[str, float]:
    """Mean loss of visual and motion ids behind a sample's own text, and behind the next sample's.

    Args:
        samples: With text and clips.
        assembler: Puts the text first.
    """
    told: dict[str, float] = {}
    texts = [sample.text for sample in samples]
    for name, given in (("own", texts), ("other", [*texts[1:], *texts[:1]])):
        sums = {"visual": 0.0, "motion": 0.0}
        counts = dict.fromkeys(sums, 0.0)
        for number, (sample, text) in enumerate(zip(samples, given, strict=True)):
            one = TokenSample(text, sample.clips)
            lengths = [(len(visual), len(motion)) for visual, motion in one.clips]
            documents = [
                Document(assembler.ids(piece, one), "")
                for piece in assembler.pieces(len(text), lengths, _ANY)
                if piece.clips
            ]
            batch = collate([Item(number, "", lambda: None)] * len(documents), [[each] for each in documents])
            device = next(objective.parameters()).device
            inputs = {key: value.to(device) for key, value in batch.inputs.items()}
            losses = objective(inputs, Draws(0, batch.positions, device))
            for kind in sums:
                sums[kind] += float(losses[kind])
                counts[kind] += batch.counts[kind]
        told |= {f"{kind}_{name}_caption": sums[kind] / max(counts[kind], 1.0) for kind in sums}
    return told


def write_videos(objective: NextToken, model: ModelFolder, captions: Sequence[str], folder: Path) -> None:
    """A video of each caption, by the language model as it is and the model's detokenizers."""
    network = objective.model
    runtime = Runtime(model, RuntimeSettings(device=str(network.device)), {"language_model": network})
    with ordinary_attention(network), torch.no_grad():
        videos = generate_videos(runtime, [Prompt((caption,), seed) for seed, caption in enumerate(captions)])
    for number, video in enumerate(videos):
        write_mp4(video.frames, folder / f"{number}.mp4", 6)
    (folder / "captions.txt").write_text("".join(f"{number}: {one}\n" for number, one in enumerate(captions)))

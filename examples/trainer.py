"""For trainers: a few steps of training a motion tokenizer, its metrics, and the trained part in use.

Run the cells one by one in an editor, or all of them with `python examples/trainer.py`. Files go to the current folder.
"""

# %% Imports
import json
from pathlib import Path

import torch

from pipelines.decompose import DecomposeRequest, decompose
from pipelines.train import train
from videolavit.media import decompose as decompose_video
from videolavit.models.folder import ModelFolder
from videolavit.synth import SynthSettings, render_corpus
from videolavit.training.settings import OptimizerSettings, TrainInputs, TrainSettings

# %% Clips to train on, and others to validate with
for name, seed in (("train", 1), ("held-out", 2)):
    corpus = render_corpus(f"{name}-videos", 6, SynthSettings(width=192, height=128, fps=6), seed=seed)
    decompose(DecomposeRequest(inputs=[corpus.manifest], output=f"{name}-clips"))

# %% Training in this process. The same call continues; `cluster=ClusterSettings(workers=8)` runs it under Ray Train
summary = train(
    "motion-tokenizer",
    "tiny",
    TrainInputs(train=["train-clips"], validation=["held-out-clips"]),
    "motion",
    settings=TrainSettings(
        steps=20, batch=4, micro_batch=4, log_every=5, trackers=(), optimizer=OptimizerSettings(lr=2e-3)
    ),
    on_progress=lambda progress: print(progress.message),
)
print(f"trained {summary.steps} steps in {summary.seconds:.0f} s")
print(f"validation loss: {summary.metrics['validation/loss']:.4f}")

# %% Metrics are JSON lines
lines = [json.loads(line) for line in Path("motion/metrics.jsonl").read_text().splitlines()]
print("loss:", [round(line["loss"], 4) for line in lines if "loss" in line])

# %% The trained part, from the model folder that training wrote
model = ModelFolder(summary.model)
tokenizer = model.load("motion_tokenizer")
clip = next(decompose_video("held-out-videos/videos/000000.mp4"))
motion = torch.from_numpy(clip.features(tokenizer.config.grid))[None]  # [1, 2, 24, height, width]
with torch.inference_mode():
    codes = tokenizer.encode(motion)
print("trained parts:", model.trained_parts)
print("codes of a clip:", codes[0].tolist())
assert codes.shape == (1, model.motion_tokens)

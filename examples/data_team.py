"""For data teams: videos to clip shards, clip shards to tables of other tools, clips to token shards.

Run the cells one by one in an editor, or all with `python examples/data_team.py`. Files go to the current folder.
"""

# %% Imports
import io

import numpy as np
import pyarrow.dataset as ds
from PIL import Image

from pipelines.decompose import DecomposeRequest, decompose, plan_decomposition
from pipelines.tokenize import TokenizeRequest, tokenize
from videolavit.records.tokenizer_info import EncodeSettings
from videolavit.synth import SynthSettings, render_corpus

# %% A captioned corpus: here a rendered one; a folder, a manifest or an archive of your own works the same
corpus = render_corpus("corpus", 4, SynthSettings(width=192, height=128, fps=12), seed=1)
print(f"corpus: {corpus.num_videos} videos, {corpus.video_seconds:.0f} s, {corpus.manifest}")

# %% What a run would cost, without writing anything
request = DecomposeRequest(inputs=[corpus.manifest], output="clips")
plan = plan_decomposition(request)
print(f"plan: {plan.new.samples} samples, about {plan.new.core_hours:.2g} core-hours")

# %% The run. The same call continues it. It uses the Ray that is connected; otherwise it starts one and stops it again
run = decompose(
    request,
    on_progress=lambda progress: print(f"{progress.stage} {progress.done:g}/{progress.total:g} {progress.message}"),
)
print(
    f"clips: {run.counts['clips']} of {run.samples} videos in {run.shards} shards, rejects: {dict(run.rejects_by_type)}"
)
assert run.is_complete

# %% The shards are plain Parquet: pyarrow, pandas, DuckDB and others read them
table = ds.dataset("clips/clips", format="parquet").to_table(columns=["text", "num_clips", "clips"])
frame = table.select(["text", "num_clips"]).to_pandas()
frame["motion_score"] = [max(clip["motion_score"].as_py() for clip in clips) for clips in table["clips"]]
print(frame.sort_values("motion_score", ascending=False).to_string(index=False))

# %% A clip as arrays: a keyframe, and motion in half pixels
clip = table["clips"][0].as_py()[0]
keyframe = np.asarray(Image.open(io.BytesIO(clip["keyframe"])))
motion = np.asarray(clip["motion"], np.int16).reshape(clip["num_frames"], clip["blocks_high"], clip["blocks_wide"], 2)
print("keyframe:", keyframe.shape, "motion:", motion.shape, "largest displacement:", np.abs(motion).max() / 2, "pixels")

# %% Tokens, by the tokenizers of a model. `tiny` has untrained weights: name your model folder here
tokens = tokenize(TokenizeRequest(inputs=["clips"], output="tokens", encode=EncodeSettings(model="tiny")))
print(f"tokens: {tokens.counts['visual_tokens']} visual and {tokens.counts['motion_tokens']} motion codes")

first = ds.dataset("tokens/tokens", format="parquet").to_table().slice(0, 1).to_pylist()[0]
print("first sample:", first["text"], first["clips"][0]["visual_tokens"][:8], first["clips"][0]["motion_tokens"][:8])
assert tokens.samples == run.samples

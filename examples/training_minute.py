"""A minute of training: the latent space of keyframes and the motion tokenizer of the smallest model, on real clips.

Run the cells one by one in an editor, or all of them with `python examples/training_minute.py`. Files go to the current
folder. Footage is rendered; name your own videos in its place.
"""

# %% Imports
from pipelines.decompose import DecomposeRequest, decompose
from pipelines.train import train
from videolavit.generation.reconstruct import ReconstructSettings, reconstruct
from videolavit.models.codebook import CodebookSettings
from videolavit.models.folder import ModelFolder
from videolavit.synth import render_corpus
from videolavit.training.components.motion_tokenizer import MotionTokenizerTraining
from videolavit.training.components.vae import VAETraining
from videolavit.training.settings import OptimizerSettings, TrainInputs, TrainSettings

# %% Videos to clips
corpus = render_corpus("videos", 8, seed=1)
clips = decompose(DecomposeRequest(inputs=[corpus.manifest], output="clips"))
print(f"clips: {clips.counts['clips']}")

# %% Two parts, one after the other: each training starts from the model that the one before made
model = "tiny"
for component, objective, steps in (
    ("vae", VAETraining(part="keyframe_detokenizer/vae"), 60),
    ("motion-tokenizer", MotionTokenizerTraining(codebook=CodebookSettings(quantize_from=40)), 80),
):
    trained = train(
        component,
        model,
        TrainInputs(train=["clips"], validation=["clips"]),
        f"train-{component}",
        objective=objective,
        settings=TrainSettings(steps=steps, batch=8, micro_batch=8, optimizer=OptimizerSettings(lr=2e-3)),
    )
    print(f"{component}: loss {trained.metrics['validation/loss']:.4f} after {trained.steps} steps")
    model = str(trained.model)
print("trained:", ModelFolder(model).trained_parts)

# %% What a minute is worth: the motion of a video through its tokens, over its own keyframe
settings = ReconstructSettings(keyframes="original", clips=1, video_steps=6)
made = reconstruct("videos/videos/000000.mp4", model, "back.mp4", settings=settings)
print(f"written: {made.side_by_side}, with a video detokenizer that has not learned anything yet")

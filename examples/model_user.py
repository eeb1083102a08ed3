"""For users of models: generate pictures and videos, reconstruct a video from its tokens, ask about it.

The preset `tiny` has untrained weights: everything runs, and the results mean nothing. Name a model folder instead,
imported or trained. Run the cells one by one in an editor, or all with `python examples/model_user.py`. Files go to the
current folder.
"""

# %% Imports
from videolavit.generation.describe import DescribeSettings, describe
from videolavit.generation.generate import generate, generate_videos
from videolavit.generation.prompts import Prompt
from videolavit.generation.reconstruct import ReconstructSettings, reconstruct
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings
from videolavit.models.folder import ModelFolder
from videolavit.synth import SynthSettings, render_corpus

# %% A model and settings: few denoising steps, to be quick
MODEL = "tiny"
settings = GenerateSettings(keyframe_steps=4, video_steps=3)

# %% Pictures, several prompts in one batch
pictures = generate("image", ["a red circle", "a blue square"], MODEL, seed=1, output="pictures", settings=settings)
print("pictures:", *pictures.files)

# %% A video of two clips, and one that starts from a picture
video = generate("video", ["a red circle moves right"], MODEL, clips=2, seed=7, output="video.mp4", settings=settings)
onward = generate("video", ["it rolls on"], MODEL, images=[pictures.files[0]], output="onward.mp4", settings=settings)
print("videos:", *video.files, *onward.files, "model:", video.model_hash[:12])

# %% A video through its tokens and back
render_corpus("corpus", 1, SynthSettings(width=192, height=128, fps=12), seed=3)
back = reconstruct(
    "corpus/videos/000000.mp4",
    MODEL,
    "back.mp4",
    settings=ReconstructSettings(keyframe_steps=4, video_steps=3, clips=1),
)
print(f"reconstruction: {back.frames} frames, PSNR {back.psnr:.1f} dB, SSIM {back.ssim:.3f}, {back.side_by_side}")

# %% Questions about a picture and a video
files = [pictures.files[0], "corpus/videos/000000.mp4"]
answers = describe(files, MODEL, "What happens here?", settings=DescribeSettings(max_tokens=16))
for file, answer in zip(files, answers.answers, strict=True):
    print(f"{file}: {answer}")

# %% With the networks loaded once, for many calls: arrays in, arrays out
runtime = Runtime(ModelFolder(MODEL))
(made,) = generate_videos(runtime, [Prompt(("a ball rolls",), seed=7)], clips=2, settings=settings)
print("frames:", made.frames.shape, made.frames.dtype, "codes per clip:", [len(codes) for codes in made.motion])

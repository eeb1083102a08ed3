"""What can be trained: one module a component, which joins an objective with its data."""

COMPONENTS = {
    "motion-tokenizer": "motion of clips to codes and back",
    "visual-tokenizer": "pictures to codes, and codes to features",
    "keyframe-detokenizer": "codes to pictures",
    "video-detokenizer": "a keyframe and motion to frames",
    "language-model": "text, images and videos as one sequence; or chat about them",
    "vae": "the latent spaces of both detokenizers",
}
"""What can be trained."""

"""Training of the motion tokenizer: reconstruct motion through the codebook (docs/model.md, section 3.5)."""

from torch import Tensor, nn

from ..codebook import CodebookLearner, CodebookObjective, CodebookSettings
from ..objective import SAMPLE_LOSSES, Draws, sample_losses
from .network import MotionTokenizer


class MotionTokenizerObjective(CodebookObjective):
    """Squared error of the reconstruction at the tokenizer scale, and commitment of the encoder to its codes.

    Inputs: `motion` from `media.motion_features`, [batch, 2, time, height, width], and `num_frames`, the number of real
    frames, int64 [batch]. Terms: `reconstruction`, summed over the values of real frames, and `commitment`, summed over
    the codes.

    Args:
        tokenizer: Network to train.
        codebook: Settings of its codebook.
        commitment: Weight of the term `commitment`.
    """

    tokenizer: MotionTokenizer

    def __init__(self, tokenizer: MotionTokenizer, codebook: CodebookSettings, commitment: float) -> None:
        super().__init__()
        self.tokenizer = tokenizer.requires_grad_(True).train()
        self.tokenizer.quantize.requires_grad_(False)
        self.codebook = CodebookLearner(tokenizer.config.num_codes, tokenizer.config.code_dim, codebook)
        self.weights = {"reconstruction": 1.0, "commitment": commitment}

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        motion, num_frames = inputs["motion"], inputs["num_frames"]
        z = self.tokenizer.to_codebook(motion)
        keys = draws.uniform("codebook", self.tokenizer.config.num_tokens)
        codes, distances = self.codebook(self.tokenizer.quantize, z.flatten(0, 3), keys.flatten())
        errors = (self.tokenizer.from_codebook(codes.view_as(z)).float() - motion.float()).square()
        real = errors * real_frames(motion, num_frames)
        means = {
            "reconstruction": real.flatten(1).sum(1) / (num_frames * motion[0, :, 0].numel()),
            "commitment": distances.view(len(motion), -1).mean(1),
        }
        sums = {"reconstruction": real.sum(), "commitment": distances.sum()}
        return {**sums, SAMPLE_LOSSES: sample_losses(means, self.weights)}

    def parts(self) -> dict[str, nn.Module]:
        return {"motion_tokenizer": self.tokenizer}

    def units(self) -> list[nn.Module]:
        return [*self.tokenizer.encoder.blocks, *self.tokenizer.decoder.blocks]


def real_frames(motion: Tensor, num_frames: Tensor) -> Tensor:
    """Returns a mask of the real frames of [batch, 2, time, height, width], bool [batch, 1, time, 1, 1]."""
    frames = num_frames.new_tensor(range(motion.shape[2]))
    return (frames < num_frames[:, None])[:, None, :, None, None]

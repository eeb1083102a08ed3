"""How a training runs. What is trained, and on what, is the component's."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from videolavit.models.network import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerSettings:
    """AdamW and its schedule; the defaults are the published ones of the tokenizers.

    Args:
        lr: Peak learning rate.
        betas: Decay of the two moments.
        eps: Added to the second moment's root.
        weight_decay: Of weights; biases, norms and embedding tables of one dimension have none.
        clip: Largest norm of the gradient; larger ones are scaled down.
        schedule: `cosine` to `final`, `linear` to `final`, or `constant`; all after the warm-up.
        warmup: Steps over which the learning rate grows from 0.
        final: Learning rate at the last step, relative to `lr`.
        ema: Decay of the averaged weights that are validated, shown and saved; 0 is without.
        max_skipped: Steps in a row whose gradient may be infinite or not a number. They are skipped; more end the run.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-6
    weight_decay: float = 0.001
    clip: float = 1.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int = 0
    final: float = 0.0
    ema: float = Field(default=0.0, ge=0, lt=1)
    max_skipped: int = 10


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParallelSettings:
    """How the work is spread and memory is saved.

    Args:
        shard: Ranks that hold one copy of the weights together (FSDP); None for all of them. With fewer, the copies
            are kept equal (HSDP).
        precision: `bfloat16` computes in it; weights, optimizer and gradient sums stay float32.
        recompute: Activations that are computed again instead of kept: `none`, `full` (all inside a block), or
            `selective` (all but the results of matrix products and attention).
        compile: Compile every block with torch.compile.
    """

    shard: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    recompute: Literal["none", "full", "selective"] = "none"
    compile: bool = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainSettings:
    """The run.

    Args:
        steps: Optimizer steps.
        batch: Samples of a step over all ranks; packed rows for the language model.
        batch_tokens: Instead of `batch`: tokens of a step over all ranks, for components with sequences.
        micro_batch: Samples that a rank computes at once; gradients add up to the batch.
        seed: Decides the data order and all that is drawn.
        log_every: Steps between two lines of metrics.
        validate_every: Steps between two validations; 0 validates at the end only.
        show_every: Steps between two sets of samples to look at; 0 shows them at the end only.
        save_every: Steps between two checkpoints; one is written at the end too.
        keep: Newest checkpoints that are kept.
        loader_threads: Threads that load samples; 0 loads them between the steps.
        prefetch: Steps that are loaded ahead.
        trackers: What else metrics go to, beside the console and `metrics.jsonl`.
        peak_flops: Of the device, for the model FLOPs utilisation; None takes a known GPU's from a table.
        profile: Steps that are traced, into `profile/`, after the first ten of this start; 0 for none.
    """

    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=64, ge=1)
    batch_tokens: int | None = Field(default=None, ge=1)
    micro_batch: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=10, ge=1)
    validate_every: int = Field(default=0, ge=0)
    show_every: int = Field(default=0, ge=0)
    save_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    loader_threads: int = Field(default=2, ge=0)
    prefetch: int = Field(default=2, ge=1)
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    peak_flops: float | None = None
    profile: int = Field(default=0, ge=0)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    parallel: ParallelSettings = Field(default_factory=ParallelSettings)

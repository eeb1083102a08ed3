"""Settings of a training run: its data, its loop, its optimizer, and how it is spread over ranks."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from videolavit.models.network import STRICT
from videolavit.records.storage import StorageSettings

SEED_LIMIT = 2**63
"""Number of seeds that torch and NumPy both take."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainInputs:
    """Training and held-out data.

    Args:
        train: Runs of `videolavit decompose` or `tokenize`, or corpora, as paths or URLs; the component decides which
            of them it takes. Each one is a source.
        weights: Share of each source in a step; None for shares by number of samples.
        validation: Held-out data of the same kinds.
        seed: Seed of the data order.
        window: Shards of a source whose samples are mixed at a time. With a multiple of 16, ranks share none.
        storage: S3 endpoint and credentials.
    """

    train: list[str]
    weights: list[float] | None = None
    validation: list[str] = Field(default_factory=list)
    seed: int = Field(default=0, ge=0, lt=SEED_LIMIT)
    window: int = Field(default=16, ge=1)
    storage: StorageSettings = Field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        if any(weight <= 0 for weight in self.weights or ()):
            raise ValueError("the weight of a source must be above 0; leave it out instead")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerSettings:
    """AdamW and its learning rate schedule. The defaults are those published for the tokenizers.

    Args:
        lr: Peak learning rate.
        lr_scales: Factors of the learning rate of parameters, by patterns of their names such as `*embed_tokens*`. The
            first that matches counts, in place of the component's own.
        betas: Decay rates of the two moments.
        eps: Value added to the root of the second moment.
        weight_decay: Weight decay. Tensors of one dimension, such as biases and norms, have none.
        clip: Largest norm of the gradient; a larger gradient is scaled down to it. 0 for none.
        schedule: Learning rate after the warm-up: `cosine` or `linear` decay to `final`, or `constant`.
        warmup: Steps over which the learning rate grows from 0.
        final: Learning rate of the last step, relative to `lr`.
        ema: Decay of the exponential moving average of the weights, which is validated, sampled and saved; 0 for none.
        max_skipped: Consecutive steps that may be skipped because their gradient is not finite; one more ends the run.
    """

    lr: float = Field(default=1e-4, gt=0)
    lr_scales: dict[str, float] = Field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.001, ge=0)
    clip: float = Field(default=1.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int = Field(default=0, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    max_skipped: int = Field(default=10, ge=0)

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, not {self.betas}")
        if any(scale <= 0 for scale in self.lr_scales.values()):
            raise ValueError("factors of lr_scales must be above 0; leave parameters out with trainable")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParallelSettings:
    """Sharding over ranks, precision, and memory savings.

    Args:
        shard: Ranks over which one copy of the weights is sharded (FSDP); None for all ranks. With fewer ranks there
            are several copies, which are kept equal (HSDP).
        precision: Precision of forward and backward passes. Weights and optimizer state stay float32.
        reduce: Precision in which gradients are summed over ranks; bfloat16 halves what is sent.
        recompute: Activation checkpointing of each block: `none`, `full`, or `selective` (keeps the results of matrix
            products and attention).
        compile: Compile every block with torch.compile; None compiles on a GPU.
    """

    shard: int | None = Field(default=None, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    reduce: Literal["float32", "bfloat16"] = "float32"
    recompute: Literal["none", "full", "selective"] = "none"
    compile: bool | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainSettings:
    """Training loop.

    Args:
        steps: Optimizer steps.
        batch: Samples per optimizer step over all ranks; packed rows for the language model.
        batch_tokens: Tokens per optimizer step over all ranks, for components with sequences; replaces `batch`.
        micro_batch: Samples per forward pass of a rank; gradients are accumulated up to the batch.
        trainable: Patterns of the names of the parameters that are trained, such as `*lm_head*`; empty for those that
            the component trains.
        seed: Seed of the data order and of all random numbers.
        log_every: Steps between two lines of metrics.
        validate_every: Steps between two validations; 0 validates at the end only.
        show_every: Steps between two sets of samples in `samples/`; 0 writes them at the end only.
        save_every: Steps between two checkpoints; the last step is always saved.
        keep: Number of newest checkpoints that are kept.
        keep_best: Metric of the validation, such as `validation/loss`, by which the checkpoint with the smallest value
            is kept too; every validation then has a checkpoint.
        resume_from: Step of the checkpoint to continue from, in place of the newest. Those after it are removed.
        continue_from: Model, checkpoint or folder of another run whose weights this run begins with; the folder stands
            for its newest checkpoint. Data, order and schedule are those of this run, from the first step.
        continue_moments: Takes the moments and averaged weights of the checkpoint in `continue_from` too.
        accept_changes: Names of changes, as the refusal of a resume shows them, with which the run continues.
        max_rejects: Largest share of the last thousand samples that may be unusable; beyond it the run saves and ends.
        loader_threads: Threads that load samples; 0 loads them between the steps.
        prefetch: Steps that are loaded ahead.
        trackers: Trackers that get the metrics in addition to `metrics.jsonl`.
        peak_flops: Peak floating-point operations per second of the device, for the model FLOPs utilisation; None
            looks the GPU up in a table.
        profile: Steps that are traced into `profile/`, after the first ten steps; 0 for none.
    """

    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=64, ge=1)
    batch_tokens: int | None = Field(default=None, ge=1)
    micro_batch: int = Field(default=64, ge=1)
    trainable: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0, lt=SEED_LIMIT)
    log_every: int = Field(default=10, ge=1)
    validate_every: int = Field(default=0, ge=0)
    show_every: int = Field(default=0, ge=0)
    save_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    keep_best: str | None = None
    resume_from: int | None = Field(default=None, ge=0)
    continue_from: str | None = None
    continue_moments: bool = False
    accept_changes: tuple[str, ...] = ()
    max_rejects: float = Field(default=0.1, ge=0, le=1)
    loader_threads: int = Field(default=2, ge=0)
    prefetch: int = Field(default=2, ge=1)
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    peak_flops: float | None = Field(default=None, gt=0)
    profile: int = Field(default=0, ge=0)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    parallel: ParallelSettings = Field(default_factory=ParallelSettings)

    def __post_init__(self) -> None:
        if self.continue_moments and self.continue_from is None:
            raise ValueError("continue_moments goes with continue_from")

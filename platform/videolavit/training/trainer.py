"""The training loop: one for all components, in a single process or on many ranks, under Ray Train or without."""

import contextlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from videolavit.models.objective import Batch, Draws, to_device
from videolavit.progress import OnProgress, Progress, ignore_progress

from .checkpoint import Checkpoints, RunState
from .component import Component
from .data import DataError
from .loader import Loader, RankSampler, RemoteLoader, SkippedSample, StepData, validation_batches
from .metrics import Interval, MetricsLog, Tracker, log_line, mean_terms, memory_bytes, peak_flops, sum_values
from .optimizer import Optimizer
from .parallel import Ranks, autocast, parallelize, reshard, sync_gradients, unsharded
from .settings import TrainSettings

TRAIN_STAGE = "train"
"""Stage of the progress that a training reports."""

CHECKPOINTS, SAMPLES, SKIPPED, PROFILE = "checkpoints", "samples", "rejects.jsonl", "profile"
PROFILE_AFTER = 10
"""Steps before the first one that is profiled."""

OnSave = Callable[[Path, dict[str, float]], None]
"""Called on every rank with the folder of a committed checkpoint and the last metrics."""


class Diverged(RuntimeError):
    """Too many consecutive steps had a gradient that was not finite."""


class Trainer:
    """Trains a component. A run whose folder holds a checkpoint continues from it.

    Args:
        component: Component on the CPU, not sharded yet.
        settings: Settings of the loop.
        ranks: Ranks of the run.
        folder: Folder of the run, on storage that all ranks share.
        trackers: Trackers in addition to those that the settings name.
        on_progress: Receives each line of metrics, on the first rank.
        on_save: Called when a checkpoint is committed.
        remote_loader: Loads samples instead of threads of this process.

    Raises:
        DataError: the batch or the ranks cannot be divided.
        CheckpointError: the folder holds another run.
    """

    def __init__(
        self,
        component: Component,
        settings: TrainSettings,
        ranks: Ranks,
        folder: Path,
        *,
        trackers: Sequence[Tracker] = (),
        on_progress: OnProgress = ignore_progress,
        on_save: OnSave | None = None,
        remote_loader: RemoteLoader | None = None,
    ) -> None:
        self.component, self.settings, self.ranks, self.folder = component, settings, ranks, folder
        self.step = 0
        self.metrics: dict[str, float] = {}
        self._on_progress = on_progress if ranks.is_first else ignore_progress
        self._on_save, self._remote_loader = on_save, remote_loader
        self._tokens: Counter[str] = Counter()  # sums of all ranks
        self._new_tokens: Counter[str] = Counter()  # sums of this rank, not added to those of all ranks yet
        self._skipped_steps = 0
        self._batch = settings.batch
        if settings.batch_tokens is not None:
            length = component.tokens_per_item
            if not length:
                raise DataError("batch_tokens is for components with sequences; use batch")
            if settings.batch_tokens % length:
                raise DataError(f"batch_tokens must be a multiple of the sequence length, {length}")
            self._batch = settings.batch_tokens // length
        self._objective = component.objective.to(ranks.device)
        parallelize(self._objective, settings.parallel, ranks)
        self._optimizer = Optimizer(self._objective, settings.optimizer, settings.steps)
        self._identity = {**component.identity, "seed": settings.seed, "batch": self._batch}
        folder.mkdir(parents=True, exist_ok=True)
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, ranks, settings.keep, self._report)
        state = self._checkpoints.resume(self.tensors(), self._identity)
        if state is not None:
            component.stream.seek(state.stream)
            self.step, self._skipped_steps, self._tokens = state.step, state.skipped, Counter(state.tokens)
        self._metrics_log: MetricsLog | None = None
        if ranks.is_first:
            config = asdict(settings) | self._identity
            self._metrics_log = MetricsLog(folder, [*settings.trackers, *trackers], config, self.step)

    # ---- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains to the last step; validates, writes samples and saves on the way and at the end.

        Raises:
            Diverged: too many consecutive steps without a finite gradient.
        """
        settings = self.settings
        sampler = RankSampler(self._batch, settings.micro_batch, self.ranks.rank, self.ranks.world)
        loader = Loader(
            self.component.stream,
            self.component.collate,
            sampler,
            settings.steps - self.step,
            settings.loader_threads,
            settings.prefetch,
            self._remote_loader,
        )
        interval = Interval()
        steps = iter(loader)
        with contextlib.closing(steps), self._profiler() as profile_step:
            while self.step < settings.steps:
                data = next(steps)
                interval.add(data, self._train(data, interval))
                for batch in data.batches:
                    self._new_tokens.update(batch.tokens)
                self.step += 1
                self._record_skipped(data.skipped)
                profile_step()
                if self._due(settings.log_every):
                    self._log(interval, loader.wait_seconds)
                    interval, loader.wait_seconds = Interval(), 0.0
                self._save(data.state)  # before validation and samples, whose failure does not touch the weights
                if self._due(settings.validate_every) and self.component.validation:
                    self._validate()
                if self._due(settings.show_every) and self.component.write_samples:
                    self._write_samples()
        if self._metrics_log is not None:
            self._metrics_log.close()

    def _train(self, data: StepData, interval: Interval) -> float:
        """One optimizer step, with gradient accumulation over the micro batches; returns the norm of the gradient."""
        objective = self._objective
        objective.begin_step(self.step)
        counts = self.ranks.sums(sum_values([batch.counts for batch in data.batches]))
        for number, batch in enumerate(data.batches):
            sync_gradients(objective, enabled=number == len(data.batches) - 1)
            objective.train(batch.weight > 0)  # a placeholder must not change codebooks, which learn in training mode
            with autocast(self.settings.parallel, self.ranks.device):
                sums = self._forward(batch, self.settings.seed)
            terms = [weight * sums[term] / max(counts[term], 1.0) for term, weight in objective.weights.items()]
            (batch.weight * torch.stack([term.float() for term in terms]).sum()).backward()
            interval.sums.append({term: value.detach() * batch.weight for term, value in sums.items()})
        norm = self._optimizer.clip()
        if math.isfinite(norm):
            self._skipped_steps = 0
            self._optimizer.step(self.step)
            objective.after_step(self.ranks.sum)
        else:  # the norm, and so the decision, is the same on all ranks
            objective.drop_step()
            self._skipped_steps += 1
            self._report(f"step {self.step + 1}: the gradient's norm is {norm}; the step is skipped")
            if self._skipped_steps > self.settings.optimizer.max_skipped:
                raise Diverged(
                    f"{self._skipped_steps} steps in a row had no finite gradient. Lower optimizer.lr, or use float32; "
                    "the last checkpoint is from before, if it is older than that"
                )
        self._optimizer.zero_grad()
        return norm

    def _forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        draws = Draws(seed, batch.positions, self.ranks.device)
        sums: dict[str, Tensor] = self._objective(to_device(batch.inputs, self.ranks.device), draws)
        return sums

    def _due(self, every: int) -> bool:
        return self.step == self.settings.steps or (every > 0 and self.step % every == 0)

    # ---- metrics ----------------------------------------------------------------------------------------------

    def _log(self, interval: Interval, wait_seconds: float) -> None:
        peak = peak_flops(self.ranks.device, self.settings.peak_flops)
        metrics = interval.metrics(self._objective.weights, self.ranks, peak)
        self._count_tokens()
        metrics |= {
            "lr": self.settings.optimizer.lr * self._optimizer.lr_factor(self.step - 1),
            "data_wait": wait_seconds / interval.seconds,
            "memory_gb": memory_bytes(self.ranks.device) / 1e9,
        }
        metrics |= {f"tokens/{name}": float(number) for name, number in self._tokens.items()}
        self._publish(metrics | self._objective.statistics())

    def _count_tokens(self) -> None:
        """Adds the tokens of all ranks since the last call to the total."""
        new = self.ranks.sum_counts(self._new_tokens)
        self._tokens.update({name: int(number) for name, number in new.items()})
        self._new_tokens.clear()

    def _publish(self, metrics: dict[str, float]) -> None:
        self.metrics |= metrics
        if self._metrics_log is not None:
            self._metrics_log.write(self.step, metrics)
            self._report(log_line(self.step, self.settings.steps, metrics))

    def _report(self, message: str) -> None:
        self._on_progress(Progress(TRAIN_STAGE, self.step, self.settings.steps, message))

    def _record_skipped(self, skipped: list[SkippedSample]) -> None:
        if skipped:
            self._report(f"{len(skipped)} samples cannot be used; the first: {skipped[0].source}: {skipped[0].message}")
            with (self.folder / SKIPPED).open("a") as file:
                file.writelines(json.dumps({"step": self.step, **asdict(sample)}) + "\n" for sample in skipped)

    @contextlib.contextmanager
    def _profiler(self) -> Iterator[Callable[[], None]]:
        """Traces some steps for a trace viewer; yields a function to call after each step."""
        if not self.settings.profile or not self.ranks.is_first:
            yield lambda: None
            return
        schedule = torch.profiler.schedule(wait=PROFILE_AFTER, warmup=1, active=self.settings.profile, repeat=1)
        handler = torch.profiler.tensorboard_trace_handler(str(self.folder / PROFILE))
        with torch.profiler.profile(schedule=schedule, on_trace_ready=handler, profile_memory=True) as profile:
            yield profile.step

    # ---- validation -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Evaluation mode, with the averaged weights if there are any, in the body of the `with` statement."""
        self._objective.eval()
        with self._optimizer.averaged():
            reshard(self._objective)
            yield
        reshard(self._objective)
        self._objective.train()

    @cached_property
    def _validation(self) -> list[Batch]:
        component, ranks = self.component, self.ranks
        micro_batch = self.settings.micro_batch
        return validation_batches(component.validation, component.collate, micro_batch, ranks.rank, ranks.world)

    def _validate(self) -> None:
        """Loss of the fixed held-out samples, with fixed random numbers and the averaged weights."""
        batches = self._validation
        sums: list[dict[str, float]] = []
        with self.averaged_weights(), torch.no_grad(), autocast(self.settings.parallel, self.ranks.device):
            for batch in batches:
                terms = self._forward(batch, seed=0)
                sums.append({term: float(value) * batch.weight for term, value in terms.items()})
        totals = self.ranks.sums(sum_values(sums))
        counts = self.ranks.sums(sum_values([batch.counts for batch in batches]))
        means = mean_terms(totals, counts, self._objective.weights)
        self._publish({f"validation/{name}": value for name, value in means.items()})

    def _write_samples(self) -> None:
        """Writes samples on every rank, since the ranks gather the weights together; those of the first are kept."""
        assert self.component.write_samples is not None
        name = f"step-{self.step:08d}" if self.ranks.is_first else f".rank-{self.ranks.rank}"
        folder = self.folder / SAMPLES / name
        folder.mkdir(parents=True, exist_ok=True)
        precision = autocast(self.settings.parallel, self.ranks.device)
        with self.averaged_weights(), unsharded(self._objective), torch.no_grad(), precision:
            metrics = self.component.write_samples(self._objective, folder)
        if not self.ranks.is_first:
            shutil.rmtree(folder)
        self._publish({f"samples/{name}": value for name, value in metrics.items()})

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint, by name: weights, optimizer state, averaged weights."""
        fixed = {
            id(value) for network in self._objective.fixed() for value in network.state_dict(keep_vars=True).values()
        }
        model = self._objective.state_dict(keep_vars=True)
        tensors = {f"model.{name}": value.detach() for name, value in model.items() if id(value) not in fixed}
        return tensors | self._optimizer.tensors()

    def _save(self, stream: dict[str, int]) -> None:
        """Begins a save where one is due, and commits one whose files are written."""
        if self._due(self.settings.save_every):
            self._commit(wait=True)
            self._count_tokens()
            state = RunState(self.step, stream, self._identity, dict(self._tokens), self._skipped_steps)
            self._checkpoints.save(self.tensors(), state)
        if self._checkpoints.saving:
            self._commit(wait=self.step == self.settings.steps)

    def _commit(self, wait: bool) -> None:
        path = self._checkpoints.commit(wait)
        if path is not None and self._on_save is not None:
            self._on_save(path, self.metrics)
